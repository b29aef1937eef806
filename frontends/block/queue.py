"""One ring of a block frontend: requests in, responses out. This is the path that every transfer takes.

All of it runs either in the thread that asks for a transfer or in the upcall of the event channel, and never waits.
What the backend writes into the ring is read once, checked against the table of requests in flight, and believed only
then: a response that names no request in flight, or indices that cannot be, break the ring and nothing else.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, final

from frontends.block.merging import MAX_SECTORS as MAX_MERGED_SECTORS
from frontends.block.merging import Merger, take_apart
from frontends.block.pool import PagePool
from frontends.block.slots import REQUESTS, SECTOR_SHIFT, Shape, Slot
from guest_kernel.block import DISCARD, FLUSH, READ, SECURE_DISCARD, WRITE, BlockBuffer, BlockDevice, BlockRequest
from guest_kernel.errors import GrantError, OutOfMemory
from guest_kernel.threads import WaitQueue
from hypervisor.abi.io.blkif import (
    BLKIF_DISCARD_SECURE,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_OKAY,
    blkif_request,
    blkif_request_discard,
    blkif_response,
)
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, FrontRing
from hypervisor.abi.tracepoints import BLOCK_REQUEST, FLAG, RING_PUSH, SIGNED, WORD

if TYPE_CHECKING:
    from guest_kernel.block import BlockQueue
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

_RESPONSE = Struct(f"{blkif_response.codec.format}{blkif_request.size - blkif_response.size}x")
"""A response, and the rest of its slot."""
_UNPACK = _RESPONSE.unpack_from
_DISCARD = blkif_request_discard.codec


assert (READ, WRITE) == (BLKIF_OP_READ, BLKIF_OP_WRITE)
"""The block layer's numbers are those of the wire: `BlockRequest.op` goes into the ring as it is."""
assert BLKIF_OP_READ == BLKIF_RSP_OKAY == 0
"""So that hot code need not compare: `not op`, `not status`."""


def _scatter(data: bytes | memoryview, parts: tuple[memoryview, ...]) -> None:
    """Copy `data` over several pages."""
    start = 0
    for part in parts:
        end = start + len(part)
        part[:] = data[start:end]
        start = end


