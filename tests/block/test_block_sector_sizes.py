"""Disks whose sectors are larger than 512 bytes: both drivers, the ring between them, whole hosts."""

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from block_pair import Pair
from block_raw import RawFront
from block_scene import Scene

from guest_kernel.block import READ, WRITE, BlockError
from hypervisor.abi.io import blkif
from toolstack.disk_spec import parse_disk
from toolstack.errors import SpecError, UsageError

Maker = Callable[..., Pair]
SIZES = (512, 1024, 2048, 4096)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("sector_size", SIZES)
def test_random_traffic(make_pair: Maker, sector_size: int, persistent: bool) -> None:
    pair = make_pair(
        sectors=(2 << 20) // sector_size, sector_size=sector_size, shuffled=True, front={"persistent": persistent}
    ).up()
    assert pair.store["backend/sectors"] == str((2 << 20) // sector_size)
    assert (pair.device.block_size, pair.device.sectors, pair.device.size) == (sector_size, 4096, 2 << 20)
    rng = random.Random(sector_size)
    model = bytearray(2 << 20)
    step = sector_size // 512
    for _ in range(60):
        count = rng.choice([1, 2, 7, 8, 11, 12, 40]) * step
        at = rng.randrange(4096 - count) // step * step
        if rng.random() < 0.6:
            data = rng.randbytes(count * 512)
            pair.guest(pair.device.write(at, data))
            model[at * 512 : (at + count) * 512] = data
        assert pair.guest(pair.device.read(at, count)) == model[at * 512 : (at + count) * 512]
    pair.guest(pair.device.discard(8, 16))
    model[4096 : 4096 + 8192] = bytes(8192)
    assert pair.disk.image == model
    total = pair.back_driver.statistics_of(1)[0]
    assert (total.sectors_read, total.sectors_written) == (pair.device.sectors_read, pair.device.sectors_written)
    assert total.sectors_discarded == 16
    pair.down()


def test_on_the_ring_sectors_are_the_disks(make_pair: Maker) -> None:
    """`sector_number`, `first_sect`, `last_sect`, `nr_sectors`: all in units of `sector-size` (blkif.h)."""
    pair = make_pair(sectors=512, sector_size=2048)
    assert pair.up().store["frontend/feature-large-sector-size"] == "1"
    pair.disk.stuck = True
    threads = [
        pair.world.spawn(pair.front_kernel, work)
        for work in (pair.device.write(8, bytes(6144)), pair.device.discard(16, 32))
    ]
    pair.world.run()
    ring = pair.queue.ring
    op, count, _, _, sector, segments = pair.server._protocol.request.unpack_from(ring.view, ring.offsets[0])
    assert (op, count, sector) == (WRITE, 2, 2)
    assert [tuple(segments[n + 4 : n + 6]) for n in (0, 8)] == [(0, 1), (0, 0)]
    discard = blkif.blkif_request_discard.unpack_from(ring.view, ring.offsets[1])
    assert (discard.sector_number, discard.nr_sectors) == (4, 8)
    pair.disk.stuck = False
    pair.world.run()
    assert all(thread.done for thread in threads)
    assert sorted(pair.disk.log) == [(1, 2, 3), (3, 4, 8)]
    pair.down()


@pytest.mark.parametrize(("sector", "count"), [(1, 8), (8, 1), (4, 8), (0, 12), (-8, 8), (4088, 16)])
def test_the_block_layer_wants_whole_blocks(make_pair: Maker, sector: int, count: int) -> None:
    pair = make_pair(sectors=512, sector_size=4096).up()
    device = pair.device
    for attempt in (
        device.read(sector, count),
        device.write(sector, bytes(512 * count)),
        device.discard(sector, count),
    ):
        with pytest.raises(BlockError) as caught:
            pair.guest(attempt)
        assert caught.value.errno == errno.EINVAL
    assert pair.disk.log == []
    pair.down()


def test_a_frontend_without_the_feature_gets_no_large_sectors(make_pair: Maker) -> None:
    for value in (None, "0"):
        pair = make_pair(sectors=512, sector_size=4096)
        if value is not None:
            pair.store["frontend/feature-large-sector-size"] = value
        with pytest.raises(ValueError, match="of 4096 bytes, and the frontend has no feature-large-sector-size"):
            RawFront(pair)
        assert "backend/sectors" not in pair.store
        assert not pair.back_kernel.grants.maps


@pytest.mark.parametrize(
    ("segment", "sector", "status"),
    [
        ((0, 0), 0, 0),
        ((0, 0), 511, 0),
        ((0, 0), 512, -1),
        ((0, 1), 0, -1),
        ((1, 1), 0, -1),
        ((0, 7), 0, -1),
        ((7, 7), 0, -1),
        ((0, 255), 0, -1),
        ((0, 0), (1 << 64) - 1, -1),
        ((0, 0), 1 << 61, -1),
    ],
)
def test_hostile_segments(make_pair: Maker, segment: tuple[int, int], sector: int, status: int) -> None:
    """What fits into a page of eight sectors does not fit into one of one."""
    pair = make_pair(sectors=512, sector_size=4096)
    pair.store["frontend/feature-large-sector-size"] = "1"
    front = RawFront(pair)
    ref = front.grant()
    for op in (READ, WRITE):
        assert front.one(op, sector, [(ref, *segment)]) == status
    front.down()


def test_a_resize_counts_in_the_disks_sectors(make_pair: Maker) -> None:
    pair = make_pair(sectors=512, sector_size=4096).up()
    pair.disk.image += bytes(512 * 4096)
    pair.disk.sectors = 1024
    pair.disk.on_change()
    assert pair.store["backend/sectors"] == "1024"
    pair.hook(pair.front, "refresh")
    assert pair.device.sectors == 8192
    pair.guest(pair.device.write(8184, bytes(4096)))
    pair.down()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sector-size", "8192"),
        ("sector-size", "256"),
        ("sector-size", "0"),
        ("sector-size", "1000"),
        ("sector-size", "512 "),
        ("physical-sector-size", "0"),
        ("physical-sector-size", "256"),
        ("physical-sector-size", "513"),
        ("sectors", str(1 << 52)),
    ],
)
def test_a_backend_that_says_what_cannot_be(make_pair: Maker, key: str, value: str) -> None:
    pair = make_pair(sector_size=4096, sectors=512)
    pair.probe()
    pair.hook(pair.back, "publish")
    pair.hook(pair.front, "publish")
    pair.hook(pair.back, "connect")
    pair.store[f"backend/{key}"] = value
    with pytest.raises(ValueError, match=r"the backend's"):
        pair.hook(pair.front, "connect")
    assert "xvda" not in pair.front_kernel.block.devices
    pair.close()
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


