"""Indirect requests, from a frontend by hand: what they may be, and what a hostile one may try."""

from collections.abc import Callable

import pytest
from block_pair import Pair
from block_raw import RawFront

from backends.block.indirect import MAX_SEGMENTS
from guest_kernel.block import READ, WRITE
from hypervisor.abi.io import blkif

OKAY, ERROR, EOPNOTSUPP = blkif.BLKIF_RSP_OKAY, blkif.BLKIF_RSP_ERROR, blkif.BLKIF_RSP_EOPNOTSUPP
INDIRECT = blkif.BLKIF_OP_INDIRECT
SEGMENT = blkif.blkif_request_segment
Maker = Callable[..., Pair]
Segments = list[tuple[int, int, int]]


class IndirectFront(RawFront):
    """Puts indirect requests, in the layout of its protocol."""

    def table(self, segments: Segments) -> int:
        """Make a granted page of descriptors; returns its reference."""
        return self.grant(readonly=True, fill=b"".join(SEGMENT.codec.pack(*segment) for segment in segments))

    def put_indirect(self, op: int, ident: int, sector: int, ref: int, count: int) -> None:
        layout = blkif.blkif_request_indirect
        if self.protocol.name == "x86_32-abi":
            layout = blkif.blkif_x86_32_request_indirect
        offset = self.ring.offset(self.ring.req_prod_pvt)
        self.page.view[offset : offset + self.ring.entry_size] = b"\xa5" * self.ring.entry_size
        grefs = (ref, *[0xFFFFFFFF] * 7)
        layout.pack_into(
            self.page.view,
            offset,
            operation=INDIRECT,
            indirect_op=op,
            nr_segments=count,
            id=ident,
            sector_number=sector,
            handle=0x1234,
            indirect_grefs=grefs,
        )
        self.ring.req_prod_pvt += 1

    def indirect(self, op: int, sector: int, segments: Segments, count: int = -1) -> int:
        """Perform one; returns its status. The response names the operation that is done."""
        self.put_indirect(op, 9, sector, self.table(segments), len(segments) if count < 0 else count)
        ((ident, echoed, status),) = self.push()
        assert (ident, echoed) == (9, op)
        return status


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
def test_a_megabyte_in_one_request(make_pair: Maker, protocol: str, persistent: bool) -> None:
    pair = make_pair(guest_pages=1000)
    front = IndirectFront(pair, protocol=protocol, persistent=persistent)
    assert pair.store["backend/feature-max-indirect-segments"] == str(MAX_SEGMENTS)
    refs = [front.grant(fill=bytes([n]) * 4096) for n in range(MAX_SEGMENTS)]
    whole = [(ref, 0, 7) for ref in refs]
    assert front.indirect(WRITE, 16, whole) == OKAY
    assert bytes(pair.disk.image[8192 : 8192 + (1 << 20)]) == b"".join(bytes([n]) * 4096 for n in range(256))
    pair.disk.image[:] = bytes(range(256)) * (len(pair.disk.image) // 256)
    assert front.indirect(READ, 1, whole[:12]) == OKAY
    assert front.indirect(READ, 0, [(refs[20], 2, 3)]) == OKAY  # few are allowed, too
    assert bytes(front.pages[11].view) == bytes(range(256)) * 16
    assert bytes(front.pages[12].view) == bytes([12]) * 4096
    assert bytes(front.pages[20].view) == bytes([20]) * 1024 + bytes(range(256)) * 4 + bytes([20]) * 2048
    assert pair.server.statistics.reads == 2
    assert pair.server.statistics.sectors_written == 2048
    front.down()


BAD = [
    pytest.param(READ, 0, [(0, 0, 7)] * 12, 0, id="no segments"),
    pytest.param(READ, 0, [(0, 0, 7)] * 12, MAX_SEGMENTS + 1, id="too many segments"),
    pytest.param(WRITE, 0, [(0, 0, 7)] * 12, 65535, id="very many segments"),
    pytest.param(READ, 0, [(0, 0, 7)] * 11 + [(0, 7, 6)], -1, id="last before first"),
    pytest.param(READ, 0, [(0, 0, 7)] * 11 + [(0, 0, 8)], -1, id="last beyond the page"),
    pytest.param(READ, 4001, [(0, 0, 7)] * 12, -1, id="across the end of the disk"),
    pytest.param(WRITE, 2**64 - 1, [(0, 0, 7)] * 12, -1, id="sector that wraps"),
    pytest.param(blkif.BLKIF_OP_FLUSH_DISKCACHE, 0, [(0, 0, 7)] * 12, -1, id="flush"),
    pytest.param(INDIRECT, 0, [(0, 0, 7)] * 12, -1, id="indirect of indirect"),
    pytest.param(255, 0, [(0, 0, 7)] * 12, -1, id="no operation"),
]


@pytest.mark.parametrize(("op", "sector", "segments", "count"), BAD)
def test_bad_requests(make_pair: Maker, op: int, sector: int, segments: Segments, count: int) -> None:
    pair = make_pair()
    front = IndirectFront(pair)
    ref = front.grant()
    assert front.indirect(op, sector, [(ref, first, last) for _, first, last in segments], count) == ERROR
    assert pair.disk.log == []
    assert front.one(READ, 0, [(ref, 0, 7)]) == OKAY
    assert not pair.back.fatals
    front.down()


def test_pages_that_are_not_there(make_pair: Maker) -> None:
    """A table that is not granted, and one with a segment that is not: that request fails, its neighbours do not."""
    pair = make_pair()
    front = IndirectFront(pair)
    refs = [front.grant() for _ in range(12)]
    good = front.table([(ref, 0, 7) for ref in refs])
    hole = front.table([(ref, 0, 7) for ref in refs[:-1]] + [(99999, 0, 7)])
    front.put_indirect(READ, 1, 0, good, 12)
    front.put_indirect(READ, 2, 0, 77777, 12)
    front.put(READ, 3, 8, [(refs[0], 0, 7)])
    front.put_indirect(READ, 4, 0, hole, 12)
    front.put_indirect(WRITE, 5, 96, good, 12)
    statuses = {ident: status for ident, _, status in front.push()}
    assert statuses == {1: OKAY, 2: ERROR, 3: OKAY, 4: ERROR, 5: OKAY}
    front.down()


def test_descriptors_are_read_once(make_pair: Maker) -> None:
    """XSA-155: what the frontend writes into its table after the copy has no effect."""
    pair = make_pair()
    front = IndirectFront(pair)
    refs = [front.grant(fill=b"w" * 4096) for _ in range(12)]
    table = front.table([(ref, 0, 7) for ref in refs])
    view = front.pages[-1].view
    copy = pair.back_kernel.grants.copy

    def copy_then_spoil(operations: list[tuple[int, int, int, int, int, int, int, int]]) -> list[int]:
        statuses = copy(operations)
        view[:] = b"\xff" * 4096
        return statuses

    pair.back_kernel.grants.copy = copy_then_spoil
    front.put_indirect(WRITE, 1, 0, table, 12)
    assert front.push() == [(1, WRITE, OKAY)]
    assert bytes(pair.disk.image[: 12 * 4096]) == b"w" * (12 * 4096)
    front.down()


def test_a_full_ring_of_them_takes_one_copy(make_pair: Maker) -> None:
    pair = make_pair(guest_pages=1000)
    front = IndirectFront(pair)
    refs = [front.grant(fill=b"w" * 4096) for _ in range(12)]
    table = front.table([(ref, 0, 7) for ref in refs])
    front.put_indirect(WRITE, 0, 0, table, 12)
    front.push()
    before = pair.back_kernel.grants.hypercalls
    for ident in range(32):
        front.put_indirect(WRITE, ident, 96 * ident, table, 12)
    assert sorted(front.push()) == [(ident, WRITE, OKAY) for ident in range(32)]
    assert pair.back_kernel.grants.hypercalls == before + 1
    assert pair.disk.kicks == 2
    front.down()


def test_a_backend_without_memory_for_them(make_pair: Maker) -> None:
    pair = make_pair()
    front = IndirectFront(pair)
    refs = [front.grant() for _ in range(12)]
    limit, pair.back_kernel.mm.limit = pair.back_kernel.mm.limit, pair.back_kernel.mm.used
    assert front.indirect(READ, 0, [(ref, 0, 7) for ref in refs]) == ERROR
    pair.back_kernel.mm.limit = limit
    assert front.indirect(READ, 0, [(ref, 0, 7) for ref in refs]) == OKAY
    front.down()
