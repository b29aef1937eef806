"""Copy-on-write disks: against a model in memory, across processes that are killed, with files that are damaged."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypervisor.errors import DeviceError
from hypervisor.machine.overlay import CLUSTER, Overlay, cut, overlay_header

SECTORS = 77
"""No whole number of clusters."""
BASE = random.Random(1).randbytes(SECTORS * 512)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.img"
    path.write_bytes(BASE)
    return path


def write(disk: Overlay, sector: int, data: bytes, pieces: int = 512) -> int:
    views = [memoryview(data)[at : at + pieces] for at in range(0, len(data), pieces)]
    return disk.writev(views, sector * 512, len(data))


def read(disk: Overlay, sector: int = 0, sectors: int = SECTORS, pieces: int = 1536) -> bytes:
    buffer = bytearray(sectors * 512)
    views = [memoryview(buffer)[at : at + pieces] for at in range(0, len(buffer), pieces)]
    assert disk.readv(views, sector * 512, len(buffer)) == 0
    return bytes(buffer)


def test_only_the_changes_are_in_the_file(base: Path, tmp_path: Path) -> None:
    changes = tmp_path / "changes"
    disk = Overlay(changes, base, readonly=False)
    assert disk.size == len(BASE)
    assert read(disk) == BASE
    assert write(disk, 9, b"x" * 1024) == 0  # in the middle of a cluster
    expected = BASE[: 9 * 512] + b"x" * 1024 + BASE[11 * 512 :]
    assert read(disk) == expected
    assert disk.flush() == 0
    disk.close()
    assert base.read_bytes() == BASE
    assert changes.stat().st_blocks * 512 <= 5 * CLUSTER  # header, map, one cluster, and what the file system wants
    for readonly in (True, False):
        disk = Overlay(changes, base, readonly=readonly)
        assert read(disk) == expected
        disk.close()


ranges = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 40)).map(lambda r: (r[0], min(r[1], SECTORS - r[0])))
operations = st.lists(st.tuples(st.sampled_from("wwdrfc"), ranges, st.integers(1, 255)), max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=operations)
def test_it_is_a_disk_as_any_other(
    base: Path, tmp_path: Path, operations: list[tuple[str, tuple[int, int], int]]
) -> None:
    changes = tmp_path / "model.overlay"
    changes.unlink(missing_ok=True)
    disk = Overlay(changes, base, readonly=False)
    model = bytearray(BASE)
    for what, (sector, sectors), fill in operations:
        start, end = sector * 512, (sector + sectors) * 512
        if what == "w":
            assert write(disk, sector, bytes([fill]) * (end - start), pieces=1024) == 0
            model[start:end] = bytes([fill]) * (end - start)
        elif what == "d":
            assert disk.discard(start, end - start) == 0
            model[start:end] = bytes(end - start)
        elif what == "f":
            assert disk.flush() == 0
        elif what == "c":
            disk.close()
            disk = Overlay(changes, base, readonly=False)
        assert read(disk, sector, sectors) == model[start:end]
    assert read(disk) == model
    disk.close()
    assert base.read_bytes() == BASE


def test_discarded_clusters_become_holes(base: Path, tmp_path: Path) -> None:
    changes = tmp_path / "changes"
    disk = Overlay(changes, base, readonly=False)
    assert write(disk, 0, b"y" * len(BASE)) == 0
    os.fsync(disk._fd)
    full = changes.stat().st_blocks
    assert disk.discard(0, len(BASE)) == 0
    assert read(disk) == bytes(len(BASE))
    assert changes.stat().st_blocks <= full - (len(BASE) // CLUSTER) * CLUSTER // 512
    disk.close()


WRITER = """
import sys
from pathlib import Path
from hypervisor.machine.overlay import Overlay

disk = Overlay(Path(sys.argv[1]), Path(sys.argv[2]), readonly=False)
for number in range(1, 10**9):
    data = bytes([number % 256]) * 1024
    assert not disk.writev([memoryview(data)], number % 38 * 1024, 1024)
    assert not disk.flush()
    print(number, flush=True)
