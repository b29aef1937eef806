"""The pCPU loop: physical CPUs take vCPUs from the run queue and run them until they stop.

The host is one thread, so pCPUs are simulated: each has its own time, and the one that is furthest behind acts next. A
vCPU runs from one yield to the next; what it costs is `cost.hypercall` per hypercall, `cost.run` for the stretch
itself, `cost.switch` when the pCPU turned to another vCPU, and the nanoseconds of computing it asked for. In real time
the same loop follows the wall clock, and a pCPU whose guest computes is simply busy until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop
from typing import TYPE_CHECKING

import attrs

from hypervisor.abi import errno
from hypervisor.abi.tracepoints import DESCHEDULE, SCHEDULE, WAKE
from hypervisor.errors import HypercallError
from hypervisor.vcpu import VPF_BLOCKED, VPF_POLLING

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.sched.policy import Policy
    from hypervisor.vcpu import VCpu

NEVER = 1 << 63

TIME_SLICE_NS = 10_000_000


@attrs.frozen
class Costs:
    """What the simulated machine charges, in virtual nanoseconds. In real time only the wall clock counts."""

    hypercall: int = 200
    run: int = 300
    switch: int = 700
    idle_yield: int = 50_000
    """A yield while nobody else has work to do: who yields in a loop waits for time to pass."""


class PCpu:
    """A physical CPU. `now` is its own time: it is busy, or has been, until then."""

    __slots__ = ("busy", "cpu_id", "current", "last", "now")

    def __init__(self, cpu_id: int) -> None:
        self.cpu_id = cpu_id
        self.now = 0
        self.busy = 0
        """Nanoseconds that vCPUs ran on it: only kept where there are several pCPUs (`Scheduler.idle_time`)."""
        self.current: VCpu | None = None
        self.last: VCpu | None = None


class Scheduler:
    """The run queue and the loop that drains it."""

    def __init__(self, hv: Hypervisor, nr_pcpus: int, policy: Policy, costs: Costs) -> None:
        self.hv = hv
        self.policy = policy
        self.costs = costs
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
        self.allowed: dict[VCpu, int] = {}
        """On which pCPUs a vCPU may run, a bit each; those that are not here may run on all (hard affinity)."""
        self.overridden: dict[VCpu, int] = {}
        """What `allowed` said of the vCPUs that SCHEDOP_pin_override has pinned."""
        self._single = nr_pcpus == 1
        self.plain = self._single and not hv.clock.real and hv.trace is None
        """Queueing a vCPU is no more than what `two_level.set_pending` writes out."""

    # -- time -----------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """Return the current time in ns: inside a stretch of guest code it moves with every hypercall."""
        clock = self.hv.clock
        if clock.real:
            return clock.read()
        vcpu = self.running
        if vcpu is None:
            return clock.now
        return clock.now + (vcpu.hypercalls - self.hypercalls_before) * self.costs.hypercall + vcpu.spent

    def idle_time(self, cpu_id: int) -> int:
        """Return how many nanoseconds a pCPU has had nothing to do.

        If it is the only one, it did what all vCPUs together did: nobody needs to keep count.
        """
        busy = self.pcpus[cpu_id].busy
        if self._single:
            domains = self.hv.domains.values()
            busy = self.retired + sum(vcpu.time_running for domain in domains for vcpu in domain.online_vcpus())
        return max(self.now() - busy, 0)

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
        if hv.trace is not None:
            hv.trace(vcpu.domain.domid, vcpu.vcpu_id, WAKE)
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
        if vcpu.queued:
            self._dequeue(vcpu)
            if not self.is_on_cpu(vcpu):
                now = max(self.now(), vcpu.ready_at)
                vcpu.time_runnable += now - vcpu.ready_at
                vcpu.since = now

    def _dequeue(self, vcpu: VCpu) -> None:
        """Take a vCPU off the run queue: only what may run is on it."""
        vcpu.queued = False
        self.run_queue.remove(vcpu)

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
        if vcpu.poll_timer is not None:
            vcpu.poll_timer.cancel()
            vcpu.poll_timer = None

    def forget(self, vcpu: VCpu) -> None:
        """Take a vCPU of a dying domain off the queue and the pCPUs."""
        if vcpu.poll_ports is not None:
            self.end_poll(vcpu)
        if vcpu.queued:
            self._dequeue(vcpu)
        for notes in (self._yielded, self.allowed, self.overridden):
            notes.pop(vcpu, None)
        for pcpu in self.pcpus:
            if pcpu.current is vcpu:
                pcpu.current = None
            if pcpu.last is vcpu:
                pcpu.last = None

    # -- the loop -------------------------------------------------------------------------------------------------

    def drain(self, steps: int) -> int:  # noqa: C901 - see below
        """Run up to `steps` stretches of guest code and all timers that come due in between.

        Returns 0 if there is more to do now; else the time of the next thing to do (`NEVER` if only an interrupt from
        outside can bring more). In real time that is a wall-clock time to sleep until.

        Every notification from one domain to another passes here, so it is written out in one piece, on local names.
        What happens most (an event wakes a vCPU, which runs and blocks again) is done by `_drain_quickly` where that
        is possible; here is what remains, with all cases.
        """
        hv = self.hv
        clock, timers, trace = hv.clock, hv.machine.timers, hv.trace
        pcpus, queue = self.pcpus, self.run_queue
        pcpu = pcpus[0]
        single, real = self._single, clock.real
        cost_run, cost_hypercall, cost_switch = self.costs.run, self.costs.hypercall, self.costs.switch
        in_order = self.policy.in_order
        quick = self.plain and in_order
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
                if queue:
                    ready = queue[0].ready_at if not self.allowed else self._next_ready(pcpu)
                    if ready > now:
                        now = ready
                elif self._fire_timer(NEVER):
                    continue
                else:
                    return timers.next_deadline
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
                vcpu = queue.popleft() if in_order and not self.allowed else self._choose(now, pcpu)
                vcpu.queued = False
                vcpu.time_runnable += now - vcpu.ready_at
                vcpu.since = now
                if trace is not None:
                    # What the one before did is in the past: it must not move the time of this record.
                    self.running = None
                    trace(vcpu.domain.domid, vcpu.vcpu_id, SCHEDULE, pcpu.cpu_id)
                if now >= vcpu.next_service:
                    hv.time.schedule_in(vcpu, now)
                if pcpu.last is not vcpu:
                    pcpu.last = vcpu
                    now += cost_switch
                    if not single:
                        vcpu.processor = pcpu.cpu_id
            elif vcpu.pause_flags:
                # Somebody has stopped it between two of its stretches.
                self._take_off(pcpu, vcpu)
                continue
            # Run it, and charge what it did.
            self.running = vcpu
            self.hypercalls_before = before = vcpu.hypercalls
            if vcpu.compute_left:
                vcpu.deliver_upcall()
                compute = vcpu.compute_left
            else:
                compute = vcpu.run()
            now = clock.read() if real else now + cost_run + (vcpu.hypercalls - before) * cost_hypercall
            self._stretch_over(pcpu, vcpu, now, compute)
        self.running = None
        return NEVER if hv.stopped else 0

    def _drain_quickly(self, steps: int) -> int:  # noqa: C901 - for the same reason
        """Do what `drain` does, as far as vCPUs come from the queue, run and block, and timers fire; nothing else.

        For one pCPU, virtual time, a policy that takes the head of the queue, no trace, and no vCPU on the pCPU.
        Returns how many of the steps are left: what comes next is for `drain`, if there are any.
        """
        hv, queue, pcpu, areas = self.hv, self.run_queue, self.pcpus[0], self.runstate_areas
        clock, timers = hv.clock, hv.machine.timers
        heap, next_vcpu = timers.heap, queue.popleft
        cost_run, cost_hypercall = self.costs.run, self.costs.hypercall
        cost_switched = cost_run + self.costs.switch
        while steps and not hv.stopped:
            steps -= 1
            if queue:
                vcpu = next_vcpu()
                now = pcpu.now
                ready = vcpu.ready_at
                if ready > now:
                    now = ready
                is_due = timers.next_deadline <= now
                if is_due or vcpu.compute_left:
                    # It has to wait, where it was.
                    queue.appendleft(vcpu)
                    if not is_due:
                        return steps + 1
            else:
                is_due = True
            if is_due:
                # The next timer, as `_fire_timer` does it; one that was cancelled is left to that.
                if not heap:
                    return steps + 1
                timer = heap[0][2]
                function = timer.function
                if function is None:
                    return steps + 1
                heappop(heap)
                timers.next_deadline = heap[0][0] if heap else NEVER
                timer.function = None
                if timer.deadline > clock.now:
                    clock.now = timer.deadline
                self.running = None
                function()
                continue
            if now > clock.now:
                clock.now = now
            vcpu.queued = False
            vcpu.time_runnable += now - ready
            vcpu.since = now
            if now >= vcpu.next_service:
                hv.time.schedule_in(vcpu, now)
            if pcpu.last is vcpu:
                cost = cost_run
            else:
                pcpu.last = vcpu
                cost = cost_switched
            self.running = vcpu
            self.hypercalls_before = before = vcpu.hypercalls
            compute = vcpu.run()
            cost += (vcpu.hypercalls - before) * cost_hypercall
            now += cost
            if compute or not vcpu.pause_flags or vcpu.queued or areas:
                self._stretch_over(pcpu, vcpu, now, compute)
                if pcpu.current is not None:
                    return steps
            else:
                # It blocks.
                pcpu.now = vcpu.since = now
                vcpu.time_running += cost
        return steps

    def _stretch_over(self, pcpu: PCpu, vcpu: VCpu, now: int, compute: int) -> None:
        """A vCPU has run until `now` and wants to compute for some ns: see whether it stays on its pCPU."""
        flags = vcpu.pause_flags
        if compute:
            now = self._compute(vcpu, now, compute)
        if vcpu.yielding and not flags and not vcpu.compute_left:
            now = self._yield(vcpu, now)
        pcpu.now = now
        if flags:
            pcpu.current = None
            if vcpu.queued:
                # An event woke it while it went to sleep, and it went to sleep again.
                self._dequeue(vcpu)
        elif self._stays(vcpu, pcpu, now):
            pcpu.current = vcpu
            return
        else:
            pcpu.current = None
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

    def _stays(self, vcpu: VCpu, pcpu: PCpu, now: int) -> bool:
        """Whether a vCPU that can go on goes on where it is."""
        if vcpu.yielding or now >= vcpu.since + TIME_SLICE_NS or self.policy.preempts or vcpu.queued:
            return False
        return not self.allowed or self._may_run(vcpu, pcpu)

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
        if pcpu.current is not None:
            return pcpu.now
        queue = self.run_queue
        if self.allowed:
            ready = self._next_ready(pcpu)
        elif queue:
            ready = queue[0].ready_at
        else:
            return NEVER
        return ready if ready > pcpu.now else pcpu.now

    def _next_ready(self, pcpu: PCpu) -> int:
        """When somebody is ready who may run on the pCPU."""
        return min((vcpu.ready_at for vcpu in self.run_queue if self._may_run(vcpu, pcpu)), default=NEVER)

    def _may_run(self, vcpu: VCpu, pcpu: PCpu) -> bool:
        return bool(self.allowed.get(vcpu, -1) >> pcpu.cpu_id & 1)

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
        if pcpus & everywhere == everywhere:
            self.allowed.pop(vcpu, None)
        else:
            self.allowed[vcpu] = pcpus

    def override(self, vcpu: VCpu, pcpu: int) -> None:
        """Pin a vCPU to a pCPU for a while. Raises HypercallError: EINVAL for a missing pCPU, EBUSY if it is pinned."""
        if vcpu in self.overridden:
            raise HypercallError(errno.EBUSY)
        if pcpu >= len(self.pcpus):
            raise HypercallError(errno.EINVAL)
        self.overridden[vcpu] = self.allowed.get(vcpu, -1)
        self._allow(vcpu, 1 << pcpu)

    def end_override(self, vcpu: VCpu) -> bool:
        """Let a vCPU run where it could before `override`; False if it was not pinned."""
        if vcpu not in self.overridden:
            return False
        self._allow(vcpu, self.overridden.pop(vcpu))
        return True

    def pinned_to(self, vcpu: VCpu) -> int:
        """Return the one pCPU that a vCPU has been restricted to, or -1."""
        if vcpu not in self.allowed and vcpu not in self.overridden:
            return -1
        mask = self.allowed.get(vcpu, -1) & (1 << len(self.pcpus)) - 1
        return mask.bit_length() - 1 if mask and not mask & (mask - 1) else -1

    def _fire_timer(self, until: int) -> bool:
        """Fire the next timer that is due by `until`; False if there is none, or it lies in the (real) future."""
        clock, timers = self.hv.clock, self.hv.machine.timers
        self.running = None
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
        function()
        return True

    def _choose(self, now: int, pcpu: PCpu) -> VCpu:
        """Take the vCPU that the policy wants from the queue, of those that may run on the pCPU at `now`."""
        queue = self.run_queue
        if self._single:
            index = self.policy.choose(queue)
            vcpu = queue[index]
            del queue[index]
            return vcpu
        # pCPUs have times of their own: who was woken by one that is ahead cannot run on one that is behind.
        ready = [vcpu for vcpu in queue if vcpu.ready_at <= now and self._may_run(vcpu, pcpu)]
        vcpu = ready[self.policy.choose(ready)]
        queue.remove(vcpu)
        return vcpu

    def _take_off(self, pcpu: PCpu, vcpu: VCpu) -> None:
        """End the turn of a vCPU that was stopped from outside."""
        pcpu.current = None
        now, since = pcpu.now, vcpu.since
        vcpu.time_running += now - since
        pcpu.busy += now - since
        vcpu.since = now
        if self.hv.trace is not None:
            fields = pcpu.cpu_id, now - since, vcpu.pause_flags
            self.hv.trace(vcpu.domain.domid, vcpu.vcpu_id, DESCHEDULE, *fields)
        if vcpu in self.runstate_areas:
            self.runstate_areas[vcpu](vcpu, now)

    def _compute(self, vcpu: VCpu, now: int, work: int) -> int:
        """Let time pass for a computing guest: to the end of its work, of its slice, or to the next timer."""
        if vcpu.spent:
            # Machine code has done its work already, and has been stopped in time.
            # (In real time: as far as it is ahead of the wall clock.)
            return now + work
        if vcpu.pause_flags:
            vcpu.compute_left = work
            return now
        end = min(now + work, max(vcpu.since + TIME_SLICE_NS, now + 1))
        deadline = self.hv.machine.timers.next_deadline
        if now < deadline < end:
            end = deadline
        vcpu.compute_left = work - (end - now)
        return end
