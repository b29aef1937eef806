"""A block backend by hand: it offers what the check says, takes requests, and answers as it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import attrs

from conformance.kit.bus_end import LOOK_NS, BackEnd
from conformance.kit.check import Failure
from guest_kernel.errors import XenError
from guest_kernel.grants import MappedGrant
from guest_kernel.kernel import Kernel
from hypervisor.abi.io import blkif
from hypervisor.abi.io.ring import REQ_EVENT, BackRing
from hypervisor.abi.io.xenbus import (
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitWait,
)
from hypervisor.abi.tracepoints import RING_CONNECT

CALM_NS: Final = 50_000_000
"""Virtual time without requests after which a guest is at rest."""
U32: Final = 0xFFFF_FFFF
ENTRY: Final = 112
SECTORS: Final = 2048


@attrs.frozen
class Request:
    """A request as it was in its slot."""

    op: int
    id: int
    sector: int
    count: int
    """nr_segments"""
    segments: list[tuple[int, int, int]]
    """Grant reference, first and last sector."""


@final
class Back(BackEnd):
    """One backend device."""

    kind, device = "vbd", "51712"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.is_calm: Callable[[], bool] = lambda: True
        """Whether the frontend's guest has done what it does with every new disk."""
        self.content = bytearray(b"".join(sector.to_bytes(2, "little") * 256 for sector in range(SECTORS)))
        self.ring: BackRing
        self.grant: MappedGrant | None = None
        self.port = 0
        self.events = 0

    # -- the bus ------------------------------------------------------------------------------------------------------

    async def offer(self, **nodes: object) -> None:
        """Say what there is, and wait for the frontend in InitWait."""
        if not self.home:
            await self.find()
        await self.say(**nodes)
        await self.say(state=XenbusStateInitWait)

    async def attach(self) -> None:
        """Map the ring, and bind the event channel, that the frontend names. Raises Failure."""
        await self.wait_for(XenbusStateInitialised, XenbusStateConnected)
        ref, port = await self.told("ring-ref"), await self.told("event-channel")
        if ref is None or port is None or not ref.isdigit() or not port.isdigit():
            raise Failure(f"The frontend is Initialised with ring-ref {ref!r} and event-channel {port!r}.")
        (self.grant,) = self.kernel.grants.map_refs(self.domid, [int(ref)])
        if self.grant.status:
            raise Failure(f"The frontend's ring-ref {ref} cannot be mapped: status {self.grant.status}.")
        self.ring = BackRing(self.grant.view, ENTRY)
        trace = self.kernel.cpu.trace
        if trace is not None:
            trace(RING_CONNECT, f"vbd{self.domid}-51712", "req", "blkif", self.domid, (int(ref),))
        try:
            self.port = self.kernel.events.bind_interdomain(self.domid, int(port), self._on_event)
        except XenError as error:
            raise Failure(f"The frontend's event-channel {port} cannot be bound: {error}.") from None

    async def connect(self, **nodes: object) -> None:
        """Go through the whole handshake; `nodes` are what is offered."""
        await self.offer(**nodes)
        await self.attach()
        await self.say(sectors=SECTORS, info=0, sector_size=512, physical_sector_size=512)
        await self.say(state=XenbusStateConnected)
        await self.wait_for(XenbusStateConnected)
        await self.calm_down()

    async def calm_down(self) -> None:
        """Serve what the guest wants of a new disk by itself (a table of partitions), until it wants nothing more."""
        if self.is_calm():
            return
        quiet = 0
        for _ in range(self.patience_ns // LOOK_NS):
            requests = self.take()
            for request in requests:
                self.serve(request)
            quiet = 0 if requests or not self.is_calm() else quiet + LOOK_NS
            if quiet >= CALM_NS:
                return
            await self.kernel.sleep(LOOK_NS)
        raise Failure("The guest does not come to the end of what it does with a new disk.")

    @property
    def is_attached(self) -> bool:
        """Whether anything of the frontend is mapped or bound."""
        return bool(self.port)

    def detach(self) -> None:
        """Unmap and unbind."""
        if self.grant is not None and not self.grant.status:
            self.ring.release()
            self.kernel.grants.unmap([self.grant])
        if self.port:
            self.kernel.events.unbind(self.port)
        self.grant, self.port = None, 0

    def _on_event(self) -> None:
        self.events += 1

    # -- requests -----------------------------------------------------------------------------------------------------

    def take(self) -> list[Request]:
        """Take the requests that are there, and ask to be told of the next."""
        found = []
        while self.ring.final_check_for_requests():
            raw = blkif.blkif_request.unpack(self.ring.copy(self.ring.req_cons)[: blkif.blkif_request.size])
            self.ring.req_cons = (self.ring.req_cons + 1) & U32
            segments = [(one.gref, one.first_sect, one.last_sect) for one in raw.seg[: raw.nr_segments]]
            found.append(Request(raw.operation, raw.id, raw.sector_number, raw.nr_segments, segments))
        return found

    async def requests(self, count: int = 1) -> list[Request]:
        """Return so many requests, or more. Raises Failure if they do not come."""
        found: list[Request] = []
        for _ in range(self.patience_ns // LOOK_NS):
            found += self.take()
            if len(found) >= count:
                return found
            await self.kernel.sleep(LOOK_NS)
        raise Failure(f"Of {count} requests {len(found)} come.")

    def put(self, ident: int, op: int, status: int) -> None:
        """Write a response into the next slot, without showing it."""
        at = self.ring.offset(self.ring.rsp_prod_pvt)
        response = blkif.blkif_response.pack(id=ident, operation=op, status=status)
        self.ring.view[at : at + len(response)] = response
        self.ring.rsp_prod_pvt = (self.ring.rsp_prod_pvt + 1) & U32

    def show(self) -> None:
        """Show the responses, and notify as the protocol asks."""
        if self.ring.push_responses_and_check_notify():
            self.kernel.events.notify(self.port)

    def answer(self, request: Request, status: int = blkif.BLKIF_RSP_OKAY) -> None:
        """Answer one request."""
        self.put(request.id, request.op, status)
        self.show()

    def transfer(self, request: Request) -> None:
        """Move the data of a read or write. Raises Failure if the frontend's segments do not allow it."""
        at = request.sector * 512
        for ref, first, last in request.segments:
            (grant,) = self.kernel.grants.map_refs(self.domid, [ref], request.op == blkif.BLKIF_OP_READ)
            if grant.status:
                raise Failure(f"Segment gref {ref} of a request cannot be mapped: status {grant.status}.")
            begin, end = first * 512, (last + 1) * 512
            if request.op == blkif.BLKIF_OP_READ:
                grant.view[begin:end] = self.content[at : at + end - begin]
            else:
                self.content[at : at + end - begin] = grant.view[begin:end]
            self.kernel.grants.unmap([grant])
            at += end - begin

    def serve(self, request: Request) -> None:
        """Do what a request says, and answer it."""
        if request.op in (blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE):
            self.transfer(request)
        self.answer(request)

    def keep_serving(self) -> None:
        """Serve everything from now on, in a thread."""

        async def work() -> None:
            while self.port:
                for request in self.take():
                    self.serve(request)
                await self.kernel.sleep(LOOK_NS)

        self.kernel.spawn(work(), "serves")

    @property
    def req_event(self) -> int:
        """The threshold that the frontend is to look at."""
        return self.ring.shared[REQ_EVENT]
