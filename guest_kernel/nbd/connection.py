"""One client that has chosen the export: its requests, from the socket card to the disk and back.

    card ── RECEIVE ──▶ area in ──▶ parse ──▶ disk.submit ──▶ done ──▶ area out ── SEND ──▶ card
                 └────── rest of a large write ──▶ buffer ──┘    └── a large read's buffer ──┘

A thread does everything that there is to do and waits then; what wakes it are the answers of the card and of the disk,
so all that comes together is done together: one receive, one doorbell of the ring, one send for many requests. Small
transfers are copied between a buffer, which the disk's backend has access to, and the areas that are received into and
sent from in one piece; the card moves large ones from or to the buffer itself.

Whatever a client does, it holds a bounded part of the guest: two areas, one buffer of its own, and of those that all
share what its requests under way need. Without a free buffer it is not listened to.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, final

from guest_kernel.block import DISCARD, FLUSH, READ, WRITE
from guest_kernel.errors import OutOfMemory
from guest_kernel.hw.socket_card import CLOSE, MAX_SEGMENTS, RECEIVE, SEGMENT_SIZE, SEND
from guest_kernel.nbd import wire
from guest_kernel.nbd.answers import COPY_LIMIT, Answers
from guest_kernel.nbd.buffers import LARGE_GUEST_PAGES, Area, Buffer
from guest_kernel.nbd.jobs import Job, Operation, Piece
from guest_kernel.nbd.negotiation import Negotiation
from guest_kernel.nbd.small import BATCH, SECTOR_SHIFT, SmallJob, SmallRequests
from guest_kernel.threads import WaitQueue

if TYPE_CHECKING:
    from guest_kernel.nbd.export import NbdExport

REQUEST_SIZE = wire.REQUEST.size
_REQUEST = wire.REQUEST.unpack_from
AREA_PAGES = 40
"""32 requests to write 4 KiB, with some room."""
SMALL_AREA_PAGES = 6
MAX_JOBS = 256
"""Requests of a connection under way; it is not listened to beyond that."""
OWN_PAGES = 16


class Hangup(Exception):
    """The client cannot be served any further."""


@final
class Connection:
    """One client, from its first byte to its last."""

    def __init__(self, export: NbdExport, number: int) -> None:
        """Raises OutOfMemory."""
        self.export = export
        self.number = number
        self._card = export.card
        self.disk = export.disk
        mm = export.kernel.mm
        pages = AREA_PAGES if mm.nr_pages >= LARGE_GUEST_PAGES else SMALL_AREA_PAGES
        self.area_in = Area(mm, pages)
        """What is received into, unless it is the data of a large write."""
        try:
            self.area_out = Area(mm, pages)
            """What is sent from, but for the data of large reads."""
        except BaseException:
            self.area_in.close()
            raise
        self.pool = export.pool
        self.small = SmallRequests(self, export.pool)
        self.answers = Answers(self)
        self._own: list[Buffer] = []
        """The buffer that nobody else uses: so nobody waits for other clients."""
        self._own_made = False
        self.news = False
        self._waiters = WaitQueue()
        self.finished: list[Job | SmallJob] = []
        """Requests that are done, in the order of their ends."""
        self.jobs = 0
        """Requests under way or not answered."""
        self.leaving = False
        """No more requests are taken; those under way are answered."""
        self.structured = False
        """The client takes structured replies."""
        self._receiving = False
        self._sending = 0
        self._looks = False
        """Whether the thread is about to see by itself what has been sent."""
        self._expects = False
        """Whether it is about to see what has been received."""
        self._start = self._end = 0
        """What of the area has been received and not parsed."""
        self._into: Piece | None = None
        """The write whose data the card is receiving; None if it goes to the area."""
        self._piece: Piece | None = None
        """The write whose data comes next."""
        self._skip = 0
        """Bytes of data to be thrown away: of a write that was refused."""
        self._long: Job | None = None
        """A read that is too long for its buffer, and has the connection for itself."""
        self._rest: tuple[Job, int, int] | None = None
        """A long write, where it goes on and how much is missing: it gets its next buffer then."""
        self.ahead = self.area_in.size
        """How many bytes of small requests are received at once: a batch of such as came last."""
        self.large = False
        """Whether the last write was a large one: then the next header is received alone."""
        self._failure = 0
        self._ended = False
        """The client has sent its last byte."""

    # -- the thread -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the client to its end, and free everything."""
        try:
            if await self._negotiate():
                await self._serve()
        except Hangup:
            pass
        finally:
            await self._close()

    def wake(self) -> None:
        """Have the thread look around. Callable from upcall handlers."""
        self.news = True
        self._waiters.wake()

    def leave(self) -> None:
        """Take no more requests, answer what is under way, and hang up."""
        self.leaving = True
        self.wake()

    async def _pause(self) -> None:
        if not self.news:
            await self._waiters.wait()
        self.news = False

    async def _negotiate(self) -> bool:
        """Shake hands; returns whether requests follow. Raises Hangup."""
        negotiation = Negotiation(self.export.info())
        answer = negotiation.greeting()
        while True:
            await self._send_bytes(answer)
            if negotiation.ready or negotiation.over:
                break
            self._receive(self.area_in.segments(0, self.area_in.size), 1)
            self._card.kick()
            while self._receiving:
                if self.leaving:
                    return False
                await self._pause()
            if self._ended:
                return False
            answer = negotiation.feed(bytes(self.area_in.view[: self._end]))
            self._end = 0
        self.structured = negotiation.structured
        self._end = len(negotiation.rest)
        if self._end > self.area_in.size:
            raise Hangup
        self.area_in.view[: self._end] = negotiation.rest
        return negotiation.ready

    async def _send_bytes(self, data: bytes) -> None:
        """Send a few bytes. Raises Hangup."""
        while data:
            part, data = data[: self.area_out.size], data[self.area_out.size :]
            self.area_out.view[: len(part)] = part
            self._send(self.area_out.segments(0, len(part)))
            self._card.kick()
            while self._sending:
                await self._pause()
            if self._failure:
                raise Hangup

    async def _serve(self) -> None:
        """Take requests and answer them, until the client or the export ends. Raises Hangup."""
        disk = self.disk
        while True:
            self.news = False
            if self.finished and not self._sending:
                # Before anything else: what has been sent leaves its buffers to what comes next. And the card has a
                # look at what the client has said meanwhile.
                self._send_segments(self.answers.put())
                self._expects = True
                self._kick()
                self._expects = False
            if not self.leaving:
                self._parse()
                self._listen()
            if self._long is not None:
                await self._read_long()
            if self.finished and not self._sending:
                self._send_segments(self.answers.put())
            self._kick()
            if disk.pending:
                disk.restart()
            if self._failure:
                raise Hangup
            if self.leaving and not self._sending and self.jobs == (self._piece is not None or self._rest is not None):
                return  # a write whose data will not come any more is not waited for
            if not self.news:
                await self._waiters.wait()

    def _kick(self) -> None:
        """Start what the card has been given, before the thread looks around once more."""
        self._looks = True
        self._card.kick()
        self._looks = False

    async def _close(self) -> None:
        """Hang up, wait for what is still under way, and give everything back."""
        self.leaving = True
        self._card.submit(CLOSE, self.number, b"", lambda status: None)
        self._card.kick()
        self._give_up_data()
        self.disk.restart()
        while self._receiving or self._sending or self._unfinished():
            await self._pause()
        self.export.own_buffers += self._own
        self.area_in.close()
        self.area_out.close()
        self.export.left(self)

    def _give_up_data(self) -> None:
        """The data of a write will not come any more, nor will what a long read still wants be read."""
        piece, rest, long = self._piece, self._rest, self._long
        self._piece = self._rest = self._long = None
        if piece is not None:
            self.pool.give(piece.buffer)
            piece.job.done(errno.ECANCELED)
        elif rest is not None:
            rest[0].done(errno.ECANCELED)
        if long is not None:
            long.complete()

    def _unfinished(self) -> bool:
        """Whether the disk still has something to do for this client."""
        for job in self.finished:
            if job.held is not None:
                self.pool.give(job.held)
        self.jobs -= len(self.finished)
        self.finished.clear()
        return self.jobs > 0

    # -- in -------------------------------------------------------------------------------------------------------

    def _receive(self, segments: bytes, minimum: int, into: Piece | None = None) -> None:
        """Have the card receive: the data of a piece and what comes after it, or whatever comes."""
        self._receiving = True
        self._into = into
        self._card.submit(RECEIVE, self.number, segments, self._received, minimum)

    def _received(self, status: int) -> None:
        """The card has received something. Called in upcall context, or inside of `kick`."""
        self._receiving = False
        if status == -errno.EAGAIN:
            pass
        elif status <= 0:
            self._ended = True
            self.leaving = True
        else:
            piece = self._into
            if piece is not None:
                part = min(status, piece.size - piece.filled)
                piece.filled += part
                status -= part
            self._end += status
        if not self._expects:
            self.wake()

    def _listen(self) -> None:
        """Have the card receive what comes next, if there is room for it."""
        piece, area = self._piece, self.area_in
        if self._receiving or self._long is not None or self.leaving:
            return
        if piece is None and (self._rest is not None or self.jobs >= MAX_JOBS):
            return
        if piece is not None:
            self._start = self._end = 0
            self._receive(self._data_segments(piece), piece.size - piece.filled, piece)
            return
        have = self._end - self._start
        if have >= REQUEST_SIZE and (self.large or have > area.size >> 1):
            return  # the request that is next waits for its turn, or for a buffer
        if have and self._start:
            area.view[:have] = bytes(area.view[self._start : self._end])
        self._start, self._end = 0, have
        end = REQUEST_SIZE if self.large and not self._skip else min(have + self.ahead, area.size)
        self._receive(area.segments(have, end), max(1, REQUEST_SIZE - have))

    def _parse(self) -> None:
        """Begin what has been received, as far as there are buffers, up to a batch. Raises Hangup."""
        batch = self.jobs + BATCH
        while True:
            piece = self._piece
            if piece is not None:
                self._fill(piece)
                if piece.filled < piece.size and not (self.large and self._receive_now(piece)):
                    return
                self._write(piece)
            if self._long is not None or (self._rest is not None and not self._next_piece()):
                return
            if self._piece is not None:
                continue
            if self._skip:
                part = min(self._skip, self._end - self._start)
                self._start += part
                self._skip -= part
            if self._skip or self._end - self._start < REQUEST_SIZE or self.jobs >= MAX_JOBS or self.jobs >= batch:
                return
            size = self.small.begin(self._start, self._end, batch - self.jobs)
            if size:
                self._start += size
            elif not self._begin():
                return

    def _receive_now(self, piece: Piece) -> bool:
        """Receive the data of a large write that is there, or comes without a pause; returns whether that is all of it.

        So the disk can be given more than one of them at once. `_listen` waits for the rest.
        """
        if self._receiving or self.leaving:
            return False
        self._start = self._end = 0
        self._receive(self._data_segments(piece), 0, piece)
        self._expects = True
        self._kick()
        self._expects = False
        return piece.filled == piece.size

    def _data_segments(self, piece: Piece) -> bytes:
        """Return where the data of a write that is still missing is received to, and what comes after it."""
        segments = piece.buffer.segments(piece.filled, piece.size)
        if len(segments) < (MAX_SEGMENTS - AREA_PAGES) * SEGMENT_SIZE:
            # Behind a large one is room for a header only: the data of the next goes to its own buffer.
            segments += self.area_in.segments(0, REQUEST_SIZE if self.large else self.area_in.size)
        return segments

    def _fill(self, piece: Piece) -> None:
        """Copy what of a write's data has been received into the area."""
        part = min(self._end - self._start, piece.size - piece.filled)
        if part:
            piece.buffer.put(piece.filled, self.area_in.view[self._start : self._start + part])
            self._start += part
            piece.filled += part

    def _begin(self) -> bool:
        """Begin the next request; returns False, and leaves it where it is, if there is no buffer for it."""
        start = self._start
        magic, flags, kind, cookie, offset, length = _REQUEST(self.area_in.view, start)
        if magic != wire.REQUEST_MAGIC:
            raise Hangup
        if kind == wire.CMD_READ:
            error = self._check(offset, length, flags, wire.CMD_FLAG_DF)
            if not error and length:
                buffer = self._buffer(length)
                if buffer is None:
                    return False
                self._read(cookie, offset, length, buffer)
        elif kind == wire.CMD_WRITE:
            if length > wire.MAX_PAYLOAD:
                raise Hangup  # the data that would have to be thrown away is too much
            error = self._check(offset, length, flags, wire.CMD_FLAG_FUA, writes=True)
            if error:
                self._skip = length
            elif length:
                job = self._job(kind, cookie, offset, length)
                job.left = 1
                job.flush = bool(flags & wire.CMD_FLAG_FUA)
                self.large = length > COPY_LIMIT
                self.ahead = self.area_in.size
                self._rest = job, offset, length
        elif kind == wire.CMD_DISC:
            self.leaving = True
            self._ended = True
            self._start = self._end
            return False
        else:
            error = self._begin_without_data(kind, flags, cookie, offset, length)
        if error or (not length and kind in (wire.CMD_READ, wire.CMD_WRITE)):
            self._refuse(kind, cookie, offset, error)
        self._start = start + REQUEST_SIZE
        return True

    def _begin_without_data(self, kind: int, flags: int, cookie: bytes, offset: int, length: int) -> int:
        """Begin a request without data; returns an errno if it is refused."""
        disk = self.disk
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
            self.export.kernel.spawn(self._write_zeros(job), "nbd zeros")
        return 0

    def _check(self, offset: int, length: int, flags: int, known: int, *, writes: bool = False) -> int:
        """Return why a request cannot be, as an errno."""
        if flags & ~known or (offset | length) & self.disk.block_size - 1:
            return errno.EINVAL
        if offset + length > self.disk.sectors << SECTOR_SHIFT:
            return errno.ENOSPC if writes else errno.EINVAL
        if writes:
            return errno.EPERM if self.disk.readonly else 0
        return errno.EINVAL if length > wire.MAX_PAYLOAD else 0

    def _job(self, kind: int, cookie: bytes, offset: int, length: int) -> Job:
        self.jobs += 1
        return Job(self, kind, cookie, offset, length)

    def _refuse(self, kind: int, cookie: bytes, offset: int, error: int) -> None:
        """Answer a request at once."""
        job = self._job(kind, cookie, offset, 0)
        job.error = error
        job.complete()

    def _buffer(self, size: int) -> Buffer | None:
        """Return a buffer for `size` bytes, or a smaller one; None if there is none.

        Its own buffer is for a client who has nothing under way, and nothing being sent: nothing would come back that
        could be waited for.
        """
        pool = self.pool
        buffer = pool.take(size)
        if buffer is not None:
            return buffer
        if not self.answers.buffers and (not self.jobs or (self.jobs == 1 and self._rest is not None)):
            if self._own:
                return self._own.pop()
            if not self._own_made:
                self._own_made = True
                return self._own_buffer()
        pool.wanted[self] = None
        return None

    def _own_buffer(self) -> Buffer:
        """Return a buffer for this client alone: one that another had, or a new one. Raises OutOfMemory."""
        export = self.export
        if not export.own_buffers:
            return export.pool.make(OWN_PAGES, self._own)
        buffer = export.own_buffers.pop()
        buffer.kin = self._own
        return buffer

    # -- the disk -------------------------------------------------------------------------------------------------

    def _read(self, cookie: bytes, offset: int, length: int, buffer: Buffer) -> None:
        job = self._job(wire.CMD_READ, cookie, offset, length)
        job.held = buffer
        if length > buffer.size:
            self._long = job
        else:
            self.disk.submit(job, READ, offset >> SECTOR_SHIFT, length >> SECTOR_SHIFT, buffer.block)

    async def _read_long(self) -> None:
        """Carry out a read that is too long for its buffer: its parts come one after the other, and nothing else of
        this client meanwhile. Raises Hangup, for one thing if a part fails when others have been sent already.
        """
        job = self._long
        assert job is not None
        buffer = job.held
        assert buffer is not None
        await self._until_sent()
        for at in range(0, job.length, buffer.size):
            size = min(buffer.size, job.length - at)
            operation = Operation(self)
            self.disk.submit(operation, READ, job.offset + at >> SECTOR_SHIFT, size >> SECTOR_SHIFT, buffer.block)
            self.disk.restart()
            while operation.left:
                await self._pause()
            if operation.error:
                if at and not self.structured:
                    raise Hangup
                job.error = operation.error
                break
            if self.structured:
                done = wire.CHUNK_DONE if at + size == job.length else 0
                header = wire.DATA_CHUNK.pack(
                    wire.STRUCTURED_REPLY_MAGIC, done, wire.CHUNK_OFFSET_DATA, job.cookie, 8 + size, job.offset + at
                )
            else:
                header = b"" if at else wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, job.cookie)
            self.area_out.view[: len(header)] = header
            self._send_segments((self.area_out.segments(0, len(header)) if header else b"") + buffer.segments(0, size))
            await self._until_sent()
        self._long = None
        if job.error:
            job.complete()
        else:
            self.jobs -= 1
            job.held = None
            self.pool.give(buffer)
        self.news = True

    async def _until_sent(self) -> None:
        """Wait until nothing is being sent. Raises Hangup."""
        self._card.kick()
        while self._sending:
            await self._pause()
        if self._failure:
            raise Hangup

    def _next_piece(self) -> bool:
        """Give a write a buffer for its next data; returns False if there is none."""
        assert self._rest is not None
        job, offset, missing = self._rest
        buffer = self._buffer(missing)
        if buffer is None:
            return False
        size = min(missing, buffer.size)
        self._piece = Piece(job, buffer, offset, size)
        self._rest = None if size == missing else (job, offset + size, missing - size)
        return True

    def _write(self, piece: Piece) -> None:
        """All data of a piece is there: to the disk with it."""
        self._piece = None
        if self._rest is not None:
            piece.job.left += 1  # more data is coming
        self.disk.submit(piece, WRITE, piece.offset >> SECTOR_SHIFT, piece.size >> SECTOR_SHIFT, piece.buffer.block)

    async def _write_zeros(self, job: Job) -> None:
        """Carry out a write of zeros, from a buffer that holds nothing else: blkif has no operation for it."""
        try:
            buffer = self.export.zeros()
        except OutOfMemory:
            job.error = errno.ENOMEM
            job.complete()
            return
        operation = Operation(self)
        for at in range(0, job.length, buffer.size):
            size = min(buffer.size, job.length - at)
            self.disk.submit(operation, WRITE, job.offset + at >> SECTOR_SHIFT, size >> SECTOR_SHIFT, buffer.block)
            self.disk.restart()
            if operation.left:
                await operation.waiters.wait()
            if operation.error or self._failure:
                break
        job.error = operation.error
        job.complete()

    # -- out ------------------------------------------------------------------------------------------------------

    def _send(self, segments: bytes) -> None:
        self._sending += 1
        self._card.submit(SEND, self.number, segments, self._sent)

    def _sent(self, status: int) -> None:
        """The card has sent something. Called in upcall context, or inside of `kick`."""
        self._sending -= 1
        if status < 0:
            self._failure = status
        if not self._sending:
            self.answers.sent()
        if self.finished or not self._looks:
            self.wake()

    def _send_segments(self, segments: bytes) -> None:
        """Send any number of segments."""
        most = MAX_SEGMENTS * SEGMENT_SIZE
        if 0 < len(segments) <= most:
            self._send(segments)
        else:
            for at in range(0, len(segments), most):
                self._send(segments[at : at + most])
