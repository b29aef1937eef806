"""Requests that wait next to each other and belong next to each other on the disk go into the ring as one.

It happens where a request leaves the queue for the ring: only those can be merged that have to wait, because the ring
is full or the backend is away, so nothing waits for the sake of being merged. A request takes in those that begin where
it ends, or end where it begins, up to what the backend takes; it looks past a few others for them, so that several
streams do not keep each other apart.

What is merged is one request for the backend and still several for those who asked: should it fail, each is performed
once more by itself, and only those fail that are at fault.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, final

from guest_kernel.block import READ, SECTOR_SIZE, WRITE, BlockDevice, BlockRequest, Transfer
from guest_kernel.threads import WaitQueue

WINDOW = 8
"""How many waiting requests in a row that do not fit a request looks past."""
MOST_SKIPPED = 7
"""What `Merger.skip` is at most."""
MAX_SECTORS = 256
"""What is merged becomes no larger than that, 32 pages: of a ring full of more a backend would not keep the grants
mapped, and that costs more than large requests save."""
_NOBODY = WaitQueue()


class _Inner(BlockRequest):
    """A request that stands for others: nobody waits for it."""

    __slots__ = ()

    def __init__(self, op: int, sector: int, count: int, data: bytes | memoryview) -> None:
        super().__init__(op, sector, count, data, _NO_TRANSFER)


_NO_TRANSFER = Transfer(0, _NOBODY)


@final
class Merged(_Inner):
    """Several READs or WRITEs, in the order of their sectors."""

    __slots__ = ("_device", "parts")

    def __init__(self, device: BlockDevice, parts: list[BlockRequest]) -> None:
        first = parts[0]
        data = b"".join([part.data for part in parts]) if first.op == WRITE else b""
        super().__init__(first.op, first.sector, sum([part.count for part in parts]), data)
        self._device = device
        self.parts = parts

    def finish(self, error: int = 0) -> None:
        """End all parts, or have them performed one by one."""
        if error:
            self._device.requeue([_Alone(part) for part in self.parts])
            return
        if self.op == READ:
            data = memoryview(self.data)
            at = 0
            for part in self.parts:
                end = at + part.count * SECTOR_SIZE
                part.data = bytes(data[at:end])
                at = end
        for part in self.parts:
            part.finish()


@final
class _Alone(_Inner):
    """A part of what has failed, by itself."""

    __slots__ = ("_part",)

    mergeable: ClassVar[bool] = False

    def __init__(self, part: BlockRequest) -> None:
        super().__init__(part.op, part.sector, part.count, part.data)
        self._part = part

    def finish(self, error: int = 0) -> None:
        """End the request that this one stands for."""
        self._part.data = self.data
        self._part.finish(error)


@final
class Merger:
    """Merges what one ring is to carry. `most`: of how many sectors a request may become one."""

    __slots__ = ("_device", "_vain", "most", "skip")

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self.most = 0
        self.skip = 0
        """How many requests need not be given to `merge`: those before them were in vain."""
        self._vain = 0

    def merge(self, request: BlockRequest, pending: deque[BlockRequest]) -> BlockRequest:
        """Return `request`, or one in its place that takes in some of those that wait.

        Where nothing has been found for some time it need not be looked for each time: see `skip`.
        """
        op = request.op
        if op > WRITE or not request.mergeable:
            return request
        parts = self._find(request, pending)
        if len(parts) == 1:
            self._vain = self.skip = min(2 * self._vain + 1, MOST_SKIPPED)
            return request
        self._vain = 0
        self._device.merged += len(parts) - 1
        return Merged(self._device, parts)

    def _find(self, request: BlockRequest, pending: deque[BlockRequest]) -> list[BlockRequest]:
        """Take what fits out of the queue; return it in the order of the sectors, with `request` in its place."""
        op = request.op
        first = request.sector
        end = first + request.count
        limit = self.most
        before: list[BlockRequest] = []
        after = [request]
        at = missed = 0
        while missed < WINDOW and at < len(pending):
            other = pending[at]
            sector = other.sector
            if (
                (sector == end or sector + other.count == first)
                and other.op == op
                and other.buffer is None
                and other.mergeable
                and end - first + other.count <= limit
            ):
                del pending[at]
                missed = 0
                if sector == end:
                    after.append(other)
                    end += other.count
                else:
                    before.append(other)
                    first = sector
            else:
                at += 1
                missed += 1
        return before[::-1] + after


def take_apart(request: BlockRequest) -> list[BlockRequest]:
    """Return what was asked for: the parts of a request that was merged, else the request."""
    return request.parts if type(request) is Merged else [request]
