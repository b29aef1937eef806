"""Runs checks on a subject, each in a world of its own."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs

from conformance.kit.check import Check, Failure, Level, Outcome, Skip
from conformance.kit.recording import recorded

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
    trace: Path | None = None
    """The trace of the host on which the check ran last, if one was to be recorded."""

    @property
    def condemns(self) -> bool:
        """Whether the subject does not conform because of this: a `may` is only told."""
        return self.outcome is Outcome.failure and self.check.level is not Level.may


def run_check(check: Check, world: World) -> Result:
    """Run one check."""
    began = time.monotonic()
    outcome, message, details = Outcome.success, "", ""
    try:
        with world() as subject:
            running = check.function(subject)
            if inspect.iscoroutine(running):
                subject.drive(running)
    except Failure as failure:
        outcome, message = Outcome.failure, str(failure)
    except Skip as skip:
        outcome, message = Outcome.skip, str(skip)
    except Exception as error:
        outcome, message, details = Outcome.error, f"{type(error).__name__}: {error}", traceback.format_exc()
    return Result(check, outcome, message, time.monotonic() - began, details)


def run_checks(checks: Iterable[Check], world: World, traces: Path | None = None) -> Iterator[Result]:
    """Run checks one after the other. In the directory `traces` those that do not succeed leave traces, if they can."""
    for check in checks:
        if traces is None:
            yield run_check(check, world)
            continue
        file = traces / f"{check.id}.trace"
        with recorded(file):
            result = run_check(check, world)
        if result.outcome in (Outcome.failure, Outcome.error) and file.exists():
            yield attrs.evolve(result, trace=file)
        else:
            file.unlink(missing_ok=True)
            yield result
