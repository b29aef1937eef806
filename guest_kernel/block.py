"""The block layer of the guest kernel: what a guest's code calls, and what a disk driver fills in.

    guest        await device.read(sector, count)          whole transfers, any length
    BlockDevice  bounds, read-only, splitting, statistics  a queue of BlockRequests, each at most one slot of a driver
    BlockQueue   run(pending)                              the driver: takes what it has room for, finishes each later

Who has pages of its own that data is to go straight into, or come from, uses a `BlockBuffer`: `device.submit` puts
requests for it into the queue, any number of them, `device.restart()` starts them, and a `Transfer` hears of their end.

A driver that has lost its other end sets `device.queue = None`: requests then wait, and those in flight are put back in
front with `requeue`, until it is connected again (`connect`) or given up (`kill`). Sectors are 512 bytes
everywhere, also on a disk that has larger ones: there transfers must be whole blocks (`block_size`).
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, final

from guest_kernel.hotplug import Changes, noted
from guest_kernel.threads import Parking, WaitQueue
from hypervisor.abi.io.blkif import VDISK_CDROM, VDISK_REMOVABLE

if TYPE_CHECKING:
    from guest_kernel.mm import Page

SECTOR_SIZE = 512

READ = 0
WRITE = 1
FLUSH = 2
DISCARD, SECURE_DISCARD = 3, 4
OPERATIONS = ("read", "write", "flush", "discard", "secure discard")


class BlockError(OSError):
    """A block device refused or failed a transfer: `errno` is EIO, EOPNOTSUPP, EROFS, EINVAL, ENOMEDIUM or ENXIO."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(number, f"{what}: {os.strerror(number).lower()}")

    def __str__(self) -> str:
        return str(self.args[1])


class Transfer:
    """What consists of several requests, or of one whose end is not waited for: `complete` is called at the end."""

    __slots__ = ("error", "left", "waiters")

    def __init__(self, requests: int, waiters: WaitQueue | None = None) -> None:
        self.left = requests
        """Requests that are not done."""
        self.error = 0
        """The first of their errors."""
        self.waiters = WaitQueue() if waiters is None else waiters

    def complete(self) -> None:
        """All requests are done. Called in upcall context, or inside of `BlockDevice.restart`."""
        self.waiters.wake()


class _Parts(Transfer):
    """A request that its driver cannot carry any more, performed in parts."""

    __slots__ = ("parts", "whole")

    def __init__(self, whole: BlockRequest, most: int) -> None:
        starts = range(0, whole.count, most)
        super().__init__(len(starts))
        self.whole = whole
        size = SECTOR_SIZE
        data = memoryview(whole.data)
        self.parts = [
            BlockRequest(
                whole.op,
                whole.sector + at,
                min(most, whole.count - at),
                data[at * size : (at + most) * size],
                self,
            )
            for at in starts
        ]
        for part, at in zip(self.parts, starts, strict=True):
            part.buffer = whole.buffer
            part.first = whole.first + (at * size >> 12)

    def complete(self) -> None:
        """All parts are done, and so is the whole."""
        if self.whole.op == READ and not self.error and self.whole.buffer is None:
            self.whole.data = b"".join([part.data for part in self.parts])
        self.whole.finish(self.error)


@final
class BlockBuffer:
    """Pages for transfers without a copy, all for one disk. They should hold nothing but that disk's data.

    A driver may keep them granted to its other end for as long as it is connected, or until `release` is called. It
    takes away (`lose`) a page that the other end does not let go of: what is in the buffer cannot be believed then.
    """

    __slots__ = ("lost", "pages", "ready", "release")

    def __init__(self, pages: list[Page]) -> None:
        self.pages = pages
        self.lost: set[int] = set()
        """Pages, by their index, that are not this buffer's any more: whoever frees the others lets these alone."""
        self.ready: dict[int, Any] = {}
        """The driver's: how it transfers numbers of sectors from the first page on, while that takes no preparation."""
        self.release: Callable[[], None] = lambda: None
        """Take back what the driver has granted; to be called before the pages are freed, with nothing under way."""

    def lose(self, index: int) -> None:
        """The driver keeps a page, and frees it when it can."""
        self.ready.clear()
        self.lost.add(index)

    def kept(self) -> list[Page]:
        """Return the pages that are still this buffer's."""
        return [page for index, page in enumerate(self.pages) if index not in self.lost]


