"""The interface between the pCPU loop and a scheduler (Xen: struct scheduler, xen/common/sched/private.h).

The loop (`scheduler.py`) knows time: whose turn it is, how long guests compute, when timers fire. It keeps the run
queue, which has all vCPUs that may run and do not, in the order in which they came. A scheduler says which of them runs
on a pCPU, for how long, and when another one takes its place. What it remembers of a vCPU is in `VCpu.unit`.

A vCPU that its scheduler does not let run now, as its budget is used up, is *parked*: off the run queue until the
scheduler puts it back (`Scheduler.park`, `unpark`).

Credits cost nothing as long as nobody competes. A scheduler writes into `VCpu.credit_end` at which value of
`VCpu.time_running` the vCPU has used up what it was given; the loop looks at that when it gives it a pCPU, and calls
`exhausted` only then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.sched.pcpu import PCpu
    from hypervisor.sched.scheduler import Scheduler
    from hypervisor.vcpu import VCpu

MS = 1_000_000
US = 1_000
NEVER = 1 << 63
ALL_CPUS = -1
"""As a mask of pCPUs: every bit is set."""


class Unit:
    """What a scheduler keeps of one vCPU: where it may run, and more in subclasses."""

    __slots__ = ("algorithm", "hard", "pcpu", "soft", "vcpu")

    def __init__(self, algorithm: Algorithm, vcpu: VCpu) -> None:
        self.algorithm = algorithm
        self.vcpu = vcpu
        self.hard = ALL_CPUS
        self.soft = ALL_CPUS
        """Masks of pCPUs, a bit each: where it may run, where it would rather run."""
        self.pcpu: PCpu | None = None
        """Where it is, was last, or is to go: several idle pCPUs let that one have it."""

    def running_time(self, now: int) -> int:
        """Return how many ns the vCPU has run, the present turn included."""
        vcpu = self.vcpu
        pcpu = self.pcpu
        if pcpu is not None and pcpu.current is vcpu and now > vcpu.since:
            return vcpu.time_running + now - vcpu.since
        return vcpu.time_running


class Algorithm(ABC):
    """A scheduler, one object for each pool of pCPUs."""

    name: ClassVar[str]
    """As Xen's command line and `xl` call it."""
    title: ClassVar[str]
    """As Xen prints it when it starts."""
    sched_id: ClassVar[int]
    """XEN_SCHEDULER_* (domctl.h)."""
    hears_wakes: ClassVar[bool] = False
    """It must be told of every wake-up, even where there is one pCPU."""
    in_order: ClassVar[bool] = False
    """It always takes the head of the run queue, so that nobody needs to ask it."""

    def __init__(self, loop: Scheduler) -> None:
        self.loop = loop
        self.pcpus: list[PCpu] = []
        self.units: list[Unit] = []
        self.ratelimit_ns = 0
        """For so long a vCPU keeps its pCPU, whoever wakes."""

    # -- pCPUs and vCPUs that come and go ---------------------------------------------------------------------------

    def add_pcpu(self, pcpu: PCpu) -> None:
        """Take a pCPU in."""
        self.pcpus.append(pcpu)
        self.pcpus.sort(key=lambda member: member.cpu_id)
        pcpu.algorithm = self
        for unit in self.units:
            self.place(unit)

    def remove_pcpu(self, pcpu: PCpu) -> None:
        """Give a pCPU up. It runs nothing any more; vCPUs that were there last look for another one."""
        self.pcpus.remove(pcpu)
        pcpu.algorithm = None
        for unit in self.units:
            if unit.pcpu is pcpu:
                unit.pcpu = None
            self.place(unit)

    @property
    def cpu_mask(self) -> int:
        """The pCPUs of the pool, a bit each."""
        mask = 0
        for pcpu in self.pcpus:
            mask |= 1 << pcpu.cpu_id
        return mask

    def make_unit(self, vcpu: VCpu) -> Unit:
        """Make what is kept of a vCPU (Xen: alloc_udata)."""
        return Unit(self, vcpu)

    def insert_unit(self, vcpu: VCpu) -> None:
        """Take a vCPU in; it does not run yet."""
        unit = self.make_unit(vcpu)
        before = vcpu.unit
        if before is not None:
            unit.hard, unit.soft = before.hard, before.soft
        vcpu.unit = unit
        vcpu.credit_end = NEVER
        vcpu.quick_until = 0
        unit.pcpu = self.pcpus[0] if len(self.pcpus) == 1 else None
        self.units.append(unit)
        self.place(unit)

    def remove_unit(self, vcpu: VCpu) -> None:
        """Forget a vCPU; it is on no pCPU and on no queue."""
        self.units.remove(vcpu.unit)
        if not self.units:
            self.retire()

    def place(self, unit: Unit) -> None:
        """Write into `VCpu.cpus` where a vCPU may run, after a change of its affinity or of the pool's pCPUs."""
        unit.vcpu.cpus = unit.hard & self.cpu_mask

    def retire(self) -> None:  # noqa: B027 - most have no timers
        """Stop all timers: the pool is given up."""

    # -- what happens to a vCPU -------------------------------------------------------------------------------------

    def wake(self, vcpu: VCpu, now: int) -> None:
        """A vCPU has come to the run queue at `now`: choose an idle pCPU, or tell a busy one (`Scheduler.tickle`).

        Where there is one pCPU, only those schedulers are told that want to (`hears_wakes`).
        """
        pcpu = self.pick_resource(vcpu.unit, now)
        if pcpu is not None:
            vcpu.unit.pcpu = pcpu

    def sleep(self, vcpu: VCpu, now: int) -> None:  # noqa: B027
        """A vCPU that is on no pCPU is stopped by somebody (once more, perhaps)."""

    def yielded(self, vcpu: VCpu) -> None:  # noqa: B027
        """A vCPU has asked to go behind the others once."""

    def descheduled(self, pcpu: PCpu, vcpu: VCpu, now: int) -> None:  # noqa: B027
        """A vCPU has left its pCPU. Not told of a vCPU that just blocks, unless `hears_wakes`."""

    # -- decisions --------------------------------------------------------------------------------------------------

    def pick_resource(self, unit: Unit, now: int) -> PCpu | None:
        """Choose the pCPU for a vCPU that wakes: an idle one that it may use, best of all the one it knows."""
        return self.idle_pcpu(unit, now)

    def idle_pcpu(self, unit: Unit, now: int) -> PCpu | None:
        """Return an idle pCPU where a vCPU may run: where it was last, else one that it likes, else any."""
        cpus = unit.vcpu.cpus
        # Those that others who wait are to go to are as good as taken.
        taken = [vcpu.unit.pcpu for vcpu in self.loop.run_queue if vcpu is not unit.vcpu]
        for mask in (cpus & unit.soft, cpus):
            best = None
            for pcpu in self.pcpus:
                if mask >> pcpu.cpu_id & 1 and pcpu.current is None and pcpu.now <= now and pcpu not in taken:
                    if pcpu is unit.pcpu:
                        return pcpu
                    best = best or pcpu
            if best is not None:
                return best
        return None

    @abstractmethod
    def pick(self, pcpu: PCpu, ready: Sequence[VCpu], now: int) -> VCpu:
        """Choose who runs on a pCPU at `now` (Xen: do_schedule), of those who may, in the order in which they came.

        `ready` has two at least: the loop takes a single one by itself. So nothing must be done here but to choose.
        """

    def exhausted(self, vcpu: VCpu, now: int) -> bool:
        """A vCPU that is to run has come to `credit_end`: give it more. True if it cannot run: then it is parked."""
        return False

    @abstractmethod
    def slice(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        """Return for how many ns from `now` on, when it gets the pCPU, a vCPU may keep it."""

    def preempts(self, pcpu: PCpu, vcpu: VCpu, now: int) -> bool:
        """Whether somebody on the run queue takes the place of `vcpu`, which has run since `VCpu.since`."""
        return False

    # -- parameters -------------------------------------------------------------------------------------------------

    def adjust(self, caller: VCpu, domain: Domain, op: Any) -> Any:
        """Do XEN_DOMCTL_scheduler_op: get or put parameters of a domain. Raises HypercallError.

        Xen leaves the structure as it is, and is content, if a scheduler has nothing to adjust.
        """
        return op

    def adjust_global(self, caller: VCpu, op: Any) -> Any:
        """Do XEN_SYSCTL_scheduler_op: get or put parameters of the scheduler, in the same way."""
        return op


class FifoOrder(Algorithm):
    """First come, first served, 10 ms at most. Not one of Xen's: it is what `--schedule` explores and replays with."""

    name = "fifo"
    title = "First come, first served"
    sched_id = 0
    in_order = True
    SLICE_NS = 10 * MS

    def pick(self, pcpu: PCpu, ready: Sequence[VCpu], now: int) -> VCpu:
        """Take the head."""
        return ready[0]

    def slice(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        """Return 10 ms."""
        return self.SLICE_NS
