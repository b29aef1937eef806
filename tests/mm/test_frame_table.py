"""The frame table and its heap by themselves."""

import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.errors import InvariantError
from hypervisor.machine.memory import Memory
from hypervisor.mm.frame_table import ALLOCATED, FrameTable, PGT_writable_page
from hypervisor.mm.heap import MAX_ORDER, Heap


class Owner:
    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.tot_pages = 0
        self.max_pages = 1 << 30


def test_memory_goes_from_the_top_of_the_smallest_block() -> None:
    heap = Heap()
    heap.add(0x100, 0x1F00)
    heap.add(0x2010, 0x10)
    # The highest zone first, and there the upper half of what is broken up.
    assert [heap.alloc(0), heap.alloc(2), heap.alloc(0)] == [0x201F, 0x2018, 0x201E]
    assert heap.alloc(4) == 0x1FF0
    # The only block that is left of the right size goes before a larger one is broken up.
    assert heap.alloc(3) == 0x2010
    assert heap.alloc(8) == 0x1E00
    assert heap.alloc(0) == 0x201D


def test_memory_below_an_address() -> None:
    heap = Heap()
    heap.add(0x100, 0x3F00)
    assert heap.alloc(0) == 0x3FFF
    assert heap.alloc(0, 0x1000) == 0xFFF
    assert heap.alloc(4, 0x200) == 0x1F0
    assert heap.alloc(8, 0x200) == -1
    assert heap.alloc(0, 0x100) == -1
    assert [heap.alloc_frames(0xF0), heap.alloc(0, 0x200)] == [[(0x3E10, 0xF0)], 0x1EF]


def test_what_was_freed_last_goes_first() -> None:
    heap = Heap()
    heap.add(0x1000, 0x40)
    taken = [heap.alloc(3) for _ in range(8)]
    assert taken == [0x1038 - 8 * i for i in range(8)]
    heap.add(0x1010, 8)
    heap.add(0x1030, 8)
    assert [heap.alloc(3), heap.alloc(3), heap.alloc(3)] == [0x1030, 0x1010, -1]


def test_a_large_host_costs_little() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frames = FrameTable(Memory(4 << 20))
    assert frames.free_frames > (4 << 20) - 10000
    # (The M2P, 32 MiB, is there from the beginning: it says of every frame that it is nobody's.)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (32 + 4) << 10  # KiB


def test_a_host_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="needs more than 3000 KiB"):
        FrameTable(Memory(750))


def test_page_lists_keep_their_order() -> None:
    frames, domain = FrameTable(Memory(4096)), Owner(0)
    got = [mfn + i for mfn, count in frames.alloc_frames(domain, 100) for i in range(count)]
    got += [frames.alloc(domain) for _ in range(3)]
    pages = frames.page_list(domain)
    assert list(frames.pages(pages)) == got
    assert domain.tot_pages == pages.length == 103
    for mfn in (got[0], got[50], got[102]):
        assert frames.take_allocated(mfn)
        got.remove(mfn)
        assert list(frames.pages(pages)) == got
    assert frames.owner(got[0]) == 0
    assert frames.owner_domain(got[0]) is domain
    assert frames.owner(0) == 0x7FF1
    assert not frames.is_ram(0)
    assert not frames.is_ram(4096)


def test_freed_memory_is_scrubbed() -> None:
    frames, domain = FrameTable(Memory(4096)), Owner(3)
    memory = frames.memory
    for count in (1, 7, 8, 600):
        for mfn, length in frames.alloc_frames(domain, count):
            memory.b[mfn << 12 : (mfn + length) << 12] = b"\xaa" * (length << 12)
        frames.start_batch()
        for _ in frames.release_allocated(domain):
            pass
        frames.end_batch()
        assert domain.tot_pages == 0
        again = frames.alloc_frames(domain, count)
        assert all(not any(memory.b[mfn << 12 : (mfn + n) << 12]) for mfn, n in again)
        frames.start_batch()
        for _ in frames.release_allocated(domain):
            pass
        frames.end_batch()
    frames.forget(domain)


def test_references_and_types() -> None:
    frames, domain, other = FrameTable(Memory(4096)), Owner(1), Owner(2)
    mfn = frames.alloc(domain)
    assert frames.count[mfn] == 1
    assert frames.flags[mfn] == ALLOCATED
    assert not frames.get_page(mfn, other)
    assert not frames.get_page(1 << 40, domain)
    assert frames.get_page_and_type(mfn, domain, PGT_writable_page)
    assert frames.get_page_type(mfn, PGT_writable_page)
    frames.put_page_type(mfn)
    assert frames.put_page_and_type(mfn) == 0
    with pytest.raises(InvariantError, match="below zero"):
        frames.put_page_type(mfn)
    assert frames.take_allocated(mfn)
    assert frames.owner(mfn) == -1
    with pytest.raises(InvariantError, match="below zero"):
        frames.put_page(mfn)


