"""A disk whose sectors are at an NBD server: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.

Requests go out as they come, many on one connection, and simple replies come back in any order. Nothing here waits but
`wait`. A server may execute what is under way in any order, or at once; so that a disk reads the same each time, a
request that touches what an earlier one changes (or changes what an earlier one reads) is kept back until that has been
answered, and all after it as well.

A server that is gone, wrong, or says nothing for `TIMEOUT` seconds while something is asked of it makes a dead disk:
all that is under way fails with EIO, and so does all that comes later. It is not connected to again: what it had not
flushed may be lost, and no later flush could tell.
"""

from __future__ import annotations

import errno
import select
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from struct import Struct
from typing import final

from hypervisor.errors import DeviceError
from hypervisor.machine.backing import LARGEST_SECTOR, Pending, RemoteBacking
from hypervisor.machine.nbd_address import PATIENCE, NbdAddress
from hypervisor.machine.nbd_handshake import (
    FLAG_READ_ONLY,
    FLAG_SEND_FLUSH,
    FLAG_SEND_WRITE_ZEROES,
    BrokenServer,
    negotiate,
)

TIMEOUT = 30.0
"""Seconds without any reply after which nothing more is expected."""
LOOK_UP = 0.1
"""Seconds between two questions, during `wait`, whether anybody still wants to."""
GOODBYE = 1.0
"""Seconds that a server may take to hear that the connection ends."""
BUFFER = 256 << 10
"""Bytes that are received at one go, unless they are all of one read."""
MAX_PIECES = 128
"""Pieces that are sent at one go."""

REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 0, 1, 2, 3, 6
COMMANDS = {
    RemoteBacking.READ: READ,
    RemoteBacking.WRITE: WRITE,
    RemoteBacking.FLUSH: FLUSH,
    RemoteBacking.DISCARD: WRITE_ZEROES,
}
"""A discard has the server write zeroes, which it may do by making a hole."""

_REQUEST = Struct(">IHHQQI")
_REPLY = Struct(">IIQ")
_KNOWN_ERRORS = {errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOPNOTSUPP}


@final
class _Part:
    """One request on the wire."""

    __slots__ = ("command", "data", "end", "into", "offset", "pending")

    def __init__(self, pending: Pending, command: int, offset: int, size: int) -> None:
        self.pending = pending
        self.command = command
        self.offset = offset
        self.end = offset + size
        self.data: memoryview | None = None
        self.into: memoryview | None = None

    def conflicts(self, other: _Part) -> bool:
        """Whether it matters which of the two is first."""
        return self.offset < other.end and other.offset < self.end and not self.command == other.command == READ


