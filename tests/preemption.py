"""Forcing preemptions: the same work with a hypercall given up at one point after the other, and at all of them.

    def work() -> object:
        world = World()
        ...                          # what is to be interrupted, between `points.on(world.hv)` and `points.off()`
        return counts(world)

    everywhere(work)

`everywhere` runs the work once undisturbed and counts the points at which it could have been preempted; then it runs it
anew for each of them, preempted there, and once preempted at every single one. All must come to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypervisor.hypervisor import Hypervisor
from hypervisor.vcpu import VCpu

T = TypeVar("T")
ALWAYS = -1


class Points:
    """Decides where the hypercalls of one host are preempted: at point number `at`, at all (ALWAYS), or nowhere."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.seen = 0
        self.stops = 0
        """How often a hypercall was in fact interrupted."""
        self.others: Callable[[VCpu], None] | None = None
        """What others do while it is."""
        self._hv: Hypervisor | None = None

    def on(self, hv: Hypervisor) -> None:
        """Count, and preempt, from here on."""
        self._hv = hv
        hv.preempt.forced = self._ask
        hv.preempt.between = self._between

    def off(self) -> None:
        """Leave the host alone again."""
        assert self._hv is not None
        self._hv.preempt.forced = self._hv.preempt.between = None

    def _ask(self) -> bool:
        self.seen += 1
        return self.at == ALWAYS or self.seen == self.at

    def _between(self, vcpu: VCpu) -> None:
        self.stops += 1
        if self.others is not None and self._hv is not None:
            forced, self._hv.preempt.forced = self._hv.preempt.forced, None
            self.others(vcpu)
            self._hv.preempt.forced = forced


def everywhere(work: Callable[[Points], T], *, step: int = 1, least: int = 2) -> T:
    """Do `work` undisturbed, then preempted at each point (or each `step`th); returns the result, always the same.

    `least` is how many points there must be for the test to mean anything.
    """
    undisturbed = Points()
    expected = work(undisturbed)
    assert undisturbed.seen >= least, f"only {undisturbed.seen} points at which to preempt"
    for at in range(1, undisturbed.seen + 1, step):
        points = Points(at)
        assert work(points) == expected, f"preempted at point {at} of {undisturbed.seen}"
        assert points.stops, f"point {at} of {undisturbed.seen} interrupts nothing"
    points = Points(ALWAYS)
    assert work(points) == expected, "preempted at every point"
    assert points.stops >= least
    return expected
