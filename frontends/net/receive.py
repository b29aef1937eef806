"""The frontend's end of an rx ring, and the buffers that are posted there.

Each page is granted once, writable, and posted again and again. What it holds is copied out before anybody looks at it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, NamedTuple

from frontends.net.bursts import RxBursts
from frontends.net.order import reorder
from frontends.net.pieces import CSUM, EXTRA, MORE, OFFLOADS, OFFSET, PREFIX, Reassembly, UnknownExtra
from guest_kernel import vectors
from guest_kernel.errors import GrantError, OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.offload import NONE, Offload
from guest_kernel.net.ring_words import RX_BASE, RX_SLOT, copy_slots, put_slots, read_run, write_run
from guest_kernel.net.spans import Kept, Spans, gather, trim
from guest_kernel.vectors import MIN_BATCH
from hypervisor.abi.io.ring import MASK32, RSP_PROD, FrontRing

if TYPE_CHECKING:
    from frontends.net.bursts import Incoming
    from frontends.net.owner import QueueOwner
    from guest_kernel.net.spans import Views

RX_SPECIAL = OFFSET | MORE | EXTRA | PREFIX
RX_FIRST = 64
"""Buffers that the backend gets at first; when it has used up most of them, it gets twice as many."""

Collected = tuple[list[bytes], Offload | list[Offload]]
"""Frames, and what is left to do of each; of all if that is the same."""
TracePush = Callable[[int, bool, int], None]


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


class RxEnd:
    """What comes."""

    def __init__(self, device: QueueOwner, trace: TracePush | None) -> None:
        """Make the ring. `trace` is told of each push. Raises OutOfMemory, GrantError; the pages are the device's."""
        self._device = device
        self._events = device.kernel.events
        self._trace = trace
        self.port = 0
        """Event channel of the ring; 0: none."""
        # By buffer id: the page, its address, the request that posts it.
        self._views: list[memoryview] = []
        self._addresses: list[int] = []
        self.posts: list[int] = []
        self._known: Kept[bytes, Whole] = Kept()
        """Of frames of several slots, by the responses."""
        self._whole: Views | None = None
        self._slots = 0
        """How many slots such a frame had that came last."""
        mm = device.kernel.mm
        self._spans = Spans(mm, self._addresses.__getitem__, writable=True)
        self._bursts = RxBursts(mm, self._addresses, self.posts)
        self._growing = True
        self.reassembly = Reassembly()
        self.reassembly.takes_prefix = device.gso_prefix
        page, self.ring_ref = device.pages.add()
        self.ring = FrontRing.initialise(page.view, RX_SLOT)
        self._words = page.q
        self._order = [0] * self.ring.size

    def post_first(self) -> None:
        """Hand the backend its first buffers. Raises OutOfMemory, GrantError."""
        for _ in range(RX_FIRST):
            self._add_buffer()
        self._post(list(range(RX_FIRST)))
        self.push()

    def _add_buffer(self) -> None:
        page, ref = self._device.pages.add()
        self.posts.append(len(self.posts) | ref << 32)
        self._views.append(page.view)
        self._addresses.append(page.va)

    def _grow(self) -> None:
        """Hand the backend more empty pages: twice as many, up to a whole ring of them, as far as memory goes."""
        known = len(self.posts)
        try:
            for _ in range(min(known, self.ring.size - known)):
                self._add_buffer()
        except (OutOfMemory, GrantError):
            self._growing = False
        self._post(list(range(known, len(self.posts))))

    def _post(self, idents: list[int], posts: memoryview | None = None) -> None:
        """Put requests for these buffers into the ring, without showing them; `posts`: these, if they are known."""
        ring = self.ring
        if posts is None:
            posts = memoryview(array("Q", map(self.posts.__getitem__, idents)))
        put_slots(self._words, RX_BASE, 1, ring.size, ring.req_prod_pvt, posts)
        write_run(self._order, ring.req_prod_pvt, idents)
        ring.req_prod_pvt = ring.req_prod_pvt + len(idents) & MASK32

    def push(self) -> None:
        """Show what has been posted, and tell the backend if it wants to know."""
        notify = self.ring.push_requests_and_check_notify()
        if self._trace is not None:
            self._trace(self.ring.req_prod_pvt, notify, self.ring.rsp_cons)
        if notify and self._device.connected:
            self._events.notify(self.port)

    def take_responses(self) -> bool:
        """Take frames that have come; False if the backend does not keep to the protocol."""
        ring = self.ring
        produced = ring.shared[RSP_PROD]
        count = produced - ring.rsp_cons & MASK32
        if not count:
            return True
        if count > ring.outstanding():
            return self._device.give_up(f"the backend filled more buffers than it was given (rsp_prod {produced})")
        slots = copy_slots(self._words, RX_BASE, 1, ring.size, ring.rsp_cons, count)
        if slots[0] & RX_SPECIAL or not self.reassembly.is_between:
            return self._take_mixed_responses(slots, produced)
        if count >= MIN_BATCH and vectors.numpy() is not None:
            burst = self._bursts.read(slots.tobytes())
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
        self._device.hand_over_alike(*collected)
        return True

    def _are_posted(self, idents: list[int]) -> bool:
        """Whether the backend has these buffers, whose responses are the next ones."""
        ring = self.ring
        if idents == read_run(self._order, ring.rsp_cons, len(idents)):
            return True
        return reorder(ring, self._order, idents) or self._device.give_up(
            "the backend filled a buffer that it does not have"
        )

    def _take_burst(self, burst: Incoming, produced: int) -> bool:
        """Take frames of one slot that are alike, all at once."""
        if not self._are_posted(burst.idents):
            return False
        frames = burst.place.tolist(burst.length)
        counters = self._device.counters
        counters.rx_packets += len(frames)
        counters.rx_bytes += len(frames) * burst.length
        # The bytes are copied out: the buffers go back before anybody looks at the frames.
        self._give_back(burst.idents, produced, burst.posts)
        self._device.hand_over_alike(frames, burst.offload)
        return True

    def _take_mixed_responses(self, slots: memoryview, produced: int) -> bool:
        """Take responses of any kind: with errors or extra info (which has no id) among them, or of several slots."""
        posted = read_run(self._order, self.ring.rsp_cons, len(slots))
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
        if idents != posted and not reorder(self.ring, self._order, idents, extras):
            return self._device.give_up("the backend filled a buffer that it does not have")
        while at < len(answers):
            start = at
            try:
                at, frame = self._next_frame(idents, answers, at)
            except UnknownExtra:
                return self._device.give_up("the backend sent extra info, which was not offered")
            if self._whole is not None and idents[start:at] == posted[start:at]:
                self._keep_whole(data[start * RX_SLOT : at * RX_SLOT], posted[start:at], self._whole)
            if frame:
                # One after the other, so that not all of a ring's worth of large ones take up memory at once.
                self._hand_over(frame, self.reassembly.offload)
            elif frame is not None:
                self._device.counters.rx_dropped += 1
        self._give_back(idents, produced)
        return True

    def _keep_whole(self, data: bytes, posted: list[int], views: Views) -> None:
        """Remember a frame of several slots, which was in the buffers that were posted there."""
        posts = array("Q", map(self.posts.__getitem__, posted)).tobytes()
        self._slots = len(posted)
        self._known.keep(data, Whole(posted, views, self.reassembly.offload, posts))

    def _take_known(self, data: bytes, posted: list[int]) -> tuple[int, list[bytes]]:
        """Take frames of several slots that have come just so before, in the same buffers.

        Returns where that ends, and the requests that post these buffers again.
        """
        known, slots, step = self._known, self._slots, self._slots * RX_SLOT
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
        device = self._device
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
            self._whole = trim(self._spans.get(tuple(idents[at : at + 1] + idents[first:end])), size)
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
            frame = reassembly.take(self._views[ident][offset : offset + size].tobytes() if good else b"", answer)
        return at, frame

    def _give_back(self, idents: list[int], produced: int, posts: memoryview | None = None) -> None:
        """Post the buffers again whose responses have been taken, up to this index."""
        ring = self.ring
        count = produced - ring.rsp_cons & MASK32
        ring.rsp_cons = produced
        self._post(idents, posts)
        if self._growing and 4 * count > 3 * len(self.posts) < 3 * ring.size:
            self._grow()
        self.push()

    def _collect(self, idents: list[int], answers: list[int], marks: int) -> Collected | None:
        """Return the frames that the answered buffers hold, one each; None if some hold none. `marks`: all bits set."""
        sizes = [answer >> 48 for answer in answers]
        if min(sizes) <= 0 or max(sizes) > PAGE_SIZE:
            return None
        views = self._views
        frames = []
        last = 0
        for ident, size in zip(idents, sizes, strict=True):
            if size != last:
                part, last = slice(size), size
            frames.append(views[ident][part].tobytes())
        self._device.counters.rx_packets += len(frames)
        self._device.counters.rx_bytes += sum(sizes)
        return frames, [OFFLOADS[answer & CSUM] for answer in answers] if marks & CSUM else NONE

    def close(self) -> None:
        """Let go of the ring and of views of pages."""
        self.ring.release()
        self._spans.forget()
        self._known.clear()
        self._bursts.forget()
