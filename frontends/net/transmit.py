"""The frontend's end of a tx ring, and the pages of the frames that are sent.

Each page is granted once, read-only, and used again and again: a frame costs no grant. It holds nothing but frames that
this device has sent, and is zero before (XSA-403).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from frontends.net.bursts import TxBursts
from frontends.net.order import reorder
from frontends.net.trains import EXTRA_ID, Trains, extra_words
from guest_kernel import vectors
from guest_kernel.errors import GrantError, OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.offload import NONE, Offload
from guest_kernel.net.packet import Bytes
from guest_kernel.net.ring_words import (
    TX_BASE,
    TX_SLOT,
    TX_WORDS,
    put_slots,
    read_run,
    read_words,
    write_run,
    write_words,
)
from guest_kernel.net.spans import fill
from guest_kernel.threads import WaitQueue
from guest_kernel.vectors import MIN_BATCH
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, RSP_PROD, FrontRing

if TYPE_CHECKING:
    from frontends.net.owner import QueueOwner
    from frontends.net.trains import Extra

TX_VALIDATED, TX_BLANK = netif.NETTXF_data_validated, netif.NETTXF_csum_blank
TX_EXTRA = netif.NETTXF_extra_info
GSO = netif.XEN_NETIF_EXTRA_TYPE_GSO

TracePush = Callable[[int, bool, int], None]


def tx_flags(offload: Offload) -> int:
    """Return the flags of a frame's first slot."""
    return TX_BLANK * offload.blank | TX_VALIDATED * offload.validated | TX_EXTRA * (offload.gso_size > 0)


