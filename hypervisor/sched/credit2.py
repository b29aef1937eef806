"""credit2, Xen's default scheduler (xen/common/sched/credit2.c; docs: xen-command-line, `sched_credit2_*`).

Who has most credit runs. Credit is time: 10 ms at first, and it burns while a vCPU runs, the slower the greater its
domain's weight. When the one that is to run has none left, everybody on that run queue gets 10 ms more: so whoever
sleeps gathers credit, 10.5 ms at most, and is served at once when it wakes.

A cap limits a domain to a part of a pCPU: a budget for every period of 10 ms, which its vCPUs share. Who has used it up
is parked until the next period.

pCPUs of a socket share a run queue, up to 16 of them. Run queues hand vCPUs to each other when their loads differ.

Credit is not kept as a number that every turn decreases. `VCpu.credit_end` says at which running time it will be used
up, so that a host on which nobody competes does no arithmetic at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from hypervisor.abi import domctl, errno, sysctl
from hypervisor.errors import HypercallError
from hypervisor.sched.algorithm import MS, NEVER, US, Algorithm, Unit
from hypervisor.sched.load import Load

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.machine.timers import Timer
    from hypervisor.sched.pcpu import PCpu
    from hypervisor.sched.scheduler import Scheduler
    from hypervisor.vcpu import VCpu

DEFAULT_WEIGHT = 256
CREDIT_INIT = 10 * MS
CREDIT_MIN = -CREDIT_INIT
MIN_TIMER = 500 * US
"""The shortest slice; the longest is CREDIT_INIT."""
CARRYOVER_MAX = MIN_TIMER
MIGRATE_RESIST = 500 * US
"""So much more credit than others must have who would be moved to another pCPU."""
CAP_PERIOD = 10 * MS
MAX_CPUS_RUNQUEUE = 16


class Domain2:
    """What credit2 keeps of a domain."""

    __slots__ = ("budget", "cap", "phase", "quota", "timer", "total", "units", "weight")

    def __init__(self) -> None:
        self.weight = DEFAULT_WEIGHT
        self.cap = 0
        """Percent of one pCPU; 0 is no limit."""
        self.total = 0
        """Budget of one period, in ns."""
        self.budget = 0
        """What no vCPU has taken of it."""
        self.quota = 0
        """What a vCPU takes at a time."""
        self.phase = 0
        """When the first period began."""
        self.units: list[Unit2] = []
        self.timer: Timer | None = None


class Unit2(Unit):
    """What credit2 keeps of a vCPU."""

    __slots__ = ("budget_end", "load", "of_domain", "queue", "zero")

    def __init__(self, algorithm: Algorithm, vcpu: VCpu, of_domain: Domain2, queue: RunQueue) -> None:
        super().__init__(algorithm, vcpu)
        self.of_domain = of_domain
        self.queue = queue
        self.zero = 0
        """The running time at which its credit is 0."""
        self.budget_end = NEVER
        """The running time at which what it has taken of its domain's budget is used up."""
        self.load = Load()

    def credit(self, now: int) -> int:
        """Return its credit, in ns of the heaviest on its run queue."""
        weight, heaviest = self.of_domain.weight, self.queue.max_weight
        left = self.zero - self.running_time(now)
        if weight != heaviest:
            left = left * heaviest // weight
        return left if left > CREDIT_MIN else CREDIT_MIN

    def waiting_credit(self) -> int:
        """Return the same of a vCPU that is on no pCPU: what most decisions are about."""
        weight, heaviest = self.of_domain.weight, self.queue.max_weight
        left = self.zero - self.vcpu.time_running
        if weight != heaviest:
            left = left * heaviest // weight
        return left if left > CREDIT_MIN else CREDIT_MIN

    def set_credit(self, credit: int, now: int) -> None:
        """Give it so much credit."""
        self.zero = self.running_time(now) + credit * self.of_domain.weight // self.queue.max_weight
        self.note_end()

    def note_end(self) -> None:
        """Tell the loop at which running time it has to ask."""
        self.vcpu.credit_end = self.zero if self.zero < self.budget_end else self.budget_end
        self.vcpu.quick_until = 0


class RunQueue:
    """The pCPUs that share a queue, and who waits there or sleeps."""

    __slots__ = ("load", "max_weight", "pcpus", "units")

    def __init__(self) -> None:
        self.pcpus: list[PCpu] = []
        self.units: list[Unit2] = []
        self.max_weight = 1
        self.load = Load()

    @property
    def mask(self) -> int:
        """Its pCPUs, a bit each."""
        return sum(1 << pcpu.cpu_id for pcpu in self.pcpus)


