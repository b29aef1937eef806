"""A queue of a virtual Ethernet device: the frontend's ends of a tx and an rx ring, and the pages of their frames.

All pages are granted once and used again and again, so that a frame costs no grant. A tx page is granted read-only, an
rx page writable; both hold nothing but frames that this device has sent or received, and are zero before (XSA-403).

The other end may write anything into the rings at any time. What it says is copied out of the ring before it is looked
at, and an id counts only while its buffer is out; garbage makes the device give up (`broken`), and harms nobody else.
Which buffer is out is told by two lists (`_tx_order`, `_rx_order`) that have, for each slot between the last response
taken and the last request put, the id of one buffer. A backend that answers in order, as all known ones do, is thus
checked by comparing two lists.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, NamedTuple

from frontends.net.bursts import RxBursts, TxBursts
from frontends.net.pieces import CSUM, OFFLOADS, PREFIX, Reassembly, UnknownExtra
from frontends.net.pieces import EXTRA as RX_EXTRA
from frontends.net.pieces import MORE as RX_MORE
from frontends.net.trains import EXTRA_ID, Trains, extra_words
from guest_kernel import vectors
from guest_kernel.errors import GrantError, OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.offload import NONE, Offload
from guest_kernel.net.packet import Bytes
from guest_kernel.net.ring_words import (
    RX_BASE,
    RX_SLOT,
    TX_BASE,
    TX_SLOT,
    TX_WORDS,
    copy_slots,
    put_slots,
    read_run,
    read_words,
    write_run,
    write_words,
)
from guest_kernel.net.spans import Kept, Spans, fill, gather, trim
from guest_kernel.net.tracing import bind_pushes
from guest_kernel.threads import WaitQueue
from guest_kernel.vectors import MIN_BATCH
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, RSP_PROD, FrontRing

if TYPE_CHECKING:
    from frontends.net.bursts import Incoming
    from frontends.net.device import FrontDevice
    from frontends.net.trains import Extra
    from guest_kernel.net.spans import Views

TX_VALIDATED, TX_BLANK = netif.NETTXF_data_validated, netif.NETTXF_csum_blank
TX_EXTRA = netif.NETTXF_extra_info
RX_OFFSET = 0xFFFF << 16
RX_SPECIAL = RX_OFFSET | RX_MORE | RX_EXTRA | PREFIX

GSO = netif.XEN_NETIF_EXTRA_TYPE_GSO
BUSY_PACKETS = 64
"""After so many frames an interface is worth keeping its buffers mapped in the backend."""
RX_FIRST = 64
"""Buffers that the backend gets at first; when it has used up most of them, it gets twice as many."""

Collected = tuple[list[bytes], Offload | list[Offload]]
"""Frames, and what is left to do of each; of all if that is the same."""


class Whole(NamedTuple):
    """A frame of several slots that has come."""

    posted: list[int]
    """The buffers that were posted in its slots, also in those of extra info."""
    views: Views
    """Where it is."""
    offload: Offload
    """What is left to do of it."""
    posts: bytes
    """The requests that post the buffers again."""


def tx_flags(offload: Offload) -> int:
    """Return the flags of a frame's first slot."""
    return TX_BLANK * offload.blank | TX_VALIDATED * offload.validated | TX_EXTRA * (offload.gso_size > 0)


