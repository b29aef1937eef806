"""The heap of free machine frames: a binary buddy allocator, lowest address first.

Deterministic: what `alloc` returns depends only on the sequence of calls. Nothing in it is proportional to the size of
the machine, so a host of many gigabytes starts at once.
"""

import sys
from collections.abc import Iterator
from heapq import heappop, heappush

from hypervisor.errors import InvariantError

MAX_ORDER = 20
"""Largest block: 2**20 frames (4 GiB)."""

Extent = tuple[int, int]
"""A run of frames: (first mfn, number of frames)."""


class Heap:
    """Free frames as naturally aligned blocks of 2**order frames."""

    __slots__ = ("_free", "_heaps", "free_frames")

    def __init__(self) -> None:
        self.free_frames = 0
        self._free: list[set[int]] = [set() for _ in range(MAX_ORDER + 1)]  # per order: first mfn of each free block
        self._heaps: list[list[int]] = [[] for _ in range(MAX_ORDER + 1)]  # the same as heaps; may hold stale entries

    def is_free(self, mfn: int) -> bool:
        """Whether a frame lies in a free block."""
        return any(mfn >> order << order in blocks for order, blocks in enumerate(self._free))

    def blocks(self) -> Iterator[Extent]:
        """Iterate over the free blocks."""
        for order, starts in enumerate(self._free):
            for mfn in sorted(starts):
                yield mfn, 1 << order

    def add(self, mfn: int, count: int) -> None:
        """Give `count` frames from `mfn` on to the heap."""
        self.free_frames += count
        end = mfn + count
        while mfn < end:
            order = min(MAX_ORDER, (end - mfn).bit_length() - 1)
            if mfn:
                order = min(order, (mfn & -mfn).bit_length() - 1)
            self._insert(mfn, order)
            mfn += 1 << order

    def alloc(self, order: int, limit: int = sys.maxsize) -> int:
        """Take one aligned block of 2**order frames, all below frame `limit`; returns its first mfn, or -1 if none is.

        The smallest block that does is broken up, the lowest one of its size.
        """
        for larger in range(order, MAX_ORDER + 1):
            mfn = self._lowest(larger)
            if 0 <= mfn <= limit - (1 << order):
                heappop(self._heaps[larger])
                self._free[larger].remove(mfn)
                while larger > order:
                    larger -= 1
                    self._put(mfn + (1 << larger), larger)
                self.free_frames -= 1 << order
                return mfn
        return -1

    def alloc_frames(self, count: int) -> list[Extent]:
        """Take `count` frames in as few extents as the free blocks allow; [] and nothing taken when memory is short."""
        if count > self.free_frames:
            return []
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
            else:
                extents.append((mfn, size))
        return extents

    def _lowest(self, order: int) -> int:
        heap, free = self._heaps[order], self._free[order]
        while heap:
            mfn = heap[0]
            if mfn in free:
                return mfn
            heappop(heap)
        return -1

    def _put(self, mfn: int, order: int) -> None:
        free, heap = self._free[order], self._heaps[order]
        free.add(mfn)
        if len(heap) > 64 + 2 * len(free):
            heap[:] = sorted(free)
        else:
            heappush(heap, mfn)

    def _insert(self, mfn: int, order: int) -> None:
        if mfn in self._free[order]:
            raise InvariantError(f"frame {mfn:#x} is freed twice")
        while order < MAX_ORDER:
            buddy = mfn ^ (1 << order)
            if buddy not in self._free[order]:
                break
            self._free[order].remove(buddy)
            mfn = min(mfn, buddy)
            order += 1
        self._put(mfn, order)