class Credit2(Algorithm):
    """The scheduler."""

    name = "credit2"
    title = "SMP Credit Scheduler rev2"
    sched_id: ClassVar[int] = domctl.XEN_SCHEDULER_CREDIT2

    def __init__(self, loop: Scheduler, *, max_cpus_runqueue: int = MAX_CPUS_RUNQUEUE) -> None:
        super().__init__(loop)
        self.ratelimit_ns = loop.hv.options.ratelimit_us * US
        self.max_cpus_runqueue = max_cpus_runqueue
        self.queues: list[RunQueue] = []
        self.domains: dict[Domain, Domain2] = {}

    # -- pCPUs ------------------------------------------------------------------------------------------------------

    def add_pcpu(self, pcpu: PCpu) -> None:
        """Put a pCPU into the run queue that has fewest of them, or a new one if all are full.

        What is full depends on how many pCPUs the host has, so that queues become about the same.
        """
        online = len(self.loop.pcpus)
        most = online // ((online - 1) // self.max_cpus_runqueue + 1)
        queue = min(self.queues, key=lambda queue: len(queue.pcpus), default=None)
        if queue is None or len(queue.pcpus) >= most:
            queue = RunQueue()
            self.queues.append(queue)
        queue.pcpus.append(pcpu)
        super().add_pcpu(pcpu)

    def remove_pcpu(self, pcpu: PCpu) -> None:
        """Take a pCPU out; with the last one of its queue, the vCPUs there go to other queues."""
        queue = self._queue_of(pcpu)
        queue.pcpus.remove(pcpu)
        if not queue.pcpus and len(self.queues) > 1:
            self.queues.remove(queue)
            for unit in list(queue.units):
                self._assign(unit, self._best_queue(unit))
        super().remove_pcpu(pcpu)

    def _queue_of(self, pcpu: PCpu) -> RunQueue:
        return next(queue for queue in self.queues if pcpu in queue.pcpus)

    # -- vCPUs ------------------------------------------------------------------------------------------------------

    def of_domain(self, domain: Domain) -> Domain2:
        """Return what is kept of a domain."""
        known = self.domains.get(domain)
        if known is None:
            known = self.domains[domain] = Domain2()
        return known

    def make_unit(self, vcpu: VCpu) -> Unit:
        """Put a new vCPU on the queue that has least to do, with 10 ms of credit."""
        if not self.queues:
            self.queues.append(RunQueue())
        of_domain = self.of_domain(vcpu.domain)
        unit = Unit2(self, vcpu, of_domain, self.queues[0])
        of_domain.units.append(unit)
        self.queues[0].units.append(unit)
        return unit

    def insert_unit(self, vcpu: VCpu) -> None:
        """Take a vCPU in; it does not run yet."""
        super().insert_unit(vcpu)
        unit = cast("Unit2", vcpu.unit)
        self._assign(unit, self._best_queue(unit))
        unit.set_credit(CREDIT_INIT, 0)
        if unit.of_domain.cap:
            self._share_budget(unit.of_domain)
            unit.budget_end = vcpu.time_running
            unit.note_end()

    def remove_unit(self, vcpu: VCpu) -> None:
        """Forget a vCPU, and its domain with the last one."""
        unit = cast("Unit2", vcpu.unit)
        self._stopped(vcpu, self.loop.now())
        super().remove_unit(vcpu)
        unit.queue.units.remove(unit)
        self._reweigh(unit.queue)
        of_domain = unit.of_domain
        of_domain.units.remove(unit)
        if not of_domain.units:
            if of_domain.timer is not None:
                of_domain.timer.cancel()
            self.domains.pop(vcpu.domain, None)

    def retire(self) -> None:
        """Stop the timers of capped domains."""
        for of_domain in self.domains.values():
            if of_domain.timer is not None:
                of_domain.timer.cancel()

    def place(self, unit: Unit) -> None:
        """A vCPU may run on the pCPUs of its queue; if none of those will do, it goes to another queue."""
        super().place(unit)
        if not isinstance(unit, Unit2):
            return
        if len(self.queues) > 1:
            if not unit.vcpu.cpus & unit.queue.mask:
                self._assign(unit, self._best_queue(unit))
                return
            unit.vcpu.cpus &= unit.queue.mask

    def _best_queue(self, unit: Unit2) -> RunQueue:
        """Return the queue with the least load, of those with pCPUs that the vCPU may use and, if possible, likes."""
        if len(self.queues) == 1:
            return self.queues[0]
        now = self.loop.now()
        cpus = unit.hard & self.cpu_mask
        for mask in (cpus & unit.soft, cpus):
            able = [queue for queue in self.queues if queue.mask & mask]
            if able:
                return min(
                    able, key=lambda queue: queue.load.average(now) - (queue is unit.queue) * unit.load.average(now)
                )
        return unit.queue

    def _assign(self, unit: Unit2, queue: RunQueue) -> None:
        """Move a vCPU to a run queue; its credit stays."""
        if queue is not unit.queue:
            now = self.loop.now()
            credit, before = unit.credit(now), unit.queue
            before.units.remove(unit)
            queue.units.append(unit)
            unit.queue = queue
            self._reweigh(before)
            self._reweigh(queue)
            unit.set_credit(credit, now)
            runs = unit.load.runnable
            before.load.change(now, -runs)
            queue.load.change(now, runs)
        else:
            self._reweigh(queue)
        super().place(unit)
        if len(self.queues) > 1:
            unit.vcpu.cpus &= queue.mask

    def _reweigh(self, queue: RunQueue) -> None:
        """Find the greatest weight on a queue anew: it is what credits are measured by."""
        heaviest = max((unit.of_domain.weight for unit in queue.units), default=1)
        if heaviest != queue.max_weight:
            now = self.loop.now()
            credits = [(unit, unit.credit(now)) for unit in queue.units]
            queue.max_weight = heaviest
            for unit, credit in credits:
                unit.set_credit(credit, now)

    # -- what happens to a vCPU -------------------------------------------------------------------------------------

    def wake(self, vcpu: VCpu, now: int) -> None:
        """Tell an idle pCPU, or else the one whose vCPU has least credit if this one has more (Xen: runq_tickle)."""
        unit = cast("Unit2", vcpu.unit)
        if len(self.queues) > 1 and not unit.load.runnable:
            self._assign(unit, self._best_queue(unit))
            unit.load.change(now, 1)
            unit.queue.load.change(now, 1)
        idle = self.idle_pcpu(unit, now)
        if idle is not None:
            unit.pcpu = idle
            return
        pcpu = self._victim(unit, now)
        if pcpu is not None:
            self.loop.tickle(pcpu, now)

    def _victim(self, unit: Unit2, now: int) -> PCpu | None:
        best, score = None, 0
        credit = unit.credit(now)
        for pcpu in unit.queue.pcpus:
            current = pcpu.current
            if current is None or not unit.vcpu.cpus >> pcpu.cpu_id & 1:
                continue
            other = cast("Unit2", current.unit)
            value = credit - other.credit(now) - (MIGRATE_RESIST if unit.pcpu is not pcpu else 0)
            if value > 0:
                # Where one of the two likes, or does not like, to be counts more than all credit.
                value += CREDIT_INIT * (unit.soft >> pcpu.cpu_id & 1)
                value += CREDIT_INIT * (~other.soft >> pcpu.cpu_id & 1)
            if value > score:
                best, score = pcpu, value
        return best

    def sleep(self, vcpu: VCpu, now: int) -> None:
        """A vCPU that waited is stopped."""
        self._stopped(vcpu, now)

    def descheduled(self, pcpu: PCpu, vcpu: VCpu, now: int) -> None:
        """Keep the loads of the run queues, if there are several."""
        if vcpu.pause_flags:
            self._stopped(vcpu, now)

    def _stopped(self, vcpu: VCpu, now: int) -> None:
        unit = cast("Unit2", vcpu.unit)
        if unit.load.runnable:
            unit.load.change(now, -1)
            unit.queue.load.change(now, -1)

    # -- decisions --------------------------------------------------------------------------------------------------

    def pick(self, pcpu: PCpu, ready: Sequence[VCpu], now: int) -> VCpu:
        """Choose who has most credit; who would have to move here needs some more, and who has just yielded is last."""
        best = ready[0]
        most = -NEVER
        for vcpu in ready:
            unit = vcpu.unit
            credit = unit.waiting_credit()
            if unit.pcpu is not pcpu:
                credit -= MIGRATE_RESIST
            if vcpu is pcpu.last and self.loop.just_yielded(vcpu, pcpu):
                credit = 4 * CREDIT_MIN
            if credit > most:
                best, most = vcpu, credit
        return best

    def exhausted(self, vcpu: VCpu, now: int) -> bool:
        """Take more of the domain's budget, and give credit to everybody; True if there is no budget left."""
        unit = cast("Unit2", vcpu.unit)
        if vcpu.time_running >= unit.budget_end and not self._grab_budget(unit, now):
            return True
        if vcpu.time_running >= unit.zero:
            self._reset_credit(unit, now)
            if len(self.queues) > 1:
                self._balance(unit.queue, now)
        unit.note_end()
        return False

    def _reset_credit(self, next_: Unit2, now: int) -> None:
        more = CREDIT_INIT if next_.credit(now) > CREDIT_MIN else 2 * CREDIT_INIT
        for unit in next_.queue.units:
            unit.set_credit(min(unit.credit(now) + more, CREDIT_INIT + CARRYOVER_MAX), now)

    def slice(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        """Until its credit is used up, or no more than that of the best one who waits; 0.5 (or 1) to 10 ms."""
        unit = cast("Unit2", vcpu.unit)
        queue = unit.queue
        left = unit.credit(now)
        best = max([other.unit.waiting_credit() for other in self.loop.rivals(pcpu, now)], default=0)
        if best > 0:
            left -= best
        time = left * unit.of_domain.weight // queue.max_weight if left > 0 else 0
        time = min(max(time, MIN_TIMER, self.ratelimit_ns), CREDIT_INIT)
        if unit.budget_end != NEVER:
            # What Xen forgives a capped vCPU, as its timer is no finer than 0.5 ms, it takes back from the next budget.
            time = min(time, max(unit.budget_end - unit.running_time(now), 1))
        return time

    def preempts(self, pcpu: PCpu, vcpu: VCpu, now: int) -> bool:
        """Whether somebody who waits has more credit, once the vCPU has had its 1 ms."""
        if now - vcpu.since < self.ratelimit_ns:
            return False
        credit = vcpu.unit.credit(now)
        for other in self.loop.rivals(pcpu, now):
            unit = other.unit
            if unit.waiting_credit() > credit + (MIGRATE_RESIST if unit.pcpu is not pcpu else 0):
                return True
        return False

    # -- load -------------------------------------------------------------------------------------------------------

    def _balance(self, queue: RunQueue, now: int) -> None:
        """Exchange vCPUs with the queue whose load differs most from this one's, so that the difference is least."""
        others = [other for other in self.queues if other is not queue and other.pcpus]
        if not others:
            return
        load = queue.load.average(now)
        other = max(others, key=lambda other: abs(load - other.load.average(now)))
        delta = load - other.load.average(now)
        fully = max(len(queue.pcpus), len(other.pcpus)) * Load.ONE
        # Idle pCPUs make small differences not worth the move; where all are busy, an eighth of a vCPU is.
        tolerance = Load.ONE if max(load, other.load.average(now)) < fully else Load.ONE >> 3
        if abs(delta) < tolerance:
            return
        best: tuple[Unit2 | None, Unit2 | None] = (None, None)
        least = abs(delta)
        pushes = [None, *(unit for unit in queue.units if self._may_move(unit, other))]
        pulls = [None, *(unit for unit in other.units if self._may_move(unit, queue))]
        loads = {unit: unit.load.average(now) for unit in (*pushes, *pulls) if unit is not None}
        for push in pushes:
            pushed = loads[push] if push is not None else 0
            for pull in pulls:
                left = abs(delta - 2 * pushed + 2 * (loads[pull] if pull is not None else 0))
                if left < least:
                    best, least = (push, pull), left
        if best[0] is not None:
            self._assign(best[0], other)
        if best[1] is not None:
            self._assign(best[1], queue)

    @staticmethod
    def _may_move(unit: Unit2, queue: RunQueue) -> bool:
        pcpu = unit.pcpu
        runs = pcpu is not None and pcpu.current is unit.vcpu
        return bool(unit.hard & queue.mask) and not runs

    # -- caps -------------------------------------------------------------------------------------------------------

    def _grab_budget(self, unit: Unit2, now: int) -> bool:
        """Take a share of the domain's budget, which pays first for what the vCPU has overrun; False if it is empty."""
        of_domain, running = unit.of_domain, unit.vcpu.time_running
        if of_domain.timer is None:
            self._start_period(of_domain, now)
        of_domain.budget += unit.budget_end - running
        unit.budget_end = running
        self._take_back(of_domain, unit)
        if of_domain.budget <= 0:
            return False
        taken = min(of_domain.budget, of_domain.quota)
        of_domain.budget -= taken
        unit.budget_end = running + taken
        return True

    def _take_back(self, of_domain: Domain2, taker: Unit2 | None) -> None:
        """What others have taken and do not use, as they sleep, is there for all."""
        for unit in of_domain.units:
            vcpu = unit.vcpu
            if unit is not taker and vcpu.pause_flags and not self.loop.is_on_cpu(vcpu):
                of_domain.budget += unit.budget_end - vcpu.time_running
                unit.budget_end = vcpu.time_running
                unit.note_end()

    def _replenish(self, of_domain: Domain2, when: int) -> None:
        """A new period begins: the budget is full again, less what was overrun; who is parked goes on."""
        self._take_back(of_domain, None)
        is_used = of_domain.budget < of_domain.total
        of_domain.budget = min(of_domain.budget + of_domain.total, of_domain.total)
        of_domain.timer = None
        if is_used or any(unit.vcpu.queued or self.loop.is_on_cpu(unit.vcpu) for unit in of_domain.units):
            self._start_period(of_domain, when)
        if of_domain.budget > 0:
            self._unpark(of_domain, when)

    def _start_period(self, of_domain: Domain2, now: int) -> None:
        """Periods keep their phase; while nobody runs there is no timer, and nobody can tell."""
        end = now + CAP_PERIOD - (now - of_domain.phase) % CAP_PERIOD
        of_domain.timer = self.loop.hv.timers.add(end, lambda: self._replenish(of_domain, end))

    def _unpark(self, of_domain: Domain2, now: int) -> None:
        for unit in of_domain.units:
            if unit.vcpu.parked:
                self.loop.unpark(unit.vcpu, now)

    def _share_budget(self, of_domain: Domain2) -> None:
        of_domain.quota = max(of_domain.total // max(len(of_domain.units), 1), MIN_TIMER)

    # -- parameters -------------------------------------------------------------------------------------------------

    def adjust(self, caller: VCpu, domain: Domain, op: Any) -> Any:
        """Get or put the weight (0: leave it) and the cap of a domain."""
        of_domain = self.of_domain(domain)
        if op.cmd == domctl.XEN_DOMCTL_SCHEDOP_putinfo:
            weight, cap = op.u.credit2.weight, op.u.credit2.cap
            if weight:
                self.set_weight(of_domain, weight)
            if cap > 100 * len(of_domain.units):
                raise HypercallError(errno.EINVAL)
            self.set_cap(of_domain, cap)
        elif op.cmd == domctl.XEN_DOMCTL_SCHEDOP_getinfo:
            op.u = {"credit2": {"weight": of_domain.weight, "cap": of_domain.cap}}
        else:
            raise HypercallError(errno.EINVAL)
        return op

    def set_weight(self, of_domain: Domain2, weight: int) -> None:
        """Change how fast a domain's credit burns; the credit that its vCPUs have stays."""
        now = self.loop.now()
        credits = [(unit, unit.credit(now)) for unit in of_domain.units]
        of_domain.weight = weight
        for unit, credit in credits:
            unit.set_credit(credit, now)
        for queue in self.queues:
            self._reweigh(queue)

    def set_cap(self, of_domain: Domain2, cap: int) -> None:
        """Limit a domain to so many percent of a pCPU; 0 ends that."""
        now = self.loop.now()
        before, of_domain.cap = of_domain.cap, cap
        of_domain.total = CAP_PERIOD * cap // 100
        if cap:
            self._share_budget(of_domain)
            if not before:
                of_domain.budget = of_domain.total
                of_domain.phase = now
                self._start_period(of_domain, now)
                for unit in of_domain.units:
                    unit.budget_end = unit.running_time(now)
                    unit.note_end()
                    if unit.pcpu is not None and unit.pcpu.current is unit.vcpu:
                        self.loop.expire(unit.pcpu, now)
        elif before:
            if of_domain.timer is not None:
                of_domain.timer.cancel()
                of_domain.timer = None
            for unit in of_domain.units:
                unit.budget_end = NEVER
                unit.note_end()
            self._unpark(of_domain, now)

    def adjust_global(self, caller: VCpu, op: Any) -> Any:
        """Get or put for how many us a vCPU runs at least; 0 switches that off."""
        if op.cmd == sysctl.XEN_SYSCTL_SCHEDOP_putinfo:
            wanted = op.u.sched_credit2.ratelimit_us
            if wanted and not sysctl.XEN_SYSCTL_SCHED_RATELIMIT_MIN <= wanted <= sysctl.XEN_SYSCTL_SCHED_RATELIMIT_MAX:
                raise HypercallError(errno.EINVAL)
            self.ratelimit_ns = wanted * US
        op.u = {"sched_credit2": {"ratelimit_us": self.ratelimit_ns // US}}
        return op
