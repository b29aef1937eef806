"""Indirect requests: from a frontend by hand, what they may be and what a hostile one may try; then from ours."""

import errno
import random
from collections.abc import Callable

import pytest
from block_pair import Pair
from block_raw import RawFront

import backends.block.server
from backends.block.indirect import MAX_COPIES, MAX_SEGMENTS, MAX_TABLES
from guest_kernel.block import READ, WRITE, BlockError
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

    def tables(self, segments: Segments) -> list[int]:
        """The same for as many descriptors as there are."""
        return [self.table(segments[n : n + 512]) for n in range(0, len(segments), 512)]

    def put_indirect(self, op: int, ident: int, sector: int, refs: int | list[int], count: int) -> None:
        layout = blkif.blkif_request_indirect
        if self.protocol.name == "x86_32-abi":
            layout = blkif.blkif_x86_32_request_indirect
        offset = self.ring.offset(self.ring.req_prod_pvt)
        self.page.view[offset : offset + self.ring.entry_size] = b"\xa5" * self.ring.entry_size
        given = refs if isinstance(refs, list) else [refs]
        grefs = (*given, *[0xFFFFFFFF] * (8 - len(given)))
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
        self.put_indirect(op, 9, sector, self.tables(segments), len(segments) if count < 0 else count)
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


def test_a_ring_full_of_them_takes_no_more_of_the_backends_memory(make_pair: Maker) -> None:
    """Of one ring of 16 pages they could be 16 MiB, four times as much of a disk with four rings, for as long as the
    frontend is connected.
    """
    pair = make_pair()
    front = IndirectFront(pair)
    tables = [[front.table([(n, 0, piece % 8)]) for piece in range(8)] for n in range(50)]
    before = pair.back_kernel.mm.used
    wanted = [(refs, count) for n, refs in enumerate(tables) for count in (4096, 513, 512, 3 + n)]
    fetched = pair.back.data.queues[0].copier.fetch(wanted)
    assert pair.back_kernel.mm.used - before <= MAX_COPIES
    for descriptors, (refs, count) in zip(fetched, wanted, strict=True):
        pages = [bytes(front.pages[front.refs.index(ref)].view) for ref in refs]
        assert descriptors == b"".join(pages)[: 8 * count]
    front.down()


def test_a_page_of_descriptors_that_comes_again_is_read_anew_each_time(make_pair: Maker) -> None:
    """It stays mapped; what counts is what it holds when the request comes, and how many descriptors that names."""
    pair = make_pair()
    front = IndirectFront(pair)
    refs = [front.grant(fill=bytes([n]) * 4096) for n in range(14)]
    table = front.table([(ref, 0, 7) for ref in refs])
    view = front.pages[-1].view
    for _ in range(3):
        front.put_indirect(WRITE, 1, 0, table, 12)
        assert front.push() == [(1, WRITE, OKAY)]
    assert len(pair.tables) == 1
    assert bytes(pair.disk.image[: 12 * 4096]) == b"".join(bytes([n]) * 4096 for n in range(12))
    before = pair.back_kernel.grants.hypercalls
    view[:16], view[16:32] = bytes(view[16:32]), bytes(view[:16])
    for count in (13, 12, 13, 12, 13):
        pair.disk.image[:] = bytes(len(pair.disk.image))
        front.put_indirect(WRITE, 1, 0, table, count)
        assert front.push() == [(1, WRITE, OKAY)]
        order = [2, 3, 0, 1, *range(4, count)]
        assert bytes(pair.disk.image[: 14 * 4096]) == b"".join(bytes([n]) * 4096 for n in order) + bytes(
            (14 - count) * 4096
        )
    assert pair.back_kernel.grants.hypercalls <= before + 6  # two new plans: a copy of each, and a grant to be mapped
    for segment in ((refs[0], 7, 6), (refs[0], 0, 8), (99999, 0, 7)):
        view[:8] = SEGMENT.codec.pack(*segment)
        front.put_indirect(WRITE, 1, 0, table, 12)
        assert front.push() == [(1, WRITE, ERROR)]
    for count in (0, 257, 513, 65535):
        front.put_indirect(READ, 1, 0, table, count)
        assert front.push() == [(1, READ, ERROR)]
    front.down()


