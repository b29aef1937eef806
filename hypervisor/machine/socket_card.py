"""The socket card: connections from outside, with DMA straight to and from machine frames (abi.device).

Who assembles the machine gives it a listening socket. Nothing here waits: `fileno` becomes readable when some socket is
ready for what the driver wants of it, and `poll` then carries on. Each socket is watched for edges, once for its whole
life, so a command costs no call besides the one that moves the data.
"""

from __future__ import annotations

import errno
import math
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import final

from hypervisor.abi import device as sheet
from hypervisor.errors import DeviceError
from hypervisor.machine.machine import Machine
from hypervisor.machine.memory import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

U32 = 0xFFFFFFFF

COMMAND = sheet.socket_command.codec
SEGMENT = sheet.socket_segment.codec
COMMAND_SIZE, SEGMENT_SIZE = COMMAND.size, SEGMENT.size
QUEUE_LENGTH = sheet.SOCKET_QUEUE_LENGTH
SLOT_MASK = QUEUE_LENGTH - 1
COMPLETION_SHIFT = 3
COMPLETION_MASK = sheet.SOCKET_COMPLETION_SLOTS - 1
FIRST_COMPLETION = sheet.SOCKET_COMPLETIONS_OFFSET >> COMPLETION_SHIFT
assert not QUEUE_LENGTH & SLOT_MASK
assert not sheet.SOCKET_COMPLETION_SLOTS & COMPLETION_MASK
assert (sheet.socket_completion.size, sheet.socket_completion.offset("status")) == (1 << COMPLETION_SHIFT, 4)

KNOWN_TABLES = 1024
"""Segment tables whose meaning is remembered."""
QUIET_NS = 20_000
"""Who has not said anything for this time does not go on ..."""
AMID = 64 << 10
AMID_NS = 80_000
"""... but where the driver wants so much, and as much is missing, the other side is in the middle of something: it has
this much time."""
PATIENCE_NS = 1_000_000
"""Who goes on and on is not listened to for longer than this at a time: others have something to say, too."""
RARELY = 15
"""Receives for which somebody who did not go on is not waited for."""
SOCKET_BUFFER = 4 << 20
"""What is asked of Linux for each direction of a connection; it gives what it allows."""

Runs = list[tuple[int, int]]
"""First frame and number of frames."""
Reach = Callable[[int, int], bool]
"""`reach(first, count)`: whether the card may access these frames now."""
Gathered = tuple[list[memoryview], Runs]


@final
class _Transfer:
    """A receive or a send under way."""

    __slots__ = ("done", "ident", "minimum", "runs", "views", "wants_much")

    def __init__(self, ident: int, minimum: int, views: list[memoryview], runs: Runs) -> None:
        self.ident = ident
        self.minimum = minimum
        self.views = views
        """What is still to be filled or sent."""
        self.runs = runs
        self.done = 0
        self.wants_much = not minimum or minimum >= AMID

    def pause(self) -> int:
        """Return how long the other side may say nothing, in nanoseconds, and still be waited for."""
        much = self.wants_much and self.views and len(self.views[0]) >= AMID
        return AMID_NS if much else QUIET_NS

    def advance(self, size: int) -> None:
        """Strike off the first `size` bytes."""
        self.done += size
        views = self.views
        if len(views) == 1:
            self.views = [views[0][size:]] if size < len(views[0]) else []
            return
        gone = 0
        while gone < len(views) and size >= len(views[gone]):
            size -= len(views[gone])
            gone += 1
        self.views = views = views[gone:]
        if size:
            views[0] = views[0][size:]


@final
class _Connection:
    __slots__ = ("number", "receives", "sends", "skip", "socket")

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.skip = 0
        """How many receives are not to wait for more (`SocketCard._linger`)."""
        self.number = number
        self.socket = sock
        self.receives: deque[_Transfer] = deque()
        self.sends: deque[_Transfer] = deque()


