"""The socket card by itself: its queue, its DMA, and what it may reach."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypervisor.abi import device as sheet
from hypervisor.machine.machine import Machine
from hypervisor.machine.socket_card import Reach, SocketCard

PAGE = 4096
COMMANDS, COMPLETIONS, TABLE, DATA = 16, 17, 18, 20
PORT = sheet.socket_port(0)


class Rig:
    """A machine with a card, and this test as its driver."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.machine = Machine(memory_mib=1)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(32)
        self.reach: Reach | None = None
        self.card = SocketCard(self.machine, 0, listener, reach=lambda line: self.reach)
        self.interrupts = 0
        self.produced = self.consumed = 0
        self.machine.interrupts.connect(sheet.socket_irq(0), self._interrupt)
        self.set_up()

    def _interrupt(self) -> None:
        self.interrupts += 1

    def set_up(self) -> None:
        self.produced = self.consumed = 0
        for register, value in (
            (sheet.SOCKET_RESET, 0),
            (sheet.SOCKET_COMMANDS, COMMANDS),
            (sheet.SOCKET_COMPLETIONS, COMPLETIONS),
        ):
            self.machine.ports.outl(PORT + register, value)

    def put(
        self,
        op: int,
        ident: int,
        connection: int = 0,
        segments: list[tuple[int, int]] | None = None,
        *,
        minimum: int = 1,
        table: int | None = None,
    ) -> None:
        memory = self.machine.memory
        address = (TABLE + ident % 2) * PAGE if table is None else table
        if segments and table is None:
            raw = b"".join(struct.pack("<QQ", *segment) for segment in segments)
            memory.b[address : address + len(raw)] = raw
        sheet.socket_command.codec.pack_into(
            memory.b,
            COMMANDS * PAGE + self.produced % sheet.SOCKET_QUEUE_LENGTH * sheet.socket_command.size,
            *(op, 0, len(segments or ()), ident, connection, minimum, address, 0),
        )
        self.produced += 1

    def leave_producer(self, index: int) -> None:
        """Say how many commands there are, without ringing the doorbell."""
        self.machine.memory.i[COMPLETIONS * PAGE + sheet.SOCKET_PRODUCER_OFFSET >> 2] = index & 0xFFFFFFFF

    def ring(self) -> list[tuple[int, int]]:
        """Ring the doorbell and return the new completions."""
        self.machine.ports.outl(PORT + sheet.SOCKET_DOORBELL, self.produced)
        return self.completions()

    def completions(self) -> list[tuple[int, int]]:
        memory = self.machine.memory
        found = []
        while self.consumed != memory.i[COMPLETIONS * PAGE >> 2]:
            at = COMPLETIONS * PAGE + 8 + self.consumed % sheet.SOCKET_COMPLETION_SLOTS * 8
            found.append(struct.unpack_from("<Ii", memory.b, at))
            self.consumed += 1
        return found

    def connect(self) -> tuple[socket.socket, int]:
        """Return a client's socket and the connection's number."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(str(self.path))
        self.put(sheet.SOCKET_ACCEPT, 99)
        ((ident, number),) = self.ring()
        assert ident == 99
        return client, number


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "s")
    yield rig
    rig.card.unplug()


def test_nobody_there_and_then_somebody(rig: Rig) -> None:
    rig.put(sheet.SOCKET_ACCEPT, 5)
    assert rig.ring() == []
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(rig.path))
        assert rig.card.poll()
        assert rig.completions() == [(5, 0)]
        assert rig.interrupts == 1
        assert rig.card.busy


def test_no_interrupt_for_a_driver_that_is_looking(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        words, hush = rig.machine.memory.i, COMPLETIONS * PAGE + sheet.SOCKET_HUSH_OFFSET >> 2
        before = rig.interrupts
        words[hush] = 1
        rig.put(sheet.SOCKET_SEND, 1, number, [(DATA * PAGE, 8)])
        assert rig.ring() == [(1, 8)]
        assert rig.interrupts == before
        words[hush] = 0
        rig.put(sheet.SOCKET_SEND, 2, number, [(DATA * PAGE, 8)])
        assert rig.ring() == [(2, 8)]
        assert rig.interrupts == before + 1


def test_receive_scatters_and_send_gathers(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        client.sendall(b"abcdefghij")
        rig.put(sheet.SOCKET_RECEIVE, 1, number, [(DATA * PAGE + 4090, 4), (DATA * PAGE + 8, 100)])
        assert rig.ring() == [(1, 10)]
        memory = rig.machine.memory
        assert bytes(memory.b[DATA * PAGE + 4090 : DATA * PAGE + 4094]) == b"abcd"
        assert bytes(memory.b[DATA * PAGE + 8 : DATA * PAGE + 14]) == b"efghij"
        assert memory.written[DATA] == 1
        rig.put(sheet.SOCKET_SEND, 2, number, [(DATA * PAGE + 8, 6), (DATA * PAGE + 4090, 4)])
        assert rig.ring() == [(2, 10)]
        assert client.recv(100) == b"efghijabcd"


def test_a_receive_waits_for_its_minimum_and_the_next_one_for_its_turn(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        rig.put(sheet.SOCKET_RECEIVE, 1, number, [(DATA * PAGE, 8)], minimum=8)
        rig.put(sheet.SOCKET_RECEIVE, 2, number, [(DATA * PAGE + 100, 8)])
        client.sendall(b"1234")
        assert rig.ring() == []
        client.sendall(b"5678x")
        rig.card.poll()
        assert rig.completions() == [(1, 8), (2, 1)]
        rig.put(sheet.SOCKET_RECEIVE, 3, number, [(DATA * PAGE, 8)], minimum=0)
        assert rig.ring() == [(3, -errno.EAGAIN)]
        client.sendall(b"yz")
        client.shutdown(socket.SHUT_WR)
        rig.put(sheet.SOCKET_RECEIVE, 4, number, [(DATA * PAGE, 8)], minimum=8)
        assert rig.ring() == [(4, 2)]
        rig.put(sheet.SOCKET_RECEIVE, 5, number, [(DATA * PAGE, 8)], minimum=8)
        assert rig.ring() == [(5, 0)]


class Dribbler:
    """A socket whose other side never stops to send or take a byte, one at a time, with a short pause after each.

    Nobody waits for these pauses: a clock that is asked for the time moves on by a microsecond.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.moved = 0
        self.pause = False
        monkeypatch.setattr(time, "monotonic_ns", self._tick)

    def _tick(self) -> int:
        self.now += 1000
        return self.now

    def _byte(self) -> int:
        self.pause = not self.pause
        if self.pause:
            raise BlockingIOError
        self.moved += 1
        return 1

    def recv_into(self, view: memoryview) -> int:
        return self._byte()

    def recvmsg_into(self, views: list[memoryview]) -> tuple[int]:
        return (self._byte(),)

    def send(self, view: memoryview, _flags: int) -> int:
        return self._byte()


