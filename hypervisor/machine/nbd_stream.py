"""One connection to an NBD server, after the handshake: requests out, simple replies in, in any order.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, "Transmission phase".
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from struct import Struct
from typing import final

from hypervisor.machine.backing import Pending
from hypervisor.machine.nbd_handshake import BrokenServer

BUFFER = 256 << 10
"""Bytes that are received at one go, unless they are all of one read."""
MAX_PIECES = 128
"""Pieces that are sent at one go."""

REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 0, 1, 2, 3, 6

_REQUEST = Struct(">IHHQQI")
_REPLY = Struct(">IIQ")


@final
class Part:
    """One request on the wire."""

    __slots__ = ("again", "command", "data", "end", "into", "lost_at", "mark", "offset", "pending")

    def __init__(self, pending: Pending, command: int, offset: int, size: int) -> None:
        self.pending = pending
        self.command = command
        self.offset = offset
        self.end = offset + size
        self.data: memoryview | None = None
        self.into: memoryview | None = None
        self.lost_at = 0.0
        """When a connection was first lost before this was answered; 0 if none was."""
        self.again = False
        """Whether it was answered before, and is only said again to a server that may have forgotten it."""
        self.mark = 0
        """Of a flush: up to where the journal is safe once it is answered."""

    def conflicts(self, other: Part) -> bool:
        """Whether it matters which of the two is first."""
        return self.offset < other.end and other.offset < self.end and not self.command == other.command == READ

    def repeated(self) -> Part:
        """Return the same change, to be made once more; nobody waits for it."""
        part = Part(Pending(), self.command, self.offset, self.end - self.offset)
        part.data, part.again = self.data, True
        part.pending.left = 1
        return part


@final
class Stream:
    """A connection, for as long as it lasts. Methods raise OSError and BrokenServer; then it is of no use any more."""

    def __init__(self, connection: socket.socket, epoll: select.epoll) -> None:
        """Speak on a connection that does not block, and have `epoll` readable when there is something to do."""
        self._socket = connection
        self._epoll = epoll
        epoll.register(connection, select.EPOLLIN)
        self.full = False
        """Whether the connection takes no more for the moment."""
        self._cookie = 0
        self._under_way: dict[int, Part] = {}
        self._outbox: deque[memoryview] = deque()
        self._inbox = memoryview(bytearray(BUFFER))
        self._have = 0
        self._reading: Part | None = None
        """Whose data comes next, and where it goes (`_rest`)."""
        self._rest = memoryview(b"")

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return bool(self._under_way) or self._reading is not None

    def parts(self) -> Iterator[Part]:
        """Go through what is under way, in the order in which it was sent."""
        if self._reading is not None:
            yield self._reading
        yield from self._under_way.values()

    def conflicts(self, part: Part) -> bool:
        """Whether a request has to wait for one that has been sent. (One whose data is just coming is executed.)"""
        return any(map(part.conflicts, self._under_way.values()))

    def send(self, part: Part) -> None:
        """Have a request go out with the next `transmit`."""
        self._cookie += 1
        self._under_way[self._cookie] = part
        size = part.end - part.offset
        self._outbox.append(memoryview(_REQUEST.pack(REQUEST_MAGIC, 0, part.command, self._cookie, part.offset, size)))
        if part.data is not None:
            self._outbox.append(part.data)

    def transmit(self) -> None:
        """Send what waits, as far as the connection takes it."""
        outbox = self._outbox
        try:
            while outbox:
                _skip(outbox, self._socket.sendmsg(list(islice(outbox, MAX_PIECES))))
        except BlockingIOError:
            pass
        if bool(outbox) != self.full:
            self.full = bool(outbox)
            self._epoll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if self.full else 0))

    def receive(self, finish: Callable[[Part, int], None]) -> bool:
        """Take what has come, and have each request finished with its error or 0; return whether something has."""
        received = False
        try:
            while True:
                count = self._socket.recv_into(self._rest or self._inbox[self._have :])
                if not count:
                    raise BrokenServer("the server has closed the connection")
                received = True
                if self._rest:
                    self._rest = self._rest[count:]
                    if not self._rest:
                        self._finish_read(finish)
                else:
                    self._have += count
                    self._parse(finish)
        except BlockingIOError:
            return received

    def _parse(self, finish: Callable[[Part, int], None]) -> None:
        """Go through the replies in the inbox."""
        inbox, have, at = self._inbox, self._have, 0
        while have - at >= _REPLY.size:
            magic, error, cookie = _REPLY.unpack_from(inbox, at)
            at += _REPLY.size
            part = self._under_way.get(cookie)
            if magic != REPLY_MAGIC or part is None:
                # What comes next on the connection could be anything.
                raise BrokenServer("the reply belongs to no request")
            del self._under_way[cookie]
            into = part.into
            if error or into is None:
                finish(part, error)
                continue
            here = min(have - at, len(into))
            into[:here] = inbox[at : at + here]
            at += here
            self._reading, self._rest = part, into[here:]
            if self._rest:
                break
            self._finish_read(finish)
        inbox[: have - at] = bytes(inbox[at:have])
        self._have = have - at

    def _finish_read(self, finish: Callable[[Part, int], None]) -> None:
        part, self._reading = self._reading, None
        assert part is not None
        finish(part, 0)

    def say_goodbye(self) -> None:
        """Tell the server, unless a request is only half sent: it would take that for the rest of it."""
        if not self._outbox:
            self._socket.send(_REQUEST.pack(REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))

    def close(self) -> None:
        """Hang up."""
        self._epoll.unregister(self._socket)
        self._socket.close()


def _skip(pieces: deque[memoryview], count: int) -> None:
    """Take `count` bytes off the front of the pieces."""
    while pieces and count >= len(pieces[0]):
        count -= len(pieces.popleft())
    if count:
        pieces[0] = pieces[0][count:]
