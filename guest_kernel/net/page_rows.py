"""Pages that frames travel in, as rows of numpy arrays: a batch of frames is moved by a few calls.

A row is a page, and a frame in it begins where the page does. Pages whose addresses and machine frames are neighbours
make one array; the rows of all arrays are counted through. Whoever uses this has asked `vectors.numpy` before.

The pages of a batch are a `Place`. Rings are gone through in order, and buffers mostly come back in the order in which
they went, so a place is nearly always one or two stretches of rows that follow each other: these are copied as slices,
straight from page to page. Finding that out costs as much as copying, so whoever can keeps places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, final

from guest_kernel import vectors

if TYPE_CHECKING:
    from guest_kernel.mm import MemoryManager
    from guest_kernel.net.packet import Bytes

PAGE_SIZE = 4096
MOST_STRETCHES = 8
"""More of them are not worth a call each: rows in disorder are copied by their numbers."""


def leading(good: Any) -> int:
    """Return how many items at the beginning of a boolean array are true."""
    count = len(good)
    first = int(good.argmin()) if count else 0
    return count if not count or good[first] else first


@final
class Run:
    """Neighbours: the rows `first` to `end`."""

    __slots__ = ("_cells", "_view", "end", "first")

    def __init__(self, first: int, view: memoryview) -> None:
        self.first = first
        self.end = first + len(view) // PAGE_SIZE
        self._view = view
        self._cells: dict[int, Any] = {}

    def cells(self, length: int) -> Any:
        """Return the first `length` bytes of each page as items of an array: copied by one memcpy each."""
        cells = self._cells.get(length)
        if cells is None:
            if len(self._cells) >= MOST_STRETCHES:
                self._cells.clear()
            shape = (self.end - self.first,)
            cells = vectors.numpy().ndarray(shape, f"V{length}", self._view, strides=(PAGE_SIZE,))
            self._cells[length] = cells
        return cells


Stretch = tuple[Run, Any, Any]
"""Pages of one run (`slice` or array of their places in it), and which items of the batch these are (the same)."""


@final
class Place:
    """Pages of a batch of frames, in order."""

    __slots__ = ("count", "rows", "stretches")

    def __init__(self, rows: Any, stretches: list[Stretch]) -> None:
        self.rows = rows
        self.count = len(rows)
        self.stretches = stretches

    def first(self, count: int) -> Place:
        """Return the first `count` of these pages."""
        stretches: list[Stretch] = []
        for run, chosen, items in self.stretches:
            if isinstance(items, slice):
                number = max(0, min(items.stop, count) - items.start)
                items = slice(items.start, items.start + number)
            else:
                number = int((items < count).sum())
                items = items[:number]
            if number:
                chosen = slice(chosen.start, chosen.start + number) if isinstance(chosen, slice) else chosen[:number]
                stretches.append((run, chosen, items))
        return Place(self.rows[:count], stretches)

    def tolist(self, length: int) -> list[bytes]:
        """Return copies of the first `length` bytes of each page."""
        stretches = self.stretches
        if len(stretches) == 1:
            run, chosen, _ = stretches[0]
            # (A slice of them is no copy yet.)
            data = run.cells(length)[chosen]
        else:
            data = self.read(length)
        items: list[bytes] = data.tolist()
        return items

    def tobytes(self, length: int) -> bytes:
        """Return the same, one behind the other."""
        stretches = self.stretches
        if len(stretches) == 1:
            run, chosen, _ = stretches[0]
            # (A slice of them is no copy yet.)
            data = run.cells(length)[chosen]
        else:
            data = self.read(length)
        copy: bytes = data.tobytes()
        return copy

    def read(self, length: int) -> Any:
        """Return the same as an array of items."""
        data = vectors.numpy().empty(self.count, f"V{length}")
        for run, chosen, items in self.stretches:
            data[items] = run.cells(length)[chosen]
        return data

    def write(self, data: Any) -> None:
        """Put an array of equally many bytes each at the beginning of the pages; one that comes twice gets the last."""
        length = data.itemsize
        for run, chosen, items in self.stretches:
            run.cells(length)[chosen] = data[items]

    def fill(self, frames: Sequence[Bytes], length: int) -> None:
        """Put frames of this length at the beginning of the pages, one in each."""
        try:
            for run, chosen, items in self.stretches:
                run.cells(length)[chosen] = frames[items]
        except (TypeError, ValueError):
            # Only bytes become items, and only slices are taken of a list. What was written until then is written over.
            self.write(vectors.numpy().frombuffer(b"".join(frames), f"V{length}"))

    def copy_from(self, source: Place, length: int) -> None:
        """Copy the first `length` bytes of as many other pages into these."""
        if len(source.stretches) == 1:
            # A slice of them is no copy yet.
            run, chosen, _ = source.stretches[0]
            self.write(run.cells(length)[chosen])
        elif len(self.stretches) == 1:
            run, chosen, _ = self.stretches[0]
            if isinstance(chosen, slice):
                cells = run.cells(length)[chosen]
                for other, places, items in source.stretches:
                    cells[items] = other.cells(length)[places]
            else:
                self.write(source.read(length))
        else:
            self.write(source.read(length))


@final
class PageRows:
    """Made from (key, virtual address, writable) of each page; made anew when pages come or go.

    The keys are small numbers: buffer ids, or grant references that Xen has taken.
    """

    __slots__ = ("_rows", "_runs", "_writable_from")

    def __init__(self, mm: MemoryManager, pages: Iterable[tuple[int, int, bool]]) -> None:
        np = vectors.numpy()
        ordered = sorted(pages, key=lambda page: (page[2], page[1]))
        self._runs: list[Run] = []
        self._writable_from = sum(not writable for _, _, writable in ordered)
        row = 0
        for writable, group in ((False, ordered[: self._writable_from]), (True, ordered[self._writable_from :])):
            for view in mm.pieces([va for _, va, _ in group], writable):
                self._runs.append(Run(row, view))
                row = self._runs[-1].end
        keys = [key for key, _, _ in ordered]
        # The last one stands for all keys beyond.
        self._rows = np.full(max(keys, default=0) + 2, -1, np.intp)
        self._rows[keys] = np.arange(row)

    def find(self, keys: Any) -> Any:
        """Return the row of each key (an array of unsigned numbers), -1 where there is none."""
        return self._rows.take(keys, mode="clip")

    def find_writable(self, keys: Any) -> Any:
        """Return the row of each key, -1 where there is none that may be written to."""
        rows = self.find(keys)
        rows[rows < self._writable_from] = -1
        return rows

    def place(self, rows: Any) -> Place:
        """Return the pages of rows, none of which is -1."""
        if not len(rows):
            return Place(rows, [])
        breaks = vectors.numpy().flatnonzero(rows[1:] - rows[:-1] != 1) + 1
        if len(breaks) < MOST_STRETCHES:
            stretches: list[Stretch] = []
            start = 0
            for end in [*breaks.tolist(), len(rows)]:
                self._stretch(int(rows[start]), start, end, stretches)
                start = end
            if len(stretches) <= MOST_STRETCHES:
                return Place(rows, stretches)
        return Place(rows, self._scattered(rows))

    def _stretch(self, row: int, start: int, end: int, stretches: list[Stretch]) -> None:
        """Find items `start` to `end` of a batch, the first of them in this row, and the others behind it."""
        for run in self._runs:
            if start < end and run.first <= row < run.end:
                count = min(end - start, run.end - row)
                stretches.append((run, slice(row - run.first, row - run.first + count), slice(start, start + count)))
                row, start = row + count, start + count

    def _scattered(self, rows: Any) -> list[Stretch]:
        """Find rows in disorder."""
        stretches: list[Stretch] = []
        for run in self._runs:
            items = vectors.numpy().flatnonzero((rows >= run.first) & (rows < run.end))
            if len(items) == len(rows):
                return [(run, rows - run.first, slice(0, len(rows)))]
            if len(items):
                stretches.append((run, rows[items] - run.first, items))
        return stretches
