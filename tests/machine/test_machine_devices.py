"""Disk controllers and network cards, driven through their registers as a driver would."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from struct import Struct

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi import device as sheet
from hypervisor.errors import DeviceError
from hypervisor.machine import backing
from hypervisor.machine.backing import Backing, MemoryDisk, RawFile
from hypervisor.machine.disk import DiskController
from hypervisor.machine.failing_disk import FailingDisk, Faults
from hypervisor.machine.machine import Machine
from hypervisor.machine.memory import PAGE_SIZE
from hypervisor.machine.nic import NetworkCard, PcapWire
from hypervisor.machine.overlay import Overlay

COMMANDS, COMPLETIONS, TABLE, DATA = 1, 2, 3, 8
WORDS = Struct("<QQ")
SECTOR_SIZE = 512


class Driver:
    """The least that drives a disk: one command at a time."""

    def __init__(self, machine: Machine, disk: DiskController) -> None:
        self.machine = machine
        self.base = sheet.disk_port(disk.unit)
        self.interrupts = 0
        self.produced = 0
        self.table = TABLE
        """The frame of the next command's segment table."""
        machine.interrupts.connect(sheet.disk_irq(disk.unit), self.interrupt)
        self.out(sheet.DISK_COMMANDS, COMMANDS)
        self.out(sheet.DISK_COMPLETIONS, COMPLETIONS)

    def out(self, register: int, value: int) -> None:
        self.machine.ports.outl(self.base + register, value)

    def interrupt(self) -> None:
        self.interrupts += 1

    def queue(self, op: int, sector: int, segments: list[tuple[int, int]], ident: int = 0, sectors: int = 0) -> None:
        memory = self.machine.memory
        for number, segment in enumerate(segments):
            WORDS.pack_into(memory.b, self.table * PAGE_SIZE + 16 * number, *segment)
        slot = self.produced % sheet.DISK_QUEUE_LENGTH
        sheet.disk_command.pack_into(
            memory.b,
            COMMANDS * PAGE_SIZE + slot * sheet.disk_command.size,
            op=op,
            nr_segments=len(segments),
            id=ident,
            sector=sector,
            segments=self.table * PAGE_SIZE,
            sectors=sectors,
        )
        self.produced += 1

    def run(self, op: int, sector: int, segments: list[tuple[int, int]], ident: int = 0, sectors: int = 0) -> int:
        self.queue(op, sector, segments, ident, sectors)
        self.out(sheet.DISK_DOORBELL, self.produced)
        self.settle()
        return self.completion(self.machine.memory.i[COMPLETIONS * PAGE_SIZE >> 2] - 1, ident)

    def settle(self) -> None:
        """Let all that is under way be done."""
        while (timer := self.machine.timers.pop_due(1 << 62)) is not None:
            assert timer.function is not None
            timer.function()

    def completion(self, index: int, ident: int) -> int:
        offset = COMPLETIONS * PAGE_SIZE + sheet.DISK_COMPLETIONS_OFFSET
        slot = index % sheet.DISK_COMPLETION_SLOTS
        done = sheet.disk_completion.unpack_from(self.machine.memory.b, offset + slot * sheet.disk_completion.size)
        assert done.id == ident
        return int(done.status)


@pytest.fixture
def machine() -> Machine:
    return Machine(memory_mib=1)


