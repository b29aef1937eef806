"""Preemption of long hypercalls: handlers never block, but a long one gives the processor back and goes on later.

A handler of a long operation asks `hv.preempt.check()` between two steps, never before the first one, so that each try
gets a step further. When the answer is True it leaves with what is left to do, as the same hypercall with other
arguments (Xen: hypercall_create_continuation):

    for index in range(count):
        if index and hv.preempt.check():
            raise Continuation(NR, va + index * size, count - index)
        ...

Deep inside an operation, or where the arguments need not change since the state says how far it got, `Restart` asks for
the same hypercall once more (Xen: -ERESTART).

All that has to survive is in those arguments, in guest memory or in the domain: between the two parts anything may
happen, to the domain that asked too. What the guest passed in other registers stays there.

Whoever entered the hypercall catches the `Continuation`. A machine-code vCPU gets its registers replaced and its
instruction pointer set back on the hypercall, takes its interrupts, and comes again. A vCPU that runs Python is inside
one long instruction (see `python_vcpu`): there the rest follows at once (`finish`). In a multicall the entry in guest
memory is replaced, and the multicall goes on from that entry.

By default nothing is preempted unless the vCPU that runs has an interrupt to take: two runs preempt at the same places,
and hypercalls that are not long pay nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.errors import HypercallError

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

_REGISTERS = 5


class Continuation(Exception):
    """What is left of a hypercall: its number and its first arguments. The other registers keep what they hold.

    No error: a hypercall that is not done.
    """

    def __init__(self, nr: int, *registers: int) -> None:
        super().__init__(nr, *registers)
        self.nr = nr
        self.registers = registers

    def replace(self, registers: tuple[int, ...]) -> tuple[int, ...]:
        """Return the five arguments with which the hypercall is to be made again, given those it was made with."""
        return (*self.registers, *registers[len(self.registers) :])


class Restart(Continuation):
    """The same hypercall is to be made again, with the arguments that it had; `nr` is negative."""

    def __init__(self) -> None:
        super().__init__(-1)


class Preemption:
    """Whether the hypercall that runs should give the processor back; and two hooks with which tests make it so."""

    __slots__ = ("_hv", "between", "forced")

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self.forced: Callable[[], bool] | None = None
        """Decides instead of the vCPU's interrupts: called once for each point at which a hypercall could stop."""
        self.between: Callable[[VCpu], None] | None = None
        """Called between two parts of a hypercall of a vCPU that runs Python; it may make hypercalls of others."""

    def imminent(self) -> bool:
        """Whether the next `check` may answer True, so that a batch must not do several steps at a time.

        No time passes within a hypercall: what is False at its start stays so, but for what it does to its own vCPU.
        """
        if self.forced is not None:
            return True
        running = self._hv.sched.running
        return running is not None and running.must_interrupt()

    def check(self) -> bool:
        """Whether to stop at this point (Xen: hypercall_preempt_check)."""
        forced = self.forced
        if forced is not None:
            return forced()
        running = self._hv.sched.running
        return running is not None and running.must_interrupt()


def finish(vcpu: VCpu, nr: int, rest: Continuation, registers: tuple[int, ...]) -> int:
    """Go on with hypercall `nr`, made with `registers`, until it is done; returns its result.

    Nobody hears that if the domain died meanwhile.
    """
    hv = vcpu.hv
    while True:
        if hv.preempt.between is not None:
            hv.preempt.between(vcpu)
            if vcpu.domain.is_dying:
                return 0
        registers = rest.replace(registers)
        if rest.nr >= 0:
            nr = rest.nr
        try:
            return hv.table[nr](vcpu, *registers)
        except HypercallError as error:
            return -error.errno
        except Continuation as more:
            rest = more
