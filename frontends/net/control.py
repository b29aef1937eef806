"""The frontend's end of the control ring: registers the device's buffers, so that the backend keeps them mapped."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, RSP_PROD, FrontRing

if TYPE_CHECKING:
    from frontends.net.pages import GrantedPages
    from guest_kernel.kernel import Kernel

REQUEST, RESPONSE = netif.xen_netif_ctrl_request.codec, netif.xen_netif_ctrl_response.codec
ENTRY = netif.xen_netif_gref.codec
LIST_ENTRIES = 4096 // ENTRY.size

Buffers = list[tuple[int, bool]]
"""Grant references, with whether each is read-only."""


class ControlRing:
    """One request at a time. What the backend refuses it goes on copying: nothing is lost but speed."""

    def __init__(self, kernel: Kernel, backend: int, pages: GrantedPages) -> None:
        self._kernel = kernel
        page, self.ring_ref = pages.add()
        self._list, self._list_ref = pages.add()
        self._ring = FrontRing.initialise(page.view, max(REQUEST.size, RESPONSE.size))
        self._waiting: deque[Buffers] = deque()
        self._busy = False
        self.refused = False
        self.port = kernel.events.alloc_unbound(backend, self._interrupt)

    def register(self, buffers: Buffers) -> None:
        """Ask the backend to keep these grants mapped."""
        for start in range(0, len(buffers), LIST_ENTRIES):
            self._waiting.append(buffers[start : start + LIST_ENTRIES])
        self._next()

    def _next(self) -> None:
        if self._busy or self.refused or not self._waiting:
            return
        self._busy = True
        buffers = self._waiting.popleft()
        for number, (ref, readonly) in enumerate(buffers):
            ENTRY.pack_into(self._list.view, number * ENTRY.size, ref, int(readonly), 0)
        ring = self._ring
        kind = netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING
        REQUEST.pack_into(ring.view, ring.offset(ring.req_prod_pvt), 0, kind, 0, self._list_ref, len(buffers))
        ring.req_prod_pvt = ring.req_prod_pvt + 1 & MASK32
        if ring.push_requests_and_check_notify():
            self._kernel.events.notify(self.port)

    def _interrupt(self) -> None:
        ring = self._ring
        if not self._busy or ring.shared[RSP_PROD] - ring.rsp_cons & MASK32 != 1:
            return
        _, _, status, _ = RESPONSE.unpack_from(ring.view, ring.offset(ring.rsp_cons))
        ring.rsp_cons = ring.rsp_cons + 1 & MASK32
        ring.final_check_for_responses()
        self._busy = False
        self.refused = status != netif.XEN_NETIF_CTRL_STATUS_SUCCESS
        self._next()

    def close(self) -> None:
        """Stop. The pages stay with whoever gave them."""
        self._busy = self.refused = True
        self._kernel.events.unbind(self.port)
        self._ring.release()
