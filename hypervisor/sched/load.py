"""The load of a run queue or a vCPU: how much of the last second or so it wanted to run (credit2.c)."""

from __future__ import annotations


class Load:
    """An average that forgets: half of a change is seen after half a window of 2^30 ns. `ONE` is one vCPU that runs."""

    ONE = 1 << 18
    WINDOW_SHIFT = 30

    __slots__ = ("_average", "_when", "runnable")

    def __init__(self) -> None:
        self.runnable = 0
        """How many run or wait for a processor."""
        self._average = 0
        self._when = 0

    def average(self, now: int) -> int:
        """Return the load at `now`."""
        passed = now - self._when
        if passed > 0:
            self._when = now
            goal = self.runnable * self.ONE
            if passed >> self.WINDOW_SHIFT:
                self._average = goal
            else:
                self._average += (goal - self._average) * passed >> self.WINDOW_SHIFT
        return self._average

    def change(self, now: int, by: int) -> None:
        """So many more (or fewer) want to run from `now` on."""
        self.average(now)
        self.runnable += by