@pytest.mark.parametrize(("op", "minimum"), [(sheet.SOCKET_RECEIVE, 4096), (sheet.SOCKET_SEND, 1)])
def test_who_speaks_slowly_and_for_ever_is_left_alone_after_a_while(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, op: int, minimum: int
) -> None:
    client, number = rig.connect()
    with client:
        size = 1 << 19
        rig.put(op, 1, number, [(DATA * PAGE, size)], minimum=minimum)
        (connection,) = rig.card._connections.values()
        with monkeypatch.context() as patch:
            real, dribbler = connection.socket, Dribbler(patch)
            connection.socket = dribbler  # type: ignore[assignment]
            rig.ring()
            dribbler.pause = True
            rig.card._receive(connection)
            rig.card._send(connection)
            connection.socket = real
        # A millisecond, and so many bytes, and not all 2**19.
        assert 0 < dribbler.moved < 2500


def test_a_receive_of_what_is_there_goes_on_with_what_follows(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        rig.put(sheet.SOCKET_RECEIVE, 1, number, [(DATA * PAGE, 8)], minimum=0)
        assert rig.ring() == [(1, -errno.EAGAIN)]
        client.sendall(b"1234")
        rig.put(sheet.SOCKET_RECEIVE, 2, number, [(DATA * PAGE, 8)], minimum=0)
        assert rig.ring() == [(2, 4)]
        client.sendall(b"5678")
        rig.put(sheet.SOCKET_RECEIVE, 3, number, [(DATA * PAGE, 8)], minimum=1)
        assert rig.ring() == [(3, 4)]


def test_what_nobody_has_rung_for_is_begun_when_the_card_has_time(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        client.sendall(b"12345678")
        rig.put(sheet.SOCKET_RECEIVE, 1, number, [(DATA * PAGE, 8)], minimum=4)
        assert not rig.card.catch_up()
        rig.leave_producer(rig.produced)
        assert rig.completions() == []
        assert rig.card.catch_up()
        assert rig.completions() == [(1, 8)]
        assert not rig.card.catch_up()
        rig.put(sheet.SOCKET_RECEIVE, 2, number, [(DATA * PAGE, 8)], minimum=4)
        rig.leave_producer(rig.produced)
        assert not rig.card.catch_up()  # it is begun, and there is nothing to receive
        client.sendall(b"1234")
        assert rig.card.poll()
        assert rig.completions() == [(2, 4)]


def test_the_next_doorbell_is_for_what_nobody_has_rung_for_as_well(rig: Rig) -> None:
    """And what is to be sent goes out before anything is received, whatever their order."""
    client, number = rig.connect()
    with client:
        client.sendall(b"12345678")
        rig.put(sheet.SOCKET_RECEIVE, 1, number, [(DATA * PAGE, 8)], minimum=4)
        rig.leave_producer(rig.produced)
        rig.put(sheet.SOCKET_SEND, 2, number, [(DATA * PAGE + 8, 8)])
        rig.machine.ports.outl(PORT + sheet.SOCKET_DOORBELL, rig.produced)
        assert rig.completions() == [(2, 8), (1, 8)]
        assert client.recv(100) == bytes(8)
        rig.put(sheet.SOCKET_RECEIVE, 3, number, [(DATA * PAGE, 8)], minimum=4)
        rig.put(sheet.SOCKET_CLOSE, 4, number)
        rig.machine.ports.outl(PORT + sheet.SOCKET_DOORBELL, rig.produced)
        assert rig.completions() == [(3, -errno.ECANCELED), (4, 0)]


@pytest.mark.parametrize("ahead", [-1, sheet.SOCKET_QUEUE_LENGTH + 1, 1 << 31])
def test_a_producer_index_that_cannot_be_begins_nothing(rig: Rig, ahead: int) -> None:
    client, _ = rig.connect()
    with client:
        rig.leave_producer(rig.produced + ahead)
        assert not rig.card.catch_up()
        assert rig.completions() == []
    rig.leave_producer(rig.produced)


def test_the_card_looks_at_no_page_that_is_not_its_own_any_more(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        client.sendall(b"12345678")
        rig.put(sheet.SOCKET_RECEIVE, 1, number, [(DATA * PAGE, 8)])
        rig.leave_producer(rig.produced)
        rig.reach = lambda first, count: first != COMPLETIONS
        assert not rig.card.catch_up()
        rig.reach = None
        assert rig.card.catch_up()
        assert rig.completions() == [(1, 8)]


def test_a_send_waits_for_the_client_to_read(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        for ident in range(60):
            rig.put(sheet.SOCKET_SEND, ident, number, [(DATA * PAGE, 64 * PAGE)])
        assert len(rig.ring()) < 60
        size, done = 0, 0
        while size < 60 * 64 * PAGE:
            size += len(client.recv(1 << 20))
            rig.card.poll()
            done += len(rig.completions())
        assert rig.card._under_way == 0


def test_hanging_up_ends_what_is_under_way(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        rig.put(sheet.SOCKET_RECEIVE, 1, number, [(DATA * PAGE, 8)])
        rig.put(sheet.SOCKET_CLOSE, 2, number)
        assert rig.ring() == [(1, -errno.ECANCELED), (2, 0)]
        assert client.recv(1) == b""
        rig.put(sheet.SOCKET_RECEIVE, 3, number, [(DATA * PAGE, 8)])
        assert rig.ring() == [(3, -errno.ENOTCONN)]


def test_withdrawing_accepts(rig: Rig) -> None:
    rig.put(sheet.SOCKET_ACCEPT, 1)
    rig.put(sheet.SOCKET_CLOSE, 2, sheet.SOCKET_LISTENER)
    assert rig.ring() == [(1, -errno.ECANCELED), (2, 0)]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(rig.path))
        rig.card.poll()
        assert not rig.card.busy


@pytest.mark.parametrize(
    ("segments", "table"),
    [
        ([(1 << 20, 1)], None),
        ([((1 << 20) - 1, 2)], None),
        ([(DATA * PAGE, 0)], None),
        ([((1 << 64) - 1, (1 << 64) - 1)], None),
        ([(DATA * PAGE, 8)], 1 << 40),
        ([(DATA * PAGE, 8)] * 2, TABLE * PAGE + 4080),
        ([], None),
        ([(DATA * PAGE, 8)] * 300, TABLE * PAGE),
    ],
    ids=["beyond", "over the end", "empty", "wraps", "no table", "table over a page", "none", "too many"],
)
def test_memory_that_is_not_there(rig: Rig, segments: list[tuple[int, int]], table: int | None) -> None:
    client, number = rig.connect()
    with client:
        client.sendall(b"data")
        for op in (sheet.SOCKET_RECEIVE, sheet.SOCKET_SEND):
            rig.put(op, 1, number, segments, table=table)
            assert rig.ring() == [(1, -errno.EFAULT)]


def test_memory_of_others_is_out_of_reach_at_the_time_of_the_transfer(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        mine = set(range(16, 22))
        rig.reach = lambda first, count: mine.issuperset(range(first, first + count))
        rig.put(sheet.SOCKET_SEND, 1, number, [(30 * PAGE, 8)])
        assert rig.ring() == [(1, -errno.EFAULT)]
        rig.put(sheet.SOCKET_RECEIVE, 2, number, [(DATA * PAGE, 8)])
        assert rig.ring() == []
        mine.discard(DATA)
        client.sendall(b"secret")
        rig.card.poll()
        assert rig.completions() == [(2, -errno.EFAULT)]
        assert bytes(rig.machine.memory.b[DATA * PAGE : DATA * PAGE + 6]) == bytes(6)
        mine.clear()
        rig.put(sheet.SOCKET_SEND, 3, number, [(DATA * PAGE, 8)])
        assert rig.ring() == [], "its queues are not its own any more"


def test_more_commands_than_there_is_room_for(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        for ident in range(sheet.SOCKET_QUEUE_LENGTH):
            rig.put(sheet.SOCKET_RECEIVE, ident, number, [(DATA * PAGE, 8)])
        assert rig.ring() == []
        rig.put(sheet.SOCKET_RECEIVE, 500, number, [(DATA * PAGE, 8)])
        rig.put(77, 501)
        assert rig.ring() == [(500, -errno.EBUSY), (501, -errno.EBUSY)]
        rig.machine.ports.outl(PORT + sheet.SOCKET_DOORBELL, rig.produced + 1000)
        assert rig.completions() == []


def test_a_reset_forgets_everything(rig: Rig) -> None:
    client, number = rig.connect()
    with client:
        rig.put(sheet.SOCKET_RECEIVE, 1, number, [(DATA * PAGE, 8)])
        rig.put(sheet.SOCKET_ACCEPT, 2)
        assert rig.ring() == []
        rig.set_up()
        assert client.recv(1) == b""
        assert not rig.card.busy
    other, number = rig.connect()
    with other:
        other.sendall(b"x")
        rig.put(sheet.SOCKET_RECEIVE, 3, number, [(DATA * PAGE, 8)])
        assert rig.ring() == [(3, 1)]


def test_an_unplugged_card_is_not_there(rig: Rig) -> None:
    rig.card.unplug()
    assert rig.machine.ports.inl(PORT) == 0xFFFFFFFF
    assert rig.card.fileno() == -1
    assert not rig.card.poll()
