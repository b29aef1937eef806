"""Frontend and backend over a real ring: every byte arrives where it belongs, however it is split and answered."""

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from guest_kernel.block import BlockError
from hypervisor.abi.io.blkif import BLKIF_OP_FLUSH_DISKCACHE, VDISK_READONLY
from hypervisor.abi.tracepoints import BLOCK_REQUEST, RING_PUSH
from hypervisor.probe import VCpuProbe

Maker = Callable[..., Any]
MODES = [
    pytest.param({}, id="persistent"),
    pytest.param({"back": {"persistent": False}}, id="backend-not-persistent"),
    pytest.param({"front": {"persistent": False}}, id="frontend-not-persistent"),
    pytest.param({"back": {"max_persistent_grants": 7}}, id="few-persistent"),
    pytest.param({"front": {"max_ring_page_order": 2}}, id="four-ring-pages"),
]


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 88, 89, 500])
def test_write_then_read(make_pair: Maker, options: dict[str, Any], count: int) -> None:
    pair = make_pair(**options).up()
    data = random.Random(count).randbytes(count * 512)
    pair.guest(pair.device.write(100, data))
    assert pair.disk.image[100 * 512 : (100 + count) * 512] == data
    assert not any(pair.disk.image[: 100 * 512])
    assert not any(pair.disk.image[(100 + count) * 512 :])
    assert pair.guest(pair.device.read(100, count)) == data
    pair.down()


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_from_many_threads(make_pair: Maker, options: dict[str, Any], seed: int) -> None:
    pair = make_pair(seed=seed, shuffled=True, sectors=40 * 256, **options).up()
    rng = random.Random(seed)
    model = bytearray(pair.disk.image)

    async def worker(first: int, steps: list[tuple[bool, int, int, bytes]]) -> None:
        for write, at, count, data in steps:
            sector = first + at
            if write:
                await pair.device.write(sector, data)
                model[sector * 512 : (sector + count) * 512] = data
            else:
                got = await pair.device.read(sector, count)
                assert got == model[sector * 512 : (sector + count) * 512]

    async def main() -> None:
        threads = []
        for n in range(40):  # each in its own 256 sectors; more of them than the ring has slots
            steps = []
            for _ in range(8):
                count = rng.choice([1, 2, 8, 15, 88, 120])
                at = rng.randrange(256 - count)
                steps.append((rng.random() < 0.5, at, count, rng.randbytes(count * 512)))
            threads.append(pair.front_kernel.spawn(worker(n * 256, steps)))
        for thread in threads:
            await thread.join()

    pair.guest(main())
    assert pair.disk.image == model
    assert pair.queue.in_flight == 0
    if options.get("back", {}).get("max_persistent_grants") == 7:
        assert len(pair.mapper.persistent) <= 7
    pair.down()


def test_one_wakeup_takes_the_whole_ring(make_pair: Maker) -> None:
    pair = make_pair().up()
    pair.guest(pair.device.read(0, 1))  # the first one finds everything asleep
    before = pair.world.notifications
    kicks = pair.disk.kicks

    async def main() -> None:
        threads = [pair.front_kernel.spawn(pair.device.read(n * 8, 8)) for n in range(32)]
        for thread in threads:
            await thread.join()

    pair.guest(main())
    assert pair.disk.kicks == kicks + 1
    assert pair.world.notifications == before + 2  # one there, one back
    pair.down()


def test_persistent_grants_are_mapped_once(make_pair: Maker) -> None:
    pair = make_pair().up()
    for _ in range(3):
        pair.guest(pair.device.read(0, 88))
    hypercalls = pair.back_kernel.grants.hypercalls
    for n in range(20):
        pair.guest(pair.device.read(n, 88))
    assert pair.back_kernel.grants.hypercalls == hypercalls
    assert len(pair.mapper.persistent) == 11
    pair.down()


def test_without_persistent_grants_nothing_stays_granted_or_mapped(make_pair: Maker) -> None:
    pair = make_pair(back={"persistent": False}).up()
    pair.guest(pair.device.write(0, b"x" * 512 * 88))
    pair.guest(pair.device.read(0, 88))
    assert list(pair.front_kernel.grants.entries) == pair.queue.ring_refs
    assert len(pair.back_kernel.grants.maps) == 1  # the ring
    # One map and one unmap for each request, whatever its number of segments.
    before = pair.back_kernel.grants.hypercalls
    pair.guest(pair.device.read(0, 88))
    assert pair.back_kernel.grants.hypercalls == before + 2
    pair.down()


def test_bounds_and_odd_sizes(make_pair: Maker) -> None:
    pair = make_pair(sectors=100).up()
    device = pair.device
    for sector, count in [(100, 1), (99, 2), (-1, 1), (0, 101), (0, -1)]:
        with pytest.raises(BlockError) as caught:
            pair.guest(device.read(sector, count))
        assert caught.value.errno == errno.EINVAL
    for sector, data in [(100, bytes(512)), (0, bytes(511)), (0, bytes(513)), (-1, bytes(512))]:
        with pytest.raises(BlockError) as caught:
            pair.guest(device.write(sector, data))
        assert caught.value.errno == errno.EINVAL
    assert pair.guest(device.read(100, 0)) == b""
    pair.guest(device.write(100, b""))
    assert not pair.disk.log
    assert device.size == 100 * 512
    pair.down()


