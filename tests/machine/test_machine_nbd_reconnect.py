"""NBD servers that die and come back: what was acknowledged is kept, what was asked for is done, or fails in time."""

import errno
import random
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nbd_server import FLUSH, WRITE, MortalServer

import hypervisor.machine.nbd as nbd
from hypervisor.errors import DeviceError
from hypervisor.machine.backing import Pending, RemoteBacking
from hypervisor.machine.nbd import NbdDisk
from hypervisor.machine.nbd_address import NbdAddress
from hypervisor.machine.nbd_connector import Connector

OP_READ, OP_WRITE, OP_FLUSH, OP_DISCARD = (
    RemoteBacking.READ,
    RemoteBacking.WRITE,
    RemoteBacking.FLUSH,
    RemoteBacking.DISCARD,
)
SECTORS = 24
SIZE = SECTORS * 512


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait long between two attempts."""
    monkeypatch.setattr(nbd, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(nbd, "LAST_PAUSE", 0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MortalServer]:
    server = MortalServer(tmp_path / "s", SIZE, random.Random(1))
    yield server
    server.close()


def turn(disk: NbdDisk, server: MortalServer, until: Callable[[], bool], *, serves: bool = True) -> None:
    """Go on until something has come true."""
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline, "it never happened"
        if serves:
            server.serve()
        disk.poll()
        disk.check_patience()


def lost(disk: NbdDisk) -> Callable[[], bool]:
    return lambda: not disk.connected


def readable(disk: NbdDisk) -> bool:
    return bool(select.select([disk.fileno()], [], [], 0)[0])


def done(*requests: Pending) -> Callable[[], bool]:
    return lambda: not any(request.left for request in requests)


class Traffic:
    """Random requests, and what a disk would have answered that does one thing after the other and never dies."""

    def __init__(self, disk: NbdDisk, rng: random.Random) -> None:
        self.disk = disk
        self.rng = rng
        self.model = bytearray(SIZE)
        self.expected: list[tuple[Pending, bytes | None]] = []
        self.flushes: list[tuple[Pending, dict[int, bytes]]] = []
        """Flushes that are under way, and what is safe once they are answered, by sector."""
        self.safe: dict[int, bytes] = {}
        """Sectors whose contents were acknowledged and flushed, and no newer ones asked for since."""

    def submit(self) -> None:
        """Ask for something."""
        rng = self.rng
        op = rng.choice([OP_READ, OP_READ, OP_WRITE, OP_WRITE, OP_DISCARD, OP_FLUSH])
        size = rng.randint(1, 4) * 512 if op != OP_FLUSH else 0
        at = rng.randrange((SIZE - size) // 512 + 1) * 512 if size else 0
        data = rng.randbytes(size) if op == OP_WRITE else b""
        quiet = not any(pending.left for pending, _ in self.expected)
        pending = self.disk.start(op, at, size, data)
        self.expected.append((pending, bytes(self.model[at : at + size]) if op == OP_READ else None))
        if op == OP_FLUSH and quiet:
            self.flushes.append((pending, {n: bytes(self.model[512 * n : 512 * n + 512]) for n in range(SECTORS)}))
        if op in (OP_WRITE, OP_DISCARD):
            self.model[at : at + size] = data or bytes(size)
            for sector in range(at // 512, (at + size) // 512):
                for contents in (self.safe, *(contents for _, contents in self.flushes)):
                    contents.pop(sector, None)

    def settle(self) -> None:
        """Note what has been flushed."""
        for flush, contents in self.flushes:
            if not flush.left:
                self.safe.update(contents)
        self.flushes = [(flush, contents) for flush, contents in self.flushes if flush.left]


@pytest.mark.parametrize("seed", range(40))
def test_a_flush_means_what_it_says_across_the_deaths_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A server with a cache that dies again and again.

    Each read sees what was written, no request fails, and what a flush was answered for survives the next death.
    """
    if seed % 2:
        # With own flushes, and changes that wait for these.
        monkeypatch.setattr(nbd, "JOURNAL_LIMIT", 2048)
        monkeypatch.setattr(nbd, "JOURNAL_MOST", 4096)
    rng = random.Random(seed)
    server = MortalServer(tmp_path / "s", SIZE, rng)
    disk = server.connect(reconnect_delay=60)
    traffic = Traffic(disk, rng)
    for _ in range(400):
        chance = rng.random()
        if chance < 0.4:
            traffic.submit()
        elif chance < 0.96:
            server.serve(answer=rng.random() < 0.95)
            disk.poll()
            traffic.settle()
        else:
            server.crash()
            for sector, data in traffic.safe.items():
                assert server.image[512 * sector : 512 * sector + 512] == data
            server.listen()
            turn(disk, server, lambda: not disk.connected or rng.random() < 0.01)
    # What was executed and not answered is the server's secret: it has to die to be asked again.
    server.crash()
    server.listen()
    turn(disk, server, done(*(pending for pending, _ in traffic.expected)))
    last = disk.start(OP_FLUSH, 0, 0)
    turn(disk, server, done(last))
    assert server.deaths > 3
    assert server.image == traffic.model
    answers = [(pending.status, pending.data) for pending, _ in traffic.expected]
    assert answers == [(0, data) for _, data in traffic.expected]
    disk.close()
    server.close()


