"""The block backend against frontends that lie: what each lie is answered with, and that nothing is left or touched."""

import random
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any

import pytest
from block_pair import Pair
from block_raw import RawFront
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.abi.io.blkif import BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY

Maker = Callable[..., Any]
READ, WRITE, BARRIER, FLUSH = range(4)
OKAY, ERROR, EOPNOTSUPP = BLKIF_RSP_OKAY, BLKIF_RSP_ERROR, BLKIF_RSP_EOPNOTSUPP


@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
@pytest.mark.parametrize("persistent", [True, False])
def test_both_layouts(make_pair: Maker, protocol: str, persistent: bool) -> None:
    pair = make_pair()
    front = RawFront(pair, protocol=protocol, persistent=persistent)
    ref = front.grant(fill=b"north south east".ljust(4096, b"!"))
    assert front.one(WRITE, 40, [(ref, 0, 7)]) == OKAY
    assert pair.disk.image[40 * 512 : 48 * 512] == b"north south east".ljust(4096, b"!")
    other = front.grant()
    assert front.one(READ, 41, [(other, 2, 3)]) == OKAY
    assert bytes(front.pages[1].view) == bytes(1024) + b"!" * 1024 + bytes(2048)
    front.down()


def test_requests_that_were_there_before_the_backend(make_pair: Maker) -> None:
    """A frontend that does not wait for Connected: its requests lie in the ring, its event reached nobody."""

    def early(front: RawFront) -> None:
        ref = front.grant(fill=b"early".ljust(4096, b"."))
        for ident in range(5):
            front.put(WRITE, ident, 8 * ident, [(ref, 0, 7)])
        assert front.ring.push_requests_and_check_notify()
        front.kernel.events.notify(front.port)
        pair.world.run()

    pair = make_pair()
    front = RawFront(pair, early=early)
    pair.world.run()
    assert sorted(front.take()) == [(ident, WRITE, OKAY) for ident in range(5)]
    assert pair.disk.image[: 5 * 4096].count(b"early") == 5
    front.down()


BAD = [
    pytest.param(READ, 0, [], -1, ERROR, id="no segments"),
    pytest.param(READ, 0, [(0, 0, 7)] * 11, 12, ERROR, id="12 segments"),
    pytest.param(WRITE, 0, [(0, 0, 7)] * 11, 255, ERROR, id="255 segments"),
    pytest.param(READ, 0, [(0, 1, 0)], -1, ERROR, id="last before first"),
    pytest.param(READ, 0, [(0, 0, 8)], -1, ERROR, id="last beyond the page"),
    pytest.param(READ, 0, [(0, 255, 255)], -1, ERROR, id="first beyond the page"),
    pytest.param(READ, 4096, [(0, 0, 0)], -1, ERROR, id="behind the disk"),
    pytest.param(WRITE, 4089, [(0, 0, 7)], -1, ERROR, id="across the end of the disk"),
    pytest.param(WRITE, 2**64 - 1, [(0, 0, 7)], -1, ERROR, id="sector that wraps"),
    pytest.param(FLUSH, 4096, [(0, 0, 7)], -1, ERROR, id="flush with data behind the disk"),
    pytest.param(FLUSH, 0, [(0, 0, 7)] * 11, 12, ERROR, id="flush with 12 segments"),
    pytest.param(BARRIER, 0, [(0, 3, 2)], -1, ERROR, id="barrier with a bad segment"),
    pytest.param(4, 0, [], -1, EOPNOTSUPP, id="reserved operation"),
    pytest.param(5, 0, [(0, 0, 7)], -1, EOPNOTSUPP, id="secure discard"),
    pytest.param(5, 0, [(0, 255, 255)], 0, ERROR, id="discard of very many sectors"),
    pytest.param(255, 2**64 - 1, [(0, 255, 255)] * 11, 255, EOPNOTSUPP, id="garbage"),
]


