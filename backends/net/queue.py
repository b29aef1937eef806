"""The backend's ends of one guest's rings.

Transmission (guest → bridge): what is new in the ring is copied out of it at once (`TxSlots`) and checked in the copy.
A frame then goes one of two ways. If the guest keeps the page with the frame mapped, and the one who gets it keeps its
buffers mapped, the bytes go from page to page (`express`). Otherwise they go into a frame of our own (`_carry`), by
grant copies where nothing is mapped, many of them in one hypercall, and from there over the bridge.

Reception (bridge → guest): frames wait in a bounded queue until the guest has posted buffers.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from backends.net.copies import CopyBatch
from backends.net.express import Express
from backends.net.frame import Frame, FramePool
from backends.net.lane import RX_FLAGS, Known, Lane
from backends.net.slots import HostileFrontend, Packet, TxSlots
from guest_kernel.errors import OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.ring_words import RX_SLOT, TX_SLOT
from guest_kernel.net.tracing import bind_pushes
from hypervisor.abi.grant_table import GNTCOPY_dest_gref, GNTCOPY_source_gref
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, BackRing
from hypervisor.abi.tracepoints import NET_PACKET, WORD
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.net.guest_port import GuestPort

TX_RESPONSE = netif.netif_tx_response.codec
RX_REQUEST, RX_RESPONSE = netif.netif_rx_request.codec, netif.netif_rx_response.codec
OKAY, ERROR, NULL = netif.NETIF_RSP_OKAY, netif.NETIF_RSP_ERROR, netif.NETIF_RSP_NULL
ETHERNET_HEADER = 14

RX_QUEUE_PAGES = 256
"""Pages of frames that wait for a guest's buffers; more are dropped: one that posts none costs a bound (XSA-392)."""

EXTRA_INFO = Struct("<Q")
PREFIX_FLAGS = netif.NETRXF_gso_prefix | netif.NETRXF_more_data

Sent = tuple["Waiting", list[int], list[int]]
"""A frame on its way into a guest: the ids of its buffers, first that of its prefix; for each that has data its copy's
number in the batch, or -1."""


class Waiting(NamedTuple):
    """A frame for a guest, and what goes with it."""

    frame: Frame
    extras: tuple[int, ...]
    """Slots of extra info behind the first one, as 64-bit words."""
    prefix: int
    """The length of a segment, for a slot before the first one; 0: there is none."""
    headroom: int = 0
    """Where the data begin in each buffer; the frame's pages have as much as fits behind that."""

    @property
    def slots(self) -> int:
        """How many slots of an rx ring it needs."""
        return len(self.frame.pages) + len(self.extras) + (self.prefix > 0)


