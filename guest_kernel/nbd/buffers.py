"""Pages for the data of requests, granted to the disk's backend for as long as they are used again and again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, final

from guest_kernel.block import BlockBuffer
from guest_kernel.errors import OutOfMemory
from guest_kernel.hw.socket_card import SEGMENT, pack_runs, runs_of
from guest_kernel.mm import PAGE_SHIFT
from guest_kernel.nbd.small import SmallJob, SmallRequests

if TYPE_CHECKING:
    from guest_kernel.block import BlockQueue
    from guest_kernel.mm import MemoryManager, Page

Sizes = Sequence[tuple[int, int]]
"""Pages of a buffer, and how many such buffers there are."""

LARGE_GUEST_PAGES = 8192
"""A guest with 32 MiB or more affords ..."""
LARGE_SIZES: Sizes = ((1, 32), (16, 16), (256, 2))
"""... 800 pages: with 16 more for each of 16 connections that is what a backend keeps mapped of a frontend."""
SMALL_SIZES: Sizes = ((1, 8), (16, 2))


class Waiter(Protocol):
    """Who is told that a buffer has come back."""

    def wake(self) -> None:
        """Try again."""
        ...


@final
class Buffer:
    """Some pages: `size` bytes."""

    __slots__ = ("_runs", "block", "kin", "pages", "size", "small", "view", "views")

    small: SmallJob
    """Of a buffer of one page: the transfer that it is for."""

    def __init__(self, pages: list[Page], views: Sequence[memoryview], kin: list[Buffer]) -> None:
        self.pages = pages
        self.block = BlockBuffer(pages)
        self.views = views
        """Its bytes, in order."""
        self.view = views[0] if len(views) == 1 else None
        """All of them, if they are in one piece."""
        self.size = len(pages) << PAGE_SHIFT
        self.kin = kin
        """Where it is when nobody uses it."""
        self._runs = runs_of(pages)
        if len(pages) == 1:
            self.small = SmallJob(self, views[0])

    def put(self, at: int, data: memoryview) -> None:
        """Write bytes into the buffer, from its byte `at` on."""
        if self.view is not None:
            self.view[at : at + len(data)] = data
            return
        for view in self.views:
            if at < len(view):
                part = data[: len(view) - at]
                view[at : at + len(part)] = part
                data = data[len(part) :]
                at = 0
                if not data:
                    return
            else:
                at -= len(view)

    def copy_to(self, target: memoryview) -> None:
        """Copy the first bytes of the buffer, as many as there is room for."""
        size = len(target)
        if self.view is not None:
            target[:] = self.view[:size]
            return
        at = 0
        for view in self.views:
            part = view[: size - at]
            target[at : at + len(part)] = part
            at += len(part)
            if at == size:
                return

    def segments(self, start: int, end: int) -> bytes:
        """Return a part of the buffer as segments of the socket card."""
        return pack_runs(self._runs, start, end)


@final
class BufferPool:
    """Buffers of a few sizes, made when they are first wanted. All connections of an export share them, one after the
    other as well.
    """

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        sizes = LARGE_SIZES if mm.nr_pages >= LARGE_GUEST_PAGES else SMALL_SIZES
        assert sizes[0][0] == 1
        self._sizes = [pages for pages, _ in sizes]
        self._unmade = [count for _, count in sizes]
        self._free: list[list[Buffer]] = [[] for _ in sizes]
        """Those that nobody uses, but for the first size."""
        self.single: list[SmallJob] = []
        """The same of one page, as what small transfers take."""
        self.largest = self._sizes[-1]
        """Pages of the largest buffers."""
        self.user: SmallRequests | None = None
        """Who has begun small requests last."""
        self.queue: BlockQueue | None = None
        """To whose other end those of one page are lent: after another connection they may have lost it."""
        self.wanted: dict[Waiter, None] = {}
        """Who waits for a buffer to come back."""

    def take(self, size: int) -> Buffer | None:
        """Return a buffer for `size` bytes, or the largest if none has room for all; None if there is no free one."""
        for at, pages in enumerate(self._sizes):
            if pages << PAGE_SHIFT < size and at < len(self._sizes) - 1:
                continue
            if not at and self.single:
                return self.single.pop().held
            free = self._free[at]
            if free:
                return free.pop()
            if self._unmade[at]:
                try:
                    buffer = self.make(pages, free)
                except OutOfMemory:
                    self._unmade[at] = 0
                else:
                    self._unmade[at] -= 1
                    return buffer
        return None

    def make(self, pages: int, kin: list[Buffer]) -> Buffer:
        """Return a new buffer. Raises OutOfMemory."""
        taken = self._mm.alloc_pages(pages)
        return Buffer(taken, self._mm.runs(taken, pages << PAGE_SHIFT), kin)

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back that nobody uses any more; another one takes the place of one that has lost pages."""
        if buffer.block.lost:
            self.free(buffer)
            with suppress(OutOfMemory):
                self._keep(self.make(len(buffer.pages), buffer.kin))
        else:
            self._keep(buffer)
        if self.wanted:
            self._tell()

    def _keep(self, buffer: Buffer) -> None:
        if len(buffer.pages) == 1:
            self.single.append(buffer.small)
        else:
            buffer.kin.append(buffer)

    def take_back(self, jobs: list[SmallJob]) -> None:
        """The same for the buffers of small transfers, which have lost nothing."""
        self.single += jobs
        if self.wanted:
            self._tell()

    def _tell(self) -> None:
        wanted = list(self.wanted)
        self.wanted.clear()
        for waiter in wanted:
            waiter.wake()

    def renew(self, queue: BlockQueue | None) -> None:
        """Have no free buffers of one page that have lost it, now that the disk has another connection."""
        self.queue = queue
        for job in [job for job in self.single if job.lost]:
            self.single.remove(job)
            self.give(job.held)

    def free(self, buffer: Buffer) -> None:
        """Free the pages of a buffer that nobody uses."""
        buffer.block.release()
        self._mm.free_pages_of(buffer.block.kept())

    def close(self) -> None:
        """Free all that are not used."""
        while self.single:
            self.free(self.single.pop().held)
        for free in self._free:
            while free:
                self.free(free.pop())


@final
class Area:
    """Consecutive bytes, for what is parsed or put together: a `view` over pages that are neighbours."""

    __slots__ = ("_first", "_last", "_mm", "pages", "size", "view")

    def __init__(self, mm: MemoryManager, pages: int) -> None:
        """Take that many pages, or fewer if no more are neighbours. Raises OutOfMemory."""
        self._mm = mm
        taken = mm.alloc_pages(pages)
        views = mm.runs(taken, pages << PAGE_SHIFT)
        self.view = max(views, key=len)
        self.size = len(self.view)
        before = sum(len(view) for view in views[: views.index(self.view)]) >> PAGE_SHIFT
        end = before + (self.size >> PAGE_SHIFT)
        self.pages = taken[before:end]
        mm.free_pages_of(taken[:before] + taken[end:])
        self._first = self.pages[0].mfn << PAGE_SHIFT
        self._last = 0, 0, b""

    def segments(self, start: int, end: int) -> bytes:
        """Return a part as segments of the socket card: one, for machine memory is in one piece as well.

        For the same part as the last time it is the same object, which the card's driver need not copy again.
        """
        begin, stop, packed = self._last
        if begin != start or stop != end:
            packed = SEGMENT.pack(self._first + start, end - start)
            self._last = start, end, packed
        return packed

    def close(self) -> None:
        """Free the pages."""
        self._mm.free_pages_of(self.pages)
