"""A disk that fails as disks do: bad sectors, no room, torn writes, slow commands. It stands before another backing."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import attrs

from hypervisor.machine.backing import Backing

SECTOR_SIZE = 512


@attrs.frozen
class Faults:
    """What is wrong with a disk; the default is a sound one. Sectors have 512 bytes."""

    bad: tuple[tuple[int, int], ...] = ()
    """Bad sectors, as (first, last). What touches one fails with EIO as a whole and moves nothing."""
    bad_flushes: bool = False
    """Whether every flush fails with EIO, after it was tried."""
    room: int | None = None
    """How many different sectors can be written before there is no room (ENOSPC): a disk that promises more than it
    has. Discarding makes room again. None: as many as there are."""
    tear_every: int = 0
    """Of each so many writes, one stores only its first half (whole sectors, rounded down), and fails with EIO."""
    delay_ns: int = 0
    """How much longer each group of commands takes than on another disk."""


class FailingDisk(Backing):
    """The disk `inner` with `faults`. The same commands fail in the same way each time."""

    def __init__(self, inner: Backing, faults: Faults) -> None:
        self.inner = inner
        self.faults = faults
        self.size = inner.size
        self.readonly = inner.readonly
        self.discards = inner.discards
        self.discards_securely = inner.discards_securely
        self.sector_size = inner.sector_size
        self.physical_sector_size = inner.physical_sector_size
        self.delay_ns = faults.delay_ns
        self._taken: set[int] = set()
        """Sectors that take room, if that is limited."""
        self._writes = 0

    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Read, unless a sector is bad."""
        return errno.EIO if self._is_bad(offset, size) else self.inner.readv(views, offset, size)

    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Write, unless a sector is bad or there is no room; the write may be torn."""
        if self._is_bad(offset, size):
            return errno.EIO
        if self.faults.room is not None:
            wanted = self._taken.union(_sectors(offset, size))
            if len(wanted) > self.faults.room:
                return errno.ENOSPC
            self._taken = wanted
        self._writes += 1
        if self.faults.tear_every and not self._writes % self.faults.tear_every:
            return self._tear(views, offset, size)
        return self.inner.writev(views, offset, size)

    def flush(self) -> int:
        """Flush; what was stored before is safe even where the answer is EIO."""
        status = self.inner.flush()
        return errno.EIO if self.faults.bad_flushes else status

    def discard(self, offset: int, size: int) -> int:
        """Discard, and have the room back."""
        return self._discard(self.inner.discard, offset, size)

    def discard_securely(self, offset: int, size: int) -> int:
        """Discard securely, and have the room back."""
        return self._discard(self.inner.discard_securely, offset, size)

    def _discard(self, discard: Callable[[int, int], int], offset: int, size: int) -> int:
        if self._is_bad(offset, size):
            return errno.EIO
        status = discard(offset, size)
        if not status:
            self._taken.difference_update(_sectors(offset, size))
        return status

    def resize(self, size: int) -> int:
        """Resize the disk behind; bad sectors stay where they are."""
        status = self.inner.resize(size)
        self.size = self.inner.size
        return status

    def close(self) -> None:
        """Close the disk behind."""
        self.inner.close()

    def _is_bad(self, offset: int, size: int) -> bool:
        first, end = offset // SECTOR_SIZE, (offset + size) // SECTOR_SIZE
        return any(first <= last and start < end for start, last in self.faults.bad)

    def _tear(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Store the first half of a write."""
        left = half = size // SECTOR_SIZE // 2 * SECTOR_SIZE
        kept = []
        for view in views:
            if left:
                kept.append(view[:left])
                left -= len(kept[-1])
        if half:
            self.inner.writev(kept, offset, half)
        return errno.EIO


def _sectors(offset: int, size: int) -> range:
    return range(offset // SECTOR_SIZE, (offset + size) // SECTOR_SIZE)


# -- how a person says it ---------------------------------------------------------------------------------------------


def parse_faults(text: str) -> Faults:
    """Parse faults separated by `;`: `bad:FIRST-LAST`, `flush`, `full:SECTORS`, `torn:EVERY`, `slow:MILLISECONDS`.

    Raises ValueError with one sentence.
    """
    faults = Faults()
    for word in text.split(";"):
        kind, _, value = word.strip().partition(":")
        parser = _KINDS.get(kind)
        if parser is None:
            raise ValueError(f"unknown fault {kind!r}; there are {', '.join(_KINDS)}")
        try:
            faults = parser(faults, value)
        except ValueError:
            raise ValueError(f"the fault {word.strip()!r} is not of the form {_FORMS[kind]}") from None
    return faults


def _bad(faults: Faults, value: str) -> Faults:
    first, dash, last = value.partition("-")
    sectors = _number(first), _number(last if dash else first)
    if sectors[0] > sectors[1]:
        raise ValueError(value)
    return attrs.evolve(faults, bad=(*faults.bad, sectors))


def _flush(faults: Faults, value: str) -> Faults:
    if value:
        raise ValueError(value)
    return attrs.evolve(faults, bad_flushes=True)


def _number(text: str, least: int = 0) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < least:
        raise ValueError(text)
    return int(text)


_KINDS: dict[str, Callable[[Faults, str], Faults]] = {
    "bad": _bad,
    "flush": _flush,
    "full": lambda faults, value: attrs.evolve(faults, room=_number(value)),
    "torn": lambda faults, value: attrs.evolve(faults, tear_every=_number(value, 1)),
    "slow": lambda faults, value: attrs.evolve(faults, delay_ns=_number(value) * 1_000_000),
}
_FORMS = {
    "bad": "bad:SECTOR or bad:FIRST-LAST",
    "flush": "flush",
    "full": "full:SECTORS",
    "torn": "torn:EVERY",
    "slow": "slow:MILLISECONDS",
}
