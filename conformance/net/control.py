"""The control ring by hand."""

from __future__ import annotations

from typing import final

from conformance.kit.bus_end import LOOK_NS, PATIENCE_NS
from conformance.kit.check import Failure
from conformance.net.rings import U32, Grant
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import FrontRing

ENTRY = 16


@final
class Control:
    """One request at a time."""

    def __init__(self, kernel: Kernel, domid: int, grant: Grant, pages: dict[int, Page]) -> None:
        self._kernel = kernel
        self._grant = grant
        self.ref = grant()
        self.ring = FrontRing.initialise(pages[self.ref].view, ENTRY)
        self.events = 0
        self.port = kernel.events.alloc_unbound(domid, self._on_event)
        self._pages = pages

    def _on_event(self) -> None:
        self.events += 1

    async def ask(self, kind: int, *data: int, ident: int = 0x5A17) -> tuple[int, int]:
        """Make a request; return status and data of the response. Raises Failure if it does not come, or is another."""
        ring = self.ring
        at = ring.offset(ring.req_prod_pvt)
        request = netif.xen_netif_ctrl_request.pack(id=ident, type=kind, data=[*data, 0, 0, 0][:3])
        ring.view[at : at + ENTRY] = request
        ring.req_prod_pvt = ring.req_prod_pvt + 1 & U32
        if ring.push_requests_and_check_notify():
            self._kernel.events.notify(self.port)
        for _ in range(PATIENCE_NS // LOOK_NS):
            if ring.final_check_for_responses():
                break
            await self._kernel.sleep(LOOK_NS)
        else:
            raise Failure(f"Control request {kind} is not answered.")
        answer = netif.xen_netif_ctrl_response.unpack(bytes(ring.view[at : at + 12]))
        ring.rsp_cons = ring.rsp_cons + 1 & U32
        if (answer.id, answer.type) != (ident, kind):
            raise Failure(f"Request {kind} with id {ident:#x} is answered as {answer.type} with id {answer.id:#x}.")
        return answer.status, answer.data

    def page(self, content: bytes) -> int:
        """Return a reference to a page with this content, for a request to name."""
        return self._grant(content)

    def grefs(self, *entries: tuple[int, int]) -> int:
        """Return a reference to a page with a list of (reference, flags)."""
        return self._grant(b"".join(netif.xen_netif_gref.pack(ref=ref, flags=flags) for ref, flags in entries))

    def status_of(self, page: int, entry: int) -> int:
        """Return the status of an entry of such a list."""
        size = netif.xen_netif_gref.size
        raw = bytes(self._pages[page].view[entry * size : (entry + 1) * size])
        return int(netif.xen_netif_gref.unpack(raw).status)

    def release(self) -> None:
        """Let go of ring and event channel."""
        self.ring.release()
        self._kernel.events.unbind(self.port)
