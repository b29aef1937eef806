"""How long the pCPU loop runs before those outside are heard again: sockets, consoles, signals.

The loop counts stretches of guest code, and how long one takes differs a thousandfold: a Python guest's is over in
microseconds; one of machine code can be ten milliseconds of virtual time, which the emulator needs a tenth of a second
for, and which counts as many. So the number of stretches follows the clock. It changes nothing on the host: a stretch
is a stretch, whoever looks up from time to time.
"""

from __future__ import annotations

from time import perf_counter_ns

MAX_STEPS = 500
FIRST_STEPS = 16
PATIENCE_NS = 10_000_000
"""Those outside should not wait longer, by the wall clock, than this or than one stretch takes."""


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
