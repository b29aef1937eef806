"""Frames on their way through the backend, in pages of the backend's own domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from guest_kernel.net import checksum

if TYPE_CHECKING:
    from guest_kernel.mm import MemoryManager, Page

PAGE = 4096
MAC_MASK = 0xFFFF_FFFF_FFFF


class Frame:
    """An Ethernet frame, packed into pages: byte n is in page n // 4096.

    `references` counts the queues that hold it; the pages go back to the pool with the last. `flags` are the NETTXF_
    checksum flags it came with.
    """

    __slots__ = ("flags", "pages", "pool", "references", "size")

    def __init__(self, pool: FramePool, pages: list[Page], size: int, flags: int) -> None:
        self.pool = pool
        self.pages = pages
        self.size = size
        self.flags = flags
        self.references = 0

    @property
    def destination(self) -> int:
        """Destination address as a number, first byte lowest (so that bit 0 says multicast)."""
        return self.pages[0].q[0] & MAC_MASK

    @property
    def source(self) -> int:
        """Source address as a number, first byte lowest."""
        page = self.pages[0]
        return page.q[0] >> 48 | page.i[2] << 16

    def put(self) -> None:
        """Drop a reference."""
        self.references -= 1
        if self.references <= 0:
            self.pool.give(self.pages)

    def tobytes(self) -> bytearray:
        """Return the frame as it goes onto a real wire: with its checksum filled in."""
        data = bytearray().join(page.view[:PAGE] for page in self.pages)[: self.size]
        if self.flags & 1:
            checksum.complete(data)
        return data


class FramePool:
    """Pages for frames; a page that has been used once is kept for the next frame."""

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._free: list[Page] = []
        self.out = 0

    def take(self, size: int) -> list[Page]:
        """Return pages for `size` bytes."""
        count = -(-size // PAGE) or 1
        self.out += count
        free = self._free
        return [free.pop() if free else self._mm.alloc_page() for _ in range(count)]

    def give(self, pages: list[Page]) -> None:
        """Take pages back."""
        self.out -= len(pages)
        self._free += pages

    def frame(self, data: bytes) -> Frame:
        """Return a frame with these bytes."""
        pages = self.take(len(data))
        for number, page in enumerate(pages):
            piece = data[number * PAGE : (number + 1) * PAGE]
            page.view[: len(piece)] = piece
        return Frame(self, pages, len(data), 0)

    def close(self) -> None:
        """Give the free pages back to the kernel."""
        for page in self._free:
            self._mm.free_page(page)
        self._free = []


Deliver = Callable[[Frame], None]