def test_a_known_page_leads_to_no_grant_that_was_given_up(make_pair: Maker) -> None:
    """What the backend has unmapped to make room is mapped anew when the same descriptors come again."""
    pair = make_pair(back={"max_persistent_grants": 30})
    front = IndirectFront(pair)
    refs = [front.grant(fill=b"a" * 4096) for _ in range(36)]
    tables = [front.table([(ref, 0, 7) for ref in refs[n : n + 12]]) for n in (0, 12, 24)]
    for n in range(4):
        front.put_indirect(WRITE, n, 96 * n, tables[0], 12)
        assert front.push() == [(n, WRITE, OKAY)]
    assert len(pair.mapper.persistent) == 12
    for table in (*tables[1:], *tables):
        for _ in range(2):
            front.put_indirect(READ, 7, 0, table, 12)
            assert front.push() == [(7, READ, OKAY)]
            assert pair.mapper.persistent.keys() >= set(refs[12 * tables.index(table) :][:12])
    front.down()


def test_ever_new_pages_of_descriptors_stay_within_the_bound(make_pair: Maker) -> None:
    pair = make_pair()
    front = IndirectFront(pair)
    refs = [front.grant() for _ in range(12)]
    tables = [front.table([(ref, 0, 7) for ref in refs]) for _ in range(3 * MAX_TABLES)]
    for table in [*tables, *tables[::-1]]:
        for _ in range(2):
            front.put_indirect(READ, 7, 0, table, 12)
            assert front.push() == [(7, READ, OKAY)]
            assert len(pair.tables) <= MAX_TABLES
    front.put_indirect(READ, 7, 0, tables[0], 12)
    assert front.push() == [(7, READ, OKAY)]
    front.down()


@pytest.mark.parametrize("persistent", [True, False])
def test_pages_of_descriptors_stay_mapped_only_with_persistent_grants(make_pair: Maker, persistent: bool) -> None:
    pair = make_pair()
    front = IndirectFront(pair, persistent=persistent)
    refs = [front.grant() for _ in range(12)]
    table = front.table([(ref, 0, 7) for ref in refs])
    for _ in range(3):
        front.put_indirect(READ, 7, 0, table, 12)
        assert front.push() == [(7, READ, OKAY)]
    assert bool(front.kernel.grants.entries[table][3]) == persistent
    front.down()


