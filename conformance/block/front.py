"""A block frontend by hand: a ring, pages, and requests of any content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, final

from conformance.kit.bus_end import PATIENCE_NS, FrontEnd
from conformance.kit.check import Failure
from guest_kernel.kernel import Kernel
from hypervisor.abi.io import blkif
from hypervisor.abi.io.ring import REQ_EVENT, RSP_EVENT, FrontRing
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
)

HOME: Final = "device/vbd/51712"
LOOK_NS: Final = 1_000_000
IDENT: Final = 0x1122_3344_5566_7788
U32: Final = 0xFFFF_FFFF

Segment = tuple[int, int, int]
"""Grant reference, first and last sector within its page."""
Response = tuple[int, int, int]
"""id, operation, status."""


@final
class Front(FrontEnd):
    """One frontend device."""

    look_ns = LOOK_NS

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel, HOME)
        self.ring: FrontRing
        self.port = 0
        self.events = 0
        self.protocol: tuple[Any, Any] = blkif.blkif_request, blkif.blkif_response

    # -- the bus ------------------------------------------------------------------------------------------------------

    def make_ring(self, entry_size: int = 112) -> int:
        """Make a ring and its event channel; return the reference of its page."""
        ref = self.grant()
        self.ring = FrontRing.initialise(self.pages[ref].view, entry_size)
        self.port = self.kernel.events.alloc_unbound(self.domid, self._on_event)
        return ref

    async def connect(self, **nodes: object) -> None:
        """Go through the handshake; `nodes` are written as well, or instead."""
        if not self.far:
            await self.find()
        ref = self.make_ring()
        named: dict[str, object] = {"ring_ref": ref, "event_channel": self.port, "protocol": "x86_64-abi"}
        await self.say(**(named | nodes))
        await self.say(state=XenbusStateInitialised)
        await self.wait_for(XenbusStateConnected)
        await self.say(state=XenbusStateConnected)

    async def try_to_connect(self, **nodes: object) -> int:
        """As `connect`, with nodes that should not do; return the state that the backend ends in."""
        await self.find()
        ref = self.make_ring()
        named: dict[str, object] = {"ring_ref": ref, "event_channel": self.port, "protocol": "x86_64-abi"}
        await self.say(**(named | nodes))
        await self.say(state=XenbusStateInitialised)
        return await self.wait_for(XenbusStateClosing, XenbusStateClosed, XenbusStateConnected)

    async def take_back(self) -> None:
        """End all grants and the event channel. Raises Failure if the backend still maps a page."""
        await self.released()
        if self.port:
            self.ring.release()
            self.kernel.events.unbind(self.port)
            self.port = 0
        for ref in list(self.pages):
            self.ungrant(ref)

    async def begin_again(self) -> None:
        """Say that the device is to be connected anew."""
        await self.say(state=XenbusStateInitialising)
        await self.wait_for(XenbusStateInitWait)

    def _on_event(self) -> None:
        self.events += 1

    # -- pages and requests -------------------------------------------------------------------------------------------

    def put(
        self, op: int, sector: int, segments: Sequence[Segment] = (), *, ident: int = IDENT, count: int | None = None
    ) -> None:
        """Write a request into the next slot, without showing it."""
        layout, _ = self.protocol
        request = layout.pack(
            operation=op,
            nr_segments=len(segments) if count is None else count,
            id=ident,
            sector_number=sector,
            seg=[{"gref": ref, "first_sect": first, "last_sect": last} for ref, first, last in segments[:11]],
        )
        self.put_raw(request)

    def put_raw(self, request: bytes) -> None:
        """Write bytes into the next slot."""
        at = self.ring.offset(self.ring.req_prod_pvt)
        self.ring.view[at : at + self.ring.entry_size] = request.ljust(self.ring.entry_size, b"\0")
        self.ring.req_prod_pvt = (self.ring.req_prod_pvt + 1) & U32

    def show(self) -> None:
        """Show the requests, and notify as the protocol asks."""
        if self.ring.push_requests_and_check_notify():
            self.kernel.events.notify(self.port)

    async def responses(self, count: int) -> list[Response]:
        """Return so many responses. Raises Failure if they do not come."""
        found: list[Response] = []
        _, layout = self.protocol
        for _ in range(PATIENCE_NS // LOOK_NS):
            while self.ring.final_check_for_responses():
                at = self.ring.offset(self.ring.rsp_cons)
                answer = layout.unpack(bytes(self.ring.view[at : at + layout.size]))
                found.append((answer.id, answer.operation, answer.status))
                self.ring.rsp_cons = (self.ring.rsp_cons + 1) & U32
            if len(found) >= count:
                return found
            await self.kernel.sleep(LOOK_NS)
        raise Failure(f"Of {count} responses {len(found)} come.")

    async def request(self, op: int, sector: int, segments: Sequence[Segment] = (), *, count: int | None = None) -> int:
        """Make one request and return its status."""
        self.put(op, sector, segments, count=count)
        self.show()
        return self.one_status(await self.responses(1), op)

    @staticmethod
    def one_status(answers: Iterable[Response], op: int) -> int:
        """Return the status of the only response, which must be that of the request."""
        ((ident, operation, status),) = answers
        if (ident, operation) != (IDENT, op):
            raise Failure(f"The response says id {ident:#x} and operation {operation}; it was {IDENT:#x} and {op}.")
        return status

    async def discard(self, sector: int, sectors: int, *, flag: int = 0) -> int:
        """Say that sectors are not needed any more; return the status."""
        request = blkif.blkif_request_discard.pack(
            operation=blkif.BLKIF_OP_DISCARD, flag=flag, id=IDENT, sector_number=sector, nr_sectors=sectors
        )
        self.put_raw(request)
        self.show()
        return self.one_status(await self.responses(1), blkif.BLKIF_OP_DISCARD)

    async def read(self, sector: int, count: int = 8) -> bytes:
        """Read up to a page of sectors, which must succeed."""
        ref = self.grant()
        status = await self.request(blkif.BLKIF_OP_READ, sector, [(ref, 0, count - 1)])
        if status != blkif.BLKIF_RSP_OKAY:
            raise Failure(f"A plain read of sector {sector} is answered with {status}.")
        return self.data(ref)[: count * 512]

    @property
    def thresholds(self) -> tuple[int, int]:
        """req_event and rsp_event."""
        return self.ring.shared[REQ_EVENT], self.ring.shared[RSP_EVENT]
