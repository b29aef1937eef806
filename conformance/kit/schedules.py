"""Checks under adversarial schedules: other interleavings of the domains, and the shortest one that fails.

A schedule is what `paravirt run --schedule decisions:…` takes: at which choices not the first in line runs. An
adversary makes one up as it goes. There are two kinds, in turn. One deviates now and then, at random. The other picks a
domain and lets it wait as long as anybody else can run, for a stretch of choices: what an event, a watch or a wake-up
has set off there comes late, and everything else comes before it.

The adversary's decisions are noted. So the run can be repeated, and decisions be left out for as long as it still
fails (delta debugging, Zeller and Hildebrandt 2002).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, final

from hypervisor.sched.policy import Decisions, Policy, parse_policy

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu

RATES: Final = (0.02, 0.1, 0.4)
"""How often an adversary at random deviates."""
LONGEST: Final = 400
"""Choices for which a domain is held up at most."""
SHRINKS: Final = 40
"""How many runs the shortest schedule may cost."""

_policy: ContextVar[Callable[[], Policy] | None] = ContextVar("_policy", default=None)


@final
class Adversary(Decisions):
    """Makes up decisions, the same ones for the same seed. `horizon` is about how many choices there will be."""

    def __init__(self, seed: int, horizon: int) -> None:
        super().__init__({})
        self._random = random.Random(seed)
        self._holds_up = bool(seed % 2)
        self._rate = RATES[seed // 2 % len(RATES)]
        begin = self._random.randrange(max(horizon, 1))
        self._held = range(begin, begin + self._random.randrange(1, LONGEST))
        self._victim: int | None = None

    def choose(self, runnable: Sequence[VCpu]) -> int:
        """Decide, and take note of it."""
        if len(runnable) == 1:
            return 0
        number = self.choices
        self.choices += 1
        index = self._hold_up(number, runnable) if self._holds_up else self._deviate(runnable)
        if index:
            self.taken[number] = index
        return index

    def _deviate(self, runnable: Sequence[VCpu]) -> int:
        return self._random.randrange(1, len(runnable)) if self._random.random() < self._rate else 0

    def _hold_up(self, number: int, runnable: Sequence[VCpu]) -> int:
        if number not in self._held:
            return 0
        if self._victim is None:
            self._victim = self._random.choice(runnable).domain.domid
        others = [index for index, vcpu in enumerate(runnable) if vcpu.domain.domid != self._victim]
        return others[0] if others else 0


@contextmanager
def scheduled(make: Callable[[], Policy]) -> Iterator[None]:
    """Have the hosts that are made meanwhile scheduled by a policy each."""
    token = _policy.set(make)
    try:
        yield
    finally:
        _policy.reset(token)


def schedule(text: str) -> Callable[[], Policy]:
    """Return what makes the policy that `--schedule TEXT` names. Raises ValueError with a sentence for a person."""
    parse_policy(text)
    return lambda: parse_policy(text)


def options() -> dict[str, Any]:
    """Return what a host on which a check runs is to be made with."""
    make = _policy.get()
    return {} if make is None else {"policy": make()}


Fails = Callable[[Decisions], bool]
"""Run under decisions; return whether it fails."""


def shrink(taken: dict[int, int], fails: Fails) -> tuple[Decisions, int]:
    """Return as short a schedule as can be found that still fails, and how many runs that took."""
    items = sorted(taken.items())
    runs = 0
    parts = 2
    while items and runs < SHRINKS:
        size = max(1, len(items) // parts)
        for start in range(0, len(items), size):
            rest = items[:start] + items[start + size :]
            runs += 1
            if fails(Decisions(dict(rest))):
                items = rest
                parts = max(2, parts - 1)
                break
            if runs >= SHRINKS:
                break
        else:
            if size == 1:
                break
            parts = min(len(items), parts * 2)
    return Decisions(dict(items)), runs
