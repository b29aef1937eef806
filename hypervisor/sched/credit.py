"""credit, Xen's scheduler before credit2 (xen/common/sched/credit.c).

Every 30 ms the pool hands out 30 ms of credit for each of its pCPUs, to domains that want to run, by weight. Running
burns it, and every 10 ms there is a tick. Who has credit left is UNDER, who has run into debt is OVER, and who wakes up
and is not in debt is BOOST until the next tick. Each pCPU takes the best of its own queue, first come, first served
among equals; before it runs somebody who is OVER, or nobody, it looks for somebody better at the others' (work
stealing). A slice is 30 ms.

Until 2009 the one who happened to run at a tick paid for all the 10 ms (`Sampled`). Who sleeps at every tick pays
nothing: it can take 95 % of a pCPU. Since then everybody pays for the time that it has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from hypervisor.abi import domctl, errno, sysctl
from hypervisor.errors import HypercallError
from hypervisor.sched.algorithm import MS, US, Algorithm, Unit

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.machine.timers import Timer
    from hypervisor.sched.pcpu import PCpu
    from hypervisor.sched.scheduler import Scheduler
    from hypervisor.vcpu import VCpu

DEFAULT_WEIGHT = 256
DEFAULT_SLICE_MS = 30
TICKS_PER_SLICE = 3
KEEP_CAP = 0xFFFF
"""In a put: leave the cap as it is."""
BOOST, UNDER, OVER = 0, -1, -2


class Domain1:
    """What credit keeps of a domain."""

    __slots__ = ("cap", "units", "weight")

    def __init__(self) -> None:
        self.weight = DEFAULT_WEIGHT
        self.cap = 0
        """Percent of one pCPU; 0 is no limit."""
        self.units: list[Unit1] = []


class Unit1(Unit):
    """What credit keeps of a vCPU."""

    __slots__ = ("active", "capped", "credit", "of_domain", "paid", "priority")

    def __init__(self, algorithm: Algorithm, vcpu: VCpu, of_domain: Domain1) -> None:
        super().__init__(algorithm, vcpu)
        self.of_domain = of_domain
        self.credit = 0
        """In ns."""
        self.paid = vcpu.time_running
        """The running time for which it has paid."""
        self.priority = UNDER
        self.active = False
        """It gets credit: it has been seen to run, and has not saved up a whole slice since."""
        self.capped = False
        """It has used up what its domain's cap allows: it is parked, or will be when it leaves its pCPU."""


