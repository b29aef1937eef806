"""Instruction breakpoints: DR0-3 with R/W bits of zero, as the processor's manual, volume 3, chapter 17 has them.

A breakpoint is a #DB before the instruction at its address, a fault. RF in the flags of an iret lets the instruction
that is returned to pass, once. The engine has breakpoints of its own but forgets to clear RF, and so lets others pass;
here each address that any vCPU has a breakpoint at gets a hook instead, before its instruction, wherever it is mapped.

Hooks are set and taken away between two runs of the CPU: all code is translated again then. That is dear, so a hook
that nobody needs any more stays for a while. (A kernel that turns from one thread to another takes its breakpoints away
and sets them again.) Who changes them all the time pays for it; others have their translations for nothing.

Breakpoints on data are found by other hooks: `watchpoints`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.emulator.watchpoints import NR_BREAKPOINTS, Watch, Watchpoints, watches

if TYPE_CHECKING:
    from hypervisor.emulator.binding import Binding
    from hypervisor.emulator.processor import Processor
    from hypervisor.emulator.vcpu import EmulatedVCpu

KEPT_NS = 100_000_000
"""How long a hook stays that nobody needs."""
EXECUTE = 0
"""R/W bits in DR7 of a breakpoint on an instruction; its length must be zero, too."""


class Breakpoints:
    """The breakpoints of all vCPUs, in the CPU of a host."""

    def __init__(self, processor: Processor, cpu: Binding) -> None:
        self._processor = processor
        self._cpu = cpu
        self._hooks: dict[int, int] = {}
        """Handles of the hooks that are set, by address."""
        self._wanted: dict[EmulatedVCpu, dict[int, int]] = {}
        """Per vCPU that has breakpoints: for each address the bits of DR6 that say which."""
        self._is_dirty = False
        self._culprit: EmulatedVCpu | None = None
        """The vCPU that has changed its own breakpoints while it ran."""
        self._drop_at = 0
        """When hooks that nobody needs are to be taken away; 0: there are none."""
        self._hit = 0
        """Bits of DR6: the CPU was stopped for a breakpoint on an instruction."""
        self.data = Watchpoints(processor)
        self._watched: dict[EmulatedVCpu, tuple[Watch, ...]] = {}

    def changed(self, vcpu: EmulatedVCpu) -> None:
        """Take note of new debug registers; the hooks are set before the CPU runs again."""
        registers = vcpu.context.debugreg
        wanted, watched = enabled(registers), watches(registers)
        if wanted == self._wanted.get(vcpu, {}) and watched == self._watched.get(vcpu, ()):
            return
        self._forget(vcpu)
        if wanted:
            self._wanted[vcpu] = wanted
        if watched:
            self._watched[vcpu] = watched
        self._is_dirty = True
        if self._processor.vcpu is not None:
            self._culprit = self._processor.vcpu
            self._cpu.stop()

    def forget(self, vcpu: EmulatedVCpu) -> None:
        """Take note that a vCPU is gone."""
        self._is_dirty = self._forget(vcpu) or self._is_dirty

    def _forget(self, vcpu: EmulatedVCpu) -> bool:
        had = self._wanted.pop(vcpu, None), self._watched.pop(vcpu, None)
        return had != (None, None)

    @property
    def hit(self) -> int:
        """Return the bits of DR6 for which the CPU was stopped."""
        return self._hit | self.data.hit

    def take(self) -> int:
        """Return the bits of DR6 for which the CPU was stopped, and forget them."""
        bits, self._hit = self._hit | self.data.take()[0], 0
        return bits

    def of(self, vcpu: EmulatedVCpu) -> dict[int, int]:
        """Return the addresses of a vCPU's breakpoints, with their bits of DR6."""
        return self._wanted.get(vcpu, {})

    def data_of(self, vcpu: EmulatedVCpu) -> tuple[Watch, ...]:
        """Return a vCPU's breakpoints on data."""
        return self._watched.get(vcpu, ())

    def apply(self) -> None:
        """Set the hooks that are missing, take away those not needed for long; the CPU must not run meanwhile."""
        if not self._is_dirty and not self._drop_at:
            return
        now = self._processor.hv.now()
        if not self._is_dirty and now < self._drop_at:
            return
        self._is_dirty = False
        culprit, self._culprit = self._culprit, None
        addresses = dict.fromkeys(address for wanted in self._wanted.values() for address in wanted)
        watched = [watch for watched in self._watched.values() for watch in watched]
        missing = [address for address in addresses if address not in self._hooks]
        superfluous = [address for address in self._hooks if address not in addresses]
        if not missing and not self.data.lacks(watched):
            if not superfluous and not self.data.exceeds(watched):
                self._drop_at = 0
                return
            self._drop_at = self._drop_at or now + KEPT_NS
            if now < self._drop_at:
                return
        for address in superfluous:
            self._cpu.unhook(self._hooks.pop(address))
        for address in missing:
            self._hooks[address] = self._cpu.hook_instruction(address, self._reached)
        self.data.apply(watched)
        self._drop_at = 0
        self._cpu.forget_all_code()
        self._processor.all_is_translated_anew(culprit)

    def _reached(self, address: int) -> None:
        """Stop the CPU before an instruction at which the running vCPU has a breakpoint."""
        vcpu = self._processor.vcpu
        bits = 0 if vcpu is None else self.of(vcpu).get(address, 0)
        if not bits or vcpu is None or self.data.hit:
            # (A trap of the instruction before comes first; this instruction has its turn after that.)
            return
        if vcpu.resumes_at == address:
            vcpu.resumes_at = -1
            return
        self._hit = bits
        self._cpu.stop()


def enabled(registers: list[int]) -> dict[int, int]:
    """Return the addresses at which DR0-7 have breakpoints on instructions, with the bits of DR6 that say which."""
    control = registers[7]
    found: dict[int, int] = {}
    for number in range(NR_BREAKPOINTS):
        if control >> 2 * number & 3 and control >> 16 + 4 * number & 15 == EXECUTE:
            found[registers[number]] = found.get(registers[number], 0) | 1 << number
    return found
