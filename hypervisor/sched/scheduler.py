"""The pCPU loop: physical CPUs take vCPUs from the run queue and run them until they stop.

The host is one thread, so pCPUs are simulated: each has its own time, and the one that is furthest behind acts next.
Which vCPU runs, how long at most, and who takes whose place is for the scheduler to say (`algorithm.py`). A vCPU runs
from one yield to the next; what it costs is `cost.hypercall` per hypercall, `cost.run` for the stretch
itself, `cost.switch` when the pCPU turned to another vCPU, and the nanoseconds of computing it asked for. In real time
the same loop follows the wall clock, and a pCPU whose guest computes is simply busy until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop
from itertools import repeat
from typing import TYPE_CHECKING

from hypervisor.abi import errno
from hypervisor.abi.tracepoints import DESCHEDULE, SCHEDULE, WAKE
from hypervisor.errors import HypercallError
from hypervisor.sched.algorithm import ALL_CPUS, NEVER, Algorithm
from hypervisor.sched.costs import Costs
from hypervisor.sched.cpupool import CpuPools
from hypervisor.sched.pcpu import PCpu
from hypervisor.tape import FULL, LOOK, TIME
from hypervisor.vcpu import AWAKE, NO_WORK, VPF_BLOCKED, VPF_POLLING

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.sched.policy import Policy
    from hypervisor.vcpu import VCpu

UPCALL_PENDING, UPCALL_MASKED, UPCALL_ANY = 1, 0x100, 0xFF
"""Both flags of a vcpu_info as one number: an upcall is pending, as Xen says it; masked; any value of pending."""
UPCALL_ENTERED = UPCALL_MASKED | UPCALL_PENDING

MACHINE_STEP_NS = 1 << 16
"""So much of machine code's time counts as another step: the emulator needs some tenths of a millisecond for it."""


