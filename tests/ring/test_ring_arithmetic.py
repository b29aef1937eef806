"""The ring classes against an arithmetic that never wraps: counts kept as unbounded integers."""

from struct import Struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hypervisor.abi.io.ring import (
    HEADER_SIZE,
    REQ_EVENT,
    REQ_PROD,
    RSP_EVENT,
    RSP_PROD,
    BackRing,
    FrontRing,
    ring_size,
    shared_ring_init,
)

WRAP = 2**32


def test_sizes_of_the_known_rings() -> None:
    assert ring_size(112, 4096) == 32  # blkif, x86_64
    assert ring_size(108, 4096) == 32  # blkif, x86_32
    assert ring_size(12, 4096) == 256  # netif transmit
    assert ring_size(8, 4096) == 256  # netif receive
    assert ring_size(112, 8192) == 64


@pytest.mark.parametrize(("entry", "size"), [(0, 4096), (-1, 4096), (4096, 4096), (8, 64)])
def test_no_room_for_an_entry(entry: int, size: int) -> None:
    with pytest.raises(ValueError, match="no ring entry"):
        ring_size(entry, size)


def test_first_contents() -> None:
    page = bytearray(b"\xaa" * 4096)
    shared_ring_init(memoryview(page))
    assert page[:16] == bytes([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
    assert page[16:HEADER_SIZE] == bytes(48)
    assert page[HEADER_SIZE:] == b"\xaa" * (4096 - HEADER_SIZE)


def test_a_copy_does_not_change_with_the_slot() -> None:
    page = bytearray(4096)
    ring = BackRing(memoryview(page), 112)
    page[ring.offset(33) : ring.offset(33) + 112] = b"\x11" * 112
    taken = ring.copy(33)
    page[ring.offset(33)] = 0xFF
    assert taken == b"\x11" * 112


def test_garbage_from_the_front_end_is_an_overflow_and_never_more_than_the_ring() -> None:
    page = memoryview(bytearray(4096))
    FrontRing.initialise(page, 112)
    ring = BackRing(page, 112)
    for garbage in (33, 34, 2**31, WRAP - 1, 0xDEADBEEF):
        ring.shared[REQ_PROD] = garbage
        assert ring.request_overflow(garbage)
        assert ring.unconsumed_requests() == 32
    ring.shared[REQ_PROD] = 32
    assert not ring.request_overflow(32)


def test_release_lets_the_page_go() -> None:
    page = bytearray(4096)
    view = memoryview(page)
    ring = FrontRing.initialise(view, 112)
    ring.release()
    view.release()
    page.append(0)  # a bytearray with a live view cannot grow


class RingMachine(RuleBasedStateMachine):
    """Honest ends of a ring of 32; the model counts from 0 and never wraps."""

    @initialize(start=st.sampled_from([0, 7, 2**31 - 3, WRAP - 33, WRAP - 1]))
    def attach(self, start: int) -> None:
        page = memoryview(bytearray(4096))
        FrontRing.initialise(page, 112)
        self.front = FrontRing(page, 112, start)
        self.back = BackRing(page, 112, start)
        self.start = start
        self.put = self.shown = self.taken = self.answered = self.back_shown = self.consumed = 0
        self.req_event = self.rsp_event = 1
        for position, value in ((REQ_PROD, 0), (REQ_EVENT, 1), (RSP_PROD, 0), (RSP_EVENT, 1)):
            page.cast("I")[position] = (start + value) % WRAP

    @rule(n=st.integers(1, 32))
    def put_requests(self, n: int) -> None:
        n = min(n, self.front.free_requests())
        self.put += n
        self.front.req_prod_pvt = (self.front.req_prod_pvt + n) % WRAP

    @rule()
    def push_requests(self) -> None:
        told = self.front.push_requests_and_check_notify()
        assert told == (self.shown < self.req_event <= self.put)
        self.shown = self.put

    @rule(n=st.integers(1, 32))
    def take_requests(self, n: int) -> None:
        n = min(n, self.back.unconsumed_requests())
        self.taken += n
        self.back.req_cons = (self.back.req_cons + n) % WRAP

    @rule(n=st.integers(1, 32))
    def answer(self, n: int) -> None:
        n = min(n, self.taken - self.answered)
        self.answered += n
        self.back.rsp_prod_pvt = (self.back.rsp_prod_pvt + n) % WRAP

    @rule()
    def push_responses(self) -> None:
        told = self.back.push_responses_and_check_notify()
        assert told == (self.back_shown < self.rsp_event <= self.answered)
        self.back_shown = self.answered

    @rule(n=st.integers(1, 32))
    def consume(self, n: int) -> None:
        n = min(n, self.front.unconsumed_responses())
        self.consumed += n
        self.front.rsp_cons = (self.front.rsp_cons + n) % WRAP

    @rule()
    def back_sleeps(self) -> None:
        work = self.back.final_check_for_requests()
        assert work == self.shown - self.taken
        if not work:
            self.req_event = self.taken + 1

    @rule()
    def front_sleeps(self) -> None:
        work = self.front.final_check_for_responses()
        assert work == self.back_shown - self.consumed
        if not work:
            self.rsp_event = self.consumed + 1

    @invariant()
    def indices_are_the_counts(self) -> None:
        if not hasattr(self, "front"):
            return
        expected = {REQ_PROD: self.shown, REQ_EVENT: self.req_event, RSP_PROD: self.back_shown}
        expected[RSP_EVENT] = self.rsp_event
        for position, count in expected.items():
            assert self.front.shared[position] == (self.start + count) % WRAP
        assert self.front.free_requests() == 32 - (self.put - self.consumed)
        assert self.front.outstanding() == self.put - self.consumed
        assert self.front.unconsumed_responses() == self.back_shown - self.consumed
        assert self.back.unconsumed_requests() == self.shown - self.taken
        assert not self.front.response_overflow(self.front.shared[RSP_PROD])
        assert not self.back.request_overflow(self.back.shared[REQ_PROD])
        assert f"req_prod_pvt={self.front.req_prod_pvt}" in self.front.summary()
        assert f"req_cons={self.back.req_cons}" in self.back.summary()


RingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRingMachine = RingMachine.TestCase


# -- rings of several pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [112, 108, 12])
@pytest.mark.parametrize("order", [0, 1, 2, 4])
@pytest.mark.parametrize("index", [0, WRAP - 7])
def test_pages_that_lie_anywhere_are_as_good_as_one_piece(entry: int, order: int, index: int) -> None:
    """What one end puts into slots, also those that straddle two pages, is what the other end finds there."""
    # The pages lie in memory backwards, with others between them.
    memory = memoryview(bytearray(b"\xcc" * (2 << order) * 4096))
    pages = [memory[2 * n * 4096 : (2 * n + 1) * 4096] for n in reversed(range(1 << order))]
    front = FrontRing.initialise_pages(pages, entry)
    back = BackRing.attach_pages(pages, entry)
    assert front.size == back.size == ring_size(entry, 4096 << order)
    for turn in range(3):
        first, count = (index + turn * (front.size - 1)) % WRAP, front.size - (turn == 1)
        last = (first + count) % WRAP
        wanted = {}
        for n in range(count):
            slot = (first + n) % WRAP
            wanted[slot] = bytes((n + turn + byte) & 0xFF for byte in range(entry))
            at = front.offset(slot)
            front.view[at : at + entry] = wanted[slot]
        if front.pages:
            front.show(first, last)
            back.fetch(first, last)
        assert all(back.copy(slot) == data for slot, data in wanted.items())
    gaps = b"".join(memory[(2 * n + 1) * 4096 : (2 * n + 2) * 4096] for n in range(1 << order))
    assert gaps == b"\xcc" * len(gaps), "memory that is no part of the ring is left alone"


def test_indices_of_several_pages_are_in_the_first() -> None:
    pages = [memoryview(bytearray(4096)) for _ in range(2)]
    front, back = FrontRing.initialise_pages(pages, 112), BackRing.attach_pages(pages, 112)
    front.req_prod_pvt = 5
    assert front.push_requests_and_check_notify()
    assert back.unconsumed_requests() == 5
    assert bytes(pages[0][:4]) == b"\5\0\0\0"
    back.release()
    front.release()
    assert front.pages == back.pages == ()


def test_slots_are_read_once_when_they_are_wanted() -> None:
    """`slots` goes around the end of the ring, and sees what is in a slot when its turn comes."""
    view = memoryview(bytearray(4096))
    ring = BackRing(view, 112)
    codec = Struct("<Q104x")
    for slot in range(ring.size):
        codec.pack_into(view, ring.offset(slot), slot)
    for first, last in [(0, 1), (5, 9), (0, 32), (30, 34), (2**32 - 2, 3), (7, 7)]:
        expected = [(index % 32,) for index in range(first, first + (last - first) % 2**32)]
        assert list(ring.slots(codec, first, last)) == expected
    reading = iter(ring.slots(codec, 1, 3))
    assert next(reading) == (1,)
    codec.pack_into(view, ring.offset(2), 77)
    assert next(reading) == (77,)
