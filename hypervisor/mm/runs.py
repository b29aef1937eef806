"""Neighbouring frames that are mapped, writable, or unmapped together: what the books say of them, all at once.

A kernel maps its memory so, and whoever builds a domain maps that so. One entry after the other takes fifty times as
long. Whatever is not that plain is refused, before anything has been changed: it has to be done one by one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from hypervisor.mm.frame_table import DOMID_IO, MAX_COUNT, FrameTable, PGT_writable_page
from hypervisor.mm.pte import CACHE_ATTRIBUTES, ENTRIES, FRAME_MASK, PRESENT, RW, adjust_l1

_WRITABLE = PRESENT | RW
_MAPPING = FRAME_MASK | _WRITABLE
_IO_TAG = DOMID_IO + 1
_KINDS = bytes([PGT_writable_page]) * ENTRIES
_NONE = bytes(8 * ENTRIES)
SHORTEST = 16
"""How many requests are worth being looked at together."""

ReplaceRun = Callable[[Sequence[int], int, int], tuple[int, list[int]]]
"""`replace_run(words, position, tag)` carries out requests of mmu_update, all from `position` on that stand in one L1
table and are a run. Returns how many, 0 if they are none, and which present entries were replaced."""


def take_run(frames: FrameTable, first: int, size: int, tag: int) -> bool:
    """Take a writable reference to each of up to 512 frames; False, and none taken, if one needs a closer look."""
    end = first + size
    if end > frames.frames or frames.owner_tag[first:end].tobytes() != tag.to_bytes(2, "little") * size:
        return False
    typed, held = frames.type_count[first:end], _changed(frames.count[first:end], 1, 1)
    more = _changed(typed, 1, 0)
    if held is None or more is None:
        return False
    kinds = frames.type[first:end].tobytes()
    if kinds != _KINDS[:size]:
        if any(typed):
            return False
        frames.type[first:end] = _KINDS[:size]
    frames.type_count[first:end] = more
    frames.count[first:end] = held
    return True


def put_run(frames: FrameTable, entries: list[int]) -> bool:
    """Drop what L1 entries hold that map a run; False, and nothing dropped, if they are none or one is the last."""
    size, first = len(entries), entries[0] & _MAPPING
    behind = first + (size << 12)
    # Accessed and dirty bits differ from entry to entry, and mean nothing here.
    if (
        first & _WRITABLE != _WRITABLE
        or behind > frames.frames << 12
        or entries[-1] & _MAPPING != behind - 4096
        or [entry & _MAPPING for entry in entries] != list(range(first, behind, 4096))
    ):
        return False
    mfn = first >> 12
    end = mfn + size
    if frames.type[mfn:end].tobytes() != _KINDS[:size]:
        return False
    held, typed = _changed(frames.count[mfn:end], -1, 2), _changed(frames.type_count[mfn:end], -1, 1)
    if held is None or typed is None:
        return False
    frames.count[mfn:end] = held
    frames.type_count[mfn:end] = typed
    return True


def _changed(counts: memoryview, step: int, least: int) -> memoryview | None:
    """Return these counts, one more or less each; None if one is below `least`, or would be above the highest."""
    size, first, raw = len(counts), counts[0], counts.tobytes()
    if raw == raw[:4] * size:
        return memoryview(array("I", (first + step,)) * size) if least <= first < MAX_COUNT else None
    values = counts.tolist()
    if min(values) < least or max(values) >= MAX_COUNT:
        return None
    return memoryview(array("I", [value + step for value in values]))


def make_replace_run(frames: FrameTable) -> ReplaceRun:
    """Return the function; it does what `replace` of `single_update` does for each."""
    q, written = frames.memory.q, frames.memory.written

    def replace_run(words: Sequence[int], position: int, tag: int) -> tuple[int, list[int]]:
        pointer, value = words[position], words[position + 1]
        index = pointer >> 3
        most = min(len(words) - position >> 1, ENTRIES - (index & ENTRIES - 1))
        size = 0 if pointer & 7 else _in_steps(words[position : position + 2 * most : 2], 8)
        if size < SHORTEST:
            return 0, []
        values = words[position + 1 : position + 2 * size : 2]
        before = q[index : index + size]
        replaced: list[int] = []
        if value & PRESENT:
            size = _in_steps(values, 4096)
            before = before[:size]
            if (
                size < SHORTEST
                or value & _WRITABLE != _WRITABLE
                or value & CACHE_ATTRIBUTES
                or tag >= _IO_TAG
                or before.tobytes() != _NONE[: 8 * size]
                or not take_run(frames, (value & FRAME_MASK) >> 12, size, tag)
            ):
                return 0, []
            new = adjust_l1(value)
            before[:] = memoryview(array("Q", range(new, new + (size << 12), 4096)))
        else:
            replaced = before.tolist()
            size = _in_steps([entry & _MAPPING for entry in replaced], 4096)
            before, replaced = before[:size], replaced[:size]
            if size < SHORTEST or any(values) or not put_run(frames, replaced):
                return 0, []
            before[:] = memoryview(_NONE)[: 8 * size].cast("Q")
        written[index >> 9] = 1
        return size, replaced

    return replace_run


def _in_steps(numbers: Sequence[int], step: int) -> int:
    """Return how many numbers from the first on are so far apart from each other."""
    first, size = numbers[0], len(numbers)
    if numbers[-1] == first + step * (size - 1) and list(numbers) == list(range(first, first + step * size, step)):
        return size
    expected = range(first, first + step * size, step)
    return next((at for at, pair in enumerate(zip(numbers, expected, strict=True)) if pair[0] != pair[1]), size)
