"""What a client is told: answers to all that is done, put together for one send.

Small data is copied behind its header into the area that is sent from, so that the send is one piece of memory; large
data is sent from the buffer that it was read into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from guest_kernel.nbd import wire
from guest_kernel.nbd.small import SmallJob

if TYPE_CHECKING:
    from guest_kernel.nbd.buffers import Buffer
    from guest_kernel.nbd.connection import Connection
    from guest_kernel.nbd.jobs import Job

COPY_LIMIT = 16 << 10
"""Bytes of a transfer that are rather copied than received or sent by themselves."""

_PUT_WHOLE_CHUNK, _CHUNK_SIZE = wire.WHOLE_CHUNK_HEAD.pack_into, wire.WHOLE_CHUNK_HEAD.size
_REPLY_SIZE = wire.SIMPLE_REPLY.size


@final
class Answers:
    """The answers to one client."""

    __slots__ = ("_connection", "buffers")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.buffers: list[Buffer] = []
        """Those that are being sent from."""

    def put(self) -> bytes:
        """Write answers to what is done, as many as there is room for; returns the segments to be sent, if any."""
        connection = self._connection
        area, finished, small = connection.area_out, connection.finished, connection.small
        limit = area.size - wire.HEADER_ROOM
        segments: list[bytes] = []
        run = at = 0
        while finished:
            job = finished[0]
            if type(job) is SmallJob:
                end = small.answer(at, limit)
                if end == at:
                    break
                at = end
                continue
            buffer = job.held
            copied = buffer is not None and job.length <= min(COPY_LIMIT, limit)
            if at + (job.length if copied else 0) > limit:
                break
            del finished[0]
            connection.jobs -= 1
            at = self._put_one(job, at, copied=copied)
            if buffer is None:
                continue
            job.held = None
            if copied or job.error:
                connection.pool.give(buffer)
            else:
                segments += (area.segments(run, at), buffer.segments(0, job.length))
                run = at
                self.buffers.append(buffer)
        if at > run:
            segments.append(area.segments(run, at))
        return segments[0] if len(segments) == 1 else b"".join(segments)

    def _put_one(self, job: Job, at: int, *, copied: bool) -> int:
        """Write the header of an answer, and the data behind it if that is to be copied; returns where they end."""
        connection = self._connection
        if job.error:
            return self.refuse(at, job.kind, job.cookie, job.error)
        out, length = connection.area_out.view, job.length
        if job.kind != wire.CMD_READ or not connection.structured:
            out[at : at + _REPLY_SIZE] = wire.WELL_DONE + job.cookie
            at += _REPLY_SIZE
        elif length:
            _PUT_WHOLE_CHUNK(out, at, wire.WHOLE_CHUNK, job.cookie, 8 + length, job.offset)
            at += _CHUNK_SIZE
        else:
            wire.CHUNK.pack_into(out, at, wire.STRUCTURED_REPLY_MAGIC, wire.CHUNK_DONE, wire.CHUNK_NONE, job.cookie, 0)
            at += wire.CHUNK.size
        if not copied or job.held is None:
            return at
        job.held.copy_to(out[at : at + length])
        return at + length

    def refuse(self, at: int, kind: int, cookie: bytes, error: int) -> int:
        """Write that a request has failed, with which errno; returns where that ends."""
        connection = self._connection
        out, number = connection.area_out.view, wire.ERRORS.get(error, wire.NBD_EIO)
        if kind == wire.CMD_READ and connection.structured:
            magic = wire.STRUCTURED_REPLY_MAGIC
            wire.ERROR_CHUNK.pack_into(out, at, magic, wire.CHUNK_DONE, wire.CHUNK_ERROR, cookie, 6, number, 0)
            return at + wire.ERROR_CHUNK.size
        wire.SIMPLE_REPLY.pack_into(out, at, wire.SIMPLE_REPLY_MAGIC, number, cookie)
        return at + _REPLY_SIZE

    def sent(self) -> None:
        """All that was put has been sent."""
        if self.buffers:
            for buffer in self.buffers:
                self._connection.pool.give(buffer)
            self.buffers.clear()
