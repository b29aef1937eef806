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
from typing import TYPE_CHECKING, Any

from backends.net.bridge import Bridge, Port
from backends.net.copies import CopyBatch
from backends.net.frame import MAC_MASK, Frame, FramePool
from backends.net.lane import RX_FLAGS, Lane, no_span
from backends.net.multicast import MulticastFilter
from backends.net.slots import EXTRA, GSO, MORE, HostileFrontend, LargePacket, Packet, TxSlots
from backends.net.vlan import TPID
from guest_kernel.errors import OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.device import Counters
from guest_kernel.net.gso import examine
from guest_kernel.net.page_rows import PageRows, leading
from guest_kernel.net.ring_words import RX_SLOT, TX_BASE, TX_SLOT, TX_WORDS, write_block, write_words
from guest_kernel.vectors import MIN_BATCH
from hypervisor.abi.grant_table import GNTCOPY_dest_gref, GNTCOPY_source_gref
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, BackRing
from hypervisor.abi.tracepoints import NET_PACKET, RING_PUSH
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backends.net.credit import Credit
    from guest_kernel.kernel import Kernel
    from guest_kernel.time import Timer

TX_RESPONSE = netif.netif_tx_response.codec
RX_REQUEST, RX_RESPONSE = netif.netif_rx_request.codec, netif.netif_rx_response.codec
ADDRESSES = Struct("<QI")
"""The two Ethernet addresses of a frame, 12 bytes; see `_addresses`."""
SPECIAL = (MORE | EXTRA) << 16
BLANK = netif.NETTXF_csum_blank << 16
OKAY, ERROR, NULL = netif.NETIF_RSP_OKAY, netif.NETIF_RSP_ERROR, netif.NETIF_RSP_NULL
ETHERNET_HEADER, HEADER_AND_TAG = 14, 18
IPV6 = 0x86DD
LONGEST_HEADERS = 512
"""More than an Ethernet, an IP and a TCP header can be together (see `guest_kernel.net.packet`)."""

RX_QUEUE_PAGES = 256
"""Pages of frames that wait for a guest's buffers; more are dropped: one that posts none costs a bound (XSA-392)."""

GSO_INFO = Struct("<BBHBBH")
"""A slot of extra info about segmentation: its type, flags, bytes of data in a segment, type, padding, features."""

Sent = tuple[Frame, list[int], list[int]]
"""A frame on its way into a guest: the ids of its buffers; for each its copy's number in the batch, or -1."""


