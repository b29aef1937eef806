"""The pages that a builder fills: what is written later lies over what was written before, and the rest is zero."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from guest_kernel.mm import PAGE_SIZE, neighbours
from toolstack.guest_pages import GuestPages

PAGES = 64
SIZE = PAGES * PAGE_SIZE
CONTENTS = {
    "zeros": lambda size: bytes(size),
    "bytes": lambda size: bytes(range(1, 256)) * (size // 255) + bytes(range(size % 255)),
    "last byte": lambda size: bytes(size - 1) + b"x" if size else b"",
    "first byte": lambda size: b"x" + bytes(size - 1) if size else b"",
}
OFFSETS = st.integers(0, SIZE - 1) | st.integers(0, PAGES - 1).map(lambda page: page * PAGE_SIZE)
SIZES = st.integers(0, SIZE) | st.integers(0, PAGES).map(lambda pages: pages * PAGE_SIZE)
STEPS = st.lists(st.tuples(st.sampled_from(["clear", *CONTENTS]), OFFSETS, SIZES), max_size=6)


@given(STEPS, st.integers(1, PAGES))
def test_pages_hold_what_was_written_last(steps: list[tuple[str, int, int]], at_once: int) -> None:
    pages = GuestPages()
    model, touched = bytearray(SIZE), set()
    for what, offset, wanted in steps:
        size = min(wanted, SIZE - offset)
        if what == "clear":
            pages.clear(offset, size)
            model[offset : offset + size] = bytes(size)
        else:
            data = CONTENTS[what](size)
            pages.write(offset, data)
            model[offset : offset + size] = data
            touched |= {at // PAGE_SIZE for at in range(offset, offset + size)}
    pfns = pages.pfns()
    assert pfns == sorted(touched)
    memory = bytearray(SIZE)
    for first, count in neighbours(pfns):
        for pfn in range(pfns[first], pfns[first] + count, at_once):
            end = min(pfn + at_once, pfns[first] + count)
            pages.fill(pfn, memoryview(memory)[pfn * PAGE_SIZE : end * PAGE_SIZE])
    assert memory == model


def test_memory_is_not_written_to_for_zeros() -> None:
    """A kernel has megabytes of zeros at its end: they are in memory already."""
    pages = GuestPages()
    pages.write(0, b"code" + bytes(SIZE - 4))
    memory = bytearray(b"?" * SIZE)
    pages.fill(0, memoryview(memory))
    assert memory[:4] == b"code"
    assert memory[-PAGE_SIZE:] == b"?" * PAGE_SIZE
    pages.write(SIZE - PAGE_SIZE, bytes(PAGE_SIZE))
    pages.fill(0, memoryview(memory))
    assert memory[-PAGE_SIZE:] == bytes(PAGE_SIZE)


@given(st.lists(st.integers(0, 30)))
def test_neighbours(numbers: list[int]) -> None:
    runs = list(neighbours(numbers))
    assert [numbers[first] + index for first, count in runs for index in range(count)] == numbers
    for (first, count), (following, _) in pairwise(runs):
        assert first + count == following
        assert numbers[following] != numbers[following - 1] + 1
