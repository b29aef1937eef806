"""Runs of pages as views: a large packet is copied in one or two pieces, not page by page.

Finding out which pages are neighbours costs more than copying them. The same pages hold the next packets, though, and
mostly in the same order; so what was found is kept, by the keys of the pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from guest_kernel.mm import MemoryManager

MOST_KEPT = 1024
"""After so many different runs it is cheaper to begin anew than to keep all."""
Key = TypeVar("Key")
Value = TypeVar("Value")

Views = tuple[memoryview, ...]


class Spans:
    """`address(key)` tells the virtual address of a page, by a buffer's id or a grant reference."""

    def __init__(self, mm: MemoryManager, address: Callable[[int], int], *, writable: bool) -> None:
        self._mm = mm
        self._address = address
        self._writable = writable
        self._kept: Kept[tuple[int, ...], Views] = Kept()

    def get(self, keys: tuple[int, ...]) -> Views:
        """Return views of these pages, in order: whole pages, as many in one view as are neighbours."""
        views = self._kept.get(keys)
        if views is None:
            views = self._kept.keep(keys, tuple(self._mm.pieces([*map(self._address, keys)], self._writable)))
        return views

    def forget(self) -> None:
        """Let go of all views: pages go."""
        self._kept.clear()


class Kept(dict[Key, Value]):
    """Answers to questions that are asked again, by all that they depend on; `most` of them."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most

    def keep(self, key: Key, value: Value) -> Value:
        """Keep an answer, and return it."""
        if len(self) >= self._most:
            self.clear()
        self[key] = value
        return value


def trim(views: Views, size: int) -> Views:
    """Return views of the first `size` bytes of views; they must have as many."""
    found = []
    for view in views:
        if size:
            view = view[:size]
            size -= len(view)
            found.append(view)
    return tuple(found)


def fill(views: Views, data: bytes | bytearray | memoryview) -> None:
    """Copy data into views of just as many bytes."""
    if len(views) == 1:
        views[0][:] = data
        return
    rest = memoryview(data)
    start = 0
    for view in views:
        end = start + len(view)
        view[:] = rest[start:end]
        start = end


def gather(views: Views) -> bytes:
    """Return the bytes of views."""
    return views[0].tobytes() if len(views) == 1 else b"".join(views)


def copy(source: Views, target: Views) -> None:
    """Copy some views into others of just as many bytes."""
    if len(source) == 1:
        fill(target, source[0])
        return
    pieces = iter(target)
    into = next(pieces)
    for view in source:
        while view:
            if not into:
                into = next(pieces)
            step = min(len(view), len(into))
            into[:step] = view[:step]
            view, into = view[step:], into[step:]
