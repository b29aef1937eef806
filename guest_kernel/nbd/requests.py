"""What a client asks for, one request after the other: all but what `small.py` takes.

A write begins when its header is there. Its data comes in pieces, each as large as the buffer that there is for it, and
each goes to the disk when it is full. A read that is larger than its buffer is carried out part by part, and the
connection does nothing else meanwhile.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, final

from guest_kernel.block import DISCARD, FLUSH, READ, WRITE
from guest_kernel.errors import OutOfMemory
from guest_kernel.nbd import wire
from guest_kernel.nbd.answers import COPY_LIMIT
from guest_kernel.nbd.jobs import Job, Operation, Piece
from guest_kernel.nbd.small import SECTOR_SHIFT

if TYPE_CHECKING:
    from guest_kernel.nbd.buffers import Buffer
    from guest_kernel.nbd.connection import Connection

OWN_PAGES = 16

_REQUEST = wire.REQUEST.unpack_from


class Hangup(Exception):
    """The client cannot be served any further."""


@final
class Requests:
    """The requests of one connection."""

    __slots__ = ("_connection", "_own_made", "long", "own", "piece", "rest", "skip")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.piece: Piece | None = None
        """The write whose data comes next."""
        self.rest: tuple[Job, int, int] | None = None
        """A long write, where it goes on and how much is missing: it gets its next buffer then."""
        self.skip = 0
        """Bytes of data to be thrown away: of a write that was refused."""
        self.long: Job | None = None
        """A read that is too long for its buffer, and has the connection for itself."""
        self.own: list[Buffer] = []
        """The buffer that nobody else uses: so nobody waits for other clients."""
        self._own_made = False

    # -- beginning ------------------------------------------------------------------------------------------------

    def begin(self, at: int) -> bool:
        """Begin the request whose header is at a byte of the area; returns False if there is no buffer for it, or it
        is the last. Raises Hangup.
        """
        connection = self._connection
        magic, flags, kind, cookie, offset, length = _REQUEST(connection.area_in.view, at)
        if magic != wire.REQUEST_MAGIC:
            raise Hangup
        error = 0
        if kind == wire.CMD_DISC:
            connection.say_goodbye()
            return False
        if kind == wire.CMD_READ:
            error = self._check(offset, length, flags, wire.CMD_FLAG_DF)
            if not error and length and not self._begin_read(cookie, offset, length):
                return False
        elif kind == wire.CMD_WRITE:
            error = self._begin_write(flags, cookie, offset, length)
        else:
            error = self._begin_without_data(kind, flags, cookie, offset, length)
        if error or (not length and kind in (wire.CMD_READ, wire.CMD_WRITE)):
            job = self._job(kind, cookie, offset, 0)
            job.error = error
            job.complete()
        return True

    def _begin_read(self, cookie: bytes, offset: int, length: int) -> bool:
        """Begin to read; returns False if there is no buffer."""
        buffer = self._buffer(length)
        if buffer is None:
            return False
        job = self._job(wire.CMD_READ, cookie, offset, length)
        job.held = buffer
        if length > buffer.size:
            self.long = job
        else:
            disk = self._connection.disk
            disk.submit(job, READ, offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT, buffer.block)
        return True

    def _begin_write(self, flags: int, cookie: bytes, offset: int, length: int) -> int:
        """Begin to write, if it is not refused with the errno that is returned. Raises Hangup."""
        if length > wire.MAX_PAYLOAD:
            raise Hangup  # the data that would have to be thrown away is too much
        error = self._check(offset, length, flags, wire.CMD_FLAG_FUA, writes=True)
        if error:
            self.skip = length
        elif length:
            job = self._job(wire.CMD_WRITE, cookie, offset, length)
            job.left = 1
            job.flush = bool(flags & wire.CMD_FLAG_FUA)
            self.rest = job, offset, length
            self._connection.expect_all(large=length > COPY_LIMIT)
        return error

    def _begin_without_data(self, kind: int, flags: int, cookie: bytes, offset: int, length: int) -> int:
        """Begin a request without data, if it is not refused with the errno that is returned."""
        disk = self._connection.disk
        if kind == wire.CMD_FLUSH:
            if flags or offset or length:
                return errno.EINVAL
            disk.submit(self._job(kind, cookie, 0, 0), FLUSH, 0, 0)
            return 0
        if kind not in (wire.CMD_TRIM, wire.CMD_WRITE_ZEROES):
            return errno.EINVAL
        known = wire.CMD_FLAG_FUA
        if kind == wire.CMD_WRITE_ZEROES:
            known |= wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO
        error = self._check(offset, length, flags, known, writes=True)
        if error:
            return error
        if flags & wire.CMD_FLAG_FAST_ZERO:
            return errno.EOPNOTSUPP  # zeros are written like any other data
        job = self._job(kind, cookie, offset, length)
        job.flush = bool(flags & wire.CMD_FLAG_FUA)
        if not length:
            job.complete()
        elif kind == wire.CMD_TRIM:
            disk.submit(job, DISCARD, offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT)
        else:
            self._connection.export.kernel.spawn(self._write_zeros(job), "nbd zeros")
        return 0

    def _check(self, offset: int, length: int, flags: int, known: int, *, writes: bool = False) -> int:
        """Return why a request cannot be, as an errno."""
        disk = self._connection.disk
        if flags & ~known or (offset | length) & disk.block_size - 1:
            return errno.EINVAL
        if offset + length > disk.sectors << SECTOR_SHIFT:
            return errno.ENOSPC if writes else errno.EINVAL
        if writes:
            return errno.EPERM if disk.readonly else 0
        return errno.EINVAL if length > wire.MAX_PAYLOAD else 0

    def _job(self, kind: int, cookie: bytes, offset: int, length: int) -> Job:
        self._connection.jobs += 1
        return Job(self._connection, kind, cookie, offset, length)

    # -- buffers --------------------------------------------------------------------------------------------------

    def _buffer(self, size: int) -> Buffer | None:
        """Return a buffer for `size` bytes, or a smaller one; None if there is none.

        Its own buffer is for a client who has nothing under way, and nothing being sent: nothing would come back that
        could be waited for.
        """
        connection = self._connection
        pool = connection.pool
        buffer = pool.take(size)
        if buffer is not None:
            return buffer
        alone = not connection.jobs or (connection.jobs == 1 and self.rest is not None)
        if alone and not connection.answers.buffers:
            if self.own:
                return self.own.pop()
            if not self._own_made:
                self._own_made = True
                return self._own_buffer()
        pool.wanted[connection] = None
        return None

    def _own_buffer(self) -> Buffer:
        """Return a buffer for this client alone: one that another had, or a new one. Raises OutOfMemory."""
        export = self._connection.export
        if not export.own_buffers:
            return export.pool.make(OWN_PAGES, self.own)
        buffer = export.own_buffers.pop()
        buffer.kin = self.own
        return buffer

    # -- writes ---------------------------------------------------------------------------------------------------

    def next_piece(self) -> bool:
        """Give a write a buffer for its next data; returns False if there is none."""
        assert self.rest is not None
        job, offset, missing = self.rest
        buffer = self._buffer(missing)
        if buffer is None:
            return False
        size = min(missing, buffer.size)
        self.piece = Piece(job, buffer, offset, size)
        self.rest = None if size == missing else (job, offset + size, missing - size)
        return True

    def write(self, piece: Piece) -> None:
        """All data of a piece is there: to the disk with it."""
        self.piece = None
        if self.rest is not None:
            piece.job.left += 1  # more data is coming
        sector, sectors = piece.offset >> SECTOR_SHIFT, piece.size >> SECTOR_SHIFT
        self._connection.disk.submit(piece, WRITE, sector, sectors, piece.buffer.block)

    @property
    def lacks_data(self) -> bool:
        """Whether the data of a write is still to come."""
        return self.piece is not None or self.rest is not None

    def give_up(self) -> None:
        """The data of a write will not come any more, nor will what a long read still wants be read."""
        piece, rest, long = self.piece, self.rest, self.long
        self.piece = self.rest = self.long = None
        if piece is not None:
            self._connection.pool.give(piece.buffer)
            piece.job.done(errno.ECANCELED)
        elif rest is not None:
            rest[0].done(errno.ECANCELED)
        if long is not None:
            long.complete()

    # -- what takes several operations of the disk, one after the other -----------------------------------------------

    async def read_long(self) -> None:
        """Carry out a read that is too long for its buffer: its parts come one after the other, and nothing else of
        this client meanwhile. Raises Hangup, for one thing if a part fails when others have been sent already.
        """
        job, connection = self.long, self._connection
        assert job is not None
        buffer = job.held
        assert buffer is not None
        await connection.until_sent()
        for at in range(0, job.length, buffer.size):
            size = min(buffer.size, job.length - at)
            job.error = await self._read_part(buffer, job.offset + at, size)
            if job.error:
                if at and not connection.structured:
                    raise Hangup
                break
            header = self._header_of_part(job, at, size)
            connection.area_out.view[: len(header)] = header
            head = connection.area_out.segments(0, len(header)) if header else b""
            connection.send(head + buffer.segments(0, size))
            await connection.until_sent()
        self.long = None
        if job.error:
            job.complete()
        else:
            connection.jobs -= 1
            job.held = None
            connection.pool.give(buffer)
        connection.news = True

    async def _read_part(self, buffer: Buffer, offset: int, size: int) -> int:
        """Fill a buffer from the disk; return 0 or an errno."""
        connection = self._connection
        operation = Operation(connection)
        connection.disk.submit(operation, READ, offset >> SECTOR_SHIFT, size >> SECTOR_SHIFT, buffer.block)
        connection.disk.restart()
        while operation.left:
            await connection.pause()
        return operation.error

    def _header_of_part(self, job: Job, at: int, size: int) -> bytes:
        """Return what precedes a part of the data of a long read: without structured replies only the first has it."""
        if not self._connection.structured:
            return b"" if at else wire.WELL_DONE + job.cookie
        done = wire.CHUNK_DONE if at + size == job.length else 0
        magic, kind = wire.STRUCTURED_REPLY_MAGIC, wire.CHUNK_OFFSET_DATA
        return wire.DATA_CHUNK.pack(magic, done, kind, job.cookie, 8 + size, job.offset + at)

    async def _write_zeros(self, job: Job) -> None:
        """Carry out a write of zeros, from a buffer that holds nothing else: blkif has no operation for it."""
        connection = self._connection
        disk = connection.disk
        try:
            buffer = connection.export.zeros()
        except OutOfMemory:
            job.error = errno.ENOMEM
            job.complete()
            return
        operation = Operation(connection)
        for at in range(0, job.length, buffer.size):
            size = min(buffer.size, job.length - at)
            disk.submit(operation, WRITE, job.offset + at >> SECTOR_SHIFT, size >> SECTOR_SHIFT, buffer.block)
            disk.restart()
            if operation.left:
                await operation.waiters.wait()
            if operation.error or connection.failed:
                break
        job.error = operation.error
        job.complete()
