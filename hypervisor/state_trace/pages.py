"""Machine frames: whose they are, of which type, and how often they are in use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, final

from hypervisor.abi import tracepoints as tp

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.trace import Emit

NOBODY = -1
_CHUNK = 4096
_STEP = 64
"""Frames that are compared at once: first so many, and where something has changed so many."""

Page = tuple[int, int, int, int, int]
"""Owner, type (PGT_*), type count, count, flags (`hypervisor.mm.frame_table`)."""


@final
class PageWatch:
    """Looks at the frame table."""

    def __init__(self, hv: Hypervisor, emit: Emit) -> None:
        self._emit = emit
        frames = hv.frames
        self._arrays = [frames.owner_tag, frames.type, frames.type_count, frames.count, frames.flags]
        self._size = frames.frames
        self._before = [bytes(view.nbytes) for view in self._arrays]

    def look(self) -> None:
        """Emit which frames have changed: those that are alike and side by side in one record."""
        now = [bytes(view) for view in self._arrays]
        if now == self._before:
            return
        before, self._before = self._before, now
        run: list[int] = []
        last: Page | None = None
        for mfn in self._changed(before, now):
            page = self._page(mfn)
            if page != last or mfn != run[-1] + 1:
                self._tell(run, last)
                run, last = [], page
            run.append(mfn)
        self._tell(run, last)

    def _changed(self, before: list[bytes], now: list[bytes]) -> Iterator[int]:
        widths = [view.itemsize for view in self._arrays]
        for chunk in range(0, self._size, _CHUNK):
            if _same(before, now, widths, chunk, _CHUNK):
                continue
            for step in range(chunk, min(chunk + _CHUNK, self._size), _STEP):
                if not _same(before, now, widths, step, _STEP):
                    yield from (
                        mfn
                        for mfn in range(step, min(step + _STEP, self._size))
                        if not _same(before, now, widths, mfn, 1)
                    )

    def _page(self, mfn: int) -> Page:
        tag, kind, type_count, count, flags = (view[mfn] for view in self._arrays)
        return tag - 1, kind, type_count, count, flags

    def _tell(self, run: list[int], page: Page | None) -> None:
        if page is not None:
            owner, *rest = page
            self._emit(owner, 0, tp.STATE_PAGES, run[0], len(run), *rest)


def _same(before: list[bytes], now: list[bytes], widths: list[int], first: int, count: int) -> bool:
    for old, new, width in zip(before, now, widths, strict=True):
        start, end = first * width, (first + count) * width
        if old[start:end] != new[start:end]:
            return False
    return True
