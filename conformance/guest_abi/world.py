"""What a check of a kernel gets: its file, and its lives, each of which is lived once for all checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from conformance.guest_abi.life import ABOUT, Life, live
from conformance.guest_abi.subject import Subject, parse
from conformance.kit.check import Failure, Skip
from conformance.kit.pages import LIFE
from conformance.kit.runner import World
from conformance.kit.telling import is_telling, note


@final
class Guest:
    """A kernel to be judged."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._lives: dict[str, Life] = {}
        self._told: set[str] = set()
        """The scenarios whose lives are told already in the check that runs."""

    def begin(self) -> None:
        """Let a check begin."""
        self._told.clear()

    def life(self, scenario: str = "peace") -> Life:
        """Return a life of the kernel under a scenario (`life.SCENARIOS`)."""
        found = self._lives.get(scenario)
        if found is None or (found.teller is None and is_telling()):
            found = self._lives[scenario] = live(self.subject, scenario, is_telling())
        if found.teller is not None and scenario not in self._told:
            self._told.add(scenario)
            note(f"{LIFE}of the kernel: {ABOUT[scenario]}.)")
            for line in found.teller.lines:
                note(line)
        return found

    def at_rest(self, scenario: str = "peace") -> Life:
        """Return a life in which it came to rest. Raises Skip if it ended by itself before, Failure if it crashed."""
        life = self.life(scenario)
        if life.recorder.crash or life.recorder.shutdown == 3:
            raise Failure(f"It crashes: {life.message or life.recorder.crash}.")
        if not life.rested:
            raise Skip("it ends by itself, or never rests")
        return life


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    guest = Guest(parse(text))

    @contextmanager
    def world() -> Iterator[Guest]:
        guest.begin()
        yield guest

    return world
