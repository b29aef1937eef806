"""A lab's check: a function that puts one part of a submission to work, and is worth some points.

    @check(15, "version")
    def version(work: Work) -> None:
        \"\"\"`version` asks Xen for its version.\"\"\"
        ...
        expect(found == (4, 17), f"version() returned {found}; this host runs Xen 4.17")

It raises `Miss` with the reason if the submission does not do what it should. Whatever else comes out of it is the
submission's own failure, and is told with the line where it happened.
"""

from __future__ import annotations

import importlib.util
import inspect
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

import attrs


class Miss(Exception):
    """The submission does not do what a check asks: the reason, in a sentence for the student."""


@attrs.frozen
class Work:
    """A submission, and the random numbers of the student who made it."""

    directory: Path
    rng: random.Random
    """Differs from student to student and from check to check; the same each time for one."""

    def load(self, name: str) -> Any:
        """Execute a file of the submission (`NAME.py`) and return it as a module. Raises what the file raises."""
        path = self.directory / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise Miss(f"there is no {name}.py")
        if str(self.directory) not in sys.path:
            sys.path.insert(0, str(self.directory))
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    def word(self) -> str:
        """Return a word that nobody can foresee."""
        syllables = [self.rng.choice("bdfgklmnprst") + self.rng.choice("aeiou") for _ in range(4)]
        return "".join(syllables)


@attrs.frozen
class Check:
    """One check of a lab."""

    name: str
    points: int
    function: Callable[[Work], None]
    limit: float
    """Seconds of wall-clock time."""

    @property
    def title(self) -> str:
        """What the check asks for, in one sentence."""
        return inspect.cleandoc(self.function.__doc__ or "").partition("\n")[0]


class Checks:
    """The checks of one lab, in order: `check` is the decorator that adds one."""

    def __init__(self) -> None:
        self.all: Final[list[Check]] = []

    def check(
        self, points: int, name: str, *, limit: float = 20.0
    ) -> Callable[[Callable[[Work], None]], Callable[[Work], None]]:
        """Make a check of a function. Its docstring begins with the sentence that reports show."""

        def register(function: Callable[[Work], None]) -> Callable[[Work], None]:
            made = Check(name, points, function, limit)
            if not made.title.endswith("."):
                raise ValueError(f"the check {name!r} needs a docstring that begins with a sentence")
            self.all.append(made)
            return function

        return register

    @property
    def points(self) -> int:
        """The points that can be had."""
        return sum(check.points for check in self.all)


def miss(sentence: str) -> NoReturn:
    """Raise `Miss`."""
    raise Miss(sentence)


def expect(is_so: object, sentence: str) -> None:
    """Raise `Miss` with this sentence unless something is so."""
    if not is_so:
        raise Miss(sentence)


def expect_equal(found: object, wanted: object, what: str) -> None:
    """Raise `Miss` unless what was found is what was wanted."""
    if found != wanted:
        raise Miss(f"{what} is {shown(found)}; it should be {shown(wanted)}")


def shown(value: object) -> str:
    """Return a value as text: addresses and frames in hexadecimal, and nothing that is too long to read."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 0xFFFF:
        return hex(value)
    try:
        text = repr(value)
    except Exception as error:
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"
