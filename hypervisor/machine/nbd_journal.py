"""What a server has acknowledged and may forget if it dies: every change since the last flush.

NBD's flush, like NFS's COMMIT (RFC 1813, 3.3.21), makes safe what was answered before it was asked for. A client that
wants to outlive its server therefore keeps each change until a flush was answered that was sent after that answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import final

from hypervisor.machine.nbd_stream import Part

OVERHEAD = 128
"""Bytes that a change takes here besides its data."""


@final
class Journal:
    """Changes, in the order in which they were acknowledged: for those that overlap that is the order of the guest."""

    def __init__(self) -> None:
        self._changes: deque[Part] = deque()
        self._forgotten = 0
        self.bytes = 0
        """What it takes, about."""

    def note(self, change: Part) -> None:
        """Keep a change that was acknowledged."""
        self._changes.append(change)
        self.bytes += _size(change)

    @property
    def mark(self) -> int:
        """How many changes there have been."""
        return self._forgotten + len(self._changes)

    def forget(self, mark: int) -> None:
        """Drop the changes up to a mark: they are safe."""
        while self._forgotten < mark:
            self.bytes -= _size(self._changes.popleft())
            self._forgotten += 1

    def __iter__(self) -> Iterator[Part]:
        """Go through the changes that are not safe."""
        return iter(self._changes)


def _size(change: Part) -> int:
    return OVERHEAD + (0 if change.data is None else len(change.data))