def test_well_known_segments_are_parsed_once_and_checked_each_time(
    make_pair: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(mode="r")
    front = IndirectFront(pair)
    whole = [(front.grant(), 0, 7) for _ in range(12)]
    assert front.indirect(READ, 0, whole) == OKAY
    monkeypatch.setattr(backends.block.server, "parse_segments", lambda descriptors: pytest.fail("they are known"))
    assert front.indirect(READ, 96, whole) == OKAY
    assert pair.server.statistics.sectors_read == 2 * 96
    monkeypatch.undo()
    assert front.indirect(READ, pair.disk.sectors - 95, whole) == ERROR
    assert front.indirect(READ, 2**64 - 1, whole) == ERROR
    assert front.indirect(WRITE, 0, whole) == ERROR
    assert [entry[0] for entry in pair.disk.log] == [READ, READ]
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


# More of them than a page has room for


MANY = {"back": {"max_indirect_segments": 9999}, "guest_pages": 9000, "world_pages": 14000, "sectors": 65536}
"""Options of a pair whose backend takes as many as the protocol allows."""


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
@pytest.mark.parametrize("count", [257, 512, 513, 4096])
def test_several_pages_of_descriptors(make_pair: Maker, protocol: str, persistent: bool, count: int) -> None:
    pair = make_pair(**MANY)
    front = IndirectFront(pair, protocol=protocol, persistent=persistent)
    assert pair.store["backend/feature-max-indirect-segments"] == "4096"
    segments = [(front.grant(fill=n.to_bytes(2, "little") * 2048), 0, 7) for n in range(count)]
    segments[100] = (segments[100][0], 1, 3)
    whole = b"".join(
        n.to_bytes(2, "little") * (256 * (last - first + 1)) for n, (_, first, last) in enumerate(segments)
    )
    assert front.indirect(WRITE, 8, segments) == OKAY
    assert bytes(pair.disk.image[4096 : 4096 + len(whole)]) == whole
    assert not any(pair.disk.image[4096 + len(whole) :])
    assert [size for _, _, size in pair.disk.log] == [
        min(2048, 8 * count - 2048 * n) - 5 * (n == 0) for n in range(-(-count // 256))
    ]
    for page in front.pages[:count]:
        page.view[:] = bytes(4096)
    for _ in range(2):
        assert front.indirect(READ, 8, segments) == OKAY
    assert b"".join(bytes(page.view) for page in front.pages[101:count]) == whole[100 * 4096 + 3 * 512 :]
    assert bytes(front.pages[100].view) == bytes(512) + b"\x64\0" * 768 + bytes(2048)
    assert (pair.server.statistics.reads, pair.server.statistics.writes) == (2, 1)
    front.down()


@pytest.mark.parametrize("bad", range(3))
def test_a_page_of_descriptors_that_is_not_there(make_pair: Maker, bad: int) -> None:
    pair = make_pair(**MANY)
    front = IndirectFront(pair)
    segments = [(front.grant(fill=b"w" * 4096), 0, 7) for _ in range(1200)]
    tables = front.tables(segments)
    front.put_indirect(WRITE, 1, 0, [*tables[:bad], 99999, *tables[bad + 1 :]], 1200)
    front.put(WRITE, 2, 60000, [(front.refs[0], 0, 0)])
    front.put_indirect(WRITE, 3, 16384, tables, 1200)
    assert sorted(front.push()) == [(1, WRITE, ERROR), (2, WRITE, OKAY), (3, WRITE, OKAY)]
    assert not any(pair.disk.image[: 16384 * 512])
    assert bytes(pair.disk.image[16384 * 512 : 25984 * 512]) == b"w" * (9600 * 512)
    front.down()


@pytest.mark.parametrize("position", [0, 255, 256, 511, 512, 1199])
def test_a_bad_segment_in_any_page(make_pair: Maker, position: int) -> None:
    """Nothing of the request is transferred, also where the disk would take several commands for it."""
    pair = make_pair(**MANY)
    front = IndirectFront(pair)
    segments = [(front.grant(fill=b"w" * 4096), 0, 7) for _ in range(1200)]
    for bad in ((99999, 0, 7), (segments[3][0], 5, 4), (segments[3][0], 0, 8)):
        spoiled = [*segments[:position], bad, *segments[position + 1 :]]
        assert front.indirect(WRITE, 0, spoiled) == ERROR
    assert front.indirect(WRITE, pair.disk.sectors - 9599, segments) == ERROR
    assert not any(pair.disk.image)
    front.down()


@pytest.mark.parametrize("sector", [5, 2048, 9599])
def test_a_command_of_several_that_fails(make_pair: Maker, sector: int) -> None:
    pair = make_pair(**MANY)
    front = IndirectFront(pair)
    segments = [(front.grant(), 0, 7) for _ in range(1200)]
    pair.disk.bad_sectors.add(sector)
    assert front.indirect(WRITE, 0, segments) == ERROR
    assert front.indirect(READ, 0, segments) == ERROR
    pair.disk.bad_sectors.clear()
    assert front.indirect(READ, 0, segments) == OKAY
    front.down()


def test_the_frontend_goes_in_the_middle_of_one(make_pair: Maker) -> None:
    pair = make_pair(**MANY)
    front = IndirectFront(pair)
    segments = [(front.grant(fill=b"w" * 4096), 0, 7) for _ in range(1200)]
    front.put_indirect(WRITE, 1, 0, front.tables(segments), 1200)
    pair.disk.stuck = True
    assert front.push() == []
    thread = pair.back_kernel.spawn(pair.back.driver.close(pair.back), "close")
    pair.world.run()
    assert not thread.done, "the disk's DMA has not ended"
    pair.disk.stuck = False
    pair.world.run()
    assert thread.done
    assert bytes(pair.disk.image[: 9600 * 512]) == b"w" * (9600 * 512)
    front.down()


def test_a_backend_that_offers_none(make_pair: Maker) -> None:
    """Then there is no node that says how many (blkif.h), and no such operation."""
    pair = make_pair(back={"max_indirect_segments": 0})
    front = IndirectFront(pair)
    assert "backend/feature-max-indirect-segments" not in pair.store
    front.put_indirect(READ, 1, 0, front.table([(front.grant(), 0, 7)]), 1)
    assert front.push() == [(1, INDIRECT, EOPNOTSUPP)]
    front.down()


# The frontend's end


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize(("wanted", "offered", "limit"), [(4096, 9999, 4096), (1300, 9999, 1300), (99999, 600, 600)])
def test_a_frontend_takes_what_is_offered(
    make_pair: Maker, wanted: int, offered: int, limit: int, persistent: bool
) -> None:
    options = MANY | {"back": {"max_indirect_segments": offered}}
    pair = make_pair(**options, front={"max_indirect_segments": wanted, "persistent": persistent}).up()
    assert pair.device.max_sectors == 8 * limit
    data = random.Random(limit).randbytes(40000 * 512)
    for count in (8 * limit, 8 * limit - 3, 12 * 8, 40000):
        pair.guest(pair.device.write(1, data[: count * 512]))
        assert bytes(pair.disk.image[512 : (count + 1) * 512]) == data[: count * 512]
        assert pair.guest(pair.device.read(1, count)) == data[: count * 512]
    pair.down()


def test_a_slot_has_no_more_pages_than_its_requests_need(make_pair: Maker) -> None:
    pair = make_pair(**MANY, front={"max_indirect_segments": 4096}).up()
    before = pair.front_kernel.mm.used
    for count, pages in ((8, 1), (9, 11), (96, 32 + 1), (264, 256 + 1), (2056, 1024 + 1), (4104, 1024 + 2)):
        pair.guest(pair.device.read(0, count))
        assert pair.front_kernel.mm.used - before == pages
    pair.down()


LARGE = {"front": {"max_indirect_segments": 32}}
"""Options of a pair whose frontend makes indirect requests although its guest has little memory."""


@pytest.mark.parametrize("persistent", [True, False])
def test_a_frontend_makes_them(make_pair: Maker, persistent: bool) -> None:
    pair = make_pair(front={"max_indirect_segments": 32, "persistent": persistent}).up()
    data = bytes(range(256)) * (600 * 2)
    pair.guest(pair.device.write(3, data))
    assert bytes(pair.disk.image[3 * 512 : 603 * 512]) == data
    assert [size for _, _, size in pair.disk.log] == [256, 256, 88]
    for count in (88, 89, 96, 255, 256, 257, 600, 8, 100, 97):
        assert pair.guest(pair.device.read(3, count)) == data[: count * 512]
    assert pair.guest(pair.device.read(3, 600)) == data
    pair.down()


def test_descriptors_are_written_when_they_change(make_pair: Maker) -> None:
    """The same transfer again costs no more than the request itself."""
    pair = make_pair(**LARGE).up()
    for count in (200, 100, 200):
        pair.guest(pair.device.read(0, count))
    (slot,) = [slot for slot in pair.queue._slots if slot.tables.pages]
    assert len(slot.table_holds) == 25 * 8
    mark = b"\xee" * 8
    slot.tables.pages[0].view[400:408] = mark
    pair.guest(pair.device.read(8, 200))
    assert bytes(slot.tables.pages[0].view[400:408]) == mark
    pair.down()


def test_a_backend_that_takes_none_or_fewer(make_pair: Maker) -> None:
    pair = make_pair(**LARGE)
    pair.probe()
    pair.hook(pair.back, "publish")
    for offered, sizes in (("0", [88, 88, 24]), ("16", [128, 72]), ("4", [88, 88, 24]), ("100", [200])):
        pair.store["backend/feature-max-indirect-segments"] = offered
        pair.hook(pair.front, "publish")
        pair.hook(pair.back, "connect")
        pair.hook(pair.front, "connect")
        pair.disk.log.clear()
        pair.guest(pair.device.read(0, 200))
        assert [size for _, _, size in pair.disk.log] == sizes, offered
        pair.close()
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


def test_a_guest_with_little_memory_makes_none(make_pair: Maker) -> None:
    pair = make_pair().up()
    assert pair.device.max_sectors == 88
    pair.down()
    pair = make_pair()
    pair.front_kernel.mm.nr_pages = 8 * 32 * 32
    pair.up()
    assert pair.device.max_sectors == 256
    pair.down()


@pytest.mark.parametrize(
    ("text", "sectors"), [("256", 2048), ("16", 128), ("0", 88), ("many", 88), ("-1", 88), ("", 88), ("9" * 9, 88)]
)
def test_the_command_line_says_how_many(make_pair: Maker, text: str, sectors: int) -> None:
    pair = make_pair()
    pair.front_kernel.cmdline = f"quiet xen_blkfront.max_indirect_segments={text} other"
    pair.up()
    assert pair.device.max_sectors == sectors
    pair.down()


def test_large_requests_go_on_with_a_backend_that_takes_smaller_ones(make_pair: Maker) -> None:
    """What was under way is taken apart, a part of it at a time, and put together again."""
    pair = make_pair(**LARGE).up()
    image = bytes(range(251)) * 8400
    pair.disk.image[:] = image[: len(pair.disk.image)]
    pair.disk.stuck = True
    threads = [
        pair.front_kernel.spawn(pair.device.read(1, 256), "single"),
        pair.front_kernel.spawn(pair.device.read(300, 700), "split"),
        pair.front_kernel.spawn(pair.device.read(2000, 5), "small"),
        pair.front_kernel.spawn(pair.device.write(3000, b"W" * 512 * 200), "write"),
        pair.front_kernel.spawn(pair.device.discard(1500, 300), "discard"),
    ]
    pair.world.run()
    assert pair.queue.in_flight == 7
    pair.hook(pair.front, "close")
    pair.disk.stuck = False
    pair.hook(pair.back, "close")
    pair.hook(pair.back, "publish")
    pair.store["backend/feature-max-indirect-segments"] = "0"
    pair.hook(pair.front, "publish")
    pair.hook(pair.back, "connect")
    pair.disk.log.clear()
    pair.disk.image[:] = image[: len(pair.disk.image)]
    pair.hook(pair.front, "connect")
    pair.world.run()
    assert all(thread.done and thread.exception is None for thread in threads)
    assert threads[0].result == image[512 : 257 * 512]
    assert threads[1].result == image[300 * 512 : 1000 * 512]
    assert threads[2].result == image[2000 * 512 : 2005 * 512]
    assert bytes(pair.disk.image[3000 * 512 : 3200 * 512]) == b"W" * 512 * 200
    assert not any(pair.disk.image[1500 * 512 : 1800 * 512])
    assert max(size for op, _, size in pair.disk.log if op in (READ, WRITE)) == 88
    pair.down()


def test_an_error_in_one_part_is_that_of_the_whole(make_pair: Maker) -> None:
    pair = make_pair(**LARGE).up()
    pair.disk.stuck = True
    thread = pair.front_kernel.spawn(pair.device.read(0, 256), "read", panics=False)
    pair.world.run()
    pair.hook(pair.front, "close")
    pair.disk.stuck = False
    pair.hook(pair.back, "close")
    pair.hook(pair.back, "publish")
    pair.store["backend/feature-max-indirect-segments"] = "0"
    pair.disk.bad_sectors.add(100)
    pair.hook(pair.front, "publish")
    pair.hook(pair.back, "connect")
    pair.hook(pair.front, "connect")
    pair.world.run()
    assert isinstance(thread.exception, BlockError)
    assert thread.exception.errno == errno.EIO
    pair.down()


def test_no_memory_for_descriptors(make_pair: Maker) -> None:
    pair = make_pair(**LARGE).up()
    mm = pair.front_kernel.mm
    limit, mm.limit = mm.limit, mm.used + 32
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.read(0, 100))
    assert caught.value.errno == errno.ENOMEM
    mm.limit = limit
    assert len(pair.guest(pair.device.read(0, 100))) == 51200
    pair.down()


def test_a_backend_that_keeps_the_descriptors_mapped(make_pair: Maker) -> None:
    """XSA-396: their page is withheld like any other."""
    pair = make_pair(**LARGE).up()
    pair.guest(pair.device.read(0, 100))
    (slot,) = [slot for slot in pair.queue._slots if slot.tables.pages]
    (kept,) = pair.back_kernel.grants.map_refs(1, [slot.tables.refs[0]], False)
    pair.close()
    assert pair.front_kernel.mm.used == 1
    pair.back_kernel.grants.unmap([kept])
    pair.connect()
    pair.down()
