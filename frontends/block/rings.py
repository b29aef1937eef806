"""The rings of one connection: one, or one for each vCPU so that vCPUs need not wait for each other.

A request goes into the ring of the vCPU that starts it, and the event that tells of its end comes to the same vCPU. All
of a disk's requests wait in one place: whichever ring has room next takes the next one. The rings share their pages, as
they are all granted to the same domain.

Where the rings are is written below `queue-N`, as Linux does it (`blkif.h` does not know of several); of a single one
that stands where it has always been.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, final

from frontends.block.pool import PagePool
from frontends.block.queue import FrontQueue
from frontends.block.slots import SECTOR_SHIFT, SECTORS_PER_PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guest_kernel.block import BlockDevice, BlockQueue, BlockRequest
    from guest_kernel.kernel import Kernel


@final
class Rings:
    """Made unconnected. As a `BlockQueue` it serves the vCPU that executes."""

    def __init__(
        self, kernel: Kernel, block: BlockDevice, domid: int, handle: int, *, count: int, page_order: int
    ) -> None:
        """`count` rings of 2**`page_order` pages each. Raises OutOfMemory, GrantError or XenError."""
        self._kernel = kernel
        self._cpu = kernel.cpu
        self._page_order = page_order
        self.pool = PagePool(kernel, domid)
        self.queues: list[FrontQueue] = []
        try:
            for number in range(count):
                name = block.name if count == 1 else f"{block.name}/{number}"
                queue = FrontQueue(kernel, block, self.pool, domid, handle, name=name, page_order=page_order)
                self.queues.append(queue)
                if count > 1:
                    kernel.events.move(queue.port, number)
        except BaseException:
            self._release()
            raise
        for queue in self.queues:
            queue.owner = self.queue
            queue.others = [other for other in self.queues if other is not queue]

    @property
    def queue(self) -> BlockQueue:
        """What the block layer gives requests to."""
        return self.queues[0] if len(self.queues) == 1 else self

    @property
    def in_flight(self) -> int:
        """How many requests the backend has not answered."""
        return sum(queue.in_flight for queue in self.queues)

    @property
    def broken(self) -> bool:
        """Whether the backend has written what no backend writes, into any of the rings."""
        return any(queue.broken for queue in self.queues)

    def run(self, pending: deque[BlockRequest]) -> None:
        """Let the ring of this vCPU take requests, as far as it has room."""
        queues = self.queues
        queues[self._cpu.vcpu_id % len(queues)].run(pending)

    def watch(self, on_broken: Callable[[str], None]) -> None:
        """Have this called, with a sentence, when a ring breaks."""
        for queue in self.queues:
            queue.on_broken = on_broken

    def nodes(self, before: Mapping[str, object]) -> dict[str, object]:
        """Return what the backend has to know, to be written below the frontend's directory.

        `before` is what was written for another connection, and is there still: nothing of it may be believed any more.
        """
        found: dict[str, object] = {}
        several, pages = len(self.queues) > 1, 1 << self._page_order
        if several or "multi-queue-num-queues" in before:
            found["multi-queue-num-queues"] = len(self.queues)
        if pages > 1 or "ring-page-order" in before:
            found["ring-page-order"] = self._page_order
        for number, queue in enumerate(self.queues):
            at = f"queue-{number}/" if several else ""
            found[f"{at}event-channel"] = queue.port
            if pages == 1:
                found[f"{at}ring-ref"] = queue.ring_refs[0]
            if pages > 1 or f"{at}ring-ref0" in before:
                found |= {f"{at}ring-ref{n}": ref for n, ref in enumerate(queue.ring_refs)}
        return found

    def connect(
        self, persistent: bool, flush_op: int, discards: frozenset[int], max_sectors: int, block_size: int
    ) -> None:
        """Begin service: the backend has mapped all rings. On them sectors have `block_size` bytes."""
        shift = block_size.bit_length() - 1 - SECTOR_SHIFT
        self.pool.connect(persistent, max_sectors // SECTORS_PER_PAGE, shift)
        for queue in self.queues:
            queue.connect(flush_op, discards, max_sectors, shift)

    async def drain(self) -> None:
        """Wait until every ring has its answers, or is broken."""
        for queue in self.queues:
            while queue.in_flight and not queue.broken:
                await queue.drained.wait()

    def shut(self) -> list[BlockRequest]:
        """End service: take the last responses, free everything; return what was never answered.

        The requests of a ring are in the order of issue; between rings there is none.
        """
        left = [request for queue in self.queues for request in queue.shut()]
        self._release()
        return left

    def _release(self) -> None:
        self.pool.release_buffers()
        for queue in self.queues:
            queue.release()
