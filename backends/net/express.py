"""The fast way from a guest to the bridge's other guests: from mapped pages straight into mapped buffers.

Frames go it for as long as they are ordinary: in pages that the sender keeps mapped, for one vif whose guest keeps
buffers mapped, with nothing to be done to them on the way. What is not ends that run, and is carried (`queue`).

A batch of slots is a private copy (`TxSlots`). What follows from nothing but its bytes is kept by these bytes: guests
use the same buffers for the next batch, mostly in the same order, and one look-up is all that it takes then. What is
in the pages themselves may change at any time, and is looked at each time.
"""

from __future__ import annotations

from array import array
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from backends.net.frame import MAC_MASK
from backends.net.lane import EXTRA, RX_FLAGS
from backends.net.slots import EXTRA as TX_EXTRA
from backends.net.slots import MORE
from guest_kernel import vectors
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.gso import examine
from guest_kernel.net.page_rows import leading
from guest_kernel.net.ring_words import TX_BASE, TX_WORDS, write_block, write_words
from guest_kernel.net.spans import Kept, trim
from guest_kernel.vectors import MIN_BATCH
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backends.net.bridge import Bridge, Port
    from backends.net.guest_port import GuestPort
    from backends.net.lane import Lanes, Way
    from backends.net.slots import LargePacket, TxSlots
    from guest_kernel.net.page_rows import Place
    from guest_kernel.net.spans import Views
    from hypervisor.abi.cpu import Probe
    from hypervisor.abi.io.ring import BackRing

ADDRESSES = Struct("<QI")
"""The two Ethernet addresses of a frame, 12 bytes; see `_find_lanes`."""
SPECIAL = (MORE | TX_EXTRA) << 16
BLANK = netif.NETTXF_csum_blank << 16
NULL = netif.NETIF_RSP_NULL << 16
ETHERNET_HEADER = 14
MOST_SHAPES = 8
"""Headers that are remembered for each packet that is known: a guest could make up as many as it likes."""
PLAIN_IPV4 = b"\x08\x00\x45"
LONGEST_HEADERS = 512
"""More than an Ethernet, an IP and a TCP header can be together (see `guest_kernel.net.packet`)."""
MOST_BURSTS = 64
"""Batches that are remembered for a queue."""

LOOKED_INTO = (b"\x08\x00", b"\x86\xdd", b"\x81\x00")
"""Types of frames in which there is more than addresses to choose a queue by."""
PORTS_END = 38
"""Where an IPv4 packet without options has its ports."""
FLOW_BYTES = bytes([255] * 15 + [0] * 5 + [255, 255, 0, 255, 0, 0] + [255] * 12)
"""Which bits of its first bytes say to which flow such a packet belongs: not its length, number, life and checksum."""

LargeKnown = tuple["LargePacket", "Views", bytes, dict[bytes, int]]
"""A large packet, the pages that it is in, the responses to its slots as words, and headers that it may have: for each
the length of a segment."""
Routes = dict["Port", "Lanes"]


def shape_of(head: bytes) -> bytes:
    """Return all that it depends on whether a packet of TCP over IPv4 without options can be cut.

    Type, version, header length, IP's length, fragment, protocol, TCP's header length.
    """
    return head[12:18] + head[20:24] + head[46:47]


class Burst(NamedTuple):
    """The first frames of a batch that are alike: one slot each, of the same length and with the same flags."""

    place: Place | None
    """Where they are, if they are worth it."""
    mark: int
    length: int
    idents: Any
    """An array of what answers them."""


NO_BURST = Burst(None, 0, 0, ())


class ExpressQueue(Protocol):
    """What it must know of its queue, see `Queue`."""

    vif: GuestPort
    tx: BackRing
    tx_words: memoryview
    trace: Probe | None

    def trace_packets(self, direction: str, sizes: Sequence[int], slots: int = 1) -> None:
        """Record frames that the guest has sent ("tx") or received ("rx")."""
        ...