def test_another_backend_with_other_sectors_is_refused(make_pair: Maker) -> None:
    pair = make_pair(sectors=512, sector_size=4096).up()
    waits = pair.world.spawn(pair.front_kernel, pair.device.read(0, 8))
    pair.close()
    pair.disk.sector_size = 512
    pair.hook(pair.back, "publish")
    pair.hook(pair.front, "publish")
    pair.hook(pair.back, "connect")
    with pytest.raises(ValueError, match="the disk had sectors of 4096 bytes, and now has 512"):
        pair.hook(pair.front, "connect")
    pair.close()
    pair.hook(pair.front, "remove")
    assert waits.done


# -- whole hosts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_host_with_such_a_disk(scene: Scene) -> None:
    image = scene.image("a.img")
    body = """
    disk = await self.disk("xvda")
    self.print("blocks of", disk.block_size, disk.physical_block_size, "sectors:", disk.sectors)
    await disk.write(8, b"w" * 8192)
    assert await disk.read(8, 16) == b"w" * 8192
    await disk.flush()
    try:
        await disk.write(9, b"w" * 4096)
    except OSError as error:
        self.print("refused:", error.errno)
    """
    kind = "format=raw,sector-size=4096,physical-sector-size=16384"
    assert scene.run(scene.guest("guest", body, image, kind=kind)).exit_code == 0, scene.text
    assert "blocks of 4096 16384 sectors: 2048" in scene.text
    assert "refused: 22" in scene.text
    assert image.read_bytes()[4096:12288] == b"w" * 8192


def test_physical_sectors_alone_bind_nobody(scene: Scene) -> None:
    body = """
    disk = await self.disk("xvda")
    assert (disk.block_size, disk.physical_block_size) == (512, 4096)
    await disk.write(3, bytes(512))
    """
    guest = scene.guest("guest", body, scene.image("a.img"), kind="format=raw,physical-sector-size=4096")
    assert scene.run(guest).exit_code == 0, scene.text


def test_an_image_has_whole_sectors(scene: Scene) -> None:
    guest = scene.guest("guest", "pass", scene.image("a.img", 4096 * 3 + 512), kind="format=raw,sector-size=4096")
    with pytest.raises(UsageError, match="a disk has whole sectors of 4096"):
        scene.run(guest)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sector-size=8192", "sector-size is a power of two from 512 to 4096, not '8192'"),
        ("sector-size=1000", "sector-size is a power of two"),
        ("sector-size=", "sector-size is a power of two"),
        ("physical-sector-size=131072", "physical-sector-size is a power of two from 512 to 65536"),
        ("sector-size=4096,physical-sector-size=512", "a physical sector of 512 bytes cannot hold a sector of 4096"),
        ("sector-size=512,sector-size=512", "'sector-size' is given twice"),
    ],
)
def test_sizes_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_disk(f"a.img,raw,xvda,w,{text}")