@pytest.mark.parametrize(("op", "sector", "segments", "count", "expected"), BAD)
def test_bad_requests(
    make_pair: Maker, op: int, sector: int, segments: list[tuple[int, int, int]], count: int, expected: int
) -> None:
    pair = make_pair()
    front = RawFront(pair)
    ref = front.grant()
    assert front.one(READ, 0, [(ref, 0, 7)]) == OKAY  # the good descriptors are well known before the bad request
    segments = [(ref, first, last) for _, first, last in segments]
    log = list(pair.disk.log)
    assert front.one(op, sector, segments, count) == expected
    assert pair.disk.log == log
    assert front.one(READ, 0, [(ref, 0, 7)]) == OKAY
    assert not pair.back.fatals
    front.down()


def test_no_segments_after_a_flush(make_pair: Maker) -> None:
    front = RawFront(make_pair())
    assert front.one(FLUSH, 0, []) == OKAY
    assert front.one(READ, 0, []) == ERROR
    assert front.one(WRITE, 0, []) == ERROR
    front.down()


def test_a_read_only_disk_is_not_written(make_pair: Maker) -> None:
    pair = make_pair(mode="r")
    front = RawFront(pair)
    ref = front.grant(fill=b"x" * 4096)
    assert front.one(READ, 8, [(ref, 0, 0)]) == OKAY
    assert front.one(WRITE, 8, [(ref, 0, 0)]) == ERROR
    assert front.one(WRITE, 0, [(ref, 0, 7)]) == ERROR
    assert front.one(BARRIER, 0, [(ref, 0, 7)]) == EOPNOTSUPP
    assert front.one(FLUSH, 0, []) == EOPNOTSUPP
    assert pair.disk.log == [(READ, 8, 1)]
    front.down()


def test_a_slot_is_read_once(make_pair: Maker) -> None:
    """XSA-155: a slot that turns to garbage right after it was read is served as it was."""
    pair = make_pair()
    front = RawFront(pair)
    refs = [front.grant(fill=bytes([n]) * 4096) for n in range(11)]
    server = pair.server
    slots, *rest = server._taking
    *places, unpack, mapper, free, statistics, submit, kick = server._reading
    ring = server.ring
    reads = []

    def unpack_and_spoil(buffer: Any, offset: int) -> Any:
        request = unpack(buffer, offset)
        reads.append(offset)
        buffer[offset : offset + 112] = b"\xff" * 112
        return request

    def read_and_spoil(layout: Struct, first: int, last: int) -> Iterator[Any]:
        for number, request in enumerate(slots(layout, first, last), first):
            offset = ring.offset(number)
            reads.append(offset)
            ring.view[offset : offset + 112] = b"\xff" * 112
            yield request

    server._taking = (read_and_spoil, *rest)
    server._reading = (*places, unpack_and_spoil, mapper, free, statistics, submit, kick)
    for _ in range(2):  # first through the slow path, then with known segments
        reads.clear()
        pair.disk.log.clear()
        for ident, op in enumerate([WRITE, FLUSH, BARRIER, WRITE]):
            front.put(op, ident, 88 * ident, [(ref, 0, 7) for ref in refs])
        assert sorted(front.push()) == [(0, WRITE, OKAY), (1, FLUSH, OKAY), (2, BARRIER, OKAY), (3, WRITE, OKAY)]
        assert len(reads) == len(set(reads)) == 4
        assert pair.disk.image[: 4 * 44 * 1024] == b"".join(bytes([n]) * 4096 for n in range(11)) * 4
        assert sorted(entry for entry in pair.disk.log if entry[0] == 1) == [(1, 88 * n, 88) for n in range(4)]
    front.down()


def test_responses_carry_no_stale_bytes(make_pair: Maker) -> None:
    """XSA-216: the padding of a response is zero, whatever was there before."""
    for protocol in ("x86_64-abi", "x86_32-abi"):
        pair = make_pair()
        front = RawFront(pair, protocol=protocol)
        size = front.protocol.response.size
        front.put(77, 2**64 - 1, 2**64 - 1, [(0xFFFFFFFF, 255, 255)] * 11)
        front.push()
        raw = bytes(front.page.view[64 : 64 + size])
        assert raw[:9] == b"\xff" * 8 + bytes([77])
        assert raw[10:12] == (-2).to_bytes(2, "little", signed=True)
        assert raw[9:10] + raw[12:] == bytes(size - 11)
        front.down()


