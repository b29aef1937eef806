"""Discards: what a guest does not need any more, from its block layer to the backend's disk."""

import errno
from collections.abc import Callable

import pytest
from block_pair import Pair
from block_raw import RawFront

from guest_kernel.block import DISCARD, READ, SECURE_DISCARD, WRITE, BlockError
from hypervisor.abi.io import blkif

OKAY, ERROR, EOPNOTSUPP = blkif.BLKIF_RSP_OKAY, blkif.BLKIF_RSP_ERROR, blkif.BLKIF_RSP_EOPNOTSUPP
BARRIER = blkif.BLKIF_OP_WRITE_BARRIER
Maker = Callable[..., Pair]


def put_discard(front: RawFront, sector: int, sectors: int, flag: int = 0, ident: int = 7) -> None:
    """Write a discard into the ring, in the layout of the frontend's protocol."""
    layout = blkif.blkif_request_discard
    if front.protocol.name == "x86_32-abi":
        layout = blkif.blkif_x86_32_request_discard
    offset = front.ring.offset(front.ring.req_prod_pvt)
    front.page.view[offset : offset + front.ring.entry_size] = b"\xa5" * front.ring.entry_size
    layout.pack_into(
        front.page.view,
        offset,
        operation=blkif.BLKIF_OP_DISCARD,
        flag=flag,
        id=ident,
        sector_number=sector,
        nr_sectors=sectors,
    )
    front.ring.req_prod_pvt += 1


def discard(front: RawFront, sector: int, sectors: int, flag: int = 0) -> int:
    put_discard(front, sector, sectors, flag)
    ((ident, op, status),) = front.push()
    assert (ident, op) == (7, blkif.BLKIF_OP_DISCARD)
    return status


def fail(pair: Pair, sector: int, count: int) -> int | None:
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.discard(sector, count))
    return caught.value.errno


def test_a_guest_discards(make_pair: Maker) -> None:
    pair = make_pair().up()
    pair.disk.image[:] = b"x" * len(pair.disk.image)
    assert pair.store["backend/feature-discard"] == "1"
    assert pair.store["backend/discard-granularity"] == "512"
    pair.guest(pair.device.discard(8, 1000))  # as many as one likes, in one request
    pair.guest(pair.device.discard(3000, 0))
    assert bytes(pair.disk.image) == b"x" * 4096 + bytes(512000) + b"x" * (2097152 - 516096)
    assert pair.guest(pair.device.read(7, 2)) == b"x" * 512 + bytes(512)
    assert (pair.device.discards, pair.device.sectors_discarded) == (1, 1000)
    assert (pair.server.statistics.discards, pair.server.statistics.sectors_discarded) == (1, 1000)
    assert [entry for entry in pair.disk.log if entry[0] == DISCARD] == [(DISCARD, 8, 1000)]
    assert fail(pair, 4000, 97) == errno.EINVAL
    assert fail(pair, -1, 2) == errno.EINVAL
    pair.disk.bad_sectors.add(100)
    assert fail(pair, 96, 8) == errno.EIO
    pair.down()


@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
def test_both_layouts(make_pair: Maker, protocol: str) -> None:
    pair = make_pair()
    pair.disk.image[:] = b"x" * len(pair.disk.image)
    front = RawFront(pair, protocol=protocol)
    assert discard(front, 4095, 1) == OKAY
    assert discard(front, 0, 2) == OKAY
    assert bytes(pair.disk.image) == bytes(1024) + b"x" * (2097152 - 1536) + bytes(512)
    front.down()


def test_bad_discards(make_pair: Maker) -> None:
    pair = make_pair()
    front = RawFront(pair)
    assert discard(front, 0, 0) == ERROR
    assert discard(front, 4095, 2) == ERROR
    assert discard(front, 4096, 1) == ERROR
    assert discard(front, 2**64 - 1, 2) == ERROR
    assert discard(front, 1, 2**64 - 1) == ERROR
    assert discard(front, 0, 8, flag=blkif.BLKIF_DISCARD_SECURE) == EOPNOTSUPP
    assert pair.disk.log == []
    assert discard(front, 0, 8, flag=0x80) == OKAY  # flags that mean nothing are ignored
    assert not pair.back.fatals
    front.down()


