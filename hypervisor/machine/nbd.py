"""A disk whose sectors are at an NBD server: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.

Requests go out as they come, many on one connection, and simple replies come back in any order. Nothing here waits but
`wait`. A server may execute what is under way in any order, or at once; so that a disk reads the same each time, a
request that touches what an earlier one changes (or changes what an earlier one reads) is kept back until that has been
answered, and all after it as well.

A server is lost when it hangs up, talks nonsense, or says nothing for `TIMEOUT` seconds while something is asked of
it. Without a `reconnect_delay` that makes a dead disk: all that is under way fails with EIO, and all that comes later.

With one, the server is looked for, at once and then at intervals that grow. For so many seconds (QEMU's option of the
same name) requests wait; when the server is back it is first told again what it had acknowledged and not flushed
(`nbd_journal`), since its cache may have died with it, then what was under way, then the rest. Reads, writes and
discards may be done twice without harm: whatever could tell, waits. After that time requests fail with EIO at once, but
the search goes on, and what was acknowledged is still owed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import final

from hypervisor.errors import DeviceError
from hypervisor.machine.backing import Pending, RemoteBacking
from hypervisor.machine.nbd_address import PATIENCE, NbdAddress
from hypervisor.machine.nbd_connector import Connector, NbdConnection, connect
from hypervisor.machine.nbd_handshake import FLAG_SEND_FLUSH, FLAG_SEND_WRITE_ZEROES, BrokenServer, Export
from hypervisor.machine.nbd_journal import Journal
from hypervisor.machine.nbd_stream import FLUSH, READ, WRITE, WRITE_ZEROES, Part, Stream

TIMEOUT = 30.0
"""Seconds without any reply after which nothing more is expected on a connection."""
LOOK_UP = 0.1
"""Seconds between two questions, during `wait`, whether anybody still wants to."""
FIRST_PAUSE, LAST_PAUSE = 0.1, 10.0
"""Seconds between attempts to connect again: each pause is twice the one before."""
JOURNAL_LIMIT = 32 << 20
"""Bytes of acknowledged changes after which the server is asked to flush, whether the guest wants that or not."""
JOURNAL_MOST = 2 * JOURNAL_LIMIT
"""Bytes after which further changes wait for that flush."""

COMMANDS = {
    RemoteBacking.READ: READ,
    RemoteBacking.WRITE: WRITE,
    RemoteBacking.FLUSH: FLUSH,
    RemoteBacking.DISCARD: WRITE_ZEROES,
}
"""A discard has the server write zeroes, which it may do by making a hole."""

_KNOWN_ERRORS = {errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOPNOTSUPP}


@final
class NbdDisk(RemoteBacking):
    """An export of an NBD server."""

    def __init__(
        self,
        address: NbdAddress,
        *,
        readonly: bool,
        reconnect_delay: float = 0,
        connection: NbdConnection | None = None,
    ) -> None:
        """Connect, unless there is a connection already. Raises DeviceError."""
        self.address = address
        self.reconnect_delay = reconnect_delay
        """For how many seconds requests wait for a server that was lost; with 0, nobody looks for it."""
        connection = connection or connect(address, readonly=readonly)
        export = connection.export
        self._export = export
        self.size = export.size
        self.sector_size = self.physical_sector_size = max(export.block, self.sector_size)
        self.readonly = readonly
        self.discards = not readonly and bool(export.flags & FLAG_SEND_WRITE_ZEROES)
        self._flushes = bool(export.flags & FLAG_SEND_FLUSH)
        self._most = export.most
        self._epoll = select.epoll()
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable while something is due at another time than `check_patience` said last."""
        self._epoll.register(self._news, select.EPOLLIN)
        self._stream: Stream | None = Stream(connection.socket, self._epoll)
        self._connector: Connector | None = None
        self._dead = False
        self._changes = 0
        """How many of what is under way are no reads."""
        self._kept_back: deque[Part] = deque()
        self._heard = 0.0
        """When the server has last shown that it works, or been asked after it had nothing to do."""
        self._journal = Journal() if reconnect_delay and self._flushes and not readonly else None
        self._repeats = 0
        """How many changes are under way, or kept back, that were acknowledged in an earlier connection."""
        self._own_flush: Pending | None = None
        self._flush_error = 0
        """What became of an own flush, for the guest's next one to tell."""
        self._lost_at = self._next_try = 0.0
        self._pause = FIRST_PAUSE

    @property
    def busy(self) -> bool:
        """Whether something is under way: a server that is lost is not expected to answer."""
        return self._stream is not None and self._stream.busy

    @property
    def connected(self) -> bool:
        """Whether there is a server at the moment."""
        return self._stream is not None

    def fileno(self) -> int:
        """Return what is readable when `poll` has something to do, or `check_patience`; -1 after `close`."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def close(self) -> None:
        """Say goodbye and hang up; what has not been answered fails."""
        if self._stream is not None:
            with contextlib.suppress(OSError):  # it may be gone, which does not matter any more
                self._stream.say_goodbye()
        self._die()
        self._epoll.close()
        os.close(self._news)

    # -- requests -------------------------------------------------------------------------------------------------

    def start(self, op: int, offset: int, size: int, data: bytes = b"") -> Pending:
        """Send a request, in as many parts as the server's largest request makes it."""
        pending = Pending(bytearray(size) if op == self.READ else None)
        if not self._may_wait():
            pending.status = errno.EIO
            return pending
        if op == self.FLUSH and not self._flushes:
            return pending  # it keeps nothing back
        step = min(self._most, size) or 1
        for at in range(0, size or 1, step):
            part = Part(pending, COMMANDS[op], offset + at, min(step, size - at))
            if op == self.READ:
                part.into = memoryview(pending.data)[at : at + step]  # type: ignore[arg-type]
            elif op == self.WRITE:
                part.data = memoryview(data)[at : at + step]
            pending.left += 1
            if self._kept_back or self._must_wait(part):
                self._kept_back.append(part)
            else:
                self._send(part)
        if self._stream is None:
            self._change_patience()
        self._transmit()
        return pending

    def _must_wait(self, part: Part) -> bool:
        stream = self._stream
        if stream is None:
            return True
        if part.command == READ and not self._changes:
            return False
        if part.command == FLUSH:
            # It would be answered for changes that the server has not heard of yet.
            return self._repeats > 0
        if self._journal is not None and self._journal.bytes > JOURNAL_MOST and part.command != READ and not part.again:
            # A flush is under way, or will be as soon as all is repeated: then there is room again.
            return True
        return stream.conflicts(part)

    def _send(self, part: Part) -> None:
        stream = self._stream
        assert stream is not None
        if not stream.busy:
            self._heard = time.monotonic()
        self._changes += part.command != READ
        if part.command == FLUSH and self._journal is not None:
            part.mark = self._journal.mark
        stream.send(part)

    def _transmit(self) -> None:
        if self._stream is not None:
            try:
                self._stream.transmit()
            except OSError as error:
                self._lose(error.strerror or str(error))

    # -- replies --------------------------------------------------------------------------------------------------

    def poll(self) -> bool:
        """Take what has been answered, and send what waits; take a new connection, if there is one."""
        if self._stream is None:
            return self._take_connection()
        if self._stream.full:
            self._transmit()
        return self._receive()

    def wait(self, requests: Sequence[Pending]) -> None:
        """Wait until these have been answered; with EIO if that takes too long, or if somebody says `give_up`."""
        while any(request.left for request in requests):
            if self.poll():
                continue
            if self.give_up():
                self._die()
            elif not self._dead:
                self._epoll.poll(min(self.check_patience(), LOOK_UP))

    def _change_patience(self) -> None:
        """Something is due earlier than whoever sleeps knows: `fileno` wakes them, until they have asked again.

        (Not only until somebody has polled: a host has two that do, and one of them does not sleep.)
        """
        os.eventfd_write(self._news, 1)

    def check_patience(self) -> float:
        """Do what is due by the clock; return in how many seconds something else may be."""
        with contextlib.suppress(BlockingIOError):  # nothing has changed
            os.eventfd_read(self._news)
        if self._dead:
            return TIMEOUT
        if self._stream is None:
            return self._look_for_server()
        if not self._stream.busy:
            return TIMEOUT
        left = self._heard + TIMEOUT - time.monotonic()
        if left <= 0:
            self._lose(f"it has said nothing for {TIMEOUT:g} seconds")
            return 0.0
        return left

    def _receive(self) -> bool:
        """Take what has come; return whether something has."""
        stream = self._stream
        if stream is None:
            return False
        try:
            received = stream.receive(self._finish)
        except OSError as error:
            self._lose(error.strerror or str(error))
            return True
        except BrokenServer as error:
            self._lose(str(error))
            return True
        if received:
            self._heard = time.monotonic()
            self._pause = FIRST_PAUSE
            if self._journal is not None and self._journal.bytes > JOURNAL_LIMIT:
                self._flush_journal()
        if self._kept_back:
            self._send_kept_back()
        return received

    def _finish(self, part: Part, error: int) -> None:
        """Note that a request was answered."""
        pending = part.pending
        if error and not pending.status:
            pending.status = error if error in _KNOWN_ERRORS else errno.EIO
        self._changes -= part.command != READ
        pending.left -= 1
        if self._journal is not None and part.command != READ:
            self._note_change(self._journal, part, error)

    def _note_change(self, journal: Journal, part: Part, error: int) -> None:
        """Keep account of what the server may still forget."""
        if part.again:
            self._repeats -= 1
            if error:
                # It was acknowledged once, so this is not for who wrote it any more but for whoever flushes next.
                self._flush_error = self._flush_error or part.pending.status
        elif part.command != FLUSH:
            if not error:
                journal.note(part)
        elif not error:
            journal.forget(part.mark)
            if part.pending is not self._own_flush:
                part.pending.status, self._flush_error = part.pending.status or self._flush_error, 0
        elif part.pending is self._own_flush:
            self._flush_error = self._flush_error or part.pending.status
            journal.forget(part.mark)

    def _flush_journal(self) -> None:
        """Have the server flush, so that the journal becomes shorter."""
        if (self._own_flush is not None and self._own_flush.left) or self._repeats or self._stream is None:
            return
        self._own_flush = Pending()
        self._own_flush.left = 1
        self._send(Part(self._own_flush, FLUSH, 0, 0))
        self._transmit()

    def _send_kept_back(self) -> None:
        waiting = self._kept_back
        while waiting and not self._must_wait(waiting[0]):
            self._send(waiting.popleft())
        self._transmit()

    # -- a server that is lost ------------------------------------------------------------------------------------

    def _lose(self, why: str) -> None:
        """Hang up, and keep what has not been answered for the next connection, if there is to be one."""
        stream, self._stream = self._stream, None
        assert stream is not None
        stream.close()
        self._changes = 0
        owed = [part for part in (*stream.parts(), *self._kept_back) if not part.again]
        self._repeats = 0
        self._kept_back.clear()
        if not self.reconnect_delay:
            self._dead = True
            self._fail(owed)
            self.report(f"{self.address}: {why}; its disk is dead")
            return
        now = time.monotonic()
        self.report(f"{self.address}: {why}; looking for it, for {self.reconnect_delay:g} s until requests fail")
        self._lost_at, self._next_try = now, now
        if self._pause > FIRST_PAUSE:
            # The last connection has brought nothing.
            self._next_try += self._pause
        for part in owed:
            part.lost_at = part.lost_at or now
            if part.lost_at + self.reconnect_delay <= now:
                self._fail((part,))
            elif part.pending is self._own_flush:
                self._own_flush = None
            else:
                self._kept_back.append(part)
        self._look_for_server()
        self._change_patience()

    def _may_wait(self) -> bool:
        """Whether there is a server, or one may be expected soon enough."""
        if self._stream is not None:
            return True
        if self._dead:
            return False
        self._take_connection()
        return self._stream is not None or time.monotonic() < self._lost_at + self.reconnect_delay

    def _look_for_server(self) -> float:
        """Begin an attempt to connect if it is time for one; return in how many seconds there is something to do."""
        now = time.monotonic()
        limit = self._lost_at + self.reconnect_delay
        if self._kept_back and now >= limit:
            waiting = list(self._kept_back)
            self._kept_back.clear()
            self._fail(waiting)
            self.report(
                f"{self.address}: it has been away for {self.reconnect_delay:g} s; until it is back requests fail"
            )
        if self._connector is None and now >= self._next_try:
            self._connector = Connector(self.address, readonly=self.readonly)
            self._epoll.register(self._connector, select.EPOLLIN)
        until = PATIENCE if self._connector is not None else self._next_try - now
        return min(until, limit - now) if self._kept_back else until

    def _take_connection(self) -> bool:
        """Go on with the server if it is back; return whether it is, or whether requests have failed instead."""
        connector = self._connector
        if self._dead:
            return False
        if connector is None or not connector.done:
            waited = bool(self._kept_back)
            self._look_for_server()
            return waited and not self._kept_back
        self._epoll.unregister(connector)
        self._connector = None
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LAST_PAUSE)
        self._change_patience()
        try:
            connection = connector.take()
        except DeviceError:
            return False
        changed = _change_of(self._export, connection.export)
        if changed:
            connection.socket.close()
            self.report(f"{self.address}: {changed}, so it is not the same disk")
            return False
        self._stream = Stream(connection.socket, self._epoll)
        repeats = [] if self._journal is None else [change.repeated() for change in self._journal]
        self._repeats = len(repeats)
        self._kept_back.extendleft(reversed(repeats))
        self.report(f"{self.address}: it is back; {len(self._kept_back)} requests go to it (again)")
        self._send_kept_back()
        return True

    def _fail(self, parts: Sequence[Part]) -> None:
        for part in parts:
            part.pending.status = part.pending.status or errno.EIO
            part.pending.left -= 1

    def _die(self) -> None:
        """Hang up for good. Everything that has not been answered fails."""
        self._dead = True
        if self._connector is not None:
            self._epoll.unregister(self._connector)
            self._connector.abandon()
            self._connector = None
        lost = list(self._kept_back)
        self._kept_back.clear()
        if self._stream is not None:
            lost = [*self._stream.parts(), *lost]
            self._stream.close()
            self._stream = None
        self._fail(lost)


def _change_of(before: Export, now: Export) -> str:
    """Return what is different about an export so that it cannot take the place of the other; nothing if nothing is."""
    if before.size != now.size:
        return f"it has {now.size} bytes now, and had {before.size}"
    if before.flags & ~now.flags & (FLAG_SEND_FLUSH | FLAG_SEND_WRITE_ZEROES):
        return "it can do less than before"
    if now.block > max(before.block, 512) or now.most < before.most:
        return "it takes other requests than before"
    return ""
