"""Domains without a program: who holds a `Puppet` makes its hypercalls, loads from its memory and stores to it.

    stage = Stage("alice", "bob")
    alice = stage["alice"]
    alice.hypercall(HYPERVISOR_xen_version, XENVER_version)
    stage.run()                 # let upcalls be delivered, and time pass, until nobody has anything to do

Nothing happens behind the leader's back: the domains have been built as any other, their tick is off, all their event
channels are masked, and their upcall handler notes which ports it found (`heard`).
"""

from __future__ import annotations

from typing import Any

from guest_kernel.symbols import SYMBOLS
from hypervisor.abi import callback, vcpu, xen
from hypervisor.abi.cpu import Cpu
from hypervisor.abi.errno import name as errno_name
from hypervisor.abi.layout import Layout
from hypervisor.sched.algorithm import NEVER
from labs.kit.bench import PAGE_SIZE, Bench, Dom, boot_info, free_page

PENDING, MASK, WORDS = 256, 320, 64
"""Positions of the words of evtchn_pending and evtchn_mask in shared_info, as 64-bit words; how many they are."""
ARGUMENTS, SHARED = 0, 1
"""Which of the free pages holds arguments of hypercalls, and which address is given up for shared_info."""
FIRST_OWN = 2


class Puppet:
    """A domain that is led by hand."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.name = name
        self.dom = Dom(self._start)
        self.heard: list[int] = []
        """The ports that upcalls have found, in order."""
        self.calls: list[str] = []
        """The hypercalls so far, in words."""
        self.cpu: Cpu
        self.info: Any
        self.shared: memoryview

    def _start(self, cpu: Cpu, start: int) -> None:
        """Be the domain's kernel: make it ready to be led, and do nothing more."""
        self.cpu, self.info = cpu, boot_info(cpu, start)
        place = free_page(self.info, SHARED)
        assert cpu.hypercall(xen.HYPERVISOR_update_va_mapping, place, self.info.shared_info | 3, xen.UVMF_INVLPG) == 0
        self.shared = cpu.view(place)
        self.shared[8 * MASK : 8 * (MASK + WORDS)] = b"\xff" * 8 * WORDS
        assert cpu.hypercall(xen.HYPERVISOR_vcpu_op, vcpu.VCPUOP_stop_periodic_timer, 0, 0) == 0
        address = SYMBOLS["event_callback.0"]
        cpu.text[address] = self._upcall
        made = {"type": callback.CALLBACKTYPE_event, "address": address}
        callback.callback_register.pack_into(cpu.view(self.page(ARGUMENTS)), 0, **made)
        assert cpu.hypercall(xen.HYPERVISOR_callback_op, callback.CALLBACKOP_register, self.page(ARGUMENTS)) == 0

    @property
    def domid(self) -> int:
        """The domain's number."""
        return self.dom.domid

    # -- hypercalls ---------------------------------------------------------------------------------------------------

    def hypercall(self, nr: int, *registers: int) -> int:
        """Enter Xen as this domain; return the result."""
        result = self.cpu.hypercall(nr, *registers)
        told = ", ".join(hex(value) if value > 0xFFFF else str(value) for value in registers)
        answer = f"-{errno_name(result)}" if result < 0 else str(result)
        self.calls.append(f"{xen.HYPERCALL_NAMES.get(nr, nr)}({told}) = {answer}")
        return result

    def operate(self, nr: int, command: int, layout: Layout, *more: int, **members: Any) -> Any:
        """Make a hypercall with a structure in memory; return the structure as Xen left it, with `result` beside it."""
        view = self.cpu.view(self.page(ARGUMENTS))
        view[:] = bytes(PAGE_SIZE)
        layout.pack_into(view, 0, **members)
        result = self.hypercall(nr, command, self.page(ARGUMENTS), *more)
        return result, layout.unpack_from(view, 0)

    # -- memory -------------------------------------------------------------------------------------------------------

    def page(self, number: int) -> int:
        """Return the address of a free page of the domain's own; those from 2 on are nobody's."""
        return free_page(self.info, number)

    def view(self, address: int) -> memoryview:
        """Return the page at an address, as the domain's processor sees it. Raises PageFault."""
        return self.cpu.view(address & -PAGE_SIZE)

    def frame(self, address: int) -> int:
        """Return the machine frame of a page of the domain's own, by its p2m."""
        pfn = (address - 0xFFFF_FFFF_8000_0000) >> 12
        return self.cpu.view(self.info.mfn_list + (pfn >> 9 << 12)).cast("Q")[pfn & 511]

    # -- events -------------------------------------------------------------------------------------------------------

    def is_pending(self, port: int) -> bool:
        """Return a port's bit in evtchn_pending."""
        return bool(self.shared.cast("Q")[PENDING + port // 64] >> port % 64 & 1)

    def is_masked(self, port: int) -> bool:
        """Return a port's bit in evtchn_mask."""
        return bool(self.shared.cast("Q")[MASK + port // 64] >> port % 64 & 1)

    def _upcall(self) -> None:
        words = self.shared.cast("Q")
        self.shared[0] = 0
        selector, words[1] = words[1], 0
        for word in range(WORDS):
            if selector >> word & 1:
                ready = words[PENDING + word] & ~words[MASK + word]
                words[PENDING + word] &= ~ready
                self.heard += [64 * word + bit for bit in range(64) if ready >> bit & 1]


class Stage(Bench):
    """A host with puppets, numbered from 1 in the order of their names."""

    def __init__(self, *names: str) -> None:
        super().__init__(memory_mib=64)
        self.puppets = {name: Puppet(self, name) for name in names}
        self.run_guests(*(puppet.dom for puppet in self.puppets.values()))

    def __getitem__(self, name: str) -> Puppet:
        return self.puppets[name]

    def _turn(self) -> None:
        """Run until all puppets are ready to be led. The host stays on."""
        while not self._ended():
            self.hv.sched.drain(100)
        self.run()

    def run(self) -> None:
        """Let everything happen that can happen by itself: upcalls, and timers that are due within a millisecond."""
        until = self.hv.clock.now + 1_000_000
        for _ in range(1000):
            wait = self.hv.sched.drain(10)
            if wait == NEVER or wait > until:
                return

    def close(self) -> None:
        """Switch the host off."""
        self.hv.switch_off()
