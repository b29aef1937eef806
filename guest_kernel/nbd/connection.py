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

from guest_kernel.errors import OutOfMemory
from guest_kernel.hw.socket_card import CLOSE, MAX_SEGMENTS, RECEIVE, SEGMENT_SIZE, SEND
from guest_kernel.nbd import wire
from guest_kernel.nbd.answers import Answers
from guest_kernel.nbd.buffers import LARGE_GUEST_PAGES, Area
from guest_kernel.nbd.negotiation import Negotiation
from guest_kernel.nbd.requests import Hangup, Requests
from guest_kernel.nbd.small import BATCH, SmallJob, SmallRequests
from guest_kernel.threads import WaitQueue

if TYPE_CHECKING:
    from guest_kernel.nbd.export import NbdExport
    from guest_kernel.nbd.jobs import Job, Piece

REQUEST_SIZE = wire.REQUEST.size
AREA_PAGES = 40
"""32 requests to write 4 KiB, with some room."""
SMALL_AREA_PAGES = 6
MAX_JOBS = 256
"""Requests of a connection under way; it is not listened to beyond that."""


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
        self.requests = Requests(self)
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
        self.ahead = self.area_in.size
        """How many bytes of small requests are received at once: a batch of such as came last."""
        self.large = False
        """Whether the last write was a large one: then the next header is received alone."""
        self.failed = False
        """What was to be said to the client cannot be said."""
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
        except OutOfMemory as error:
            self.export.lacks_memory(error)
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

    def say_goodbye(self) -> None:
        """The client has said that it has nothing more to say."""
        self.leaving = self._ended = True
        self._start = self._end

    def expect_all(self, *, large: bool) -> None:
        """A write has begun that is no small one of a batch; what comes next may be anything."""
        self.large = large
        self.ahead = self.area_in.size

    async def pause(self) -> None:
        """Wait until there is something new, if there is not."""
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
                await self.pause()
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
                await self.pause()
            if self.failed:
                raise Hangup

    async def _serve(self) -> None:
        """Take requests and answer them, until the client or the export ends. Raises Hangup."""
        disk = self.disk
        while True:
            self.news = False
            if self.finished and not self._sending:
                # Before anything else: what has been sent leaves its buffers to what comes next. And the card has a
                # look at what the client has said meanwhile.
                self.send(self.answers.put())
                self._expects = True
                self._kick()
                self._expects = False
            if not self.leaving:
                self._parse()
                self._listen()
            if self.requests.long is not None:
                await self.requests.read_long()
            if self.finished and not self._sending:
                self.send(self.answers.put())
            self._kick()
            if disk.pending:
                disk.restart()
            if self.failed:
                raise Hangup
            if self.leaving and not self._sending and self.jobs == self.requests.lacks_data:
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
        self.requests.give_up()
        self.disk.restart()
        while self._receiving or self._sending or self._unfinished():
            await self.pause()
        self.export.own_buffers += self.requests.own
        self.area_in.close()
        self.area_out.close()
        self.export.left(self)

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
        requests, area = self.requests, self.area_in
        piece = requests.piece
        if self._receiving or requests.long is not None or self.leaving:
            return
        if piece is None and (requests.rest is not None or self.jobs >= MAX_JOBS):
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
        end = REQUEST_SIZE if self.large and not requests.skip else min(have + self.ahead, area.size)
        self._receive(area.segments(have, end), max(1, REQUEST_SIZE - have))

    def _parse(self) -> None:
        """Begin what has been received, as far as there are buffers, up to a batch. Raises Hangup."""
        batch, requests = min(self.jobs + BATCH, MAX_JOBS), self.requests
        while True:
            piece = requests.piece
            if piece is not None:
                self._fill(piece)
                if piece.filled < piece.size and not (self.large and self._receive_now(piece)):
                    return
                requests.write(piece)
            if requests.long is not None or (requests.rest is not None and not requests.next_piece()):
                return
            if requests.piece is not None:
                continue
            if requests.skip:
                part = min(requests.skip, self._end - self._start)
                self._start += part
                requests.skip -= part
            if requests.skip or self._end - self._start < REQUEST_SIZE or self.jobs >= batch:
                return
            size = self.small.begin(self._start, self._end, batch - self.jobs)
            if not size:
                if not requests.begin(self._start):
                    return
                size = REQUEST_SIZE
            self._start += size

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

    # -- out ------------------------------------------------------------------------------------------------------

    def _send(self, segments: bytes) -> None:
        self._sending += 1
        self._card.submit(SEND, self.number, segments, self._sent)

    def _sent(self, status: int) -> None:
        """The card has sent something. Called in upcall context, or inside of `kick`."""
        self._sending -= 1
        if status < 0:
            self.failed = True
        if not self._sending:
            self.answers.sent()
        if self.finished or not self._looks:
            self.wake()

    def send(self, segments: bytes) -> None:
        """Send any number of segments."""
        most = MAX_SEGMENTS * SEGMENT_SIZE
        if 0 < len(segments) <= most:
            self._send(segments)
        else:
            for at in range(0, len(segments), most):
                self._send(segments[at : at + most])

    async def until_sent(self) -> None:
        """Wait until nothing is being sent. Raises Hangup."""
        self._card.kick()
        while self._sending:
            await self.pause()
        if self.failed:
            raise Hangup