def slots_of(frame: Frame) -> int:
    """Return how many slots of an rx ring a frame needs."""
    return len(frame.pages) + (frame.cutting is not None)


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
        """Event channel of the tx ring, and of both without split ones; 0 until it is bound."""
        self.rx_port = 0
        """Event channel of the rx ring; the same, or one of its own."""
        self.queued = False
        """Stands in the worker's queue."""
        self.touched: Callable[[Vif], None] = lambda vif: None
        """Told when a frame was put into the rx queue, so that the worker flushes it."""
        self.mapped: dict[int, memoryview] = {}
        """Pages of the guest that stay mapped, by grant reference (see `control`)."""
        self.writable: dict[int, memoryview] = {}
        self.readable_span = self.writable_span = no_span
        """Views of several of them at once, by their grant references (see `ControlRing`)."""
        self.rows: PageRows | None = None
        """The same pages as rows of arrays, if there is numpy."""
        self.scatter = False
        """The guest takes frames of several slots (feature-sg)."""
        self.mtu: int | None = None
        """Longest frame that goes to the guest, without Ethernet's header and a VLAN tag; None: any."""
        self.credit: Credit | None = None
        """What the guest may send, if that has a limit."""
        self.recheck: Callable[[Vif], None] = lambda vif: None
        """Told when a guest that has used up its credit has some again."""
        self._pause: Timer | None = None
        self.multicast = MulticastFilter()
        self.takes_blank = True
        """The guest takes frames whose checksum is not filled in (no feature-no-csum-offload)."""
        self.takes_blank_ipv6 = False
        """The same for IPv6 (feature-ipv6-csum-offload)."""
        self.gso_types: frozenset[int] = frozenset()
        """Kinds of large packets that the guest takes (feature-gso-tcpv4, -tcpv6)."""
        self._tx = BackRing(tx, TX_SLOT)
        self._rx = BackRing(rx, RX_SLOT)
        self._tx_words, self._rx_words = tx.cast("I"), rx.cast("Q")
        self._pool = pool
        self._copies = copies
        self._queue: deque[Frame] = deque()
        self._queued_pages = 0
        self._trace = kernel.cpu.trace

    # -- guest to bridge ------------------------------------------------------------------------------------------

    def arrange(self, rows: PageRows | None) -> None:
        """Have other rows for the guest's mapped pages, or none."""
        self.rows = rows

    def poll_tx(self) -> None:
        """Take everything that the guest sends. Raises HostileFrontend."""
        ring = self._tx
        while self._pause is None:
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
            if ring.req_cons == before and (self._pause is not None or not self._more_coming(produced)):
                return

    def _take(self, slots: TxSlots) -> None:
        """Serve these requests, up to the first packet whose end is missing. Raises HostileFrontend."""
        at = 0
        while at < slots.count:
            after = self._express(slots, at)
            if after == at:
                after = self._express_large(slots, at)
            if after == at:
                after = self._carry(slots, at)
            if after == at or self._pause is not None:
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
        bridge, mapped = self.bridge, self.mapped
        if bridge is None or not self._is_express(bridge):
            return start
        addresses = ADDRESSES.unpack_from
        lanes: dict[Vif, Lane] = {}
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
        for vif, lane in lanes.items():
            vif.end_lane(lane)
        bridge.counters.forwarded += done
        self._answer_express(slots, start, start + done)
        return start + done

    def _is_express(self, bridge: Bridge) -> bool:
        """Whether frames of this guest may go from page to page at all."""
        return bool(self.mapped) and bridge.is_plain and self.credit is None

    def _express_large(self, slots: TxSlots, start: int) -> int:
        """Do what `_express` does for large packets that are to be cut, and are not cut because they stay here."""
        bridge = self.bridge
        if bridge is None or not slots.marks[start] & EXTRA << 16 or not self._is_express(bridge):
            return start
        lanes: dict[Vif, Lane] = {}
        moved: list[LargePacket] = []
        at = start
        while at < slots.count:
            packet = slots.large(at)
            if packet is None or not self._move_large(bridge, packet, lanes):
                break
            moved.append(packet)
            at = packet.after
        for vif, lane in lanes.items():
            vif.end_lane(lane)
        bridge.counters.forwarded += len(moved)
        self._answer_large(slots, start, moved)
        return at

    def _move_large(self, bridge: Bridge, packet: LargePacket, lanes: dict[Vif, Lane]) -> bool:
        """Move one of them; False if it is for `_carry`, because it is wrong, say."""
        source = self.readable_span(packet.refs)
        if source is None:
            return False
        # The guest may change its page at any time: what is checked here is also what is sent.
        head = bytes(source[0][:LONGEST_HEADERS])
        headers = examine(head, packet.size, packet.offload)
        if headers is None or headers.place.network != ETHERNET_HEADER:
            return False
        if headers.place.end - headers.data <= packet.offload.gso_size:
            return False
        lane = self._find_lane(bridge, ADDRESSES.unpack_from(head), lanes)
        return lane is not None and lane.take_large(source, head, packet.size, packet.offload)

    def _answer_large(self, slots: TxSlots, start: int, moved: list[LargePacket]) -> None:
        """Answer the slots from `start` on, which are those of these packets."""
        if not moved:
            return
        ring, end = self._tx, moved[-1].after
        answers = [word & 0xFFFF for word in slots.sizes[start:end]]
        at = start
        for packet in moved:
            answers[at + 1 - start] = NULL << 16
            at = packet.after
            self.counters.rx_bytes += packet.size
            if self._trace is not None:
                self._trace_packets("tx", [packet.size], len(packet.refs))
        self.counters.rx_packets += len(moved)
        write_words(self._tx_words, TX_BASE, TX_WORDS, ring.size, ring.rsp_prod_pvt, answers)
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + end - start & MASK32
        ring.req_cons = ring.req_cons + end - start & MASK32

    def _express_blocks(self, bridge: Bridge, slots: TxSlots, start: int, lanes: dict[Vif, Lane]) -> int:
        """Do what the loop of `_express` does for frames that come many alike, if there is numpy; returns how many."""
        done = 0
        if slots.block is not None:
            while moved := self._express_block(bridge, slots.block[start + done :], lanes):
                done += moved
        return done

    def _express_block(self, bridge: Bridge, block: Any, lanes: dict[Vif, Lane]) -> int:
        """Do for the first frames of a block what the loop of `_express` does, all at once; returns how many.

        They have all the same addresses, length and flags. (In each array those that go are the first ones.)
        """
        rows = self.rows
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

    def _find_lane(self, bridge: Bridge, addresses: tuple[int, ...], lanes: dict[Vif, Lane]) -> Lane | None:
        """Return the lane to whom a frame with these addresses goes, if it goes to one vif that has a lane."""
        low, high = addresses
        target = bridge.route(low & MAC_MASK, low >> 48 | high << 16, self, bridge.now())
        if target is self or not isinstance(target, Vif):
            return None
        lane = lanes.get(target) or target.open_lane()
        if lane is not None:
            lanes[target] = lane
        return lane

    def open_lane(self) -> Lane | None:
        """Return a lane into the guest if it keeps buffers mapped, some are free, and no frame waits before."""
        ring = self._rx
        produced = ring.shared[REQ_PROD]
        count = produced - ring.req_cons & MASK32
        if self._queue or not self.writable or not count or ring.request_overflow(produced):
            return None
        if self.mtu is not None and self.mtu + HEADER_AND_TAG < PAGE_SIZE:
            # Whoever uses a lane does not compare lengths; none is above a page.
            return None
        # It does not look at types either: what may be blank must be so for all.
        takes_blank = self.takes_blank and self.takes_blank_ipv6
        lane = Lane(ring, self._rx_words, count, self.writable, self.counters, takes_blank, self.rows)
        if takes_blank and self.scatter and self.mtu is None:
            lane.large, lane.span = self.gso_types, self.writable_span
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
        self.counters.rx_packets += count
        self.counters.rx_bytes += total
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
            if self.credit is not None and not self.credit.take(packet.size, self.kernel.monotonic_ns()):
                self._wait_for_credit(self.credit)
                break
            self._start(packet)
            packets.append(packet)
            after += len(packet.slots) + packet.extras
        if packets:
            self._tx.req_cons = self._tx.req_cons + after - at & MASK32
            self._finish(packets)
        return after

    def _wait_for_credit(self, credit: Credit) -> None:
        """Leave the tx ring alone until there is credit again: the guest's frames wait in its own pages."""

        def end() -> None:
            self._pause = None
            self.recheck(self)

        self._pause = self.kernel.timers.add(credit.next, end)

    def _start(self, packet: Packet) -> None:
        """Check a packet and put its copies into the batch; an impossible one only gets its error."""
        packet.first_copy = packet.last_copy = self._copies.count
        if packet.is_order:
            for order in packet.infos:
                if not self.multicast.amend(*order):
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
        source = self.mapped.get(gref)
        while length:
            page, at = frame.pages[place // PAGE_SIZE], place % PAGE_SIZE
            size = min(length, PAGE_SIZE - at)
            if source is not None:
                page.view[at : at + size] = source[offset : offset + size]
            else:
                self._copies.add((gref, self.domid, offset, page.mfn, DOMID_SELF, at, size, GNTCOPY_source_gref))
            offset += size
            place += size
            length -= size
        return place

    def _finish(self, packets: list[Packet]) -> None:
        """Do the copies, answer the guest, and hand the frames to the bridge."""
        statuses = self._copies.run()
        counters, bridge = self.counters, self.bridge
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
                    bridge.forward(frame, self)
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

    def refused(self) -> None:
        """See `Port.refused`."""
        self.counters.rx_dropped += 1

    # -- bridge to guest ------------------------------------------------------------------------------------------

    def deliver(self, frame: Frame) -> None:
        """Queue a frame for the guest, unless too much waits already or the guest could not take it."""
        pages = len(frame.pages)
        if not self.multicast.passes(frame.destination):
            return
        too_long = self.mtu is not None and frame.longest > self.mtu + HEADER_AND_TAG
        if too_long or self._queued_pages + pages > RX_QUEUE_PAGES or (pages > 1 and not self.scatter):
            self.counters.tx_dropped += 1
            return
        if frame.flags & netif.NETTXF_csum_blank and not self._takes_blank(frame):
            frame.fill_checksum()
        frame.references += 1
        self._queued_pages += pages
        self._queue.append(frame)
        if len(self._queue) == 1:
            # Otherwise the frames before this one have told, or wait for the guest's buffers.
            self.touched(self)

    def _takes_blank(self, frame: Frame) -> bool:
        """Whether the guest takes this frame without its checksum; behind a VLAN tag nobody looks for one."""
        view = frame.pages[0].view
        kind = view[12] << 8 | view[13]
        if kind == IPV6:
            return self.takes_blank_ipv6
        return self.takes_blank and kind != TPID

    def takes_whole(self, frame: Frame) -> bool:
        """Whether the guest cuts such packets itself, or need not: it must take several slots and blank checksums."""
        cutting = frame.cutting
        return (
            cutting is not None
            and cutting.offload.gso_type in self.gso_types
            and self.scatter
            and self._takes_blank(frame)
        )

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
        need = slots_of(self._queue[0])
        if ring.shared[REQ_PROD] - ring.req_cons & MASK32 >= need:
            return True
        ring.shared[REQ_EVENT] = ring.req_cons + need & MASK32
        return ring.shared[REQ_PROD] - ring.req_cons & MASK32 >= need

    def _fill(self, produced: int) -> list[Sent]:
        """Move waiting frames to the guest, as far as buffers and the batch of copies go."""
        ring, copies, queue = self._rx, self._copies, self._queue
        sent: list[Sent] = []
        while queue:
            frame = queue[0]
            need = slots_of(frame)
            if produced - ring.req_cons & MASK32 < need or copies.count + need > CopyBatch.CAPACITY:
                break
            queue.popleft()
            self._queued_pages -= len(frame.pages)
            sent.append(self._fill_buffers(frame))
        return sent

    def _fill_buffers(self, frame: Frame) -> Sent:
        """Take a buffer for each page of a frame, and copy the page into it or put the copy into the batch."""
        idents: list[int] = []
        numbers: list[int] = []
        left = frame.size
        for page in frame.pages:
            ident, gref = self._next_buffer()
            size = min(left, PAGE_SIZE)
            left -= size
            target = self.writable.get(gref)
            if target is not None:
                target[:size] = page.view[:size]
                number = -1
            else:
                number = self._copies.add((page.mfn, DOMID_SELF, 0, gref, self.domid, 0, size, GNTCOPY_dest_gref))
            if not idents and frame.cutting is not None:
                # Extra info stands in a slot behind the first one, and uses up the request there.
                self._next_buffer()
            idents.append(ident)
            numbers.append(number)
        return frame, idents, numbers

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
        for frame, idents, numbers in sent:
            flags, left = RX_FLAGS[frame.flags & 3], frame.size
            extra = frame.cutting
            if extra is not None:
                flags |= netif.NETRXF_extra_info
            for ident, number in zip(idents, numbers, strict=True):
                size = min(left, PAGE_SIZE)
                left -= size
                status = ERROR if number >= 0 and statuses[number] else size
                more = netif.NETRXF_more_data if left else 0
                RX_RESPONSE.pack_into(ring.view, ring.offset(index), ident, 0, flags | more, status)
                index = index + 1 & MASK32
                if extra is not None:
                    gso = extra.offload
                    GSO_INFO.pack_into(ring.view, ring.offset(index), GSO, 0, gso.gso_size, gso.gso_type, 0, 0)
                    index = index + 1 & MASK32
                    extra = None
                flags = 0
            self.counters.tx_packets += 1
            self.counters.tx_bytes += frame.size
            if self._trace is not None:
                self._trace_packets("rx", [frame.size], len(idents))
            frame.put()
        ring.rsp_prod_pvt = index
        self._push(ring, "rx")

    def close(self) -> None:
        """Drop what waits and let go of the rings."""
        if self._pause is not None:
            self._pause.cancel()
        while self._queue:
            self._queue.popleft().put()
        self._queued_pages = 0
        self._tx_words.release()
        self._rx_words.release()
        self._tx.release()
        self._rx.release()