class Express:
    """The fast way of one queue; the slots that it answers are the next ones of the tx ring."""

    def __init__(self, queue: ExpressQueue) -> None:
        self._queue = queue
        self._vif = queue.vif
        self._large: Kept[bytes, LargeKnown] = Kept()
        """Of large packets, by all that their slots say."""
        self._bursts: Kept[bytes, Burst] = Kept(MOST_BURSTS)
        """By all slots of a batch."""

    def forget(self) -> None:
        """Let go of what is known about mapped pages: some are unmapped."""
        self._large.clear()
        self._bursts.clear()

    def _bridge(self) -> Bridge | None:
        """Return the bridge, if frames of this guest may go this way at all."""
        bridge = self._vif.bridge
        return bridge if bridge is not None and self._vif.mapped and bridge.is_plain else None

    def _find_lanes(self, bridge: Bridge, addresses: tuple[int, ...], routes: Routes) -> Lanes | None:
        """Return the lanes of the vif to which a frame with these addresses goes, if it goes to one that has some."""
        low, high = addresses
        target = bridge.route(low & MAC_MASK, low >> 48 | high << 16, self._vif, bridge.now())
        if target is None or target is self._vif:
            return None
        lanes = routes.get(target) or target.open_lanes()
        if lanes is not None:
            routes[target] = lanes
        return lanes

    # -- frames of one slot ---------------------------------------------------------------------------------------

    def take(self, slots: TxSlots, start: int) -> int:
        """Move frames into others' buffers; returns the slot where that ends."""
        bridge = self._bridge()
        if bridge is None:
            return start
        routes: Routes = {}
        # (Who has a limit pays for each frame.)
        bursts = self._take_bursts(bridge, slots, start, routes) if self._vif.credit is None else start
        at = self._take_each(bridge, slots, bursts, routes) if bursts < slots.count else bursts
        self._end(bridge, routes, at - start)
        self._answer(slots, bursts, at)
        if self._queue.trace is not None:
            self._trace_packets(slots.sizes[start:at], 1)
        return at

    def _take_each(self, bridge: Bridge, slots: TxSlots, at: int, routes: Routes) -> int:
        """Move frames one by one; returns the slot where that ends.

        This loop is what a busy network runs through without numpy, so it is one piece. A frame's addresses are read
        once, and only they decide where it goes.
        """
        mapped, credit, now = self._vif.mapped, self._vif.credit, self._vif.kernel.monotonic_ns
        addresses = ADDRESSES.unpack_from
        flow: tuple[int, ...] = ()
        requests: list[int] = []
        writable: dict[int, memoryview] = {}
        special = SPECIAL
        last = longest = extra = has_extra = 0
        for ref, mark, size in zip(slots.refs[at:], slots.marks[at:], slots.sizes[at:], strict=True):
            source = mapped.get(ref)
            length = size >> 16
            offset = mark & 0xFFFF
            if source is None or mark & special or length < ETHERNET_HEADER or offset + length > PAGE_SIZE:
                break
            if flow != (key := addresses(source, offset)):
                lanes = self._find_lanes(bridge, key, routes)
                way = None if lanes is None else self._find_way(lanes, source[offset : offset + length])
                if lanes is None or way is None or (mark & BLANK and not lanes.takes_blank):
                    break
                # If there are several queues, the next frame may be for another one.
                flow = key if lanes.is_one else ()
                longest, special = lanes.longest, SPECIAL if lanes.takes_blank else SPECIAL | BLANK
                lane, extra = way
                has_extra = EXTRA if extra else 0
                requests, writable, answer = lane.requests, lane.writable, lane.answers.append
            if not requests or length > longest:
                break
            request = requests.pop()
            target = writable.get(request >> 32)
            if target is None or (credit is not None and not credit.take(length, now())):
                break
            if offset:
                target[:length] = source[offset : offset + length]
            else:
                if length != last:
                    part, last = slice(length), length
                target[part] = source[part]
            answer(request & 0xFFFF | RX_FLAGS[mark >> 16 & 3] << 32 | length << 48 | has_extra)
            if extra:
                lane.add_extra(extra)
            at += 1
        return at

    def _find_way(self, lanes: Lanes, frame: memoryview) -> Way | None:
        """Return the way of one frame through these lanes, if there are buffers for it."""
        if lanes.is_one:
            return lanes.find(b"")
        way = lanes.find(bytes(frame[:LONGEST_HEADERS]))
        return None if way is None or (way.extra and len(way.lane.requests) < 2) else way

    def _end(self, bridge: Bridge, routes: Routes, frames: int) -> None:
        """Show all guests what came to them."""
        for lanes in routes.values():
            lanes.end()
        bridge.counters.forwarded += frames

    def _answer(self, slots: TxSlots, start: int, end: int) -> None:
        """Answer the slots from `start` to `end`, the first that are not answered, with NETIF_RSP_OKAY."""
        if start == end:
            return
        sizes = slots.sizes[start:end]
        idents = [size & 0xFFFF for size in sizes]
        ring = self._queue.tx
        write_words(self._queue.tx_words, TX_BASE, TX_WORDS, ring.size, ring.rsp_prod_pvt, idents)
        self._count(end - start, end - start, sum(sizes) - sum(idents) >> 16)

    def _count(self, slots: int, frames: int, size: int) -> None:
        """So many slots have been answered, of frames with so many bytes."""
        ring, counters = self._queue.tx, self._vif.counters
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + slots & MASK32
        ring.req_cons = ring.req_cons + slots & MASK32
        counters.rx_packets += frames
        counters.rx_bytes += size

    def _trace_packets(self, sizes: Iterable[int], slots: int) -> None:
        """Record frames that the guest has sent: bytes << 16 of each, and in how many slots."""
        self._queue.trace_packets("tx", [size >> 16 for size in sizes], slots)

    # -- many that are alike --------------------------------------------------------------------------------------

    def _take_bursts(self, bridge: Bridge, slots: TxSlots, start: int, routes: Routes) -> int:
        """Do what `take` does for frames that come many alike, if there is numpy; returns the slot where that ends."""
        at = start
        if self._vif.rows is not None:
            while slots.count - at >= MIN_BATCH and (moved := self._take_burst(bridge, slots.rest(at), routes)):
                at += moved
        return at

    def _take_burst(self, bridge: Bridge, rest: bytes, routes: Routes) -> int:
        """Move the first of these slots' frames all at once; returns how many.

        They have all the same addresses, length and flags, and go to the same queue.
        """
        place, mark, length, idents = self._bursts.get(rest) or self._find_burst(rest)
        if place is None:
            return 0
        heads = place.tobytes(ADDRESSES.size)
        head = heads[: ADDRESSES.size]
        count = place.count
        if heads != head * count:
            items = vectors.numpy().frombuffer(heads, f"V{ADDRESSES.size}")
            count = leading(items == items[0])
        lanes = self._find_lanes(bridge, ADDRESSES.unpack(head), routes)
        if lanes is None or length > lanes.longest or (mark & BLANK and not lanes.takes_blank):
            return 0
        if not lanes.is_one:
            count, head = self._one_flow(place, count, length)
        way = lanes.find(head) if count else None
        if way is None:
            return 0
        source = place if count == place.count else place.first(count)
        moved = way.lane.land(source, length, RX_FLAGS[mark >> 16 & 3], way.extra)
        ring = self._queue.tx
        write_block(self._queue.tx_words, TX_BASE, TX_WORDS, ring.size, ring.rsp_prod_pvt, idents[:moved])
        self._count(moved, moved, moved * length)
        return moved

    def _find_burst(self, rest: bytes) -> Burst:
        """Find out what is alike at the beginning of these slots."""
        rows = self._vif.rows
        assert rows is not None
        block = vectors.numpy().frombuffer(rest, "<u4").reshape(-1, TX_WORDS)
        mark, size = block[0, 1:].tolist()
        length = size >> 16
        count = 0
        if not mark & (SPECIAL | 0xFFFF) and ETHERNET_HEADER <= length <= PAGE_SIZE:
            found = rows.find(block[:, 0])
            count = leading((found >= 0) & (block[:, 1] == mark) & (block[:, 2] >> 16 == length))
        if count < MIN_BATCH:
            return self._bursts.keep(rest, NO_BURST)
        idents = block[:count, 2] & 0xFFFF
        return self._bursts.keep(rest, Burst(rows.place(found[:count]), mark, length, idents))

    def _one_flow(self, place: Place, count: int, length: int) -> tuple[int, bytes]:
        """Return how many of the first `count` frames are surely of the same flow, and what they have in common."""
        np = vectors.numpy()
        heads = place.tobytes(PORTS_END)[: count * PORTS_END]
        head = heads[: min(length, PORTS_END)]
        rows = np.frombuffer(heads, np.uint8).reshape(count, PORTS_END)
        if head[12:15] == PLAIN_IPV4 and length >= PORTS_END:
            differ = (rows ^ rows[0]) & np.frombuffer(FLOW_BYTES, np.uint8)
        elif head[12:14] not in LOOKED_INTO:
            differ = rows[:, :14] ^ rows[0, :14]
        else:
            return 0, head
        return leading(~differ.any(axis=1)), head

    # -- large packets --------------------------------------------------------------------------------------------

    def take_large(self, slots: TxSlots, start: int) -> int:
        """Do what `take` does for large packets that are to be cut, and are not cut because they stay here."""
        bridge = self._bridge()
        if bridge is None or self._vif.credit is not None:
            return start
        routes: Routes = {}
        answers: list[bytes] = []
        sizes: list[int] = []
        flow: tuple[tuple[int, ...], int] | None = None
        way: Way | None = None
        limit = 0
        at = start
        while at < slots.count:
            known = self._large.get(slots.key(at)) or self._know(slots, at)
            if known is None:
                break
            packet, source, oks, shapes = known
            # The guest may change its page at any time: what is checked here is also what is sent.
            head = bytes(source[0][:LONGEST_HEADERS])
            longest = shapes.get(shape_of(head)) or self._segment(head, packet, shapes)
            if not longest:
                break
            if way is None or flow != (ADDRESSES.unpack_from(head), packet.offload.gso_type):
                lanes = self._find_lanes(bridge, ADDRESSES.unpack_from(head), routes)
                way = None if lanes is None else lanes.find(head)
                if lanes is None or way is None or packet.offload.gso_type not in lanes.large:
                    break
                flow = (ADDRESSES.unpack_from(head), packet.offload.gso_type) if lanes.is_one else None
                limit = lanes.longest
            if longest > limit or not way.lane.take_large(source, head, packet.size, packet.extras(way.extra)):
                break
            answers.append(oks)
            sizes.append(packet.size)
            at += packet.slots
            if self._queue.trace is not None:
                self._trace_packets([packet.size << 16], len(packet.refs))
        self._end(bridge, routes, len(sizes))
        ring = self._queue.tx
        write_block(self._queue.tx_words, TX_BASE, TX_WORDS, ring.size, ring.rsp_prod_pvt, b"".join(answers))
        self._count(at - start, len(sizes), sum(sizes))
        return at

    def _know(self, slots: TxSlots, at: int) -> LargeKnown | None:
        """Find out about a large packet in these slots, once: None if there is none, or its pages are not mapped."""
        packet = slots.large(at)
        source = None if packet is None else self._vif.readable_span(packet.refs)
        if packet is None or source is None:
            return None
        answers = array("I", [word & 0xFFFF for word in slots.sizes[at : at + packet.slots]])
        answers[1] = NULL
        return self._large.keep(slots.key(at), (packet, trim(source, packet.size), answers.tobytes(), {}))

    def _segment(self, head: bytes, packet: LargePacket, shapes: dict[bytes, int]) -> int:
        """Return the length of the longest segment of a packet with these headers.

        0 if they are not those of a packet that could be cut, and must be somewhere; or if there is a VLAN tag.
        """
        headers = examine(head, packet.size, packet.offload)
        if headers is None or headers.place.network != ETHERNET_HEADER:
            return 0
        if headers.place.end - headers.data <= packet.offload.gso_size:
            return 0
        longest = headers.data + packet.offload.gso_size
        if head[12:15] == PLAIN_IPV4 and len(shapes) < MOST_SHAPES:
            shapes[shape_of(head)] = longest
        return longest
