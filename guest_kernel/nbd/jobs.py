"""A client's requests on their way through the disk, as long as they are no small ones (`small.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from guest_kernel.block import FLUSH, Transfer
from guest_kernel.threads import WaitQueue

if TYPE_CHECKING:
    from guest_kernel.nbd.buffers import Buffer
    from guest_kernel.nbd.connection import Connection

NOBODY = WaitQueue()
"""Nobody waits for a job by itself."""


@final
class Job(Transfer):
    """A request under way: the operations of the disk that it takes, and one more while its data is still coming."""

    __slots__ = ("connection", "cookie", "flush", "held", "kind", "length", "offset")

    def __init__(self, connection: Connection, kind: int, cookie: bytes, offset: int, length: int) -> None:
        self.left = self.error = 0
        self.waiters = NOBODY
        self.connection = connection
        self.kind = kind
        """The client's command."""
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.held: Buffer | None = None
        """The data of a read."""
        self.flush = False
        """Whether a flush is still to come (FUA)."""

    def complete(self) -> None:
        """The disk is done with it, but for the flush."""
        connection = self.connection
        if self.flush and not self.error:
            self.flush = False
            connection.disk.submit(self, FLUSH, 0, 0)
        else:
            connection.finished.append(self)
        if not connection.news:
            connection.wake()

    def done(self, error: int) -> None:
        """Something that is no operation of the disk is over."""
        if error and not self.error:
            self.error = error
        self.left -= 1
        if not self.left:
            self.complete()


@final
class Piece(Transfer):
    """A part of a write: a buffer that is given back when the disk is done."""

    __slots__ = ("buffer", "filled", "job", "offset", "size")

    def __init__(self, job: Job, buffer: Buffer, offset: int, size: int) -> None:
        self.left = self.error = 0
        self.waiters = NOBODY
        self.job = job
        self.buffer = buffer
        self.offset = offset
        self.size = size
        self.filled = 0

    def complete(self) -> None:
        """The disk is done with it."""
        self.job.connection.pool.give(self.buffer)
        self.job.done(self.error)


@final
class Operation(Transfer):
    """An operation of the disk that a thread waits for, by looking at `left` whenever its connection is woken."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        super().__init__(0)
        self._connection = connection

    def complete(self) -> None:
        """The disk is done with it."""
        self.waiters.wake()
        self._connection.wake()
