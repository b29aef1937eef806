"""What a timer costs, beside SimPy's: the same loads on the host's heap of timers and on a SimPy environment.

fire     many timers with deadlines all over, armed first, then fired one by one
rearm    a thousand periodic timers, each armed again whenever it has fired
cancel   timers armed and cancelled, of which one in ten fires

SimPy has processes (generators) and events with callbacks; the faster of the two counts. It is processor time,
in turns, the best of several.

usage: python -m benchmarks.timers [--timers N] [--rounds N] [--check]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator

import simpy

from hypervisor.machine.timers import Timer, Timers

GOAL = 1.0
"""Our time is to be at most so many times SimPy's."""


def nothing() -> None:
    """Be what a timer calls."""


def run(timers: Timers) -> int:
    """Fire all timers, as the loop of a pCPU does; returns how many there were."""
    fired = 0
    while timers.heap:
        timer = timers.pop_due(timers.next_deadline)
        if timer is not None and timer.function is not None:
            function, timer.function = timer.function, None
            function()
            fired += 1
    return fired


def ours_fire(deadlines: list[int]) -> int:
    timers = Timers()
    for deadline in deadlines:
        timers.add(deadline, nothing)
    return run(timers)


def ours_rearm(deadlines: list[int]) -> int:
    timers = Timers()
    left = len(deadlines)
    now = 0

    def make(period: int) -> None:
        deadline = now + period

        def tick() -> None:
            nonlocal left, deadline
            left -= 1
            if left > 0:
                deadline += period
                timers.rearm(timer, deadline, tick)

        timer: Timer = timers.add(deadline, tick)

    for period in deadlines[:1000]:
        make(period % 1000 + 1)
    return run(timers)


def ours_cancel(deadlines: list[int]) -> int:
    timers = Timers()
    for number, deadline in enumerate(deadlines):
        timer = timers.add(deadline, nothing)
        if number % 10:
            timer.cancel()
    return run(timers)


def callback(_event: simpy.Event) -> None:
    """Be what a SimPy event calls."""


def simpy_fire(deadlines: list[int]) -> int:
    environment = simpy.Environment()
    for deadline in deadlines:
        environment.timeout(deadline).callbacks.append(callback)
    environment.run()
    return len(deadlines)


def simpy_fire_process(deadlines: list[int]) -> int:
    environment = simpy.Environment()

    def wait(deadline: int) -> Iterator[simpy.Event]:
        yield environment.timeout(deadline)

    for deadline in deadlines:
        environment.process(wait(deadline))
    environment.run()
    return len(deadlines)


def simpy_rearm(deadlines: list[int]) -> int:
    environment = simpy.Environment()
    left = len(deadlines)

    def periodic(period: int) -> Iterator[simpy.Event]:
        nonlocal left
        while True:
            yield environment.timeout(period)
            left -= 1
            if left <= 0:
                return

    for period in deadlines[:1000]:
        environment.process(periodic(period % 1000 + 1))
    environment.run()
    return len(deadlines)


def simpy_cancel(deadlines: list[int]) -> int:
    environment = simpy.Environment()
    for number, deadline in enumerate(deadlines):
        event = environment.timeout(deadline)
        if not number % 10:
            event.callbacks.append(callback)
    environment.run()
    return len(deadlines)


LOADS: dict[str, tuple[Callable[[list[int]], int], tuple[Callable[[list[int]], int], ...]]] = {
    "fire": (ours_fire, (simpy_fire, simpy_fire_process)),
    "rearm": (ours_rearm, (simpy_rearm,)),
    "cancel": (ours_cancel, (simpy_cancel,)),
}


def cost(load: Callable[[list[int]], int], deadlines: list[int]) -> float:
    """Return nanoseconds of processor time for each timer."""
    began = time.process_time_ns()
    load(deadlines)
    return (time.process_time_ns() - began) / len(deadlines)


def main() -> None:
    """Print a line for each load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timers", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the goal is missed")
    options = parser.parse_args()
    rng = random.Random(1)
    deadlines = [rng.randrange(1 << 40) for _ in range(options.timers)]
    missed = False
    for name, (ours, theirs) in LOADS.items():
        mine = other = float("inf")
        for _ in range(options.rounds):
            mine = min(mine, cost(ours, deadlines))
            other = min(other, *(cost(load, deadlines) for load in theirs))
        missed |= mine > other * GOAL
        print(f"{name:7} {mine:7.0f} ns   SimPy {other:7.0f} ns   ratio {mine / other:.2f} (goal: at most {GOAL})")
    sys.exit(options.check and missed)


if __name__ == "__main__":
    main()
