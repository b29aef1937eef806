"""Devices that come and go while the guest runs: who waits for which, and who wants to hear of it.

    async with kernel.block.changes.follow() as changes:
        change = await changes.get()          Change("xvdb", present=True)

A follower that does not keep up is told of the first `BACKLOG` changes and then, once, that it has missed some.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import final

import attrs

from guest_kernel.threads import Mailbox

BACKLOG = 64
"""Changes that are kept for one follower."""


@attrs.frozen
class Change:
    """A device of this name has come (or come back), or gone. A name of "" says that changes have been missed."""

    name: str
    present: bool


@final
class Follower:
    """Hears of each change, from its `async with` on."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._box: Mailbox[Change] = Mailbox()

    async def get(self) -> Change:
        """Return the next change; wait for it."""
        return await self._box.get()

    def put(self, change: Change) -> None:
        """Take note of a change. Callable from upcall handlers."""
        if len(self._box) < BACKLOG:
            self._box.put_nowait(change)
        elif len(self._box) == BACKLOG:
            self._box.put_nowait(Change("", present=False))

    async def __aenter__(self) -> Follower:
        self._changes.followers[self] = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._changes.followers[self]


@final
class Changes:
    """The comings and goings of one class of devices."""

    def __init__(self) -> None:
        self.followers: dict[Follower, None] = {}

    def follow(self) -> Follower:
        """Return somebody who hears of the changes, for an `async with`."""
        return Follower(self)

    def tell(self, name: str, *, present: bool) -> None:
        """Tell all followers of a change."""
        for follower in self.followers:
            follower.put(Change(name, present))


@contextmanager
def noted(wanted: dict[str, int], name: str) -> Iterator[None]:
    """Count a thread among those that wait for a device, while it does."""
    wanted[name] = wanted.get(name, 0) + 1
    try:
        yield
    finally:
        wanted[name] -= 1
        if not wanted[name]:
            del wanted[name]
