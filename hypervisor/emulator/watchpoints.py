"""Breakpoints on data: DR0-3 whose R/W bits say writes, or reads and writes (the processor's manual, vol. 3, ch. 17).

A #DB comes *after* the instruction that has touched one of the bytes: a trap. The engine tells of each access before
it is made, and by its physical address. So a hit is noted then, and a second hook, before the next instruction, stops
the CPU. Both hooks are there only while some vCPU has such breakpoints, as they slow all code down.

A breakpoint is at a linear address, and the same frame may be mapped at others too. So the instruction that seems to
have hit one is looked at: does any of its operands lie where the breakpoint is?

What Xen itself reads and writes for a guest does not count: its copies, frames on the stack, stores into page tables
that it carries out. (On a real one the processor has a #DB in Xen then, which Xen does not pass on.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from hypervisor.emulator.binding import RBP, RIP, RSP
from hypervisor.emulator.native_hooks import HIT, Filter
from hypervisor.emulator.operands import Operands
from hypervisor.guest_access import walk_from
from hypervisor.trap_ops import CR4_DE

if TYPE_CHECKING:
    from hypervisor.emulator.processor import Processor
    from hypervisor.vcpu import Context

WRITE, READ_OR_WRITE = 1, 3
"""R/W bits in DR7 of a breakpoint on data."""
SIZES = (1, 2, 8, 4)
"""By the LEN bits of DR7."""
NR_BREAKPOINTS = 4
UC_MEM_WRITE = 17
"""(unicorn.h)"""
LARGEST = 512
"""Bytes that one operand may have: what FXSAVE stores."""
U64 = 0xFFFF_FFFF_FFFF_FFFF


@attrs.frozen
class Watch:
    """A breakpoint on data."""

    address: int
    """Linear, a multiple of the size."""
    size: int
    reads: bool
    """Whether reading hits it, too."""
    bit: int
    """Its bit of DR6."""


def watches(registers: list[int]) -> tuple[Watch, ...]:
    """Return the breakpoints on data that DR0-7 enable."""
    control = registers[7]
    found = []
    for number in range(NR_BREAKPOINTS):
        kind = control >> 16 + 4 * number & 3
        if control >> 2 * number & 3 and kind in (WRITE, READ_OR_WRITE):
            size = SIZES[control >> 18 + 4 * number & 3]
            found.append(Watch(registers[number] & -size, size, kind == READ_OR_WRITE, 1 << number))
    return tuple(found)


def is_armed(context: Context) -> bool:
    """Whether any breakpoint is enabled, of whichever kind."""
    return bool((context.debugreg[7] | context.dr7_emulated) & 0xFF)


def ports_hit(context: Context, port: int, width: int) -> int:
    """Return the bits of DR6 for the breakpoints at I/O ports, which Xen itself looks after.

    They are those that set_debugreg has put aside, and need CR4.DE.
    """
    if not context.cr4 & CR4_DE:
        return 0
    bits = 0
    for number in range(NR_BREAKPOINTS):
        size = SIZES[context.debugreg[7] >> 18 + 4 * number & 3]
        start = context.debugreg[number] & -size
        if context.dr7_emulated >> 2 * number & 3 and start < port + width and port < start + size:
            bits |= 1 << number
    return bits


_Place = tuple[int, int, bool]
"""(place in its page, size, whether reads count): what a hook at accesses is for."""


def _places(wanted: list[Watch]) -> dict[_Place, None]:
    return dict.fromkeys((watch.address & 0xFFF, watch.size, watch.reads) for watch in wanted)


class Watchpoints:
    """The hooks that data breakpoints need, in the CPU of a host."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._words = processor.native.words
        self._operands = Operands(processor, "has breakpoints on data")
        self._places: dict[_Place, tuple[int, Filter]] = {}
        """The hooks at accesses: handle, and what must live as long."""
        self._step = 0
        """Handle of the hook before each instruction, 0 if there is none."""
        self._at = 0
        """Where the instruction is that has hit one."""

    @property
    def hit(self) -> int:
        """Return the bits of DR6 for what an instruction has hit."""
        return self._words[HIT]

    def take(self) -> tuple[int, int]:
        """Return the bits of DR6 for what was hit, and the address of the instruction; forget it."""
        bits, self._words[HIT] = self._words[HIT], 0
        return bits, self._at

    def lacks(self, wanted: list[Watch]) -> bool:
        """Whether some breakpoint is missing a hook."""
        return not self._places.keys() >= _places(wanted).keys()

    def exceeds(self, wanted: list[Watch]) -> bool:
        """Whether there are hooks that none of the breakpoints needs."""
        return not self._places.keys() <= _places(wanted).keys()

    def apply(self, wanted: list[Watch]) -> None:
        """Set the hooks for all breakpoints on data that there are; to be called while the CPU does not run."""
        cpu, native, places = self._processor.cpu, self._processor.native, _places(wanted)
        for place in [place for place in self._places if place not in places]:
            cpu.unhook(self._places.pop(place)[0])
        for place in places:
            if place not in self._places:
                at, size, reads = place
                hook = native.filter(at, size, self._accessed)
                self._places[place] = cpu.hook_accesses(hook.function, hook.data, reads=reads), hook
        if bool(places) != bool(self._step):
            if self._step:
                cpu.unhook(self._step)
            self._step = cpu.hook_instructions(native.step, native.address) if places else 0

    def _accessed(self, kind: int, address: int, size: int) -> None:
        """Look whether the running vCPU has a breakpoint at what is accessed: the engine is in the midst of it."""
        processor = self._processor
        vcpu = processor.vcpu
        if vcpu is None:
            return
        try:
            for watch in processor.breakpoints.data_of(vcpu):
                if watch.bit & self._words[HIT] or not (watch.reads or kind == UC_MEM_WRITE):
                    continue
                where = self._linear(watch, address, size)
                if where is not None and self._is_operand(where):
                    self._words[HIT] |= watch.bit
                    self._at = processor.cpu.q[RIP]
        except BaseException as error:
            processor.fail(error)

    def _linear(self, watch: Watch, address: int, size: int) -> int | None:
        """Return the linear address of an access to some of a breakpoint's bytes; None if it is to other memory."""
        memory, root = self._processor.hv.memory, self._processor.root
        page = watch.address & ~0xFFF
        # An access may begin in the page before.
        for start in (page, page - 4096):
            where = start + (address & 0xFFF)
            overlaps = where < watch.address + watch.size and watch.address < where + size
            if overlaps and walk_from(memory, root, start & U64) == address & ~0xFFF:
                return where & U64
        return None

    def _is_operand(self, where: int) -> bool:
        """Whether the present instruction has an operand, or its stack, at a linear address."""
        vcpu, q = self._processor.vcpu, self._processor.cpu.q
        assert vcpu is not None
        instruction = self._operands.instruction(vcpu)
        if instruction is None:
            return False
        # The stack of calls, returns, pushes, ENTER and LEAVE is no operand that is written down.
        bases = [q[RSP] - LARGEST // 2, q[RBP], *self._operands.addresses(instruction)]
        return any(where - base & U64 < LARGEST for base in bases)
