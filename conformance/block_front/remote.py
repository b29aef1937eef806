"""The disk of a guest that is no Python program: each access is a job that somebody there is asked to do."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final, final

from conformance.kit.check import Skip
from conformance.kit.machine_guest import MachineGuest
from conformance.wire import protocol as wire
from conformance.wire.agent import Seat
from guest_kernel.block import SECTOR_SIZE

LONGEST_PATTERN: Final = 256
"""Bytes that the data of a write may consist of, again and again: a console has no room for more."""


class Hands(ABC):
    """Who does the jobs."""

    def __init__(self) -> None:
        self.results: dict[int, tuple[bool, bytes]] = {}
        """By the job's number: whether it went well, and what it brought."""

    @abstractmethod
    def ask(self, number: int, what: str, sector: int, count: int, data: bytes) -> None:
        """Have a job done: `read`, `write`, `flush`, `size` or `nothing`."""

    def look(self) -> None:
        """Find out what is new."""
        return

    @property
    def ready(self) -> bool:
        """Whether anybody is there yet."""
        return True


@final
class ConsoleHands(Hands):
    """A program of a machine-code guest."""

    def __init__(self, guest: MachineGuest) -> None:
        super().__init__()
        self._guest = guest
        guest.on_done = lambda number, good, data: self.results.update({number: (good, data)})
        self.look = guest.look  # type: ignore[method-assign]

    @property
    def ready(self) -> bool:
        """Whether the program has said that it is."""
        return self._guest.is_ready

    def ask(self, number: int, what: str, sector: int, count: int, data: bytes) -> None:
        """Type it."""
        if what == "write":
            self._guest.ask(number, what, sector, count, _pattern(data).hex())
        elif what == "read":
            self._guest.ask(number, what, sector, count)
        else:
            self._guest.ask(number, what)


@final
class WireHands(Hands):
    """A process on the wire."""

    def __init__(self, seat: Seat) -> None:
        super().__init__()
        self._seat = seat

    @property
    def ready(self) -> bool:
        """Whether its domain runs."""
        return self._seat.agent is not None

    def ask(self, number: int, what: str, sector: int, count: int, data: bytes) -> None:
        """Make it a job of the process."""
        agent = self._seat.agent
        assert agent is not None
        agent.on_done = self._done
        agent.post(wire.JOB.pack(number, wire.Job[what], sector, count, 0) + data)

    def _done(self, number: int, status: int, data: bytes) -> None:
        self.results[number] = status == 0, data


def _pattern(data: bytes) -> bytes:
    """Return what data consists of, again and again. Raises Skip if that is too much to be typed."""
    for size in range(1, LONGEST_PATTERN + 1):
        if len(data) % size == 0 and data[:size] * (len(data) // size) == data:
            return data[:size]
    raise Skip("The guest can only be told of data that repeats.")


@final
class RemoteDisk:
    """What a check's guest sees of its disk (the part of `guest_kernel.block.BlockDevice` that checks use)."""

    def __init__(self, hands: Hands, pause: Callable[[], Awaitable[None]]) -> None:
        self._hands = hands
        self._pause = pause
        self._next = 1

    async def read(self, sector: int, count: int) -> bytes:
        """Read sectors. Raises OSError."""
        return await self._do("read", sector, count)

    async def write(self, sector: int, data: bytes) -> None:
        """Write sectors. Raises OSError."""
        await self._do("write", sector, len(data) // SECTOR_SIZE, data)

    async def flush(self) -> None:
        """Make what was written durable. Raises OSError."""
        await self._do("flush")

    async def size(self) -> int:
        """Return the number of sectors. Raises OSError."""
        return int.from_bytes(await self._do("size"), "little")

    async def nothing(self) -> None:
        """Show a sign of life."""
        await self._do("nothing")

    async def _do(self, what: str, sector: int = 0, count: int = 0, data: bytes = b"") -> bytes:
        number = self._next
        self._next += 1
        while not self._hands.ready:
            await self._pause()
        self._hands.ask(number, what, sector, count, data)
        while number not in self._hands.results:
            await self._pause()
            self._hands.look()
        good, brought = self._hands.results.pop(number)
        if not good:
            raise OSError(errno.EIO, f"the guest cannot {what} sector {sector}")
        return brought