class Queue:
    """One pair of rings of a vif. What the guest has said about itself is the vif's."""

    def __init__(
        self, vif: GuestPort, name: str, tx: memoryview, rx: memoryview, pool: FramePool, copies: CopyBatch
    ) -> None:
        self.vif = vif
        self.name = name
        """As the trace has it: that of the vif, if this is its only queue."""
        self.kernel = vif.kernel
        self.port = 0
        """Event channel of the tx ring, and of both without split ones; 0 until it is bound."""
        self.rx_port = 0
        """Event channel of the rx ring; the same, or one of its own."""
        self.queued = False
        """Stands in the worker's queue."""
        self.tx = BackRing(tx, TX_SLOT)
        self._rx = BackRing(rx, RX_SLOT)
        self.tx_words, self._rx_words = tx.cast("I"), rx.cast("Q")
        self._pool = pool
        self._copies = copies
        self._express = Express(self)
        self._known = Known()
        self._queue: deque[Waiting] = deque()
        self._queued_pages = 0
        self.trace = trace = self.kernel.cpu.trace
        self._trace_push = {} if trace is None else bind_pushes(trace, name)
        self._trace_frames: dict[tuple[str, int], Callable[[Sequence[int]], None]] = {}

    # -- guest to bridge ------------------------------------------------------------------------------------------

    def poll_tx(self) -> None:
        """Take everything that the guest sends. Raises HostileFrontend."""
        ring = self.tx
        while self.vif.pause is None:
            produced = ring.shared[REQ_PROD]
            if ring.request_overflow(produced):
                raise HostileFrontend(f"tx ring overflow: req_prod {produced}, req_cons {ring.req_cons}")
            before = ring.req_cons
            try:
                if produced != before:
                    self._take(TxSlots(ring, self.tx_words, produced - before & MASK32))
            finally:
                if ring.req_cons != before:
                    self._push(ring, "tx")
            if ring.req_cons == before and (self.vif.pause is not None or not self._more_coming(produced)):
                return

    def _take(self, slots: TxSlots) -> None:
        """Serve these requests, up to the first packet whose end is missing. Raises HostileFrontend."""
        at = 0
        while at < slots.count:
            after = self._express.take_large(slots, at) if slots.has_extra(at) else self._express.take(slots, at)
            if after == at and self.vif.pause is None:
                after = self._carry(slots, at)
            if after == at or self.vif.pause is not None:
                return
            at = after

    def _more_coming(self, produced: int) -> bool:
        """Ask to be told of the next request; whether one has come meanwhile."""
        ring = self.tx
        if ring.req_cons != produced:
            # The rest of a frame is missing: it comes with a later push.
            ring.shared[REQ_EVENT] = produced + 1 & MASK32
            return ring.shared[REQ_PROD] != produced
        return bool(ring.final_check_for_requests())

    def _push(self, ring: BackRing, what: str) -> None:
        """Show the responses of a ring, and tell the guest if it wants to know."""
        notify = ring.push_responses_and_check_notify()
        if self.trace is not None:
            self._trace_push[what](ring.rsp_prod_pvt, notify, ring.req_cons)
        if notify:
            self.kernel.events.notify(self.port if ring is self.tx else self.rx_port)

    def trace_packets(self, direction: str, sizes: Sequence[int], slots: int = 1) -> None:
        """Record frames that the guest has sent ("tx") or received ("rx"), as its own books will name it."""
        assert self.trace is not None
        told = self._trace_frames.get((direction, slots))
        if told is None:
            told = self.trace.bind_each(NET_PACKET, self.name, direction, WORD, slots)
            self._trace_frames[direction, slots] = told
        told(sizes)

    def forget(self) -> None:
        """Let go of what is known about mapped pages: some are unmapped."""
        self._express.forget()
        self._known.clear()

    # -- over the bridge ------------------------------------------------------------------------------------------

    def _carry(self, slots: TxSlots, at: int) -> int:
        """Take packets into frames of our own, as many as one batch of copies can; returns the slot behind them.

        Raises HostileFrontend.
        """
        copies = self._copies
        packets: list[Packet] = []
        after = at
        while after < slots.count:
            try:
                packet = slots.packet(after)
            except HostileFrontend:
                if not packets:
                    raise
                # Those before it are good: it will be met again.
                break
            if packet is None or copies.count + 2 * len(packet.slots) > CopyBatch.CAPACITY:
                break
            if self.vif.credit is not None and not self.vif.credit.take(packet.size, self.kernel.monotonic_ns()):
                self.vif.wait_for_credit()
                break
            self._start(packet)
            packets.append(packet)
            after += len(packet.slots) + packet.extras
        if packets:
            self.tx.req_cons = self.tx.req_cons + after - at & MASK32
            self._finish(packets)
        return after

    def _start(self, packet: Packet) -> None:
        """Check a packet and put its copies into the batch; an impossible one only gets its error."""
        packet.first_copy = packet.last_copy = self._copies.count
        if packet.is_order:
            for order in packet.infos:
                if not self.vif.multicast.amend(*order):
                    packet.status = ERROR
            return
        try:
            if not packet.is_possible(ETHERNET_HEADER, PAGE_SIZE):
                packet.status = ERROR
                return
            pages = self._pool.take(packet.size)
        except OutOfMemory:
            packet.status = ERROR
            return
        frame = packet.frame = Frame(self._pool, pages, packet.size, packet.slots[0][2])
        place = 0
        for slot, length in zip(packet.slots, packet.lengths, strict=True):
            place = self._copy_slot(slot[0], slot[1], length, frame, place)
        packet.last_copy = self._copies.count

    def _copy_slot(self, gref: int, offset: int, length: int, frame: Frame, place: int) -> int:
        """Copy the data of one slot, in two pieces if it crosses a page of the frame; returns the place behind it."""
        source = self.vif.mapped.get(gref)
        while length:
            page, at = frame.pages[place // PAGE_SIZE], place % PAGE_SIZE
            size = min(length, PAGE_SIZE - at)
            if source is not None:
                page.view[at : at + size] = source[offset : offset + size]
            else:
                self._copies.add((gref, self.vif.domid, offset, page.mfn, DOMID_SELF, at, size, GNTCOPY_source_gref))
            offset += size
            place += size
            length -= size
        return place

    def _finish(self, packets: list[Packet]) -> None:
        """Do the copies, answer the guest, and hand the frames to the bridge."""
        statuses = self._copies.run()
        counters, bridge = self.vif.counters, self.vif.bridge
        for packet in packets:
            if any(statuses[packet.first_copy : packet.last_copy]) or not self._begin_cutting(packet):
                packet.status = ERROR
        self._answer_packets(packets)
        for packet in packets:
            frame = packet.frame
            if packet.is_order:
                continue
            if frame is None or packet.status != OKAY or bridge is None:
                counters.rx_dropped += 1
            else:
                counters.rx_packets += 1
                counters.rx_bytes += frame.size
                if self.trace is not None:
                    self.trace_packets("tx", [frame.size], len(packet.slots))
                bridge.forward(frame, self.vif)
            if frame is not None:
                frame.put()

    def _begin_cutting(self, packet: Packet) -> bool:
        """See to a frame that is to be cut; False if that is impossible."""
        frame, offload = packet.frame, packet.offload
        return frame is None or offload is None or frame.begin_cutting(offload)

    def _answer_packets(self, packets: list[Packet]) -> None:
        """Put the responses of packets into the ring, without showing them."""
        ring = self.tx
        view, offsets, mask = ring.view, ring.offsets, ring.mask
        index = ring.rsp_prod_pvt
        for packet in packets:
            for number, slot in enumerate(packet.slots):
                TX_RESPONSE.pack_into(view, offsets[index & mask], slot[3], packet.status)
                index = index + 1 & MASK32
                # Extra info stands behind the first slot.
                for _ in range(packet.extras if not number else 0):
                    TX_RESPONSE.pack_into(view, offsets[index & mask], 0, NULL)
                    index = index + 1 & MASK32
        ring.rsp_prod_pvt = index

    # -- bridge to guest ------------------------------------------------------------------------------------------

    def open_lane(self) -> Lane | None:
        """See `LaneQueue.open_lane`."""
        ring = self._rx
        produced = ring.shared[REQ_PROD]
        count = produced - ring.req_cons & MASK32
        if self._queue or not self.vif.writable or not count or ring.request_overflow(produced):
            return None
        return Lane(ring, self._rx_words, count, self.vif, self._known)

    def end_lane(self, lane: Lane) -> None:
        """See `LaneQueue.end_lane`."""
        if lane.close():
            if self.trace is not None:
                for slots, sizes in lane.packets():
                    self.trace_packets("rx", sizes, slots)
            self._push(self._rx, "rx")

    def put(self, frame: Frame, extras: tuple[int, ...], prefix: int = 0, headroom: int = 0) -> bool:
        """Have a frame wait for the guest's buffers; False if too much waits already. See `Waiting`."""
        pages = len(frame.pages)
        if self._queued_pages + pages > RX_QUEUE_PAGES:
            return False
        frame.references += 1
        self._queued_pages += pages
        self._queue.append(Waiting(frame, extras, prefix, headroom))
        if len(self._queue) == 1:
            # Otherwise the frames before this one have told, or wait for the guest's buffers.
            self.vif.touched(self)
        return True

    def flush_rx(self) -> None:
        """Copy waiting frames into the guest's buffers, as many as there are buffers. Raises HostileFrontend."""
        ring = self._rx
        while self._queue:
            produced = ring.shared[REQ_PROD]
            if ring.request_overflow(produced):
                raise HostileFrontend(f"rx ring overflow: req_prod {produced}, req_cons {ring.req_cons}")
            sent = self._fill(produced)
            if sent:
                self._answer(sent)
            if self._queue and not self._room_for_head():
                return

    def _room_for_head(self) -> bool:
        """Whether the first waiting frame finds its buffers; if not, ask to be told when they come."""
        ring = self._rx
        need = self._queue[0].slots
        if ring.shared[REQ_PROD] - ring.req_cons & MASK32 >= need:
            return True
        ring.shared[REQ_EVENT] = ring.req_cons + need & MASK32
        return ring.shared[REQ_PROD] - ring.req_cons & MASK32 >= need

    def _fill(self, produced: int) -> list[Sent]:
        """Move waiting frames to the guest, as far as buffers and the batch of copies go."""
        ring, copies, queue = self._rx, self._copies, self._queue
        sent: list[Sent] = []
        while queue:
            waiting = queue[0]
            if produced - ring.req_cons & MASK32 < waiting.slots or copies.count + waiting.slots > CopyBatch.CAPACITY:
                break
            queue.popleft()
            self._queued_pages -= len(waiting.frame.pages)
            sent.append(self._fill_buffers(waiting))
        return sent

    def _fill_buffers(self, waiting: Waiting) -> Sent:
        """Take a buffer for each page of a frame, and copy the page into it or put the copy into the batch."""
        idents: list[int] = []
        numbers: list[int] = []
        domid, left = self.vif.domid, waiting.frame.size
        start = waiting.headroom
        room = PAGE_SIZE - start
        if waiting.prefix:
            idents.append(self._next_buffer()[0])
        for page in waiting.frame.pages:
            ident, gref = self._next_buffer()
            size = min(left, room)
            left -= size
            target = self.vif.writable.get(gref)
            if target is not None:
                target[start : start + size] = page.view[:size]
                number = -1
            else:
                number = self._copies.add((page.mfn, DOMID_SELF, 0, gref, domid, start, size, GNTCOPY_dest_gref))
            for _ in waiting.extras if not numbers else ():
                # Extra info stands in slots behind the first one, and uses up the requests there.
                self._next_buffer()
            idents.append(ident)
            numbers.append(number)
        return waiting, idents, numbers

    def _next_buffer(self) -> tuple[int, int]:
        """Take the next request off the rx ring; returns id and grant reference."""
        ring = self._rx
        ident, _, gref = RX_REQUEST.unpack_from(ring.view, ring.offset(ring.req_cons))
        ring.req_cons = ring.req_cons + 1 & MASK32
        return ident, gref

    def _answer(self, sent: list[Sent]) -> None:
        """Do the copies and tell the guest."""
        statuses = self._copies.run()
        ring = self._rx
        index = ring.rsp_prod_pvt
        for (frame, extras, prefix, start), idents, numbers in sent:
            room = PAGE_SIZE - start
            if prefix:
                # It has the length of a segment where others have an offset, and the number of buffers as its size.
                slots, ident = len(idents), idents.pop(0)
                RX_RESPONSE.pack_into(ring.view, ring.offset(index), ident, prefix, PREFIX_FLAGS, slots)
                index = index + 1 & MASK32
            flags, left = RX_FLAGS[frame.flags & 3], frame.size
            if extras:
                flags |= netif.NETRXF_extra_info
            for ident, number in zip(idents, numbers, strict=True):
                size = min(left, room)
                left -= size
                status = ERROR if number >= 0 and statuses[number] else size
                more = netif.NETRXF_more_data if left else 0
                RX_RESPONSE.pack_into(ring.view, ring.offset(index), ident, start, flags | more, status)
                index = index + 1 & MASK32
                for word in extras:
                    EXTRA_INFO.pack_into(ring.view, ring.offset(index), word)
                    index = index + 1 & MASK32
                flags, extras = 0, ()
            self.vif.counters.tx_packets += 1
            self.vif.counters.tx_bytes += frame.size
            if self.trace is not None:
                self.trace_packets("rx", [frame.size], len(idents) + (prefix > 0))
            frame.put()
        ring.rsp_prod_pvt = index
        self._push(ring, "rx")

    def close(self) -> None:
        """Drop what waits and let go of the rings."""
        while self._queue:
            self._queue.popleft().frame.put()
        self._queued_pages = 0
        self.tx_words.release()
        self._rx_words.release()
        self.tx.release()
        self._rx.release()