class BlockRequest:
    """One request to a driver: at most `BlockDevice.max_sectors` sectors, a flush (count 0), a discard of any count.

    `data` holds the bytes to write; the driver of a finished read puts the bytes read there. With a `buffer` the data
    is in its pages instead, from the page `first` on, and `max_buffer_sectors` is the limit. Whoever wants to hear of
    the end in another way overrides `finish`.
    """

    __slots__ = ("buffer", "count", "data", "done", "end", "error", "first", "op", "sector", "transfer", "waiters")

    mergeable: ClassVar[bool] = True
    """Whether a driver may perform the request together with others."""

    def __init__(
        self, op: int, sector: int, count: int, data: bytes | memoryview = b"", transfer: Transfer | None = None
    ) -> None:
        self.op = op
        self.sector = sector
        self.count = count
        self.data = data
        self.buffer: BlockBuffer | None = None
        self.first = 0
        self.error = 0
        self.done = False
        if transfer is None:
            self.waiters = WaitQueue()
            self.end = Parking((self.waiters,))
            """To be awaited by who wants to know of the end of this very request."""
        else:
            self.waiters = transfer.waiters
        self.transfer = transfer

    def finish(self, error: int = 0) -> None:
        """End the request, with an errno or 0, and wake who waits for it. Callable from upcall handlers."""
        self.error = error
        self.done = True
        transfer = self.transfer
        if transfer is None:
            # `self.waiters.wake()`, written out.
            waiters = self.waiters.waiters
            if waiters:
                thread = waiters.pop()
                thread.queue = thread.value = None
                enqueue = thread.enqueue
                enqueue(thread)
            return
        transfer.left -= 1
        if error and not transfer.error:
            transfer.error = error
        if not transfer.left:
            transfer.complete()


class BlockQueue(Protocol):
    """The driver's side: where requests go."""

    def run(self, pending: deque[BlockRequest], /) -> None:
        """Take requests from the left of `pending` while there is room for them, and start them.

        What stays in `pending` waits for the driver to call its device's `restart`. Must not block.
        """
        ...


