"""A network frontend by hand: what it says on the bus, its queues, its control ring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

from conformance.kit.check import Failure
from conformance.net.control import Control
from conformance.net.rings import LOOK_NS, PATIENCE_NS, Queue
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from guest_kernel.xenbus.client import XenstoreError
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
class Front:
    """One frontend device."""

    def __init__(self, kernel: Kernel, number: int) -> None:
        self.kernel = kernel
        self.home = f"device/vif/{number}"
        self.backend = ""
        self.domid = 0
        self.pages: dict[int, Page] = {}
        """By grant reference."""
        self.queues: list[Queue] = []
        self.control: Control | None = None

    @property
    def queue(self) -> Queue:
        """The first queue, or the only one."""
        return self.queues[0]

    # -- the bus ------------------------------------------------------------------------------------------------------

    async def find(self) -> None:
        """Find the backend, and wait until it has said what it offers."""
        await self.kernel.xenbus.connected()
        self.backend = await self.kernel.xenbus.read(f"{self.home}/backend")
        self.domid = int(await self.kernel.xenbus.read(f"{self.home}/backend-id"))
        await self.wait_for(XenbusStateInitWait)

    async def state(self) -> int:
        """Return the backend's state; Closed once its directory is gone."""
        try:
            return int(await self.kernel.xenbus.read(f"{self.backend}/state"))
        except XenstoreError:
            return XenbusStateClosed

    async def wait_for(self, *states: int) -> int:
        """Wait until the backend is in one of these states. Raises Failure."""
        for _ in range(PATIENCE_NS // LOOK_NS):
            state = await self.state()
            if state in states:
                return state
            await self.kernel.sleep(LOOK_NS)
        raise Failure(f"The backend stays in state {state}; it should come to {' or '.join(map(str, states))}.")

    async def offers(self, key: str) -> str | None:
        """Return what the backend has written."""
        return await self.kernel.xenbus.read_or_none(f"{self.backend}/{key}")

    async def say(self, values: Mapping[str, object]) -> None:
        """Write nodes of the frontend."""
        await self.kernel.xenbus.write_many({f"{self.home}/{key}": value for key, value in values.items()})

    async def say_state(self, state: int) -> None:
        """Write the frontend's state."""
        await self.say({"state": state})

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
        if not self.backend:
            await self.find()
        nodes = self.make(**made)
        for key, value in (changes or {}).items():
            if value is not None:
                nodes[key] = value
            else:
                nodes = {name: told for name, told in nodes.items() if name != key and not name.startswith(f"{key}/")}
        await self.say(nodes)
        await self.say_state(XenbusStateConnected)

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

    async def close(self) -> None:
        """Close the device from this end, and take everything back. Raises Failure if the backend holds on to it."""
        await self.say_state(XenbusStateClosing)
        await self.wait_for(XenbusStateClosing, XenbusStateClosed)
        await self.say_state(XenbusStateClosed)
        await self.wait_for(XenbusStateClosed, XenbusStateInitWait)
        await self.take_back()

    async def take_back(self) -> None:
        """End all grants and event channels. Raises Failure if the backend still maps a page."""
        for _ in range(100):
            held = [ref for ref in self.pages if self.kernel.grants.is_in_use(ref)]
            if not held:
                break
            await self.kernel.sleep(LOOK_NS)
        else:
            raise Failure(f"The backend has closed and still maps {len(held)} pages of the frontend.")
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
        await self.say_state(XenbusStateInitialising)
        await self.wait_for(XenbusStateInitWait)

    async def _said(self) -> list[str]:
        """Return the names of the nodes that `make` and checks have written."""
        toolstacks = ("backend", "backend-id", "state", "handle", "mac", "mtu", "trusted")
        return [key for key in await self.kernel.xenbus.directory(self.home) if key not in toolstacks]

    # -- pages --------------------------------------------------------------------------------------------------------

    def grant(self, fill: bytes = b"", *, readonly: bool = False) -> int:
        """Grant a fresh page to the backend; return its reference."""
        page = self.kernel.mm.alloc_page()
        page.view[:] = bytes(4096)
        page.view[: len(fill)] = fill
        ref = self.kernel.grants.grant_access(self.domid, page, readonly)
        self.pages[ref] = page
        return ref

    def ungrant(self, ref: int) -> None:
        """Take a page back."""
        self.kernel.grants.end_access(ref)
        self.kernel.mm.free_page(self.pages.pop(ref))

    def data(self, ref: int) -> bytes:
        """Return what is in a granted page."""
        return bytes(self.pages[ref].view)