class SocketCard:
    """One unit. `listener` is its own from now on, and is closed with it.

    `reach(line)` is asked before each transfer what the card may access: None for everything, or a predicate.
    """

    def __init__(
        self,
        machine: Machine,
        unit: int,
        listener: socket.socket,
        *,
        reach: Callable[[int], Reach | None] = lambda line: None,
    ) -> None:
        if not 0 <= unit < sheet.SOCKET_UNITS:
            raise DeviceError(f"the machine has room for {sheet.SOCKET_UNITS} socket cards, not for card {unit}")
        self.machine = machine
        self._line = sheet.socket_irq(unit)
        machine.interrupts.plug_in(self._line)
        self._reach = reach
        self._allowed: Reach | None = None
        self._listener: socket.socket | None = listener
        listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLET)
        self._connections: dict[int, _Connection] = {}
        self._by_file: dict[int, _Connection] = {}
        self._next = 0
        self._accepts: deque[int] = deque()
        self._listening: list[_Connection] = []
        """Who is to receive when all commands of a doorbell have been begun."""
        self._under_way = 0
        self._completed = False
        self._command_base = self._completion_base = 0
        self._consumed = self._produced = 0
        self._known: dict[bytes, Gathered] = {}
        self._ports = machine.ports.map(
            sheet.socket_port(unit), sheet.SOCKET_PORT_COUNT, self._read_register, self._write_register
        )
        machine.ports.writers[self._ports.base + sheet.SOCKET_DOORBELL] = self._doorbell

    def fileno(self) -> int:
        """Return what is readable when `poll` has something to do; -1 after `unplug`."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    @property
    def busy(self) -> bool:
        """Whether somebody is connected."""
        return bool(self._connections)

    def patience(self) -> float:
        """Whoever is connected may be silent for as long as they like."""
        return math.inf

    def unplug(self) -> None:
        """Take the card out of the machine: everybody is hung up on, and nobody can connect any more."""
        self.reset()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
            self._epoll.close()
            self.machine.ports.unmap(self._ports)

    def reset(self) -> None:
        """Hang up on everybody and forget all commands."""
        self._accepts.clear()
        self._command_base = self._completion_base = 0
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._under_way = self._consumed = self._produced = 0
        self._completed = False

    # -- registers ------------------------------------------------------------------------------------------------

    def _read_register(self, port: int) -> int:
        return sheet.SOCKET_MAGIC if port - self._ports.base == sheet.SOCKET_ID else 0

    def _write_register(self, port: int, value: int) -> None:
        register = port - self._ports.base
        if register == sheet.SOCKET_COMMANDS:
            self._command_base = self._frame_base(value)
        elif register == sheet.SOCKET_COMPLETIONS:
            self._completion_base = self._frame_base(value)
        elif register == sheet.SOCKET_RESET:
            self.reset()

    def _frame_base(self, mfn: int) -> int:
        """Return the machine address of a queue's frame; 0 (no queue) if there is no such frame or no access to it."""
        reach = self._reach(self._line)
        if mfn >= self.machine.memory.frames or (reach is not None and not reach(mfn, 1)):
            return 0
        return mfn << PAGE_SHIFT

    # -- commands -------------------------------------------------------------------------------------------------

    def _doorbell(self, _port: int, producer: int) -> None:
        """Begin the commands up to the driver's producer index."""
        pending = producer - self._consumed & U32
        if not pending or pending > QUEUE_LENGTH or not self._may_run():
            return
        base, unpack, b = self._command_base, COMMAND.unpack_from, self.machine.memory.b
        for at in range(self._consumed, self._consumed + pending):
            op, _, nr_segments, ident, number, minimum, segments, _ = unpack(b, base + (at & SLOT_MASK) * COMMAND_SIZE)
            self._under_way += 1
            if self._under_way > QUEUE_LENGTH:
                self._complete(ident, -errno.EBUSY)
            else:
                self._begin(op, ident, number, minimum, nr_segments, segments)
        self._consumed = producer & U32
        while self._listening:
            self._receive(self._listening.pop())
        self._report()

    def _may_run(self) -> bool:
        """Whether there are queues, in memory that is the card's to use; `_allowed` is fresh then."""
        commands, completions = self._command_base, self._completion_base
        self._allowed = reach = self._reach(self._line)
        return bool(commands and completions) and (
            reach is None or (reach(commands >> PAGE_SHIFT, 1) and reach(completions >> PAGE_SHIFT, 1))
        )

    def _begin(self, op: int, ident: int, number: int, minimum: int, nr_segments: int, segments: int) -> None:
        connection = self._connections.get(number)
        if connection is None or not sheet.SOCKET_RECEIVE <= op <= sheet.SOCKET_SEND:
            self._begin_other(op, ident, number, connection)
            return
        gathered = self._gather(nr_segments, segments)
        if gathered is None:
            self._complete(ident, -errno.EFAULT)
            return
        views, runs = gathered
        transfer = _Transfer(ident, minimum, views, runs)
        if op == sheet.SOCKET_SEND:
            connection.sends.append(transfer)
            self._send(connection)
        else:
            connection.receives.append(transfer)
            self._listening.append(connection)

    def _begin_other(self, op: int, ident: int, number: int, connection: _Connection | None) -> None:
        """Begin what moves no data, or is of nobody's connection."""
        if op == sheet.SOCKET_ACCEPT:
            self._accepts.append(ident)
            self._accept()
        elif op == sheet.SOCKET_CLOSE and number == sheet.SOCKET_LISTENER:
            while self._accepts:
                self._complete(self._accepts.popleft(), -errno.ECANCELED)
            self._complete(ident, 0)
        elif connection is None:
            self._complete(ident, -errno.ENOTCONN)
        elif op == sheet.SOCKET_CLOSE:
            self._drop(connection)
            self._complete(ident, 0)
        else:
            self._complete(ident, -errno.EOPNOTSUPP)

    def _complete(self, ident: int, status: int) -> None:
        """Put an answer where the driver finds it; `_report` tells it."""
        self._under_way -= 1
        first = (self._completion_base >> COMPLETION_SHIFT) + FIRST_COMPLETION
        self.machine.memory.q[first + (self._produced & COMPLETION_MASK)] = (status & U32) << 32 | ident
        self._produced = self._produced + 1 & U32
        self._completed = True

    def _report(self) -> None:
        """Interrupt, once for all new answers, if the driver is not looking at them anyway."""
        if self._completed:
            self._completed = False
            base, memory = self._completion_base, self.machine.memory
            memory.i[base >> 2] = self._produced
            memory.written[base >> PAGE_SHIFT] = 1
            if not memory.i[base + sheet.SOCKET_HUSH_OFFSET >> 2]:
                self.machine.interrupts.raise_line(self._line)

    # -- the sockets ----------------------------------------------------------------------------------------------

    def poll(self) -> bool:
        """Carry on with all sockets that are ready; return whether there was one."""
        if self._epoll.closed:
            return False
        events = self._epoll.poll(0)
        if not events or not self._may_run():
            return False
        for file, _ in events:
            connection = self._by_file.get(file)
            if connection is None:
                self._accept()
                continue
            if connection.receives:
                self._receive(connection)
            if connection.sends:
                self._send(connection)
        self._report()
        return True

    def catch_up(self) -> bool:
        """Begin what the driver has not rung the doorbell for; return whether some of it is done.

        To be called when the processors have nothing to do, or now and then. A driver that wants to receive whatever
        comes leaves it at that: by then much has come, and one call brings all of it, instead of each word by itself
        while it is being said. If the driver rings its doorbell before, it is busy, so that is another such moment.
        """
        base = self._completion_base
        if not base:
            return False
        producer = self.machine.memory.i[base + sheet.SOCKET_PRODUCER_OFFSET >> 2]
        if producer == self._consumed:
            return False
        before = self._produced
        self._doorbell(0, producer)
        return self._produced != before

    def _accept(self) -> None:
        """Take connections as far as the driver wants them."""
        while self._accepts and self._listener is not None and len(self._connections) < sheet.SOCKET_CONNECTIONS:
            try:
                sock, _ = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except OSError:
                return  # nobody is there, or Linux has no room for another socket: the next one who comes tells
            sock.setblocking(False)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._next in self._connections:
                self._next = self._next + 1 & U32
            connection = _Connection(self._next, sock)
            self._next = (self._next + 1) & 0x7FFFFFFF
            self._connections[connection.number] = self._by_file[sock.fileno()] = connection
            self._epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            self._complete(self._accepts.popleft(), connection.number)

    def _drop(self, connection: _Connection) -> None:
        """Hang up; what was under way is answered."""
        sock = connection.socket
        del self._connections[connection.number]
        del self._by_file[sock.fileno()]
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        sock.close()
        if self._completion_base:
            for transfer in (*connection.receives, *connection.sends):
                self._complete(transfer.ident, -errno.ECANCELED)
        # The doorbell may be about to look at it.
        connection.receives.clear()
        connection.sends.clear()
        if self._accepts:
            self._accept()

    def _receive(self, connection: _Connection) -> None:
        receives, sock = connection.receives, connection.socket
        while receives:
            transfer = receives[0]
            status = self._receive_some(sock, transfer) if self._reaches(transfer.runs) else -errno.EFAULT
            if status is None:
                return
            if status > 0 and transfer.views and transfer.wants_much:
                status = self._linger(connection, transfer)
            receives.popleft()
            self._complete(transfer.ident, status)

    def _receive_some(self, sock: socket.socket, transfer: _Transfer) -> int | None:
        """Receive what there is; return the status when the command is done.

        Who is in the middle of it is waited for a little: that is less work than to come back.
        """
        now, deadline, end = time.monotonic_ns, 0, 0
        before, minimum = transfer.done, transfer.minimum
        status = None
        while True:
            views = transfer.views
            try:
                size = sock.recv_into(views[0]) if len(views) == 1 else sock.recvmsg_into(views)[0]
            except BlockingIOError:
                if not minimum:
                    status = transfer.done or -errno.EAGAIN
                elif now() < deadline:
                    continue
                break
            except OSError as error:
                status = -(error.errno or errno.EIO)
                break
            if size:
                transfer.advance(size)
            if not size or transfer.done >= minimum or not transfer.views:
                status = transfer.done
                break
            deadline = now() + transfer.pause()
            end = end or deadline + PATIENCE_NS
            deadline = min(deadline, end)
        if transfer.done > before:
            self._mark(transfer.runs)
        return status

    def _linger(self, connection: _Connection, transfer: _Transfer) -> int:
        """Wait for more, as long as the other side goes on speaking: an interrupt for each word would be too many.

        Whoever does not go on is asked less often. Returns the status of the command.
        """
        if connection.skip:
            connection.skip -= 1
            return transfer.done
        sock, now = connection.socket, time.monotonic_ns
        before = transfer.done
        deadline = now() + transfer.pause()
        end = deadline + PATIENCE_NS
        while transfer.views:
            try:
                size = sock.recvmsg_into(transfer.views)[0]
            except BlockingIOError:
                if now() > deadline:
                    break
                continue
            except OSError:
                break  # the next receive meets it, too
            if not size:
                break
            transfer.advance(size)
            deadline = min(now() + transfer.pause(), end)
        if transfer.done == before:
            connection.skip = RARELY
        else:
            self._mark(transfer.runs)
        return transfer.done

    def _send(self, connection: _Connection) -> None:
        sends, sock = connection.sends, connection.socket
        while sends:
            transfer = sends[0]
            status = self._send_some(sock, transfer) if self._reaches(transfer.runs) else -errno.EFAULT
            if status is None:
                return
            sends.popleft()
            self._complete(transfer.ident, status)

    @staticmethod
    def _send_some(sock: socket.socket, transfer: _Transfer) -> int | None:
        """Send what there is room for; return the status when the command is done. A reader is waited for a little."""
        now, deadline, end = time.monotonic_ns, 0, 0
        while transfer.views:
            try:
                views = transfer.views
                if len(views) == 1:
                    size = sock.send(views[0], socket.MSG_NOSIGNAL)
                else:
                    size = sock.sendmsg(views, (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if now() < deadline:
                    continue
                return None
            except OSError as error:
                return -(error.errno or errno.EIO)
            transfer.advance(size)
            if transfer.views:
                deadline = now() + transfer.pause()
                end = end or deadline + PATIENCE_NS
                deadline = min(deadline, end)
        return transfer.done

    # -- memory ---------------------------------------------------------------------------------------------------

    def _reaches(self, runs: Runs) -> bool:
        """Whether all these frames are the card's to use, now."""
        reach = self._allowed
        if reach is not None:
            for first, count in runs:
                if not reach(first, count):
                    return False
        return True

    def _mark(self, runs: Runs) -> None:
        written = self.machine.memory.written
        for first, count in runs:
            written[first : first + count] = b"\1" * count

    def _gather(self, count: int, table: int) -> Gathered | None:
        """Turn a segment table into views of memory; None if some address is not there."""
        b, reach = self.machine.memory.b, self._allowed
        size = count * SEGMENT_SIZE
        if (
            not 0 < size <= PAGE_SIZE - (table & PAGE_MASK)
            or table >= len(b)
            or (reach is not None and not reach(table >> PAGE_SHIFT, 1))
        ):
            return None
        raw = b[table : table + size].tobytes()
        gathered = self._known.get(raw)
        if gathered is None:
            gathered = self._parse(raw)
            if gathered is None:
                return None
            if len(self._known) >= KNOWN_TABLES:
                self._known.clear()
            self._known[raw] = gathered
        return gathered

    def _parse(self, raw: bytes) -> Gathered | None:
        """Return what a segment table means; None if some address is not there."""
        b = self.machine.memory.b
        limit = len(b)
        views: list[memoryview] = []
        runs: Runs = []
        for maddr, length in SEGMENT.iter_unpack(raw):
            end = maddr + length
            if not length or end > limit:
                return None
            views.append(b[maddr:end])
            first = maddr >> PAGE_SHIFT
            runs.append((first, (end - 1 >> PAGE_SHIFT) - first + 1))
        return views, runs
