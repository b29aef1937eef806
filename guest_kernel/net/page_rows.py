"""Pages that frames travel in, as rows of numpy arrays: a batch of frames is moved by a few calls.

A row is a page, and a frame in it begins where the page does. Pages whose addresses and machine frames are neighbours
make one array; the rows of all arrays are counted through. Whoever uses this has asked `vectors.numpy` before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, final

from guest_kernel import vectors

if TYPE_CHECKING:
    from guest_kernel.mm import MemoryManager

PAGE_SIZE = 4096


def leading(good: Any) -> int:
    """Return how many items at the beginning of a boolean array are true."""
    count = len(good)
    first = int(good.argmin()) if count else 0
    return count if not count or good[first] else first


@final
class Run:
    """Neighbours: the rows `first` to `end`."""

    __slots__ = ("_cells", "_length", "_view", "end", "first")

    def __init__(self, first: int, view: memoryview) -> None:
        self.first = first
        self.end = first + len(view) // PAGE_SIZE
        self._view = view
        self._length = 0
        self._cells: Any = None

    def cells(self, length: int) -> Any:
        """Return the first `length` bytes of each page as items of an array: copied by one memcpy each."""
        if length != self._length:
            shape = (self.end - self.first,)
            self._cells = vectors.numpy().ndarray(shape, f"V{length}", self._view, strides=(PAGE_SIZE,))
            self._length = length
        return self._cells


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

    def read(self, rows: Any, length: int, run: Run | None = None) -> Any:
        """Return the first `length` bytes of rows, as an array of that many bytes each. `run`: see `home`."""
        if run is None:
            run = self.home(rows)
        if run is not None:
            return run.cells(length)[rows - run.first]
        np = vectors.numpy()
        data = np.empty(len(rows), f"V{length}")
        for run in self._runs:
            chosen = np.flatnonzero((rows >= run.first) & (rows < run.end))
            if len(chosen):
                data[chosen] = run.cells(length)[rows[chosen] - run.first]
        return data

    def write(self, rows: Any, data: Any) -> None:
        """Put an array of equally many bytes each at the beginning of rows; a row that comes twice gets the last."""
        length = data.itemsize
        run = self.home(rows)
        if run is not None:
            run.cells(length)[rows - run.first] = data
            return
        np = vectors.numpy()
        for run in self._runs:
            chosen = np.flatnonzero((rows >= run.first) & (rows < run.end))
            if len(chosen):
                run.cells(length)[rows[chosen] - run.first] = data[chosen]

    def home(self, rows: Any) -> Run | None:
        """Return the run that all rows are in, if there is one: who reads several times asks once."""
        if len(self._runs) == 1:
            return self._runs[0]
        low, high = rows[rows.argmin()], rows[rows.argmax()]
        for run in self._runs:
            if run.first <= low and high < run.end:
                return run
        return None
