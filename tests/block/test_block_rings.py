"""Rings of several pages, and several rings: what is negotiated, and what a frontend may get wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from struct import Struct
from typing import Any

import pytest
from block_raw import SEGMENT

from backends.block.protocol import NATIVE
from hypervisor.abi.io.blkif import BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_ERROR, BLKIF_RSP_OKAY
from hypervisor.abi.io.ring import FrontRing

Maker = Callable[..., Any]


def front_nodes(pair: Any) -> dict[str, str]:
    return {key.removeprefix("frontend/"): value for key, value in pair.store.items() if key.startswith("frontend/")}


@pytest.mark.parametrize(
    ("wanted", "offered", "order"), [(0, "4", 0), (2, "4", 2), (9, "4", 4), (3, "1", 1), (3, "", 0)]
)
def test_the_order_is_what_both_ends_have(make_pair: Maker, wanted: int, offered: str, order: int) -> None:
    pair = make_pair(front={"max_ring_page_order": wanted})
    pair.probe()
    pair.hook(pair.back, "publish")
    if offered:
        pair.store["backend/max-ring-page-order"] = offered
    else:
        del pair.store["backend/max-ring-page-order"]
    for end, hook in ((pair.front, "publish"), (pair.back, "connect"), (pair.front, "connect")):
        pair.hook(end, hook)
    nodes = front_nodes(pair)
    if order:
        assert nodes["ring-page-order"] == str(order)
        assert [f"ring-ref{n}" in nodes for n in range(17)] == [n < 1 << order for n in range(17)]
        assert "ring-ref" not in nodes
    else:
        assert "ring-ref" in nodes
        assert "ring-page-order" not in nodes
    assert pair.queue.ring.size == 32 << order
    pair.guest(pair.device.write(7, b"abcd" * 128))
    assert pair.guest(pair.device.read(7, 1)) == b"abcd" * 128
    pair.down()


def test_the_command_line_asks_for_pages(make_pair: Maker) -> None:
    pair = make_pair()
    pair.front_kernel.cmdline = "root=/dev/xvda xen_blkfront.max_ring_page_order=1"
    pair.up()
    assert pair.queue.ring.size == 64
    pair.down()


def test_more_requests_in_flight_than_a_page_has_slots(make_pair: Maker) -> None:
    pair = make_pair(front={"max_ring_page_order": 2}, shuffled=True).up()
    data = [random.Random(n).randbytes(512) for n in range(300)]
    most = 0

    async def write(n: int) -> None:
        nonlocal most
        await pair.device.write(2 * n, data[n])  # apart, so that those that wait stay apart
        most = max(most, pair.queue.in_flight)

    async def main() -> None:
        for thread in [pair.front_kernel.spawn(write(n)) for n in range(300)]:
            await thread.join()

    pair.guest(main())
    assert [bytes(pair.disk.image[n * 1024 : n * 1024 + 512]) for n in range(300)] == data
    assert most > 32
    pair.down()


# -- several rings ---------------------------------------------------------------------------------------------------


class Rings:
    """A frontend by hand with several rings of several pages each."""

    def __init__(self, pair: Any, queues: int, order: int, *, connect: bool = True) -> None:
        self.pair = pair
        self.kernel = pair.front_kernel
        self.pages: list[Any] = []
        self.refs: list[int] = []
        self.rings: list[FrontRing] = []
        self.ports: list[int] = []
        store = pair.store
        store["frontend/protocol"] = "x86_64-abi"
        if queues > 1:
            store["frontend/multi-queue-num-queues"] = str(queues)
        if order:
            store["frontend/ring-page-order"] = str(order)
        for number in range(queues):
            place = f"frontend/queue-{number}" if queues > 1 else "frontend"
            pages = self.kernel.mm.alloc_pages(1 << order)
            refs = [self.kernel.grants.grant_access(0, page) for page in pages]
            for n, ref in enumerate(refs):
                store[f"{place}/ring-ref{n}" if order else f"{place}/ring-ref"] = str(ref)
            port = self.kernel.events.alloc_unbound(0, lambda: None)
            store[f"{place}/event-channel"] = str(port)
            self.rings.append(FrontRing.initialise_pages([page.view for page in pages], NATIVE.entry_size))
            self.ports.append(port)
            self.pages += pages
            self.refs += refs
        for hook in ("probe", "publish", "connect") if connect else ("probe", "publish"):
            pair.hook(pair.back, hook)

    def page(self, fill: bytes = b"") -> tuple[Any, int]:
        page = self.kernel.mm.alloc_page()
        page.view[: len(fill)] = fill
        ref = self.kernel.grants.grant_access(0, page)
        self.pages.append(page)
        self.refs.append(ref)
        return page, ref

    def put(self, queue: int, op: int, ident: int, sector: int, ref: int) -> None:
        ring = self.rings[queue]
        index = ring.req_prod_pvt
        NATIVE.request.pack_into(ring.view, ring.offset(index), op, 1, 0, ident, sector, SEGMENT.pack(ref, 0, 0))
        ring.req_prod_pvt = (index + 1) & 0xFFFFFFFF
        if ring.pages:
            ring.show(index, ring.req_prod_pvt)

    def push(self, queue: int) -> None:
        if self.rings[queue].push_requests_and_check_notify():
            self.kernel.events.notify(self.ports[queue])

    def take(self, queue: int) -> list[tuple[int, int, int]]:
        ring = self.rings[queue]
        found = []
        ready = ring.unconsumed_responses()
        if ring.pages:
            ring.fetch(ring.rsp_cons, ring.rsp_cons + ready)
        for _ in range(ready):
            found.append(Struct("<QBxh").unpack_from(ring.view, ring.offset(ring.rsp_cons)))
            ring.rsp_cons = (ring.rsp_cons + 1) & 0xFFFFFFFF
        ring.shared[3] = (ring.rsp_cons + 1) & 0xFFFFFFFF
        return found

    def down(self) -> None:
        self.pair.hook(self.pair.back, "close")
        for ref in self.refs:
            assert self.kernel.grants.end_access(ref), "the backend still maps a page"
        for ring in self.rings:
            ring.release()
        for page in self.pages:
            self.kernel.mm.free_page(page)
        for port in self.ports:
            self.kernel.events.unbind(port)
        self.pair.world.check_no_leaks(self.pair.back_kernel, self.kernel)


@pytest.mark.parametrize("queues", [1, 2, 4])
@pytest.mark.parametrize("order", [0, 1, 4])
def test_each_ring_is_served_and_answered_by_itself(make_pair: Maker, queues: int, order: int) -> None:
    pair = make_pair()
    rings = Rings(pair, queues, order)
    size = rings.rings[0].size
    assert size == 32 << order
    pages = [rings.page(bytes([65 + n]) * 512) for n in range(queues)]
    for turn in range(3):  # around the ring, so that slots that straddle pages are used too
        for n in range(queues):
            for slot in range(size - 1):
                rings.put(n, BLKIF_OP_WRITE, slot << 8 | n, turn * queues + n, pages[n][1])
            rings.push(n)
        pair.world.run()
        for n in range(queues):
            found = rings.take(n)
            assert sorted(found) == [(slot << 8 | n, BLKIF_OP_WRITE, BLKIF_RSP_OKAY) for slot in range(size - 1)]
    for n in range(3 * queues):
        assert bytes(pair.disk.image[n * 512 : n * 512 + 512]) == bytes([65 + n % queues]) * 512
    total = pair.back_driver.statistics_of(1)
    assert [statistics.writes for statistics in total] == [3 * queues * (size - 1)]
    rings.down()


def test_garbage_in_one_ring_stops_them_all(make_pair: Maker) -> None:
    """The frontend is not to be believed in anything: nothing more of it is performed."""
    pair = make_pair()
    rings = Rings(pair, 2, 0)
    _, ref = rings.page(b"x" * 512)
    rings.rings[0].shared[0] = 1000
    rings.kernel.events.notify(rings.ports[0])
    pair.world.run()
    assert pair.back.fatals
    rings.put(1, BLKIF_OP_WRITE, 1, 0, ref)
    rings.push(1)
    pair.world.run()
    assert rings.take(1) == []
    assert not any(pair.disk.image[:512])
    rings.down()


def test_a_bad_request_in_one_ring_leaves_the_others_alone(make_pair: Maker) -> None:
    pair = make_pair()
    rings = Rings(pair, 2, 1)
    _, ref = rings.page(b"y" * 512)
    rings.put(0, BLKIF_OP_READ, 1, 1 << 40, ref)
    rings.put(1, BLKIF_OP_WRITE, 2, 3, ref)
    rings.push(0)
    rings.push(1)
    pair.world.run()
    assert rings.take(0) == [(1, BLKIF_OP_READ, BLKIF_RSP_ERROR)]
    assert rings.take(1) == [(2, BLKIF_OP_WRITE, BLKIF_RSP_OKAY)]
    rings.down()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ring-page-order": "5"}, "the frontend's ring-page-order is 5; the most is 4"),
        ({"ring-page-order": "-1"}, "ring-page-order is '-1', which is not a number of 32 bits"),
        ({"num-ring-pages": "3"}, "num-ring-pages is 3, which is no power of two up to 16"),
        ({"num-ring-pages": "0"}, "num-ring-pages is 0, which is no power of two up to 16"),
        ({"num-ring-pages": "32"}, "num-ring-pages is 32, which is no power of two up to 16"),
        ({"ring-page-order": "1"}, "ring-ref0 is None, which is not a number of 32 bits"),
        ({"multi-queue-num-queues": "0"}, "the frontend wants 0 queues; this backend has 1 to 4"),
        ({"multi-queue-num-queues": "5"}, "the frontend wants 5 queues; this backend has 1 to 4"),
        ({"multi-queue-num-queues": "2"}, "queue-0/ring-ref is None, which is not a number of 32 bits"),
        ({"ring-ref": "999999"}, "mapping ring-ref 999999 of domain 1: grant status -1"),
    ],
)
def test_what_the_protocol_does_not_allow(make_pair: Maker, changes: dict[str, str], sentence: str) -> None:
    pair = make_pair()
    pair.probe()
    pair.hook(pair.back, "publish")
    pair.hook(pair.front, "publish")
    pair.store.update({f"frontend/{key}": value for key, value in changes.items()})
    with pytest.raises((ValueError, OSError)) as caught:
        pair.hook(pair.back, "connect")
    assert sentence in str(caught.value)
    pair.down()


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ({}, "ring-ref"),
        ({"ring-page-order": "0"}, "ring-ref0"),
        ({"num-ring-pages": "1"}, "ring-ref0"),
        ({"ring-page-order": "0", "ring-ref0": ""}, "ring-ref"),
    ],
)
def test_which_page_a_ring_of_one_page_is(make_pair: Maker, said: dict[str, str], taken: str) -> None:
    """What a driver of larger rings has left behind is not taken for the ring of the one after it."""
    pair = make_pair()
    rings = Rings(pair, 1, 0, connect=False)
    store = pair.store
    if taken == "ring-ref0":
        store["frontend/ring-ref0"] = store["frontend/ring-ref"]
        store["frontend/ring-ref"] = "999999"
    else:
        store["frontend/ring-ref0"] = "999999"
    for key, value in said.items():
        store[f"frontend/{key}"] = value
        if not value:
            del store[f"frontend/{key}"]
    pair.hook(pair.back, "connect")
    _, ref = rings.page()
    rings.put(0, BLKIF_OP_READ, 7, 0, ref)
    rings.push(0)
    pair.world.run()
    assert rings.take(0) == [(7, BLKIF_OP_READ, BLKIF_RSP_OKAY)]
    rings.down()


@pytest.mark.parametrize("bad", range(4))
def test_a_ring_page_that_cannot_be_mapped_leaves_none_mapped(make_pair: Maker, bad: int) -> None:
    pair = make_pair(front={"max_ring_page_order": 2})
    pair.probe()
    pair.hook(pair.back, "publish")
    pair.hook(pair.front, "publish")
    pair.store[f"frontend/ring-ref{bad}"] = "999999"
    with pytest.raises(OSError, match="mapping ring-ref 999999"):
        pair.hook(pair.back, "connect")
    assert not pair.back_kernel.grants.maps
    pair.down()


def test_the_second_ring_fails_and_the_first_is_given_back(make_pair: Maker) -> None:
    pair = make_pair()
    rings = Rings(pair, 2, 0, connect=False)
    pair.store["frontend/queue-1/ring-ref"] = "999999"
    with pytest.raises(OSError, match="mapping ring-ref 999999"):
        pair.hook(pair.back, "connect")
    rings.down()