class BlockDevice:
    """A disk, as the guest's code sees it. Made by a driver and attached to the registry when it is connected."""

    __slots__ = (
        "_block_size",
        "_odd",
        "_resized",
        "_spare",
        "can_discard",
        "can_discard_securely",
        "can_flush",
        "dead",
        "discards",
        "errors",
        "flushes",
        "holders",
        "info",
        "max_buffer_sectors",
        "max_sectors",
        "merged",
        "name",
        "on_release",
        "pending",
        "physical_block_size",
        "queue",
        "readonly",
        "reads",
        "sector_size",
        "sectors",
        "sectors_discarded",
        "sectors_read",
        "sectors_written",
        "writes",
    )

    def __init__(self, name: str, max_sectors: int) -> None:
        self.name = name
        self.max_sectors = max_sectors
        """Most sectors that one request of the driver can carry."""
        self.max_buffer_sectors = max_sectors
        """The same, of one that has a buffer of its own."""
        self.sectors = 0
        """Capacity; it may change while the disk is used (`resized`)."""
        self._resized = WaitQueue()
        self.sector_size = SECTOR_SIZE
        """512: the unit in which sectors are counted here."""
        self.block_size = SECTOR_SIZE
        self.physical_block_size = SECTOR_SIZE
        """Bytes that the medium behind the disk transfers at one go: others are slower."""
        self.readonly = False
        self.can_flush = False
        self.can_discard = False
        self.can_discard_securely = False
        self.info = 0
        """What else the driver knows of the disk (VDISK_ flags of blkif.h)."""
        self.queue: BlockQueue | None = None
        self.pending: deque[BlockRequest] = deque()
        """Requests that wait for room in the driver, or for the driver to be connected."""
        self.dead = 0
        """Why everything fails, as an errno, when there is no other end to wait for."""
        self.holders = 0
        """How many have a `hold` of the disk."""
        self.on_release: Callable[[], None] = lambda: None
        """Called when one of them has let go."""
        self._spare: list[BlockRequest] = []
        """Finished reads without error, that nobody knows of any more."""
        self.reads = 0
        self.writes = 0
        self.flushes = 0
        self.discards = 0
        self.errors = 0
        self.merged = 0
        """Requests that the driver has performed as parts of others."""
        self.sectors_read = 0
        self.sectors_written = 0
        self.sectors_discarded = 0

    @property
    def block_size(self) -> int:
        """Bytes of the disk's own sectors: every transfer begins at a multiple of it, and is one."""
        return self._block_size

    @block_size.setter
    def block_size(self, size: int) -> None:
        self._block_size = size
        # These bits of a number of sectors are 0 if it is one of blocks.
        self._odd = size // SECTOR_SIZE - 1

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self.sectors * self.sector_size

    async def read(self, sector: int, count: int) -> bytes:
        """Read `count` sectors from `sector` on. Raises BlockError: EINVAL outside the disk or not whole blocks,
        ENOMEDIUM, EIO, ENXIO (unplugged).
        """
        both = sector | count
        if both < 0 or sector + count > self.sectors or both & self._odd:
            raise BlockError(self._outside(), f"{self.name}: read of {count} sectors at {sector} of {self.sectors}")
        if not count:
            return b""
        self.reads += 1
        self.sectors_read += count
        if count > self.max_sectors:
            return b"".join([request.data for request in await self._perform_split(READ, sector, count, b"")])
        # `_perform`, written out: the path that most transfers take. Its requests are used over and over.
        spare = self._spare
        if spare:
            request = spare.pop()
            request.sector = sector
            request.count = count
            request.done = False
        else:
            request = BlockRequest(READ, sector, count)
        pending = self.pending
        pending.append(request)
        queue = self.queue
        if queue is not None:
            queue.run(pending)
        else:
            self.restart()
        if not request.done:
            await request.end
        if request.error:
            raise self._failure(READ, sector, count, request.error)
        data = request.data
        request.data = b""
        spare.append(request)
        return data  # type: ignore[return-value]

    async def write(self, sector: int, data: bytes | bytearray | memoryview) -> None:
        """Write whole sectors from `sector` on; returns when the other end has them (see `flush`).

        Raises BlockError: EINVAL outside the disk or not whole blocks, EROFS, EIO, ENXIO (unplugged).
        """
        count, odd = divmod(len(data), self.sector_size)
        if odd or sector < 0 or sector + count > self.sectors or (sector | count) & self._odd:
            raise BlockError(self._outside(), f"{self.name}: write of {len(data)} bytes at {sector} of {self.sectors}")
        if self.readonly:
            raise BlockError(errno.EROFS, f"{self.name}: write of {count} sectors at {sector}")
        if not count:
            return
        self.writes += 1
        self.sectors_written += count
        # A thread may be cancelled and go on to reuse a buffer that still waits for its slot: keep a copy.
        data = data if isinstance(data, bytes) else bytes(data)
        if count > self.max_sectors:
            await self._perform_split(WRITE, sector, count, data)
        else:
            await self._perform(BlockRequest(WRITE, sector, count, data))

    def _outside(self) -> int:
        """Return why a transfer cannot be that is not on the disk: there may be none."""
        return errno.EINVAL if self.sectors or not self.removable else errno.ENOMEDIUM

    @property
    def removable(self) -> bool:
        """Whether what is in it can be changed: no sectors mean that nothing is."""
        return bool(self.info & (VDISK_CDROM | VDISK_REMOVABLE))

    async def flush(self) -> None:
        """Bring all finished writes to stable storage. Raises BlockError: EOPNOTSUPP if the disk cannot, EIO, ENXIO."""
        self.flushes += 1
        await self._perform(BlockRequest(FLUSH, 0, 0))

    async def discard(self, sector: int, count: int, *, secure: bool = False) -> None:
        """Say that what is in `count` sectors from `sector` on is not needed any more: the other end may free it.

        What they hold afterwards is not defined. `secure`: nobody must be able to find it again, in any copy. Raises
        BlockError: EINVAL outside the disk, EROFS, EOPNOTSUPP if the disk cannot do that, EIO, ENXIO.
        """
        if sector < 0 or count < 0 or sector + count > self.sectors or (sector | count) & self._odd:
            raise BlockError(self._outside(), f"{self.name}: discard of {count} sectors at {sector} of {self.sectors}")
        if self.readonly:
            raise BlockError(errno.EROFS, f"{self.name}: discard of {count} sectors at {sector}")
        if count:
            self.discards += 1
            self.sectors_discarded += count
            await self._perform(BlockRequest(SECURE_DISCARD if secure else DISCARD, sector, count))

    def submit(
        self, transfer: Transfer, op: int, sector: int, count: int, buffer: BlockBuffer | None = None, first: int = 0
    ) -> None:
        """Queue an operation, to be started by the next `restart`: a READ or WRITE between sectors and a buffer, from
        its page `first` on; a FLUSH (no count), a DISCARD.

        `transfer` gets as many requests more as that takes; the buffer must be left alone until they are done. The
        caller has seen to it that the sectors are on the disk, and whole blocks, and that it can be written to.
        """
        if op == READ:
            self.reads += 1
            self.sectors_read += count
        elif op == WRITE:
            self.writes += 1
            self.sectors_written += count
        elif op == FLUSH:
            self.flushes += 1
        else:
            self.discards += 1
            self.sectors_discarded += count
        if buffer is None or count <= self.max_buffer_sectors:
            transfer.left += 1
            request = BlockRequest(op, sector, count, b"", transfer)
            request.buffer = buffer
            request.first = first
            self.pending.append(request)
            return
        most = self.max_buffer_sectors
        for at in range(0, count, most):
            transfer.left += 1
            request = BlockRequest(op, sector + at, min(most, count - at), b"", transfer)
            request.buffer = buffer
            request.first = first + (at * self.sector_size >> 12)
            self.pending.append(request)

    async def resized(self) -> int:
        """Wait until the disk has another capacity than now; return that, in sectors."""
        before = self.sectors
        while self.sectors == before:
            await self._resized.wait()
        return self.sectors

    def begin(self, requests: Sequence[BlockRequest], op: int, sectors: int) -> None:
        """The same as `submit` for many READs or WRITEs at once: `sectors` altogether, each of them no more than the
        driver can carry. Each hears of its end by itself (`finish`).
        """
        if op == READ:
            self.reads += len(requests)
            self.sectors_read += sectors
        else:
            self.writes += len(requests)
            self.sectors_written += sectors
        self.pending.extend(requests)

    def resize(self, sectors: int) -> None:
        """The driver says how large the disk is."""
        if sectors != self.sectors:
            self.sectors = sectors
            self._resized.wake_all()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Use the disk as a mounted file system does: an unplug that is not forced waits until it is let go of."""
        self.holders += 1
        try:
            yield
        finally:
            self.holders -= 1
            self.on_release()

    async def _perform(self, request: BlockRequest) -> None:
        self.pending.append(request)
        self.restart()
        if not request.done:
            await request.end
        if request.error:
            raise self._failure(request.op, request.sector, request.count, request.error)

    async def _perform_split(self, op: int, sector: int, count: int, data: bytes) -> list[BlockRequest]:
        """Perform a transfer of any length in requests that the driver can carry; they run at the same time."""
        step = self.max_sectors
        size = self.sector_size
        whole = memoryview(data)
        transfer = Transfer(-(-count // step))
        requests = [
            BlockRequest(op, sector + at, min(step, count - at), whole[at * size : (at + step) * size], transfer)
            for at in range(0, count, step)
        ]
        self.pending.extend(requests)
        self.restart()
        if transfer.left:
            await transfer.waiters.wait()
        if transfer.error:
            raise self._failure(op, sector, count, transfer.error)
        return requests

    def _failure(self, op: int, sector: int, count: int, number: int) -> BlockError:
        self.errors += 1
        where = f" of {count} sectors at {sector}" if count else ""
        return BlockError(number, f"{self.name}: {OPERATIONS[op]}{where}")

    def restart(self) -> None:
        """Offer the waiting requests to the driver (it has room again, or has been connected)."""
        if self.queue is not None:
            self.queue.run(self.pending)
        elif self.dead:
            self.fail_pending(self.dead)

    def requeue(self, requests: Iterable[BlockRequest]) -> None:
        """Put requests that a driver could not finish back in front, oldest first: they will be issued again."""
        self.pending.extendleft(reversed(list(requests)))

    def fail_pending(self, number: int) -> None:
        """Finish every waiting request with an errno."""
        pending = self.pending
        while pending:
            pending.popleft().finish(number)

    def connect(self, queue: BlockQueue, max_sectors: int = 0, max_buffer_sectors: int = 0) -> None:
        """The driver is connected: issue what has been waiting. What it can carry from now on: `max_sectors`, or
        `max_buffer_sectors` in a buffer of the caller's.
        """
        self.dead = 0
        if max_sectors:
            self.max_sectors = max_sectors
            self.max_buffer_sectors = max(max_sectors, max_buffer_sectors)
            if any(request.count > max_sectors for request in self.pending):
                self._take_apart(max_sectors)
        self.queue = queue
        self.restart()

    def _take_apart(self, most: int) -> None:
        """Put parts in the place of waiting requests that are too large for the driver as it is now."""
        fitting: deque[BlockRequest] = deque()
        for request in self.pending:
            limit = most if request.buffer is None else self.max_buffer_sectors
            if request.op < DISCARD and request.count > limit:
                fitting.extend(_Parts(request, limit).parts)
            else:
                fitting.append(request)
        self.pending.clear()
        self.pending.extend(fitting)

    def kill(self, number: int) -> None:
        """Nothing can be waited for: what waits, and whatever comes until the next `connect`, fails with this errno.

        ENXIO for a disk that was unplugged, EIO for one whose other end cannot be believed.
        """
        self.queue = None
        self.dead = number
        self.fail_pending(number)

    def __repr__(self) -> str:
        state = "connected" if self.queue is not None else "dead" if self.dead else "waiting for its other end"
        return f"<BlockDevice {self.name}, {self.sectors} sectors, {state}>"


class BlockRegistry:
    """The disks of a kernel by name, as `kernel.block`."""

    def __init__(self) -> None:
        self.devices: dict[str, BlockDevice] = {}
        self._failures: dict[str, str] = {}
        self._changed = WaitQueue()
        self.wanted: dict[str, int] = {}
        """How many threads wait for each disk that is not there."""
        self.changes = Changes()
        """Tells of disks that come and go."""

    async def get(self, name: str) -> BlockDevice:
        """Return a disk, waiting until it is connected. Raises BlockError (ENXIO) if its driver gave it up."""
        while True:
            device = self.devices.get(name)
            if device is not None:
                return device
            if name in self._failures:
                raise BlockError(errno.ENXIO, f"{name}: {self._failures[name]}")
            with noted(self.wanted, name):
                await self._changed.wait()

    async def gone(self, name: str) -> None:
        """Wait until there is no disk of this name."""
        while name in self.devices:
            await self._changed.wait()

    def attach(self, device: BlockDevice) -> None:
        """A driver has connected a disk: show it to the guest. The same device may be attached again."""
        self._failures.pop(device.name, None)
        if self.devices.get(device.name) is not device:
            self.devices[device.name] = device
            self.changes.tell(device.name, present=True)
        self._changed.wake_all()

    def detach(self, device: BlockDevice) -> None:
        """A disk has been unplugged: no new user finds it."""
        if self.devices.get(device.name) is device:
            del self.devices[device.name]
            self.changes.tell(device.name, present=False)
            self._changed.wake_all()

    def give_up(self, name: str, why: str) -> None:
        """A driver could not connect a disk: who waits for it is told why."""
        self._failures[name] = why
        self._changed.wake_all()