class FrontQueue:
    """One pair of rings. What the backend has said about itself is the device's."""

    def __init__(self, device: FrontDevice, name: str, *, split: bool) -> None:
        """Make rings, event channels, and the first buffers.

        `split`: each ring gets an event channel of its own; an event on either is a look at both rings.

        Raises OutOfMemory, GrantError, XenError; the pages are the device's, and `close` gives back the rest.
        """
        kernel = device.kernel
        self.device = device
        self.name = name
        """As the trace has it: that of the device, if this is its only queue."""
        self.events = kernel.events
        trace = kernel.cpu.trace
        self._trace = None if trace is None else bind_pushes(trace, name)
        self.room = WaitQueue()
        """Of whoever waits for slots of the tx ring."""
        self.port = 0
        """Event channel of the tx ring, and of both without split ones."""
        self.rx_port = 0
        """Event channel of the rx ring; the same, or one of its own."""
        self._registered_tx = self._registered_rx = 0
        # By buffer id: the page, its reference; of an rx buffer the request that posts it.
        self._tx_views: list[memoryview] = []
        self._tx_refs: list[int] = []
        self._tx_free: list[int] = []
        self._extras_out = 0
        """Slots of extra info that are not answered yet."""
        self._tx_vas: list[int] = []
        self._trains = Trains(kernel.mm, self._tx_vas, self._tx_refs)
        self._rx_known: Kept[bytes, Whole] = Kept()
        """Of frames of several slots, by the responses."""
        self._whole: Views | None = None
        self._rx_slots = 0
        """How many slots such a frame had that came last."""
        self._tx_bursts = TxBursts(kernel.mm, self._tx_vas, self._tx_refs)
        self._rx_views: list[memoryview] = []
        self._rx_vas: list[int] = []
        self._rx_spans = Spans(kernel.mm, self._rx_vas.__getitem__, writable=True)
        self._rx_posts: list[int] = []
        self._rx_bursts = RxBursts(kernel.mm, self._rx_vas, self._rx_posts)
        self._rx_growing = True
        self.reassembly = Reassembly()
        self.reassembly.takes_prefix = device.gso_prefix
        tx, self.tx_ref = device.pages.add()
        rx, self.rx_ref = device.pages.add()
        self._tx = FrontRing.initialise(tx.view, TX_SLOT)
        self._rx = FrontRing.initialise(rx.view, RX_SLOT)
        self._tx_words, self._rx_words = tx.i, rx.q
        self._tx_order, self._rx_order = [0] * self._tx.size, [0] * self._rx.size
        # From here on there is something to close.
        device.queues.append(self)
        self.port = self.rx_port = self.events.alloc_unbound(device.backend, self._interrupt)
        if split:
            self.rx_port = self.events.alloc_unbound(device.backend, self._interrupt)
        for _ in range(RX_FIRST):
            self._add_rx_buffer()
        self._post(list(range(RX_FIRST)))
        self._push_rx()

    def start(self) -> None:
        """Tell the backend, which is there now, of what has been posted."""
        for port in dict.fromkeys((self.port, self.rx_port)):
            self.events.notify(port)

    # -- sending --------------------------------------------------------------------------------------------------

    def put_many(self, frames: Sequence[Bytes], offload: Offload = NONE) -> int:
        """Send the first of these frames, as many as there is room for, with at most one notification."""
        if not frames:
            return 0
        if offload.gso_size or len(frames[0]) > PAGE_SIZE:
            sent = self._put_trains(frames, offload)
            size = sum(map(len, frames[:sent]))
        else:
            batch = frames[: self._tx.free_requests()]
            sizes = list(map(len, batch))
            sent = self._put_sized(batch, sizes, offload)
            size = sum(sizes[:sent])
        if sent:
            self.device.counters.tx_packets += sent
            self.device.counters.tx_bytes += size
            self.push_tx()
        return sent

    def _put_sized(self, frames: Sequence[Bytes], sizes: list[int], offload: Offload) -> int:
        """Put frames into the ring, each of which may be of one slot, and is not to be cut."""
        count = len(sizes)
        flags = tx_flags(offload)
        if count >= MIN_BATCH and 0 < sizes[0] <= PAGE_SIZE and vectors.numpy() is not None:
            alike = sizes.count(sizes[0]) == count
            if alike and self._take_tx_buffers(count) >= count:
                self._put_burst(frames, sizes[0], flags)
                return count
        if count and max(sizes) <= PAGE_SIZE:
            sent = self._take_tx_buffers(count)
            self._put_batch(frames, sizes[:sent], flags)
            return sent
        sent = 0
        while sent < count and self.put(frames[sent], offload):
            sent += 1
        return sent

    def put_order(self, kind: int, address: bytes) -> bool:
        """Send what is no frame, but amends the backend's list of multicast addresses; False if there is no room."""
        if self._tx.free_requests() < 2 or not self._take_tx_buffers(1):
            return False
        self._put_batch([b""], [0], TX_EXTRA)
        self._put_extra(kind, int.from_bytes(address, "little"))
        self.push_tx()
        return True

    def free_slots(self) -> int:
        """Return how many slots of the tx ring are free."""
        return self._tx.free_requests()

    def has_room(self, frames: Sequence[Bytes], offload: Offload) -> bool:
        """Whether there are slots for all of these, or the ring is empty and could not have more."""
        slots = sum(-(-len(frame) // PAGE_SIZE) + (offload.gso_size > 0) for frame in frames)
        return self._tx.free_requests() >= min(slots, self._tx.size)

    def put(self, frame: Bytes, offload: Offload = NONE) -> bool:
        """Put a frame of any length into the ring, without showing it; False if it cannot be sent."""
        size = len(frame)
        if size > PAGE_SIZE or offload.gso_size:
            return self._put_trains([frame], offload) == 1
        if not size or not self._tx.free_requests() or not self._take_tx_buffers(1):
            return False
        self._put_batch([frame], [size], tx_flags(offload))
        return True

    def _put_trains(self, frames: Sequence[Bytes], offload: Offload) -> int:
        """Put frames of any length into the ring, as many as there is room for; returns how many.

        Those of one length that follow each other take one look-up.
        """
        extra = (GSO, offload.gso_size | offload.gso_type << 16) if offload.gso_size else None
        flags = tx_flags(offload)
        sent = 0
        while sent < len(frames):
            size = len(frames[sent])
            pages = -(-size // PAGE_SIZE)
            if (pages > 1 and not self.device.scatter) or not 0 < size <= netif.XEN_NETIF_MAX_TX_SIZE:
                break
            room = self._tx.free_requests() // (pages + (extra is not None))
            alike = frames[sent : sent + room]
            count = next((at for at, frame in enumerate(alike) if len(frame) != size), len(alike))
            count = self._take_tx_buffers(count * pages) // pages
            if not count:
                break
            self._put_train(alike[:count], count * pages, (size, flags, extra))
            sent += count
        return sent

    def _put_train(self, frames: Sequence[Bytes], buffers: int, what: tuple[int, int, Extra | None]) -> None:
        """Put frames of one length into so many buffers; there are slots for them. `what`: see `Trains`."""
        idents = tuple(self._tx_free[-buffers:])
        del self._tx_free[-buffers:]
        places, slots, order = self._trains.get(idents, *what)
        for views, frame in zip(places, frames, strict=True):
            fill(views, frame)
        ring = self._tx
        index = ring.req_prod_pvt
        put_slots(self._tx_words, TX_BASE, TX_WORDS, ring.size, index, slots)
        write_run(self._tx_order, index, order)
        ring.req_prod_pvt = index + len(order) & MASK32
        self._extras_out += len(order) - buffers

    def _put_extra(self, kind: int, info: int) -> None:
        """Put a slot of extra info into the ring; there must be one. `info`: its six bytes, the first one lowest."""
        ring = self._tx
        index = ring.req_prod_pvt
        for number, word in enumerate(extra_words(kind, info)):
            write_words(self._tx_words, TX_BASE + number, TX_WORDS, ring.size, index, [word])
        write_run(self._tx_order, index, [EXTRA_ID])
        ring.req_prod_pvt = index + 1 & MASK32
        self._extras_out += 1

    def _put_batch(self, frames: Sequence[Bytes], sizes: list[int], flags: int = 0) -> None:
        """Put one-slot pieces into the ring; there are slots and buffers for them."""
        count = len(sizes)
        if not count:
            return
        free, views, refs = self._tx_free, self._tx_views, self._tx_refs
        idents = free[-count:]
        del free[-count:]
        last = -1
        for ident, frame, length in zip(idents, frames, map(len, frames), strict=False):
            if length != last:
                part, last = slice(length), length
            views[ident][part] = frame
        ring, words = self._tx, self._tx_words
        index, size = ring.req_prod_pvt, ring.size
        write_words(words, TX_BASE, TX_WORDS, size, index, [refs[ident] for ident in idents])
        write_words(words, TX_BASE + 1, TX_WORDS, size, index, [flags << 16] * count)
        write_words(
            words, TX_BASE + 2, TX_WORDS, size, index, [i | n << 16 for i, n in zip(idents, sizes, strict=True)]
        )
        write_run(self._tx_order, index, idents)
        ring.req_prod_pvt = index + count & MASK32

    def _put_burst(self, frames: Sequence[Bytes], length: int, flags: int) -> None:
        """Put many frames of one length into the ring, of one slot each; there are slots and buffers for them."""
        ring, count = self._tx, len(frames)
        idents = self._tx_free[-count:]
        del self._tx_free[-count:]
        slots = self._tx_bursts.fill(idents, frames, length, flags)
        put_slots(self._tx_words, TX_BASE, TX_WORDS, ring.size, ring.req_prod_pvt, slots)
        write_run(self._tx_order, ring.req_prod_pvt, idents)
        ring.req_prod_pvt = ring.req_prod_pvt + count & MASK32

    def _take_tx_buffers(self, count: int) -> int:
        """See that there are `count` free buffers; returns how many there are, if memory or grants run out."""
        free = self._tx_free
        try:
            while len(free) < count:
                page, ref = self.device.pages.add(readonly=True)
                free.append(len(self._tx_views))
                self._tx_views.append(page.view)
                self._tx_vas.append(page.va)
                self._tx_refs.append(ref)
        except (OutOfMemory, GrantError):
            return len(free)
        return count

    def push_tx(self) -> None:
        """Show what has been put into the tx ring, and tell the backend if it wants to know."""
        notify = self._tx.push_requests_and_check_notify()
        if self._trace is not None:
            self._trace["tx"](self._tx.req_prod_pvt, notify, self._tx.rsp_cons)
        if notify:
            self.events.notify(self.port)

    # -- what has been sent ---------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        """Take what is new on both rings."""
        while not self.device.broken:
            if not self._take_tx_responses() or not self._take_rx_responses():
                return
            if not self._tx.final_check_for_responses() and not self._rx.final_check_for_responses():
                break
        if self._registered_tx < len(self._tx_refs) or self._registered_rx < len(self._rx_posts):
            self._register()

    def _take_tx_responses(self) -> bool:
        ring = self._tx
        produced = ring.shared[RSP_PROD]
        count = produced - ring.rsp_cons & MASK32
        if not count:
            return True
        if count > ring.outstanding():
            return self.device.give_up(f"the backend answered more than was sent (rsp_prod {produced})")
        answers = read_words(self._tx_words, TX_BASE, TX_WORDS, ring.size, ring.rsp_cons, count)
        if answers == read_run(self._tx_order, ring.rsp_cons, count):
            # In order, and each NETIF_RSP_OKAY, which is 0; or NETIF_RSP_NULL with no id, which is EXTRA_ID.
            if self._extras_out and (extras := answers.count(EXTRA_ID)):
                self._extras_out -= extras
                answers = [answer for answer in answers if answer != EXTRA_ID]
            self._tx_free += answers
        elif self._extras_out:
            return self._take_marked_responses(answers, produced)
        else:
            idents = [answer & 0xFFFF for answer in answers]
            if not self._reorder(ring, self._tx_order, idents):
                return self.device.give_up("the backend answered a frame that was not sent")
            self._tx_free += idents
            self.device.counters.tx_dropped += sum(answer >> 16 != netif.NETIF_RSP_OKAY for answer in answers)
        ring.rsp_cons = produced
        if self.room.waiters:
            self.room.wake_all()
        return True

    def _take_marked_responses(self, answers: list[int], produced: int) -> bool:
        """Take responses among which are some to extra info, which have a status and no id."""
        ring = self._tx
        idents = [EXTRA_ID if answer >> 16 == netif.NETIF_RSP_NULL else answer & 0xFFFF for answer in answers]
        if not self._reorder(ring, self._tx_order, idents):
            return self.device.give_up("the backend answered a frame that was not sent")
        for ident, answer in zip(idents, answers, strict=True):
            if ident == EXTRA_ID:
                self._extras_out -= 1
                continue
            self._tx_free.append(ident)
            self.device.counters.tx_dropped += answer >> 16 != netif.NETIF_RSP_OKAY
        ring.rsp_cons = produced
        self.room.wake_all()
        return True

    def _reorder(self, ring: FrontRing, order: list[int], idents: list[int], extras: Sequence[int] = ()) -> bool:
        """Make `order` say that these buffers are answered first; False if one of them is not out.

        Answers at `extras` have no id: they stand where the request was that they answer, and its id is filled in.
        """
        out = read_run(order, ring.rsp_cons, ring.outstanding())
        for place in extras:
            idents[place] = out[place]
        for place, ident in enumerate(idents):
            try:
                found = out.index(ident, place)
            except ValueError:
                return False
            out[found], out[place] = out[place], ident
        write_run(order, ring.rsp_cons, out)
        return True

    # -- receiving ------------------------------------------------------------------------------------------------

    def _add_rx_buffer(self) -> None:
        page, ref = self.device.pages.add()
        self._rx_posts.append(len(self._rx_posts) | ref << 32)
        self._rx_views.append(page.view)
        self._rx_vas.append(page.va)

    def _grow_rx(self) -> None:
        """Hand the backend more empty pages: twice as many, up to a whole ring of them, as far as memory goes."""
        known = len(self._rx_posts)
        try:
            for _ in range(min(known, self._rx.size - known)):
                self._add_rx_buffer()
        except (OutOfMemory, GrantError):
            self._rx_growing = False
        self._post(list(range(known, len(self._rx_posts))))

    def _post(self, idents: list[int], posts: memoryview | None = None) -> None:
        """Put requests for these buffers into the ring, without showing them; `posts`: these, if they are known."""
        ring = self._rx
        if posts is None:
            posts = memoryview(array("Q", map(self._rx_posts.__getitem__, idents)))
        put_slots(self._rx_words, RX_BASE, 1, ring.size, ring.req_prod_pvt, posts)
        write_run(self._rx_order, ring.req_prod_pvt, idents)
        ring.req_prod_pvt = ring.req_prod_pvt + len(idents) & MASK32

    def _push_rx(self) -> None:
        notify = self._rx.push_requests_and_check_notify()
        if self._trace is not None:
            self._trace["rx"](self._rx.req_prod_pvt, notify, self._rx.rsp_cons)
        if notify and self.device.connected:
            self.events.notify(self.rx_port)

    def _take_rx_responses(self) -> bool:
        ring = self._rx
        produced = ring.shared[RSP_PROD]
        count = produced - ring.rsp_cons & MASK32
        if not count:
            return True
        if count > ring.outstanding():
            return self.device.give_up(f"the backend filled more buffers than it was given (rsp_prod {produced})")
        slots = copy_slots(self._rx_words, RX_BASE, 1, ring.size, ring.rsp_cons, count)
        if slots[0] & RX_SPECIAL or not self.reassembly.is_between:
            return self._take_mixed_responses(slots, produced)
        if count >= MIN_BATCH and vectors.numpy() is not None:
            burst = self._rx_bursts.read(slots.tobytes())
            if burst is not None:
                return self._take_burst(burst, produced)
        answers = slots.tolist()
        marks = reduce(or_, answers)
        if marks & RX_SPECIAL:
            return self._take_mixed_responses(slots, produced)
        idents = [answer & 0xFFFF for answer in answers]
        if not self._are_posted(idents):
            return False
        collected = self._collect(idents, answers, marks)
        if collected is None:
            return self._take_mixed_responses(slots, produced)
        # The bytes are copied out: the buffers go back before anybody looks at the frames.
        self._give_back(idents, produced)
        self.device.hand_over_alike(*collected)
        return True

    def _are_posted(self, idents: list[int]) -> bool:
        """Whether the backend has these buffers, whose responses are the next ones."""
        ring = self._rx
        if idents == read_run(self._rx_order, ring.rsp_cons, len(idents)):
            return True
        return self._reorder(ring, self._rx_order, idents) or self.device.give_up(
            "the backend filled a buffer that it does not have"
        )

    def _take_burst(self, burst: Incoming, produced: int) -> bool:
        """Take frames of one slot that are alike, all at once."""
        if not self._are_posted(burst.idents):
            return False
        frames = burst.place.tolist(burst.length)
        counters = self.device.counters
        counters.rx_packets += len(frames)
        counters.rx_bytes += len(frames) * burst.length
        # The bytes are copied out: the buffers go back before anybody looks at the frames.
        self._give_back(burst.idents, produced, burst.posts)
        self.device.hand_over_alike(frames, burst.offload)
        return True

    def _take_mixed_responses(self, slots: memoryview, produced: int) -> bool:
        """Take responses of any kind: with errors or extra info (which has no id) among them, or of several slots."""
        posted = read_run(self._rx_order, self._rx.rsp_cons, len(slots))
        data = slots.tobytes()
        at, posts = self._take_known(data, posted)
        if at == len(posted):
            self._give_back(posted, produced, memoryview(b"".join(posts)).cast("Q"))
            return True
        answers = slots.tolist()
        idents = [answer & 0xFFFF for answer in answers[at:]]
        extras = [at + place for place in self.reassembly.extras(answers[at:])]
        idents[:0] = posted[:at]
        for place in extras:
            idents[place] = posted[place]
        if idents != posted and not self._reorder(self._rx, self._rx_order, idents, extras):
            return self.device.give_up("the backend filled a buffer that it does not have")
        while at < len(answers):
            start = at
            try:
                at, frame = self._next_frame(idents, answers, at)
            except UnknownExtra:
                return self.device.give_up("the backend sent extra info, which was not offered")
            if self._whole is not None and idents[start:at] == posted[start:at]:
                self._keep_whole(data[start * RX_SLOT : at * RX_SLOT], posted[start:at], self._whole)
            if frame:
                # One after the other, so that not all of a ring's worth of large ones take up memory at once.
                self._hand_over(frame, self.reassembly.offload)
            elif frame is not None:
                self.device.counters.rx_dropped += 1
        self._give_back(idents, produced)
        return True

    def _keep_whole(self, data: bytes, posted: list[int], views: Views) -> None:
        """Remember a frame of several slots, which was in the buffers that were posted there."""
        posts = array("Q", map(self._rx_posts.__getitem__, posted)).tobytes()
        self._rx_slots = len(posted)
        self._rx_known.keep(data, Whole(posted, views, self.reassembly.offload, posts))

    def _take_known(self, data: bytes, posted: list[int]) -> tuple[int, list[bytes]]:
        """Take frames of several slots that have come just so before, in the same buffers.

        Returns where that ends, and the requests that post these buffers again.
        """
        known, slots, step = self._rx_known, self._rx_slots, self._rx_slots * RX_SLOT
        at = place = 0
        posts: list[bytes] = []
        while self.reassembly.is_between:
            whole = known.get(data[place : place + step])
            if whole is None or whole.posted != posted[at : at + slots]:
                break
            posts.append(whole.posts)
            self._hand_over(gather(whole.views), whole.offload)
            at += slots
            place += step
        return at, posts

    def _hand_over(self, frame: bytes, offload: Offload) -> None:
        device = self.device
        device.counters.rx_packets += 1
        device.counters.rx_bytes += len(frame)
        if device.received_raw is not None and device.received_many is None:
            device.received_raw(frame, offload)
        else:
            device.hand_over([frame], [offload])

    def _next_frame(self, idents: list[int], answers: list[int], at: int) -> tuple[int, bytes | None]:
        """Take the responses from `at` on up to the end of a frame, if that is there; see `Reassembly` for the frame.

        Returns the place behind them, too; `_whole` is the views of a frame that was taken in one piece, or None.
        Raises UnknownExtra.
        """
        reassembly = self.reassembly
        self._whole = None
        if reassembly.is_between and (data := reassembly.take_whole(answers, at)) is not None:
            end, first, size = data
            self._whole = trim(self._rx_spans.get(tuple(idents[at : at + 1] + idents[first:end])), size)
            return end, gather(self._whole)
        frame = None
        while at < len(answers) and frame is None:
            ident, answer = idents[at], answers[at]
            at += 1
            if reassembly.expects_extra:
                frame = reassembly.take_extra(answer)
                continue
            if answer & PREFIX and reassembly.take_prefix(answer):
                continue
            size, offset = answer >> 48, answer >> 16 & 0xFFFF
            # A status is negative if its highest bit is set; that is more than a page, too.
            good = 0 < size <= PAGE_SIZE - offset and not answer & PREFIX
            frame = reassembly.take(self._rx_views[ident][offset : offset + size].tobytes() if good else b"", answer)
        return at, frame

    def _give_back(self, idents: list[int], produced: int, posts: memoryview | None = None) -> None:
        """Post the buffers again whose responses have been taken, up to this index."""
        ring = self._rx
        count = produced - ring.rsp_cons & MASK32
        ring.rsp_cons = produced
        self._post(idents, posts)
        if self._rx_growing and 4 * count > 3 * len(self._rx_posts) < 3 * ring.size:
            self._grow_rx()
        self._push_rx()

    def _collect(self, idents: list[int], answers: list[int], marks: int) -> Collected | None:
        """Return the frames that the answered buffers hold, one each; None if some hold none. `marks`: all bits set."""
        sizes = [answer >> 48 for answer in answers]
        if min(sizes) <= 0 or max(sizes) > PAGE_SIZE:
            return None
        views = self._rx_views
        frames = []
        last = 0
        for ident, size in zip(idents, sizes, strict=True):
            if size != last:
                part, last = slice(size), size
            frames.append(views[ident][part].tobytes())
        self.device.counters.rx_packets += len(frames)
        self.device.counters.rx_bytes += sum(sizes)
        return frames, [OFFLOADS[answer & CSUM] for answer in answers] if marks & CSUM else NONE

    # -- buffers that stay mapped ---------------------------------------------------------------------------------

    def _register(self) -> None:
        """Have the backend keep our buffers mapped: worth it once an interface is really used."""
        control, counters = self.device.control, self.device.counters
        if control is None or counters.tx_packets + counters.rx_packets < BUSY_PACKETS:
            return
        tx = [(ref, True) for ref in self._tx_refs[self._registered_tx :]]
        rx = [(post >> 32, False) for post in self._rx_posts[self._registered_rx :]]
        self._registered_tx += len(tx)
        self._registered_rx += len(rx)
        control.register(tx + rx)

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of rings, ports and views of pages."""
        for port in dict.fromkeys((self.port, self.rx_port)):
            if port:
                self.events.unbind(port)
        self.port = self.rx_port = 0
        self._tx.release()
        self._rx.release()
        self._trains.forget()
        self._rx_spans.forget()
        self._rx_known.clear()
        self._tx_bursts.forget()
        self._rx_bursts.forget()
