"""Runs checks on a subject, each in a world of its own."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import attrs

from conformance.kit.check import Check, Failure, Level, Outcome, Skip
from conformance.kit.recording import recorded
from conformance.kit.schedules import Adversary, scheduled, shrink
from conformance.kit.telling import heard
from hypervisor.sched.policy import Decisions

World = Callable[[], AbstractContextManager[Any]]
"""Makes what a check is given: the subject, and a way to talk to it. Raises what says that this cannot be done."""


@attrs.frozen
class Result:
    """What came of one check."""

    check: Check
    outcome: Outcome
    message: str
    """Why, in a sentence; empty for a success."""
    seconds: float
    details: str = ""
    """For an error of the kit: where it happened."""
    schedule: str = ""
    """The shortest schedule known under which it fails, if it does not under the usual one."""
    trace: Path | None = None
    """The trace of the host on which the check ran last, if one was to be recorded."""

    @property
    def condemns(self) -> bool:
        """Whether the subject does not conform because of this: a `may` is only told."""
        return self.outcome is Outcome.failure and self.check.level is not Level.may


def run_check(check: Check, world: World, schedules: int | None = None) -> Result:
    """Run one check; if it succeeds, under so many adversarial schedules, too (None: as many as the check wants)."""
    subjects: list[Any] = []
    result = _run_once(check, world, subjects)
    wanted = check.schedules if schedules is None else schedules
    if not wanted or result.outcome is not Outcome.success or not all(map(_is_python, subjects)):
        return result
    return _explore(check, world, wanted) or result


def _is_python(scene: Any) -> bool:
    """Whether what is judged runs as the schedule says: a process does not, and a whole guest takes long."""
    subject = getattr(scene, "subject", None)
    return inspect.isclass(subject) or inspect.isroutine(subject)


def _explore(check: Check, world: World, wanted: int) -> Result | None:
    """Look for a schedule under which a check does not succeed; return what it says under the shortest one like it."""

    def run(policy: Decisions) -> Result:
        with scheduled(lambda: policy):
            return _run_once(check, world)

    plain = Decisions({})
    result = run(plain)
    if not plain.choices:
        # It needs no host, or one whose domains never wait for each other.
        return None
    if result.outcome is Outcome.failure:
        is_usual_good = _run_once(check, world).outcome is Outcome.success
        again = run(Decisions({}))
        if not is_usual_good or again.outcome is not Outcome.failure:
            return _told(result, _KEEPS)
        return _told(again, f"Under the schedule {plain} {_NOBODY_WAITS}", plain)
    found, tries = plain, 0
    while result.outcome is Outcome.success and tries < wanted:
        found = Adversary(tries, plain.choices)
        result = run(found)
        tries += 1
    if result.outcome is not Outcome.failure:
        return None if result.outcome in (Outcome.success, Outcome.skip) else result
    shortest, runs = shrink(found.taken, lambda policy: run(policy).outcome is Outcome.failure)
    again = run(Decisions(shortest.taken))
    if again.outcome is not Outcome.failure or not shortest.taken:
        return _told(result, _KEEPS)
    count = f"{len(shortest.taken)} of {len(found.taken)} decisions, found in {tries + runs} runs"
    return _told(again, f"Under the schedule {shortest}: {count}.", shortest)


_NOBODY_WAITS: Final = "alone, which passes nobody over, but interrupts a domain wherever it may."
_KEEPS: Final = (
    "Under one and the same schedule it succeeds and then fails. Does it keep something from one host to the next?"
)


def _told(result: Result, how: str, schedule: Decisions | None = None) -> Result:
    """Say of a failure how it came about, and how it can be seen again."""
    message = f"{result.message} ({how})"
    return attrs.evolve(result, message=message, schedule="" if schedule is None else str(schedule))


def _run_once(check: Check, world: World, subjects: list[Any] | None = None) -> Result:
    """Run a check under the schedule that there is; `subjects` takes what it was given."""
    began = time.monotonic()
    outcome, message, details = Outcome.success, "", ""
    try:
        with world() as subject:
            if subjects is not None:
                subjects.append(subject)
            running = check.function(subject)
            if inspect.iscoroutine(running):
                _drive(subject, running)
    except Failure as failure:
        outcome, message = Outcome.failure, str(failure)
    except Skip as skip:
        outcome, message = Outcome.skip, str(skip)
    except Exception as error:
        outcome, message, details = Outcome.error, f"{type(error).__name__}: {error}", traceback.format_exc()
    return Result(check, outcome, message, time.monotonic() - began, details)


def _drive(subject: Any, running: Coroutine[Any, Any, None]) -> None:
    """Have a check run in its world, which may end before it comes to that."""
    told = heard(subject, running)
    try:
        subject.drive(told)
    finally:
        for one in (told, running):
            if inspect.getcoroutinestate(one) == inspect.CORO_CREATED:
                one.close()


def run_checks(
    checks: Iterable[Check], world: World, traces: Path | None = None, schedules: int | None = None
) -> Iterator[Result]:
    """Run checks one after the other. In the directory `traces` those that do not succeed leave traces, if they can."""
    for check in checks:
        if traces is None:
            yield run_check(check, world, schedules)
            continue
        file = traces / f"{check.id}.trace"
        with recorded(file):
            result = run_check(check, world, schedules)
        if result.outcome in (Outcome.failure, Outcome.error) and file.exists():
            yield attrs.evolve(result, trace=file)
        else:
            file.unlink(missing_ok=True)
            yield result
