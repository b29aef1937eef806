"""The pCPU loop: physical CPUs take vCPUs from the run queue and run them until they stop.

The host is one thread, so pCPUs are simulated: each has its own time, and the one that is furthest behind acts next. A
vCPU runs from one yield to the next; what it costs is `cost.hypercall` per hypercall, `cost.run` for the stretch
itself, `cost.switch` when the pCPU turned to another vCPU, and the nanoseconds of computing it asked for. In real time
the same loop follows the wall clock, and a pCPU whose guest computes is simply busy until then.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs

from hypervisor.abi.tracepoints import DESCHEDULE, SCHEDULE, WAKE
from hypervisor.vcpu import VPF_BLOCKED

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


class PCpu:
    """A physical CPU. `now` is its own time: it is busy, or has been, until then."""

    __slots__ = ("cpu_id", "current", "last", "now", "slice_end")

    def __init__(self, cpu_id: int) -> None:
        self.cpu_id = cpu_id
        self.now = 0
        self.current: VCpu | None = None
        self.last: VCpu | None = None
        self.slice_end = 0


class Scheduler:
    """The run queue and the loop that drains it."""

    def __init__(self, hv: Hypervisor, nr_pcpus: int, policy: Policy, costs: Costs) -> None:
        self.hv = hv
        self.policy = policy
        self.costs = costs
        self.pcpus = [PCpu(cpu_id) for cpu_id in range(nr_pcpus)]
        self.run_queue: deque[VCpu] = deque()
        self.running: VCpu | None = None
        """The vCPU whose code executes right now."""
        self.hypercalls_before = 0
        """`running.hypercalls` when it was resumed: what it did since has not been charged yet."""
        self.progress = 0
        """Counts stretches of guest code; a watchdog sees by it whether the loop still turns."""
        self._single = nr_pcpus == 1

    # -- time -----------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """Return the current time in ns: inside a stretch of guest code it moves with every hypercall."""
        clock = self.hv.clock
        if clock.real:
            return clock.read()
        vcpu = self.running
        if vcpu is None:
            return clock.now
        return clock.now + (vcpu.hypercalls - self.hypercalls_before) * self.costs.hypercall

    # -- waking and sleeping --------------------------------------------------------------------------------------

    def wake(self, vcpu: VCpu) -> None:
        """End the vCPU's wait for an event; put it on the run queue unless something else stops it."""
        if vcpu.poll_ports is not None:
            self._end_poll(vcpu)
        vcpu.pause_flags = flags = vcpu.pause_flags & ~VPF_BLOCKED
        if not flags and not vcpu.queued:
            self.enqueue(vcpu)

    def enqueue(self, vcpu: VCpu) -> None:
        """Put a vCPU that nothing stops any more at the tail of the run queue."""
        hv = self.hv
        vcpu.queued = True
        # With one pCPU nobody can run before the present stretch is over, so its exact moment does not matter.
        vcpu.ready_at = hv.clock.now if self._single else self.now()
        self.run_queue.append(vcpu)
        if hv.trace is not None:
            hv.trace(vcpu.domain.domid, vcpu.vcpu_id, WAKE)
        if hv.sleeping:
            hv.interrupt_idle()

    def unpause(self, vcpu: VCpu, flag: int) -> None:
        """Clear one reason (`VPF_*`) why a vCPU does not run; queue it if that was the last."""
        vcpu.pause_flags &= ~flag
        if not vcpu.pause_flags and not vcpu.queued and not self._on_cpu(vcpu):
            self.enqueue(vcpu)

    def _on_cpu(self, vcpu: VCpu) -> bool:
        return any(pcpu.current is vcpu for pcpu in self.pcpus)

    def _end_poll(self, vcpu: VCpu) -> None:
        vcpu.poll_ports = None
        vcpu.domain.pollers -= 1
        if vcpu.poll_timer is not None:
            vcpu.poll_timer.cancel()
            vcpu.poll_timer = None

    def forget(self, vcpu: VCpu) -> None:
        """Take a vCPU of a dying domain off the queue and the pCPUs."""
        if vcpu.poll_ports is not None:
            self._end_poll(vcpu)
        if vcpu.queued:
            vcpu.queued = False
            self.run_queue.remove(vcpu)
        for pcpu in self.pcpus:
            if pcpu.current is vcpu:
                pcpu.current = None
            if pcpu.last is vcpu:
                pcpu.last = None

    # -- the loop -------------------------------------------------------------------------------------------------

    def drain(self, steps: int) -> int:  # noqa: C901 - the hot loop is in one piece
        """Run up to `steps` stretches of guest code and all timers that come due in between.

        Returns 0 if there is more to do now; else the time of the next thing to do (`NEVER` if only an interrupt from
        outside can bring more). In real time that is a wall-clock time to sleep until.
        """
        hv = self.hv
        clock, timers = hv.clock, hv.machine.timers
        pcpus = self.pcpus
        pcpu = pcpus[0]
        single, real = self._single, clock.real
        queue, step = self.run_queue, self._step
        while steps:
            steps -= 1
            if not single:
                pcpu = min(pcpus, key=self._next_start)
            if pcpu.current is not None:
                start = pcpu.now
            elif queue:
                start = queue[0].ready_at
                if start < pcpu.now:
                    start = pcpu.now
            else:
                start = NEVER
            if timers.next_deadline <= start and timers.next_deadline != NEVER:
                if not self._fire_timer(start):
                    return timers.next_deadline
                continue
            if start == NEVER:
                return NEVER
            if real:
                if start > clock.read():
                    return start
                start = clock.now
            elif start > clock.now:
                clock.now = start
            step(pcpu, start)
            if hv.stopped:
                return NEVER
        return 0

    def _next_start(self, pcpu: PCpu) -> int:
        if pcpu.current is not None:
            return pcpu.now
        queue = self.run_queue
        if not queue:
            return NEVER
        ready = queue[0].ready_at
        return ready if ready > pcpu.now else pcpu.now

    def _fire_timer(self, until: int) -> bool:
        """Fire the next timer that is due; False if it lies in the (real) future."""
        clock, timers = self.hv.clock, self.hv.machine.timers
        self.running = None
        deadline = timers.prune()
        if deadline > until or deadline == NEVER:
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

    def _step(self, pcpu: PCpu, start: int) -> None:  # noqa: C901 - the hot path is in one piece
        """Run the pCPU's vCPU (or the next one of the queue) for one stretch, and account for it.

        This is the hottest function of a host: every notification from one domain to another passes here. So the
        common path, a vCPU that is taken from the queue, runs and blocks, is written out in one piece.
        """
        hv = self.hv
        costs = self.costs
        vcpu = pcpu.current
        if vcpu is None:
            vcpu = self.run_queue.popleft() if self.policy.in_order else self._choose()
            vcpu.queued = False
            if vcpu.pause_flags:
                return
            ready = vcpu.ready_at
            if ready > vcpu.since:
                vcpu.time_blocked += ready - vcpu.since
            else:
                ready = vcpu.since
            vcpu.time_runnable += start - ready
            vcpu.since = start
            pcpu.current = vcpu
            pcpu.slice_end = start + TIME_SLICE_NS
            now = start
            if pcpu.last is not vcpu:
                pcpu.last = vcpu
                vcpu.processor = pcpu.cpu_id
                now += costs.switch
            if hv.trace is not None:
                hv.trace(vcpu.domain.domid, vcpu.vcpu_id, SCHEDULE, pcpu.cpu_id)
            if start >= vcpu.next_service:
                hv.time.schedule_in(vcpu, start)
        else:
            now = start
        self.progress += 1
        self.running = vcpu
        self.hypercalls_before = before = vcpu.hypercalls
        if vcpu.compute_left:
            vcpu.deliver_upcall()
        else:
            vcpu.compute_left = vcpu.run()
        if hv.clock.real:
            now = hv.clock.read()
        else:
            now += costs.run + (vcpu.hypercalls - before) * costs.hypercall
        if vcpu.compute_left and not vcpu.pause_flags:
            now = self._compute(pcpu, vcpu, now)
        pcpu.now = now
        if not vcpu.pause_flags:
            if not vcpu.yielding and now < pcpu.slice_end and not self.policy.preempts:
                return
            vcpu.yielding = False
            if not vcpu.queued:
                vcpu.queued = True
                vcpu.ready_at = now
                self.run_queue.append(vcpu)
        pcpu.current = None
        ran = now - vcpu.since
        vcpu.time_running += ran
        vcpu.since = now
        if hv.trace is not None:
            hv.trace(vcpu.domain.domid, vcpu.vcpu_id, DESCHEDULE, pcpu.cpu_id, ran, vcpu.pause_flags)

    def _choose(self) -> VCpu:
        """Take the vCPU that the policy wants from the queue."""
        queue = self.run_queue
        index = self.policy.choose(queue)
        vcpu = queue[index]
        del queue[index]
        return vcpu

    def _compute(self, pcpu: PCpu, vcpu: VCpu, now: int) -> int:
        """Let time pass for a computing guest: to the end of its work, of its slice, or to the next timer."""
        end = min(now + vcpu.compute_left, max(pcpu.slice_end, now + 1))
        deadline = self.hv.machine.timers.next_deadline
        if now < deadline < end:
            end = deadline
        vcpu.compute_left -= end - now
        return end
