"""Ends of a block ring without a driver: what a hostile or foreign peer can do."""

from collections.abc import Callable
from struct import Struct
from typing import Any

from block_world import PAGE, FakeKernel, FakePage

from backends.block.protocol import PROTOCOLS
from hypervisor.abi.io.ring import BackRing, FrontRing

SEGMENT = Struct("<IBBxx")


class RawFront:
    """A frontend by hand: a ring, pages, and requests of any content."""

    def __init__(
        self,
        pair: Any,
        *,
        protocol: str = "x86_64-abi",
        persistent: bool = True,
        early: Callable[["RawFront"], None] = lambda front: None,
    ) -> None:
        """Make the ring and have the backend connect to it; `early` is called before it does."""
        self.pair = pair
        self.kernel: FakeKernel = pair.front_kernel
        self.protocol = PROTOCOLS[protocol]
        self.page = self.kernel.mm.alloc_page()
        self.ring = FrontRing.initialise(self.page.view, self.protocol.entry_size)
        self.ring_ref = self.kernel.grants.grant_access(0, self.page)
        self.port = self.kernel.events.alloc_unbound(0, self.on_event)
        self.events = 0
        self.pages: list[FakePage] = []
        self.refs: list[int] = []
        pair.store["frontend/ring-ref"] = str(self.ring_ref)
        pair.store["frontend/event-channel"] = str(self.port)
        pair.store["frontend/protocol"] = protocol
        if persistent:
            pair.store["frontend/feature-persistent"] = "1"
        early(self)
        pair.hook(pair.back, "probe")
        pair.hook(pair.back, "publish")
        pair.hook(pair.back, "connect")

    def on_event(self) -> None:
        self.events += 1

    def grant(self, readonly: bool = False, fill: bytes = b"") -> int:
        page = self.kernel.mm.alloc_page()
        page.view[: len(fill)] = fill
        ref = self.kernel.grants.grant_access(0, page, readonly)
        self.pages.append(page)
        self.refs.append(ref)
        return ref

    def put(self, op: int, ident: int, sector: int, segments: list[tuple[int, int, int]], count: int = -1) -> None:
        """Write a request without showing it."""
        ring = self.ring
        offset = ring.offset(ring.req_prod_pvt)
        self.page.view[offset : offset + ring.entry_size] = bytes(ring.entry_size)
        nr = len(segments) if count < 0 else count
        body = b"".join(SEGMENT.pack(*segment) for segment in segments)
        self.protocol.request.pack_into(self.page.view, offset, op, nr, 0, ident, sector, body)
        ring.req_prod_pvt = (ring.req_prod_pvt + 1) & 0xFFFFFFFF

    def push(self) -> list[tuple[int, int, int]]:
        """Show all requests, let the world run, and return the responses: (id, operation, status)."""
        if self.ring.push_requests_and_check_notify():
            self.kernel.events.notify(self.port)
        self.pair.world.run()
        return self.take()

    def take(self) -> list[tuple[int, int, int]]:
        responses = []
        ring = self.ring
        while 0 < ring.unconsumed_responses() <= ring.outstanding():
            responses.append(self.protocol.response.unpack_from(ring.view, ring.offset(ring.rsp_cons)))
            ring.rsp_cons = (ring.rsp_cons + 1) & 0xFFFFFFFF
        ring.shared[3] = (ring.rsp_cons + 1) & 0xFFFFFFFF
        return responses

    def one(self, op: int, sector: int, segments: list[tuple[int, int, int]], count: int = -1) -> int:
        """Make one request and return its status."""
        self.put(op, 0x1122334455667788, sector, segments, count)
        ((ident, echoed, status),) = self.push()
        assert (ident, echoed) == (0x1122334455667788, op)
        return status

    def down(self) -> None:
        """Close the backend and prove that neither end keeps anything."""
        self.pair.hook(self.pair.back, "close")
        for ref in [*self.refs, self.ring_ref]:
            assert self.kernel.grants.end_access(ref), "the backend still maps a page"
        self.ring.release()
        for page in [*self.pages, self.page]:
            self.kernel.mm.free_page(page)
        self.kernel.events.unbind(self.port)
        self.pair.world.check_no_leaks(self.pair.back_kernel, self.kernel)


class RawBack:
    """A backend by hand, for a frontend driver that the test has published."""

    def __init__(self, pair: Any, *, persistent: bool = True) -> None:
        self.pair = pair
        self.kernel: FakeKernel = pair.back_kernel
        store = pair.store
        store["backend/sectors"] = "4096"
        store["backend/feature-flush-cache"] = "1"
        store["backend/feature-persistent"] = str(int(persistent))
        pair.hook(pair.front, "probe")
        pair.hook(pair.front, "publish")
        self.map()
        pair.hook(pair.front, "connect")

    def map(self) -> None:
        store = self.pair.store
        (self.grant,) = self.kernel.grants.map_refs(1, [int(store["frontend/ring-ref"])])
        assert self.grant.status == 0
        self.protocol = PROTOCOLS[store["frontend/protocol"]]
        self.ring = BackRing(self.grant.view, self.protocol.entry_size)
        self.port = self.kernel.events.bind_interdomain(1, int(store["frontend/event-channel"]), lambda: None)

    def requests(self) -> list[tuple[int, int, int, int, list[tuple[int, int, int]]]]:
        """Take all requests: (operation, id, sector, nr_segments, segments)."""
        taken = []
        while self.ring.unconsumed_requests():
            raw = self.ring.copy(self.ring.req_cons)
            op, count, _, ident, sector, body = self.protocol.request.unpack_from(raw)
            segments = [SEGMENT.unpack_from(body, 8 * n) for n in range(count)]
            taken.append((op, ident, sector, count, segments))
            self.ring.req_cons = (self.ring.req_cons + 1) & 0xFFFFFFFF
        self.ring.shared[1] = (self.ring.req_cons + 1) & 0xFFFFFFFF
        return taken

    def answer(self, ident: int, op: int, status: int) -> None:
        ring = self.ring
        self.protocol.response.pack_into(ring.view, ring.offset(ring.rsp_prod_pvt), ident, op, status)
        ring.rsp_prod_pvt = (ring.rsp_prod_pvt + 1) & 0xFFFFFFFF

    def push(self) -> None:
        self.ring.push_responses()
        self.kernel.events.notify(self.port)
        self.pair.world.run()

    def page(self, ref: int) -> memoryview:
        """The guest's page behind a grant."""
        mfn = self.pair.front_kernel.grants.entries[ref][1]
        return self.pair.world.memory[mfn * PAGE : (mfn + 1) * PAGE]

    def unmap(self) -> None:
        self.ring.release()
        self.kernel.grants.unmap([self.grant])
        self.kernel.events.unbind(self.port)
