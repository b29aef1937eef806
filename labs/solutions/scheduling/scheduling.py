"""Lab 10, solved."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from hypervisor.abi import sched, vcpu, xen
from hypervisor.abi.cpu import Cpu

RUNNING, RUNNABLE, BLOCKED, OFFLINE = 0, 1, 2, 3


@dataclass
class Runstate:
    """What Xen keeps of a vCPU."""

    state: int
    since: int
    times: tuple[int, int, int, int]


def operate(cpu: Cpu, page: int, command: int) -> int:
    """Make a vcpu_op for vCPU 0 with the argument in the page."""
    return cpu.hypercall(xen.HYPERVISOR_vcpu_op, command, 0, page)


def register_runstate(cpu: Cpu, page: int, area: int) -> None:
    """Have Xen keep the runstate of vCPU 0 at the virtual address `area`."""
    struct.pack_into("<Q", cpu.view(page), 0, area)
    result = operate(cpu, page, vcpu.VCPUOP_register_runstate_memory_area)
    if result < 0:
        raise OSError(-result, "register_runstate_memory_area")


def read_runstate(view: memoryview, now: int) -> Runstate:
    """Take a vcpu_runstate_info apart, and bring it up to system time `now`."""
    state, since, *times = struct.unpack_from("<i4x5Q", view)
    times[state] += now - since
    return Runstate(state, since, (times[0], times[1], times[2], times[3]))


def stolen(before: Runstate, after: Runstate) -> float:
    """Return which part of the time between two readings the vCPU wanted to run and did not."""
    spans = [late - early for early, late in zip(before.times, after.times, strict=True)]
    return spans[RUNNABLE] / sum(spans) if sum(spans) else 0.0


def nap(cpu: Cpu, page: int, deadline: int) -> Generator[int, None, None]:
    """Sleep until system time `deadline`, without any event channel."""
    struct.pack_into("<QI4xQ", cpu.view(page), 0, 0, 0, deadline)
    result = cpu.hypercall(xen.HYPERVISOR_sched_op, sched.SCHEDOP_poll, page)
    if result < 0:
        raise OSError(-result, "poll")
    yield 0


class Stride:
    """A scheduler of domains on one processor."""

    def __init__(self, weights: dict[int, int], default: int) -> None:
        self.weights = weights
        self.default = default
        self.passes: dict[int, float] = {}
        self.last: set[int] = set()

    def choose(self, runnable: Sequence[int]) -> int:
        """Return which of these domains runs next."""
        were_here = [self.passes[domid] for domid in runnable if domid in self.last]
        floor = min(were_here) if were_here else max(self.passes.values(), default=0)
        for domid in runnable:
            if domid not in self.last:
                self.passes[domid] = max(self.passes.get(domid, 0), floor)
        self.last = set(runnable)
        return min(runnable, key=lambda domid: self.passes[domid])

    def ran(self, domid: int, ns: int) -> None:
        """The domain that was chosen has run for so long."""
        self.passes[domid] += ns / self.weights.get(domid, self.default)


def settings(shares: dict[str, float]) -> dict[str, tuple[int, int]]:
    """Return weight and cap for each domain, by its name."""
    idle = sum(shares.values()) < 0.999
    return {name: (max(1, round(share * 10_000)), round(share * 100) if idle else 0) for name, share in shares.items()}
