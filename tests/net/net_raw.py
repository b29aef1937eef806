"""Ends of a network connection without a driver: what a hostile or foreign peer can do."""

from __future__ import annotations

from typing import Any

from net_world import FakePage, Host, Station

from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, BackRing, FrontRing

TX_REQUEST, TX_RESPONSE = netif.netif_tx_request.codec, netif.netif_tx_response.codec
RX_REQUEST, RX_RESPONSE = netif.netif_rx_request.codec, netif.netif_rx_response.codec
CTRL_REQUEST, CTRL_RESPONSE = netif.xen_netif_ctrl_request.codec, netif.xen_netif_ctrl_response.codec
ENTRY = netif.xen_netif_gref.codec


class RawFront:
    """A frontend by hand on a guest's vif: rings, pages, and requests of any content."""

    def __init__(self, guest: Station, *, control: bool = False, rx: int = 64, queues: int = 1) -> None:
        self.guest = guest
        self.host: Host = guest.host
        self.kernel = guest.kernel
        self.pages: list[tuple[FakePage, int]] = []
        self.events = 0
        self.queues: list[tuple[FrontRing, FrontRing, int]] = []
        nodes: dict[str, object] = {"request-rx-copy": 1, "feature-sg": 1}
        if queues > 1:
            nodes["multi-queue-num-queues"] = queues
        for number in range(queues):
            at = f"queue-{number}/" if queues > 1 else ""
            tx, nodes[f"{at}tx-ring-ref"] = self.page()
            rx_page, nodes[f"{at}rx-ring-ref"] = self.page()
            port = nodes[f"{at}event-channel"] = self.kernel.events.alloc_unbound(0, self.on_event)
            self.queues.append((FrontRing.initialise(tx.view, 12), FrontRing.initialise(rx_page.view, 8), port))
        self.use(0)
        if control:
            page, ref = self.page()
            self.ctrl = FrontRing.initialise(page.view, 16)
            self.ctrl_port = self.kernel.events.alloc_unbound(0, lambda: None)
            nodes |= {"ctrl-ring-ref": ref, "event-channel-ctrl": self.ctrl_port}
        for key, value in nodes.items():
            guest.store[f"frontend/{key}"] = str(value)
        guest.back.hook("publish")
        guest.back.hook("connect")
        self.buffers: dict[int, FakePage] = {}
        for number in reversed(range(queues)):
            self.use(number)
            self.free = [self.buffer() for _ in range(rx)]
            for ref in self.free:
                self.post(ref & 0xFFFF, ref)
            self.show(self.rx)
        self.host.run()

    def use(self, number: int) -> None:
        """Have the other methods work on the rings of this queue."""
        self.tx, self.rx, self.port = self.queues[number]

    def on_event(self) -> None:
        self.events += 1

    def page(self, readonly: bool = False, fill: bytes = b"") -> tuple[FakePage, int]:
        page = self.kernel.mm.alloc_page()
        page.view[: len(fill)] = fill
        ref = self.kernel.grants.grant_access(0, page, readonly)
        self.pages.append((page, ref))
        return page, ref

    def grant(self, fill: bytes = b"", readonly: bool = True) -> int:
        return self.page(readonly, fill)[1]

    def buffer(self) -> int:
        page, ref = self.page()
        self.buffers[ref] = page
        return ref

    def post(self, ident: int, ref: int) -> None:
        RX_REQUEST.pack_into(self.rx.view, self.rx.offset(self.rx.req_prod_pvt), ident, 0, ref)
        self.rx.req_prod_pvt = self.rx.req_prod_pvt + 1 & MASK32

    def put(self, gref: int, offset: int, flags: int, ident: int, size: int) -> None:
        """Write a tx request without showing it."""
        TX_REQUEST.pack_into(self.tx.view, self.tx.offset(self.tx.req_prod_pvt), gref, offset, flags, ident, size)
        self.tx.req_prod_pvt = self.tx.req_prod_pvt + 1 & MASK32

    def show(self, ring: FrontRing) -> None:
        if ring.push_requests_and_check_notify():
            self.kernel.events.notify(self.port)

    def push(self) -> list[tuple[int, int]]:
        """Show all tx requests, let the world run, and return the responses: (id, status)."""
        self.show(self.tx)
        self.host.run()
        return self.answers(self.tx, TX_RESPONSE)

    def answers(self, ring: FrontRing, codec: Any) -> list[Any]:
        taken = []
        while 0 < ring.unconsumed_responses() <= ring.outstanding():
            taken.append(codec.unpack_from(ring.view, ring.offset(ring.rsp_cons)))
            ring.rsp_cons = ring.rsp_cons + 1 & MASK32
        ring.shared[3] = ring.rsp_cons + 1 & MASK32
        return taken

    def received(self) -> list[tuple[int, int, int, int]]:
        """Take rx responses: (id, offset, flags, status)."""
        return self.answers(self.rx, RX_RESPONSE)

    def ask(self, kind: int, *data: int, ident: int = 7) -> tuple[int, int]:
        """Make one request on the control ring; returns (status, data)."""
        ring = self.ctrl
        CTRL_REQUEST.pack_into(ring.view, ring.offset(ring.req_prod_pvt), ident, kind, *data)
        ring.req_prod_pvt = ring.req_prod_pvt + 1 & MASK32
        ring.push_requests()
        self.kernel.events.notify(self.ctrl_port)
        self.host.run()
        ((echoed, echoed_kind, status, result),) = self.answers(ring, CTRL_RESPONSE)
        assert (echoed, echoed_kind) == (ident, kind)
        return status, result

    def grefs(self, *entries: tuple[int, int]) -> tuple[FakePage, int]:
        """A page with a list of (reference, flags)."""
        page, ref = self.page()
        for number, (gref, flags) in enumerate(entries):
            ENTRY.pack_into(page.view, number * 8, gref, flags, 0)
        return page, ref

    def down(self) -> None:
        """Close the backend and prove that it lets go of everything."""
        self.guest.back.hook("close")
        for page, ref in self.pages:
            assert self.kernel.grants.end_access(ref), "the backend still maps a page"
            self.kernel.mm.free_page(page)
        for port in list(self.kernel.events.ports):
            self.kernel.events.unbind(port)


