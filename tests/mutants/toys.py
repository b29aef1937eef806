"""Drivers of a toy class, as small as they can be: one page, one event channel, nothing that goes over it."""

from __future__ import annotations

from typing import Any

from guest_kernel.xenbus.driver import XenbusDevice, XenbusDriver, frontend_number
from hypervisor.abi.grant_table import GNTST_okay


class ToyFront(XenbusDriver):
    """The frontend."""

    type = "toy"
    side = "frontend"

    async def publish(self, device: XenbusDevice) -> None:
        page = self.kernel.mm.alloc_page()
        ref = self.kernel.grants.grant_access(device.otherend_id, page)
        port = self.kernel.events.alloc_unbound(device.otherend_id, lambda: None)
        device.data = (page, ref, port)
        await self.announce(device, {"ring-ref": ref, "event-channel": port})

    async def announce(self, device: XenbusDevice, nodes: dict[str, object]) -> None:
        await device.write(nodes)

    async def close(self, device: XenbusDevice) -> None:
        (page, ref, port), device.data = device.data, None
        self.kernel.events.unbind(port)
        while not self.kernel.grants.end_access(ref):
            await self.kernel.sleep(1_000_000)
        self.kernel.mm.free_page(page)


class ToyBack(XenbusDriver):
    """The backend."""

    type = "toy"
    side = "backend"

    async def connect(self, device: XenbusDevice) -> None:
        device.data = []
        ref, port = await self.told(device)
        (grant,) = self.kernel.grants.map_refs(device.otherend_id, [ref])
        if grant.status != GNTST_okay:
            raise ValueError(f"the frontend's ring-ref {ref} cannot be mapped")
        device.data.append(grant)
        device.data.append(self.kernel.events.bind_interdomain(device.otherend_id, port, lambda: None))

    async def told(self, device: XenbusDevice) -> tuple[int, int]:
        nodes = await device.read_otherend_many("ring-ref", "event-channel")
        return frontend_number(nodes, "ring-ref"), frontend_number(nodes, "event-channel")

    async def close(self, device: XenbusDevice) -> None:
        held, device.data = device.data or [], None
        self.let_go(held)

    def let_go(self, held: list[Any]) -> None:
        if len(held) > 1:
            self.kernel.events.unbind(held[1])
        self.kernel.grants.unmap(held[:1])
