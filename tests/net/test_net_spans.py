"""Runs of pages as views, by keys that come again and again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from test_net_vectors import Pieces

from guest_kernel.net.spans import MOST_KEPT, Spans, copy, fill, gather, trim

PAGE = 4096
KEYS = st.lists(st.integers(0, 30), min_size=1, max_size=17, unique=True)


def spans(mm: Pieces) -> Spans:
    return Spans(mm, lambda key: key * PAGE, writable=True)  # type: ignore[arg-type]


@given(KEYS, KEYS, st.data())
def test_copies(left: list[int], right: list[int], data: st.DataObject) -> None:
    """In through one run, over into another, out again: whatever pages are neighbours."""
    size = data.draw(st.integers(1, PAGE * min(len(left), len(right))))
    here, there = Pieces(31), Pieces(31)
    body = bytes(range(1, 252)) * (size // 251 + 1)
    left_pages, right_pages = spans(here).get(tuple(left)), spans(there).get(tuple(right))
    source, target = trim(left_pages, size), trim(right_pages, size)
    assert sum(map(len, source)) == sum(map(len, target)) == size
    fill(source, body[:size])
    assert gather(source) == body[:size]
    assert not any(gather(left_pages)[size:])
    copy(source, target)
    whole = gather(right_pages)
    assert whole[:size] == body[:size]
    assert not any(whole[size:])
    pages = [bytes(there.memory[key * PAGE : (key + 1) * PAGE]) for key in right]
    assert b"".join(pages) == whole


def test_what_is_kept_is_bounded() -> None:
    kept = spans(Pieces(64))
    first = kept.get((1, 2))
    assert kept.get((1, 2)) is first
    for number in range(2 * MOST_KEPT):
        kept.get((number % 60, number // 60))
    assert len(kept._kept) <= MOST_KEPT
    kept.forget()
    assert kept.get((1, 2)) is not first
