"""Reads and writes of a page at most, which is what most clients want most of the time.

One object is all that such a request takes: the disk's request, what the client is to be told, and the page with the
data. It belongs to a buffer of one page and is used over and over with it.

What a client says is begun in batches of requests that are alike, and what is done is answered in batches. Most often
these are the same: then nothing is looked at one by one that can be done, or be seen to be right, for all at once. Nor
is said again what the jobs of the last batch know already, if they are the same.
"""

from __future__ import annotations

from collections import deque
from functools import reduce
from operator import or_
from struct import Struct
from typing import TYPE_CHECKING, final

from guest_kernel.block import READ, SECTOR_SIZE, WRITE, BlockBuffer, BlockRequest
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.nbd import wire
from guest_kernel.nbd.jobs import NOBODY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest_kernel.nbd.buffers import Buffer, BufferPool
    from guest_kernel.nbd.connection import Connection

assert (wire.CMD_READ, wire.CMD_WRITE) == (READ, WRITE)
"""The client's command is the disk's operation."""

SECTOR_SHIFT = 9
BATCH = 16
"""Requests that are begun before the disk and the card get theirs. Were it all that a client has, client and server
would take turns to wait for each other.
"""
FEW = 4
"""Where fewer follow each other that are alike, it is less work to look at each by itself."""
MAX_SMALL = PAGE_SIZE
"""Bytes of a small transfer."""

_HEAD = wire.REQUEST_HEAD.unpack_from
_HEAD_SIZE = wire.REQUEST_HEAD.size
_PUT_WHOLE_CHUNK, _CHUNK_SIZE = wire.WHOLE_CHUNK_HEAD.pack_into, wire.WHOLE_CHUNK_HEAD.size
_REPLY_SIZE = wire.SIMPLE_REPLY.size

Kind = tuple[int, int, Struct, int]
"""Of requests that are alike: operation, sectors, one of them with its data passed over, its bytes."""


def _kind(op: int, size: int) -> Kind:
    layout = Struct(f"{wire.REQUEST_HEAD.format}{size if op == WRITE else 0}x")
    return op, size // SECTOR_SIZE, layout, layout.size


Batch = tuple[list["SmallJob"], tuple[bytes, ...], tuple[int, ...], Kind]
"""Requests that were begun together: jobs, cookies, where on the disk in bytes, what they have in common."""

KINDS: dict[int, dict[tuple[int, int], Kind]] = {
    block: {
        (head, size): _kind(op, size)
        for op, head in ((READ, wire.READ_HEAD), (WRITE, wire.WRITE_HEAD))
        for size in range(block, MAX_SMALL + 1, block)
    }
    for block in (512, 1024, 2048, 4096)
}
"""By the bytes of a disk's blocks, then by head (magic, flags, type) and length: what is a small transfer."""


@final
class SmallJob(BlockRequest):
    """A read or write under way; who begins one sets everything but the buffer."""

    __slots__ = ("connection", "cookie", "held", "length", "lost", "part", "view")

    buffer: BlockBuffer
    connection: Connection
    cookie: bytes
    length: int
    part: memoryview
    """The bytes of the page that are moved."""

    def __init__(self, held: Buffer, view: memoryview) -> None:
        self.op = self.sector = self.count = self.first = self.error = 0
        self.data = b""
        self.done = False
        self.waiters = NOBODY
        self.transfer = None
        self.buffer = held.block
        self.lost = held.block.lost
        self.held = held
        self.view = view
        """The bytes of the page."""

    def finish(self, error: int = 0) -> None:
        """The disk is done with it. Callable from upcall handlers."""
        connection = self.connection
        if error or self.lost:
            self.error = error
            connection.small.unusual = True
        connection.finished.append(self)
        if not connection.news:
            connection.wake()


_NO_JOBS: list[SmallJob] = []


