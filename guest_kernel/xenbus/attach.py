"""Where the client's ring is: the page and the port that the domain's start_info names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest_kernel.xenbus.client import XenbusClient
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel


def attach(kernel: Kernel) -> XenbusClient:
    """Return the xenstore client of a domain, its event handler installed; nothing is sent yet.

    A guest finds its ring page (`store_mfn`) and its half of the event channel (`store_evtchn`) in start_info.  In the
    initial domain both are 0, since there is no server yet when it boots: it makes them itself, and the server in the
    same domain attaches to `client.dom0_interface`, (mfn, port).  Requests made before that wait in the ring.
    """
    info = kernel.start_info
    events = kernel.events
    client: XenbusClient
    if info.store_mfn:
        page = kernel.mm.page_at(info.store_mfn)
        port = info.store_evtchn
    else:
        page = kernel.mm.alloc_page()
        page.view[:] = bytes(len(page.view))
        port = events.alloc_unbound(DOMID_SELF, lambda: client.on_event())
    client = XenbusClient(page.view, lambda: events.notify(port), kernel.spawn)
    if info.store_mfn:
        events.adopt(port, client.on_event)
    else:
        client.dom0_interface = (page.mfn, port)
    return client