def test_what_was_acknowledged_and_not_flushed_is_said_again(server: MortalServer) -> None:
    disk = server.connect(reconnect_delay=60)
    write = disk.start(OP_WRITE, 512, 512, b"w" * 512)
    turn(disk, server, done(write))
    server.rng = random.Random(0)
    server.crash()
    server.image[:] = server.cache[:] = bytes(SIZE)
    server.listen()
    turn(disk, server, lost(disk), serves=False)
    read = disk.start(OP_READ, 512, 512)
    turn(disk, server, done(read))
    assert (read.status, read.data) == (0, b"w" * 512)
    flush = disk.start(OP_FLUSH, 0, 0)
    turn(disk, server, done(flush))
    assert server.image[512:1024] == b"w" * 512
    # What is safe is not said again.
    server.crash()
    server.listen()
    turn(disk, server, lambda: disk.connected and server.handshakes == 3, serves=False)
    server.read_requests()
    assert server.waiting == []
    disk.close()


def test_a_flush_waits_for_what_is_said_again(server: MortalServer) -> None:
    """The server would answer it for changes that it has not seen."""
    disk = server.connect(reconnect_delay=60)
    turn(disk, server, done(disk.start(OP_WRITE, 0, 512, b"w" * 512)))
    server.crash()
    server.listen()
    turn(disk, server, lambda: server.handshakes == 2 and disk.connected, serves=False)
    flush = disk.start(OP_FLUSH, 0, 0)
    for _ in range(20):
        server.read_requests()
        disk.poll()
    assert [request[1] for request in server.waiting] == [WRITE]
    turn(disk, server, done(flush))
    assert flush.status == 0
    disk.close()


def test_a_server_without_a_flush_is_taken_at_its_word(tmp_path: Path) -> None:
    server = MortalServer(tmp_path / "s", SIZE, random.Random(1), flags=1)
    disk = server.connect(reconnect_delay=60)
    turn(disk, server, done(disk.start(OP_WRITE, 0, 512, b"w" * 512)))
    server.crash()
    server.listen()
    turn(disk, server, lambda: server.handshakes == 2 and disk.connected, serves=False)
    server.read_requests()
    assert server.waiting == []
    disk.close()
    server.close()


def test_requests_fail_when_their_time_is_over_and_a_late_server_is_welcome(server: MortalServer) -> None:
    disk = server.connect(reconnect_delay=0.2)
    reports: list[str] = []
    disk.report = reports.append
    kept = disk.start(OP_WRITE, 1024, 512, b"k" * 512)
    turn(disk, server, done(kept))
    under_way = disk.start(OP_READ, 0, 512)
    began = time.monotonic()
    server.crash()
    turn(disk, server, lost(disk))
    later = disk.start(OP_WRITE, 0, 512, bytes(512))
    disk.wait((under_way, later))
    assert 0.15 < time.monotonic() - began < 5
    assert (under_way.status, later.status) == (errno.EIO, errno.EIO)
    assert disk.start(OP_READ, 0, 512).status == errno.EIO  # at once
    server.image[:] = server.cache[:] = bytes(SIZE)
    server.listen()
    turn(disk, server, lambda: disk.connected)
    read = disk.start(OP_READ, 1024, 512)
    turn(disk, server, done(read))
    assert read.data == b"k" * 512  # it was acknowledged, so it is still owed
    words = ("looking for it", "until it is back requests fail", "it is back; ")
    assert all(word in report for word, report in zip(words, reports, strict=True))
    disk.close()


