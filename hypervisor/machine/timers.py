"""The host's one-shot timers: a heap ordered by deadline, then by order of arming."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Timer:
    """One armed timer. `cancel` may be called at any time, any number of times."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], None]) -> None:
        self.function: Callable[[], None] | None = function

    def cancel(self) -> None:
        """Make sure that the function is not called any more."""
        self.function = None

    @property
    def armed(self) -> bool:
        """Whether the timer still waits for its deadline."""
        return self.function is not None


class Timers:
    """All timers of the host. Deadlines are ns since power-on; equal deadlines fire in the order they were armed."""

    __slots__ = ("_sequence", "heap", "next_deadline")

    NEVER = 1 << 63

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Timer]] = []
        """(deadline, sequence, timer), for `heapq`: the pCPU loop looks at the front, and takes it, by itself."""
        self._sequence = count()
        self.next_deadline = self.NEVER
        """Earliest deadline in the heap (a cancelled timer may still be counted), or `NEVER`."""

    def add(self, deadline: int, function: Callable[[], None]) -> Timer:
        """Arm a timer that calls `function` at `deadline` (at once at the next look if that has passed).

        Time ends at `NEVER`: a guest may ask for what comes after, and it does not come.
        """
        timer = Timer(function)
        if deadline < self.NEVER:
            self.rearm(timer, deadline, function)
        return timer

    def rearm(self, timer: Timer, deadline: int, function: Callable[[], None]) -> None:
        """Arm a timer once more that has fired, for a deadline before `NEVER`: who needs many keeps a few of them."""
        timer.function = function
        heappush(self.heap, (deadline, next(self._sequence), timer))
        if deadline < self.next_deadline:
            self.next_deadline = deadline

    def pop_due(self, now: int) -> Timer | None:
        """Take the earliest armed timer whose deadline is not after `now`; None when there is none."""
        heap = self.heap
        while heap and heap[0][0] <= now:
            timer = heappop(heap)[2]
            if timer.function is not None:
                self.next_deadline = heap[0][0] if heap else self.NEVER
                return timer
        self.next_deadline = heap[0][0] if heap else self.NEVER
        return None

    def prune(self) -> int:
        """Drop cancelled timers from the front of the heap and return the true next deadline."""
        heap = self.heap
        while heap and heap[0][2].function is None:
            heappop(heap)
        self.next_deadline = heap[0][0] if heap else self.NEVER
        return self.next_deadline

    def __len__(self) -> int:
        return sum(1 for entry in self.heap if entry[2].function is not None)
