"""The backend's ends of one guest's rings.

Transmission (guest → bridge): every request is copied out of the ring once and checked in the copy; the data is moved
by grant copies, a whole ring in one hypercall, into frames of our own, and only then does anyone look at it. Reception
(bridge → guest): frames wait in a bounded queue until the guest has posted buffers.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from backends.net.bridge import Port
from backends.net.copies import CopyBatch
from backends.net.frame import Frame, FramePool
from guest_kernel.net.device import Counters
from hypervisor.abi.grant_table import GNTCOPY_dest_gref, GNTCOPY_source_gref
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, BackRing
from hypervisor.abi.tracepoints import RING_PUSH
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_kernel.kernel import Kernel

PAGE = 4096
TX_REQUEST, TX_RESPONSE = netif.netif_tx_request.codec, netif.netif_tx_response.codec
RX_REQUEST, RX_RESPONSE = netif.netif_rx_request.codec, netif.netif_rx_response.codec
MORE, EXTRA = netif.NETTXF_more_data, netif.NETTXF_extra_info
EXTRA_MORE = netif.XEN_NETIF_EXTRA_FLAG_MORE
OKAY, ERROR, NULL = netif.NETIF_RSP_OKAY, netif.NETIF_RSP_ERROR, netif.NETIF_RSP_NULL
ETHERNET_HEADER = 14

RX_QUEUE = 256
"""Frames that wait for a guest's buffers; more are dropped: a guest that posts none costs a bound (XSA-392)."""
MAX_SLOTS = netif.XEN_NETIF_NR_SLOTS_MIN
FATAL_SLOTS = 20
"""A frame of more slots than this is no mistake but an attack: the vif is closed (Linux's fatal_skb_slots)."""

Request = tuple[int, int, int, int, int]
"""A tx request: gref, offset, flags, id, size."""


class HostileFrontend(Exception):
    """The frontend broke the protocol in a way that no answer on the ring can mend."""


class Packet:
    """One frame that a guest sends: its slots, and where its copies stand in the batch."""

    __slots__ = ("first_copy", "frame", "last_copy", "nulls", "slots", "status")

    def __init__(self, slots: list[Request], nulls: int) -> None:
        self.slots = slots
        self.nulls = nulls
        """Extra info slots: each is answered with NETIF_RSP_NULL."""
        self.frame: Frame | None = None
        self.first_copy = self.last_copy = 0
        self.status = OKAY