@final
class SmallRequests:
    """The small requests of a connection."""

    __slots__ = ("_batches", "_connection", "_data", "_kind", "_limit", "_places", "_pool", "_room", "_told", "unusual")

    def __init__(self, connection: Connection, pool: BufferPool) -> None:
        self._connection = connection
        self._pool = pool
        self._room = connection.area_out.size - wire.HEADER_ROOM - _CHUNK_SIZE
        """How large a read may be to be answered from the area; a larger one's data is sent from its page, as that of
        large ones is. (The area of a guest whose memory is in pieces may be a page.)"""
        self._batches: deque[Batch] = deque()
        """Those that are under way, but for what has to be answered one by one."""
        self._kind: Kind | None = None
        """What was begun last."""
        self._told: set[SmallJob] = set()
        """Jobs that know that they are of this kind and this connection, if nobody else has used them since."""
        self.unusual = False
        """Whether one of those that are done has failed, or lost its page."""
        self._limit = BATCH
        """How many are expected to be alike: about as many as were the last time."""
        self._data: dict[int, list[memoryview]] = {}
        """By length: where the data of writes is that begin with the area that is received into."""
        self._places: dict[int, list[memoryview]] = {}
        """By the bytes of an answer: where the data of reads goes in the area that is sent from."""

    # -- in -------------------------------------------------------------------------------------------------------

    def begin(self, start: int, end: int, most: int) -> int:
        """Begin requests that are all there, between two bytes of the area, for as long as they are small and alike and
        nothing is wrong with them, up to so many. Returns how many bytes they were; 0 if the next one is none such.
        """
        if self._limit < FEW:
            return self._begin_each(start, end, most)
        connection, single = self._connection, self._pool.single
        view, disk = connection.area_in.view, connection.disk
        head, _, _, length = _HEAD(view, start)
        kind = KINDS.get(disk.block_size, {}).get((head, length))
        if kind is None:
            return 0
        op, sectors, layout, stride = kind
        count = min(most, (end - start) // stride, self._limit, len(single))
        if not count or (disk.readonly if op else length > self._room):
            return 0
        requests = layout.iter_unpack(view[start : start + count * stride])
        heads, cookies, offsets, lengths = zip(*requests, strict=True)
        last, odd = (disk.sectors << SECTOR_SHIFT) - length, disk.block_size - 1
        if (
            heads.count(head) != count
            or lengths.count(length) != count
            or max(offsets) > last
            or reduce(or_, offsets) & odd
        ):
            count = _alike(heads, lengths, offsets, last, odd)
            self._limit = count + 1
            if not count:
                return 0
            cookies, offsets = cookies[:count], offsets[:count]
        elif count == self._limit < BATCH:
            self._limit = min(2 * count, BATCH)
        if disk.queue is not self._pool.queue:
            self._pool.renew(disk.queue)
        # In this order the disk's driver finds each of them in the place where it was the last time.
        jobs = single[: -count - 1 : -1]
        del single[-count:]
        if kind is not self._kind or self._pool.user is not self or not self._told.issuperset(jobs):
            self._tell(jobs, kind, length)
        self._batches.append((jobs, cookies, offsets, kind))
        if op:
            written = self._written(start, length, stride, count)
            for job, cookie, offset, data in zip(jobs, cookies, offsets, written, strict=False):
                job.cookie = cookie
                job.sector = offset >> SECTOR_SHIFT
                job.part[:] = data
            connection.large = False
            connection.ahead = BATCH * stride
        else:
            for job, cookie, offset in zip(jobs, cookies, offsets, strict=True):
                job.cookie = cookie
                job.sector = offset >> SECTOR_SHIFT
        connection.jobs += count
        disk.begin(jobs, op, count * sectors)
        return count * stride

    def _begin_each(self, start: int, end: int, most: int) -> int:
        """The same as `begin`, one by one, for small requests of all kinds."""
        connection, pool = self._connection, self._pool
        view, disk, single = connection.area_in.view, connection.disk, pool.single
        block, size = disk.block_size, disk.sectors << SECTOR_SHIFT
        kinds = KINDS.get(block, {})
        at, jobs, run_op, begun = start, _NO_JOBS, -1, 0
        last: Kind | None = None
        mixed = False
        while begun < most and single and end - at >= _HEAD_SIZE:
            head, cookie, offset, length = _HEAD(view, at)
            kind = kinds.get((head, length))
            if kind is None:
                break
            op, sectors, _, stride = kind
            if at + stride > end or offset & block - 1 or offset + length > size:
                break
            if disk.readonly if op else length > self._room:
                break
            if kind is not last:
                mixed, last = last is not None, kind
            if op != run_op:
                self._begin_run(jobs, run_op)
                jobs, run_op = [], op
            job = single.pop()
            job.op = op
            job.sector = offset >> SECTOR_SHIFT
            job.count = sectors
            job.connection = connection
            job.cookie = cookie
            job.length = length
            job.error = 0
            job.part = job.view if length == MAX_SMALL else job.view[:length]
            if op:
                job.part[:] = view[at + _HEAD_SIZE : at + stride]
            jobs.append(job)
            at += stride
            begun += 1
        self._begin_run(jobs, run_op)
        pool.user = None  # what jobs have been told before does not hold any more
        if begun >= FEW and not mixed:
            self._limit = BATCH
        return at - start

    def _begin_run(self, jobs: Sequence[SmallJob], op: int) -> None:
        """Give the disk some reads, or some writes."""
        if jobs:
            connection = self._connection
            if op:
                connection.large, connection.ahead = False, BATCH * (_HEAD_SIZE + jobs[-1].length)
            connection.jobs += len(jobs)
            connection.disk.begin(jobs, op, sum([job.count for job in jobs]))

    def _tell(self, jobs: Sequence[SmallJob], kind: Kind, length: int) -> None:
        """Tell jobs what they have in common, and remember that they know."""
        if kind is not self._kind or self._pool.user is not self:
            self._told.clear()
            self._kind, self._pool.user = kind, self
        self._told.update(jobs)
        op, sectors, _, _ = kind
        for job in jobs:
            job.op = op
            job.count = sectors
            job.connection = self._connection
            job.length = length
            job.error = 0
            job.part = job.view[:length]

    def _written(self, start: int, length: int, stride: int, count: int) -> list[memoryview]:
        """Return the data of at least so many writes, from a byte of the area on."""
        view = self._connection.area_in.view
        if start:
            return [view[at : at + length] for at in range(start + _HEAD_SIZE, start + count * stride, stride)]
        data = self._data.get(length)
        if data is None:
            most = min(BATCH, len(view) // stride)
            data = [view[at : at + length] for at in range(_HEAD_SIZE, most * stride, stride)]
            self._data[length] = data
        return data

    # -- out ------------------------------------------------------------------------------------------------------

    def answer(self, at: int, limit: int) -> int:
        """Answer the small request that is the first to be done, and those after it, between two bytes of the area that
        is sent from; returns where the answers end: at `at` if there is no room.
        """
        connection, batches = self._connection, self._batches
        if self.unusual:
            batches.clear()
        if not batches:
            return self._answer_each(at, limit, None)
        jobs, cookies, offsets, (op, _, _, _) = batches[0]
        finished, count = connection.finished, len(jobs)
        if finished != jobs and finished[:count] != jobs:
            return self._answer_each(at, limit, None if finished[0] is jobs[0] else jobs[0])
        size = _REPLY_SIZE
        if not op:
            size = jobs[0].length + (_CHUNK_SIZE if connection.structured else _REPLY_SIZE)
        end = at + count * size
        if end > limit:
            return at or self._answer_each(at, limit, None)
        batches.popleft()
        if op:
            connection.area_out.view[at:end] = wire.WELL_DONE + wire.WELL_DONE.join(cookies)
        else:
            self._answer_reads(at, size, jobs, cookies, offsets)
        del finished[:count]
        connection.jobs -= count
        self._pool.take_back(jobs)
        return end

    def _answer_reads(
        self, at: int, size: int, jobs: Sequence[SmallJob], cookies: Sequence[bytes], offsets: Sequence[int]
    ) -> None:
        """Write the answers to reads that went well, from a byte of the area on; each takes `size` bytes."""
        connection = self._connection
        out, length = connection.area_out.view, jobs[0].length
        end = at + len(jobs) * size
        starts = range(at, end, size)
        if connection.structured:
            for start, cookie, offset in zip(starts, cookies, offsets, strict=True):
                _PUT_WHOLE_CHUNK(out, start, wire.WHOLE_CHUNK, cookie, 8 + length, offset)
        else:
            for start, cookie in zip(starts, cookies, strict=True):
                out[start : start + _REPLY_SIZE] = wire.WELL_DONE + cookie
        places = None if at else self._places.get(size)
        if places is None:
            # (What is remembered is for as many as there is room for.)
            last = end if at else min(BATCH, len(out) // size) * size
            places = [out[stop - length : stop] for stop in range(at + size, last + 1, size)]
            if not at:
                self._places[size] = places
        for job, place in zip(jobs, places, strict=False):
            place[:] = job.part

    def _answer_each(self, at: int, limit: int, until: SmallJob | None) -> int:
        """The same as `answer`, one by one, for small requests of all kinds: up to one, or the first that is no small
        one.
        """
        connection, pool = self._connection, self._pool
        finished = connection.finished
        well: list[SmallJob] = []
        count = 0
        for job in finished:
            if type(job) is not SmallJob or job is until or at > limit:
                break
            if job.error:
                at = connection.answers.refuse(at, job.op, job.cookie, job.error)
                job.error = 0
            else:
                end = self._answer_one(job, at, limit)
                if end > limit:
                    break
                at = end
            count += 1
            if job.lost:
                pool.give(job.held)
            else:
                well.append(job)
        if self._batches:
            # What is left of their batches is answered one by one, too.
            answered = set(finished[:count])
            self._batches = deque(batch for batch in self._batches if answered.isdisjoint(batch[0]))
        del finished[:count]
        self.unusual = self.unusual and bool(finished)
        connection.jobs -= count
        if well:
            pool.take_back(well)
        return at

    def _answer_one(self, job: SmallJob, at: int, limit: int) -> int:
        """Write the answer to a request that went well; returns where it ends, and writes none if that is too far."""
        connection = self._connection
        out = connection.area_out.view
        if job.op:
            out[at : at + _REPLY_SIZE] = wire.WELL_DONE + job.cookie
            return at + _REPLY_SIZE
        length = job.length
        start = at + (_CHUNK_SIZE if connection.structured else _REPLY_SIZE)
        end = start + length
        if end > limit:
            return end
        if connection.structured:
            _PUT_WHOLE_CHUNK(out, at, wire.WHOLE_CHUNK, job.cookie, 8 + length, job.sector << SECTOR_SHIFT)
        else:
            out[at:start] = wire.WELL_DONE + job.cookie
        out[start:end] = job.part
        return end


def _alike(heads: Sequence[int], lengths: Sequence[int], offsets: Sequence[int], last: int, odd: int) -> int:
    """Return how many requests are like the first one, and on the disk."""
    head, length = heads[0], lengths[0]
    for count, (one, size, offset) in enumerate(zip(heads, lengths, offsets, strict=True)):
        if one != head or size != length or offset > last or offset & odd:
            return count
    return len(heads)
