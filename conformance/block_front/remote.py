"""The disk of a guest that is no Python program: each access is an errand that somebody there does."""

from __future__ import annotations

import errno
from typing import Final, final

import attrs

from conformance.kit.check import Skip
from conformance.kit.hands import Hands
from conformance.wire import protocol as wire
from guest_kernel.block import SECTOR_SIZE

LONGEST_PATTERN: Final = 256
"""Bytes that the data of a write may consist of, again and again: a console has no room for more."""


@final
@attrs.frozen
class DiskErrand:
    """An access: `read`, `write`, `flush`, `size`, or `nothing`."""

    what: str
    sector: int = 0
    count: int = 0
    data: bytes = b""

    def typed(self) -> tuple[object, ...]:
        """Return it as words on a console. Raises Skip if it cannot be typed."""
        if self.what == "write":
            return self.what, self.sector, self.count, _pattern(self.data).hex()
        return (self.what, self.sector, self.count) if self.what == "read" else (self.what,)

    def packed(self, number: int) -> bytes:
        """Return it as news on the wire."""
        return wire.JOB.pack(number, wire.Job[self.what], self.sector, self.count, 0) + self.data


def _pattern(data: bytes) -> bytes:
    """Return what data consists of, again and again. Raises Skip if that is too much to be typed."""
    for size in range(1, LONGEST_PATTERN + 1):
        if len(data) % size == 0 and data[:size] * (len(data) // size) == data:
            return data[:size]
    raise Skip("The guest can only be told of data that repeats.")


@final
class RemoteDisk:
    """What a check's guest sees of its disk (the part of `guest_kernel.block.BlockDevice` that checks use)."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands

    async def read(self, sector: int, count: int) -> bytes:
        """Read sectors. Raises OSError."""
        return await self._do(DiskErrand("read", sector, count))

    async def write(self, sector: int, data: bytes) -> None:
        """Write sectors. Raises OSError."""
        await self._do(DiskErrand("write", sector, len(data) // SECTOR_SIZE, data))

    async def flush(self) -> None:
        """Make what was written durable. Raises OSError."""
        await self._do(DiskErrand("flush"))

    async def size(self) -> int:
        """Return the number of sectors. Raises OSError."""
        return int.from_bytes(await self._do(DiskErrand("size")), "little")

    async def nothing(self) -> None:
        """Show a sign of life."""
        await self._do(DiskErrand("nothing"))

    async def _do(self, errand: DiskErrand) -> bytes:
        good, brought = await self._hands.do(errand)
        if not good:
            raise OSError(errno.EIO, f"the guest cannot {errand.what} sector {errand.sector}")
        return brought