class Credit(Algorithm):
    """The scheduler."""

    name = "credit"
    title = "SMP Credit Scheduler"
    sched_id: ClassVar[int] = domctl.XEN_SCHEDULER_CREDIT
    hears_wakes = True
    sampled: ClassVar[bool] = False

    def __init__(self, loop: Scheduler) -> None:
        super().__init__(loop)
        self.ratelimit_ns = loop.hv.options.ratelimit_us * US
        self.slice_ns = DEFAULT_SLICE_MS * MS
        self.migration_delay_us = 0
        self.domains: dict[Domain, Domain1] = {}
        self._timer: Timer | None = None
        self._ticks = 0
        self._balance = 0

    # -- vCPUs that come and go -------------------------------------------------------------------------------------

    def of_domain(self, domain: Domain) -> Domain1:
        """Return what is kept of a domain."""
        return self.domains.setdefault(domain, Domain1())

    def make_unit(self, vcpu: VCpu) -> Unit:
        """Begin without credit, and without debt."""
        of_domain = self.of_domain(vcpu.domain)
        unit = Unit1(self, vcpu, of_domain)
        of_domain.units.append(unit)
        return unit

    def remove_unit(self, vcpu: VCpu) -> None:
        """Forget a vCPU, and its domain with the last one."""
        super().remove_unit(vcpu)
        of_domain = cast("Unit1", vcpu.unit).of_domain
        of_domain.units.remove(vcpu.unit)
        if not of_domain.units:
            self.domains.pop(vcpu.domain, None)

    def retire(self) -> None:
        """Stop ticking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- what happens to a vCPU -------------------------------------------------------------------------------------

    def wake(self, vcpu: VCpu, now: int) -> None:
        """Boost who is not in debt, and find a pCPU for it: one that is idle, or has something of less priority."""
        unit = cast("Unit1", vcpu.unit)
        if self._timer is None:
            self._arm(now)
        if unit.capped:
            self.loop.park(vcpu)
            return
        if unit.priority == UNDER:
            unit.priority = BOOST
        idle = self.idle_pcpu(unit, now)
        if idle is not None:
            unit.pcpu = idle
        elif unit.pcpu is None or not vcpu.cpus >> unit.pcpu.cpu_id & 1:
            unit.pcpu = self._shortest(vcpu)
        if idle is None and unit.pcpu is not None:
            current = unit.pcpu.current
            if current is not None and unit.priority > current.unit.priority:
                self.loop.tickle(unit.pcpu, now)

    def _shortest(self, vcpu: VCpu) -> PCpu | None:
        """Return the pCPU for which fewest wait."""
        able = [pcpu for pcpu in self.pcpus if vcpu.cpus >> pcpu.cpu_id & 1]
        places = [other.unit.pcpu for other in self.loop.run_queue]
        return min(able, key=lambda pcpu: places.count(pcpu) + (pcpu.current is not None), default=None)

    def descheduled(self, pcpu: PCpu, vcpu: VCpu, now: int) -> None:
        """Let it pay for its turn."""
        unit = cast("Unit1", vcpu.unit)
        self._burn(unit, now)
        if unit.capped and vcpu.queued and not vcpu.parked:
            self.loop.park(vcpu)

    # -- decisions --------------------------------------------------------------------------------------------------

    def pick(self, pcpu: PCpu, ready: Sequence[VCpu], now: int) -> VCpu:
        """Take the best of the pCPU's own queue; from another one only who is better, if that is not UNDER at least."""
        own = theirs = None
        for vcpu in ready:
            unit = cast("Unit1", vcpu.unit)
            yielded = vcpu is pcpu.last and self.loop.just_yielded(vcpu, pcpu)
            rank = 2 * unit.priority - (4 if yielded else 0)
            if unit.pcpu is pcpu or unit.pcpu is None:
                if own is None or rank > own[0]:
                    own = rank, vcpu
            elif theirs is None or rank > theirs[0]:
                theirs = rank, vcpu
        if own is not None and (theirs is None or own[0] > 2 * OVER or theirs[0] <= own[0]):
            return own[1]
        assert theirs is not None
        return theirs[1]

    def slice(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        """Return 30 ms, or what was set."""
        return self.slice_ns

    def preempts(self, pcpu: PCpu, vcpu: VCpu, now: int) -> bool:
        """Whether somebody of higher priority waits for this pCPU, and the vCPU has had its 1 ms."""
        if now - vcpu.since < self.ratelimit_ns:
            return False
        priority = vcpu.unit.priority
        rivals = self.loop.rivals(pcpu, now)
        return any(other.unit.priority > priority for other in rivals if other.unit.pcpu in (pcpu, None))

    # -- accounting -------------------------------------------------------------------------------------------------

    def _arm(self, now: int) -> None:
        """Ticks are at multiples of their period: while nobody runs there are none, and nobody can tell."""
        tick = self.slice_ns // TICKS_PER_SLICE
        when = now - now % tick + tick
        self._ticks = when // tick
        self._timer = self.loop.hv.timers.add(when, lambda: self._tick(when))

    def _tick(self, now: int) -> None:
        busy = [pcpu for pcpu in self.pcpus if pcpu.current is not None]
        for pcpu in busy:
            assert pcpu.current is not None
            unit = cast("Unit1", pcpu.current.unit)
            if self.sampled:
                unit.credit -= self.slice_ns // TICKS_PER_SLICE
            else:
                self._burn(unit, now)
            unit.active = True
            if unit.priority == BOOST:
                unit.priority = UNDER
        if self._ticks % TICKS_PER_SLICE == 0:
            self._hand_out(now)
        if busy or any(unit.active or unit.vcpu.queued for unit in cast("list[Unit1]", self.units)):
            self._arm(now)
        else:
            self._timer = None

    def _burn(self, unit: Unit1, now: int) -> None:
        """Let a vCPU pay for what it has run since it paid last."""
        running = unit.running_time(now)
        if not self.sampled and running > unit.paid:
            unit.credit -= running - unit.paid
            # Xen's activates only who is seen at a tick. Then one that never is would not be ranked again: in debt for
            # ever, and nobody's concern.
            unit.active = True
        unit.paid = running

    def _hand_out(self, now: int) -> None:
        """Give credit to the domains that want to run, and priorities by what they have then (csched_acct)."""
        wanting = [
            (of_domain, [unit for unit in of_domain.units if unit.active]) for of_domain in self.domains.values()
        ]
        wanting = [(of_domain, units) for of_domain, units in wanting if units]
        weight_total = weight_left = sum(of_domain.weight * len(units) for of_domain, units in wanting)
        total = len(self.pcpus) * self.slice_ns
        balance = 0
        # Those with caps first: what they may not have is left for the others.
        for of_domain, units in sorted(wanting, key=lambda item: not item[0].cap):
            count = len(units)
            weight = of_domain.weight * count
            weight_left -= weight
            peak = count * self.slice_ns
            if self._balance < 0:
                peak += -self._balance * weight // weight_total
            limit = of_domain.cap * self.slice_ns // 100
            if limit and limit < peak:
                peak = limit
            fair = total * weight // weight_total
            if fair > peak:
                if weight_left:
                    total += (fair - peak) * weight_total // weight_left
                fair = peak
            for unit in units:
                unit.credit += fair // count
                self._rank(unit, limit // count, now)
                balance += unit.credit
        self._balance = balance

    def _rank(self, unit: Unit1, limit: int, now: int) -> None:
        """Find the priority of a vCPU, after it has got its credit; `limit` is its share of the cap, or 0."""
        if unit.credit < 0:
            unit.priority = OVER
            if limit and unit.credit < -limit:
                self._park(unit, now)
            # Debts have an end.
            unit.credit = max(unit.credit, -self.slice_ns)
        else:
            unit.priority = UNDER
            if unit.capped:
                unit.capped = False
                if unit.vcpu.parked:
                    self.loop.unpark(unit.vcpu, now)
            if unit.credit > self.slice_ns:
                # It does not want so much. When it is seen to run again it starts a little ahead.
                unit.active = False
                unit.credit //= 2

    def _park(self, unit: Unit1, now: int) -> None:
        unit.capped = True
        vcpu = unit.vcpu
        if vcpu.parked:
            return
        if unit.pcpu is not None and unit.pcpu.current is vcpu:
            self.loop.expire(unit.pcpu, now)
        elif vcpu.queued:
            self.loop.park(vcpu)

    # -- parameters -------------------------------------------------------------------------------------------------

    def adjust(self, caller: VCpu, domain: Domain, op: Any) -> Any:
        """Get or put the weight (0: leave it) and the cap (0xffff: leave it) of a domain."""
        of_domain = self.of_domain(domain)
        if op.cmd == domctl.XEN_DOMCTL_SCHEDOP_putinfo:
            if op.u.credit.weight:
                of_domain.weight = op.u.credit.weight
            if op.u.credit.cap != KEEP_CAP:
                of_domain.cap = op.u.credit.cap
        elif op.cmd == domctl.XEN_DOMCTL_SCHEDOP_getinfo:
            op.u = {"credit": {"weight": of_domain.weight, "cap": of_domain.cap}}
        else:
            raise HypercallError(errno.EINVAL)
        return op

    def adjust_global(self, caller: VCpu, op: Any) -> Any:
        """Get or put the slice, the rate limit and the delay of migrations."""
        if op.cmd == sysctl.XEN_SYSCTL_SCHEDOP_putinfo:
            wanted = op.u.sched_credit
            limit = wanted.ratelimit_us
            if (
                not sysctl.XEN_SYSCTL_CSCHED_TSLICE_MIN <= wanted.tslice_ms <= sysctl.XEN_SYSCTL_CSCHED_TSLICE_MAX
                or (
                    limit
                    and not sysctl.XEN_SYSCTL_SCHED_RATELIMIT_MIN <= limit <= sysctl.XEN_SYSCTL_SCHED_RATELIMIT_MAX
                )
                or limit * US > wanted.tslice_ms * MS
                or wanted.vcpu_migr_delay_us > sysctl.XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US
            ):
                raise HypercallError(errno.EINVAL)
            self.slice_ns = wanted.tslice_ms * MS
            self.ratelimit_ns = limit * US
            self.migration_delay_us = wanted.vcpu_migr_delay_us
        op.u = {
            "sched_credit": {
                "tslice_ms": self.slice_ns // MS,
                "ratelimit_us": self.ratelimit_ns // US,
                "vcpu_migr_delay_us": self.migration_delay_us,
            }
        }
        return op


class SampledCredit(Credit):
    """credit as it was until 2009: the one that runs at a tick pays for it, and nobody has a rate limit."""

    name = "credit-sampled"
    title = "SMP Credit Scheduler, sampled"
    sampled = True

    def __init__(self, loop: Scheduler) -> None:
        super().__init__(loop)
        self.ratelimit_ns = 0
