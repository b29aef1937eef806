"""The backend's ends of one guest's rings.

Transmission (guest → bridge): what is new in the ring is copied out of it at once (`TxSlots`) and checked in the copy.
A frame then goes one of two ways. If the guest keeps the page with the frame mapped, and the one who gets it keeps its
buffers mapped, the bytes go from page to page (`_express`). Otherwise they go into a frame of our own (`_gather`), by
grant copies where nothing is mapped, many of them in one hypercall, and from there over the bridge.

Reception (bridge → guest): frames wait in a bounded queue until the guest has posted buffers.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.net.bridge import Bridge, Port
from backends.net.copies import CopyBatch
from backends.net.frame import MAC_MASK, Frame, FramePool
from backends.net.lane import RX_FLAGS, Lane, Places
from backends.net.slots import EXTRA, MORE, HostileFrontend, LargePacket, Packet, TxSlots
from guest_kernel.errors import OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.gso import examine
from guest_kernel.net.page_rows import leading
from guest_kernel.net.ring_words import RX_SLOT, TX_BASE, TX_SLOT, TX_WORDS, write_block, write_words
from guest_kernel.net.spans import Kept
from guest_kernel.vectors import MIN_BATCH
from hypervisor.abi.grant_table import GNTCOPY_dest_gref, GNTCOPY_source_gref
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, BackRing
from hypervisor.abi.tracepoints import NET_PACKET, RING_PUSH
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.net.vif import Vif
    from guest_kernel.net.spans import Views


TX_RESPONSE = netif.netif_tx_response.codec
RX_REQUEST, RX_RESPONSE = netif.netif_rx_request.codec, netif.netif_rx_response.codec
ADDRESSES = Struct("<QI")
"""The two Ethernet addresses of a frame, 12 bytes; see `_addresses`."""
SPECIAL = (MORE | EXTRA) << 16
BLANK = netif.NETTXF_csum_blank << 16
OKAY, ERROR, NULL = netif.NETIF_RSP_OKAY, netif.NETIF_RSP_ERROR, netif.NETIF_RSP_NULL
ETHERNET_HEADER, HEADER_AND_TAG = 14, 18
IPV6 = 0x86DD
MOST_SHAPES = 8
"""Headers that are remembered for each packet that is known: a guest could make up as many as it likes."""
PLAIN_IPV4 = b"\x08\x00\x45"
LONGEST_HEADERS = 512
"""More than an Ethernet, an IP and a TCP header can be together (see `guest_kernel.net.packet`)."""

RX_QUEUE_PAGES = 256
"""Pages of frames that wait for a guest's buffers; more are dropped: one that posts none costs a bound (XSA-392)."""

EXTRA_INFO = Struct("<Q")

Sent = tuple["Waiting", list[int], list[int]]
"""A frame on its way into a guest: the ids of its buffers; for each its copy's number in the batch, or -1."""


Known = tuple[LargePacket, "Views", list[int], set[bytes]]
"""A large packet, the pages that it is in, the responses to its slots as words, and headers that it may have."""


class Waiting(NamedTuple):
    """A frame for a guest, and the slots of extra info that go with it, as 64-bit words."""

    frame: Frame
    extras: tuple[int, ...]

    @property
    def slots(self) -> int:
        """How many slots of an rx ring it needs."""
        return len(self.frame.pages) + len(self.extras)


