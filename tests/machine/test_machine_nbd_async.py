"""Many requests at once at an NBD server that answers when the test says so, and a controller that waits for it."""

import errno
import random
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import hypervisor.machine.nbd as nbd
from hypervisor.abi import device as sheet
from hypervisor.errors import DeviceError
from hypervisor.machine.backing import Pending, RemoteBacking
from hypervisor.machine.disk import DiskController
from hypervisor.machine.machine import Machine
from hypervisor.machine.memory import PAGE_SIZE
from hypervisor.machine.nbd import NbdDisk
from hypervisor.machine.nbd_address import NbdAddress

READ, WRITE, FLUSH, DISCARD = RemoteBacking.READ, RemoteBacking.WRITE, RemoteBacking.FLUSH, RemoteBacking.DISCARD
SIZE = 1 << 20
Request = tuple[int, int, int, int]
"""Cookie, command, offset, size."""
FLAGS = 1 | 4 | 64


class Server:
    """An NBD server in the test's hands: it reads requests and answers none by itself."""

    def __init__(self, path: Path, *, block: int = 1, most: int = 32 << 20) -> None:
        self._block = block
        self.address = NbdAddress(path=str(path))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._most = most
        self._thread = threading.Thread(target=self._shake_hands, daemon=True)
        self._thread.start()
        self.socket: socket.socket
        self.written: dict[int, bytes] = {}

    def _shake_hands(self) -> None:
        self.socket, _ = self._listener.accept()
        self.socket.settimeout(5)
        self.socket.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        self._take(4 + 24)
        for kind, data in (
            (3, struct.pack(">HQH", 0, SIZE, FLAGS)),
            (3, struct.pack(">HIII", 3, self._block, 4096, self._most)),
            (1, b""),
        ):
            self.socket.sendall(struct.pack(">QIII", 0x3E889045565A9, 7, kind, len(data)) + data)

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the client has hung up"
            data += more
        return data

    def connect(self) -> NbdDisk:
        disk = NbdDisk(self.address, readonly=False)
        self._thread.join()
        return disk

    def request(self) -> Request:
        """Take the next request off the wire."""
        magic, _, command, cookie, offset, size = struct.unpack(">IHHQQI", self._take(28))
        assert magic == 0x25609513
        if command == 1:
            self.written[cookie] = self._take(size)
        return cookie, command, offset, size

    def nothing_more(self) -> bool:
        self.socket.settimeout(0.05)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(5)
        return False

    def reply(self, request: Request, error: int = 0, data: bytes | None = None) -> None:
        cookie, command, offset, size = request
        if data is None:
            data = bytes([offset // 512 % 251]) * size if command == 0 and not error else b""
        self.socket.sendall(struct.pack(">IIQ", 0x67446698, error, cookie) + data)

    def close(self) -> None:
        self.socket.close()
        self._listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "s")
    yield server
    server.close()


@pytest.fixture
def disk(server: Server) -> Iterator[NbdDisk]:
    disk = server.connect()
    yield disk
    disk.close()


def poll_until(disk: NbdDisk, condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        disk.poll()
    raise AssertionError("it never happened")


def statuses(requests: list[Pending]) -> list[int | None]:
    return [None if pending.left else pending.status for pending in requests]


def test_answers_in_any_order(server: Server, disk: NbdDisk) -> None:
    pending = [disk.start(READ, 512 * n, 512) for n in range(1, 40)]
    requests = [server.request() for _ in pending]
    assert disk.busy
    assert not disk.poll()
    for request in requests[::-1]:
        server.reply(request, errno.EIO if request[2] == 512 * 7 else 0)
    disk.wait(pending)
    assert not disk.busy
    for n, one in enumerate(pending, 1):
        assert one.status == (errno.EIO if n == 7 else 0)
        assert one.data == bytes(512) if n == 7 else bytes([n]) * 512


def test_data_in_pieces(server: Server, disk: NbdDisk) -> None:
    first, second = disk.start(READ, 0, 300_000), disk.start(READ, 512 * 9, 512)
    asked = [server.request(), server.request()]
    stream = b"".join(
        struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes([7 + n]) * size
        for n, (cookie, _, _, size) in enumerate(asked)
    )
    edges = [0, 3, 16, 17, *range(50_000, 300_000, 50_000), 299_000, 300_020, 300_033, len(stream)]
    for start, end in pairwise(edges):
        server.socket.sendall(stream[start:end])
        assert disk.poll()
        assert (first.left, second.left) == (end < 300_016, end < len(stream))
    assert first.data == bytes([7]) * 300_000
    assert second.data == bytes([8]) * 512


def test_what_touches_the_same_bytes_keeps_its_order(server: Server, disk: NbdDisk) -> None:
    pending = [
        disk.start(WRITE, 4096, 4096, b"1" * 4096),
        disk.start(READ, 0, 4096),  # is no neighbour of it
        disk.start(READ, 7680, 512),  # reads its last sector
        disk.start(READ, 65536, 512),  # comes after one that waits
    ]
    write, read = server.request(), server.request()
    assert (write[1:], read[1:]) == ((1, 4096, 4096), (0, 0, 4096))
    assert server.nothing_more()
    server.reply(read)
    poll_until(disk, lambda: not pending[1].left)
    assert server.nothing_more()
    server.reply(write)
    poll_until(disk, lambda: not pending[0].left)
    later = [server.request(), server.request()]
    assert [request[2] for request in later] == [7680, 65536]
    # Two reads of the same place are at no odds, a discard and a read are.
    same = disk.start(READ, 7680, 512)
    discard = disk.start(DISCARD, 7680, 512)
    again = server.request()
    assert again[1:] == (0, 7680, 512)
    assert server.nothing_more()
    for request in (*later, again):
        server.reply(request)
    poll_until(disk, lambda: not same.left)
    last = server.request()
    assert last[1:] == (6, 7680, 512)
    server.reply(last)
    disk.wait([*pending, discard])
    assert statuses([*pending, same, discard]) == [0] * 6


def test_large_requests_are_cut_to_what_the_server_takes(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", most=4096)
    disk = server.connect()
    write, read = disk.start(WRITE, 0, 10_240, bytes(range(256)) * 40), disk.start(READ, 65536, 8192)
    parts = [server.request() for _ in range(5)]
    assert [part[1:] for part in parts] == [
        (1, 0, 4096),
        (1, 4096, 4096),
        (1, 8192, 2048),
        (0, 65536, 4096),
        (0, 69632, 4096),
    ]
    assert b"".join(server.written.values()) == bytes(range(256)) * 40
    for part in parts[::-1]:
        server.reply(part, errno.ENOSPC if part[2] == 4096 else 0)
    disk.wait([write, read])
    assert (write.status, read.status) == (errno.ENOSPC, 0)
    assert read.data == bytes([128]) * 4096 + bytes([136]) * 4096
    disk.close()
    server.close()


@pytest.mark.parametrize("block", [1, 512, 1024, 4096])
def test_sectors_are_as_large_as_the_server_wants(tmp_path: Path, block: int) -> None:
    server = Server(tmp_path / "s", block=block)
    disk = server.connect()
    assert disk.sector_size == disk.physical_sector_size == max(block, 512)
    disk.close()
    server.close()


@pytest.mark.parametrize(
    ("block", "most", "message"),
    [
        (8192, 1 << 20, "whole blocks of 8192 bytes, more than a sector can have"),
        (0, 1 << 20, "which cannot be"),
        (1000, 1 << 20, "which cannot be"),
        (4096, 512, "which cannot be"),
        (1 << 17, 1 << 20, "which cannot be"),
    ],
)
def test_blocks_that_are_none(tmp_path: Path, block: int, most: int, message: str) -> None:
    server = Server(tmp_path / "s", block=block, most=most)
    with pytest.raises(DeviceError, match=message):
        server.connect()
    server.close()


def test_a_server_that_does_not_read_for_a_while(server: Server, disk: NbdDisk) -> None:
    """Much more than a socket holds: nothing waits, and nothing is lost."""
    data = bytes(range(256)) * 256
    pending = [disk.start(WRITE, 65536 * n, 65536, data) for n in range(16)]
    pending += [disk.start(FLUSH, 0, 0)]
    assert not disk.poll()
    taken: list[Request] = []

    def serve() -> None:
        for _ in range(17):
            taken.append(server.request())
            server.reply(taken[-1])

    thread = threading.Thread(target=serve)
    thread.start()
    disk.wait(pending)
    thread.join()
    assert statuses(pending) == [0] * 17
    assert [request[2] for request in taken] == [65536 * n for n in range(16)] + [0]
    assert set(server.written.values()) == {data}


def test_closing_in_the_middle_of_a_write_writes_nothing_else(server: Server) -> None:
    """A goodbye behind half of a write would be taken for its other half."""
    disk = server.connect()
    data = b"data" * 16384
    for n in range(16):
        disk.start(WRITE, 65536 * n, 65536, data)
    expected = b"".join(struct.pack(">IHHQQI", 0x25609513, 0, 1, n + 1, 65536 * n, 65536) + data for n in range(16))
    sent = bytearray()

    def read() -> None:
        while more := server.socket.recv(1 << 20):
            sent.extend(more)

    thread = threading.Thread(target=read)
    thread.start()
    disk.close()
    thread.join()
    assert 0 < len(sent) < len(expected)
    assert expected.startswith(sent)


def test_closing_says_goodbye(server: Server) -> None:
    server.connect().close()
    assert server.request()[1] == 2
    assert server.socket.recv(1) == b""


@pytest.mark.parametrize("how", ["closes", "says nothing", "stops in the middle", "is given up", "answers twice"])
def test_the_end_of_a_server(server: Server, disk: NbdDisk, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(nbd, "TIMEOUT", 0.2)
    pending = [disk.start(READ, 512 * n, 512) for n in range(5)]
    pending += [disk.start(WRITE, 512, 512, bytes(512)), disk.start(FLUSH, 0, 0)]
    requests = [server.request() for _ in range(5)]
    server.reply(requests[3])
    if how == "closes":
        server.close()
    elif how == "stops in the middle":
        server.reply(requests[4], data=bytes(100))
    elif how == "is given up":
        disk.give_up = lambda: True
    elif how == "answers twice":
        server.reply(requests[3])
    disk.wait(pending)
    assert statuses(pending) == [5, 5, 5, 0, 5, 5, 5]
    assert not disk.busy
    assert disk.start(READ, 0, 512).status == disk.start(FLUSH, 0, 0).status == errno.EIO
    assert not disk.poll()


class Chooser:
    """A server that executes what it has in random order, on an image of 24 sectors."""

    def __init__(self, server: Server, rng: random.Random) -> None:
        self.server = server
        self.rng = rng
        self.image = bytearray(24 * 512)
        self.waiting: list[Request] = []

    def serve(self) -> None:
        """Execute one of the requests that are here."""
        while select.select([self.server.socket], [], [], 0)[0]:
            self.waiting.append(self.server.request())
        if not self.waiting:
            return
        request = self.waiting.pop(self.rng.randrange(len(self.waiting)))
        cookie, command, offset, size = request
        if command == 0:
            self.server.reply(request, data=bytes(self.image[offset : offset + size]))
            return
        if size:
            self.image[offset : offset + size] = self.server.written[cookie] if command == 1 else bytes(size)
        self.server.reply(request)


@pytest.mark.parametrize("seed", range(25))
def test_whatever_order_a_server_chooses_reads_see_what_was_written_before(
    server: Server, disk: NbdDisk, seed: int
) -> None:
    """Each read brings what a disk would have had that does one thing after the other."""
    rng = random.Random(seed)
    chooser = Chooser(server, rng)
    model = bytearray(len(chooser.image))
    expected: list[tuple[Pending, bytes | None]] = []

    def submit() -> None:
        op = rng.choice([READ, READ, READ, WRITE, WRITE, DISCARD, FLUSH])
        size = rng.randint(1, 4) * 512 if op != FLUSH else 0
        at = rng.randrange((len(model) - size) // 512 + 1) * 512 if size else 0
        data = rng.randbytes(size) if op == WRITE else b""
        expected.append((disk.start(op, at, size, data), bytes(model[at : at + size]) if op == READ else None))
        if op in (WRITE, DISCARD):
            model[at : at + size] = data or bytes(size)

    for _ in range(300):
        if rng.random() < 0.55:
            submit()
        else:
            chooser.serve()
            disk.poll()
    while any(pending.left for pending, _ in expected):
        chooser.serve()
        disk.poll()
    assert chooser.image == model
    assert [(pending.status, pending.data) for pending, _ in expected] == [(0, data) for _, data in expected]


# -- behind a controller ----------------------------------------------------------------------------------------------

COMMANDS, COMPLETIONS, TABLES, DATA = 1, 2, 3, 16


class Scene:
    """A controller on a disk at the server, and the driver's queues."""

    def __init__(self, server: Server, *, real: bool) -> None:
        self.server = server
        self.machine = Machine(memory_mib=1, real_time=real)
        self.allowed: set[int] | None = None
        self.backing = server.connect()
        self.disk = DiskController(self.machine, 0, self.backing, iommu=lambda line: self._context())
        self.base = sheet.disk_port(0)
        self.out(sheet.DISK_COMMANDS, COMMANDS)
        self.out(sheet.DISK_COMPLETIONS, COMPLETIONS)
        self.produced = 0

    def _context(self) -> Callable[[int], bool] | None:
        return None if self.allowed is None else self.allowed.__contains__

    def out(self, register: int, value: int) -> None:
        self.machine.ports.outl(self.base + register, value)

    def queue(self, op: int, sector: int, page: int = DATA, size: int = 512, sectors: int = 0) -> None:
        memory = self.machine.memory
        table = TABLES * PAGE_SIZE + 16 * (self.produced % 256)
        struct.pack_into("<QQ", memory.b, table, page * PAGE_SIZE, size)
        sheet.disk_command.pack_into(
            memory.b,
            COMMANDS * PAGE_SIZE + self.produced % 128 * sheet.disk_command.size,
            op=op,
            nr_segments=0 if op > 1 else 1,
            id=self.produced,
            sector=sector,
            segments=table,
            sectors=sectors,
        )
        self.produced += 1

    def ring(self) -> None:
        self.out(sheet.DISK_DOORBELL, self.produced)

    @property
    def done(self) -> list[tuple[int, int]]:
        """Id and status of all that was reported."""
        memory = self.machine.memory
        count = memory.i[COMPLETIONS * PAGE_SIZE >> 2]
        at = COMPLETIONS * PAGE_SIZE + sheet.DISK_COMPLETIONS_OFFSET
        return [(ident, status) for ident, status in struct.iter_unpack("<Ii", memory.b[at : at + 8 * count])]

    def pass_time(self) -> None:
        while (timer := self.machine.timers.pop_due(1 << 62)) is not None:
            assert timer.function is not None
            timer.function()


@pytest.fixture
def virtual(server: Server) -> Iterator[Scene]:
    scene = Scene(server, real=False)
    yield scene
    scene.disk.unplug()


@pytest.fixture
def real(server: Server) -> Iterator[Scene]:
    scene = Scene(server, real=True)
    yield scene
    scene.disk.unplug()


def test_virtual_time_reports_at_the_time_of_any_disk_and_in_order(virtual: Scene) -> None:
    for n in range(1, 4):
        virtual.queue(READ, n, DATA + n)
    virtual.queue(WRITE, 2048)
    virtual.queue(FLUSH, 0)
    virtual.queue(9, 0)
    virtual.ring()
    assert virtual.machine.timers.next_deadline == 20_000 + (3 * 512 * 250 >> 10)
    requests = [virtual.server.request() for _ in range(4)]
    for request in requests[::-1]:
        virtual.server.reply(request)
    assert virtual.backing.poll()
    assert virtual.done == []
    assert not any(virtual.machine.memory.frame(DATA + 1))  # the data is in memory when it is reported
    virtual.pass_time()
    assert virtual.done == [(0, 0), (1, 0), (2, 0), (3, -errno.EINVAL), (4, 0), (5, -errno.EOPNOTSUPP)]
    assert [bytes(virtual.machine.memory.frame(DATA + n)[:512]) for n in (1, 2, 3)] == [
        bytes([n]) * 512 for n in (1, 2, 3)
    ]
    assert virtual.machine.memory.written[DATA + 2] == 1


def test_virtual_time_stands_still_for_a_late_answer(virtual: Scene) -> None:
    virtual.queue(READ, 5)
    virtual.ring()
    request = virtual.server.request()
    timer = threading.Timer(0.1, virtual.server.reply, (request,))
    timer.start()
    virtual.pass_time()
    assert virtual.done == [(0, 0)]
    timer.join()


def test_what_is_written_is_what_was_there_at_the_doorbell(virtual: Scene) -> None:
    memory = virtual.machine.memory
    memory.write(DATA * PAGE_SIZE, b"before" * 100)
    virtual.queue(WRITE, 1)
    virtual.ring()
    memory.write(DATA * PAGE_SIZE, b"after!" * 100)
    request = virtual.server.request()
    assert virtual.server.written[request[0]] == (b"before" * 100)[:512]
    virtual.server.reply(request)
    virtual.pass_time()
    assert virtual.done == [(0, 0)]


def test_memory_that_was_taken_away_meanwhile_is_not_touched(virtual: Scene) -> None:
    virtual.allowed = {COMMANDS, COMPLETIONS, TABLES, DATA, DATA + 1}
    for n in range(3):
        virtual.queue(READ, 1, DATA + n)
    virtual.ring()
    for request in (virtual.server.request(), virtual.server.request()):
        virtual.server.reply(request)
    virtual.allowed.remove(DATA)
    virtual.pass_time()
    assert virtual.done == [(0, -errno.EFAULT), (1, 0), (2, -errno.EFAULT)]
    assert not any(virtual.machine.memory.frame(DATA))


@pytest.mark.parametrize("kind", ["virtual", "real"])
def test_a_reset_forgets_what_is_under_way(kind: str, request: pytest.FixtureRequest) -> None:
    scene: Scene = request.getfixturevalue(kind)
    scene.queue(READ, 1)
    scene.ring()
    old = scene.server.request()
    scene.out(sheet.DISK_RESET, 0)
    scene.out(sheet.DISK_COMMANDS, COMMANDS)
    scene.out(sheet.DISK_COMPLETIONS, COMPLETIONS)
    scene.produced = 0
    scene.queue(READ, 2, DATA + 1)
    scene.ring()
    for one in (old, scene.server.request()):
        scene.server.reply(one)
    remote = scene.disk.remote
    assert remote is not None
    if kind == "virtual":
        scene.pass_time()
    else:
        poll_until(scene.backing, lambda: remote.poll() or bool(scene.done))
    assert scene.done == [(0, 0)]
    assert not any(scene.machine.memory.frame(DATA))


def test_real_time_reports_what_is_there(real: Scene) -> None:
    for n in range(3):
        real.queue(READ, n, DATA + n)
    real.queue(READ, 1 << 40)
    real.ring()
    assert real.done == [(3, -errno.EINVAL)]
    requests = [real.server.request() for _ in range(3)]
    remote = real.disk.remote
    assert remote is not None
    assert remote.busy
    assert not remote.poll()
    for n in (2, 0, 1):
        real.server.reply(requests[n])
        assert remote.poll()
        assert real.done[-1] == (n, 0)
    assert not remote.busy


def test_real_time_gives_a_silent_server_up(real: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd, "TIMEOUT", 0.05)
    real.queue(READ, 1)
    real.ring()
    real.server.request()
    remote = real.disk.remote
    assert remote is not None
    assert 0 < remote.patience() <= 0.05
    assert real.done == []
    threading.Event().wait(0.06)
    assert remote.patience() == 0
    assert real.done == [(0, -errno.EIO)]
    assert remote.patience() == 0.05


def test_no_more_is_under_way_than_the_queue_holds(virtual: Scene) -> None:
    """A driver that rings and rings makes the host remember no more than that for it."""
    for n in range(4):
        for _ in range(64):
            virtual.queue(READ, n)
        virtual.ring()
    requests = [virtual.server.request() for _ in range(128)]
    assert virtual.server.nothing_more()
    for request in requests:
        virtual.server.reply(request)
        assert virtual.backing.poll()
    virtual.pass_time()
    assert sorted(virtual.done[:256]) == [(n, 0 if n < 128 else -errno.EBUSY) for n in range(256)]