@final
class NbdDisk(RemoteBacking):
    """An export of an NBD server."""

    def __init__(self, address: NbdAddress, *, readonly: bool) -> None:
        """Connect. Raises DeviceError."""
        self.address = address
        deadline = time.monotonic() + PATIENCE
        try:
            self._socket = address.connect(PATIENCE)
        except OSError as error:
            raise DeviceError(f"{address}: {error.strerror or error}") from None
        try:
            export = negotiate(self._socket, address.export, deadline)
            if not readonly and export.flags & FLAG_READ_ONLY:
                raise BrokenServer("the export is read-only, and the disk is to be written")
            if export.block > LARGEST_SECTOR:
                raise BrokenServer(
                    f"the server wants whole blocks of {export.block} bytes, more than a sector can have"
                )
        except (OSError, BrokenServer) as error:
            self._socket.close()
            raise DeviceError(f"{address}: {error}") from None
        self.size = export.size
        self.sector_size = self.physical_sector_size = max(export.block, self.sector_size)
        self.readonly = readonly
        self.discards = not readonly and bool(export.flags & FLAG_SEND_WRITE_ZEROES)
        self._flushes = bool(export.flags & FLAG_SEND_FLUSH)
        self._most = export.most
        self._socket.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._socket, select.EPOLLIN)
        self._full = False
        """Whether the connection takes no more for the moment."""
        self._dead = False
        self._cookie = 0
        self._under_way: dict[int, _Part] = {}
        self._changes = 0
        """How many of these are no reads."""
        self._kept_back: deque[_Part] = deque()
        self._outbox: deque[memoryview] = deque()
        self._inbox = memoryview(bytearray(BUFFER))
        self._have = 0
        self._reading: _Part | None = None
        """Whose data comes next, and where it goes (`_rest`)."""
        self._rest = memoryview(b"")
        self._heard = 0.0
        """When the server has last shown that it works, or been asked after it had nothing to do."""

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return bool(self._under_way) or self._reading is not None

    def fileno(self) -> int:
        """Return what is readable when `poll` has something to do; -1 after `close`."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def close(self) -> None:
        """Say goodbye, unless a request is only half sent: the server would take that for the rest of it."""
        if not self._dead:
            try:
                if not self._outbox:
                    self._socket.settimeout(GOODBYE)
                    self._socket.sendall(_REQUEST.pack(REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
            except OSError:
                pass  # it is gone anyway, which does not matter any more
            self._die()
        self._epoll.close()

    # -- requests -------------------------------------------------------------------------------------------------

    def start(self, op: int, offset: int, size: int, data: bytes = b"") -> Pending:
        """Send a request, in as many parts as the server's largest request makes it."""
        pending = Pending(bytearray(size) if op == self.READ else None)
        if self._dead:
            pending.status = errno.EIO
            return pending
        if op == self.FLUSH and not self._flushes:
            return pending  # it keeps nothing back
        step = min(self._most, size) or 1
        for at in range(0, size or 1, step):
            part = _Part(pending, COMMANDS[op], offset + at, min(step, size - at))
            if op == self.READ:
                part.into = memoryview(pending.data)[at : at + step]  # type: ignore[arg-type]
            elif op == self.WRITE:
                part.data = memoryview(data)[at : at + step]
            pending.left += 1
            if self._kept_back or self._must_wait(part):
                self._kept_back.append(part)
            else:
                self._send(part)
        self._transmit()
        return pending

    def _must_wait(self, part: _Part) -> bool:
        if part.command == READ and not self._changes:
            return False
        return any(map(part.conflicts, self._under_way.values()))

    def _send(self, part: _Part) -> None:
        if not self.busy:
            self._heard = time.monotonic()
        self._cookie += 1
        self._under_way[self._cookie] = part
        self._changes += part.command != READ
        size = part.end - part.offset
        header = _REQUEST.pack(REQUEST_MAGIC, 0, part.command, self._cookie, part.offset, size)
        self._outbox.append(memoryview(header))
        if part.data is not None:
            self._outbox.append(part.data)

    def _transmit(self) -> None:
        """Send what waits, as far as the connection takes it."""
        outbox = self._outbox
        try:
            while outbox:
                _skip(outbox, self._socket.sendmsg(list(islice(outbox, MAX_PIECES))))
        except BlockingIOError:
            pass
        except OSError:
            self._die()
            return
        if bool(outbox) != self._full:
            self._full = bool(outbox)
            self._epoll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if self._full else 0))

    # -- replies --------------------------------------------------------------------------------------------------

    def poll(self) -> bool:
        """Take what has been answered, and send what waits."""
        if self._dead:
            return False
        if self._full:
            self._transmit()
        return self._receive()

    def wait(self, requests: Sequence[Pending]) -> None:
        """Wait until these have been answered; with EIO if there is nothing for `TIMEOUT` seconds, or `give_up`."""
        while any(request.left for request in requests):
            if self.poll():
                continue
            if self.give_up():
                self._die()
            elif not self._dead:
                self._epoll.poll(min(self.check_patience(), LOOK_UP))

    def check_patience(self) -> float:
        """Give the server up if it has said nothing for too long; return the seconds that it has left."""
        if not self.busy:
            return TIMEOUT
        left = self._heard + TIMEOUT - time.monotonic()
        if left <= 0:
            self._die()
            return 0.0
        return left

    def _receive(self) -> bool:
        """Take what has come; return whether something has."""
        received = 0
        try:
            while not self._dead:
                count = self._socket.recv_into(self._rest or self._inbox[self._have :])
                if not count:
                    raise BrokenServer("the server has closed the connection")
                received += count
                if self._rest:
                    self._rest = self._rest[count:]
                    if not self._rest:
                        self._finish_read()
                else:
                    self._have += count
                    self._parse()
        except BlockingIOError:
            pass
        except (OSError, BrokenServer):
            # What comes next on the connection could be anything.
            self._die()
            return True
        if received:
            self._heard = time.monotonic()
        if self._kept_back:
            self._send_kept_back()
        return received > 0

    def _parse(self) -> None:
        """Go through the replies in the inbox. Raises BrokenServer."""
        inbox, have, at = self._inbox, self._have, 0
        while have - at >= _REPLY.size:
            magic, error, cookie = _REPLY.unpack_from(inbox, at)
            at += _REPLY.size
            part = self._under_way.get(cookie)
            if magic != REPLY_MAGIC or part is None:
                raise BrokenServer("the reply belongs to no request")
            del self._under_way[cookie]
            into = part.into
            if error or into is None:
                self._finish(part, error)
                continue
            here = min(have - at, len(into))
            into[:here] = inbox[at : at + here]
            at += here
            self._reading, self._rest = part, into[here:]
            if self._rest:
                break
            self._finish_read()
        inbox[: have - at] = bytes(inbox[at:have])
        self._have = have - at

    def _finish_read(self) -> None:
        part, self._reading = self._reading, None
        assert part is not None
        self._finish(part, 0)

    def _finish(self, part: _Part, error: int) -> None:
        pending = part.pending
        if error and not pending.status:
            pending.status = error if error in _KNOWN_ERRORS else errno.EIO
        pending.left -= 1
        self._changes -= part.command != READ

    def _send_kept_back(self) -> None:
        waiting = self._kept_back
        while waiting and not self._must_wait(waiting[0]):
            self._send(waiting.popleft())
        self._transmit()

    def _die(self) -> None:
        """Hang up. Everything that has not been answered fails."""
        if self._dead:
            return
        self._dead = True
        self._epoll.unregister(self._socket)
        self._socket.close()
        lost = [*self._under_way.values(), *self._kept_back]
        if self._reading is not None:
            lost.append(self._reading)
        self._under_way.clear()
        self._kept_back.clear()
        self._outbox.clear()
        self._reading, self._rest = None, memoryview(b"")
        for part in lost:
            self._finish(part, errno.EIO)


def _skip(pieces: deque[memoryview], count: int) -> None:
    """Take `count` bytes off the front of the pieces."""
    while pieces and count >= len(pieces[0]):
        count -= len(pieces.popleft())
    if count:
        pieces[0] = pieces[0][count:]
