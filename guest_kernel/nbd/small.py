"""Reads and writes of a page at most, which is what most clients want most of the time.

One object is all that such a request takes: the disk's request, what the client is to be told, and the page with the
data. It belongs to a buffer of one page and is used over and over with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from guest_kernel.block import READ, SECTOR_SIZE, WRITE, BlockRequest
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.nbd import wire
from guest_kernel.threads import WaitQueue

if TYPE_CHECKING:
    from guest_kernel.nbd.buffers import Buffer
    from guest_kernel.nbd.connection import Connection

assert (wire.CMD_READ, wire.CMD_WRITE) == (READ, WRITE)
"""The client's command is the disk's operation."""

MAX_SMALL = PAGE_SIZE
"""Bytes of a small transfer."""
SECTORS = {
    block: {size: size // SECTOR_SIZE for size in range(block, MAX_SMALL + 1, block)}
    for block in (512, 1024, 2048, 4096)
}
"""By the bytes of a disk's blocks: what small transfers it takes, in bytes, and how many sectors each is."""
NOBODY = WaitQueue()
"""Nobody waits for a job by itself."""


@final
class SmallJob(BlockRequest):
    """A read or write under way; who begins one sets everything but the buffer."""

    __slots__ = ("connection", "cookie", "held", "length", "view")

    flush: ClassVar[bool] = False

    connection: Connection
    cookie: int
    length: int

    def __init__(self, held: Buffer, view: memoryview) -> None:
        self.op = self.sector = self.count = self.first = self.error = 0
        self.data = b""
        self.done = False
        self.waiters = NOBODY
        self.transfer = None
        self.buffer = held.block
        self.held = held
        self.view = view
        """The bytes of the page."""

    @property
    def kind(self) -> int:
        """The client's command."""
        return self.op

    @property
    def offset(self) -> int:
        """Where on the disk, in bytes."""
        return self.sector << 9

    def finish(self, error: int = 0) -> None:
        """The disk is done with it. Callable from upcall handlers."""
        self.error = error
        connection = self.connection
        connection.finished.append(self)
        if not connection.news:
            connection.wake()
