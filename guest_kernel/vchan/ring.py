"""The shared page of a vchan and its two byte rings (io/libxenvchan.h), without I/O.

    byte 0    left.cons  left.prod      client writes, server reads
    byte 8    right.cons right.prod     server writes, client reads
    byte 16   left_order right_order    16 bits each, log2 of the rings' sizes
    byte 20   cli_live srv_live         0 has left, 1 is there, 2 has not come yet
    byte 22   cli_notify srv_notify     what the server, or the client, wants to be told of
    byte 24   grants                    of the pages of larger rings, left's first

A ring of order 10 lies at byte 1024 of this very page, one of order 11 at byte 2048, larger ones in pages of their own.
The indices grow for ever and wrap at 2**32. Either end writes one index of each ring and keeps its own copy of it; the
other index is the peer's, is read once, and is checked: a difference larger than the ring cannot be (XSA-86).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import attrs

from hypervisor.abi.io.libxenvchan import vchan_interface

SMALL, LARGE, PAGE_ORDER, MAX_ORDER = 10, 11, 12, 20
"""Orders: in the shared page at 1024, at 2048, in pages of its own, and the largest that there is."""
PAGE = 1 << PAGE_ORDER
GRANTS = vchan_interface.size
CLI_LIVE, SRV_LIVE = vchan_interface.offset("cli_live"), vchan_interface.offset("srv_live")
CLI_NOTIFY, SRV_NOTIFY = vchan_interface.offset("cli_notify"), vchan_interface.offset("srv_notify")
LEFT, RIGHT = vchan_interface.offset("left") >> 2, vchan_interface.offset("right") >> 2
"""Positions of `cons` in a view of 32-bit words; `prod` is behind it."""
HAS_LEFT, IS_THERE, NOT_YET = 0, 1, 2
_U32 = 0xFFFF_FFFF


class VchanError(Exception):
    """The channel cannot be made, or cannot be used any more; the message says why."""


@attrs.frozen
class Shape:
    """The sizes of both rings, as orders."""

    left: int
    right: int

    @classmethod
    def of_sizes(cls, left: int, right: int) -> Shape:
        """Return the smallest shape whose rings hold so many bytes. Raises ValueError: more than 1 MiB."""
        orders = [max(SMALL, (size - 1).bit_length()) for size in (left, right)]
        if max(orders) > MAX_ORDER:
            raise ValueError(f"a ring of a vchan has at most {1 << MAX_ORDER} bytes, not {max(left, right)}")
        if orders[0] == orders[1] < PAGE_ORDER:
            orders[1] += 1  # There is one place for each of the small sizes.
        shape = cls(*orders)
        if problem := shape.problem():
            raise ValueError(problem)
        return shape

    @classmethod
    def read(cls, header: bytes) -> Shape:
        """Return what a *copy* of the shared page says. Raises VchanError: it cannot be."""
        interface = vchan_interface.unpack_from(header, 0)
        shape = cls(interface.left_order, interface.right_order)
        if problem := shape.problem():
            raise VchanError(f"the server's {problem}")
        return shape

    def problem(self) -> str | None:
        """Return what is wrong with the shape, if something is."""
        for name, order in (("left", self.left), ("right", self.right)):
            if not SMALL <= order <= MAX_ORDER:
                return f"{name} ring has order {order}; there are {SMALL} to {MAX_ORDER}"
        if self.left == self.right < PAGE_ORDER:
            return f"rings both have order {self.left}, for which there is one place"
        small = [order for order in (self.left, self.right) if order < PAGE_ORDER]
        end = 1 << min(small) if small else PAGE
        if GRANTS + 4 * self.pages > end:
            return f"list of {self.pages} grants reaches into a ring"
        return None

    @property
    def pages(self) -> int:
        """How many pages the rings have beside the shared one."""
        return sum(1 << order - PAGE_ORDER for order in (self.left, self.right) if order >= PAGE_ORDER)

    def pieces(self, page: memoryview, pages: Sequence[memoryview]) -> tuple[list[memoryview], list[memoryview]]:
        """Return the memory of the left and of the right ring: pieces of equal size, in order."""
        rest = iter(pages)
        rings = [
            [page[1 << order : 2 << order]]
            if order < PAGE_ORDER
            else [next(rest) for _ in range(1 << order - PAGE_ORDER)]
            for order in (self.left, self.right)
        ]
        return rings[0], rings[1]


class _Ring:
    """One direction, as one end sees it."""

    def __init__(self, words: memoryview, cons_at: int, pieces: Sequence[memoryview]) -> None:
        self._words = words
        self._cons_at = cons_at
        self._pieces = pieces
        self._piece = len(pieces[0])
        self.size = self._piece * len(pieces)
        self._cons, self._prod = words[cons_at], words[cons_at + 1]

    def _used(self) -> int:
        used = (self._prod - self._cons) & _U32
        if used > self.size:
            raise VchanError(f"the peer's index says that a ring of {self.size} bytes holds {used}")
        return used

    def _spans(self, index: int, count: int) -> Iterator[memoryview]:
        """Yield the pieces of memory where `count` bytes from an index on are."""
        while count:
            number, at = divmod(index & (self.size - 1), self._piece)
            length = min(count, self._piece - at)
            yield self._pieces[number][at : at + length]
            index += length
            count -= length


@final
class Reader(_Ring):
    """The end that takes bytes: `cons` is its own."""

    def ready(self) -> int:
        """Return how many bytes there are. Raises VchanError."""
        self._prod = self._words[self._cons_at + 1]
        return self._used()

    def take(self, limit: int) -> bytes:
        """Take at most `limit` bytes, as many as there are. Raises VchanError."""
        count = min(limit, self.ready())
        data = b"".join(self._spans(self._cons, count))
        self._cons = (self._cons + count) & _U32
        self._words[self._cons_at] = self._cons
        return data


@final
class Writer(_Ring):
    """The end that puts bytes: `prod` is its own."""

    def room(self) -> int:
        """Return how many bytes can be put. Raises VchanError."""
        self._cons = self._words[self._cons_at]
        return self.size - self._used()

    def put(self, data: memoryview) -> int:
        """Put the beginning of `data`, as much as there is room for; return how much. Raises VchanError."""
        count = min(len(data), self.room())
        done = 0
        for span in self._spans(self._prod, count):
            span[:] = data[done : done + len(span)]
            done += len(span)
        self._prod = (self._prod + count) & _U32
        self._words[self._cons_at + 1] = self._prod
        return count