def test_discards_among_others(make_pair: Maker) -> None:
    """A ring full of everything, on a disk that finishes in any order; a barrier has them all before it."""
    pair = make_pair(shuffled=True, seed=3)
    front = RawFront(pair)
    refs = [front.grant(fill=b"w" * 4096) for _ in range(4)]
    for n, ref in enumerate(refs):
        front.put(WRITE, 100 + n, 8 * n, [(ref, 0, 7)])
        put_discard(front, 512 + 8 * n, 8, ident=200 + n)
    front.put(BARRIER, 300, 64, [(refs[0], 0, 7)])
    put_discard(front, 64, 8, ident=400)
    front.put(READ, 500, 0, [(refs[1], 0, 7)])
    statuses = {ident: status for ident, _, status in front.push()}
    assert statuses == dict.fromkeys([*range(100, 104), *range(200, 204), 300, 400, 500], OKAY)
    order = [(op, sector) for op, sector, _ in pair.disk.log]
    barrier = order.index((WRITE, 64))
    assert {sector for op, sector in order[:barrier] if op == DISCARD} == {512, 520, 528, 536}
    assert order.index((DISCARD, 64)) > barrier
    front.down()


@pytest.mark.parametrize("options", [{"mode": "r"}, {}], ids=["read-only", "not enabled"])
def test_where_discards_are_not_offered(make_pair: Maker, options: dict[str, str]) -> None:
    pair = make_pair(**options)
    pair.store["backend/discard-enable"] = "0"
    front = RawFront(pair)
    assert pair.store["backend/feature-discard"] == "0"
    assert "backend/discard-granularity" not in pair.store
    assert discard(front, 0, 8) == EOPNOTSUPP
    assert pair.disk.log == []
    front.down()


def test_a_guest_hears_that_its_disk_cannot(make_pair: Maker) -> None:
    pair = make_pair()
    pair.store["backend/discard-enable"] = "0"
    pair.up()
    assert fail(pair, 0, 8) == errno.EOPNOTSUPP
    assert pair.disk.log == []
    pair.down()
    pair = make_pair(mode="r").up()
    assert fail(pair, 0, 8) == errno.EROFS
    pair.down()


@pytest.mark.parametrize("protocol", ["x86_64-abi", "x86_32-abi"])
def test_secure_discards(make_pair: Maker, protocol: str) -> None:
    pair = make_pair(secure=True)
    pair.disk.image[:] = b"x" * len(pair.disk.image)
    front = RawFront(pair, protocol=protocol)
    assert pair.store["backend/discard-secure"] == "1"
    assert discard(front, 8, 8, flag=blkif.BLKIF_DISCARD_SECURE) == OKAY
    assert discard(front, 32, 8) == OKAY
    assert discard(front, 4090, 8, flag=blkif.BLKIF_DISCARD_SECURE) == ERROR
    assert discard(front, 0, 0, flag=blkif.BLKIF_DISCARD_SECURE) == ERROR
    assert pair.disk.log == [(SECURE_DISCARD, 8, 8), (DISCARD, 32, 8)]
    assert bytes(pair.disk.image[4096:8192]) == bytes(4096)
    front.down()


def test_a_guest_discards_securely(make_pair: Maker) -> None:
    pair = make_pair(secure=True).up()
    assert pair.device.can_discard_securely
    pair.disk.image[:] = b"x" * len(pair.disk.image)
    pair.guest(pair.device.discard(8, 8, secure=True))
    assert pair.disk.log == [(SECURE_DISCARD, 8, 8)]
    assert bytes(pair.disk.image[4096:8192]) == bytes(4096)
    pair.down()


def test_a_guest_hears_that_nobody_promises_it(make_pair: Maker) -> None:
    """The frontend does not even ask."""
    pair = make_pair().up()
    assert pair.store["backend/discard-secure"] == "0"
    assert not pair.device.can_discard_securely
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.discard(0, 8, secure=True))
    assert caught.value.errno == errno.EOPNOTSUPP
    assert pair.disk.log == []
    pair.guest(pair.device.discard(0, 8))
    pair.down()