def test_data_goes_straight_to_the_frames_and_marks_them(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 64)
    disk = DiskController(machine, 3, RawFile(image, readonly=False))
    driver = Driver(machine, disk)
    assert machine.ports.inl(driver.base + sheet.DISK_ID) == sheet.DISK_MAGIC
    assert machine.ports.inl(driver.base + sheet.DISK_SECTORS_LOW) == 32

    segments = [(DATA * PAGE_SIZE + 512, 1024), (20 * PAGE_SIZE, 512)]
    assert driver.run(sheet.DISK_READ, 1, segments, ident=77) == 0
    assert driver.interrupts == 1
    assert bytes(machine.memory.frame(DATA)[512:1536]) == bytes(range(256)) * 4
    assert [mfn for mfn in range(4, 256) if machine.memory.written[mfn]] == [DATA, 20]

    machine.memory.write(DATA * PAGE_SIZE, b"x" * 512)
    assert driver.run(sheet.DISK_WRITE, 31, [(DATA * PAGE_SIZE, 512)]) == 0
    assert driver.run(sheet.DISK_FLUSH, 0, []) == 0
    assert image.read_bytes()[31 * 512 :] == b"x" * 512
    disk.unplug()


def test_what_reports_commands_is_used_again(machine: Machine) -> None:
    """Also for those that are executed somewhere else, over as long a time as a host lives."""
    disk = DiskController(machine, 3, MemoryDisk(1 << 20))
    driver = Driver(machine, disk)
    for ident in range(100):
        disk.report([(ident, 0), (ident + 1, errno.EIO)])
        assert driver.completion(2 * ident, ident) == 0
        assert driver.completion(2 * ident + 1, ident + 1) == -errno.EIO
    assert driver.interrupts == 100
    assert len(disk.spare) == 1
    for ident in range(3):
        driver.queue(sheet.DISK_FLUSH, 0, [], ident, 0)
        driver.out(sheet.DISK_DOORBELL, driver.produced)
    driver.settle()
    assert len(disk.spare) == 3
    disk.unplug()


def test_what_is_done_after_the_completion_queue_was_taken_away_is_told_nobody(machine: Machine) -> None:
    """Not even frame 0, which is what a queue that is not there looks like."""
    disk = DiskController(machine, 3, MemoryDisk(1 << 20))
    driver = Driver(machine, disk)
    driver.queue(sheet.DISK_FLUSH, 0, [], 5, 0)
    driver.out(sheet.DISK_DOORBELL, driver.produced)
    driver.out(sheet.DISK_COMPLETIONS, machine.memory.frames)
    before = bytes(machine.memory.frame(0))
    driver.settle()
    assert bytes(machine.memory.frame(0)) == before
    assert not machine.memory.written[0]
    assert driver.interrupts == 0
    disk.unplug()


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_discarded_sectors_read_as_zero_and_a_file_has_less_to_store(
    machine: Machine, tmp_path: Path, kind: str
) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.write(b"x" * (1 << 20))
        os.fsync(file.fileno())
    before = image.stat()
    backing = RawFile(image, readonly=False) if kind == "file" else MemoryDisk(1 << 20)
    disk = DiskController(machine, 0, backing)
    driver = Driver(machine, disk)
    secure = sheet.DISK_FLAG_SECURE_DISCARD if kind == "memory" else 0
    assert machine.ports.inl(driver.base + sheet.DISK_FLAGS) == sheet.DISK_FLAG_DISCARD | secure
    page = (DATA * PAGE_SIZE, PAGE_SIZE)
    machine.memory.write(DATA * PAGE_SIZE, b"y" * PAGE_SIZE)
    assert driver.run(sheet.DISK_WRITE, 8, [page]) == 0
    assert driver.run(sheet.DISK_DISCARD, 8, [], sectors=1024) == 0
    assert driver.run(sheet.DISK_READ, 8, [page]) == 0
    assert not any(machine.memory.frame(DATA))
    if kind == "file":
        assert image.read_bytes() == b"x" * 4096 + bytes(524288) + b"x" * (1048576 - 528384)
        assert image.stat().st_blocks < before.st_blocks
    for sector, sectors in ((0, 0), (2048, 1), (2047, 2), (1 << 60, 1), (1, (1 << 64) - 1)):
        assert driver.run(sheet.DISK_DISCARD, sector, [], sectors=sectors) == -errno.EINVAL
    disk.unplug()


