"""How long the pCPU loop runs before those outside are heard again: sockets, consoles, signals.

The loop counts stretches of guest code, and how long one takes differs a thousandfold: a Python guest's is over in
microseconds; one of machine code can be ten milliseconds of virtual time, which the emulator needs a tenth of a second
for, and which counts as many. So the number of stretches follows the clock. It changes nothing on the host: a stretch
is a stretch, whoever looks up from time to time.
"""

from __future__ import annotations

from time import perf_counter_ns

import trio

MAX_STEPS = 500
FIRST_STEPS = 16
PATIENCE_NS = 10_000_000
"""Those outside should not wait longer, by the wall clock, than this or than one stretch takes."""

OWN_TASKS = 3
"""Tasks of an event loop that has only the host to run: the loop's own two, and the host's."""
ALONE_NS = 20_000_000
"""So long the host goes on, by the wall clock, before it looks whether it is still alone: signals wait in the loop."""


class Pace:
    """Begins with `steps` stretches (None: with a few); tell it what they take, and that adapts."""

    def __init__(self, steps: int | None = None) -> None:
        self.steps = min(FIRST_STEPS, MAX_STEPS) if steps is None else steps
        self._started = 0

    def start(self) -> int:
        """Return how many stretches to run now."""
        self._started = perf_counter_ns()
        return self.steps

    def stop(self) -> None:
        """Those stretches are over."""
        self.took(perf_counter_ns() - self._started)

    def took(self, nanoseconds: int) -> None:
        """Halve the number if that was too long, double it if it was well below; between 1 and MAX_STEPS."""
        if nanoseconds > PATIENCE_NS:
            self.steps = max(self.steps // 2, 1)
        elif nanoseconds < PATIENCE_NS // 4:
            self.steps = min(self.steps * 2, MAX_STEPS)


class Others:
    """The other tasks of the event loop. A turn of it takes a while, even if there are none."""

    def __init__(self) -> None:
        self._alone_until = 0

    async def let_run(self) -> None:
        """Let them run, unless there were none a moment ago."""
        if self._alone_until and perf_counter_ns() < self._alone_until:
            return
        await trio.lowlevel.checkpoint()
        alone = trio.lowlevel.current_statistics().tasks_living <= OWN_TASKS
        self._alone_until = perf_counter_ns() + ALONE_NS if alone else 0