@final
class FrontQueue:
    """A ring of one connection to a backend. Made unconnected; `connect` begins service, `shut` ends it, then
    `release` must follow.
    """

    __slots__ = (
        "_device",
        "_discards",
        "_events",
        "_free",
        "_grants",
        "_handle",
        "_merger",
        "_mm",
        "_notify",
        "_pages",
        "_putting",
        "_shift",
        "_slots",
        "_taking",
        "_trace",
        "_trace_push",
        "broken",
        "drained",
        "flush_op",
        "name",
        "on_broken",
        "others",
        "owner",
        "pool",
        "port",
        "ring",
        "ring_refs",
    )

    def __init__(
        self,
        kernel: Kernel,
        device: BlockDevice,
        pool: PagePool,
        domid: int,
        handle: int,
        *,
        name: str,
        page_order: int = 0,
    ) -> None:
        """`name`: what a trace calls the ring; it takes 2**`page_order` pages."""
        self._events = kernel.events
        self._notify = kernel.events.notify
        self._grants = kernel.grants
        self._mm = kernel.mm
        self._device = device
        self._handle = handle
        self._merger = Merger(device)
        self._shift = 0
        self.name = name
        self.pool = pool
        """Where pages come from; all rings of a connection share it."""
        self.owner: BlockQueue = self
        """What the device gives its requests to, while it gives them to this connection."""
        self.others: Sequence[FrontQueue] = ()
        """The other rings of the connection."""
        self.on_broken: Callable[[str], None] | None = None
        """Called once when the backend has written what no backend writes, with a sentence. Must not block."""
        self.broken = False
        self.drained = WaitQueue()
        """Woken when nothing is in flight any more."""
        self.flush_op = -1
        """How this backend flushes: FLUSH_DISKCACHE, an empty WRITE_BARRIER, or -1 for not at all."""
        self._discards: frozenset[int] = frozenset()
        """Which of DISCARD and SECURE_DISCARD this backend takes."""
        self._pages: list[Page] = kernel.mm.alloc_pages(1 << page_order)
        self.ring = FrontRing.initialise_pages([page.view for page in self._pages], blkif_request.size)
        self._slots = [Slot(index) for index in range(self.ring.size)]
        self._free = self._slots[::-1]
        pool.slots += self._slots
        trace = kernel.cpu.trace
        self._trace = None if trace is None else trace.bind(BLOCK_REQUEST, device.name, WORD, WORD, WORD, SIGNED)
        self._trace_push = None if trace is None else trace.bind(RING_PUSH, name, "req", WORD, FLAG, WORD)
        self._remember()
        self.ring_refs: list[int] = []
        self.port = -1
        try:
            for page in self._pages:
                self.ring_refs.append(kernel.grants.grant_access(domid, page))
            self.port = kernel.events.alloc_unbound(domid, self._interrupt)
        except BaseException:
            self.release()
            raise

    def _remember(self) -> None:
        """Put together what the hot paths look up each time: unpacking a tuple costs as much as one attribute."""
        ring, persistent = self.ring, self.pool.persistent
        places = (ring, ring.shared, ring.view, ring.offsets, ring.mask)
        self._putting = (*places, self._free, self._merger, self._handle, self._shift, persistent, self._trace_push)
        self._taking = (*places, self._free, self._slots, self._device, persistent, self._trace)

    @property
    def in_flight(self) -> int:
        """How many requests the backend has not answered."""
        return self.ring.outstanding()

    def connect(self, flush_op: int, discards: frozenset[int], max_sectors: int, shift: int) -> None:
        """Begin service: the backend has mapped the ring. On the ring sectors are 2**`shift` of ours."""
        # A ring full of data comes and goes all the time. glibc would give the memory back to the kernel each time, and
        # fault it in again page by page (eight times the cost of the copy), until it has once seen a block of that size
        # be freed: then it raises its thresholds. This is that block; from one above 32 MiB it learns nothing.
        bytes(min(self.ring.size * max_sectors << SECTOR_SHIFT, 16 << 20))
        self._merger.most = min(max_sectors, MAX_MERGED_SECTORS)
        self._shift = shift
        self.flush_op = flush_op
        self._discards = discards
        self._remember()

    def run(self, pending: deque[BlockRequest]) -> None:
        """Move requests from `pending` into the ring while there are free slots; notify as ring.h says."""
        ring, shared, view, offsets, mask, free, merger, handle, shift, persistent, trace = self._putting
        prod = old = ring.req_prod_pvt
        while pending and free:
            request = pending.popleft()
            slot = free.pop()
            op = request.op
            buffer = request.buffer
            if buffer is None:
                if pending and request.count < merger.most:
                    if merger.skip:
                        merger.skip -= 1
                    else:
                        request = merger.merge(request, pending)
                shape = slot.shapes.get(request.count) if not op and persistent else None
            else:
                shape = None if request.first else buffer.ready.get(request.count)
            if shape is None:
                error = self._put(request, slot, offsets[prod & mask])
                if error:
                    if error == errno.ENOMEM and self._busy():
                        # What is in flight has memory, and leaves it to the next ones.
                        free.insert(0, slot)
                        pending.extendleft(reversed(take_apart(request)))
                        break
                    free.append(slot)
                    request.finish(error)
                    continue
            else:
                # `_put` without data to be copied, and with pages that are granted already, written out.
                slot.op = op
                slot.shape = shape
                pack, sector = shape.pack_into, request.sector >> shift
                pack(view, offsets[prod & mask], op, shape.segments, handle, slot.index, sector, shape.descriptors)
            slot.request = request
            slot.serial = prod
            prod = (prod + 1) & MASK32
        if prod == old:
            return
        ring.req_prod_pvt = prod
        if ring.pages:
            ring.show(old, prod)
        # push_requests_and_check_notify, written out. `old` is our own copy of what the ring held: the backend cannot
        # suppress a notification by changing req_prod.
        shared[REQ_PROD] = prod
        event = shared[REQ_EVENT]
        notify = event == prod or (prod - event) & MASK32 < (prod - old) & MASK32
        if trace is not None:
            trace(prod, notify, ring.rsp_cons)
        if notify:
            send = self._notify
            send(self.port)

    def _busy(self) -> bool:
        """Whether anything is in flight, here or in another ring, while a slot is being filled."""
        return len(self._free) + 1 < len(self._slots) or any(
            queue.in_flight and not queue.broken for queue in self.others
        )

    def _put(self, request: BlockRequest, slot: Slot, offset: int) -> int:
        """Write a request into the ring, its data into the slot's pages; returns 0, or why that cannot be."""
        op = request.op
        sector = request.sector >> self._shift
        view = self.ring.view
        if op == FLUSH:
            slot.op = op = self.flush_op
            if op < 0:
                return errno.EOPNOTSUPP
            slot.shape = None
            REQUESTS[0].pack_into(view, offset, op, 0, self._handle, slot.index, 0, b"")
            return 0
        if op >= DISCARD:
            if op not in self._discards:
                return errno.EOPNOTSUPP
            flag = BLKIF_DISCARD_SECURE if op == SECURE_DISCARD else 0
            slot.op = op = BLKIF_OP_DISCARD
            slot.shape = None
            _DISCARD.pack_into(view, offset, op, flag, self._handle, slot.index, sector, request.count >> self._shift)
            return 0
        if request.buffer is not None:
            return self._put_lent(request, request.buffer, slot, offset)
        shape = slot.shapes.get(request.count)
        if shape is None:
            shape = self._new_shape(slot, request.count)
            if shape is None:
                return errno.ENOMEM
        segments = shape.segments
        if op == WRITE:
            if shape.view is not None:
                shape.view[:] = request.data
            else:
                _scatter(request.data, shape.parts)
        slot.op = op
        slot.shape = shape
        if not self.pool.persistent:
            self.pool.grant(slot, segments, op == WRITE)
        shape.pack_into(view, offset, op, segments, self._handle, slot.index, sector, shape.descriptors)
        return 0

    def _new_shape(self, slot: Slot, sectors: int) -> Shape | None:
        """Return how a slot transfers sectors that it has not had before; None while there is no memory for them."""
        pool = self.pool
        if not pool.exhausted(slot, sectors):
            with suppress(OutOfMemory, GrantError):
                return pool.shape(slot, sectors)
        if self._busy():
            return None
        pool.gather(slot, sectors)
        with suppress(OutOfMemory, GrantError):
            return pool.shape(slot, sectors)
        return None

    def _put_lent(self, request: BlockRequest, buffer: BlockBuffer, slot: Slot, offset: int) -> int:
        """The same for a request whose data is in pages of the caller's."""
        if buffer.lost:
            return errno.EIO
        try:
            shape = self.pool.lend(buffer, request.first, request.count)
        except (OutOfMemory, GrantError):
            return errno.ENOMEM
        op = request.op
        slot.op = op
        slot.shape = shape
        if not self.pool.persistent:
            self.pool.grant_lent(shape, request.first, op == WRITE)
        sector = request.sector >> self._shift
        shape.pack_into(self.ring.view, offset, op, shape.segments, self._handle, slot.index, sector, shape.descriptors)
        return 0

    def _interrupt(self) -> None:  # noqa: C901 - every transfer passes here, so it is in one piece
        """The upcall: take all responses, finish their requests, and fill the slots that became free."""
        ring, shared, view, offsets, mask, free, slots, device, persistent, trace = self._taking
        if self.broken:
            return
        cons = ring.rsp_cons
        prod = shared[RSP_PROD]
        while True:
            put = ring.req_prod_pvt
            if prod != put and (prod - cons) & MASK32 > (put - cons) & MASK32:
                self._break(f"the backend claims responses up to {prod} for requests up to {put}")
                return
            if ring.pages:
                ring.fetch(cons, prod)
            ring.rsp_cons = prod
            responses = (
                (_UNPACK(view, offsets[cons & mask]),) if prod - cons == 1 else ring.slots(_RESPONSE, cons, prod)
            )
            for index, op, status in responses:
                slot = slots[index & mask]
                request = slot.request
                if request is None or index > mask or op != slot.op:
                    ring.rsp_cons = cons  # whatever was not answered comes after it
                    self._break(f"the backend answers request {index}, operation {op}, which is not in flight")
                    return
                slot.request = None
                shape = slot.shape
                if shape is not None:
                    if not op and not status and shape.buffered is None:
                        whole = shape.view
                        request.data = whole.tobytes() if whole is not None else b"".join(shape.parts)
                    if not persistent:
                        self._revoke(slot, shape, request)
                free.append(slot)
                if trace is not None:
                    trace(op, request.sector, request.count, status)
                if not status:
                    request.finish()
                else:
                    request.finish(errno.EOPNOTSUPP if status == BLKIF_RSP_EOPNOTSUPP else errno.EIO)
            if device.queue is self.owner:
                if device.pending:
                    self.run(device.pending)
            elif ring.req_prod_pvt == ring.rsp_cons:
                self.drained.wake_all()
            # The next response is to be told of. One that came before the backend could know is taken at once.
            cons = prod
            shared[RSP_EVENT] = (cons + 1) & MASK32
            prod = shared[RSP_PROD]
            if prod == cons:
                return

    def _revoke(self, slot: Slot, shape: Shape, request: BlockRequest) -> None:
        """Without persistent grants: take the pages of a request back."""
        if shape.buffered is not None:
            self.pool.revoke_lent(shape.buffered, request.first, shape.segments)
        else:
            self.pool.revoke(slot, shape.segments)

    def _break(self, why: str) -> None:
        """Stop believing the backend. What is in flight is taken back by `shut`; the driver hears of it once."""
        self.broken = True
        self._free.clear()  # so `run` starts nothing
        self._events.mask(self.port)
        self.drained.wake_all()
        if self.on_broken is not None:
            self.on_broken(why)

    def shut(self) -> list[BlockRequest]:
        """End service: take the last responses; return what was never answered, oldest first."""
        if not self.broken:
            self._interrupt()
        base = self.ring.rsp_cons
        left = [slot for slot in self._slots if slot.request is not None]
        left.sort(key=lambda slot: (slot.serial - base) & MASK32)
        requests = [part for slot in left if slot.request is not None for part in take_apart(slot.request)]
        for slot in left:
            slot.request = None
        return requests

    def release(self) -> None:
        """Give back the port, the pages and the grants; what the backend still maps is withheld (XSA-396)."""
        if self.port >= 0:
            self._events.unbind(self.port)
            self.port = -1
        self.pool.release(self._slots)
        pages, self._pages = self._pages, []
        if not pages:
            return
        self.ring.release()
        for page, ref in zip(pages, self.ring_refs, strict=False):
            if self._grants.end_access(ref):
                self._mm.free_page(page)
            else:
                self.pool.withheld.append((ref, page))
        self._mm.free_pages_of(pages[len(self.ring_refs) :])


FLUSH_OPERATIONS = {"feature-flush-cache": BLKIF_OP_FLUSH_DISKCACHE, "feature-barrier": BLKIF_OP_WRITE_BARRIER}
"""Which operation flushes, by the backend's feature node; the first that is "1" is used."""
