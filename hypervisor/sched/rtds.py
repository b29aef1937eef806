"""rtds, deadlines for real-time guests (xen/common/sched/rt.c).

Each vCPU has a budget for every period: 4 ms of 10 ms, if nobody says otherwise. The end of its period is its deadline,
and of those that have budget left the earliest deadline runs, on any pCPU (global EDF). Who has used up its budget is
parked until the next period. With `extratime` it goes on instead, a priority level lower for each budget more, and so
only where no one of a higher level wants to run.

So where the sum of all budget / period is small enough (on one pCPU: at most 1) every vCPU gets its budget within every
period, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from hypervisor.abi import domctl, errno
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.sched.algorithm import MS, US, Algorithm, Unit

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.machine.timers import Timer
    from hypervisor.sched.pcpu import PCpu
    from hypervisor.vcpu import VCpu

DEFAULT_PERIOD, DEFAULT_BUDGET = 10 * MS, 4 * MS
MIN_PERIOD = MIN_BUDGET = 10 * US
MAX_PERIOD = (1 << 32) * US
UNINTERRUPTED = 64
"""So many vCPUs are looked at before the hypercall can be interrupted; it then says how far it got."""


class UnitRt(Unit):
    """What rtds keeps of a vCPU."""

    __slots__ = ("budget", "budget_end", "deadline", "extra", "level", "period", "timer")

    def __init__(self, algorithm: Algorithm, vcpu: VCpu) -> None:
        super().__init__(algorithm, vcpu)
        self.period, self.budget = DEFAULT_PERIOD, DEFAULT_BUDGET
        self.extra = True
        self.level = 0
        """Priority level: 0 while it lives on the budget it is owed."""
        self.deadline = 0
        """The end of its present period."""
        self.budget_end = vcpu.time_running
        """The running time at which its budget will be used up."""
        self.timer: Timer | None = None

    @property
    def urgency(self) -> tuple[int, int]:
        """What those that want to run are sorted by."""
        return self.level, self.deadline


class Rtds(Algorithm):
    """The scheduler."""

    name = "rtds"
    title = "SMP RTDS Scheduler"
    sched_id: ClassVar[int] = domctl.XEN_SCHEDULER_RTDS
    hears_wakes = True

    def make_unit(self, vcpu: VCpu) -> Unit:
        """Begin with the default period, budget, and extratime."""
        return UnitRt(self, vcpu)

    def remove_unit(self, vcpu: VCpu) -> None:
        """Forget a vCPU."""
        super().remove_unit(vcpu)
        self._disarm(cast("UnitRt", vcpu.unit))

    def retire(self) -> None:
        """Stop all timers."""
        for unit in self.units:
            self._disarm(cast("UnitRt", unit))

    # -- what happens to a vCPU -------------------------------------------------------------------------------------

    def wake(self, vcpu: VCpu, now: int) -> None:
        """Begin a new period if the last one is over; without budget wait for that; take the place of who can wait."""
        unit = cast("UnitRt", vcpu.unit)
        if now >= unit.deadline:
            self._new_period(unit, now)
        if unit.timer is None:
            self._arm(unit)
        if vcpu.time_running >= unit.budget_end:
            if not unit.extra:
                self.loop.park(vcpu)
                return
            self._extra_budget(unit)
        self._place(unit, now)

    def _place(self, unit: UnitRt, now: int) -> None:
        idle = self.idle_pcpu(unit, now)
        if idle is not None:
            unit.pcpu = idle
            return
        least = None
        for pcpu in self.pcpus:
            current = pcpu.current
            if current is not None and unit.vcpu.cpus >> pcpu.cpu_id & 1:
                urgency = cast("UnitRt", current.unit).urgency
                if urgency > unit.urgency and (least is None or urgency > least[0]):
                    least = urgency, pcpu
        if least is not None:
            self.loop.tickle(least[1], now)

    def descheduled(self, pcpu: PCpu, vcpu: VCpu, now: int) -> None:
        """See whether there is budget left."""
        unit = cast("UnitRt", vcpu.unit)
        if vcpu.time_running < unit.budget_end:
            return
        if unit.extra:
            self._extra_budget(unit)
        elif vcpu.queued and not vcpu.parked:
            self.loop.park(vcpu)
        if vcpu.queued and unit.timer is None:
            # It has come from another pool, amid its turn.
            self._new_period(unit, now)
            self._arm(unit)
            if vcpu.parked:
                self.loop.unpark(vcpu, now)

    # -- budgets ----------------------------------------------------------------------------------------------------

    def _new_period(self, unit: UnitRt, now: int) -> None:
        """Give it a full budget, until the end of the period that `now` is in; periods keep their phase."""
        passed = (now - unit.deadline) // unit.period + 1
        unit.deadline += passed * unit.period
        unit.budget_end = unit.running_time(now) + unit.budget
        unit.level = 0

    @staticmethod
    def _extra_budget(unit: UnitRt) -> None:
        unit.level += 1
        unit.budget_end = unit.vcpu.time_running + unit.budget

    def _arm(self, unit: UnitRt) -> None:
        when = unit.deadline
        unit.timer = self.loop.hv.timers.add(when, lambda: self._replenish(unit, when))

    @staticmethod
    def _disarm(unit: UnitRt) -> None:
        if unit.timer is not None:
            unit.timer.cancel()
            unit.timer = None

    def _replenish(self, unit: UnitRt, now: int) -> None:
        """Its period ends: it gets a new budget, if it wants to run; who sleeps gets it when it wakes."""
        unit.timer = None
        vcpu = unit.vcpu
        pcpu = unit.pcpu
        runs = pcpu is not None and pcpu.current is vcpu
        if not runs and not vcpu.queued:
            return
        self._new_period(unit, now)
        self._arm(unit)
        if vcpu.parked:
            self.loop.unpark(vcpu, now)
        elif runs:
            assert pcpu is not None
            self.loop.expire(pcpu, now)
        else:
            self._place(unit, now)

    # -- decisions --------------------------------------------------------------------------------------------------

    def pick(self, pcpu: PCpu, ready: Sequence[VCpu], now: int) -> VCpu:
        """Take the earliest deadline, of the highest level that there is; who has just yielded comes last."""
        last = pcpu.last
        waiting = [vcpu for vcpu in ready if vcpu is not last or not self.loop.just_yielded(vcpu, pcpu)]
        return min(waiting or ready, key=lambda vcpu: cast("UnitRt", vcpu.unit).urgency)

    def slice(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        """Return what is left of the budget."""
        unit = cast("UnitRt", vcpu.unit)
        return max(unit.budget_end - unit.running_time(now), 1)

    def preempts(self, pcpu: PCpu, vcpu: VCpu, now: int) -> bool:
        """Whether somebody who waits has an earlier deadline, or a higher level."""
        urgency = cast("UnitRt", vcpu.unit).urgency
        return any(cast("UnitRt", other.unit).urgency < urgency for other in self.loop.rivals(pcpu, now))

    # -- parameters -------------------------------------------------------------------------------------------------

    def adjust(self, caller: VCpu, domain: Domain, op: Any) -> Any:
        """Put period and budget of all vCPUs (us), or of single ones; what is got for the domain are the defaults."""
        if op.cmd == domctl.XEN_DOMCTL_SCHEDOP_getinfo:
            op.u = {"rtds": {"period": DEFAULT_PERIOD // US, "budget": DEFAULT_BUDGET // US}}
        elif op.cmd == domctl.XEN_DOMCTL_SCHEDOP_putinfo:
            wanted = op.u.rtds
            if not wanted.period or not wanted.budget:
                raise HypercallError(errno.EINVAL)
            for vcpu in domain.online_vcpus():
                unit = cast("UnitRt", vcpu.unit)
                unit.period, unit.budget = wanted.period * US, wanted.budget * US
        else:
            self._adjust_vcpus(caller, domain, op)
        return op

    def _adjust_vcpus(self, caller: VCpu, domain: Domain, op: Any) -> None:
        layout = domctl.xen_domctl_schedparam_vcpu
        array, count = op.u.v.vcpus, op.u.v.nr_vcpus
        done = 0
        while done < count:
            at = array + done * layout.size
            params = layout.unpack(copy_from_guest(caller, at, layout.size))
            vcpu = domain.vcpu(params.vcpuid)
            if vcpu is None:
                raise HypercallError(errno.EINVAL)
            unit = cast("UnitRt", vcpu.unit)
            rtds = params.u.rtds
            if op.cmd == domctl.XEN_DOMCTL_SCHEDOP_getvcpuinfo:
                flags = rtds.flags & ~domctl.XEN_DOMCTL_SCHEDRT_extra | unit.extra * domctl.XEN_DOMCTL_SCHEDRT_extra
                params.u = {"rtds": {"period": unit.period // US, "budget": unit.budget // US, "flags": flags}}
                copy_to_guest(caller, at, layout.pack(params))
            else:
                period, budget = rtds.period * US, rtds.budget * US
                if not MIN_BUDGET <= budget <= period <= MAX_PERIOD:
                    raise HypercallError(errno.EINVAL)
                unit.period, unit.budget = period, budget
                unit.extra = bool(rtds.flags & domctl.XEN_DOMCTL_SCHEDRT_extra)
            done += 1
            if done >= UNINTERRUPTED and self.loop.hv.preempt.check():
                break
        op.u = {"v": {"vcpus": array, "nr_vcpus": done, "padding": op.u.v.padding}}
