"""A network frontend by hand: what it says on the bus, its queues, its control ring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

from conformance.kit.bus_end import FrontEnd
from conformance.net.control import Control
from conformance.net.rings import Queue
from guest_kernel.kernel import Kernel
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialising,
    XenbusStateInitWait,
)

BUFFERS: Final = 32
"""Empty pages that are posted at first."""


@final
class Front(FrontEnd):
    """One frontend device."""

    def __init__(self, kernel: Kernel, number: int) -> None:
        super().__init__(kernel, f"device/vif/{number}")
        self.queues: list[Queue] = []
        self.control: Control | None = None

    @property
    def queue(self) -> Queue:
        """The first queue, or the only one."""
        return self.queues[0]

    # -- the bus ------------------------------------------------------------------------------------------------------

    def make(
        self, *, queues: int = 1, split: bool = False, control: bool = False, buffers: int = BUFFERS
    ) -> dict[str, object]:
        """Make rings, event channels and buffers; return the nodes that say so."""
        nodes: dict[str, object] = {"request-rx-copy": 1, "feature-rx-notify": 1}
        if queues > 1:
            nodes["multi-queue-num-queues"] = queues
        for number in range(queues):
            queue = Queue(self.kernel, self.domid, self.grant, self.pages, split=split)
            self.queues.append(queue)
            at = f"queue-{number}/" if queues > 1 else ""
            nodes |= {f"{at}tx-ring-ref": queue.tx_ref, f"{at}rx-ring-ref": queue.rx_ref}
            if split:
                nodes |= {f"{at}event-channel-tx": queue.tx_port, f"{at}event-channel-rx": queue.rx_port}
            else:
                nodes[f"{at}event-channel"] = queue.tx_port
            queue.post(buffers)
            queue.rx.push_requests()
        if control:
            self.control = Control(self.kernel, self.domid, self.grant, self.pages)
            nodes |= {"ctrl-ring-ref": self.control.ref, "event-channel-ctrl": self.control.port}
        return nodes

    async def publish(self, changes: Mapping[str, object] | None = None, **made: Any) -> None:
        """Make everything (see `make`), write its nodes and say Connected, as netfront does.

        `changes` are nodes to write as well, or instead; with None, one not to write, nor what is below it.
        """
        if not self.far:
            await self.find()
        nodes = self.make(**made)
        for key, value in (changes or {}).items():
            if value is not None:
                nodes[key] = value
            else:
                nodes = {name: told for name, told in nodes.items() if name != key and not name.startswith(f"{key}/")}
        await self.write_nodes(nodes)
        await self.say(state=XenbusStateConnected)

    async def connect(self, changes: Mapping[str, object] | None = None, **made: Any) -> None:
        """Go through the handshake. Raises Failure."""
        await self.publish(changes, **made)
        await self.wait_for(XenbusStateConnected)
        for queue in self.queues:
            self.kernel.events.notify(queue.rx_port)

    async def try_to_connect(self, changes: Mapping[str, object], **made: Any) -> int:
        """As `connect`, with nodes that should not do; return the state that the backend ends in."""
        await self.publish(changes, **made)
        return await self.wait_for(XenbusStateClosing, XenbusStateClosed, XenbusStateConnected)

    async def take_back(self) -> None:
        """End all grants and event channels. Raises Failure if the backend still maps a page."""
        await self.released()
        for queue in self.queues:
            queue.release()
        self.queues.clear()
        if self.control is not None:
            self.control.release()
            self.control = None
        for ref in list(self.pages):
            self.ungrant(ref)

    async def begin_again(self) -> None:
        """Say that the device is to be connected anew, with no word of the last time."""
        for key in await self._said():
            await self.kernel.xenbus.rm(f"{self.home}/{key}")
        await self.say(state=XenbusStateInitialising)
        await self.wait_for(XenbusStateInitWait)

    async def _said(self) -> list[str]:
        """Return the names of the nodes that `make` and checks have written."""
        toolstacks = ("backend", "backend-id", "state", "handle", "mac", "mtu", "trusted")
        return [key for key in await self.kernel.xenbus.directory(self.home) if key not in toolstacks]