def test_read_only_by_mode(make_pair: Maker) -> None:
    pair = make_pair(mode="r").up()
    assert pair.store["backend/info"] == str(VDISK_READONLY)
    assert pair.device.readonly
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.write(0, bytes(512)))
    assert caught.value.errno == errno.EROFS
    pair.device.readonly = False  # a guest that does not believe it
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.write(0, bytes(512)))
    assert caught.value.errno == errno.EIO
    assert not pair.disk.log
    pair.down()


def test_a_read_only_disk_is_not_given_away_writable(make_pair: Maker) -> None:
    pair = make_pair(readonly=True, mode="w")
    pair.probe()
    with pytest.raises(OSError, match="cannot be written"):
        pair.hook(pair.back, "publish")
    pair.hook(pair.back, "close")
    pair.world.check_no_leaks(pair.back_kernel, pair.front_kernel)


def test_errors_of_the_disk(make_pair: Maker) -> None:
    pair = make_pair().up()
    pair.disk.bad_sectors = {300}
    with pytest.raises(BlockError, match="xvda: read of 2 sectors at 300: input/output error"):
        pair.guest(pair.device.read(300, 2))
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.read(0, 400))  # one of several requests
    assert caught.value.errno == errno.EIO
    assert pair.device.errors == 2
    assert pair.guest(pair.device.read(0, 8)) == bytes(4096)
    pair.down()


def test_flush_reaches_the_disk(make_pair: Maker) -> None:
    pair = make_pair().up()
    pair.guest(pair.device.write(0, bytes(512)))
    pair.guest(pair.device.flush())
    assert [op for op, _, _ in pair.disk.log] == [1, 2]
    assert pair.server.statistics.flushes == 1
    pair.down()


def test_flush_by_barrier(make_pair: Maker) -> None:
    pair = make_pair()
    pair.probe()
    pair.hook(pair.back, "publish")
    del pair.store["backend/feature-flush-cache"]
    for device, hook in [(pair.front, "publish"), (pair.back, "connect"), (pair.front, "connect")]:
        pair.hook(device, hook)
    pair.guest(pair.device.flush())
    assert pair.server.statistics.barriers == 1
    assert [op for op, _, _ in pair.disk.log] == [2]
    pair.down()


def test_flush_that_nobody_offers(make_pair: Maker) -> None:
    pair = make_pair(mode="r").up()
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.flush())
    assert caught.value.errno == errno.EOPNOTSUPP
    pair.queue.flush_op = BLKIF_OP_FLUSH_DISKCACHE
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.flush())
    assert caught.value.errno == errno.EOPNOTSUPP
    pair.down()


def test_a_guest_short_of_memory_gets_an_error_and_lives(make_pair: Maker) -> None:
    pair = make_pair(guest_pages=5).up()
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.read(0, 88))
    assert caught.value.errno == errno.ENOMEM
    assert pair.guest(pair.device.read(0, 8)) == bytes(4096)
    pair.down()


def test_a_cancelled_reader_leaves_its_request_to_finish(make_pair: Maker) -> None:
    pair = make_pair().up()
    pair.disk.stuck = True
    thread = pair.front_kernel.spawn(pair.device.read(0, 8), "reader", panics=False)
    pair.world.run()
    thread.cancel()
    pair.world.run()
    assert thread.done
    assert pair.queue.in_flight == 1
    pair.disk.stuck = False
    pair.world.run()
    assert pair.queue.in_flight == 0
    pair.down()


def test_pages_begin_as_zeros_and_a_read_never_shows_a_former_transfer(make_pair: Maker) -> None:
    """XSA-403: what the backend can see of a page holds nothing but this disk's own data."""
    pair = make_pair(back={"persistent": False}).up()
    pages: list[bytes] = []
    perform = pair.disk.perform

    def look(op: int, sector: int, segments: list[tuple[int, int]]) -> int:
        for maddr, _ in segments:
            pages.append(bytes(pair.world.memory[maddr & ~4095 : (maddr & ~4095) + 4096]))
        return perform(op, sector, segments)

    pair.disk.perform = look
    pair.guest(pair.device.write(0, b"a" * 512))
    assert pages == [b"a" * 512 + bytes(3584)]
    pair.down()


def test_trace_and_statistics(make_pair: Maker) -> None:
    pair = make_pair()
    records: list[tuple[Any, ...]] = []
    pair.front_kernel.cpu.trace = VCpuProbe(lambda _domid, _vcpu, *fields: records.append(fields), 1, 0)
    pair.up()
    pair.guest(pair.device.write(8, bytes(4096)))
    pair.guest(pair.device.read(8, 8))
    assert [record for record in records if record[0] == BLOCK_REQUEST] == [
        (BLOCK_REQUEST, "xvda", 1, 8, 8, 0),
        (BLOCK_REQUEST, "xvda", 0, 8, 8, 0),
    ]
    assert [record[1:3] for record in records if record[0] == RING_PUSH] == [("xvda", "req")] * 2
    statistics = pair.server.statistics
    assert (statistics.reads, statistics.sectors_read) == (1, 8)
    assert (statistics.writes, statistics.sectors_written) == (1, 8)
    device = pair.device
    assert (device.reads, device.sectors_read, device.writes, device.sectors_written) == (1, 8, 1, 8)
    pair.down()
