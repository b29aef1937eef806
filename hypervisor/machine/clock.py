"""The host's clock: integer nanoseconds since the host was powered on, virtual or real."""

import time

VIRTUAL_EPOCH_NS = 1_700_000_000 * 1_000_000_000
"""Wall-clock time (ns since 1970, UTC) at power-on of a host in virtual time: fixed, so that runs are repeatable."""


class Clock:
    """Time since power-on.

    `now` is the time up to which the host has been simulated; the pCPU loop moves it. In virtual time nothing else
    does. In real time `read` catches up with the wall clock.
    """

    __slots__ = ("_base", "now", "real", "wallclock_base")

    def __init__(self, *, real: bool = False) -> None:
        self.real = real
        self.now = 0
        self._base = time.monotonic_ns() if real else 0
        self.wallclock_base = time.time_ns() if real else VIRTUAL_EPOCH_NS

    def read(self) -> int:
        """Return the current time in ns; in real time, move `now` there first. Never goes backwards."""
        if self.real:
            elapsed = time.monotonic_ns() - self._base
            if elapsed > self.now:
                self.now = elapsed
        return self.now
