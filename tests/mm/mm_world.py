"""A host with small domains, and a guest's view of its own memory, for the tests of memory management."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from bare_guest import NoProgram

from hypervisor.abi import errno, memory, xen
from hypervisor.dom0_build import construct_dom0
from hypervisor.domain import Domain
from hypervisor.errors import HypercallError, InvariantError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.hypervisor import Hypervisor
from hypervisor.kernel_image import PvKernel
from hypervisor.machine.machine import Machine
from hypervisor.mm.check import check
from hypervisor.python_vcpu import PythonVCpu
from hypervisor.vcpu import VCpu

VIRT_BASE = 0xFFFFFFFF80000000
PAGES = 1024
ARGS_PFN, EXTRA_PFN = 16, 18
"""Pages 16 and 17 hold arguments of hypercalls, page 18 lists."""
FIRST_FREE_PFN = 32

P, RW, US, PWT, PCD, A, D, PSE, G = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x80, 0x100
KERNEL_BIT = 1 << 52
NX = 1 << 63
TABLE = P | RW | US | A | D
RO_TABLE = P | US | A | D


BARE_KERNEL = PvKernel(virt_base=VIRT_BASE, virt_entry=VIRT_BASE, segments=())
"""A kernel without contents: the tests play its part."""


class Guest:
    """One domain with one or more vCPUs; its methods are what its kernel would do."""

    def __init__(
        self, hv: Hypervisor, domid: int, *, pages: int = PAGES, vcpus: int = 1, machine_code: bool = False
    ) -> None:
        self.hv = hv
        self.domain: Domain = hv.domain_ops.create(domid, max_vcpus=vcpus, is_privileged=domid == 0)
        self.domain.image = None if machine_code else NoProgram()
        for vcpu_id in range(vcpus):
            hv.domain_ops.add_vcpu(self.domain, vcpu_id)
        self.layout = construct_dom0(hv, self.domain, BARE_KERNEL, "", None, pages)
        if domid:
            self.domain.max_pages = pages
        self.vcpu: VCpu = self.domain.vcpu(0)  # type: ignore[assignment]
        self.p2m = list(
            struct.unpack(f"<{pages}Q", copy_from_guest(self.vcpu, self.va(self.layout.p2m.pfn), pages * 8))
        )
        self.next_pfn = FIRST_FREE_PFN

    # -- addresses --------------------------------------------------------------------------------------------------

    def va(self, pfn: int) -> int:
        return VIRT_BASE + pfn * 4096

    def mfn(self, pfn: int) -> int:
        return self.p2m[pfn]

    @property
    def root(self) -> int:
        return self.mfn(self.layout.tables.pfn)

    def table(self, level: int, index: int = 0) -> int:
        """The mfn of one of the tables that the builder made."""
        l4, l3, l2, _ = self.layout.tables_by_level
        return self.mfn(self.layout.tables.pfn + {4: 0, 3: l4, 2: l4 + l3, 1: l4 + l3 + l2}[level] + index)

    def entry_at(self, pfn: int) -> int:
        """The machine address of the L1 entry that maps a page."""
        return (self.table(1, pfn >> 9) << 12) + (pfn & 511) * 8

    def entry(self, pfn: int) -> int:
        return self.hv.memory.q[self.entry_at(pfn) >> 3]

    def new_page(self) -> int:
        """A page of its own, mapped writable, used for nothing so far: its pfn."""
        self.next_pfn += 1
        return self.next_pfn - 1

    # -- hypercalls -------------------------------------------------------------------------------------------------

    def call(self, nr: int, *args: int) -> int:
        if isinstance(self.vcpu, PythonVCpu):
            return self.vcpu.cpu.hypercall(nr, *args)
        try:
            return self.hv.table[nr](self.vcpu, *(*args, 0, 0, 0, 0, 0)[:5])
        except HypercallError as error:
            return -error.errno

    def put(self, data: bytes, pfn: int = ARGS_PFN) -> int:
        copy_to_guest(self.vcpu, self.va(pfn), data)
        return self.va(pfn)

    def get(self, size: int, pfn: int = ARGS_PFN) -> bytes:
        return copy_from_guest(self.vcpu, self.va(pfn), size)

    def mmu_update(self, updates: Iterable[tuple[int, int]], foreign: int = xen.DOMID_SELF) -> tuple[int, int]:
        """Returns (rc, done)."""
        raw = b"".join(struct.pack("<QQ", *update) for update in updates)
        done = self.put(b"\xff\xff\xff\xff", EXTRA_PFN)
        rc = self.call(xen.HYPERVISOR_mmu_update, self.put(raw or b"\0"), len(raw) // 16, done, foreign)
        return rc, struct.unpack("<I", self.get(4, EXTRA_PFN))[0]

    def set_entry(self, maddr: int, value: int, foreign: int = xen.DOMID_SELF) -> int:
        return self.mmu_update([(maddr, value)], foreign)[0]

    def update_va(self, va: int, value: int, flags: int = xen.UVMF_INVLPG) -> int:
        return self.call(xen.HYPERVISOR_update_va_mapping, va, value, flags)

    def map(self, pfn: int, mfn: int, flags: int = P | RW | A | D) -> int:
        """Map a frame at the address of page `pfn`."""
        return self.update_va(self.va(pfn), mfn << 12 | flags)

    def make_readonly(self, pfn: int) -> int:
        return self.map(pfn, self.mfn(pfn), P | A)

    def make_writable(self, pfn: int) -> int:
        return self.map(pfn, self.mfn(pfn))

    def mmuext(self, cmd: int, arg1: int = 0, arg2: int = 0, foreign: int = xen.DOMID_SELF) -> int:
        raw = struct.pack("<IIQQ", cmd, 0, arg1, arg2)
        return self.call(xen.HYPERVISOR_mmuext_op, self.put(raw), 1, 0, foreign)

    def pin(self, level: int, mfn: int) -> int:
        return self.mmuext(xen.MMUEXT_PIN_L1_TABLE + level - 1, mfn)

    def unpin(self, mfn: int) -> int:
        return self.mmuext(xen.MMUEXT_UNPIN_TABLE, mfn)

    def write_page(self, pfn: int, words: dict[int, int]) -> None:
        """Fill a page that is mapped writable with 64-bit words by index, all others zero."""
        page = [0] * 512
        for index, word in words.items():
            page[index] = word
        copy_to_guest(self.vcpu, self.va(pfn), struct.pack("<512Q", *page))

    def new_table(self, words: dict[int, int]) -> int:
        """Fill a new page and map it read-only, so that it can become a page table: its pfn."""
        pfn = self.new_page()
        self.write_page(pfn, words)
        assert self.make_readonly(pfn) == 0
        return pfn

    def reservation(
        self, op: int, extents: list[int], *, order: int = 0, domid: int = xen.DOMID_SELF, flags: int = 0
    ) -> tuple[int, list[int]]:
        """Returns (rc, the list of extents afterwards)."""
        size = len(extents) * 8
        where = self.put(struct.pack(f"<{len(extents)}Q", *extents), EXTRA_PFN) if extents else 0
        raw = memory.xen_memory_reservation.pack(
            extent_start=where, nr_extents=len(extents), extent_order=order, mem_flags=flags, domid=domid
        )
        rc = self.call(xen.HYPERVISOR_memory_op, op, self.put(raw))
        return rc, list(struct.unpack(f"<{len(extents)}Q", self.get(size, EXTRA_PFN))) if extents else []

    def exchange(
        self, given: list[int], wanted: list[int], in_order: int = 0, out_order: int = 0, flags: int = 0
    ) -> tuple[int, int]:
        """Returns (rc, nr_exchanged); the new frames are in `exchanged`."""
        raw = struct.pack(f"<{len(given) + len(wanted)}Q", *given, *wanted)
        start = self.put(raw, EXTRA_PFN)
        parts = []
        for offset, extents, order in ((0, given, in_order), (len(given) * 8, wanted, out_order)):
            parts.append(
                {
                    "extent_start": start + offset,
                    "nr_extents": len(extents),
                    "extent_order": order,
                    "mem_flags": flags,
                    "domid": xen.DOMID_SELF,
                }
            )
        packed = memory.xen_memory_exchange.pack(in_=parts[0], out=parts[1])
        rc = self.call(xen.HYPERVISOR_memory_op, memory.XENMEM_exchange, self.put(packed))
        done = memory.xen_memory_exchange.unpack_from(self.get(memory.xen_memory_exchange.size)).nr_exchanged
        self.exchanged = list(struct.unpack(f"<{len(wanted)}Q", self.get(len(raw), EXTRA_PFN)[len(given) * 8 :]))
        return rc, done


class World:
    """A host of 32 MiB with dom0; `check` is the recount of all references."""

    def __init__(self, memory_mib: int = 32) -> None:
        self.hv = Hypervisor(Machine(memory_mib=memory_mib))
        self.dom0 = Guest(self.hv, 0)

    def guest(self, domid: int = 1, *, pages: int = PAGES, vcpus: int = 1) -> Guest:
        return Guest(self.hv, domid, pages=pages, vcpus=vcpus)

    def check(self) -> None:
        try:
            check(self.hv)
        except InvariantError as error:
            # pytest does not get over what is no Exception when it comes from a fixture.
            raise AssertionError(str(error)) from error

    def kill(self, guest: Guest) -> None:
        self.hv.domain_ops.kill(guest.domain)

    def close(self) -> None:
        """Kill all domains but dom0: nothing may be left, and no frame of them may be in use."""
        for domid in [domid for domid in self.hv.domains if domid]:
            self.hv.domain_ops.kill(self.hv.domains[domid])
        self.check()
        assert list(self.hv.domains) == [0]


EINVAL, EBUSY, EPERM, ESRCH, EFAULT, ENOSYS, EACCES = (
    -errno.EINVAL,
    -errno.EBUSY,
    -errno.EPERM,
    -errno.ESRCH,
    -errno.EFAULT,
    -errno.ENOSYS,
    -errno.EACCES,
)