class Spy:
    """Notes in which order a file is changed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[str, int, int]] = []
        pwrite, fdatasync, punch = os.pwrite, os.fdatasync, backing.punch_hole

        def write(fd: int, data: bytes, at: int) -> int:
            assert not any(data)
            self.log.append(("zeros", at, len(data)))
            return pwrite(fd, data, at)

        def sync(fd: int) -> None:
            self.log.append(("sync", 0, 0))
            fdatasync(fd)

        def hole(fd: int, at: int, size: int) -> int:
            self.log.append(("hole", at, size))
            return punch(fd, at, size)

        monkeypatch.setattr(os, "pwrite", write)
        monkeypatch.setattr(os, "fdatasync", sync)
        monkeypatch.setattr(backing, "punch_hole", hole)


@pytest.mark.parametrize("op", [sheet.DISK_SECURE_DISCARD, sheet.DISK_DISCARD])
def test_what_is_discarded_securely_is_overwritten_before_it_is_given_back(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: int
) -> None:
    """On a disk that promises it every discard is secure: no old data is left among the free blocks."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.write(b"x" * (1 << 20))
        file.seek(3 << 20)
        file.write(b"y" * (2 << 20))
        file.truncate(8 << 20)
    disk = DiskController(machine, 0, RawFile(image, readonly=False, overwrites=True))
    driver = Driver(machine, disk)
    flags = sheet.DISK_FLAG_DISCARD | sheet.DISK_FLAG_SECURE_DISCARD
    assert machine.ports.inl(driver.base + sheet.DISK_FLAGS) == flags
    spy = Spy(monkeypatch)
    assert driver.run(op, 8, [], sectors=10240) == 0
    # What takes no storage is not written to.
    mib = 1 << 20
    assert spy.log == [
        ("zeros", 4096, mib - 4096),
        ("zeros", 3 * mib, mib),
        ("zeros", 4 * mib, mib),
        ("sync", 0, 0),
        ("hole", 4096, 5 * mib),
    ]
    assert image.read_bytes() == b"x" * 4096 + bytes(8 * mib - 4096)
    spy.log.clear()
    assert driver.run(op, 8, [], sectors=8) == 0
    assert spy.log == [("sync", 0, 0), ("hole", 4096, 4096)]
    assert driver.run(op, 16384, [], sectors=1) == -errno.EINVAL
    disk.unplug()


def test_a_file_whose_owner_does_not_vouch_for_it_promises_nothing(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * 8192)
    disk = DiskController(machine, 0, RawFile(image, readonly=False))
    assert Driver(machine, disk).run(sheet.DISK_SECURE_DISCARD, 0, [], sectors=8) == -errno.EOPNOTSUPP
    assert RawFile(image, readonly=True, overwrites=True).discards_securely is False
    assert image.read_bytes() == b"x" * 8192
    disk.unplug()


def test_a_disk_in_memory_discards_securely(machine: Machine) -> None:
    """Each page holds zeros before it is given back."""
    disk = MemoryDisk(4 << 20)
    disk.writev([memoryview(b"x" * (3 << 20))], 0, 3 << 20)
    given_back: list[tuple[int, int]] = []
    discard = disk.discard

    def look(offset: int, size: int) -> int:
        found = bytearray(size)
        disk.readv([memoryview(found)], offset, size)
        assert not any(found)
        given_back.append((offset, size))
        return discard(offset, size)

    disk.discard = look  # type: ignore[method-assign]
    assert disk.discard_securely(512, 2 << 20) == 0
    assert given_back == [(512, 1 << 20), ((1 << 20) + 512, 1 << 20)]
    found = bytearray(3 << 20)
    disk.readv([memoryview(found)], 0, 3 << 20)
    assert found == b"x" * 512 + bytes(2 << 20) + b"x" * ((1 << 20) - 512)
    disk.close()


