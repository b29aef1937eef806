"""What a check of a kernel gets: its file, and its lives, each of which is lived once for all checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from conformance.guest_abi.life import Life, live
from conformance.guest_abi.subject import Subject, parse
from conformance.kit.check import Failure, Skip
from conformance.kit.runner import World


@final
class Guest:
    """A kernel to be judged."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._lives: dict[str, Life] = {}

    def life(self, scenario: str = "peace") -> Life:
        """Return a life of the kernel under a scenario (`life.SCENARIOS`)."""
        found = self._lives.get(scenario)
        if found is None:
            found = self._lives[scenario] = live(self.subject, scenario)
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
        yield guest

    return world
