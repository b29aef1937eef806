"""Lab 10: time and scheduling. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import struct  # noqa: F401
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from hypervisor.abi import sched, vcpu, xen  # noqa: F401
from hypervisor.abi.cpu import Cpu

RUNNING, RUNNABLE, BLOCKED, OFFLINE = 0, 1, 2, 3


@dataclass
class Runstate:
    """What Xen keeps of a vCPU."""

    state: int
    since: int
    """System time (ns) at which that state began."""
    times: tuple[int, int, int, int]
    """Nanoseconds in each state."""


# Part 1: the guest's side


def register_runstate(cpu: Cpu, page: int, area: int) -> None:
    """Have Xen keep the runstate of vCPU 0 at the virtual address `area`. Raises OSError with the errno.

    `page` is a free page for the argument.
    """
    raise NotImplementedError("HYPERVISOR_vcpu_op with VCPUOP_register_runstate_memory_area, the vCPU, the address")


def read_runstate(view: memoryview, now: int) -> Runstate:
    """Take a vcpu_runstate_info apart, and bring it up to system time `now`.

    Xen writes it when the state changes: since then the vCPU is in `state`, and that is not in `times` yet.
    """
    raise NotImplementedError("mind the four bytes behind state")


def stolen(before: Runstate, after: Runstate) -> float:
    """Return which part of the time between two readings the vCPU wanted to run and did not (0 to 1); 0 for no time."""
    raise NotImplementedError("differences")


def nap(cpu: Cpu, page: int, deadline: int) -> Generator[int, None, None]:
    """Sleep until system time `deadline`, without any event channel: to be used as `yield from nap(...)`.

    Raises OSError with the errno.
    """
    raise NotImplementedError("SCHEDOP_poll with no ports and a timeout, then a yield: there the vCPU sleeps")
    yield 0


# Part 2: Xen's side


class Stride:
    """A scheduler of domains on one processor."""

    def __init__(self, weights: dict[int, int], default: int) -> None:
        """`weights` by domain; a domain that is not there has the weight `default`."""
        self.weights = weights
        self.default = default

    def choose(self, runnable: Sequence[int]) -> int:
        """Return which of these domains runs next: they are in the order in which they came, and at least one.

        Of several that are as far, the first.
        """
        raise NotImplementedError("the smallest pass; but who was not here the last time has slept")

    def ran(self, domid: int, ns: int) -> None:
        """The domain that was chosen has run for so long."""
        raise NotImplementedError("its pass advances")


# Part 3: the administrator's side


def settings(shares: dict[str, float]) -> dict[str, tuple[int, int]]:
    """Return weight (1 to 65535) and cap (percent of a processor; 0: none) for each domain, by its name.

    All of them compute all the time on one processor. `shares` says which part of it each is to have; together they are
    at most 1, and if they are less, the rest of the processor stays idle.
    """
    raise NotImplementedError("weights if all is given out, caps if not")