def test_counts_do_not_wrap() -> None:
    frames, domain = FrameTable(Memory(4096)), Owner(1)
    mfn = frames.alloc(domain)
    frames.count[mfn] = 0x7FFFFFFF
    assert not frames.get_page(mfn, domain)
    frames.count[mfn] = 1
    frames.type[mfn], frames.type_count[mfn] = PGT_writable_page, 0x7FFFFFFF
    assert not frames.get_page_type(mfn, PGT_writable_page)


def test_stolen_pages_have_no_past() -> None:
    # XSA-214, XSA-287
    frames, domain, other = FrameTable(Memory(4096)), Owner(1), Owner(2)
    mfn = frames.alloc(domain)
    assert frames.get_page(mfn, domain)
    assert frames.get_page_type(mfn, PGT_writable_page)
    assert not frames.steal_page(mfn, domain)
    frames.put_page_type(mfn)
    assert frames.get_page(mfn, domain)
    assert not frames.steal_page(mfn, domain)
    frames.put_page(mfn)
    assert not frames.steal_page(mfn, other)
    assert frames.steal_page(mfn, domain)
    assert (frames.count[mfn], frames.type[mfn], frames.owner(mfn), domain.tot_pages) == (0, 0, -1, 0)
    frames.assign_page(mfn, other)
    assert (frames.count[mfn], frames.owner(mfn), other.tot_pages) == (1, 2, 1)
    with pytest.raises(InvariantError):
        frames.assign_page(mfn, domain)


def test_lent_frames() -> None:
    frames, domain = FrameTable(Memory(4096)), Owner(1)
    free = frames.free_frames
    mfn = frames.alloc_xen()
    frames.share_with(mfn, domain)
    assert domain.tot_pages == 0
    assert frames.get_page_and_type(mfn, domain, PGT_writable_page)
    frames.unshare(mfn)
    assert frames.owner(mfn) == 1  # still mapped
    frames.put_page_and_type(mfn)
    assert frames.owner(mfn) == -1
    readonly = frames.alloc_xen()
    frames.share_with(readonly, domain, readonly=True)
    assert not frames.get_page_and_type(readonly, domain, PGT_writable_page)
    with pytest.raises(InvariantError):
        frames.share_with(readonly, domain)
    frames.unshare(readonly)
    with pytest.raises(InvariantError):
        frames.unshare(readonly)
    several = frames.alloc_xen(5)
    frames.free_xen(several, 5)
    assert frames.free_frames == free
    assert frames.alloc_xen(1 << 20) == -1


# -- the heap ---------------------------------------------------------------------------------------------------------


def test_double_free_is_an_error_of_ours() -> None:
    heap = Heap()
    heap.add(16, 4)
    with pytest.raises(InvariantError, match="freed twice"):
        heap.add(16, 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["block", "frames", "free"]), st.integers(0, 40)), max_size=60))
def test_heap_against_a_set(steps: list[tuple[str, int]]) -> None:
    heap = Heap()
    heap.add(3, 500)
    free = set(range(3, 503))
    taken: list[tuple[int, int]] = []
    for step, number in steps:
        if step == "free" and taken:
            mfn, count = taken.pop(number % len(taken))
            heap.add(mfn, count)
            free |= set(range(mfn, mfn + count))
        elif step == "block":
            order = number % 7
            mfn = heap.alloc(order)
            if mfn >= 0:
                block = set(range(mfn, mfn + (1 << order)))
                assert mfn % (1 << order) == 0
                assert block <= free
                free -= block
                taken.append((mfn, 1 << order))
        elif step == "frames":
            extents = heap.alloc_frames(number)
            assert sum(count for _, count in extents) == (number if number <= len(free) else 0)
            for mfn, count in extents:
                block = set(range(mfn, mfn + count))
                assert block <= free
                free -= block
                taken.append((mfn, count))
        assert heap.free_frames == len(free)
    assert {mfn + i for mfn, count in heap.blocks() for i in range(count)} == free
    assert all(heap.is_free(mfn) == (mfn in free) for mfn in range(520))


def test_neighbours_merge() -> None:
    heap = Heap()
    heap.add(1 << MAX_ORDER, 1 << MAX_ORDER)
    for _ in range(2000):
        mfn = heap.alloc(1)
        heap.add(mfn, 1)
        heap.add(mfn + 1, 1)
    assert list(heap.blocks()) == [(1 << MAX_ORDER, 1 << MAX_ORDER)]
    assert heap.alloc(MAX_ORDER + 1) == -1