def test_a_request_that_kills_its_server_is_not_repeated_for_ever(server: MortalServer) -> None:
    disk = server.connect(reconnect_delay=0.3)
    poison = disk.start(OP_READ, 512, 512)
    deadline = time.monotonic() + 10
    tries = 0
    while poison.left:
        assert time.monotonic() < deadline
        server.read_requests()
        if server.waiting:
            tries += 1
            server.crash()
            server.listen()
        disk.poll()
        disk.check_patience()
    assert poison.status == errno.EIO
    assert tries > 1
    turn(disk, server, lambda: disk.connected)
    fine = disk.start(OP_READ, 0, 512)
    turn(disk, server, done(fine))
    assert fine.status == 0
    disk.close()


def test_another_disk_in_its_place_is_not_taken_for_it(server: MortalServer) -> None:
    disk = server.connect(reconnect_delay=0.3)
    reports: list[str] = []
    disk.report = reports.append
    server.crash()
    server.size = SIZE // 2
    server.listen()
    turn(disk, server, lost(disk), serves=False)
    read = disk.start(OP_READ, 0, 512)
    disk.wait((read,))
    assert read.status == errno.EIO
    assert any(f"it has {SIZE // 2} bytes now, and had {SIZE}, so it is not the same disk" in text for text in reports)
    server.crash()
    server.size = SIZE
    server.listen()
    turn(disk, server, lambda: disk.connected)
    disk.close()


