"""A virtual Ethernet device: the frontend's ends of the tx and rx rings, and the pages that frames travel in.

All pages are granted once and used again and again, so that a frame costs no grant. A tx page is granted read-only, an
rx page writable; both hold nothing but frames that this device has sent or received, and are zero before (XSA-403).
The other end may write anything into the rings at any time: an id counts only while its buffer is out, and garbage
makes the device give up (`broken`) without harm to the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from frontends.net.control import ControlRing
from guest_kernel.net.device import NetDevice
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, RSP_PROD, FrontRing
from hypervisor.abi.tracepoints import RING_PUSH

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

PAGE = 4096
TX_REQUEST, TX_RESPONSE = netif.netif_tx_request.codec, netif.netif_tx_response.codec
RX_REQUEST, RX_RESPONSE = netif.netif_rx_request.codec, netif.netif_rx_response.codec
MORE = netif.NETTXF_more_data
CSUM = netif.NETTXF_csum_blank | netif.NETTXF_data_validated
RX_MORE = netif.NETRXF_more_data
RX_EXTRA = netif.NETRXF_extra_info
VALIDATED = netif.NETRXF_data_validated | netif.NETRXF_csum_blank

BUSY_PACKETS = 64
"""After so many frames an interface is worth keeping its buffers mapped in the backend."""
RX_FIRST = 64
"""Buffers that the backend gets at first; when it has used up most of them, it gets twice as many."""


class FrontDevice(NetDevice):
    """One connected (or once connected) virtual interface."""

    def __init__(self, kernel: Kernel, name: str, mac: bytes, backend: int, *, control: bool = False) -> None:
        super().__init__(name, mac)
        self.control = ControlRing(kernel, backend) if control else None
        self._registered_tx = self._registered_rx = 0
        self.kernel = kernel
        self.backend = backend
        self.connected = False
        self.broken = ""
        self.on_broken: Callable[[str], None] = lambda why: None
        self.checksum_offload = True
        self._notify = kernel.events.notify
        self._trace = kernel.cpu.trace
        self._tx_page, self._rx_page = kernel.mm.alloc_pages(2)
        self._tx = FrontRing.initialise(self._tx_page.view, max(TX_REQUEST.size, TX_RESPONSE.size))
        self._rx = FrontRing.initialise(self._rx_page.view, max(RX_REQUEST.size, RX_RESPONSE.size))
        self.tx_ref = kernel.grants.grant_access(backend, self._tx_page)
        self.rx_ref = kernel.grants.grant_access(backend, self._rx_page)
        self.port = kernel.events.alloc_unbound(backend, self._interrupt)
        self._tx_buffers: list[tuple[Page, int]] = []
        self._tx_free: list[int] = []
        self._tx_out = bytearray(self._tx.size)
        self._rx_buffers: list[tuple[Page, int]] = []
        self._rx_out = bytearray(self._rx.size)
        self._pieces: list[bytes] = []
        self._pieces_bad = False
        self._add_rx_buffers(RX_FIRST)

    # -- sending --------------------------------------------------------------------------------------------------

    def transmit(self, frame: bytes | memoryview, csum_blank: bool = False) -> bool:
        """Put a frame on the tx ring and tell the backend if it wants to know."""
        sent = self._put(frame, csum_blank)
        if sent:
            self._push_tx()
        return sent

    def transmit_many(self, frames: Iterable[bytes | memoryview]) -> int:
        """Send frames with at most one notification; returns how many found room."""
        sent = 0
        for frame in frames:
            if not self._put(frame, False):
                break
            sent += 1
        if sent:
            self._push_tx()
        return sent

    def tx_room(self) -> int:
        """Return how many one-slot frames can be sent now."""
        return self._tx.free_requests() if self.connected else 0

    def _put(self, frame: bytes | memoryview, csum_blank: bool) -> bool:
        size = len(frame)
        slots = 1 if size <= PAGE else -(-size // PAGE)
        ring = self._tx
        too_long = size > netif.XEN_NETIF_MAX_TX_SIZE or slots > netif.XEN_NETIF_NR_SLOTS_MIN
        if not self.connected or too_long or ring.free_requests() < slots:
            self.counters.tx_dropped += 1
            return False
        while len(self._tx_free) < slots:
            self._add_tx_buffer()
        flags = CSUM if csum_blank else 0
        if slots == 1:
            self._put_slot(frame, size, flags)
        else:
            for start in range(0, size, PAGE):
                piece = frame[start : start + PAGE]
                more = MORE if start + PAGE < size else 0
                # The first slot tells the size of the whole frame, the others their own.
                self._put_slot(piece, len(piece) if start else size, (flags if not start else 0) | more)
        self.counters.tx_packets += 1
        self.counters.tx_bytes += size
        return True

    def _put_slot(self, piece: bytes | memoryview, size: int, flags: int) -> None:
        ident = self._tx_free.pop()
        page, ref = self._tx_buffers[ident]
        page.view[: len(piece)] = piece
        ring = self._tx
        index = ring.req_prod_pvt
        TX_REQUEST.pack_into(ring.view, ring.offsets[index & ring.mask], ref, 0, flags, ident, size)
        self._tx_out[ident] = 1
        ring.req_prod_pvt = index + 1 & MASK32

    def _add_tx_buffer(self) -> None:
        page = self.kernel.mm.alloc_page()
        self._tx_free.append(len(self._tx_buffers))
        self._tx_buffers.append((page, self.kernel.grants.grant_access(self.backend, page, readonly=True)))

    def _push_tx(self) -> None:
        notify = self._tx.push_requests_and_check_notify()
        if self._trace is not None:
            self._trace(RING_PUSH, self.name, "tx", self._tx.req_prod_pvt, notify)
        if notify:
            self._notify(self.port)

    # -- receiving ------------------------------------------------------------------------------------------------

    def _add_rx_buffers(self, count: int) -> None:
        """Hand the backend more empty pages, up to a whole ring of them."""
        count = min(count, self._rx.size - len(self._rx_buffers))
        for page in self.kernel.mm.alloc_pages(count):
            ident = len(self._rx_buffers)
            self._rx_buffers.append((page, self.kernel.grants.grant_access(self.backend, page)))
            self._post(ident)
        self._push_rx()

    def _post(self, ident: int) -> None:
        ring = self._rx
        index = ring.req_prod_pvt
        RX_REQUEST.pack_into(ring.view, ring.offsets[index & ring.mask], ident, 0, self._rx_buffers[ident][1])
        self._rx_out[ident] = 1
        ring.req_prod_pvt = index + 1 & MASK32

    def _push_rx(self) -> None:
        notify = self._rx.push_requests_and_check_notify()
        if self._trace is not None:
            self._trace(RING_PUSH, self.name, "rx", self._rx.req_prod_pvt, notify)
        if notify and self.connected:
            self._notify(self.port)

    def connect(self) -> None:
        """Start: the backend is there."""
        self.connected = True
        self._notify(self.port)

    def _interrupt(self) -> None:
        """Take what is new on both rings."""
        if self.broken:
            return
        while True:
            if not self._take_tx_responses() or not self._take_rx_responses():
                return
            if not self._tx.final_check_for_responses() and not self._rx.final_check_for_responses():
                break
        if self._registered_tx < len(self._tx_buffers) or self._registered_rx < len(self._rx_buffers):
            self._register()

    def _take_tx_responses(self) -> bool:
        ring = self._tx
        produced = ring.shared[RSP_PROD]
        if produced == ring.rsp_cons:
            return True
        if produced - ring.rsp_cons & MASK32 > ring.outstanding():
            return self._give_up(f"the backend answered more than was sent (rsp_prod {produced})")
        view, offsets, mask, out, free = ring.view, ring.offsets, ring.mask, self._tx_out, self._tx_free
        known = len(self._tx_buffers)
        index = ring.rsp_cons
        while index != produced:
            ident, status = TX_RESPONSE.unpack_from(view, offsets[index & mask])
            index = index + 1 & MASK32
            if status == netif.NETIF_RSP_NULL:
                continue
            if ident >= known or not out[ident]:
                return self._give_up(f"the backend answered frame {ident}, which was not sent")
            out[ident] = 0
            free.append(ident)
            if status != netif.NETIF_RSP_OKAY:
                self.counters.tx_dropped += 1
        ring.rsp_cons = index
        return True

    def _take_rx_responses(self) -> bool:
        ring = self._rx
        produced = ring.shared[RSP_PROD]
        if produced == ring.rsp_cons:
            return True
        if produced - ring.rsp_cons & MASK32 > ring.outstanding():
            return self._give_up(f"the backend filled more buffers than it was given (rsp_prod {produced})")
        view, offsets, mask, out = ring.view, ring.offsets, ring.mask, self._rx_out
        known = len(self._rx_buffers)
        index = ring.rsp_cons
        while index != produced:
            ident, offset, flags, status = RX_RESPONSE.unpack_from(view, offsets[index & mask])
            index = index + 1 & MASK32
            if ident >= known or not out[ident]:
                return self._give_up(f"the backend filled buffer {ident}, which it does not have")
            ring.rsp_cons = index
            data = b""
            if 0 < status <= PAGE - offset:
                data = bytes(self._rx_buffers[ident][0].view[offset : offset + status])
            out[ident] = 0
            self._post(ident)
            self._take_piece(data, flags)
        if ring.size > known and ring.req_prod_pvt - ring.rsp_cons & MASK32 < known // 4:
            self._add_rx_buffers(known)
        else:
            self._push_rx()
        return True

    def _take_piece(self, data: bytes, flags: int) -> None:
        """Collect the slots of a frame; a frame with a bad slot, or with extras that were never offered, is dropped."""
        if not data or flags & RX_EXTRA:
            self._pieces_bad = True
        if flags & RX_MORE:
            self._pieces.append(data)
            if len(self._pieces) > netif.XEN_NETIF_NR_SLOTS_MIN:
                self._pieces_bad = True
                self._pieces.clear()
            return
        if self._pieces:
            data = b"".join((*self._pieces, data))
            self._pieces.clear()
        counters = self.counters
        if self._pieces_bad:
            self._pieces_bad = False
            counters.rx_dropped += 1
            return
        counters.rx_packets += 1
        counters.rx_bytes += len(data)
        self.received(data, bool(flags & VALIDATED))

    def _give_up(self, why: str) -> bool:
        self.broken = why
        self.connected = False
        self.on_broken(why)
        return False

    # -- buffers that stay mapped ---------------------------------------------------------------------------------

    def _register(self) -> None:
        """Have the backend keep our buffers mapped: worth it once an interface is really used."""
        control = self.control
        if control is None or self.counters.tx_packets + self.counters.rx_packets < BUSY_PACKETS:
            return
        tx, rx = self._tx_buffers[self._registered_tx :], self._rx_buffers[self._registered_rx :]
        self._registered_tx += len(tx)
        self._registered_rx += len(rx)
        control.register([(ref, True) for _, ref in tx] + [(ref, False) for _, ref in rx])

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self) -> list[tuple[int, Page]]:
        """Take everything back; returns the grants (with their pages) that the backend still uses (XSA-396)."""
        self.connected = False
        kernel = self.kernel
        kernel.events.unbind(self.port)
        withheld: list[tuple[int, Page]] = []
        pairs = [*self._tx_buffers, *self._rx_buffers, (self._tx_page, self.tx_ref), (self._rx_page, self.rx_ref)]
        if self.control is not None:
            pairs += self.control.close()
        self._tx.release()
        self._rx.release()
        for page, ref in pairs:
            if kernel.grants.end_access(ref):
                kernel.mm.free_page(page)
            else:
                withheld.append((ref, page))
        self._tx_buffers, self._rx_buffers = [], []
        return withheld
