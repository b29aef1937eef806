"""Time in a guest: what the clock says, and waiting for it.

Xen writes, for each vCPU, the time-stamp counter and the system time of the last update, and how to get from a
difference in the counter to nanoseconds (vcpu_time_info in xen.h). The version is odd while it writes and different
after it has written.

All timers of the kernel are one heap; Xen is asked for one interrupt, at the earliest deadline. Cancelled timers stay
in the heap until their time comes or until they are the larger part of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from heapq import heapify, heappop, heappush
from typing import TypeVar, final

from guest_kernel.errors import XenError
from guest_kernel.events import Events
from guest_kernel.hypercalls import Hypercalls
from guest_kernel.threads import Scheduler, WaitQueue, reschedule
from hypervisor.abi.vcpu import VCPUOP_stop_periodic_timer
from hypervisor.abi.xen import VIRQ_TIMER, HYPERVISOR_set_timer_op, shared_info

T = TypeVar("T")

NANOSECONDS = 1_000_000_000
_WC_VERSION, _WC_SEC, _WC_NSEC, _WC_SEC_HI = (
    shared_info.offset(name) >> 2 for name in ("wc_version", "wc_sec", "wc_nsec", "wc_sec_hi")
)
_FAR = 1 << 63


@final
class Timer:
    """A function that is called at a time, unless cancelled before."""

    __slots__ = ("_timers", "deadline", "function", "sequence")

    def __init__(self, timers: Timers, deadline: int, sequence: int, function: Callable[[], None]) -> None:
        self._timers = timers
        self.deadline = deadline
        self.sequence = sequence
        self.function: Callable[[], None] | None = function

    def cancel(self) -> None:
        """Do not call. Nothing happens to a timer that has run."""
        if self.function is not None:
            self.function = None
            self._timers.forget_one()

    def __lt__(self, other: Timer) -> bool:
        return (self.deadline, self.sequence) < (other.deadline, other.sequence)


class Clock:
    """Monotonic and wall-clock time from the shared_info page."""

    def __init__(self, rdtsc: Callable[[], int], shared: memoryview, vcpu_id: int = 0) -> None:
        self._shared = shared.cast("I")
        self.monotonic_ns = self._make_monotonic(rdtsc, shared, vcpu_id)
        """Nanoseconds since the host was booted."""

    @staticmethod
    def _make_monotonic(rdtsc: Callable[[], int], shared: memoryview, vcpu_id: int) -> Callable[[], int]:
        time = f"vcpu_info[{vcpu_id}].time."
        words, longs, signed = shared.cast("I"), shared.cast("Q"), shared.cast("b")
        version_at = shared_info.offset(time + "version") >> 2
        stamp_at = shared_info.offset(time + "tsc_timestamp") >> 3
        system_at = shared_info.offset(time + "system_time") >> 3
        mul_at = shared_info.offset(time + "tsc_to_system_mul") >> 2
        shift_at = shared_info.offset(time + "tsc_shift")
        last = 0

        def monotonic_ns() -> int:
            nonlocal last
            while True:
                version = words[version_at]
                delta = rdtsc() - longs[stamp_at]
                shift = signed[shift_at]
                delta = delta << shift if shift >= 0 else delta >> -shift
                now = longs[system_at] + (delta * words[mul_at] >> 32)
                if not version & 1 and version == words[version_at]:
                    break
            if now < last:  # rounding differs from one update to the next, and from one vCPU to another
                return last
            last = now
            return now

        return monotonic_ns

    def wallclock_ns(self) -> int:
        """Nanoseconds since the epoch (1970, UTC): the wall clock at the host's boot, and the time since."""
        words = self._shared
        while True:
            version = words[_WC_VERSION]
            boot = (words[_WC_SEC_HI] << 32 | words[_WC_SEC]) * NANOSECONDS + words[_WC_NSEC]
            if not version & 1 and version == words[_WC_VERSION]:
                return boot + self.monotonic_ns()


class Timers:
    """The kernel's timers on top of Xen's one for each vCPU."""

    def __init__(self, hypercalls: Hypercalls, events: Events, monotonic_ns: Callable[[], int]) -> None:
        self._hypercalls = hypercalls
        self._events = events
        self._now = monotonic_ns
        self._heap: list[Timer] = []
        self._sequence = 0
        self._cancelled = 0
        self._armed = _FAR
        """When Xen will interrupt; never later than the first deadline in the heap."""

    def start(self, vcpu_id: int = 0) -> None:
        """Take the timer interrupt of a vCPU, instead of the 100 Hz tick that it was born with. Raises XenError."""
        self._hypercalls.vcpu(VCPUOP_stop_periodic_timer, vcpu_id, 0, "VCPUOP_stop_periodic_timer")
        self._events.bind_virq(VIRQ_TIMER, self._expired, vcpu_id)

    def add(self, deadline: int, function: Callable[[], None]) -> Timer:
        """Call `function` at `deadline` (monotonic ns), in the timer interrupt: it must not wait."""
        self._sequence += 1
        timer = Timer(self, deadline, self._sequence, function)
        heappush(self._heap, timer)
        if deadline < self._armed:
            self._arm(deadline)
        return timer

    def forget_one(self) -> None:
        """Count a cancelled timer, and clear them out when they are the most part of the heap."""
        self._cancelled += 1
        if self._cancelled > 32 and 2 * self._cancelled > len(self._heap):
            self._heap = [timer for timer in self._heap if timer.function is not None]
            heapify(self._heap)
            self._cancelled = 0

    def _arm(self, deadline: int) -> None:
        self._armed = deadline
        # Xen takes 0 as "no timer" and a time in the past as "now".
        result = self._hypercalls.call(HYPERVISOR_set_timer_op, max(deadline, 1))
        if result:
            raise XenError(-result, "set_timer_op")

    def _expired(self) -> None:
        self._armed = _FAR
        now = self._now()
        while self._heap and self._heap[0].deadline <= now:
            timer = heappop(self._heap)
            function = timer.function
            if function is None:
                self._cancelled -= 1
            else:
                timer.function = None
                function()
        while self._heap and self._heap[0].function is None:
            heappop(self._heap)
            self._cancelled -= 1
        if self._heap and self._heap[0].deadline < self._armed:
            self._arm(self._heap[0].deadline)


class _Expired(BaseException):
    """Raised in a thread whose `wait_for` has run out of time; each has its own."""


class Sleeper:
    """Threads that wait for a time."""

    def __init__(self, scheduler: Scheduler, timers: Timers, monotonic_ns: Callable[[], int]) -> None:
        self._scheduler = scheduler
        self._timers = timers
        self._now = monotonic_ns

    async def sleep(self, ns: int) -> None:
        """Wait for `ns` nanoseconds at least; 0 and less let the other threads go first."""
        if ns <= 0:
            await reschedule()
            return
        queue = WaitQueue()
        timer = self._timers.add(self._now() + ns, queue.wake)  # type: ignore[arg-type]
        try:
            await queue.wait()
        finally:
            timer.cancel()

    async def wait_for(self, awaitable: Awaitable[T], ns: int) -> T:
        """Wait for `awaitable`, at most `ns` nanoseconds; then it is interrupted and TimeoutError raised."""
        thread = self._scheduler.running()
        expired = _Expired()
        timer = self._timers.add(self._now() + ns, lambda: thread.interrupt(expired))
        try:
            return await awaitable
        except _Expired as raised:
            if raised is not expired:
                raise
            raise TimeoutError(f"not done after {ns} ns") from None
        finally:
            timer.cancel()
            thread.withdraw(expired)
