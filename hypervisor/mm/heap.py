"""The heap of free machine frames: a binary buddy allocator in zones, highest zone first (page_alloc.c).

A zone holds the frames whose numbers have the same count of bits, so that memory below an address is found at once and
the low frames, which devices of few address bits need, go last. Within a zone the smallest block that does is broken
up, the one that was freed last, and its upper half is given out: so memory goes from the top of a block downwards.

While Xen starts no memory is scrubbed yet, and blocks that are not stand at the end of their list: the one that was
freed first is taken. `settle` ends that: the idle processors have scrubbed everything, from the ends of the lists.

Deterministic: what `alloc` returns depends only on the sequence of calls. Nothing in it is proportional to the size of
the machine, so a host of many gigabytes starts at once.
"""

import sys
from collections.abc import Iterator

from hypervisor.errors import InvariantError

MAX_ORDER = 20
"""Largest block: 2**20 frames (4 GiB)."""

Extent = tuple[int, int]
"""A run of frames: (first mfn, number of frames)."""
_Zone = list[dict[int, None]]
"""Per order: the first mfn of each free block, in the order in which they became free."""


class Heap:
    """Free frames as naturally aligned blocks of 2**order frames, in zones."""

    __slots__ = ("_descending", "_zones", "free_frames", "is_scrubbed")

    def __init__(self, *, is_scrubbed: bool = True) -> None:
        self.free_frames = 0
        self.is_scrubbed = is_scrubbed
        self._zones: dict[int, _Zone] = {}
        self._descending: list[tuple[int, _Zone]] = []

    def is_free(self, mfn: int) -> bool:
        """Whether a frame lies in a free block."""
        zone = self._zones.get(mfn.bit_length())
        return zone is not None and any(mfn >> order << order in blocks for order, blocks in enumerate(zone))

    def blocks(self) -> Iterator[Extent]:
        """Iterate over the free blocks: by size, then by place."""
        for order in range(MAX_ORDER + 1):
            for _, zone in reversed(self._descending):
                for mfn in sorted(zone[order]):
                    yield mfn, 1 << order

    def add(self, mfn: int, count: int) -> None:
        """Give `count` frames from `mfn` on to the heap."""
        self.free_frames += count
        end = mfn + count
        while mfn < end:
            order = min(MAX_ORDER, (end - mfn).bit_length() - 1)
            if mfn:
                order = min(order, (mfn & -mfn).bit_length() - 1)
            else:
                # Frame 0 is alone in its zone.
                order = 0
            self._insert(mfn, order)
            mfn += 1 << order

    def alloc(self, order: int, limit: int = sys.maxsize) -> int:
        """Take one aligned block of 2**order frames, all below frame `limit`; returns its first mfn, or -1 if none is.

        As zones end at powers of two, of a zone that a limit cuts in two nothing is given.
        """
        highest = limit.bit_length() - 1
        for bits, zone in self._descending:
            if bits > highest:
                continue
            for larger in range(order, MAX_ORDER + 1):
                if zone[larger]:
                    mfn = self._take(zone[larger])
                    while larger > order:
                        larger -= 1
                        zone[larger][mfn] = None
                        mfn += 1 << larger
                    self.free_frames -= 1 << order
                    return mfn
        return -1

    @staticmethod
    def _oldest(blocks: dict[int, None]) -> int:
        mfn = next(iter(blocks))
        del blocks[mfn]
        return mfn

    def _take(self, blocks: dict[int, None]) -> int:
        """Take the block at the head of a list."""
        return blocks.popitem()[0] if self.is_scrubbed else self._oldest(blocks)

    def settle(self) -> None:
        """All free memory is scrubbed by now; the blocks keep their places."""
        if not self.is_scrubbed:
            self.is_scrubbed = True
            for zone in self._zones.values():
                zone[:] = [dict(reversed(blocks.items())) for blocks in zone]

    def alloc_singles(self, count: int) -> list[Extent]:
        """Take `count` frames one by one, as `alloc(0)` does; [] and nothing taken when memory is short.

        An extent (mfn, length) stands for frames that were taken from its end on.
        """
        if not 0 < count <= self.free_frames:
            return []
        extents: list[Extent] = []
        while count:
            order, zone = next(
                (order, zone) for _, zone in self._descending for order in range(MAX_ORDER + 1) if zone[order]
            )
            mfn = self._take(zone[order])
            length = min(count, 1 << order)
            spare = (1 << order) - length
            self.free_frames -= 1 << order
            if spare:
                self.add(mfn, spare)
            extents.append((mfn + spare, length))
            count -= length
        return extents

    def alloc_frames(self, count: int) -> list[Extent]:
        """Take `count` frames in as few extents as the free blocks allow; [] and nothing taken when memory is short.

        They are the upper part of one block if there is one that large, and else of the largest that there are.
        """
        if not 0 < count <= self.free_frames:
            return []
        order = (count - 1).bit_length()
        mfn = self.alloc(order) if order <= MAX_ORDER else -1
        if mfn >= 0:
            spare = (1 << order) - count
            if spare:
                self.add(mfn, spare)
            return [(mfn + spare, count)]
        return self._gather(count)

    def _gather(self, count: int) -> list[Extent]:
        """Take frames from the largest blocks on; neighbours are joined."""
        extents: list[Extent] = []
        order = MAX_ORDER
        while count:
            order = min(order, count.bit_length() - 1)
            mfn = self.alloc(order)
            if mfn < 0:
                if order == 0:
                    raise InvariantError(f"the heap counts {self.free_frames} free frames but has no block")
                order -= 1
                continue
            size = 1 << order
            count -= size
            if extents and sum(extents[-1]) == mfn:
                extents[-1] = (extents[-1][0], extents[-1][1] + size)
            elif extents and mfn + size == extents[-1][0]:
                extents[-1] = (mfn, extents[-1][1] + size)
            else:
                extents.append((mfn, size))
        return extents

    def _insert(self, mfn: int, order: int) -> None:
        zone = self._zone(mfn.bit_length())
        if mfn in zone[order]:
            raise InvariantError(f"frame {mfn:#x} is freed twice")
        while order < MAX_ORDER:
            buddy = mfn ^ (1 << order)
            if buddy not in zone[order]:
                break
            del zone[order][buddy]
            mfn = min(mfn, buddy)
            order += 1
        zone[order][mfn] = None

    def _zone(self, bits: int) -> _Zone:
        """Return the zone of the frames whose numbers have so many bits."""
        zone = self._zones.get(bits)
        if zone is None:
            zone = self._zones[bits] = [{} for _ in range(MAX_ORDER + 1)]
            self._descending = sorted(self._zones.items(), reverse=True)
        return zone
