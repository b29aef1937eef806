"""A pair of rings by hand, from the guest's side: requests of any content, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import attrs

from conformance.kit.bus_end import LOOK_NS, PATIENCE_NS
from conformance.kit.check import Failure
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import REQ_EVENT, RSP_EVENT, FrontRing

U32: Final = 0xFFFF_FFFF
TX_ENTRY, RX_ENTRY = 12, 8
EXTRA_MORE: Final = netif.XEN_NETIF_EXTRA_FLAG_MORE
Answer = tuple[int, int]
"""id and status of a tx response."""
Grant = Callable[..., int]
"""`grant(fill, readonly=...)` grants a fresh page, and returns its reference."""


@attrs.frozen
class Received:
    """A frame as it came."""

    data: bytes
    """Empty if one of its slots had an error."""
    flags: int
    """Of its first slot."""
    extras: list[bytes]
    """Slots of extra info, eight bytes each."""
    statuses: list[int]
    """Of its slots of data."""
    prefix: int = 0
    """The length of a segment, if a slot with that stands before the first one (NETRXF_gso_prefix)."""


def gso(size: int, kind: int) -> bytes:
    """Return what a slot of extra info says of a packet that is to be cut."""
    return size.to_bytes(2, "little") + bytes((kind, 0, 0, 0))


@final
class Queue:
    """One pair of rings."""

    def __init__(self, kernel: Kernel, domid: int, grant: Grant, pages: dict[int, Page], *, split: bool) -> None:
        self._kernel = kernel
        self._grant = grant
        self._pages = pages
        self.tx_ref, self.rx_ref = grant(), grant()
        self.tx = FrontRing.initialise(pages[self.tx_ref].view, TX_ENTRY)
        self.rx = FrontRing.initialise(pages[self.rx_ref].view, RX_ENTRY)
        self.tx_events = self.rx_events = 0
        """Notifications of each event channel; both count those of the only one."""
        self.tx_port = self.rx_port = kernel.events.alloc_unbound(domid, self._on_tx if split else self._on_both)
        if split:
            self.rx_port = kernel.events.alloc_unbound(domid, self._on_rx)
        self._next_ident = 0x1000
        self._posted: dict[int, tuple[int, int]] = {}
        """By slot of the rx ring: id and grant of the buffer that was posted there."""
        self._spare: list[int] = []
        """Buffers that are not posted."""

    def _on_tx(self) -> None:
        self.tx_events += 1

    def _on_rx(self) -> None:
        self.rx_events += 1

    def _on_both(self) -> None:
        self.tx_events += 1
        self.rx_events += 1

    # -- sending ------------------------------------------------------------------------------------------------------

    def put(self, gref: int, size: int, *, offset: int = 0, flags: int = 0, ident: int | None = None) -> int:
        """Write a request into the next slot, without showing it; return its id."""
        ident = self._ident() if ident is None else ident
        self.put_raw(netif.netif_tx_request.pack(gref=gref, offset=offset, flags=flags, id=ident, size=size))
        return ident

    def put_extra(self, kind: int, data: bytes = b"", *, more: bool = False) -> None:
        """Write a slot of extra info."""
        self.put_raw(bytes((kind, EXTRA_MORE if more else 0)) + data.ljust(6, b"\0"))

    def put_frame(self, frame: bytes, *, flags: int = 0) -> int:
        """Write a frame of one slot, in a page of its own; return its id."""
        return self.put(self._grant(frame, readonly=True), len(frame), flags=flags)

    def put_slots(
        self, frame: bytes, sizes: list[int], *, flags: int = 0, extra: tuple[int, bytes] | None = None
    ) -> list[int]:
        """Write a frame in slots of these sizes, with one of extra info behind the first; return the ids."""
        idents = []
        at = 0
        for number, size in enumerate(sizes):
            ref = self._grant(frame[at : at + size], readonly=True)
            at += size
            more = netif.NETTXF_more_data if number < len(sizes) - 1 else 0
            if number:
                idents.append(self.put(ref, size, flags=more))
                continue
            announced = netif.NETTXF_extra_info if extra else 0
            idents.append(self.put(ref, len(frame), flags=flags | more | announced))
            if extra:
                self.put_extra(*extra)
        return idents

    def put_raw(self, request: bytes) -> None:
        """Write bytes into the next slot."""
        at = self.tx.offset(self.tx.req_prod_pvt)
        self.tx.view[at : at + TX_ENTRY] = request.ljust(TX_ENTRY, b"\0")
        self.tx.req_prod_pvt = self.tx.req_prod_pvt + 1 & U32

    def _ident(self) -> int:
        """Return an id that differs from the others, and from the number of its slot."""
        self._next_ident = self._next_ident + 7 & 0x7FFF
        return self._next_ident

    def show_tx(self) -> None:
        """Show the requests of the tx ring, and notify as the protocol asks."""
        if self.tx.push_requests_and_check_notify():
            self._kernel.events.notify(self.tx_port)

    def take_tx(self) -> list[Answer]:
        """Take the responses of the tx ring that are there, and ask to be told of the next. Raises Failure."""
        found = []
        while self.tx.final_check_for_responses():
            self._look_at(self.tx)
            at = self.tx.offset(self.tx.rsp_cons)
            answer = netif.netif_tx_response.unpack(bytes(self.tx.view[at : at + 4]))
            found.append((answer.id, answer.status))
            self.tx.rsp_cons = self.tx.rsp_cons + 1 & U32
        return found

    async def answers(self, count: int) -> list[Answer]:
        """Return so many responses of the tx ring. Raises Failure if they do not come."""
        found: list[Answer] = []
        for _ in range(PATIENCE_NS // LOOK_NS):
            found += self.take_tx()
            if len(found) >= count:
                return found
            await self._kernel.sleep(LOOK_NS)
        raise Failure(f"Of {count} responses on the tx ring {len(found)} come.")

    async def send(self, *frames: bytes, flags: int = 0) -> None:
        """Send frames of one slot, and wait until each has been taken. Raises Failure."""
        idents = [self.put_frame(frame, flags=flags) for frame in frames]
        self.show_tx()
        await self.taken(*idents)

    async def taken(self, *idents: int) -> None:
        """Wait for NETIF_RSP_OKAY for these requests, in any order. Raises Failure."""
        found = await self.answers(len(idents))
        if wrong := [status for _, status in found if status != netif.NETIF_RSP_OKAY]:
            raise Failure(f"Of {len(found)} responses {len(wrong)} are not NETIF_RSP_OKAY: the first is {wrong[0]}.")
        if strange := sorted({ident for ident, _ in found} ^ set(idents)):
            raise Failure(f"Of {len(found)} responses the ids are not those of the requests: {strange[:4]} differ.")

    # -- receiving ----------------------------------------------------------------------------------------------------

    def post(self, count: int, *, bad_ref: int | None = None) -> list[int]:
        """Write requests with empty pages, or with this reference, without showing them; return their ids."""
        idents = []
        for _ in range(count):
            ref = bad_ref if bad_ref is not None else self._spare.pop() if self._spare else self._grant()
            ident = self._ident()
            at = self.rx.offset(self.rx.req_prod_pvt)
            self.rx.view[at : at + RX_ENTRY] = netif.netif_rx_request.pack(id=ident, gref=ref)
            self._posted[self.rx.req_prod_pvt & self.rx.mask] = (ident, ref)
            self.rx.req_prod_pvt = self.rx.req_prod_pvt + 1 & U32
            idents.append(ident)
        return idents

    @property
    def buffers(self) -> list[int]:
        """The grants of the buffers that are posted."""
        return [ref for _, ref in self._posted.values()]

    def show_rx(self) -> None:
        """Show the requests of the rx ring, and notify as the protocol asks (feature-rx-notify)."""
        if self.rx.push_requests_and_check_notify():
            self._kernel.events.notify(self.rx_port)

    def restock(self) -> None:
        """Post and show all buffers that have come back."""
        self.post(len(self._spare))
        self.show_rx()

    def take_slot(self) -> tuple[int, int, bytes] | None:
        """Take a response of the rx ring: id and grant of the request in that slot, and the slot. Raises Failure."""
        if not self.rx.final_check_for_responses():
            return None
        self._look_at(self.rx)
        at = self.rx.offset(self.rx.rsp_cons)
        raw = bytes(self.rx.view[at : at + RX_ENTRY])
        ident, ref = self._posted.pop(self.rx.rsp_cons & self.rx.mask)
        self.rx.rsp_cons = self.rx.rsp_cons + 1 & U32
        if ref in self._pages:
            self._spare.append(ref)
        return ident, ref, raw

    async def _slot(self) -> tuple[int, int, bytes] | None:
        for _ in range(PATIENCE_NS // LOOK_NS):
            found = self.take_slot()
            if found is not None:
                return found
            await self._kernel.sleep(LOOK_NS)
        return None

    async def receive(self, count: int = 1) -> list[Received]:
        """Return so many frames. Raises Failure if they do not come, or not as netif.h has it."""
        frames: list[Received] = []
        while len(frames) < count:
            found = await self._frame()
            if found is None:
                raise Failure(f"Of {count} frames {len(frames)} come.")
            frames.append(found)
        return frames

    async def receive_one(self) -> Received:
        """Return the next frame. Raises Failure."""
        (frame,) = await self.receive()
        return frame

    async def receive_data(self, count: int = 1) -> list[bytes]:
        """Return the bytes of so many frames. Raises Failure."""
        return [frame.data for frame in await self.receive(count)]

    async def _frame(self) -> Received | None:
        pieces: list[bytes] = []
        statuses: list[int] = []
        extras: list[bytes] = []
        flags = prefix = 0
        while not statuses or self._goes_on:
            slot = await self._slot()
            if slot is None:
                return None
            posted, ref, raw = slot
            answer = netif.netif_rx_response.unpack(raw)
            if answer.id != posted:
                raise Failure(f"A response has id {answer.id:#x} in the slot of request {posted:#x} (netif.h, NOTE).")
            if answer.flags & netif.NETRXF_gso_prefix and not statuses and not prefix:
                prefix = answer.offset
                if not prefix or not answer.flags & netif.NETRXF_more_data:
                    raise Failure("A slot before a large packet says nothing of segments, or that nothing follows.")
                continue
            if not statuses:
                flags = answer.flags
            statuses.append(answer.status)
            self._goes_on = bool(answer.flags & netif.NETRXF_more_data)
            pieces.append(self._piece(ref, answer.offset, answer.status))
            is_extra = bool(answer.flags & netif.NETRXF_extra_info)
            while is_extra:
                slot = await self._slot()
                if slot is None:
                    raise Failure("Extra info is announced, and does not come.")
                extras.append(slot[2])
                is_extra = bool(slot[2][1] & EXTRA_MORE)
        whole = b"".join(pieces) if min(statuses) >= 0 else b""
        return Received(whole, flags, extras, statuses, prefix)

    _goes_on = False

    def _piece(self, ref: int, offset: int, status: int) -> bytes:
        if status < 0:
            return b""
        if ref not in self._pages:
            raise Failure(f"A response says that {status} bytes are in a page by reference {ref}, which is no grant.")
        if offset + status > 4096:
            raise Failure(f"A response says {status} bytes at {offset}: that is beyond the page.")
        return bytes(self._pages[ref].view[offset : offset + status])

    async def silent(self, ns: int = 20_000_000) -> None:
        """Raise Failure if a frame comes."""
        await self._kernel.sleep(ns)
        slot = self.take_slot()
        if slot is not None:
            raise Failure(f"A frame comes that should not: its first slot is {slot[2].hex()}.")

    # -- both ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def _look_at(ring: FrontRing) -> None:
        if ring.unconsumed_responses() > ring.outstanding():
            raise Failure(f"There are {ring.unconsumed_responses()} responses to {ring.outstanding()} requests.")

    def thresholds(self, ring: FrontRing) -> tuple[int, int]:
        """Return req_event and rsp_event of a ring."""
        return ring.shared[REQ_EVENT], ring.shared[RSP_EVENT]

    def release(self) -> None:
        """Let go of rings and event channels."""
        self.tx.release()
        self.rx.release()
        for port in {self.tx_port: None, self.rx_port: None}:
            self._kernel.events.unbind(port)