def test_a_disk_in_memory_keeps_what_is_there_and_forgets_what_is_discarded() -> None:
    size = 6 << 20
    disk = MemoryDisk(size)
    model = bytearray(size)

    def read() -> bytes:
        found = bytearray(disk.size)
        assert disk.readv([memoryview(found)[:1000], memoryview(found)[1000:]], 0, disk.size) == 0
        return bytes(found)

    for at, length in ((0, 5000), (4096, 4096), ((1 << 20) - 700, 1400), (size - 512, 512)):
        data = bytes((at + n) % 255 + 1 for n in range(length))
        assert disk.writev([memoryview(data)[:512], memoryview(data)[512:]], at, length) == 0
        model[at : at + length] = data
    assert read() == model
    for at, length in ((512, 512), (3584, 1024), (4608, 512), ((1 << 20) - 512, 512), (512, 12288), (size - 512, 512)):
        assert disk.discard(at, length) == 0
        model[at : at + length] = bytes(length)
        assert read() == model
    disk.writev([memoryview(b"end!" * 128)], size - 512, 512)
    model[-512:] = b"end!" * 128
    assert disk.resize(size + 4096) == 0
    model += bytes(4096)
    assert read() == model
    assert disk.resize(4 << 20) == 0
    assert read() == model[: 4 << 20]
    disk.close()


@pytest.mark.parametrize("kind", ["file", "memory", "failing"])
def test_another_capacity(machine: Machine, tmp_path: Path, kind: str) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * 8192)
    backing: Backing = RawFile(image, readonly=False)
    if kind == "memory":
        backing = MemoryDisk(8192)
    elif kind == "failing":
        backing = FailingDisk(backing, Faults(bad=((0, 0),)))
    disk = DiskController(machine, 0, backing)
    assert disk.resize(24) == 0  # before there is a driver that could be told
    driver = Driver(machine, disk)
    page = (DATA * PAGE_SIZE, PAGE_SIZE)
    header = machine.memory.i[COMPLETIONS * PAGE_SIZE >> 2 :]
    assert driver.run(sheet.DISK_READ, 32, [page]) == -errno.EINVAL
    assert disk.resize(40) == 0
    assert (driver.interrupts, list(header[:2])) == (2, [1, 1])
    assert machine.ports.inl(driver.base + sheet.DISK_SECTORS_LOW) == 40
    machine.memory.write(DATA * PAGE_SIZE, b"y" * PAGE_SIZE)
    assert driver.run(sheet.DISK_READ, 32, [page]) == 0
    assert not any(machine.memory.frame(DATA))
    assert driver.run(sheet.DISK_WRITE, 32, [page]) == 0
    assert disk.resize(8) == 0
    assert driver.run(sheet.DISK_READ, 8, [page]) == -errno.EINVAL
    assert list(header[:2]) == [4, 2]
    disk.unplug()


def test_a_backing_that_keeps_its_size(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * 8192)
    disk = DiskController(machine, 0, Overlay(tmp_path / "changes", image, readonly=False))
    Driver(machine, disk)
    assert disk.resize(32) == errno.EOPNOTSUPP
    assert (disk.sectors, machine.memory.i[(COMPLETIONS * PAGE_SIZE >> 2) + 1]) == (16, 0)
    disk.unplug()


@pytest.mark.parametrize("table", [256 * PAGE_SIZE - 16, 256 * PAGE_SIZE, 1 << 62, (1 << 64) - PAGE_SIZE])
@pytest.mark.parametrize("confined", [False, True])
def test_a_segment_table_at_the_end_of_memory_and_beyond(machine: Machine, table: int, confined: bool) -> None:
    disk = DiskController(
        machine, 0, MemoryDisk(8 * SECTOR_SIZE), iommu=lambda _: (lambda _: True) if confined else None
    )
    driver = Driver(machine, disk)
    there = table < 256 * PAGE_SIZE
    if there:
        WORDS.pack_into(machine.memory.b, table, DATA * PAGE_SIZE, 512)
    command = COMMANDS * PAGE_SIZE
    sheet.disk_command.pack_into(machine.memory.b, command, op=sheet.DISK_READ, nr_segments=1, id=5, segments=table)
    driver.out(sheet.DISK_DOORBELL, 1)
    driver.settle()
    assert driver.completion(0, 5) == (0 if there else -errno.EFAULT)
    disk.unplug()


