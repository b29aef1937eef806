"""The questions of lab 12."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import lru_cache

from labs.kit.questions import Question
from labs.measuring.scenario import Measured, measured


@lru_cache(maxsize=4)
def _host(seed: int) -> Measured:
    return measured(random.Random(seed))


def _count(seed: int, name: str) -> int:
    return sum(json.loads(line)["event"] == name for line in _host(seed).lines)


def _per_upcall(seed: int) -> str:
    return f"{_count(seed, 'evtchn_pending') / _count(seed, 'upcall'):.2f}"


def _most(seed: int) -> int:
    calls: Counter[int] = Counter()
    for line in _host(seed).lines:
        record = json.loads(line)
        if record["event"] == "hypercall" and record["domid"] == 0:
            calls[record["nr"]] += 1
    return max(sorted(calls), key=lambda nr: calls[nr])


def _switches(seed: int) -> int:
    return _count(seed, "schedule")


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    seed = rng.randrange(1 << 30)
    how = f"On the host of `labs.measuring.scenario.measured(random.Random({seed}))`"
    return [
        Question(
            f"{how}: how often does a processor turn to a vCPU (`schedule`)?",
            lambda: _switches(seed),
            "Each costs a switch, some 700 ns by the model of costs (docs/costs.md).",
        ),
        Question(
            f"{how}: how many events are there for each upcall, on average? (two digits behind the point)",
            lambda: _per_upcall(seed),
            "More than one: an upcall serves all that is pending. The busier a domain, the better it becomes.",
        ),
        Question(
            f"{how}: which hypercall (number) does domain 0 make most often?",
            lambda: _most(seed),
            "dom0 builds domains and serves xenstore and consoles. Most of what it has to say to Xen is: tell him.",
        ),
    ]
