"""A check: a short function with an id, a level, a source, and prose."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

import attrs


class Level(enum.Enum):
    """How much a check weighs."""

    must = "must"
    """The protocol, or a security advisory, demands it: peers break or are endangered without."""
    should = "should"
    """What Xen's own implementations do, and peers rely on though no document says so."""
    may = "may"
    """A difference that is worth knowing of, and no fault."""


class Outcome(enum.Enum):
    """What came of a check: the words of the Xen Test Framework."""

    success = "success"
    skip = "skip"
    """The subject does not offer what the check is about."""
    error = "error"
    """The kit, or the way to the subject, is broken: nothing is known of the subject."""
    failure = "failure"
    """The subject is broken."""


class Failure(Exception):
    """The subject does not do what the check asks; the message says what it did instead, in a sentence."""


class Skip(Exception):
    """The check does not apply to this subject; the message says why."""


Function = Callable[[Any], Any]
"""A check: of what its suite's world gives; a coroutine if it is to run in a guest."""
F = TypeVar("F", bound=Function)


@attrs.frozen
class Check:
    """One check of a suite."""

    id: str
    level: Level
    source: str
    """Header and section, document, or advisory that it follows."""
    function: Function
    schedules: int = 0
    """Under how many adversarial schedules it is to succeed, besides the usual one."""

    @property
    def suite(self) -> str:
        """The suite that the check belongs to: what comes before the number in its id, in lower case."""
        return self.id.rpartition("-")[0].lower()

    @property
    def title(self) -> str:
        """The rule, in one sentence."""
        return inspect.cleandoc(self.function.__doc__ or "").partition("\n")[0]

    @property
    def prose(self) -> str:
        """Why the rule is there, and what goes wrong without it."""
        return inspect.cleandoc(self.function.__doc__ or "").partition("\n")[2].strip()


CHECKS: Final[dict[str, Check]] = {}
"""All checks, by id, in the order in which they are written."""


def check(id: str, level: Level, source: str, schedules: int = 0) -> Callable[[F], F]:
    """Make a check of a function: its docstring is the rule, and below it why. It raises `Failure` or `Skip`."""

    def register(function: F) -> F:
        if id in CHECKS:
            raise ValueError(f"there are two checks {id}")
        made = CHECKS[id] = Check(id, level, source, function, schedules)
        if not made.title.endswith(".") or not made.prose:
            raise ValueError(f"{id} needs a docstring: a sentence, an empty line, and why")
        return function

    return register


_SHORT: Final = 100
"""Bytes that can be shown."""


def expect(is_so: object, sentence: str) -> None:
    """Raise `Failure` with this sentence unless something is so."""
    if not is_so:
        raise Failure(sentence)


def expect_equal(found: object, wanted: object, what: str) -> None:
    """Raise `Failure` unless what was found is what was wanted."""
    if found == wanted:
        return
    if isinstance(found, bytes) and isinstance(wanted, bytes) and len(found) + len(wanted) > 2 * _SHORT:
        pairs = enumerate(zip(found, wanted, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), min(len(found), len(wanted)))
        raise Failure(f"{what} has {len(found)} bytes and should have {len(wanted)}; they differ from byte {at} on.")
    raise Failure(f"{what} is {found!r}; it should be {wanted!r}.")