@pytest.mark.parametrize("ahead", [33, 1000, 2**31, 2**32 - 1])
def test_garbage_indices_stop_the_ring_once(make_pair: Maker, ahead: int) -> None:
    """XSA-39."""
    pair = make_pair()
    front = RawFront(pair)
    ref = front.grant()
    assert front.one(READ, 0, [(ref, 0, 7)]) == OKAY
    front.ring.shared[0] = (front.ring.req_prod_pvt + ahead) & 0xFFFFFFFF
    for _ in range(5):
        front.kernel.events.notify(front.port)
        pair.world.run()
    assert len(pair.back.fatals) == 1
    assert front.take() == []
    assert pair.server.stopped
    front.down()


def test_what_is_in_flight_when_the_ring_breaks_is_still_performed(make_pair: Maker) -> None:
    pair = make_pair()
    front = RawFront(pair, persistent=False)
    ref = front.grant(fill=b"z" * 4096)
    pair.disk.stuck = True
    front.put(WRITE, 1, 0, [(ref, 0, 7)])
    front.push()
    front.ring.shared[0] = 500
    front.kernel.events.notify(front.port)
    pair.world.run()
    assert pair.back.fatals
    pair.disk.stuck = False
    front.down()
    assert pair.disk.image[:4096] == b"z" * 4096


@pytest.mark.parametrize("answered", [0, 5])
@pytest.mark.parametrize("back", [1, 2, 26, 27])
def test_an_index_that_goes_back_stops_the_ring(make_pair: Maker, back: int, answered: int) -> None:
    """It is no more than a ring ahead of the responses, and still what no frontend writes: requests that are in the
    disk's hands would be taken once more.
    """
    pair = make_pair()
    front = RawFront(pair)
    ref = front.grant()
    for sector in range(answered):
        assert front.one(READ, sector, [(ref, 0, 0)]) == OKAY
    pair.disk.stuck = True
    for ident in range(27):
        front.put(READ, ident, ident, [(ref, 0, 0)])
    front.push()
    assert pair.server.in_flight == 27
    for prod in (answered + 27 - back, answered + 32):
        front.ring.shared[0] = prod
        front.kernel.events.notify(front.port)
        pair.world.run()
    (why,) = pair.back.fatals
    assert f"req_prod {answered + 27 - back} is behind {answered + 27}" in str(why)
    pair.disk.stuck = False
    pair.world.run()
    assert [ident for ident, _, _ in front.take()] == list(range(27))
    front.down()


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("position", range(11))
def test_a_bad_grant_fails_its_request_alone(make_pair: Maker, persistent: bool, position: int) -> None:
    """XSA-361, 362, 365, 367, 371: nothing of that request is transferred, its neighbours are, nothing stays mapped."""
    pair = make_pair()
    front = RawFront(pair, persistent=persistent)
    rng = random.Random(position)
    good = [[front.grant(fill=rng.randbytes(4096)) for _ in range(11)] for _ in range(3)]
    before = bytes(pair.disk.image[88 * 512 : 2 * 88 * 512])
    for n, refs in enumerate(good):
        segments = [(ref, 0, 7) for ref in refs]
        if n == 1:
            segments[position] = (9999, 0, 7)
        front.put(WRITE, n, n * 88, segments)
    assert sorted(front.push()) == [(0, WRITE, OKAY), (1, WRITE, ERROR), (2, WRITE, OKAY)]
    for n in (0, 2):
        pages = front.pages[11 * n : 11 * n + 11]
        assert pair.disk.image[n * 88 * 512 : (n + 1) * 88 * 512] == b"".join(bytes(page.view) for page in pages)
    assert pair.disk.image[88 * 512 : 2 * 88 * 512] == before
    assert front.one(READ, 0, [(good[1][0], 0, 7)]) == OKAY
    if not persistent:
        assert len(pair.back_kernel.grants.maps) == 1
    front.down()


