"""The frontend's end of the control ring: has the backend keep our buffers mapped, and says how to hash frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from guest_kernel.threads import Event
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, RSP_PROD, FrontRing

if TYPE_CHECKING:
    from frontends.net.pages import GrantedPages
    from guest_kernel.kernel import Kernel

REQUEST, RESPONSE = netif.xen_netif_ctrl_request.codec, netif.xen_netif_ctrl_response.codec
ENTRY = netif.xen_netif_gref.codec
LIST_ENTRIES = 4096 // ENTRY.size
SUCCESS, NOT_SUPPORTED = netif.XEN_NETIF_CTRL_STATUS_SUCCESS, netif.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED

Buffers = list[tuple[int, bool]]
"""Grant references, with whether each is read-only."""


class _Order(NamedTuple):
    """A request that waits for its turn."""

    kind: int
    data: tuple[int, int, int]
    page: bytes
    """What is to be in the page that goes with it."""
    done: Callable[[int], None]
    """Told the status."""


class ControlRing:
    """One request at a time, in order, as there is one page for what belongs to it."""

    def __init__(self, kernel: Kernel, backend: int, pages: GrantedPages) -> None:
        self._kernel = kernel
        page, self.ring_ref = pages.add()
        self._page, self.page_ref = pages.add()
        self._ring = FrontRing.initialise(page.view, max(REQUEST.size, RESPONSE.size))
        self._waiting: deque[_Order] = deque()
        self._done: Callable[[int], None] | None = None
        """Whom to tell of the request that is out."""
        self._closed = False
        self.refused = False
        """The backend keeps no buffers mapped, or not so many: it goes on copying, and nothing is lost but speed."""
        self.port = kernel.events.alloc_unbound(backend, self._interrupt)

    def register(self, buffers: Buffers) -> None:
        """Ask the backend to keep these grants mapped."""
        for start in range(0, len(buffers), LIST_ENTRIES):
            part = buffers[start : start + LIST_ENTRIES]
            page = b"".join(ENTRY.pack(ref, int(readonly), 0) for ref, readonly in part)
            data = (0, self.page_ref, len(part))
            self._put(_Order(netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, data, page, self._registered))

    def _registered(self, status: int) -> None:
        self.refused |= status != SUCCESS

    async def ask(self, kind: int, *data: int, page: bytes = b"") -> int:
        """Make a request (XEN_NETIF_CTRL_TYPE_...) and wait for its status, XEN_NETIF_CTRL_STATUS_...

        `page`: what the page `page_ref` is to hold for it.
        """
        answered = Event()
        statuses = [NOT_SUPPORTED]

        def done(status: int) -> None:
            statuses[0] = status
            answered.set()

        first, second, third = (*data, 0, 0, 0)[:3]
        self._put(_Order(kind, (first, second, third), page, done))
        await answered.wait()
        return statuses[0]

    def _put(self, order: _Order) -> None:
        self._waiting.append(order)
        self._next()

    def _next(self) -> None:
        while self._done is None and self._waiting:
            kind, data, page, done = self._waiting.popleft()
            if self._closed or (self.refused and kind == netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING):
                done(NOT_SUPPORTED)
                continue
            self._done = done
            self._page.view[: len(page)] = page
            ring = self._ring
            REQUEST.pack_into(ring.view, ring.offset(ring.req_prod_pvt), 0, kind, *data)
            ring.req_prod_pvt = ring.req_prod_pvt + 1 & MASK32
            if ring.push_requests_and_check_notify():
                self._kernel.events.notify(self.port)

    def _interrupt(self) -> None:
        ring = self._ring
        if self._done is None or ring.shared[RSP_PROD] - ring.rsp_cons & MASK32 != 1:
            return
        _, _, status, _ = RESPONSE.unpack_from(ring.view, ring.offset(ring.rsp_cons))
        ring.rsp_cons = ring.rsp_cons + 1 & MASK32
        ring.final_check_for_responses()
        done, self._done = self._done, None
        done(status)
        self._next()

    def close(self) -> None:
        """Stop; who waits for an answer gets NOT_SUPPORTED. The pages stay with whoever gave them."""
        self._closed = True
        done, self._done = self._done, None
        if done is not None:
            done(NOT_SUPPORTED)
        self._next()
        self._kernel.events.unbind(self.port)
        self._ring.release()