class Scheduler:
    """The run queue and the loop that drains it.

    `algorithm` makes the scheduler of the pool that all pCPUs are in at first. A `policy` overrules it: to repeat a
    run, or to see another one.
    """

    def __init__(
        self,
        hv: Hypervisor,
        nr_pcpus: int,
        policy: Policy | None,
        costs: Costs,
        algorithm: Callable[[Scheduler], Algorithm],
    ) -> None:
        self.hv = hv
        self.policy = policy
        self.costs = costs
        self._clock, self._cost_hypercall = hv.clock, costs.hypercall
        self.pcpus = [PCpu(cpu_id) for cpu_id in range(nr_pcpus)]
        self.run_queue: deque[VCpu] = deque()
        self.runstate_areas: dict[VCpu, Callable[[VCpu, int], None]] = {}
        """Whom to tell when a vCPU leaves its processor: those whose guests have registered a runstate area."""
        self.running: VCpu | None = None
        """The vCPU whose code executes right now."""
        self.hypercalls_before = 0
        """`running.hypercalls` when it was resumed: what it did since has not been charged yet."""
        self.retired = 0
        """Nanoseconds that the vCPUs of domains that are gone have run."""
        self._yielded: dict[VCpu, int] = {}
        """Who yielded last when. Who is on the run queue since that time is there because of it."""
        self.pollers: set[VCpu] = set()
        """vCPUs that wait in SCHEDOP_poll: nearly always there are none, and an event need not look for them."""
        self.overridden: dict[VCpu, int] = {}
        """The hard affinity that vCPUs had before SCHEDOP_pin_override pinned them."""
        self.algorithm = algorithm(self)
        """The scheduler of the pool with number 0."""
        self.pools = CpuPools(self, self.algorithm)
        for pcpu in self.pcpus:
            self.algorithm.add_pcpu(pcpu)
        self._single = nr_pcpus == 1
        self._tells_wakes = not self._single or self.algorithm.hears_wakes
        self._takes_head = self.algorithm.in_order and (policy is None or policy.in_order)
        is_quiet = hv.trace is None or hv.tape is not None
        self.plain = not self._tells_wakes and not hv.clock.real and is_quiet
        """Queueing a vCPU is no more than what `two_level.set_pending` writes out."""
        self.charged = 0
        """Nanoseconds that the present stretch is charged for what costs extra (`Costs.has_extras`)."""
        self._quick = self.plain and (policy is None or policy.in_order) and not costs.has_extras
        if costs.has_extras:
            self.now = self._now_with_charges  # type: ignore[method-assign]
        elif not hv.clock.real:
            self.now = self._make_now()  # type: ignore[method-assign]

    # -- time -----------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """Return the current time in ns: inside a stretch of guest code it moves with every hypercall."""
        clock = self._clock
        if clock.real:
            return clock.read()
        vcpu = self.running
        if vcpu is None:
            return clock.now
        return clock.now + (vcpu.hypercalls - self.hypercalls_before) * self._cost_hypercall + vcpu.spent

    def _make_now(self) -> Callable[[], int]:
        """Make what `now` is in virtual time, where nothing costs extra: everything that has a duration asks for it."""
        clock, cost_hypercall = self._clock, self._cost_hypercall

        def now() -> int:
            vcpu = self.running
            if vcpu is None:
                return clock.now
            return clock.now + (vcpu.hypercalls - self.hypercalls_before) * cost_hypercall + vcpu.spent

        return now

    def _now_with_charges(self) -> int:
        """Return the current time where some things cost extra: what `now` is then."""
        if self.running is None or self.hv.clock.real:
            return Scheduler.now(self)
        return Scheduler.now(self) + self.charged

    def idle_time(self, cpu_id: int) -> int:
        """Return how many nanoseconds a pCPU has had nothing to do.

        If it is the only one, it did what all vCPUs together did: nobody needs to keep count.
        """
        busy = self.pcpus[cpu_id].busy
        if self._single:
            domains = self.hv.domains.values()
            busy = self.retired + sum(vcpu.time_running for domain in domains for vcpu in domain.online_vcpus())
        return max(self.now() - busy, 0)

    # -- vCPUs that come and go -----------------------------------------------------------------------------------

    def insert(self, vcpu: VCpu) -> None:
        """Take note of a new vCPU, which is down."""
        self.algorithm_of(vcpu.domain).insert_unit(vcpu)

    def remove(self, vcpu: VCpu) -> None:
        """Forget a vCPU of a dying domain for good."""
        vcpu.unit.algorithm.remove_unit(vcpu)

    def algorithm_of(self, domain: Domain) -> Algorithm:
        """Return the scheduler of the pool that a domain is in."""
        return self.pools.of(domain).algorithm

    # -- waking and sleeping --------------------------------------------------------------------------------------

    def wake(self, vcpu: VCpu) -> None:
        """End the vCPU's wait for an event; put it on the run queue unless something else stops it."""
        if vcpu.poll_ports is not None:
            self.end_poll(vcpu)
        blocked = vcpu.pause_flags & VPF_BLOCKED
        vcpu.pause_flags = flags = vcpu.pause_flags & ~(VPF_BLOCKED | VPF_POLLING)
        if flags:
            if blocked and not self.is_on_cpu(vcpu):
                # It is not blocked any more, but offline.
                vcpu.since = max(self.now(), vcpu.since)
        elif not vcpu.queued:
            self.enqueue(vcpu)

    def enqueue(self, vcpu: VCpu) -> None:
        """Put a vCPU that nothing stops any more at the tail of the run queue."""
        hv = self.hv
        vcpu.queued = True
        # With one pCPU nobody can run before the present stretch is over, so its exact moment does not matter.
        vcpu.ready_at = hv.clock.now if self._single else max(self.now(), vcpu.since)
        self.run_queue.append(vcpu)
        if hv.tape is not None:
            hv.tape.words.append(vcpu.codes.wake)
        elif hv.trace is not None:
            hv.trace(vcpu.domain.domid, vcpu.vcpu_id, WAKE)
        if self._tells_wakes:
            vcpu.unit.algorithm.wake(vcpu, vcpu.ready_at)
        if hv.sleeping:
            hv.interrupt_idle()

    def unpause(self, vcpu: VCpu, flag: int) -> None:
        """Clear one reason (`VPF_*`) why a vCPU does not run; queue it if that was the last."""
        vcpu.pause_flags &= ~flag
        if not vcpu.pause_flags and not vcpu.queued and not self.is_on_cpu(vcpu):
            now = max(self.now(), vcpu.since)
            vcpu.time_offline += now - vcpu.since
            vcpu.since = now
            self.enqueue(vcpu)

    def is_on_cpu(self, vcpu: VCpu) -> bool:
        """Whether a pCPU is executing this vCPU, or has only turned aside between two stretches of it."""
        return vcpu is self.running or any(pcpu.current is vcpu for pcpu in self.pcpus)

    def stop(self, vcpu: VCpu, flag: int) -> None:
        """Give a vCPU a reason (`VPF_*`) not to run. One that runs is taken off its pCPU before its next stretch."""
        vcpu.pause_flags |= flag
        on_cpu = self.is_on_cpu(vcpu)
        if vcpu.queued:
            self._dequeue(vcpu)
            if not on_cpu:
                now = max(self.now(), vcpu.ready_at)
                vcpu.time_runnable += now - vcpu.ready_at
                vcpu.since = now
        if not on_cpu:
            vcpu.unit.algorithm.sleep(vcpu, self.now())

    def _dequeue(self, vcpu: VCpu) -> None:
        """Take a vCPU off the run queue: only what may run is on it."""
        vcpu.queued = False
        if vcpu.parked:
            vcpu.parked = False
        else:
            self.run_queue.remove(vcpu)

    # -- what a scheduler asks of the loop ------------------------------------------------------------------------

    def park(self, vcpu: VCpu) -> None:
        """Keep a vCPU that is on the run queue from running until `unpark`. It counts as waiting for a processor."""
        self.run_queue.remove(vcpu)
        vcpu.parked = True

    def unpark(self, vcpu: VCpu, now: int) -> None:
        """Let a parked vCPU run again."""
        vcpu.parked = False
        if vcpu.ready_at < now:
            # Nobody may find that it could have run before.
            vcpu.time_runnable += now - vcpu.ready_at
            vcpu.ready_at = now
        self.run_queue.append(vcpu)
        if self._tells_wakes:
            vcpu.unit.algorithm.wake(vcpu, now)
        if self.hv.sleeping:
            self.hv.interrupt_idle()

    def tickle(self, pcpu: PCpu, now: int) -> None:
        """Let a pCPU decide at `now`, or soon after, whether its vCPU goes on.

        One that does nothing but let a guest compute can be stopped in the past: nobody has seen it since.
        """
        vcpu = pcpu.current
        if vcpu is not None and vcpu is not self.running and pcpu.algorithm is not None:
            self._cut(pcpu, vcpu, max(now, vcpu.since + pcpu.algorithm.ratelimit_ns))

    def expire(self, pcpu: PCpu, now: int) -> None:
        """End the turn of the vCPU on a pCPU, at `now` if it only computes, else after its stretch."""
        vcpu = pcpu.current
        if vcpu is not None:
            if vcpu is not self.running:
                self._cut(pcpu, vcpu, now)
            pcpu.slice_of, pcpu.slice_end = vcpu.since, now

    def kick(self, vcpu: VCpu) -> None:
        """An upcall is due: the vCPU wakes, or is interrupted if it computes on another pCPU (Xen: vcpu_kick)."""
        if vcpu.pause_flags & VPF_BLOCKED:
            self.wake(vcpu)
        elif not self._single and vcpu is not self.running:
            pcpu = vcpu.unit.pcpu
            if pcpu is not None and pcpu.current is vcpu:
                self._cut(pcpu, vcpu, self.now())

    def _cut(self, pcpu: PCpu, vcpu: VCpu, now: int) -> None:
        """End the computing that a pCPU is at by `now` at the latest."""
        if pcpu.computes_from >= 0:
            now = max(now, pcpu.computes_from)
            if now < pcpu.now:
                vcpu.compute_left += pcpu.now - now
                vcpu.quick_until = 0
                pcpu.now = now

    def waiting(self, pcpu: PCpu, now: int) -> Sequence[VCpu]:
        """Return who could run on a pCPU at `now` and does not, in the order in which they came."""
        if self._single:
            return self.run_queue
        bit = 1 << pcpu.cpu_id
        return [vcpu for vcpu in self.run_queue if vcpu.ready_at <= now and vcpu.cpus & bit]

    def rivals(self, pcpu: PCpu, now: int) -> Sequence[VCpu]:
        """Return who waits for this pCPU at `now`, and is not about to go to another one that is idle."""
        waiting = self.waiting(pcpu, now)
        if self._single or not waiting:
            return waiting
        rivals = []
        for vcpu in waiting:
            place = vcpu.unit.pcpu
            if place is None or place is pcpu or place.current is not None or not vcpu.cpus >> place.cpu_id & 1:
                rivals.append(vcpu)
        return rivals

    def just_yielded(self, vcpu: VCpu, pcpu: PCpu) -> bool:
        """Whether a vCPU waits because it has yielded a pCPU, on which nobody has run since."""
        return self._yielded.get(vcpu) == vcpu.ready_at == pcpu.now

    def turn_ends(self, vcpu: VCpu) -> int:
        """Return until when the vCPU that runs may go on before the scheduler is asked again."""
        pcpu = vcpu.unit.pcpu
        now = self.now()
        # (Nowhere is it after it has moved itself to another pool, or taken its pCPU out of this one.)
        return now if pcpu is None else self._turn_ends(pcpu, vcpu, now)

    def _turn_ends(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        end = self._slice_end(pcpu, vcpu)
        if self.run_queue and pcpu.algorithm is not None:
            rate_end = vcpu.since + pcpu.algorithm.ratelimit_ns
            if now < rate_end < end:
                return rate_end
        return end

    def _slice_end(self, pcpu: PCpu, vcpu: VCpu) -> int:
        since = vcpu.since
        if pcpu.slice_of != since:
            algorithm = pcpu.algorithm
            pcpu.slice_of = since
            pcpu.slice_end = since if algorithm is None else since + algorithm.slice(pcpu, vcpu, since)
        return pcpu.slice_end

    # -- waking and sleeping, continued ---------------------------------------------------------------------------

    @property
    def progress(self) -> int:
        """A number that grows with every stretch of guest code: a watchdog sees by it whether the loop still turns."""
        return sum(pcpu.now for pcpu in self.pcpus)

    def end_poll(self, vcpu: VCpu) -> None:
        """Forget what a vCPU polls for, if it does."""
        if vcpu.poll_ports is None:
            return
        vcpu.poll_ports = None
        vcpu.domain.pollers -= 1
        self.pollers.discard(vcpu)
        if vcpu.poll_timer is not None:
            vcpu.poll_timer.cancel()
            vcpu.poll_timer = None

    def forget(self, vcpu: VCpu) -> None:
        """Take a vCPU of a dying domain off the queue and the pCPUs."""
        if vcpu.poll_ports is not None:
            self.end_poll(vcpu)
        if vcpu.queued:
            self._dequeue(vcpu)
        self._yielded.pop(vcpu, None)
        self.overridden.pop(vcpu, None)
        for pcpu in self.pcpus:
            if pcpu.current is vcpu:
                pcpu.current = None
            if pcpu.last is vcpu:
                pcpu.last = None

    # -- the loop -------------------------------------------------------------------------------------------------

    def drain(self, steps: int) -> int:
        """Run up to `steps` stretches of guest code and all timers that come due in between.

        A long stretch of machine code counts as several: whoever calls wants to be asked again soon.

        Returns 0 if there is more to do now; else the time of the next thing to do (`NEVER` if only an interrupt from
        outside can bring more). In real time that is a wall-clock time to sleep until.
        """
        tape = self.hv.tape
        if tape is None:
            return self._drain(steps)
        tape.resume()
        due = self._drain(steps)
        tape.pause(self.hv.now())
        return due

    def _drain(self, steps: int) -> int:  # noqa: C901 - see below
        """Do what `drain` does.

        Every notification from one domain to another passes here, so it is written out in one piece, on local names.
        What happens most (an event wakes a vCPU, which runs and blocks again) is done by `_drain_quickly` where that
        is possible; here is what remains, with all cases.
        """
        hv = self.hv
        clock, timers, trace, tape = hv.clock, hv.machine.timers, hv.trace, hv.tape
        pcpus, queue = self.pcpus, self.run_queue
        pcpu = pcpus[0]
        single, real = self._single, clock.real
        cost_run, cost_hypercall, cost_switch = self.costs.run, self.costs.hypercall, self.costs.switch
        quick = self._quick
        while steps and not hv.stopped:
            if quick and pcpu.current is None:
                steps = self._drain_quickly(steps)
                if not steps or hv.stopped:
                    break
            steps -= 1
            # Which pCPU acts next, and when?
            if not single:
                pcpu = min(pcpus, key=self._next_start)
            vcpu = pcpu.current
            now = pcpu.now
            if vcpu is None:
                ready = NEVER if not queue else queue[0].ready_at if single else self._next_ready(pcpu)
                if ready == NEVER:
                    if self._fire_timer(NEVER):
                        continue
                    return timers.next_deadline
                if ready > now:
                    now = ready
            if timers.next_deadline <= now:
                if not self._fire_timer(now):
                    return timers.next_deadline
                continue
            if real:
                if now > clock.read():
                    return now
                now = clock.now
            elif now > clock.now:
                clock.now = now
            # Which vCPU?
            if vcpu is None:
                vcpu = self._choose(pcpu, now)
                algorithm = vcpu.unit.algorithm
                if vcpu.time_running >= vcpu.credit_end and algorithm.exhausted(vcpu, now):
                    vcpu.parked = True
                    continue
                vcpu.queued = False
                pcpu.slice_of = -1
                vcpu.time_runnable += now - vcpu.ready_at
                vcpu.since = now
                if trace is not None:
                    # What the one before did is in the past: it must not move the time of this record.
                    self.running = None
                    trace(vcpu.domain.domid, vcpu.vcpu_id, SCHEDULE, pcpu.cpu_id)
                if now >= vcpu.next_service:
                    hv.time.schedule_in(vcpu, now)
                # (It can use up its credit no faster than time goes by.)
                vcpu.quick_until = min(vcpu.next_service, now + vcpu.credit_end - vcpu.time_running)
                if pcpu.last is not vcpu:
                    pcpu.last = vcpu
                    now += cost_switch
                    if not single:
                        vcpu.processor = pcpu.cpu_id
                        vcpu.unit.pcpu = pcpu
            elif vcpu.pause_flags or self._must_leave(pcpu, vcpu, now):
                # Somebody has stopped it between two of its stretches, or its turn is over. (What any vCPU did before
                # is in the past: whether this is the same call of `drain` must not move the time of the record.)
                self.running = None
                self._leave(pcpu, vcpu, now, vcpu.pause_flags)
                steps += 1  # this was none
                continue
            # Run it, and charge what it did.
            if tape is not None:
                tape.words.extend((TIME, clock.now))
                if len(tape.words) > FULL:
                    tape.keep()
            self.running = vcpu
            self.hypercalls_before = before = vcpu.hypercalls
            if vcpu.compute_left:
                vcpu.deliver_upcall()
                compute = vcpu.compute_left
            else:
                compute = vcpu.run()
            now = clock.read() if real else now + cost_run + (vcpu.hypercalls - before) * cost_hypercall + self.charged
            self.charged = 0
            self._stretch_over(pcpu, vcpu, now, compute)
            if vcpu.spent:
                steps -= min(vcpu.spent // MACHINE_STEP_NS, steps)
        self.running = None
        return NEVER if hv.stopped else 0

    def _idle(self) -> None:
        """Nobody's code executes any more."""
        self.running = None
        tape = self.hv.tape
        if tape is not None:
            tape.words.extend((TIME, self.hv.clock.now))

    def _drain_quickly(self, steps: int) -> int:  # noqa: C901 - for the same reason
        """Do what `drain` does, as far as vCPUs come from the queue, run and block, and timers fire; nothing else.

        For one pCPU, virtual time, no trace but a tape, no vCPU on the pCPU, and a scheduler that need not know
        who wakes up. Returns how many of the steps are left: what comes next is for `drain`, if there are any.
        """
        hv, queue, pcpu, areas = self.hv, self.run_queue, self.pcpus[0], self.runstate_areas
        clock, timers, flags = hv.clock, hv.machine.timers, hv.memory.h
        heap, next_vcpu = timers.heap, queue.popleft
        cost_run, cost_hypercall = self.costs.run, self.costs.hypercall
        cost_switched = cost_run + self.costs.switch
        takes_head, algorithm = self._takes_head, self.algorithm
        words = None if hv.tape is None else hv.tape.words
        # (An iterator counts faster than we do.)
        turns = repeat(None, steps)
        for _ in turns:
            if queue:
                vcpu = next_vcpu()
                now = pcpu.now
                ready = vcpu.ready_at
                if ready > now:
                    now = ready
                if timers.next_deadline <= now:
                    # It has to wait, where it was.
                    queue.appendleft(vcpu)
                else:
                    if queue and not takes_head:
                        # Somebody else waits, too.
                        queue.appendleft(vcpu)
                        vcpu = algorithm.pick(pcpu, queue, now)
                        if now >= vcpu.quick_until:
                            return turns.__length_hint__() + 1
                        queue.remove(vcpu)
                        ready = vcpu.ready_at
                    elif now >= vcpu.quick_until:
                        queue.appendleft(vcpu)
                        return turns.__length_hint__() + 1
                    if now > clock.now:
                        clock.now = now
                    vcpu.queued = False
                    if now > ready:
                        vcpu.time_runnable += now - ready
                    vcpu.since = now
                    if words is not None:
                        words.append(TIME)
                        words.append(clock.now)
                        words.append(vcpu.codes.schedule)
                    if pcpu.last is vcpu:
                        cost = cost_run
                    else:
                        pcpu.last = vcpu
                        cost = cost_switched
                    self.running = vcpu
                    self.hypercalls_before = before = vcpu.hypercalls
                    handler = vcpu.upcall
                    if handler is None:
                        compute = vcpu.run()
                    else:
                        # `PythonVCpu.run`, written out: a call of a function is worth many comparisons.
                        compute = 0
                        try:
                            at = vcpu.flags_at
                            state = flags[at]
                            if state == UPCALL_PENDING:
                                flags[at] = UPCALL_ENTERED
                                handler()
                                at = vcpu.flags_at
                                if flags[at] == UPCALL_MASKED:
                                    flags[at] = 0
                                else:
                                    flags[at] &= UPCALL_ANY
                                    if flags[at]:
                                        # It is entered again, before anything else runs.
                                        self._turn_over(vcpu, before, now + cost, 0)
                                        return turns.__length_hint__()
                            elif 0 < state <= UPCALL_ANY:
                                # As above; somebody has written there something of his own.
                                self._turn_over(vcpu, before, now + cost, vcpu.run())
                                return turns.__length_hint__()
                            idle = vcpu.idle
                            if idle:
                                resume = vcpu.resume
                                said = resume(None)
                                if said is not vcpu.idle and (said is not NO_WORK or idle is not AWAKE):
                                    compute = vcpu.yielded(said)
                                idle = vcpu.idle
                                at = vcpu.flags_at
                            if not idle:
                                if not (flags[at] or vcpu.pause_flags or areas):
                                    # `VCpu.block`, written out, and what comes after it: no event is pending, nothing
                                    # else keeps it from sleeping, and nobody is to be told.
                                    vcpu.pause_flags = VPF_BLOCKED
                                    vcpu.hypercalls = made = vcpu.hypercalls + 1
                                    cost += (made - before) * cost_hypercall
                                    pcpu.now = vcpu.since = now + cost
                                    vcpu.time_running += cost
                                    if words is not None:
                                        codes = vcpu.codes
                                        words.append(codes.idle)
                                        words.append(codes.block)
                                        words.append(cost)
                                        if not made & LOOK and len(words) > FULL:
                                            assert hv.tape is not None
                                            hv.tape.keep()
                                    continue
                                vcpu.block()
                        except Exception as error:
                            compute = 0
                            vcpu.failed(error)
                    cost += (vcpu.hypercalls - before) * cost_hypercall
                    now += cost
                    if compute or not vcpu.pause_flags or vcpu.queued or areas:
                        self._stretch_over(pcpu, vcpu, now, compute)
                        if vcpu.spent or pcpu.current is not None:
                            left = turns.__length_hint__()
                            return left - min(vcpu.spent // MACHINE_STEP_NS, left)
                        continue
                    # It blocks.
                    if words is not None:
                        if vcpu.pause_flags == VPF_BLOCKED:
                            words.append(vcpu.codes.block)
                            words.append(cost)
                        else:
                            words.extend((vcpu.codes.deschedule, cost, vcpu.pause_flags))
                    pcpu.now = vcpu.since = now
                    vcpu.time_running += cost
                    continue
            # The next timer, as `_fire_timer` does it; one that was cancelled is left to that.
            if not heap or hv.stopped:
                return turns.__length_hint__() + 1
            deadline, _, timer = heap[0]
            function = timer.function
            if function is None:
                return turns.__length_hint__() + 1
            heappop(heap)
            timers.next_deadline = heap[0][0] if heap else NEVER
            timer.function = None
            if deadline > clock.now:
                clock.now = deadline
            self.running = None
            if words is not None:
                words.append(TIME)
                words.append(clock.now)
                if len(words) > FULL:
                    assert hv.tape is not None
                    hv.tape.keep()
            function()
        return 0

    def _turn_over(self, vcpu: VCpu, before: int, now: int, compute: int) -> None:
        """A vCPU has run, in a way that `_drain_quickly` leaves to others; it had made `before` hypercalls by `now`."""
        self._stretch_over(self.pcpus[0], vcpu, now + (vcpu.hypercalls - before) * self._cost_hypercall, compute)

    def _stretch_over(self, pcpu: PCpu, vcpu: VCpu, now: int, compute: int) -> None:
        """A vCPU has run until `now` and wants to compute for some ns: see whether it can stay on its pCPU."""
        flags = vcpu.pause_flags
        pcpu.computes_from = -1
        if compute:
            end = self._compute(pcpu, vcpu, now, compute)
            if not vcpu.spent:
                pcpu.computes_from = now
            now = end
        if flags:
            if vcpu.queued:
                # An event woke it while it went to sleep, and it went to sleep again.
                self._dequeue(vcpu)
        elif not vcpu.compute_left and vcpu.yielding:
            now = self._yield(vcpu, now)
        elif not vcpu.queued and (self.policy is None or not self.policy.preempts):
            pcpu.now = now
            pcpu.current = vcpu
            return
        self._leave(pcpu, vcpu, now, flags)

    def _must_leave(self, pcpu: PCpu, vcpu: VCpu, now: int) -> bool:
        """Whether a vCPU that could go on must go: its time is up, somebody is preferred, or its place is elsewhere."""
        if now >= self._slice_end(pcpu, vcpu):
            return True
        algorithm = pcpu.algorithm
        if algorithm is None or not vcpu.cpus >> pcpu.cpu_id & 1:
            return True
        return bool(self.run_queue) and algorithm.preempts(pcpu, vcpu, now)

    def _leave(self, pcpu: PCpu, vcpu: VCpu, now: int, flags: int) -> None:
        """A vCPU leaves its pCPU at `now`: it sleeps (`flags` says why), or it goes to the end of the run queue."""
        pcpu.current = None
        pcpu.now = now
        if not flags:
            vcpu.yielding = False
            # (It is queued already if an event woke it while it went to sleep.)
            if not vcpu.queued:
                vcpu.queued = True
                self.run_queue.append(vcpu)
            vcpu.ready_at = now
        since = vcpu.since
        vcpu.time_running += now - since
        pcpu.busy += now - since
        vcpu.since = now
        trace = self.hv.trace
        if trace is not None:
            trace(vcpu.domain.domid, vcpu.vcpu_id, DESCHEDULE, pcpu.cpu_id, now - since, flags)
        if vcpu in self.runstate_areas:
            self.runstate_areas[vcpu](vcpu, now)
        if self._tells_wakes:
            vcpu.unit.algorithm.descheduled(pcpu, vcpu, now)

    def _yield(self, vcpu: VCpu, now: int) -> int:
        """A vCPU gives way at `now`; returns when its turn is over.

        If all who wait for a processor have yielded too, nothing will happen but that time passes. So it does: until
        another pCPU, whose vCPU is at work, has got so far; or else for a moment. No timer is passed over. In real time
        it passes by itself.
        """
        yielded = self._yielded
        if not self.hv.clock.real and all(yielded.get(other) == other.ready_at for other in self.run_queue):
            others = [pcpu.now for pcpu in self.pcpus if pcpu.current is not None and pcpu.current is not vcpu]
            end = min(others) if others else now + self.costs.idle_yield
            now = max(now, min(end, self.hv.machine.timers.next_deadline))
        yielded[vcpu] = now
        return now

    def _next_start(self, pcpu: PCpu) -> int:
        """When a pCPU has something to do, doubled: of several idle ones that comes first which a vCPU is to go to."""
        if pcpu.current is not None:
            return pcpu.now << 1
        bit, now, ready, is_other = 1 << pcpu.cpu_id, pcpu.now, NEVER, True
        for vcpu in self.run_queue:
            if vcpu.cpus & bit:
                when = vcpu.ready_at if vcpu.ready_at > now else now
                if when < ready:
                    ready, is_other = when, vcpu.unit.pcpu is not pcpu
                elif when == ready and vcpu.unit.pcpu is pcpu:
                    is_other = False
        return ready << 1 | is_other

    def _next_ready(self, pcpu: PCpu) -> int:
        """When somebody is ready who may run on the pCPU."""
        bit = 1 << pcpu.cpu_id
        return min([vcpu.ready_at for vcpu in self.run_queue if vcpu.cpus & bit], default=NEVER)

    # -- affinity -------------------------------------------------------------------------------------------------

    def set_affinity(self, vcpu: VCpu, pcpus: int) -> None:
        """Let a vCPU run on these pCPUs only, a bit each. It leaves another one after the stretch that it is at.

        Raises HypercallError(EBUSY) while it is pinned by `override`.
        """
        if vcpu in self.overridden:
            raise HypercallError(errno.EBUSY)
        self._allow(vcpu, pcpus)

    def _allow(self, vcpu: VCpu, pcpus: int) -> None:
        everywhere = (1 << len(self.pcpus)) - 1
        unit = vcpu.unit
        unit.hard = ALL_CPUS if pcpus & everywhere == everywhere else pcpus
        unit.algorithm.place(unit)

    def set_soft_affinity(self, vcpu: VCpu, pcpus: int) -> None:
        """Let the scheduler prefer these pCPUs for a vCPU."""
        vcpu.unit.soft = pcpus

    def override(self, vcpu: VCpu, pcpu: int) -> None:
        """Pin a vCPU to a pCPU for a while. Raises HypercallError: EINVAL for a missing pCPU, EBUSY if it is pinned."""
        if pcpu >= len(self.pcpus):
            raise HypercallError(errno.EINVAL)
        if vcpu in self.overridden:
            raise HypercallError(errno.EBUSY)
        self.overridden[vcpu] = vcpu.unit.hard
        vcpu.unit.hard = 1 << pcpu
        vcpu.unit.algorithm.place(vcpu.unit)

    def end_override(self, vcpu: VCpu) -> bool:
        """Let a vCPU run where it could before `override`; False if it was not pinned."""
        if vcpu not in self.overridden:
            return False
        self._allow(vcpu, self.overridden.pop(vcpu))
        return True

    def pinned_to(self, vcpu: VCpu) -> int:
        """Return the one pCPU that a vCPU has been restricted to, or -1."""
        hard = vcpu.unit.hard
        if hard == ALL_CPUS:
            return -1
        mask = hard & (1 << len(self.pcpus)) - 1
        return mask.bit_length() - 1 if mask and not mask & (mask - 1) else -1

    def _fire_timer(self, until: int) -> bool:
        """Fire the next timer that is due by `until`; False if there is none, or it lies in the (real) future."""
        clock, timers = self.hv.clock, self.hv.machine.timers
        self._idle()
        deadline = timers.prune()
        if deadline == NEVER <= until:
            # (Also when time has come to its end: then nothing ever happens any more.)
            return False
        if deadline > until:
            # One that was cancelled stood in front.
            return True
        if clock.real and deadline > clock.read():
            return False
        timer = timers.pop_due(deadline)
        assert timer is not None
        function = timer.function
        assert function is not None
        timer.function = None
        if deadline > clock.now:
            clock.now = deadline
            self._idle()
        function()
        return True

    def _choose(self, pcpu: PCpu, now: int) -> VCpu:
        """Take who runs on the pCPU at `now` from the queue: there is somebody who may."""
        queue = self.run_queue
        if self._takes_head and self._single:
            return queue.popleft()
        # pCPUs have times of their own: who was woken by one that is ahead cannot run on one that is behind.
        ready = self.waiting(pcpu, now)
        if self.policy is not None:
            vcpu = ready[self.policy.choose(ready)]
        elif len(ready) == 1:
            vcpu = ready[0]
        else:
            algorithm = pcpu.algorithm
            assert algorithm is not None
            vcpu = algorithm.pick(pcpu, ready, now)
        queue.remove(vcpu)
        return vcpu

    def _compute(self, pcpu: PCpu, vcpu: VCpu, now: int, work: int) -> int:
        """Let time pass for a computing guest: to the end of its work, of its slice, or to the next timer."""
        if vcpu.spent:
            # Machine code has done its work already, and has been stopped in time.
            # (In real time: as far as it is ahead of the wall clock.)
            return now + work
        vcpu.quick_until = 0
        if vcpu.pause_flags:
            vcpu.compute_left = work
            return now
        end = min(now + work, max(self._turn_ends(pcpu, vcpu, now), now + 1))
        deadline = self.hv.machine.timers.next_deadline
        if now < deadline < end:
            end = deadline
        vcpu.compute_left = work - (end - now)
        return end