class Vif(Port):
    """One virtual interface, connected."""

    def __init__(
        self, kernel: Kernel, name: str, domid: int, tx: memoryview, rx: memoryview, pool: FramePool, copies: CopyBatch
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.domid = domid
        self.counters = Counters()
        self.port = 0
        """Event channel; 0 until it is bound."""
        self.queued = False
        """Stands in the worker's queue."""
        self.touched: Callable[[Vif], None] = lambda vif: None
        """Told when a frame was put into the rx queue, so that the worker flushes it."""
        self._tx = BackRing(tx, max(TX_REQUEST.size, TX_RESPONSE.size))
        self._rx = BackRing(rx, max(RX_REQUEST.size, RX_RESPONSE.size))
        self.mapped: dict[int, memoryview] = {}
        """Pages of the guest that stay mapped, by grant reference (see `control`)."""
        self.writable: dict[int, memoryview] = {}
        self._pool = pool
        self._copies = copies
        self._queue: deque[Frame] = deque()
        self._trace = kernel.cpu.trace

    # -- guest to bridge ------------------------------------------------------------------------------------------

    def poll_tx(self) -> None:
        """Take everything that the guest sends. Raises HostileFrontend."""
        ring = self._tx
        while True:
            produced = ring.shared[REQ_PROD]
            if ring.request_overflow(produced):
                raise HostileFrontend(f"tx ring overflow: req_prod {produced}, req_cons {ring.req_cons}")
            packets = self._gather(produced)
            if packets:
                self._finish(packets)
            elif not self._more_coming(produced):
                return

    def _more_coming(self, produced: int) -> bool:
        """Ask to be told of the next request; whether one has come meanwhile."""
        ring = self._tx
        if ring.req_cons != produced:
            # The rest of a frame is missing: it comes with a later push.
            ring.shared[REQ_EVENT] = produced + 1 & MASK32
            return ring.shared[REQ_PROD] != produced
        return bool(ring.final_check_for_requests())

    def _gather(self, produced: int) -> list[Packet]:
        """Copy whole packets out of the ring and put their grant copies into the batch, as far as it goes."""
        ring, copies = self._tx, self._copies
        view, offsets, mask = ring.view, ring.offsets, ring.mask
        packets: list[Packet] = []
        index = ring.req_cons
        while index != produced:
            request: Request = TX_REQUEST.unpack_from(view, offsets[index & mask])
            if request[2] & (MORE | EXTRA):
                parsed = self._parse_long(request, index, produced)
                if parsed is None:
                    break
                packet, next_index = parsed
            else:
                packet = Packet([request], 0)
                next_index = index + 1 & MASK32
            if copies.count + 2 * len(packet.slots) > CopyBatch.CAPACITY:
                break
            self._start(packet)
            packets.append(packet)
            index = next_index
        ring.req_cons = index
        return packets

    def _parse_long(self, first: Request, index: int, produced: int) -> tuple[Packet, int] | None:
        """Read a packet of several slots; None if its end has not been pushed yet. Raises HostileFrontend."""
        ring = self._tx
        nulls = 0
        index = index + 1 & MASK32
        more_extra = first[2] & EXTRA
        while more_extra:
            if index == produced:
                return None
            extra = ring.copy(index)
            index = index + 1 & MASK32
            nulls += 1
            more_extra = extra[1] & EXTRA_MORE
            if nulls > MAX_SLOTS:
                raise HostileFrontend("endless extra info slots")
        slots = [first]
        while slots[-1][2] & MORE:
            if index == produced:
                return None
            slots.append(TX_REQUEST.unpack_from(ring.view, ring.offsets[index & ring.mask]))
            index = index + 1 & MASK32
            if len(slots) > FATAL_SLOTS:
                raise HostileFrontend(f"a frame of more than {FATAL_SLOTS} slots")
        return Packet(slots, nulls), index

    def _start(self, packet: Packet) -> None:
        """Check a packet and put its copies into the batch; an impossible one only gets its error."""
        slots = packet.slots
        gref, offset, flags, _, size = slots[0]
        copies = self._copies
        packet.first_copy = packet.last_copy = copies.count
        if len(slots) == 1 and not packet.nulls:
            if size < ETHERNET_HEADER or offset + size > PAGE:
                packet.status = ERROR
                return
            pages = self._pool.take(size)
            packet.frame = Frame(self._pool, pages, size, flags)
            packet.frame.references = 1
            source = self.mapped.get(gref)
            if source is not None:
                pages[0].view[:size] = source[offset : offset + size]
            else:
                copies.add((gref, self.domid, offset, pages[0].mfn, DOMID_SELF, 0, size, GNTCOPY_source_gref))
                packet.last_copy = copies.count
            return
        self._start_long(packet)

    def _start_long(self, packet: Packet) -> None:
        slots = packet.slots
        total = slots[0][4]
        lengths = [slot[4] for slot in slots[1:]]
        lengths.insert(0, total - sum(lengths))
        fits = all(
            0 <= length <= PAGE - slot[1] if slot[1] < PAGE else not length
            for slot, length in zip(slots, lengths, strict=True)
        )
        # Extra info was never offered (no feature-gso-*, no multicast control), so a frame that has some is an error.
        if not fits or lengths[0] < 0 or total < ETHERNET_HEADER or len(slots) > MAX_SLOTS or packet.nulls:
            packet.status = ERROR
            return
        pages = self._pool.take(total)
        packet.frame = Frame(self._pool, pages, total, slots[0][2])
        packet.frame.references = 1
        place = 0
        for slot, length in zip(slots, lengths, strict=True):
            place = self._copy_slot(slot, length, packet.frame, place)
        packet.last_copy = self._copies.count

    def _copy_slot(self, slot: Request, length: int, frame: Frame, place: int) -> int:
        """Add the copies of one slot: two if its data crosses a page of the frame. A slot without data needs none."""
        gref, offset = slot[0], slot[1]
        while length:
            room = PAGE - place % PAGE
            size = min(length, room)
            mfn = frame.pages[place // PAGE].mfn
            self._copies.add((gref, self.domid, offset, mfn, DOMID_SELF, place % PAGE, size, GNTCOPY_source_gref))
            offset += size
            place += size
            length -= size
        return place

    def _finish(self, packets: list[Packet]) -> None:
        """Do the copies, answer the guest, and hand the frames to the bridge."""
        statuses = self._copies.run()
        ring = self._tx
        view, offsets, mask = ring.view, ring.offsets, ring.mask
        counters = self.counters
        index = ring.rsp_prod_pvt
        for packet in packets:
            if any(statuses[packet.first_copy : packet.last_copy]):
                packet.status = ERROR
            for slot in packet.slots:
                TX_RESPONSE.pack_into(view, offsets[index & mask], slot[3], packet.status)
                index = index + 1 & MASK32
            for _ in range(packet.nulls):
                TX_RESPONSE.pack_into(view, offsets[index & mask], 0, NULL)
                index = index + 1 & MASK32
        ring.rsp_prod_pvt = index
        notify = ring.push_responses_and_check_notify()
        if self._trace is not None:
            self._trace(RING_PUSH, self.name, "tx", index, notify)
        if notify:
            self.kernel.events.notify(self.port)
        bridge = self.bridge
        for packet in packets:
            frame = packet.frame
            if frame is None or packet.status != OKAY:
                counters.rx_dropped += 1
            else:
                counters.rx_packets += 1
                counters.rx_bytes += frame.size
                if bridge is not None:
                    bridge.forward(frame, self)
            if frame is not None:
                frame.put()

    # -- bridge to guest ------------------------------------------------------------------------------------------

    def deliver(self, frame: Frame) -> None:
        """Queue a frame for the guest, unless too many wait already."""
        if len(self._queue) >= RX_QUEUE:
            self.counters.tx_dropped += 1
            return
        frame.references += 1
        self._queue.append(frame)
        if len(self._queue) == 1:
            # Otherwise the frames before this one have told, or wait for the guest's buffers.
            self.touched(self)

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
        need = len(self._queue[0].pages)
        if ring.shared[REQ_PROD] - ring.req_cons & MASK32 >= need:
            return True
        ring.shared[REQ_EVENT] = ring.req_cons + need & MASK32
        return ring.shared[REQ_PROD] - ring.req_cons & MASK32 >= need

    def _fill(self, produced: int) -> list[tuple[Frame, int, list[int]]]:
        """Move waiting frames to the guest: (frame, its first copy in the batch or -1 if none, ids of the buffers)."""
        ring, copies, domid = self._rx, self._copies, self.domid
        view, offsets, mask, writable = ring.view, ring.offsets, ring.mask, self.writable
        sent: list[tuple[Frame, int, list[int]]] = []
        queue = self._queue
        while queue:
            frame = queue[0]
            need = len(frame.pages)
            if produced - ring.req_cons & MASK32 < need or copies.count + need > copies.CAPACITY:
                break
            queue.popleft()
            first, idents, left = copies.count, [], frame.size
            for page in frame.pages:
                ident, _, gref = RX_REQUEST.unpack_from(view, offsets[ring.req_cons & mask])
                ring.req_cons = ring.req_cons + 1 & MASK32
                idents.append(ident)
                size = min(left, PAGE)
                left -= size
                target = writable.get(gref) if need == 1 else None
                if target is not None:
                    target[:size] = page.view[:size]
                else:
                    copies.add((page.mfn, DOMID_SELF, 0, gref, domid, 0, size, GNTCOPY_dest_gref))
            sent.append((frame, first if copies.count > first else -1, idents))
        return sent

    def _answer(self, sent: list[tuple[Frame, int, list[int]]]) -> None:
        """Do the copies and tell the guest."""
        statuses = self._copies.run()
        ring = self._rx
        view, offsets, mask = ring.view, ring.offsets, ring.mask
        counters = self.counters
        index = ring.rsp_prod_pvt
        for frame, first, idents in sent:
            # NETTXF_csum_blank and _data_validated have the same bits as their NETRXF_ counterparts.
            flags = frame.flags & (netif.NETRXF_csum_blank | netif.NETRXF_data_validated)
            left, last = frame.size, len(idents) - 1
            for number, ident in enumerate(idents):
                size = min(left, PAGE)
                left -= size
                status = ERROR if first >= 0 and statuses[first + number] else size
                more = netif.NETRXF_more_data if number < last else 0
                RX_RESPONSE.pack_into(view, offsets[index & mask], ident, 0, (0 if number else flags) | more, status)
                index = index + 1 & MASK32
            counters.tx_packets += 1
            counters.tx_bytes += frame.size
            frame.put()
        ring.rsp_prod_pvt = index
        notify = ring.push_responses_and_check_notify()
        if self._trace is not None:
            self._trace(RING_PUSH, self.name, "rx", index, notify)
        if notify:
            self.kernel.events.notify(self.port)

    def close(self) -> None:
        """Drop what waits and let go of the rings."""
        while self._queue:
            self._queue.popleft().put()
        self._tx.release()
        self._rx.release()