def test_what_can_be_said_again_is_bounded(server: MortalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that never flushes: the client does, now and then."""
    monkeypatch.setattr(nbd, "JOURNAL_LIMIT", 4096)
    disk = server.connect(reconnect_delay=60)
    flushes = 0
    for n in range(60):
        write = disk.start(OP_WRITE, n % SECTORS * 512, 512, bytes([n]) * 512)
        while write.left:
            request = server.serve()
            flushes += request is not None and request[1] == FLUSH
            disk.poll()
    assert 4 <= flushes <= 12
    server.crash()
    server.image[:] = server.cache[:] = bytes(SIZE)
    server.listen()
    turn(disk, server, lambda: server.handshakes == 2 and disk.connected, serves=False)
    server.read_requests()
    assert 0 < len(server.waiting) < 20
    disk.close()


def test_changes_wait_for_a_server_that_takes_its_time_to_flush(
    server: MortalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be said again is bounded even then; a loss in between changes nothing."""
    monkeypatch.setattr(nbd, "JOURNAL_LIMIT", 2048)
    monkeypatch.setattr(nbd, "JOURNAL_MOST", 4096)
    disk = server.connect(reconnect_delay=60)
    writes = [disk.start(OP_WRITE, n % SECTORS * 512, 512, bytes([n]) * 512) for n in range(60)]
    flushes = 0
    for _ in range(3):
        for _ in range(200):
            server.read_requests()
            flush = next((request for request in server.waiting if request[1] == FLUSH), None)
            if flush is not None:
                server.waiting.remove(flush)
                flushes += 1
            server.serve()
            disk.poll()
        answered = sum(not write.left for write in writes)
        assert flushes == 1
        # Changes that overlap wait for each other anyway, so at most as many as there are sectors come at a time.
        assert 4 < answered < 4 + SECTORS + 8
    server.crash()
    server.listen()
    turn(disk, server, done(*writes))
    last = disk.start(OP_FLUSH, 0, 0)
    turn(disk, server, done(last))
    assert server.image == b"".join(bytes([n + 48 if n < 12 else n + 24]) * 512 for n in range(SECTORS))
    disk.close()


def test_a_flush_of_the_clients_own_that_fails_is_told_with_the_guests_next(
    server: MortalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "JOURNAL_LIMIT", 100)
    disk = server.connect(reconnect_delay=60)
    turn(disk, server, done(disk.start(OP_WRITE, 0, 512, bytes(512))))
    server.read_requests()
    assert [request[1] for request in server.waiting] == [FLUSH]
    server.serve(error=errno.ENOSPC)
    disk.poll()
    told = disk.start(OP_FLUSH, 0, 0)
    turn(disk, server, done(told))
    assert told.status == errno.ENOSPC
    again = disk.start(OP_FLUSH, 0, 0)
    turn(disk, server, done(again))
    assert again.status == 0
    disk.close()


def test_reads_under_way_are_asked_for_again(server: MortalServer) -> None:
    server.cache[:] = server.image[:] = bytes(range(SECTORS)) * 512
    disk = server.connect(reconnect_delay=60)
    reads = [disk.start(OP_READ, 512 * n, 512) for n in range(5)]
    server.read_requests()
    server.serve()
    disk.poll()
    assert server.socket is not None
    cookie = server.waiting[0][0]
    server.socket.sendall(b"\x67\x44\x66\x98" + bytes(4) + cookie.to_bytes(8, "big") + b"half")  # and then it dies
    disk.poll()
    server.crash()
    server.listen()
    turn(disk, server, done(*reads))
    assert [read.status for read in reads] == [0] * 5
    assert [read.data for read in reads] == [server.image[512 * n : 512 * n + 512] for n in range(5)]
    disk.close()


def test_who_gives_up_does_not_wait_for_a_lost_server(server: MortalServer) -> None:
    disk = server.connect(reconnect_delay=60)
    read = disk.start(OP_READ, 0, 512)
    server.crash()
    disk.give_up = lambda: True
    began = time.monotonic()
    disk.wait((read,))
    assert read.status == errno.EIO
    assert time.monotonic() - began < 2
    disk.close()


def test_who_sleeps_until_something_is_due_is_woken_when_that_has_changed(server: MortalServer) -> None:
    """Two look after a disk: one that sleeps as long as `check_patience` said, and one that polls in between. What the
    latter finds must not leave the former asleep until an hour that is long out of date.
    """
    disk = server.connect(reconnect_delay=60)
    read = disk.start(OP_READ, 0, 512)
    assert disk.check_patience() > 20
    assert not readable(disk)
    server.crash()
    while disk.connected:
        disk.poll()
    for _ in range(3):  # the server is lost; nobody answers; nobody answers once more
        assert readable(disk)
        disk.check_patience()
        while not readable(disk):
            disk.check_patience()
        disk.poll()
    assert disk.check_patience() < 1
    disk.start(OP_READ, 512, 512)  # it waits no longer than it may, whatever else was to be waited for
    assert readable(disk)
    server.listen()
    turn(disk, server, done(read))
    disk.close()


@pytest.mark.parametrize("moment", ["lost", "connecting", "back"])
def test_closing_at_any_moment(server: MortalServer, moment: str) -> None:
    disk = server.connect(reconnect_delay=60)
    write = disk.start(OP_WRITE, 0, 512, bytes(512))
    server.crash()
    if moment != "lost":
        server.listen()
    turn(disk, server, lambda: not disk.connected if moment != "back" else server.handshakes > 1, serves=False)
    disk.close()
    assert (write.left, write.status) == (0, errno.EIO)
    assert disk.fileno() == -1


def test_connecting_does_not_wait(tmp_path: Path) -> None:
    """A server that says nothing takes nobody's time but its thread's; one that is not there fails."""
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp_path / "silent"))
    silent.listen(1)
    began = time.monotonic()
    waits = Connector(NbdAddress(path=str(tmp_path / "silent")), readonly=False)
    fails = Connector(NbdAddress(path=str(tmp_path / "none")), readonly=False)
    assert time.monotonic() - began < 1
    while not fails.done:
        time.sleep(0.001)
    with pytest.raises(DeviceError, match="none: No such file or directory"):
        fails.take()
    assert not waits.done
    waits.abandon()
    silent.close()
