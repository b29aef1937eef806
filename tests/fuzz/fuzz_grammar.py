"""What hostile guests say: random hypercalls, of which a good share is meaningful.

`Speaker(random, world, guest).call()` returns a `Call`: the registers, what to store where before it is made, and its
description in words. Structures are filled member by member, each by what its name says it is; some members, and some
pointers, are garbage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Any

import attrs
from bare_guest import DATA_PAGES, HOLES
from fuzz_world import BYSTANDER, CALLBACK, ENTRY, PORT_ALIASES, Attacker, World

from hypervisor.abi import callback, domctl, memory, physdev, platform, sched, sysctl, version, xen
from hypervisor.abi import event_channel as ev
from hypervisor.abi import grant_table as gnt
from hypervisor.abi import vcpu as vcpu_abi
from hypervisor.abi.layout import Layout, Scalar, Union
from hypervisor.event_channel.fifo import Fifo
from hypervisor.mm.frame_table import PGT_writable_page

U32, U64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
NEW_DOMIDS = range(3, 7)
"""dom0 makes and destroys these."""
EDGES = (0, 3, 8, 12, 15, 16, 31, 32, 47, 52, 62, 63)
BOUNDARIES = (
    *((1 << shift) - 1 for shift in EDGES),
    *(1 << shift for shift in EDGES),
    *(2, 4, 5, U64, U64 - 1, U64 - 7, U64 - 4095),
)
PTE_FLAGS = (0x67, 0x67, 0x65, 0x27, 0x63, 0x7, 0x5, 0x1, 0, 0x10067, 0xE7, 0x1E7, 0x77, 0x867, 1 << 63 | 0x67, 1 << 52)
RESERVED_DOMIDS = (xen.DOMID_IO, xen.DOMID_XEN, xen.DOMID_COW, xen.DOMID_INVALID, xen.DOMID_FIRST_RESERVED, 0x8000)
MISPOINTED = 0.04
DOMCTL_MEMBERS = {
    "setvcpuaffinity": "vcpuaffinity",
    "getvcpuaffinity": "vcpuaffinity",
    "setnodeaffinity": "nodeaffinity",
    "getnodeaffinity": "nodeaffinity",
    "setvcpucontext": "vcpucontext",
    "getvcpucontext": "vcpucontext",
    "set_address_size": "address_size",
    "get_address_size": "address_size",
    "gettscinfo": "tsc_info",
    "settscinfo": "tsc_info",
    "psr_alloc": "psr_alloc",
    "setvcpuextstate": "vcpuextstate",
    "getvcpuextstate": "vcpuextstate",
    "set_ext_vcpucontext": "ext_vcpucontext",
    "get_ext_vcpucontext": "ext_vcpucontext",
    "get_vcpu_msrs": "vcpu_msrs",
    "set_vcpu_msrs": "vcpu_msrs",
    "setvnumainfo": "vnuma",
}
"""The members of the union that are not named after their operation."""
SYSCTL_MEMBERS = {
    "get_cpu_levelling_caps": "cpu_levelling_caps",
    "get_cpu_featureset": "cpu_featureset",
    "get_cpu_policy": "cpu_policy",
    "page_offline_op": "page_offline",
    "livepatch_op": "livepatch",
}
PLATFORM_MEMBERS = {
    "get_cpuinfo": "pcpu_info",
    "get_cpu_version": "pcpu_version",
    "cpu_online": "cpu_ol",
    "cpu_offline": "cpu_ol",
    "set_processor_pminfo": "set_pminfo",
    "microcode_update": "microcode",
    "cpu_hotadd": "cpu_add",
    "mem_hotadd": "mem_add",
    "get_symbol": "symdata",
}
OTHER_OPS = (
    (xen.HYPERVISOR_hvm_op, 26),
    (xen.HYPERVISOR_kexec_op, 8),
    (xen.HYPERVISOR_dm_op, 4),
    (xen.HYPERVISOR_hypfs_op, 4),
    (xen.HYPERVISOR_xenpmu_op, 9),
    (xen.HYPERVISOR_xenoprof_op, 19),
    (xen.HYPERVISOR_arch_0, 9),
    (xen.HYPERVISOR_arch_1, 9),
    (xen.HYPERVISOR_nmi_op, 3),
)
"""Hypercalls behind which there is little, with how many operations they have."""


def operations(layout: Layout, numbers: dict[int, str], prefix: str, members: dict[str, str]) -> dict[int, str]:
    """Return the operations of a control hypercall by number, each with the member of the union that it takes or ""."""
    union = layout.by_name["u"].type
    assert isinstance(union, Union)
    found = {}
    for number, name in numbers.items():
        word = name.removeprefix(prefix)
        member = members.get(word, word)
        field = union.by_name.get(member)
        found[number] = member if field is not None and isinstance(field.type, Layout) else ""
    return found


DOMCTLS = operations(domctl.xen_domctl, domctl.NAMES, "XEN_DOMCTL_", DOMCTL_MEMBERS)
SYSCTLS = operations(sysctl.xen_sysctl, sysctl.NAMES, "XEN_SYSCTL_", SYSCTL_MEMBERS)
PLATFORM_OPS = operations(platform.xen_platform_op, platform.NAMES, "XENPF_", PLATFORM_MEMBERS)
EVENT_OPS = (
    (ev.EVTCHNOP_bind_interdomain, ev.evtchn_bind_interdomain),
    (ev.EVTCHNOP_bind_virq, ev.evtchn_bind_virq),
    (ev.EVTCHNOP_bind_pirq, ev.evtchn_bind_pirq),
    (ev.EVTCHNOP_close, ev.evtchn_close),
    (ev.EVTCHNOP_send, ev.evtchn_send),
    (ev.EVTCHNOP_send, ev.evtchn_send),
    (ev.EVTCHNOP_status, ev.evtchn_status),
    (ev.EVTCHNOP_alloc_unbound, ev.evtchn_alloc_unbound),
    (ev.EVTCHNOP_alloc_unbound, ev.evtchn_alloc_unbound),
    (ev.EVTCHNOP_bind_ipi, ev.evtchn_bind_ipi),
    (ev.EVTCHNOP_bind_vcpu, ev.evtchn_bind_vcpu),
    (ev.EVTCHNOP_unmask, ev.evtchn_unmask),
    (ev.EVTCHNOP_reset, ev.evtchn_reset),
    (ev.EVTCHNOP_init_control, ev.evtchn_init_control),
    (ev.EVTCHNOP_expand_array, ev.evtchn_expand_array),
    (ev.EVTCHNOP_set_priority, ev.evtchn_set_priority),
)
GRANT_OPS = (
    (gnt.GNTTABOP_map_grant_ref, gnt.gnttab_map_grant_ref),
    (gnt.GNTTABOP_map_grant_ref, gnt.gnttab_map_grant_ref),
    (gnt.GNTTABOP_map_grant_ref, gnt.gnttab_map_grant_ref),
    (gnt.GNTTABOP_unmap_grant_ref, gnt.gnttab_unmap_grant_ref),
    (gnt.GNTTABOP_unmap_grant_ref, gnt.gnttab_unmap_grant_ref),
    (gnt.GNTTABOP_unmap_and_replace, gnt.gnttab_unmap_and_replace),
    (gnt.GNTTABOP_copy, gnt.gnttab_copy),
    (gnt.GNTTABOP_copy, gnt.gnttab_copy),
    (gnt.GNTTABOP_transfer, gnt.gnttab_transfer),
    (gnt.GNTTABOP_setup_table, gnt.gnttab_setup_table),
    (gnt.GNTTABOP_query_size, gnt.gnttab_query_size),
    (gnt.GNTTABOP_get_version, gnt.gnttab_get_version),
    (gnt.GNTTABOP_set_version, gnt.gnttab_set_version),
    (gnt.GNTTABOP_get_status_frames, gnt.gnttab_get_status_frames),
    (gnt.GNTTABOP_swap_grant_ref, gnt.gnttab_swap_grant_ref),
    (gnt.GNTTABOP_cache_flush, gnt.gnttab_cache_flush),
    (gnt.GNTTABOP_dump_table, gnt.gnttab_dump_table),
)
MEMORY_OPS = (
    (memory.XENMEM_increase_reservation, memory.xen_memory_reservation),
    (memory.XENMEM_decrease_reservation, memory.xen_memory_reservation),
    (memory.XENMEM_populate_physmap, memory.xen_memory_reservation),
    (memory.XENMEM_populate_physmap, memory.xen_memory_reservation),
    (memory.XENMEM_claim_pages, memory.xen_memory_reservation),
    (memory.XENMEM_exchange, memory.xen_memory_exchange),
    (memory.XENMEM_exchange, memory.xen_memory_exchange),
    (memory.XENMEM_maximum_ram_page, None),
    (memory.XENMEM_current_reservation, memory.xen_memory_domain),
    (memory.XENMEM_maximum_reservation, memory.xen_memory_domain),
    (memory.XENMEM_maximum_gpfn, memory.xen_memory_domain),
    (memory.XENMEM_machphys_mfn_list, memory.xen_machphys_mfn_list),
    (memory.XENMEM_machphys_mapping, memory.xen_machphys_mapping),
    (memory.XENMEM_memory_map, memory.xen_memory_map),
    (memory.XENMEM_set_memory_map, memory.xen_foreign_memory_map),
    (memory.XENMEM_machine_memory_map, memory.xen_memory_map),
    (memory.XENMEM_add_to_physmap, memory.xen_add_to_physmap),
    (memory.XENMEM_add_to_physmap_batch, memory.xen_add_to_physmap_batch),
    (memory.XENMEM_remove_from_physmap, memory.xen_remove_from_physmap),
    (memory.XENMEM_acquire_resource, memory.xen_mem_acquire_resource),
)
VCPU_OPS = (
    (vcpu_abi.VCPUOP_initialise, None),
    (vcpu_abi.VCPUOP_up, None),
    (vcpu_abi.VCPUOP_down, None),
    (vcpu_abi.VCPUOP_is_up, None),
    (vcpu_abi.VCPUOP_get_runstate_info, vcpu_abi.vcpu_runstate_info),
    (vcpu_abi.VCPUOP_register_runstate_memory_area, vcpu_abi.vcpu_register_runstate_memory_area),
    (vcpu_abi.VCPUOP_set_periodic_timer, vcpu_abi.vcpu_set_periodic_timer),
    (vcpu_abi.VCPUOP_stop_periodic_timer, None),
    (vcpu_abi.VCPUOP_set_singleshot_timer, vcpu_abi.vcpu_set_singleshot_timer),
    (vcpu_abi.VCPUOP_stop_singleshot_timer, None),
    (vcpu_abi.VCPUOP_register_vcpu_info, vcpu_abi.vcpu_register_vcpu_info),
    (vcpu_abi.VCPUOP_register_vcpu_time_memory_area, vcpu_abi.vcpu_register_time_memory_area),
    (vcpu_abi.VCPUOP_send_nmi, None),
    (vcpu_abi.VCPUOP_get_physid, vcpu_abi.vcpu_get_physid),
)
PHYSDEV_OPS = (
    (physdev.PHYSDEVOP_eoi, physdev.physdev_eoi),
    (physdev.PHYSDEVOP_irq_status_query, physdev.physdev_irq_status_query),
    (physdev.PHYSDEVOP_set_iopl, physdev.physdev_set_iopl),
    (physdev.PHYSDEVOP_set_iobitmap, physdev.physdev_set_iobitmap),
    (physdev.PHYSDEVOP_map_pirq, physdev.physdev_map_pirq),
    (physdev.PHYSDEVOP_map_pirq, physdev.physdev_map_pirq),
    (physdev.PHYSDEVOP_unmap_pirq, physdev.physdev_unmap_pirq),
    (physdev.PHYSDEVOP_setup_gsi, physdev.physdev_setup_gsi),
    (physdev.PHYSDEVOP_get_free_pirq, physdev.physdev_get_free_pirq),
    (physdev.PHYSDEVOP_pirq_eoi_gmfn_v1, physdev.physdev_pirq_eoi_gmfn),
    (physdev.PHYSDEVOP_pirq_eoi_gmfn_v2, physdev.physdev_pirq_eoi_gmfn),
    (physdev.PHYSDEVOP_IRQ_UNMASK_NOTIFY, physdev.physdev_eoi),
    (physdev.PHYSDEVOP_apic_read, physdev.physdev_apic),
    (physdev.PHYSDEVOP_apic_write, physdev.physdev_apic),
    (physdev.PHYSDEVOP_alloc_irq_vector, physdev.physdev_irq),
    (physdev.PHYSDEVOP_manage_pci_add, physdev.physdev_manage_pci),
    (physdev.PHYSDEVOP_manage_pci_remove, physdev.physdev_manage_pci),
    (physdev.PHYSDEVOP_manage_pci_add_ext, physdev.physdev_manage_pci_ext),
    (physdev.PHYSDEVOP_pci_device_add, physdev.physdev_pci_device_add),
    (physdev.PHYSDEVOP_pci_device_remove, physdev.physdev_pci_device),
    (physdev.PHYSDEVOP_restore_msi_ext, physdev.physdev_pci_device),
    (physdev.PHYSDEVOP_prepare_msix, physdev.physdev_pci_device),
    (physdev.PHYSDEVOP_pci_mmcfg_reserved, physdev.physdev_pci_mmcfg_reserved),
    (physdev.PHYSDEVOP_dbgp_op, physdev.physdev_dbgp_op),
)
SCHED_OPS = (
    (sched.SCHEDOP_yield, None),
    (sched.SCHEDOP_block, None),
    (sched.SCHEDOP_poll, sched.sched_poll),
    (sched.SCHEDOP_poll, sched.sched_poll),
    (sched.SCHEDOP_remote_shutdown, sched.sched_remote_shutdown),
    (sched.SCHEDOP_shutdown_code, sched.sched_shutdown),
    (sched.SCHEDOP_watchdog, sched.sched_watchdog),
    (sched.SCHEDOP_watchdog, sched.sched_watchdog),
    (sched.SCHEDOP_pin_override, sched.sched_pin_override),
)


@attrs.frozen
class Call:
    """One hypercall: what it is in words, its registers, and the stores that come before it."""

    words: str
    registers: tuple[int, ...]
    stores: tuple[tuple[int, bytes], ...] = ()
    scribbles: tuple[tuple[int, bytes], ...] = ()
    """Stores by machine address, to frames that the guest can map writable."""


class Speaker:
    """Chooses the hypercalls of one guest."""

    def __init__(self, random: Random, world: World, guest: Attacker) -> None:
        self.random = random
        self.world = world
        self.guest = guest
        self.hv = world.hv
        self._stores: list[tuple[int, bytes]] = []
        self._members: dict[str, Callable[[], int]] = self._by_name()
        self._productions: tuple[tuple[int, str, Callable[[], tuple[int, ...]]], ...] = (
            (14, "grant", self._grant),
            (10, "event", self._event),
            (8, "memory", self._memory),
            (12, "mmu_update", self._mmu_update),
            (10, "va_mapping", self._va_mapping),
            (10, "mmuext", self._mmuext),
            (3, "descriptor", self._descriptor),
            (6, "vcpu", self._vcpu),
            (5, "sched", self._sched),
            (2, "timer", self._timer),
            (3, "physdev", self._physdev),
            (2, "version", self._version),
            (2, "console", self._console),
            (2, "callback", self._callback),
            (6 if guest.domain.is_privileged else 1, "domctl", self._domctl),
            (2 if guest.domain.is_privileged else 1, "sysctl", self._sysctl),
            (1, "platform_op", self._platform),
            (2, "other", self._other),
            (2, "trap", self._trap),
            (3, "anything", self._anything),
        )
        self._weights = [weight for weight, _, _ in self._productions]

    # -- words ------------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def number(self) -> int:
        """Any number, mostly one at which something changes."""
        random = self.random
        kind = random.randrange(6)
        if kind < 2:
            return random.randrange(9)
        if kind < 5:
            return random.choice(BOUNDARIES)
        return random.getrandbits(random.choice((8, 16, 32, 64)))

    def register(self) -> int:
        """A register's contents, or what no register holds."""
        kind = self.random.randrange(12)
        if kind == 0:
            return -self.number()
        if kind == 1:
            return self.number() << self.random.choice((1, 32, 64))
        return self.pointer() if kind < 5 else self.number()

    def pointer(self) -> int:
        """An address that something is wrong with, in most cases."""
        guest, random = self.guest, self.random
        end = guest.spare + 4096
        return random.choice(
            (
                0,
                guest.args,
                guest.args + random.randrange(4096),
                guest.va(random.randrange(DATA_PAGES)),
                guest.va(random.randrange(DATA_PAGES)) + random.randrange(4096),
                end,
                end - random.choice((1, 4, 8, 12, 16, 20, 24, 100)),
                HOLES + (random.randrange(512) << 12),
                xen.HYPERVISOR_VIRT_START,
                xen.HYPERVISOR_VIRT_START - random.choice((1, 8, 4096)),
                xen.HYPERVISOR_VIRT_END - random.choice((1, 8, 4096)),
                xen.HYPERVISOR_VIRT_END,
                (1 << 47) - random.choice((1, 8)),
                1 << 47,
                U64,
                U64 - 7,
                U64 - 4095,
                -1,
                -4096,
                1 << 64,
                1 << 64 | guest.args,
                1 << 200,
                -(1 << 70),
                guest.args - (1 << 64),
            )
        )

    def put(self, data: bytes, page: int = 0) -> int:
        """Have bytes stored in a page for arguments; returns their address, or another one."""
        offset = self.random.choice((0, 0, 0, 8, 64, 2, 4096 - 16)) if page < 2 else 0
        address = self.guest.args + (page << 12) + offset
        self._stores.append((address, data))
        return self.pointer() if self.chance(MISPOINTED) else address

    def domid(self) -> int:
        random = self.random
        kind = random.randrange(20)
        if kind < 9:
            return xen.DOMID_SELF
        if kind < 16:
            return random.randrange(3)
        if kind < 17:
            return random.choice(NEW_DOMIDS)
        if kind < 19:
            return random.choice(RESERVED_DOMIDS)
        garbage = random.getrandbits(16)
        return garbage if garbage != BYSTANDER else 0

    def mfn(self) -> int:
        random, guest = self.random, self.guest
        kind = random.randrange(30)
        if kind < 14:
            return random.choice(guest.pages)
        if kind < 18:
            return random.choice((guest.l1, guest.hole_l1, guest.l2, guest.l3, guest.l4))
        if kind < 21:
            other = random.choice(self.world.guests)
            return random.choice((other.l1, other.l2, other.l4, *other.pages))
        if kind < 24:
            table = guest.domain.grant_table
            return random.choice((*table.shared, *table.status_frames, guest.domain.shared_info_mfn))
        if kind < 25:
            return self.hv.frames.m2p_mfn + random.randrange(2)
        if kind < 28:
            return self.frame_of(guest)
        return self.number()

    def frame_of(self, guest: Attacker) -> int:
        """A frame that the guest has now, whatever it was given at first."""
        frames = self.hv.frames
        if not guest.alive or not guest.domain.tot_pages:
            return 0
        skip = self.random.randrange(min(guest.domain.tot_pages, 60))
        mfn = next(islice(frames.pages(frames.page_list(guest.domain)), skip, None))
        return mfn if mfn not in guest.scratch else guest.pages[0]

    def va(self) -> int:
        random = self.random
        kind = random.randrange(20)
        if kind < 9:
            return self.guest.va(random.randrange(DATA_PAGES))
        if kind < 18:
            return HOLES + (random.randrange(12) << 12)
        return self.pointer() if kind == 18 else self.number()

    def entry(self) -> int:
        """A page table entry."""
        return (
            self.mfn() << 12 & ((1 << 63) - 1) | self.random.choice(PTE_FLAGS) if self.chance(0.97) else self.number()
        )

    def entry_address(self) -> int:
        """The machine address of an entry, mostly one at level 1."""
        random, guest = self.random, self.guest
        kind = random.randrange(20)
        if kind < 8:
            return guest.pte_index(HOLES + (random.randrange(12) << 12)) << 3
        if kind < 13:
            return guest.pte_index(guest.va(random.randrange(DATA_PAGES))) << 3
        if kind < 17:
            table = random.choice((guest.l2, guest.l3, guest.l4))
            return (table << 12) + random.choice((0, 2, 3, 4, 5, 255, 256, 257, 271, 272, 511)) * 8
        if kind < 19:
            return (self.mfn() << 12) + random.randrange(512) * 8
        return self.number()

    def port(self) -> int:
        return self.random.randrange(12) if self.chance(0.9) else self.number()

    def vcpu(self) -> int:
        return self.random.randrange(2) if self.chance(0.85) else self.number()

    def ref(self) -> int:
        if self.chance(0.75):
            return self.random.randrange(PORT_ALIASES, PORT_ALIASES + 6)
        return self.random.randrange(16) if self.chance(0.7) else self.number()

    def handle(self) -> int:
        handles = self.guest.handles
        if handles and self.chance(0.8):
            handle, self._last_address = handles[self.random.randrange(len(handles))]
            return handle
        self._last_address = self.va()
        return self.random.randrange(20) if self.chance(0.7) else self.number()

    def host_address(self) -> int:
        return self.va() if self.chance(0.8) else self.entry_address()

    def few(self) -> int:
        return self.random.randrange(1, 5) if self.chance(0.9) else self.number()

    def when(self) -> int:
        now = self.hv.clock.now
        return (
            max(0, now + self.random.choice((-1000, 0, 1, 1000, 1_000_000, 10**9)))
            if self.chance(0.7)
            else self.number()
        )

    def order(self) -> int:
        return 0 if self.chance(0.8) else self.random.choice((1, 2, 3, 9, 10, 18, 19, 20, 63, 64, U32))

    def frame_list(self) -> int:
        """The address of a list of frame numbers."""
        words = [self.mfn() & U64 for _ in range(6)]
        return self.put(struct.pack("<6Q", *words), page=1 + self.random.randrange(2))

    def _by_name(self) -> dict[str, Callable[[], int]]:
        """What to put in a member of a structure, by its name."""
        random = self.random
        return {
            **dict.fromkeys(("dom", "domid", "remote_dom", "domain_id", "target", "domain"), self.domid),
            **dict.fromkeys(("port", "remote_port", "local_port"), self.port),
            **dict.fromkeys(("vcpu", "cpu"), self.vcpu),
            **dict.fromkeys(("ref", "ref_a", "ref_b"), self.ref),
            **dict.fromkeys(("mfn", "gmfn", "gfn", "frame", "control_gfn", "array_gfn", "gpfn"), self.mfn),
            **dict.fromkeys(
                ("extent_start", "frame_list", "idxs", "gpfns", "errs", "ports", "buffer"), self.frame_list
            ),
            **dict.fromkeys(("nr_extents", "nr_frames", "max_extents", "nr_ports", "size"), self.few),
            **dict.fromkeys(
                ("pirq", "irq", "index", "gsi"), lambda: random.randrange(6) if self.chance(0.8) else self.number()
            ),
            **dict.fromkeys(("timeout_abs_ns", "timeout"), self.when),
            "extent_order": self.order,
            "mem_flags": lambda: 0 if self.chance(0.8) else self.number(),
            "handle": self.handle,
            "host_addr": self.host_address,
            "new_addr": self.host_address,
            "dev_bus_addr": lambda: 0 if self.chance(0.8) else self.mfn() << 12,
            "version": lambda: random.randrange(1, 3) if self.chance(0.9) else self.number(),
            "virq": lambda: random.randrange(24) if self.chance(0.9) else self.number(),
            "offset": lambda: random.choice((0, 0, 8, 64, 2048, 4032, 4088, 4095, 4096)),
            "len": lambda: random.choice((0, 1, 8, 20, 64, 2048, 4096, 4097, 65535)),
            "period_ns": lambda: random.choice((0, 1, 999_999, 1_000_000, 10**9, (1 << 62) - 1, 1 << 62, U64)),
            "id": lambda: random.randrange(4) if self.chance(0.9) else self.number(),
            "max": lambda: random.choice((0, 1, 2, 2, 2, 3, U32)),
            "allow_access": lambda: random.randrange(2),
            "first_port": lambda: random.randrange(0x10000) if self.chance(0.9) else self.number(),
            "max_memkb": lambda: random.choice((0, 400, 800, 4000, U64)),
            "pad": lambda: 0 if self.chance(0.95) else self.number(),
            "ctxt": self.context,
            "array": self.frame_list,
            "bitmap": self.frame_list,
            "nr_bits": lambda: random.choice((0, 1, 7, 8, 64, 65, U32)),
            "sched_id": lambda: 6 if self.chance(0.8) else self.number(),
            "cpupool_id": lambda: random.randrange(2),
            "tsc_mode": lambda: random.randrange(4),
            "first_mfn": lambda: random.choice((0, 255, 0xF0000, 0xFEC00, 0xFEE00, 1 << 34, U64)),
            "nr_mfns": lambda: random.choice((0, 1, 2, 256, U64)),
        }

    def structure(self, layout: Layout | Union, **fixed: Any) -> bytes:
        """Fill a structure; what a member holds is chosen by its name."""
        data = bytearray(layout.size)
        for field in layout.fields:
            if field.name in fixed or field.count == 0:
                continue
            if not isinstance(field.type, Scalar):
                part = self.structure(field.type) if field.count is None else self.random.randbytes(field.size)
                data[field.offset : field.offset + len(part)] = part
            elif field.count is not None:
                data[field.offset : field.offset + field.size] = self.random.randbytes(field.size)
            else:
                value = self.member(field.name)
                size = field.type.size
                data[field.offset : field.offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        for name, value in fixed.items():
            field = layout.by_name[name]
            part = (
                value
                if isinstance(value, bytes)
                else (value & (1 << 8 * field.size) - 1).to_bytes(field.size, "little")
            )
            data[field.offset : field.offset + len(part)] = part
        return bytes(data)

    def member(self, name: str) -> int:
        chosen = self._members.get(name)
        if chosen is None or self.chance(0.02):
            return self.number() if self.chance(0.5) else self.random.randrange(4)
        return chosen()

    def argument(self, layout: Layout | None, **fixed: Any) -> int:
        """The address of a filled structure, or of nothing."""
        return self.put(self.structure(layout, **fixed)) if layout is not None else self.pointer()

    # -- sentences --------------------------------------------------------------------------------------------------

    def call(self) -> Call:
        """Choose the next hypercall of this guest."""
        self._stores = []
        scribbles = tuple(self._scribble() for _ in range(self.random.randrange(3))) if self.chance(0.4) else ()
        if self.chance(0.04):
            words, registers = self._multicall()
        else:
            words, registers = self._sentence()
        return Call(words, registers, tuple(self._stores), scribbles)

    def _scribble(self) -> tuple[int, bytes]:
        """Something to store where Xen looks one day: a grant, an event, a page table that is not one yet."""
        random, guest = self.random, self.guest
        kind = random.randrange(8)
        domain, frames = guest.domain, self.hv.frames
        if kind < 3:
            mfns = domain.grant_table.shared
            return (random.choice(mfns) << 12) + self._entry_offset(), self._grant_entry()
        if kind == 3 and domain.grant_table.status_frames:
            return (domain.grant_table.status_frames[0] << 12) + random.randrange(40), random.randbytes(2)
        if kind < 5:
            where = random.choice((0, 1, 8, 64, 2048, 2056, 2560, 3072, 3076, 3080, 3084, 3088, 3096, 3104, 3136))
            where = where if self.chance(0.7) else random.randrange(4088)
            return (domain.shared_info_mfn << 12) + where, random.choice((bytes(8), b"\xff" * 8, random.randbytes(8)))
        if kind == 7 and domain.fifo is not None:
            return self._event_word(domain.fifo)
        mfn = random.choice(guest.pages)
        if frames.owner(mfn) != guest.domid or (frames.type_count[mfn] and frames.type[mfn] != PGT_writable_page):
            mfn = guest.scratch[2]
        if kind == 5:
            return mfn << 12, bytes(4096)
        return (mfn << 12) + random.choice((0, 0, 1, 2, 255, 256, 272, 511)) * 8, struct.pack("<Q", self.entry() & U64)

    def _event_word(self, fifo: Fifo) -> tuple[int, bytes]:
        """Something to store into an event word, or into a control block."""
        random = self.random
        if fifo.pages and self.chance(0.7):
            word = random.randrange(16) << 28 | (random.randrange(70) if self.chance(0.7) else random.getrandbits(28))
            return (fifo.pages[0] << 12) + random.randrange(70) * 4, struct.pack("<I", word)
        vcpu = random.choice(list(fifo.control_blocks))
        at = vcpu.event_queues[0].ready_at + random.choice((0, 0, 2, 9, random.randrange(18)))
        return at << 2, struct.pack("<I", self.number() & U32)

    def _entry_offset(self) -> int:
        return self.random.randrange(PORT_ALIASES, PORT_ALIASES + 6) * (8 if self.chance(0.6) else 16)

    def _grant_entry(self) -> bytes:
        """An entry of version 1, or of version 2: full, of part of a page, or transitive."""
        random = self.random
        flags = (
            random.choice((0, 1, 1, 1, 5, 2, 3, 9, 0x101, 0x19, 0x11)) if self.chance(0.95) else random.getrandbits(16)
        )
        domid, mfn = (random.randrange(3) if self.chance(0.9) else self.domid()), self.mfn() & U32
        if self.guest.domain.grant_table.version == 1 and self.chance(0.95):
            return struct.pack("<HHI", flags, domid, mfn)
        if flags & 3 == 3:
            return struct.pack("<HHHxxIxxxx", flags, domid, random.randrange(3), self.ref() & U32)
        return struct.pack("<HHHHQ", flags, domid, random.choice((0, 8, 2048)), random.choice((8, 1024, 4096)), mfn)

    def _sentence(self) -> tuple[str, tuple[int, ...]]:
        _, words, production = self.random.choices(self._productions, self._weights)[0]
        registers = production()
        if self.chance(0.01):
            changed = list(registers)
            changed[self.random.randrange(len(changed))] = self.register()
            registers = tuple(changed)
        return words, registers[:6]

    def _multicall(self) -> tuple[str, tuple[int, ...]]:
        entries, words = b"", []
        count = self.random.randrange(1, 5)
        for _ in range(count):
            word, registers = self._sentence()
            words.append(f"{word}{tuple(map(hex, registers))}")
            padded = [value & U64 for value in (*registers, 0, 0, 0, 0, 0, 0)][:6]
            entries += struct.pack("<8Q", padded[0], 0, *padded[1:], 0)
        where = self.guest.args + 0x1800
        self._stores.append((where, entries))
        where = self.pointer() if self.chance(0.05) else where
        count = count if self.chance(0.95) else self.number()
        return f"multicall of {', '.join(words)}", (xen.HYPERVISOR_multicall, where, count)

    def _batch(self, layout: Layout) -> tuple[int, int]:
        """(address, count) of a batch of structures."""
        count = self.random.choice((1, 1, 1, 1, 2, 3, 5))
        where = self.put(b"".join(self.structure(layout) for _ in range(count)))
        return where, count if self.chance(0.97) else self.number()

    def _grant(self) -> tuple[int, ...]:
        cmd, layout = self.random.choice(GRANT_OPS)
        fixed: dict[str, Any] = {}
        if layout is gnt.gnttab_map_grant_ref:
            flags = self.random.choice((2, 2, 2, 6, 6, 1, 5, 3, 7, 18, 0, 10)) if self.chance(0.95) else self.number()
            fixed = {"flags": flags, "dom": self.random.randrange(3)} if self.chance(0.9) else {"flags": flags}
            if flags & 16:
                fixed["host_addr"] = self.entry_address()
        elif layout in (gnt.gnttab_unmap_grant_ref, gnt.gnttab_unmap_and_replace) and self.chance(0.8):
            fixed = {"handle": self.handle()}
            fixed["host_addr"] = self._last_address
        elif layout is gnt.gnttab_copy:
            ends = {name: self._copy_end() for name in ("source", "dest")}
            fixed = {**ends, "flags": self.random.randrange(4)} if self.chance(0.95) else ends
        if not fixed or self.chance(0.1):
            where, count = self._batch(layout)
        else:
            where, count = self.put(self.structure(layout, **fixed)), 1
        return (xen.HYPERVISOR_grant_table_op, cmd, where, count)

    def _copy_end(self) -> bytes:
        value = self.ref() if self.chance(0.5) else self.mfn()
        return struct.pack("<QHH4x", value & U64, self.domid(), self.member("offset") & 0xFFFF)

    def _event(self) -> tuple[int, ...]:
        cmd, layout = self.random.choice(EVENT_OPS)
        if self.chance(0.03):
            return (xen.HYPERVISOR_event_channel_op_compat, self.put(struct.pack("<I", cmd) + self.structure(layout)))
        if cmd == ev.EVTCHNOP_reset and self.chance(0.8):
            cmd, layout = ev.EVTCHNOP_alloc_unbound, ev.evtchn_alloc_unbound
        fifo, page = self.guest.domain.fifo, self.random.choice(self.guest.pages)
        if fifo is None and self.chance(0.1):
            fixed = {"control_gfn": page, "offset": 0, "vcpu": 0}
            argument = self.argument(ev.evtchn_init_control, **fixed)
            return (xen.HYPERVISOR_event_channel_op, ev.EVTCHNOP_init_control, argument)
        if fifo is not None and not fifo.pages and self.chance(0.5):
            argument = self.argument(ev.evtchn_expand_array, array_gfn=page)
            return (xen.HYPERVISOR_event_channel_op, ev.EVTCHNOP_expand_array, argument)
        return (xen.HYPERVISOR_event_channel_op, cmd, self.argument(layout))

    def _memory(self) -> tuple[int, ...]:
        cmd, layout = self.random.choice(MEMORY_OPS)
        fixed: dict[str, Any] = {}
        if cmd in (memory.XENMEM_decrease_reservation, memory.XENMEM_exchange) and self.chance(0.5):
            # Else a guest would soon have nothing left to do harm with.
            cmd, layout = memory.XENMEM_populate_physmap, memory.xen_memory_reservation
        if cmd == memory.XENMEM_exchange:
            fixed["nr_exchanged"] = 0 if self.chance(0.95) else self.number()
        if cmd == memory.XENMEM_acquire_resource:
            fixed = {
                "type": self.random.randrange(4),
                "id": self.random.randrange(2),
                "frame": self.random.randrange(3),
            }
        if self.chance(0.02):
            cmd |= self.number() << 6
        return (xen.HYPERVISOR_memory_op, cmd, self.argument(layout, **fixed))

    def _mmu_update(self) -> tuple[int, ...]:
        count = self.random.choice((1, 1, 1, 2, 5))
        requests = b""
        for _ in range(count):
            kind = self.random.choice((0, 0, 0, 0, 0, 1, 2, 2, 3))
            where = self.mfn() << 12 if kind == 1 else self.entry_address()
            requests += struct.pack("<QQ", where & U64 & ~3 | kind, self.entry() & U64)
        done = self.pointer() if self.chance(0.3) else 0
        count = count if self.chance(0.98) else self.number()
        domid = self.domid() if self.chance(0.9) else self.domid() | (self.random.randrange(4) + 1) << 16
        return (xen.HYPERVISOR_mmu_update, self.put(requests), count, done, domid)

    def _va_mapping(self) -> tuple[int, ...]:
        flags = self.random.choice((0, 1, 2, 2, 5, 6, 3, 4)) if self.chance(0.95) else self.number()
        if self.chance(0.8):
            return (xen.HYPERVISOR_update_va_mapping, self.va(), self.entry(), flags)
        return (xen.HYPERVISOR_update_va_mapping_otherdomain, self.va(), self.entry(), flags, self.domid())

    def _mmuext(self) -> tuple[int, ...]:
        random, ops = self.random, b""
        count = random.choice((1, 1, 1, 2, 4))
        for _ in range(count):
            cmd = random.randrange(22) if self.chance(0.9) else self.number()
            if cmd in (xen.MMUEXT_NEW_BASEPTR, xen.MMUEXT_NEW_USER_BASEPTR):
                arg1 = self.guest.l4 if self.chance(0.7) else self.mfn()
            elif cmd in (xen.MMUEXT_INVLPG_LOCAL, xen.MMUEXT_INVLPG_ALL, xen.MMUEXT_INVLPG_MULTI, xen.MMUEXT_SET_LDT):
                arg1 = self.va()
            else:
                arg1 = self.mfn()
            arg2 = self.mfn() if cmd == xen.MMUEXT_COPY_PAGE else self.pointer() if self.chance(0.3) else self.number()
            ops += struct.pack("<I4xQQ", cmd & U32, arg1 & U64, arg2 & U64)
        done = self.pointer() if self.chance(0.2) else 0
        count = count if self.chance(0.98) else self.number()
        return (xen.HYPERVISOR_mmuext_op, self.put(ops), count, done, self.domid())

    def _descriptor(self) -> tuple[int, ...]:
        if self.chance(0.5):
            entries = self.random.choice((0, 1, 512, 513, 1024, 7168, 7169)) if self.chance(0.9) else self.number()
            return (xen.HYPERVISOR_set_gdt, self.frame_list(), entries)
        where = (self.mfn() << 12) + self.random.randrange(512) * 8
        return (xen.HYPERVISOR_update_descriptor, where, self.random.getrandbits(64) if self.chance(0.5) else 0)

    def context(self) -> int:
        """The address of a vcpu_guest_context, good or nearly so."""
        values: dict[str, Any] = {
            "flags": self.random.choice((xen.VGCF_in_kernel, xen.VGCF_in_kernel | xen.VGCF_online, 0)),
            "user_regs": {"rip": ENTRY if self.chance(0.8) else self.number() & U64, "rsp": 0x1000},
            "ctrlreg": (0, 0, 0, (self.guest.l4 if self.chance(0.8) else self.mfn()) << 12 & U64, 0, 0, 0, 0),
            "event_callback_eip": CALLBACK if self.chance(0.8) else self.number() & U64,
        }
        if self.chance(0.3):
            values["gdt_ents"] = self.random.choice((1, 512, 513, 7168, 7169, U64))
            values["gdt_frames"] = tuple(self.mfn() & U64 for _ in range(16))
        if self.chance(0.2):
            values["ldt_ents"] = self.number() & U64
            values["ldt_base"] = self.va() & U64
        return self.put(xen.vcpu_guest_context.pack(**values), page=1)

    def _vcpu(self) -> tuple[int, ...]:
        cmd, layout = self.random.choice(VCPU_OPS)
        if cmd == vcpu_abi.VCPUOP_down and self.chance(0.7):
            cmd = vcpu_abi.VCPUOP_up
        arg = self.context() if cmd == vcpu_abi.VCPUOP_initialise else self.argument(layout)
        return (xen.HYPERVISOR_vcpu_op, cmd, self.vcpu(), arg)

    def _sched(self) -> tuple[int, ...]:
        cmd, layout = self.random.choice(SCHED_OPS)
        if self.chance(0.002):
            cmd, layout = sched.SCHEDOP_shutdown, sched.sched_shutdown
        if cmd == sched.SCHEDOP_remote_shutdown and self.chance(0.9):
            cmd, layout = sched.SCHEDOP_poll, sched.sched_poll
        number = xen.HYPERVISOR_sched_op if self.chance(0.95) else xen.HYPERVISOR_sched_op_compat
        if number == xen.HYPERVISOR_sched_op_compat and cmd == sched.SCHEDOP_shutdown:
            cmd = sched.SCHEDOP_yield
        if layout is sched.sched_poll:
            ports = struct.pack("<4I", *(self.port() & U32 for _ in range(4)))
            fixed = {"ports": self.put(ports, page=1)} if self.chance(0.9) else {}
            return (number, cmd, self.put(self.structure(layout, **fixed)))
        return (number, cmd, self.argument(layout))

    def _timer(self) -> tuple[int, ...]:
        return (xen.HYPERVISOR_set_timer_op, self.when())

    def _physdev(self) -> tuple[int, ...]:
        cmd, layout = self.random.choice(PHYSDEV_OPS)
        fixed = {"type": 1, "pirq": -1} if layout is physdev.physdev_map_pirq and self.chance(0.8) else {}
        return (xen.HYPERVISOR_physdev_op, cmd, self.argument(layout, **fixed))

    def _version(self) -> tuple[int, ...]:
        if self.chance(0.2):
            return (xen.HYPERVISOR_vm_assist, self.random.randrange(3), self.random.choice((0, 3, 4, 5, 6, 32, 33, 64)))
        cmd = self.random.randrange(12)
        layout = version.xen_feature_info if cmd == version.XENVER_get_features else version.xen_build_id
        return (xen.HYPERVISOR_xen_version, cmd, self.argument(layout))

    def _console(self) -> tuple[int, ...]:
        count = self.random.choice((0, 1, 127, 128, 4096, 9000)) if self.chance(0.9) else self.number()
        return (xen.HYPERVISOR_console_io, self.random.randrange(3), count, self.put(b"text"))

    def _callback(self) -> tuple[int, ...]:
        if self.chance(0.3):
            return (
                xen.HYPERVISOR_set_callbacks,
                *(CALLBACK if self.chance(0.9) else self.register() for _ in range(3)),
            )
        cmd = self.random.randrange(3)
        layout = callback.callback_unregister if cmd else callback.callback_register
        return (xen.HYPERVISOR_callback_op, cmd, self.put(self.structure(layout, type=self.random.randrange(9))))

    def _domctl(self) -> tuple[int, ...]:
        cmd = self.random.choice(tuple(DOMCTLS)) if self.chance(0.95) else self.random.randrange(100)
        target = self.random.choice((1, 2, 3, 4, 5, 6)) if self.chance(0.9) else self.domid()
        if cmd == domctl.XEN_DOMCTL_destroydomain and self.chance(0.95) and target < 3:
            target = self.random.choice(NEW_DOMIDS)
        if cmd == domctl.XEN_DOMCTL_createdomain:
            value = self._creation(target)
            target = self.random.choice(NEW_DOMIDS)
        elif cmd == domctl.XEN_DOMCTL_shadow_op and self.chance(0.9):
            value = self._shadow_op()
        elif cmd in (domctl.XEN_DOMCTL_get_cpu_policy, domctl.XEN_DOMCTL_set_cpu_policy) and self.chance(0.9):
            value = self._cpu_policy()
        else:
            value = self._union(domctl.xen_domctl, DOMCTLS.get(cmd, ""))
        version_ = domctl.XEN_DOMCTL_INTERFACE_VERSION if self.chance(0.99) else self.number() & U32
        head = struct.pack("<IIH6x", cmd, version_, target & 0xFFFF)
        return (
            xen.HYPERVISOR_domctl,
            self.put((head + value)[: domctl.xen_domctl.size].ljust(domctl.xen_domctl.size, b"\0")),
        )

    def _creation(self, target: int) -> bytes:
        """The configuration of a new domain."""
        layout: Any = domctl.xen_domctl.by_name["u"].type.by_name["createdomain"].type  # type: ignore[union-attr]
        choice = self.random.choice
        return layout.pack(  # type: ignore[no-any-return]
            flags=choice((0, 0, 0, 1, 2, self.number() & U32)),
            max_vcpus=choice((1, 2, 2, 3, 40, 0, U32)),
            max_evtchn_port=choice((0, 1, 127, 1023, U32, self.number() & U32)),
            max_grant_frames=choice((-1, 1, 4, 64, 65, 0, -5)),
            max_maptrack_frames=choice((-1, 0, 1, 1024, 1025)),
            grant_opts=choice((1, 2, 2, 2, 0, 3, 16)),
        )

    def _shadow_op(self) -> bytes:
        """An operation on the log of dirty pages, or on the memory that it takes."""
        choice = self.random.choice
        op = choice((0, 1, 2, 2, 2, 11, 11, 12, 12, 30, 31, 32)) if self.chance(0.95) else self.number() & U32
        return domctl.xen_domctl_shadow_op.pack(
            op=op,
            mode=choice((0, 0, 0, 1, 4)) if self.chance(0.9) else self.number() & U32,
            mb=choice((0, 1, 2)) if self.chance(0.95) else self.number() & U32,
            dirty_bitmap=choice((0, self.va() & U64, self.pointer() & U64)),
            pages=choice((0, 9, 64, 1000, 40000)) if self.chance(0.9) else self.number() & U64,
        )

    def _cpu_policy(self) -> bytes:
        """Lists of leaves and registers, most of them such as there are."""
        random = self.random
        leaves = [
            (
                random.choice((0, 1, 4, 7, 7, 0xB, 0xD, 0x40000000, 0x80000000, 0x80000001, 0x80000008)),
                random.choice((U32, U32, 0, 1, 2, 6)),
                *(random.choice((0, random.getrandbits(4), random.getrandbits(32))) for _ in range(4)),
            )
            for _ in range(random.randrange(4))
        ]
        registers = [
            (random.choice((0xCE, 0x10A)), 0 if self.chance(0.9) else 1, random.choice((0, 4, self.number() & U64)))
            for _ in range(random.randrange(3))
        ]
        leaves_at = self.put(b"".join(struct.pack("<6I", *leaf) for leaf in leaves))
        registers_at = self.put(b"".join(struct.pack("<IIQ", *register) for register in registers))
        return domctl.xen_domctl_cpu_policy.pack(
            nr_leaves=len(leaves) if self.chance(0.9) else self.number() & U32,
            nr_msrs=len(registers) if self.chance(0.9) else self.number() & U32,
            leaves=(leaves_at if self.chance(0.9) else self.pointer()) & U64,
            msrs=(registers_at if self.chance(0.9) else self.pointer()) & U64,
        )

    def _union(self, layout: Layout, member: str) -> bytes:
        """Fill the member of a control hypercall's union."""
        union = layout.by_name["u"].type
        assert isinstance(union, Union)
        field = union.by_name.get(member)
        if field is None or not isinstance(field.type, Layout):
            return self.random.randbytes(32)
        return self.structure(field.type)

    def _host_op(self, layout: Layout, version_: int, ops: dict[int, str]) -> int:
        """The address of a sysctl or platform_op."""
        cmd = self.random.choice(tuple(ops)) if self.chance(0.9) else self.random.randrange(70)
        head = struct.pack("<II", cmd, version_ if self.chance(0.98) else self.number() & U32)
        data = head + self._union(layout, ops.get(cmd, ""))
        return self.put(data[: layout.size].ljust(layout.size, b"\0"))

    def _sysctl(self) -> tuple[int, ...]:
        where = self._host_op(sysctl.xen_sysctl, sysctl.XEN_SYSCTL_INTERFACE_VERSION, SYSCTLS)
        return (xen.HYPERVISOR_sysctl, where)

    def _platform(self) -> tuple[int, ...]:
        where = self._host_op(platform.xen_platform_op, platform.XENPF_INTERFACE_VERSION, PLATFORM_OPS)
        return (xen.HYPERVISOR_platform_op, where)

    def _other(self) -> tuple[int, ...]:
        """A hypercall behind which there is little, with some structure or other."""
        number, count = self.random.choice(OTHER_OPS)
        data = struct.pack("<HHIQQQ", self.domid() & 0xFFFF, 0, self.random.randrange(40), *(self.number() & U64,) * 3)
        where = self.put(data) if self.chance(0.7) else self.pointer()
        if number in (xen.HYPERVISOR_dm_op, xen.HYPERVISOR_hypfs_op):
            return (number, self.random.randrange(count), self.random.randrange(4), where, self.number())
        if number in (xen.HYPERVISOR_arch_0, xen.HYPERVISOR_arch_1):
            return (number, where)
        return (number, self.random.randrange(count), where)

    def _trap(self) -> tuple[int, ...]:
        """What a kernel says of its exceptions, segments and debug registers."""
        random = self.random
        kind = random.randrange(6)
        if kind == 0:
            entries = b"".join(
                struct.pack("<BBHxxxxQ", random.randrange(256), random.randrange(8), 0xE030, self.number() & U64)
                for _ in range(random.randrange(4))
            )
            return (xen.HYPERVISOR_set_trap_table, self.put(entries + bytes(16)) if self.chance(0.9) else 0)
        if kind == 1:
            return (xen.HYPERVISOR_stack_switch, self.number(), self.va())
        if kind == 2:
            return (xen.HYPERVISOR_set_segment_base, random.randrange(5), self.number())
        if kind == 3:
            return (xen.HYPERVISOR_set_debugreg, random.randrange(9), self.number())
        if kind == 4:
            return (xen.HYPERVISOR_get_debugreg, random.randrange(9))
        return (xen.HYPERVISOR_fpu_taskswitch, random.randrange(3))

    def _anything(self) -> tuple[int, ...]:
        """Any number of a hypercall, with anything in its registers."""
        number = self.random.randrange(64) if self.chance(0.9) else self.register()
        if number in (xen.HYPERVISOR_sched_op, xen.HYPERVISOR_sched_op_compat):
            number = xen.HYPERVISOR_platform_op
        if number == xen.HYPERVISOR_platform_op:
            self.put(struct.pack("<II", self.random.randrange(70), platform.XENPF_INTERFACE_VERSION) + bytes(64))
        registers = [self.register() for _ in range(5)]
        if self.chance(0.5):
            registers[0] = self.random.randrange(40)
        return (number, *registers)
