"""Domains whose kernels want to do harm, on a real hypervisor, with a bystander that must notice nothing."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from typing import Any

import bare_guest
from leak_check import find_leaks

from hypervisor.abi import xen
from hypervisor.abi.cpu import Cpu, PageFault
from hypervisor.guest_access import translate_load
from hypervisor.vcpu import VPF_DOWN

BYSTANDER = 30000
"""The domain that nobody attacks by name (dom0 could rightfully take anything from it)."""
ENTRY = 0x100000
CALLBACK = 0x101000
PORT_ALIASES = 8


class Image:
    """What vCPUs run when Xen schedules them: a few hypercalls of `world.speak` at a time."""

    name = "fuzz"
    virt_base = 0
    virt_entry = ENTRY

    def __init__(self, guest: Attacker) -> None:
        self.guest = guest

    def boot(self, cpu: Cpu, start_info: int) -> Generator[int, None, None]:
        while True:
            yield self.guest.world.speak(self.guest, cpu.vcpu_id)

    def unload(self) -> None:
        """There is no suspended code besides that of the vCPUs."""


class Attacker(bare_guest.Guest):
    """A domain that makes random hypercalls from outside, and that its vCPUs may run if it manages to start them."""

    def __init__(self, world: Any, domid: int, *, privileged: bool, vcpus: int, max_pages: int) -> None:
        super().__init__(world, domid, privileged=privileged, vcpus=vcpus, max_pages=max_pages)
        self.domain.image = Image(self)
        self.domain.text[CALLBACK] = self._acknowledge
        self.scratch_pte = [self.pte(self.va(bare_guest.DATA_PAGES + n)) for n in range(bare_guest.SCRATCH_PAGES)]
        self.handles: list[tuple[int, int]] = []
        """(handle, host address) of grants that this guest has mapped, as it remembers them."""
        for page in range(6):
            # The first grants are good ones, so that the others find something to map.
            self.grant(PORT_ALIASES + page, page % 3, self.pages[page], readonly=page == 5)

    def _acknowledge(self) -> None:
        """Be the event callback: clear upcall_pending, or the vCPU would be entered for ever."""
        for vcpu in self.domain.online_vcpus():
            self.hv.memory.b[vcpu.info] = 0

    def start(self) -> None:
        """Let the first vCPU run, as a toolstack would have."""
        vcpu = self.vcpus[0]
        vcpu.context.rip, vcpu.context.event_callback = ENTRY, CALLBACK
        vcpu.initialised = True
        self.hv.sched.unpause(vcpu, VPF_DOWN)
        self.hv.domain_ops.unpause(self.domain)

    def grant(self, ref: int, to: int, mfn: int, *, readonly: bool = False) -> None:
        """Write an entry of the grant table (of version 1) as a guest would who has it mapped."""
        table = self.domain.grant_table
        at = (table.shared[ref // 512] << 12) + ref % 512 * 8
        struct.pack_into("<HHI", self.hv.memory.b, at, 5 if readonly else 1, to, mfn & 0xFFFFFFFF)

    def put(self, va: int, data: bytes) -> bool:
        """Store arguments; if the guest has taken its own page away, try to map it again. False if that failed."""
        try:
            self.poke(va, data)
        except PageFault:
            for index, entry in enumerate(self.scratch_pte):
                self.hypercall(
                    xen.HYPERVISOR_update_va_mapping, self.va(bare_guest.DATA_PAGES + index), entry, xen.UVMF_INVLPG
                )
            try:
                self.poke(va, data)
            except PageFault:
                return False
        return True

    def poke(self, va: int, data: bytes) -> None:
        """Store as the guest itself would, page by page."""
        memory = self.hv.memory.b
        done = 0
        while done < len(data):
            maddr = translate_load(self.vcpus[0], va + done, True)
            length = min(4096 - (maddr & 0xFFF), len(data) - done)
            memory[maddr : maddr + length] = data[done : done + length]
            done += length

    @property
    def alive(self) -> bool:
        return not self.domain.is_dying and self.hv.domains.get(self.domid) is self.domain


class World(bare_guest.World):
    """dom0 and two attackers, numbers 1 and 2, and the bystander."""

    guest_type = Attacker

    def __init__(self, speak: Callable[[Attacker, int], int], **options: Any) -> None:
        super().__init__(**options)
        self.speak = speak
        """Has a vCPU that runs make hypercalls; returns how long it computes then, in ns."""
        self.free_at_first = self.hv.frames.free_frames
        for _ in range(3):
            self.guest(vcpus=2, max_pages=200)
        self.bystander = bare_guest.Guest(self, BYSTANDER, privileged=False, vcpus=1, max_pages=50)
        for page, mfn in enumerate(self.bystander.pages):
            start = mfn << 12
            self.hv.memory.b[start : start + 4096] = bytes((page + 1,)) * 4096
        self.untouched = self.look_at_bystander()

    def look_at_bystander(self) -> tuple[Any, ...]:
        """Everything of the bystander that a neighbour must not change."""
        hv, guest = self.hv, self.bystander
        frames = hv.frames
        mfns = [guest.l4, guest.l3, guest.l2, guest.l1, guest.hole_l1, *guest.pages, *guest.scratch]
        state = [(frames.owner(mfn), frames.count[mfn], frames.type[mfn], frames.type_count[mfn]) for mfn in mfns]
        words = [hv.memory.b[mfn << 12 : (mfn + 1) << 12].tobytes() for mfn in guest.pages]
        table = guest.domain.grant_table
        return (
            hv.domains.get(BYSTANDER) is guest.domain,
            guest.domain.is_dying,
            guest.domain.tot_pages,
            [vcpu.pause_flags for vcpu in guest.vcpus],
            [vcpu.kernel_cr3 for vcpu in guest.vcpus],
            guest.domain.active_ports,
            table.version,
            sum(table.pin),
            state,
            words,
        )

    def check(self) -> None:
        super().check()
        if self.look_at_bystander() != self.untouched:
            raise AssertionError("the bystander has been changed")

    def close(self) -> None:
        """Destroy every domain; raises AssertionError if anything is left."""
        found = find_leaks(self.hv, self.free_at_first, exempt=True)
        if found:
            raise AssertionError("at the end: " + "; ".join(found))
