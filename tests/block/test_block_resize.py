"""Disks that get another capacity while they are used: between the two drivers, with a backend that lies."""

import errno
from collections.abc import Callable

import pytest
from block_pair import Pair
from block_raw import RawFront

from guest_kernel.block import READ, BlockError
from hypervisor.abi.io import blkif

Maker = Callable[..., Pair]


def refused(pair: Pair, sector: int, count: int) -> None:
    with pytest.raises(BlockError) as caught:
        pair.guest(pair.device.read(sector, count))
    assert caught.value.errno == errno.EINVAL


def test_a_disk_grows_and_shrinks(make_pair: Maker) -> None:
    pair = make_pair().up()
    waiter = pair.world.spawn(pair.front_kernel, pair.device.resized())
    refused(pair, 4096, 1)
    pair.disk.resize(8192)
    assert pair.store["backend/sectors"] == "8192"
    pair.world.run()
    assert not waiter.done
    pair.hook(pair.front, "refresh")
    pair.world.run()
    assert waiter.result == 8192
    pair.guest(pair.device.write(8000, b"n" * 512 * 192))
    assert pair.guest(pair.device.read(8191, 1)) == b"n" * 512

    pair.disk.resize(100)
    with pytest.raises(BlockError) as caught:  # the guest does not know yet; the backend does
        pair.guest(pair.device.read(100, 1))
    assert caught.value.errno == errno.EIO
    pair.hook(pair.front, "refresh")
    refused(pair, 100, 1)
    pair.hook(pair.front, "refresh")  # said again without a change
    assert pair.device.sectors == 100
    assert pair.back.announced == [{"sectors": 8192}, {"sectors": 100}]
    pair.down()
    assert pair.disk.on_change is None


@pytest.mark.parametrize("mode", ["w", "r"])
def test_the_backend_serves_what_is_there(make_pair: Maker, mode: str) -> None:
    pair = make_pair(mode=mode)
    front = RawFront(pair)
    ref = front.grant()

    def read(sector: int) -> int:
        front.put(READ, 1, sector, [(ref, 0, 0)])
        ((_, _, status),) = front.push()
        return status

    assert read(4096) == blkif.BLKIF_RSP_ERROR
    pair.disk.resize(4097)
    assert read(4096) == blkif.BLKIF_RSP_OKAY
    assert read(4097) == blkif.BLKIF_RSP_ERROR
    front.down()


@pytest.mark.parametrize("text", ["", "-1", "many", str(1 << 63), "9" * 40])
def test_a_capacity_that_is_none(make_pair: Maker, text: str) -> None:
    pair = make_pair().up()
    pair.store["backend/sectors"] = text
    with pytest.raises(ValueError, match="the backend's sectors is"):
        pair.hook(pair.front, "refresh")
    assert pair.device.sectors == 4096
    pair.guest(pair.device.read(4095, 1))
    pair.down()
