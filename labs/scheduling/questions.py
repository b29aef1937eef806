"""The questions of lab 10."""

from __future__ import annotations

import random

from hypervisor.abi.cpu import Cpu
from hypervisor.sched.costs import Costs
from labs.kit.bench import Bench, Dom
from labs.kit.questions import Question
from labs.scheduling.checks import MS, Run, burn, measure


def _clock(others: int, ns: int) -> int:
    """Return how many ms pass for a domain that computes for `ns`, beside so many others, under credit2."""
    found: list[int] = []

    def program(cpu: Cpu, start: int) -> Run:
        began = cpu.rdtsc()
        yield from burn(ns)
        yield 0
        found.append(cpu.rdtsc() - began)

    def other(cpu: Cpu, start: int) -> Run:
        yield from burn(100 * ns)

    bench = Bench(costs=Costs(switch=0))
    bench.run_guests(Dom(program, ends_host=True), *(Dom(other) for _ in range(others)))
    return round(found[0] / ns)


def _percent(settings: dict[str, tuple[int, int]], name: str) -> int:
    return round(measure(settings)[name] * 100)


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    others = rng.randrange(1, 5)
    light, heavy = rng.choice([(256, 512), (100, 300), (200, 800)])
    cap = rng.randrange(2, 9) * 10
    switches, cost = rng.choice([100, 500, 1000]), rng.randrange(500, 3000)
    return [
        Question(
            f"A domain computes for 600 ms beside {others} others of the same weight, all on one "
            "processor. How many times 600 ms pass by its clock, roughly?",
            lambda: _clock(others, 600 * MS),
            "Its own 600 ms, and as many for each of the others: the time between is stolen.",
        ),
        Question(
            f"Two domains compute all the time, with weights {light} and {heavy} (credit2). How many percent does "
            "the lighter one get?",
            lambda: _percent({"light": (light, 0), "heavy": (heavy, 0)}, "light"),
            "A weight says nothing by itself: it is a share among those who compete.",
        ),
        Question(
            f"A domain with a cap of {cap} is alone on the host. How many percent does it get?",
            lambda: _percent({"alone": (256, cap)}, "alone"),
            "A cap holds also when nobody else wants the processor. A weight does not.",
        ),
        Question(
            f"Switching costs {cost} ns. How many percent of a second are lost by {switches} switches?",
            lambda: f"{switches * cost / 1e7:.3f}",
            "Short time slices answer quickly and waste more. credit2 keeps a vCPU for 1 ms at least (ratelimit).",
        ),
    ]