def test_read_only_grants_can_be_written_from_but_not_read_into(make_pair: Maker) -> None:
    for persistent in (True, False):
        pair = make_pair()
        front = RawFront(pair, persistent=persistent)
        ref = front.grant(readonly=True, fill=b"r" * 4096)
        assert front.one(WRITE, 0, [(ref, 0, 7)]) == OKAY
        assert pair.disk.image[:4096] == b"r" * 4096
        assert front.one(READ, 8, [(ref, 0, 7)]) == ERROR
        assert bytes(front.pages[0].view) == b"r" * 4096
        front.down()


def test_ever_new_grants_stay_within_the_bound(make_pair: Maker) -> None:
    pair = make_pair(back={"max_persistent_grants": 20})
    front = RawFront(pair)
    refs = [front.grant() for _ in range(100)]
    for n, ref in enumerate(refs):
        assert front.one(READ, n, [(ref, 0, 0)]) == OKAY
        assert front.one(READ, n, [(refs[0], 0, 0)]) == OKAY
        assert len(pair.mapper.persistent) <= 20
    kept = pair.mapper.persistent
    assert refs[0] in kept  # used all the time, so never the least recently used
    assert list(kept)[-1] == refs[-1]
    front.down()


def test_ever_new_descriptors_do_not_fill_the_memory(make_pair: Maker) -> None:
    pair = make_pair()
    front = RawFront(pair)
    refs = [front.grant() for _ in range(40)]
    for ref in refs:
        for first in range(8):
            for last in range(first, 8):
                assert front.one(READ, 0, [(ref, first, last)]) == OKAY
    assert len(pair.mapper.plans) <= 1024
    front.down()


def test_events_without_work_cost_nothing_more(make_pair: Maker) -> None:
    """XSA-332: no request, no hypercall, no disk access, no answer."""
    pair = make_pair()
    front = RawFront(pair)
    hypercalls, kicks, notifications = pair.back_kernel.grants.hypercalls, pair.disk.kicks, pair.world.notifications
    for _ in range(1000):
        front.kernel.events.notify(front.port)
        pair.world.run()
    assert (pair.back_kernel.grants.hypercalls, pair.disk.kicks) == (hypercalls, kicks)
    assert pair.world.notifications == notifications + 1000
    front.down()


def test_a_barrier_waits_for_all_before_it_and_holds_all_after_it(make_pair: Maker) -> None:
    pair = make_pair(shuffled=True, seed=3)
    front = RawFront(pair)
    refs = [front.grant() for _ in range(9)]
    for n in range(4):
        front.put(WRITE, n, n, [(refs[n], 0, 0)])
    front.put(BARRIER, 4, 100, [(refs[4], 0, 0)])
    for n in range(5, 9):
        front.put(WRITE, n, n, [(refs[n], 0, 0)])
    responses = front.push()
    assert len(responses) == 9
    assert {status for _, _, status in responses} == {OKAY}
    sectors = [sector if op == 1 else "flush" for op, sector, _ in pair.disk.log]
    assert sorted(sectors[:4]) == [0, 1, 2, 3]
    assert sectors[4:7] == ["flush", 100, "flush"]
    assert sorted(sectors[7:]) == [5, 6, 7, 8]
    front.down()


def test_a_barrier_alone_and_two_in_a_row(make_pair: Maker) -> None:
    pair = make_pair()
    front = RawFront(pair)
    ref = front.grant()
    front.put(BARRIER, 0, 8, [(ref, 0, 0)])
    front.put(BARRIER, 1, 0, [])
    front.put(READ, 2, 0, [(ref, 0, 0)])
    assert front.push() == [(0, BARRIER, OKAY), (1, BARRIER, OKAY), (2, READ, OKAY)]
    assert [entry[0] for entry in pair.disk.log] == [2, 1, 2, 2, 0]
    front.down()