def test_segments_that_are_neighbours_in_memory(machine: Machine, tmp_path: Path) -> None:
    """They move as one, and each frame is marked: as many as there are, in the order of the table, no other."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 64)
    disk = DiskController(machine, 0, RawFile(image, readonly=False))
    driver = Driver(machine, disk)
    pages = [8, 9, 10, 12, 11]
    segments = [(page * PAGE_SIZE, PAGE_SIZE) for page in pages[:-1]] + [(11 * PAGE_SIZE + 512, 2048)]
    segments[-2] = (12 * PAGE_SIZE, 512)
    segments.insert(3, (11 * PAGE_SIZE, 512))
    assert driver.run(sheet.DISK_READ, 2, segments) == 0
    data = image.read_bytes()[1024:]
    at = 0
    for maddr, length in segments:
        assert bytes(machine.memory.b[maddr : maddr + length]) == data[at : at + length]
        at += length
    assert not any(machine.memory.b[12 * PAGE_SIZE + 512 : 13 * PAGE_SIZE])
    assert [mfn for mfn in range(4, 256) if machine.memory.written[mfn]] == [8, 9, 10, 11, 12]
    assert driver.run(sheet.DISK_WRITE, 20, segments[2:4]) == 0
    assert image.read_bytes()[20 * 512 : 29 * 512] == bytes(machine.memory.b[10 * PAGE_SIZE : 11 * PAGE_SIZE + 512])
    disk.unplug()


Transfer = tuple[int, int, int, int]
"""Operation, first sector, sectors, first page of the data."""


class Files(Backing):
    """A disk in memory that counts what it is asked for, and fails transfers that touch some bytes."""

    joins = True

    def __init__(self, size: int, bad: range) -> None:
        self.size = size
        self.readonly = False
        self.data = bytearray(range(256)) * (size // 256)
        self.bad = bad
        self.calls = 0

    def _fails(self, offset: int, size: int) -> int:
        self.calls += 1
        return errno.EIO if offset < self.bad.stop and self.bad.start < offset + size else 0

    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        assert sum(map(len, views)) == size
        if self._fails(offset, size):
            return errno.EIO
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)
        return 0

    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        assert sum(map(len, views)) == size
        if self._fails(offset, size):
            return errno.EIO
        self.data[offset : offset + size] = b"".join(views)
        return 0

    def flush(self) -> int:
        return 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from([sheet.DISK_READ, sheet.DISK_READ, sheet.DISK_WRITE, sheet.DISK_FLUSH]),
            st.one_of(st.none(), st.none(), st.none(), st.integers(0, 130)),
            st.sampled_from([1, 2, 8, 16]),
            st.integers(0, 7),
        ),
        max_size=20,
    ),
    st.one_of(st.none(), st.integers(0, 1 << 16)),
)
def test_commands_that_come_together_are_as_if_one_by_one(
    wanted: list[tuple[int, int | None, int, int]], bad: int | None
) -> None:
    """Each command has its own end, data and memory, whoever else fails; nothing is moved in another order.

    Neighbours are moved at once on a disk that fails at the byte `bad`; without one it is a disk in memory.
    """
    at = 0
    transfers: list[Transfer] = []
    for op, sector, count, page in wanted:
        at = at if sector is None else sector
        transfers.append((op, at, count, page))
        at += count
    found = []
    for together in (True, False):
        machine = Machine(memory_mib=1)
        machine.memory.watched = True
        files: Backing = Files(64 << 10, range(bad, bad + 100) if bad is not None else range(0))
        if bad is None and together:
            files = MemoryDisk(64 << 10)
            files.writev([memoryview(bytes(range(256)) * 256)], 0, 64 << 10)
        disk = DiskController(machine, 0, files)
        driver = Driver(machine, disk)
        for page in range(8):
            machine.memory.b[(page * 2 + 16) * PAGE_SIZE : (page * 2 + 18) * PAGE_SIZE] = bytes([page]) * 2 * PAGE_SIZE
        for known in range(2):  # the first time no table is known
            before = driver.produced
            for ident, (op, sector, count, page) in enumerate(transfers):
                segments = [] if op == sheet.DISK_FLUSH else [((page * 2 + 16) * PAGE_SIZE, count * 512)]
                if count == 16 and page % 2 and segments:
                    segments = [((page * 2 + 17) * PAGE_SIZE, 4096), ((page * 2 + 16) * PAGE_SIZE, 4096)]
                driver.table = 40 + ident
                driver.queue(op, sector, segments, 100 * known + ident)
                if not together:
                    driver.out(sheet.DISK_DOORBELL, driver.produced)
                    driver.settle()
            driver.out(sheet.DISK_DOORBELL, driver.produced)
            driver.settle()
            statuses = [driver.completion(before + n, 100 * known + n) for n in range(len(transfers))]
            data = memoryview(bytearray(64 << 10))
            if isinstance(files, Files):
                data[:] = files.data
            else:
                files.readv([data], 0, len(data))
            found.append((statuses, bytes(data), bytes(machine.memory.b[16 * PAGE_SIZE : 32 * PAGE_SIZE])))
            found.append((list(machine.memory.written[16:32]), disk.read_bytes, disk.written_bytes, disk.commands))
        disk.unplug()
    assert found[:4] == found[4:]


def test_neighbours_cost_one_call(machine: Machine) -> None:
    files = Files(64 << 10, range(0))
    disk = DiskController(machine, 0, files)
    driver = Driver(machine, disk)
    driver.run(sheet.DISK_READ, 0, [(DATA * PAGE_SIZE, 4096)])
    for op, calls in ((sheet.DISK_READ, 1), (sheet.DISK_WRITE, 1)):
        files.calls = 0
        for n in range(8):
            driver.queue(op, 8 * n, [(DATA * PAGE_SIZE, 4096)], n)
        driver.out(sheet.DISK_DOORBELL, driver.produced)
        assert files.calls == calls
    disk.unplug()


@pytest.mark.parametrize(
    ("op", "sector", "segments", "expected"),
    [
        (sheet.DISK_READ, 32, [(DATA * PAGE_SIZE, 512)], errno.EINVAL),
        (sheet.DISK_READ, 31, [(DATA * PAGE_SIZE, 1024)], errno.EINVAL),
        (sheet.DISK_READ, 0, [(DATA * PAGE_SIZE, 100)], errno.EINVAL),
        (sheet.DISK_READ, 0, [(256 * PAGE_SIZE - 512, 1024)], errno.EFAULT),
        (sheet.DISK_READ, 0, [(DATA * PAGE_SIZE, 512), (0, sheet.DISK_MAX_BYTES)], errno.EFAULT),
        (sheet.DISK_READ, 0, [((1 << 64) - 512, 1024)], errno.EFAULT),
        (sheet.DISK_READ, 0, [(1 << 40, 512)], errno.EFAULT),
        (sheet.DISK_READ, 0, [(DATA * PAGE_SIZE, 0)], errno.EFAULT),
        (sheet.DISK_READ, 0, [], errno.EFAULT),
        (sheet.DISK_READ, 1 << 60, [(DATA * PAGE_SIZE, 512)], errno.EINVAL),
        (9, 0, [(DATA * PAGE_SIZE, 512)], errno.EOPNOTSUPP),
    ],
)
def test_what_cannot_be_done_moves_nothing(
    machine: Machine, op: int, sector: int, segments: list[tuple[int, int]], expected: int
) -> None:
    disk = DiskController(machine, 0, MemoryDisk(32 * SECTOR_SIZE))
    driver = Driver(machine, disk)
    assert driver.run(op, sector, segments) == -expected
    assert not machine.memory.written[DATA]
    disk.unplug()


def test_the_iommu_keeps_a_device_out_of_other_domains_frames(machine: Machine) -> None:
    disk = DiskController(
        machine, 0, MemoryDisk(4096), iommu=lambda line: (COMMANDS, COMPLETIONS, TABLE, DATA).__contains__
    )
    driver = Driver(machine, disk)
    assert driver.run(sheet.DISK_READ, 0, [(DATA * PAGE_SIZE, 512)]) == 0
    assert driver.run(sheet.DISK_READ, 0, [(DATA * PAGE_SIZE, 512), (9 * PAGE_SIZE, 512)]) == -errno.EFAULT
    assert driver.run(sheet.DISK_READ, 0, [(DATA * PAGE_SIZE + 3584, 1024)]) == -errno.EFAULT
    assert not machine.memory.written[9]
    disk.unplug()


def test_a_readonly_disk_refuses_writes(machine: Machine) -> None:
    disk = DiskController(machine, 0, MemoryDisk(4096, readonly=True))
    driver = Driver(machine, disk)
    assert machine.ports.inl(driver.base + sheet.DISK_FLAGS) == sheet.DISK_FLAG_READONLY
    assert driver.run(sheet.DISK_WRITE, 0, [(DATA * PAGE_SIZE, 512)]) == -errno.EROFS
    assert driver.run(sheet.DISK_DISCARD, 0, [], sectors=1) == -errno.EOPNOTSUPP
    disk.unplug()


def test_commands_of_one_doorbell_complete_together(machine: Machine) -> None:
    disk = DiskController(machine, 0, MemoryDisk(1 << 20))
    driver = Driver(machine, disk)
    for ident in range(sheet.DISK_QUEUE_LENGTH):
        driver.queue(sheet.DISK_READ, ident, [(DATA * PAGE_SIZE, 512)], ident)
    driver.out(sheet.DISK_DOORBELL, driver.produced)
    assert driver.interrupts == 0
    timer = machine.timers.pop_due(1 << 62)
    assert timer is not None
    assert timer.function is not None
    timer.function()
    assert driver.interrupts == 1
    assert [driver.completion(n, n) for n in range(128)] == [0] * 128
    driver.out(sheet.DISK_DOORBELL, driver.produced + sheet.DISK_QUEUE_LENGTH + 1)
    assert disk.commands == 128
    disk.unplug()


def test_nobody_hears_of_commands_after_a_reset(machine: Machine) -> None:
    disk = DiskController(machine, 0, MemoryDisk(1 << 20))
    driver = Driver(machine, disk)
    driver.queue(sheet.DISK_READ, 0, [(DATA * PAGE_SIZE, 512)])
    driver.out(sheet.DISK_DOORBELL, 1)
    driver.out(sheet.DISK_RESET, 0)
    timer = machine.timers.pop_due(1 << 62)
    assert timer is not None
    assert timer.function is not None
    timer.function()
    assert driver.interrupts == 0
    disk.unplug()


def test_an_image_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"disk image .*missing\.img: No such file or directory"):
        RawFile(tmp_path / "missing.img", readonly=True)
    with pytest.raises(DeviceError, match="neither a file nor a block device"):
        RawFile(tmp_path, readonly=True)


def test_a_card_sends_to_the_capture_and_receives_into_buffers(machine: Machine, tmp_path: Path) -> None:
    capture = tmp_path / "wire.pcap"
    card = NetworkCard(machine, 0, PcapWire(capture), bytes.fromhex("00163e000001"))
    base = sheet.nic_port(0)
    ports, memory = machine.ports, machine.memory
    raised: list[int] = []
    machine.interrupts.connect(sheet.nic_irq(0), lambda: raised.append(1))
    ports.outl(base + sheet.NIC_TX_RING, 1)
    ports.outl(base + sheet.NIC_RX_RING, 2)

    memory.write(DATA * PAGE_SIZE, b"abcdef" * 10)
    descriptor = sheet.nic_descriptor
    descriptor.pack_into(memory.b, PAGE_SIZE, maddr=DATA * PAGE_SIZE, length=30, flags=sheet.NIC_FLAG_MORE)
    descriptor.pack_into(memory.b, PAGE_SIZE + 16, maddr=DATA * PAGE_SIZE + 30, length=30, flags=0)
    ports.outl(base + sheet.NIC_TX_DOORBELL, 2)
    assert ports.inl(base + sheet.NIC_TX_USED) == 2

    card.receive(b"early")
    descriptor.pack_into(memory.b, 2 * PAGE_SIZE, maddr=9 * PAGE_SIZE, length=PAGE_SIZE, flags=0)
    ports.outl(base + sheet.NIC_RX_DOORBELL, 1)
    assert bytes(memory.frame(9)[:5]) == b"early"
    assert descriptor.unpack_from(memory.b, 2 * PAGE_SIZE).length == 5
    assert len(raised) == 2

    card.unplug()
    with capture.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcap.Reader(file)]
    assert frames == [b"abcdef" * 10]


def test_a_network_card_that_may_not_access_everything(tmp_path: Path) -> None:
    """Neither rings nor buffers outside of what the IOMMU lets through; after a reset it knows nothing any more."""
    machine = Machine(memory_mib=1)
    memory, ports = machine.memory, machine.ports
    sent: list[bytes] = []
    wire = PcapWire(tmp_path / "wire.pcap")
    wire.transmit = lambda frame, now: sent.append(frame)  # type: ignore[method-assign]
    mine = {1, 2, DATA}
    card = NetworkCard(machine, 0, wire, bytes(6), lambda line: mine.__contains__)
    base = sheet.nic_port(0)
    descriptor = sheet.nic_descriptor
    ports.outl(base + sheet.NIC_TX_RING, 3)
    ports.outl(base + sheet.NIC_TX_DOORBELL, 1)
    assert ports.inl(base + sheet.NIC_TX_USED) == 0, "a ring that is not its own"
    ports.outl(base + sheet.NIC_TX_RING, 1)
    ports.outl(base + sheet.NIC_RX_RING, 2)
    memory.b[DATA * PAGE_SIZE : DATA * PAGE_SIZE + 60] = b"m" * 60
    for slot, frame in enumerate((DATA, DATA + 1)):
        at = PAGE_SIZE + slot * descriptor.size
        descriptor.pack_into(memory.b, at, maddr=frame * PAGE_SIZE, length=60, flags=0)
        descriptor.pack_into(memory.b, at + PAGE_SIZE, maddr=frame * PAGE_SIZE, length=PAGE_SIZE, flags=0)
    ports.outl(base + sheet.NIC_TX_DOORBELL, 2)
    assert sent == [b"m" * 60]
    ports.outl(base + sheet.NIC_RX_DOORBELL, 2)
    for _ in range(2):
        card.receive(b"r" * 64)
    assert bytes(memory.b[DATA * PAGE_SIZE :][:64]) == b"r" * 64
    assert not any(memory.b[(DATA + 1) * PAGE_SIZE :][:64])
    # A ring that was its own, and is no more.
    mine.clear()
    ports.outl(base + sheet.NIC_TX_DOORBELL, 3)
    assert ports.inl(base + sheet.NIC_TX_USED) == 2
    mine.update((1, 2, DATA))
    card.reset()
    ports.outl(base + sheet.NIC_RX_DOORBELL, 1)
    card.receive(b"q" * 64)
    assert bytes(memory.b[DATA * PAGE_SIZE :][:64]) == b"r" * 64
    assert sent == [b"m" * 60]
    card.unplug()
