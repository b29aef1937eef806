"""A physical CPU, as the pCPU loop and the schedulers know it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypervisor.sched.algorithm import Algorithm
    from hypervisor.vcpu import VCpu


class PCpu:
    """A physical CPU. `now` is its own time: it is busy, or has been, until then."""

    __slots__ = (
        "algorithm",
        "busy",
        "computes_from",
        "cpu_id",
        "current",
        "last",
        "now",
        "online",
        "slice_end",
        "slice_of",
    )

    def __init__(self, cpu_id: int) -> None:
        self.cpu_id = cpu_id
        self.now = 0
        self.busy = 0
        """Nanoseconds that vCPUs ran on it: only kept where there are several pCPUs (`Scheduler.idle_time`)."""
        self.online = True
        self.current: VCpu | None = None
        self.last: VCpu | None = None
        self.algorithm: Algorithm | None = None
        """The scheduler of the pool that it is in; None: it is in no pool, and runs nothing."""
        self.computes_from = -1
        """Since when it has done nothing but let its guest compute, until `now`; -1 if it has done something else."""
        self.slice_of = -1
        """The `since` of the vCPU that `slice_end` is about."""
        self.slice_end = 0