class RawBack:
    """A backend by hand, for a frontend driver that has published."""

    def __init__(self, guest: Station, *, control: bool = False) -> None:
        self.guest = guest
        self.host = guest.host
        self.kernel = guest.host.kernel
        store = guest.store
        store["backend/feature-rx-copy"] = store["backend/feature-sg"] = "1"
        store["backend/feature-ctrl-ring"] = str(int(control))
        guest.front.hook("publish")
        refs = [int(store["frontend/tx-ring-ref"]), int(store["frontend/rx-ring-ref"])]
        self.grants = self.kernel.grants.map_refs(guest.kernel.domid, refs)
        self.tx, self.rx = BackRing(self.grants[0].view, 12), BackRing(self.grants[1].view, 8)
        self.port = self.kernel.events.bind_interdomain(
            guest.kernel.domid, int(store["frontend/event-channel"]), lambda: None
        )
        guest.front.hook("connect")
        guest.device.received_raw = guest.record
        self.host.run()

    def tx_requests(self) -> list[tuple[int, int, int, int, int]]:
        return self._take(self.tx, TX_REQUEST)

    def rx_requests(self) -> list[tuple[int, int, int]]:
        return self._take(self.rx, RX_REQUEST)

    def _take(self, ring: BackRing, codec: Any) -> list[Any]:
        taken = []
        while ring.unconsumed_requests():
            taken.append(codec.unpack_from(ring.view, ring.offset(ring.req_cons)))
            ring.req_cons = ring.req_cons + 1 & MASK32
        ring.shared[1] = ring.req_cons + 1 & MASK32
        return taken

    def page(self, ref: int) -> memoryview:
        """The guest's page behind a grant."""
        mfn = self.guest.kernel.grants.entries[ref].mfn
        return self.host.world.memory[mfn * 4096 : (mfn + 1) * 4096]

    def answer_tx(self, ident: int, status: int) -> None:
        TX_RESPONSE.pack_into(self.tx.view, self.tx.offset(self.tx.rsp_prod_pvt), ident, status)
        self.tx.rsp_prod_pvt = self.tx.rsp_prod_pvt + 1 & MASK32

    def answer_rx(self, ident: int, offset: int, flags: int, status: int) -> None:
        RX_RESPONSE.pack_into(self.rx.view, self.rx.offset(self.rx.rsp_prod_pvt), ident, offset, flags, status)
        self.rx.rsp_prod_pvt = self.rx.rsp_prod_pvt + 1 & MASK32

    def push(self) -> None:
        self.tx.push_responses()
        self.rx.push_responses()
        self.kernel.events.notify(self.port)
        self.host.run()

    def down(self) -> None:
        self.tx.release()
        self.rx.release()
        self.kernel.grants.unmap(self.grants)
        self.kernel.events.unbind(self.port)
        self.guest.front.hook("close")
        self.host.check_no_leaks()