def test_a_flush_with_data_flushes_first(make_pair: Maker) -> None:
    pair = make_pair()
    front = RawFront(pair)
    ref = front.grant(fill=b"f" * 512)
    assert front.one(FLUSH, 9, [(ref, 0, 0)]) == OKAY
    assert pair.disk.log == [(2, 9, 0), (1, 9, 1)]
    front.down()


def test_a_failing_barrier_does_not_hold_the_ring(make_pair: Maker) -> None:
    pair = make_pair()
    front = RawFront(pair)
    ref = front.grant()
    pair.disk.bad_sectors = {50}
    front.put(BARRIER, 0, 50, [(ref, 0, 0)])
    front.put(BARRIER, 1, 50, [(4242, 0, 0)])
    front.put(READ, 2, 0, [(ref, 0, 0)])
    assert front.push() == [(0, BARRIER, ERROR), (1, BARRIER, ERROR), (2, READ, OKAY)]
    front.down()


NODES = [
    ("ring-ref", None),
    ("ring-ref", "-1"),
    ("ring-ref", "99999999999"),
    ("ring-ref", "12abc"),
    ("ring-ref", "\uff14\uff12"),
    ("ring-ref", "7777"),
    ("event-channel", None),
    ("event-channel", "4242"),
    ("event-channel", ""),
    ("protocol", "arm-abi"),
    ("protocol", "no such"),
]


@pytest.mark.parametrize(("node", "value"), NODES)
def test_bad_nodes_are_fatal_for_the_device_alone(make_pair: Maker, node: str, value: str | None) -> None:
    pair = make_pair()
    for hook in ("probe", "publish"):
        pair.hook(pair.back, hook)
        pair.hook(pair.front, hook)
    if value is None:
        del pair.store[f"frontend/{node}"]
    else:
        pair.store[f"frontend/{node}"] = value
    with pytest.raises((ValueError, OSError)):
        pair.hook(pair.back, "connect")
    pair.hook(pair.back, "close")
    pair.hook(pair.front, "close")
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_bytes_in_the_ring(data: st.DataObject) -> None:
    """Whatever stands in slots and indices: no exception, no DMA outside of granted pages, nothing left."""
    pair = Pair(seed=1, shuffled=True, back={"max_persistent_grants": data.draw(st.sampled_from([4, 1056]))})
    front = RawFront(pair, persistent=data.draw(st.booleans()))
    refs = [front.grant(readonly=n % 3 == 0) for n in range(6)]
    outside = pair.front_kernel.mm.alloc_page()
    for _ in range(data.draw(st.integers(1, 4))):
        for _ in range(data.draw(st.integers(0, 3))):
            front.put(READ, 0, 0, [(refs[1], 0, 7)])  # not everything is wrong
        for _ in range(data.draw(st.integers(0, 8))):
            segments = data.draw(
                st.lists(
                    st.tuples(st.sampled_from([*refs, 3, 2**32 - 1]), st.integers(0, 9), st.integers(0, 9)), max_size=11
                )
            )
            front.put(
                data.draw(st.integers(0, 7)),
                data.draw(st.integers(0, 2**64 - 1)),
                data.draw(st.sampled_from([0, 8, 4095, 4096, 2**63, 2**64 - 1])),
                segments,
                data.draw(st.sampled_from([-1, -1, -1, 0, 1, 11, 12, 255])),
            )
        # (While the disk holds on to what it has been given there are more states to get into.)
        pair.disk.stuck = data.draw(st.booleans())
        if data.draw(st.integers(0, 9)) == 0:
            front.ring.shared[data.draw(st.integers(0, 3))] = data.draw(st.integers(0, 2**32 - 1))
            front.kernel.events.notify(front.port)
        front.push()
        if data.draw(st.booleans()):
            front.ring.shared[0] = (front.ring.shared[0] + data.draw(st.integers(-33, 33))) & 0xFFFFFFFF
            front.kernel.events.notify(front.port)
            pair.world.run()
    pair.disk.stuck = False
    pair.world.run()
    assert bytes(outside.view) == bytes(4096)
    pair.front_kernel.mm.free_page(outside)
    front.down()
