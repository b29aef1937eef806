"""A disk that fails: each fault on its own, against a sound disk behind it."""

import errno

import pytest

from hypervisor.machine.backing import Backing, MemoryDisk
from hypervisor.machine.failing_disk import FailingDisk, Faults, parse_faults

SECTORS = 64


def make(faults: str) -> FailingDisk:
    return FailingDisk(MemoryDisk(SECTORS * 512), parse_faults(faults))


def write(disk: Backing, sector: int, *parts: bytes) -> int:
    return disk.writev([memoryview(part) for part in parts], sector * 512, sum(map(len, parts)))


def read(disk: Backing, sector: int, sectors: int) -> tuple[int, bytes]:
    buffer = bytearray(b"?" * sectors * 512)
    return disk.readv([memoryview(buffer)], sector * 512, len(buffer)), bytes(buffer)


def test_bad_sectors() -> None:
    disk = make("bad:8-15;bad:40")
    assert write(disk, 0, b"a" * 4096) == 0
    for sector, sectors in ((7, 2), (8, 1), (15, 1), (15, 8), (0, 64), (40, 1)):
        assert read(disk, sector, sectors) == (errno.EIO, b"?" * sectors * 512)
        assert write(disk, sector, b"b" * sectors * 512) == errno.EIO
        assert disk.discard(sector * 512, sectors * 512) == errno.EIO
    assert read(disk, 0, 8) == (0, b"a" * 4096)
    for sector, sectors in ((16, 24), (41, 23)):
        assert read(disk, sector, sectors) == (0, bytes(sectors * 512))
    assert disk.flush() == 0


def test_flushes_that_fail() -> None:
    disk = make("flush")
    assert write(disk, 0, b"a" * 512) == 0
    assert disk.flush() == errno.EIO
    assert read(disk, 0, 1) == (0, b"a" * 512)


def test_a_disk_with_less_room_than_it_says() -> None:
    disk = make("full:4")
    assert write(disk, 0, b"a" * 1024) == 0
    assert write(disk, 60, b"b" * 1024) == 0
    assert write(disk, 1, b"c" * 512) == 0  # what is stored can be written again
    assert write(disk, 1, b"d" * 1024) == errno.ENOSPC
    assert read(disk, 0, 4) == (0, b"a" * 512 + b"c" * 512 + bytes(1024))
    assert disk.discard(0, 512) == 0
    assert write(disk, 2, b"e" * 512) == 0
    assert write(disk, 3, b"f" * 512) == errno.ENOSPC


def test_torn_writes() -> None:
    disk = make("torn:2")
    assert write(disk, 0, b"a" * 4096) == 0
    assert write(disk, 0, b"b" * 512, b"c" * 1024, b"d" * 1024) == errno.EIO  # half of five sectors are two
    assert read(disk, 0, 5) == (0, b"b" * 512 + b"c" * 512 + b"a" * 1536)
    assert write(disk, 8, b"e" * 512) == 0
    assert write(disk, 8, b"f" * 512) == errno.EIO  # a sector is never torn
    assert read(disk, 8, 1) == (0, b"e" * 512)


def test_faults_as_text() -> None:
    assert parse_faults("bad:1-2; full:0;torn:3;slow:5;flush;bad:7") == Faults(
        bad=((1, 2), (7, 7)), bad_flushes=True, room=0, tear_every=3, delay_ns=5_000_000
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown fault ''; there are bad, flush, full, torn, slow"),
        ("worm:1", "unknown fault 'worm'"),
        ("bad", "'bad' is not of the form bad:SECTOR or bad:FIRST-LAST"),
        ("bad:2-1", "bad:SECTOR or bad:FIRST-LAST"),
        ("bad:1-", "bad:SECTOR or bad:FIRST-LAST"),
        ("full:-1", "full:SECTORS"),
        ("full:\u0661", "full:SECTORS"),
        ("torn:0", "torn:EVERY"),
        ("slow:1e3", "slow:MILLISECONDS"),
        ("slow:" + "9" * 30, "slow:MILLISECONDS"),
        ("flush:1", "'flush:1' is not of the form flush"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_faults(text)