class TxEnd:
    """What is sent."""

    def __init__(self, device: QueueOwner, trace: TracePush | None) -> None:
        """Make the ring. `trace` is told of each push. Raises OutOfMemory, GrantError; the pages are the device's."""
        self._device = device
        self._events = device.kernel.events
        self._trace = trace
        self.room = WaitQueue()
        """Of whoever waits for slots of the ring."""
        self.port = 0
        """Event channel of the ring; 0: none."""
        # By buffer id: the page, its address, its reference.
        self._views: list[memoryview] = []
        self._addresses: list[int] = []
        self.refs: list[int] = []
        self._free: list[int] = []
        self._extras_out = 0
        """Slots of extra info that are not answered yet."""
        mm = device.kernel.mm
        self._trains = Trains(mm, self._addresses, self.refs)
        self._bursts = TxBursts(mm, self._addresses, self.refs)
        page, self.ring_ref = device.pages.add()
        self.ring = FrontRing.initialise(page.view, TX_SLOT)
        self._words = page.i
        self._order = [0] * self.ring.size

    def put_many(self, frames: Sequence[Bytes], offload: Offload = NONE) -> int:
        """Send the first of these frames, as many as there is room for, with at most one notification."""
        if not frames:
            return 0
        if offload.gso_size or len(frames[0]) > PAGE_SIZE:
            sent = self._put_trains(frames, offload)
            size = sum(map(len, frames[:sent]))
        else:
            batch = frames[: self.ring.free_requests()]
            sizes = list(map(len, batch))
            sent = self._put_sized(batch, sizes, offload)
            size = sum(sizes[:sent])
        if sent:
            self._device.counters.tx_packets += sent
            self._device.counters.tx_bytes += size
            self.push()
        return sent

    def _put_sized(self, frames: Sequence[Bytes], sizes: list[int], offload: Offload) -> int:
        """Put frames into the ring, each of which may be of one slot, and is not to be cut."""
        count = len(sizes)
        flags = tx_flags(offload)
        if count >= MIN_BATCH and 0 < sizes[0] <= PAGE_SIZE and vectors.numpy() is not None:
            alike = sizes.count(sizes[0]) == count
            if alike and self._take_buffers(count) >= count:
                self._put_burst(frames, sizes[0], flags)
                return count
        if count and max(sizes) <= PAGE_SIZE:
            sent = self._take_buffers(count)
            self._put_batch(frames, sizes[:sent], flags)
            return sent
        sent = 0
        while sent < count and self.put(frames[sent], offload):
            sent += 1
        return sent

    def put_order(self, kind: int, address: bytes) -> bool:
        """Send what is no frame, but amends the backend's list of multicast addresses; False if there is no room."""
        if self.ring.free_requests() < 2 or not self._take_buffers(1):
            return False
        self._put_batch([b""], [0], TX_EXTRA)
        self._put_extra(kind, int.from_bytes(address, "little"))
        self.push()
        return True

    def free_slots(self) -> int:
        """Return how many slots of the tx ring are free."""
        return self.ring.free_requests()

    def has_room(self, frames: Sequence[Bytes], offload: Offload) -> bool:
        """Whether there are slots for all of these, or the ring is empty and could not have more."""
        slots = sum(-(-len(frame) // PAGE_SIZE) + (offload.gso_size > 0) for frame in frames)
        return self.ring.free_requests() >= min(slots, self.ring.size)

    def put(self, frame: Bytes, offload: Offload = NONE) -> bool:
        """Put a frame of any length into the ring, without showing it; False if it cannot be sent."""
        size = len(frame)
        if size > PAGE_SIZE or offload.gso_size:
            return self._put_trains([frame], offload) == 1
        if not size or not self.ring.free_requests() or not self._take_buffers(1):
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
            if (pages > 1 and not self._device.scatter) or not 0 < size <= netif.XEN_NETIF_MAX_TX_SIZE:
                break
            room = self.ring.free_requests() // (pages + (extra is not None))
            alike = frames[sent : sent + room]
            count = next((at for at, frame in enumerate(alike) if len(frame) != size), len(alike))
            count = self._take_buffers(count * pages) // pages
            if not count:
                break
            self._put_train(alike[:count], count * pages, (size, flags, extra))
            sent += count
        return sent

    def _put_train(self, frames: Sequence[Bytes], buffers: int, what: tuple[int, int, Extra | None]) -> None:
        """Put frames of one length into so many buffers; there are slots for them. `what`: see `Trains`."""
        idents = tuple(self._free[-buffers:])
        del self._free[-buffers:]
        places, slots, order = self._trains.get(idents, *what)
        for views, frame in zip(places, frames, strict=True):
            fill(views, frame)
        ring = self.ring
        index = ring.req_prod_pvt
        put_slots(self._words, TX_BASE, TX_WORDS, ring.size, index, slots)
        write_run(self._order, index, order)
        ring.req_prod_pvt = index + len(order) & MASK32
        self._extras_out += len(order) - buffers

    def _put_extra(self, kind: int, info: int) -> None:
        """Put a slot of extra info into the ring; there must be one. `info`: its six bytes, the first one lowest."""
        ring = self.ring
        index = ring.req_prod_pvt
        for number, word in enumerate(extra_words(kind, info)):
            write_words(self._words, TX_BASE + number, TX_WORDS, ring.size, index, [word])
        write_run(self._order, index, [EXTRA_ID])
        ring.req_prod_pvt = index + 1 & MASK32
        self._extras_out += 1

    def _put_batch(self, frames: Sequence[Bytes], sizes: list[int], flags: int = 0) -> None:
        """Put one-slot pieces into the ring; there are slots and buffers for them."""
        count = len(sizes)
        if not count:
            return
        free, views, refs = self._free, self._views, self.refs
        idents = free[-count:]
        del free[-count:]
        last = -1
        for ident, frame, length in zip(idents, frames, map(len, frames), strict=False):
            if length != last:
                part, last = slice(length), length
            views[ident][part] = frame
        ring, words = self.ring, self._words
        index, size = ring.req_prod_pvt, ring.size
        write_words(words, TX_BASE, TX_WORDS, size, index, [refs[ident] for ident in idents])
        write_words(words, TX_BASE + 1, TX_WORDS, size, index, [flags << 16] * count)
        write_words(
            words, TX_BASE + 2, TX_WORDS, size, index, [i | n << 16 for i, n in zip(idents, sizes, strict=True)]
        )
        write_run(self._order, index, idents)
        ring.req_prod_pvt = index + count & MASK32

    def _put_burst(self, frames: Sequence[Bytes], length: int, flags: int) -> None:
        """Put many frames of one length into the ring, of one slot each; there are slots and buffers for them."""
        ring, count = self.ring, len(frames)
        idents = self._free[-count:]
        del self._free[-count:]
        slots = self._bursts.fill(idents, frames, length, flags)
        put_slots(self._words, TX_BASE, TX_WORDS, ring.size, ring.req_prod_pvt, slots)
        write_run(self._order, ring.req_prod_pvt, idents)
        ring.req_prod_pvt = ring.req_prod_pvt + count & MASK32

    def _take_buffers(self, count: int) -> int:
        """See that there are `count` free buffers; returns how many there are, if memory or grants run out."""
        free = self._free
        try:
            while len(free) < count:
                page, ref = self._device.pages.add(readonly=True)
                free.append(len(self._views))
                self._views.append(page.view)
                self._addresses.append(page.va)
                self.refs.append(ref)
        except (OutOfMemory, GrantError):
            return len(free)
        return count

    def push(self) -> None:
        """Show what has been put into the tx ring, and tell the backend if it wants to know."""
        notify = self.ring.push_requests_and_check_notify()
        if self._trace is not None:
            self._trace(self.ring.req_prod_pvt, notify, self.ring.rsp_cons)
        if notify:
            self._events.notify(self.port)

    # -- what has been sent ---------------------------------------------------------------------------------------

    def take_responses(self) -> bool:
        """Take back the buffers of frames that were sent; False if the backend does not keep to the protocol."""
        ring = self.ring
        produced = ring.shared[RSP_PROD]
        count = produced - ring.rsp_cons & MASK32
        if not count:
            return True
        if count > ring.outstanding():
            return self._device.give_up(f"the backend answered more than was sent (rsp_prod {produced})")
        answers = read_words(self._words, TX_BASE, TX_WORDS, ring.size, ring.rsp_cons, count)
        if answers == read_run(self._order, ring.rsp_cons, count):
            # In order, and each NETIF_RSP_OKAY, which is 0; or NETIF_RSP_NULL with no id, which is EXTRA_ID.
            if self._extras_out and (extras := answers.count(EXTRA_ID)):
                self._extras_out -= extras
                answers = [answer for answer in answers if answer != EXTRA_ID]
            self._free += answers
        elif self._extras_out:
            return self._take_marked_responses(answers, produced)
        else:
            idents = [answer & 0xFFFF for answer in answers]
            if not reorder(ring, self._order, idents):
                return self._device.give_up("the backend answered a frame that was not sent")
            self._free += idents
            self._device.counters.tx_dropped += sum(answer >> 16 != netif.NETIF_RSP_OKAY for answer in answers)
        ring.rsp_cons = produced
        if self.room.waiters:
            self.room.wake_all()
        return True

    def _take_marked_responses(self, answers: list[int], produced: int) -> bool:
        """Take responses among which are some to extra info, which have a status and no id."""
        ring = self.ring
        idents = [EXTRA_ID if answer >> 16 == netif.NETIF_RSP_NULL else answer & 0xFFFF for answer in answers]
        if not reorder(ring, self._order, idents):
            return self._device.give_up("the backend answered a frame that was not sent")
        for ident, answer in zip(idents, answers, strict=True):
            if ident == EXTRA_ID:
                self._extras_out -= 1
                continue
            self._free.append(ident)
            self._device.counters.tx_dropped += answer >> 16 != netif.NETIF_RSP_OKAY
        ring.rsp_cons = produced
        self.room.wake_all()
        return True

    def close(self) -> None:
        """Let go of the ring and of views of pages."""
        self.ring.release()
        self._trains.forget()
        self._bursts.forget()