"""


def test_what_was_flushed_survives_a_kill(base: Path, tmp_path: Path) -> None:
    changes = tmp_path / "changes"
    command = [sys.executable, "-c", WRITER, str(changes), str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 60:
                break
        writer.send_signal(signal.SIGKILL)
        told = [int(line)] + [int(rest) for rest in writer.stdout if rest.endswith("\n")]
    last = told[-1]
    disk = Overlay(changes, base, readonly=True)
    content = read(disk)
    disk.close()
    for number in range(last - 37, last + 1):
        if number % 38 != (last + 1) % 38:  # that one may or may not have been written
            at = number % 38 * 1024
            assert content[at : at + 1024] == bytes([number % 256]) * 1024
    assert hashlib.sha256(content[38 * 1024 :]).digest() == hashlib.sha256(BASE[38 * 1024 :]).digest()


def watched(monkeypatch: pytest.MonkeyPatch, log: list[str], failing: set[int]) -> None:
    """Note what is written and made safe, in order; the fdatasync calls of these numbers fail."""
    pwrite, pwritev, fdatasync = os.pwrite, os.pwritev, os.fdatasync

    def sync(fd: int) -> None:
        log.append("safe")
        if log.count("safe") in failing:
            raise OSError(errno.EIO, "the medium is broken")
        fdatasync(fd)

    monkeypatch.setattr(os, "pwrite", lambda *args: log.append("map") or pwrite(*args))
    monkeypatch.setattr(os, "pwritev", lambda *args: log.append("data") or pwritev(*args))
    monkeypatch.setattr(os, "fdatasync", sync)


def test_the_map_is_stored_after_what_it_speaks_of_also_at_the_end(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map that outlives its data, in a loss of power, would show holes in the place of what the base has."""
    disk = Overlay(tmp_path / "changes", base, readonly=False)
    log: list[str] = []
    watched(monkeypatch, log, set())
    assert write(disk, 0, b"x" * CLUSTER) == 0
    disk.close()
    assert log[:3] == ["data", "safe", "map"]


def test_a_map_that_could_not_be_made_safe_is_stored_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Overlay(tmp_path / "changes", base, readonly=False)
    log: list[str] = []
    watched(monkeypatch, log, {2})
    assert write(disk, 0, b"x" * CLUSTER) == 0
    assert [disk.flush() for _ in range(3)] == [errno.EIO, 0, 0]
    assert log == ["data", "safe", "map", "safe", "safe", "map", "safe", "safe"]
    disk.close()


def test_what_was_not_flushed_is_as_it_was_or_newer(base: Path, tmp_path: Path) -> None:
    """The file as it is when the map was never stored: a cluster that was copied up in part is the base's still."""
    changes = tmp_path / "changes"
    disk = Overlay(changes, base, readonly=False)
    assert write(disk, 1, b"z" * 512) == 0
    other = Overlay(changes, base, readonly=False)  # as after a crash
    assert read(other) == BASE
    assert write(other, 3, b"a" * 512) == 0
    assert read(other) == BASE[:1536] + b"a" * 512 + BASE[2048:]
    other.close()
    disk.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b"x" * 8192), "is no file of changes of a disk"),
        (lambda file: file.write_bytes(b"x"), "is no file of changes of a disk"),
        (lambda file: patch(file, 8, b"\x07"), "has format 7; this is for format 1"),
        (lambda file: patch(file, overlay_header.offset("size"), b"\xff"), "is about a base of"),
        (lambda file: os.truncate(file, CLUSTER * 3), "has become too short"),
        (lambda file: patch(file, CLUSTER + 3, b"\x02"), "its map is damaged"),
        (lambda file: (file.unlink(), file.mkdir()), "directory"),
    ],
)
def test_files_that_are_none(base: Path, tmp_path: Path, damage: object, message: str) -> None:
    changes = tmp_path / "changes"
    Overlay(changes, base, readonly=False).close()
    assert callable(damage)
    damage(changes)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceError, match=message):
        Overlay(changes, base, readonly=False)
    assert len(os.listdir("/proc/self/fd")) == before


def patch(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)


def test_a_read_only_disk_makes_no_file(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        Overlay(tmp_path / "none", base, readonly=True)
    assert not (tmp_path / "none").exists()


def test_errors_of_the_files_are_errors_of_the_disk(base: Path, tmp_path: Path) -> None:
    changes = tmp_path / "changes"
    disk = Overlay(changes, base, readonly=False)
    os.truncate(base, 4096)
    assert disk.readv([memoryview(bytearray(512))], 8192, 512) == errno.EIO
    assert write(disk, 17, b"x" * 512) == errno.EIO  # the rest of the cluster cannot be copied
    assert write(disk, 16, b"x" * 4096) == 0
    assert read(disk, 16, 8) == b"x" * 4096
    disk.close()


def test_cutting_views() -> None:
    views = [memoryview(b"abc"), memoryview(b"d"), memoryview(b"efgh")]
    for start in range(9):
        for size in range(9 - start):
            assert b"".join(cut(views, start, size)) == b"abcdefgh"[start : start + size]