class Queue:
    """One pair of rings of a vif. What the guest has said about itself is the vif's."""

    def __init__(self, vif: Vif, name: str, tx: memoryview, rx: memoryview, pool: FramePool, copies: CopyBatch) -> None:
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
        self._tx = BackRing(tx, TX_SLOT)
        self._rx = BackRing(rx, RX_SLOT)
        self._tx_words, self._rx_words = tx.cast("I"), rx.cast("Q")
        self._pool = pool
        self._copies = copies
        self._known: Kept[bytes, Known] = Kept()
        """Of large packets, by all that their slots say."""
        self._places: Places = Kept()
        self._queue: deque[Waiting] = deque()
        self._queued_pages = 0
        self._trace = self.kernel.cpu.trace

    # -- guest to bridge ------------------------------------------------------------------------------------------

    def poll_tx(self) -> None:
        """Take everything that the guest sends. Raises HostileFrontend."""
        ring = self._tx
        while self.vif.pause is None:
            produced = ring.shared[REQ_PROD]
            if ring.request_overflow(produced):
                raise HostileFrontend(f"tx ring overflow: req_prod {produced}, req_cons {ring.req_cons}")
            before = ring.req_cons
            try:
                if produced != before:
                    self._take(TxSlots(ring, self._tx_words, produced - before & MASK32))
            finally:
                if ring.req_cons != before:
                    self._push(ring, "tx")
            if ring.req_cons == before and (self.vif.pause is not None or not self._more_coming(produced)):
                return

    def _take(self, slots: TxSlots) -> None:
        """Serve these requests, up to the first packet whose end is missing. Raises HostileFrontend."""
        at = 0
        while at < slots.count:
            after = self._express_large(slots, at) if slots.has_extra(at) else self._express(slots, at)
            if after == at:
                after = self._carry(slots, at)
            if after == at or self.vif.pause is not None:
                return
            at = after

    def _more_coming(self, produced: int) -> bool:
        """Ask to be told of the next request; whether one has come meanwhile."""
        ring = self._tx
        if ring.req_cons != produced:
            # The rest of a frame is missing: it comes with a later push.
            ring.shared[REQ_EVENT] = produced + 1 & MASK32
            return ring.shared[REQ_PROD] != produced
        return bool(ring.final_check_for_requests())

    def _push(self, ring: BackRing, what: str) -> None:
        """Show the responses of a ring, and tell the guest if it wants to know."""
        notify = ring.push_responses_and_check_notify()
        if self._trace is not None:
            self._trace(RING_PUSH, self.name, what, ring.rsp_prod_pvt, notify, ring.req_cons)
        if notify:
            self.kernel.events.notify(self.port if ring is self._tx else self.rx_port)

    def _trace_packets(self, direction: str, sizes: Iterable[int], slots: int = 1) -> None:
        """Record frames that the guest has sent ("tx") or received ("rx"), as its own books will name it."""
        assert self._trace is not None
        for size in sizes:
            self._trace(NET_PACKET, self.name, direction, size, slots)

    # -- from page to page ----------------------------------------------------------------------------------------

    def _express(self, slots: TxSlots, start: int) -> int:
        """Move frames from the guest's mapped pages into others' mapped buffers; returns the slot where that ends.

        It ends with a frame that is anything but ordinary, and leaves that to `_carry`. This loop is what a busy
        network runs through, so it is one piece. A frame's addresses are read once, and only they decide where it goes.
        """
        bridge, mapped = self.vif.bridge, self.vif.mapped
        if bridge is None or not self._is_express(bridge):
            return start
        addresses = ADDRESSES.unpack_from
        lanes: dict[Port, Lane] = {}
        flow: tuple[int, ...] = ()
        requests: list[int] = []
        writable: dict[int, memoryview] = {}
        special = SPECIAL
        last = 0
        done = self._express_blocks(bridge, slots, start, lanes)
        first = start + done
        rest = () if first == slots.count else (slots.refs[first:], slots.marks[first:], slots.sizes[first:])
        for ref, mark, size in zip(*rest, strict=True):
            source = mapped.get(ref)
            length = size >> 16
            offset = mark & 0xFFFF
            if source is None or mark & special or length < ETHERNET_HEADER or offset + length > PAGE_SIZE:
                break
            if flow != (key := addresses(source, offset)):
                lane = self._find_lane(bridge, key, lanes)
                if lane is None or (mark & BLANK and not lane.takes_blank):
                    break
                flow, requests, writable, answer = key, lane.requests, lane.writable, lane.answers.append
                special = SPECIAL if lane.takes_blank else SPECIAL | BLANK
            if not requests:
                break
            request = requests.pop()
            target = writable.get(request >> 32)
            if target is None:
                break
            if offset:
                target[:length] = source[offset : offset + length]
            else:
                if length != last:
                    part, last = slice(length), length
                target[part] = source[part]
            answer(request & 0xFFFF | RX_FLAGS[mark >> 16 & 3] << 32 | length << 48)
            done += 1
        for port, lane in lanes.items():
            port.end_lane(lane)
        bridge.counters.forwarded += done
        self._answer_express(slots, start, start + done)
        return start + done

    def _is_express(self, bridge: Bridge) -> bool:
        """Whether frames of this guest may go from page to page at all."""
        return bool(self.vif.mapped) and bridge.is_plain and self.vif.credit is None

    def _express_large(self, slots: TxSlots, start: int) -> int:
        """Do what `_express` does for large packets that are to be cut, and are not cut because they stay here."""
        bridge = self.vif.bridge
        if bridge is None or not self._is_express(bridge):
            return start
        lanes: dict[Port, Lane] = {}
        answers: list[int] = []
        packets = size = 0
        flow: tuple[int, ...] = ()
        lane: Lane | None = None
        at = start
        while at < slots.count:
            known = self._known.get(slots.key(at)) or self._know(slots, at)
            if known is None:
                break
            packet, source, oks, shapes = known
            # The guest may change its page at any time: what is checked here is also what is sent.
            head = bytes(source[0][:LONGEST_HEADERS])
            shape = head[12:18] + head[20:24] + head[46:47]
            if shape not in shapes and not self._may_be_cut(head, packet, shapes):
                break
            if flow != (key := ADDRESSES.unpack_from(head)):
                flow, lane = key, self._find_lane(bridge, key, lanes)
            if lane is None or not lane.take_large(source, head, packet.size, packet.offload):
                break
            answers += oks
            packets += 1
            size += packet.size
            at += packet.slots
            if self._trace is not None:
                self._trace_packets("tx", [packet.size], len(packet.refs))
        for port, lane in lanes.items():
            port.end_lane(lane)
        bridge.counters.forwarded += packets
        self.vif.counters.rx_packets += packets
        self.vif.counters.rx_bytes += size
        self._answer_large(answers)
        return at

    def _know(self, slots: TxSlots, at: int) -> Known | None:
        """Find out about a large packet in these slots, once: None if there is none, or its pages are not mapped."""
        packet = slots.large(at)
        source = None if packet is None else self.vif.readable_span(packet.refs)
        if packet is None or source is None:
            return None
        answers = [word & 0xFFFF for word in slots.sizes[at : at + packet.slots]]
        answers[1] = NULL << 16
        return self._known.keep(slots.key(at), (packet, source, answers, set()))

    def _may_be_cut(self, head: bytes, packet: LargePacket, shapes: set[bytes]) -> bool:
        """Whether these headers are those of a packet that could be cut, and must be somewhere; without a VLAN tag.

        What that depends on is kept in `shapes`, if it is no more than this: type, version, header length, IP's length,
        fragment, protocol, TCP's header length, of IPv4 without options.
        """
        headers = examine(head, packet.size, packet.offload)
        if headers is None or headers.place.network != ETHERNET_HEADER:
            return False
        if headers.place.end - headers.data <= packet.offload.gso_size:
            return False
        if head[12:15] == PLAIN_IPV4 and len(shapes) < MOST_SHAPES:
            shapes.add(head[12:18] + head[20:24] + head[46:47])
        return True

    def _answer_large(self, answers: list[int]) -> None:
        """Answer the next slots with these words."""
        ring, count = self._tx, len(answers)
        write_words(self._tx_words, TX_BASE, TX_WORDS, ring.size, ring.rsp_prod_pvt, answers)
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + count & MASK32
        ring.req_cons = ring.req_cons + count & MASK32

    def forget(self) -> None:
        """Let go of what is known about mapped pages: some are unmapped."""
        self._known.clear()
        self._places.clear()

    def _express_blocks(self, bridge: Bridge, slots: TxSlots, start: int, lanes: dict[Port, Lane]) -> int:
        """Do what the loop of `_express` does for frames that come many alike, if there is numpy; returns how many."""
        done = 0
        if slots.block is not None:
            while moved := self._express_block(bridge, slots.block[start + done :], lanes):
                done += moved
        return done

    def _express_block(self, bridge: Bridge, block: Any, lanes: dict[Port, Lane]) -> int:
        """Do for the first frames of a block what the loop of `_express` does, all at once; returns how many.

        They have all the same addresses, length and flags. (In each array those that go are the first ones.)
        """
        rows = self.vif.rows
        if rows is None or len(block) < MIN_BATCH:
            return 0
        mark, length = int(block[0, 1]), int(block[0, 2]) >> 16
        if mark & (SPECIAL | 0xFFFF) or not ETHERNET_HEADER <= length <= PAGE_SIZE:
            return 0
        sources = rows.find(block[:, 0])
        count = leading((sources >= 0) & (block[:, 1] == mark) & (block[:, 2] >> 16 == length))
        if count < MIN_BATCH:
            return 0
        run = rows.home(sources[:count])
        headers = rows.read(sources[:count], ADDRESSES.size, run)
        count = leading(headers == headers[0])
        lane = self._find_lane(bridge, ADDRESSES.unpack(headers[0].tobytes()), lanes)
        if lane is None or lane.rows is None or (mark & BLANK and not lane.takes_blank):
            return 0
        targets = lane.rows.find_writable(lane.posted[:count] >> 32)
        count = leading(targets >= 0)
        if not count:
            return 0
        lane.rows.write(targets[:count], rows.read(sources[:count], length, run))
        lane.take(count, lane.posted[:count] & 0xFFFF | (RX_FLAGS[mark >> 16 & 3] << 32 | length << 48))
        return count

    def _find_lane(self, bridge: Bridge, addresses: tuple[int, ...], lanes: dict[Port, Lane]) -> Lane | None:
        """Return the lane to whom a frame with these addresses goes, if it goes to one vif that has a lane."""
        low, high = addresses
        target = bridge.route(low & MAC_MASK, low >> 48 | high << 16, self.vif, bridge.now())
        if target is None or target is self.vif:
            return None
        lane = lanes.get(target) or target.open_lane()
        if lane is not None:
            lanes[target] = lane
        return lane

    def open_lane(self) -> Lane | None:
        """See `Port.open_lane`: the guest must keep buffers mapped, some be free, and no frame wait before."""
        ring = self._rx
        produced = ring.shared[REQ_PROD]
        count = produced - ring.req_cons & MASK32
        if self._queue or not self.vif.writable or not count or ring.request_overflow(produced):
            return None
        # It does not look at types either: what may be blank must be so for all.
        takes_blank = self.vif.takes_blank and self.vif.takes_blank_ipv6
        lane = Lane(ring, self._rx_words, count, self.vif.writable, self.vif.counters, takes_blank, self.vif.rows)
        if takes_blank and self.vif.scatter and self.vif.mtu is None:
            lane.large, lane.span, lane.places = self.vif.gso_types, self.vif.writable_span, self._places
        return lane

    def end_lane(self, lane: Lane) -> None:
        """Show the guest what a lane has brought."""
        if lane.close():
            if self._trace is not None:
                for size, count in lane.packets():
                    self._trace_packets("rx", [size], count)
            self._push(self._rx, "rx")

    def _answer_express(self, slots: TxSlots, start: int, end: int) -> None:
        """Answer the slots from `start` to `end`, the first that are not answered, with NETIF_RSP_OKAY."""
        ring, count = self._tx, end - start
        place = (TX_BASE, TX_WORDS, ring.size, ring.rsp_prod_pvt)
        if slots.block is not None:
            block = slots.block[start:end, 2]
            write_block(self._tx_words, *place, block & 0xFFFF)
            total = int((block >> 16).sum())
        else:
            sizes = slots.sizes[start:end]
            idents = [size & 0xFFFF for size in sizes]
            write_words(self._tx_words, *place, idents)
            total = sum(sizes) - sum(idents) >> 16
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + count & MASK32
        ring.req_cons = ring.req_cons + count & MASK32
        self.vif.counters.rx_packets += count
        self.vif.counters.rx_bytes += total
        if self._trace is not None:
            self._trace_packets("tx", [size >> 16 for size in slots.sizes[start:end]])

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
            self._tx.req_cons = self._tx.req_cons + after - at & MASK32
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
            if frame is None or packet.status != OKAY:
                counters.rx_dropped += 1
            else:
                counters.rx_packets += 1
                counters.rx_bytes += frame.size
                if self._trace is not None:
                    self._trace_packets("tx", [frame.size], len(packet.slots))
                if bridge is not None:
                    bridge.forward(frame, self.vif)
            if frame is not None:
                frame.put()

    def _begin_cutting(self, packet: Packet) -> bool:
        """See to a frame that is to be cut; False if that is impossible."""
        frame, offload = packet.frame, packet.offload
        return frame is None or offload is None or frame.begin_cutting(offload)

    def _answer_packets(self, packets: list[Packet]) -> None:
        """Put the responses of packets into the ring, without showing them."""
        ring = self._tx
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

    def put(self, frame: Frame, extras: tuple[int, ...]) -> bool:
        """Have a frame wait for the guest's buffers; False if too much waits already."""
        pages = len(frame.pages)
        if self._queued_pages + pages > RX_QUEUE_PAGES:
            return False
        frame.references += 1
        self._queued_pages += pages
        self._queue.append(Waiting(frame, extras))
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
        for page in waiting.frame.pages:
            ident, gref = self._next_buffer()
            size = min(left, PAGE_SIZE)
            left -= size
            target = self.vif.writable.get(gref)
            if target is not None:
                target[:size] = page.view[:size]
                number = -1
            else:
                number = self._copies.add((page.mfn, DOMID_SELF, 0, gref, domid, 0, size, GNTCOPY_dest_gref))
            for _ in waiting.extras if not idents else ():
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
        for (frame, extras), idents, numbers in sent:
            flags, left = RX_FLAGS[frame.flags & 3], frame.size
            if extras:
                flags |= netif.NETRXF_extra_info
            for ident, number in zip(idents, numbers, strict=True):
                size = min(left, PAGE_SIZE)
                left -= size
                status = ERROR if number >= 0 and statuses[number] else size
                more = netif.NETRXF_more_data if left else 0
                RX_RESPONSE.pack_into(ring.view, ring.offset(index), ident, 0, flags | more, status)
                index = index + 1 & MASK32
                for word in extras:
                    EXTRA_INFO.pack_into(ring.view, ring.offset(index), word)
                    index = index + 1 & MASK32
                flags, extras = 0, ()
            self.vif.counters.tx_packets += 1
            self.vif.counters.tx_bytes += frame.size
            if self._trace is not None:
                self._trace_packets("rx", [frame.size], len(idents))
            frame.put()
        ring.rsp_prod_pvt = index
        self._push(ring, "rx")

    def close(self) -> None:
        """Drop what waits and let go of the rings."""
        while self._queue:
            self._queue.popleft().frame.put()
        self._queued_pages = 0
        self._tx_words.release()
        self._rx_words.release()
        self._tx.release()
        self._rx.release()
