"""The other end of the device, by hand: its nodes, its pages and ports, its states when the check says so."""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from conformance.kit.bus_end import LOOK_NS, BusEnd
from conformance.kit.check import Failure
from conformance.xenbus.classes import PORT, RING, DeviceClass, Refusal
from guest_kernel.grants import MappedGrant
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from guest_kernel.xenbus import wire
from guest_kernel.xenbus.client import XenstoreError
from hypervisor.abi.io import xs_wire as xs
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, RSP_EVENT, BackRing
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitWait,
)

PATIENCE_NS: Final = 1_500_000_000
"""Virtual time after which something counts as not happening."""
SOON_NS: Final = 50_000_000
"""Virtual time after which something is not looked for so often any more, as it hardly comes."""
SELDOM_NS: Final = 5_000_000
SETTLE_NS: Final = 30_000_000
"""Virtual time after which something that is not to happen counts as not happening."""
CALM_NS: Final = 100_000_000
"""Virtual time without a request after which a guest wants nothing of its new device any more."""
GONE: Final = -1
"""The state of a directory that is not there."""


class End(BusEnd):
    """One end of a device, in the domain of the check."""

    def __init__(self, kernel: Kernel, kind: DeviceClass, own: str, other: str, other_domid: int) -> None:
        """`own` and `other` are the absolute paths of the directories of both ends."""
        super().__init__(kernel, own)
        self.patience_ns = PATIENCE_NS
        self.far, self.domid = other, other_domid
        self.kind = kind

    async def say(self, state: object = None, **nodes: object) -> None:
        """Write nodes of this end, and then its state; `_` stands for `-`."""
        await super().say(**nodes)
        if state is not None:
            await self.write_nodes({"state": state})

    async def say_all(self, *states: int) -> None:
        """Say several states in one turn of the store's: nobody sees any but the last."""
        path = f"{self.home}/state"
        store = self.kernel.xenbus
        replies = [store.submit(xs.XS_WRITE, wire.join(path) + b"%d" % state, path) for state in states]
        for reply in replies:
            await reply

    async def keys(self) -> list[str]:
        """Return the names of the judged end's nodes; none if it has no directory."""
        try:
            return sorted(await self.kernel.xenbus.directory(self.far))
        except XenstoreError:
            return []

    async def state(self) -> int:
        """Return the judged end's state. Raises Failure if it is no state."""
        text = await self.told("state")
        if text is None:
            return GONE
        if not (text.isascii() and text.isdigit() and len(text) == 1):
            raise Failure(f"The state of the {self.judged} is {text!r}.")
        return int(text)

    async def wait_for(self, *states: int) -> int:
        """Wait until the judged end is in one of these states. Raises Failure."""
        state, waited = GONE, 0
        while waited < self.patience_ns:
            state = await self.state()
            if state in states:
                return state
            pause = LOOK_NS if waited < SOON_NS else SELDOM_NS
            await self.kernel.sleep(pause)
            waited += pause
        raise Failure(f"The {self.judged} stays in state {state}; it should come to {' or '.join(map(str, states))}.")

    async def settle(self) -> None:
        """Give everything that would happen the time to happen."""
        await self.kernel.sleep(SETTLE_NS)

    async def stays(self, *states: int) -> None:
        """Raise Failure unless the judged end is in one of these states, and has nothing else in mind."""
        await self.settle()
        state = await self.state()
        if state not in states:
            raise Failure(
                f"The {self.judged} goes to state {state}; it should stay in {' or '.join(map(str, states))}."
            )

    @abstractmethod
    async def connect(self) -> None:
        """Go through the whole handshake, once the judged end is there."""

    @abstractmethod
    def let_go(self) -> None:
        """Hold nothing of the judged end any more."""

    def _on_event(self) -> None:
        """Take note of nothing: what goes over the ring is not looked at."""


class BackEnd(End):
    """A backend: it maps every `…ring-ref` and binds every `event-channel…` that the frontend names."""

    judged = "frontend"

    def __init__(self, kernel: Kernel, kind: DeviceClass, own: str, other: str, other_domid: int) -> None:
        super().__init__(kernel, kind, own, other, other_domid)
        self.grants: list[MappedGrant] = []
        self.ports: list[int] = []
        self.refuses = False
        """What a guest wants of the device is refused. (While Linux looks for partitions it hears of nothing else.)"""
        self._rings: list[BackRing] = []
        self._refused_at = 0
        """When there was a request last."""

    async def offer(self) -> None:
        """Say what there is, and InitWait."""
        await self.write_nodes({**self.kind.offers})
        await self.say(XenbusStateInitWait)

    async def wait_for(self, *states: int) -> int:
        """Wait until the frontend is in one of these states, and a guest that is Connected is calm. Raises Failure."""
        state = await super().wait_for(*states)
        if state == XenbusStateConnected and self._rings:
            self._refused_at = self.kernel.monotonic_ns()
            while self._rings and self.kernel.monotonic_ns() < self._refused_at + CALM_NS:
                await self.kernel.sleep(LOOK_NS)
        return state

    async def published(self) -> dict[str, str]:
        """Return the frontend's nodes once it has published."""
        await self.wait_for(XenbusStateInitialised, XenbusStateConnected)
        return {key: await self.told(key) or "" for key in await self.keys()}

    async def attach(self) -> None:
        """Map and bind what the frontend names. Raises Failure if that cannot be done."""
        nodes = await self.published()
        refs = [key for key in nodes if key.endswith("ring-ref")]
        ports = [key for key in nodes if key.startswith("event-channel")]
        if not refs or not ports:
            raise Failure(f"The frontend has published and names {len(refs)} rings and {len(ports)} event channels.")
        for key in refs:
            (grant,) = self.kernel.grants.map_refs(self.domid, [_number(key, nodes[key])])
            if grant.status:
                raise Failure(f"The frontend's {key} {nodes[key]} cannot be mapped: status {grant.status}.")
            self.grants.append(grant)
        for key in ports:
            number = _number(key, nodes[key])
            try:
                self.ports.append(self.kernel.events.bind_interdomain(self.domid, number, self._on_event))
            except Exception as error:
                raise Failure(f"The frontend's {key} {number} cannot be bound: {error}.") from None
        if self.refuses:
            for key, grant in zip(refs, self.grants, strict=True):
                if key in self.kind.refusals:
                    self.kernel.spawn(self._refuse(grant, self.kind.refusals[key], self.ports[0]), "refuses")

    async def _refuse(self, grant: MappedGrant, refusal: Refusal, port: int) -> None:
        """Answer whatever comes on a ring with an error, until that is let go of."""
        ring = BackRing(grant.view, refusal.entry)
        self._rings.append(ring)
        while ring in self._rings:
            while ring.final_check_for_requests():
                self._refused_at = self.kernel.monotonic_ns()
                response = refusal.answer(ring.copy(ring.req_cons))
                ring.req_cons = ring.req_cons + 1 & MASK32
                at = ring.offset(ring.rsp_prod_pvt)
                ring.view[at : at + len(response)] = response
                ring.rsp_prod_pvt = ring.rsp_prod_pvt + 1 & MASK32
            if ring.push_responses_and_check_notify():
                self.kernel.events.notify(port)
            await self.kernel.sleep(LOOK_NS)

    async def connect(self) -> None:
        """Offer, attach, and say Connected until the frontend does."""
        await self.offer()
        await self.attach()
        await self.answer()
        await self.wait_for(XenbusStateConnected)

    async def answer(self) -> None:
        """Say Connected, with what a frontend wants to know then."""
        await self.write_nodes({**self.kind.answers})
        await self.say(XenbusStateConnected)

    async def close(self) -> None:
        """Close from this end; returns when the frontend has followed, and this end is Closed."""
        await self.say(XenbusStateClosing)
        await self.wait_for(XenbusStateClosing, XenbusStateClosed)
        self.let_go()
        await self.say(XenbusStateClosed)

    def let_go(self) -> None:
        """Unmap and unbind everything."""
        for port in self.ports:
            self.kernel.events.unbind(port)
        for ring in self._rings:
            ring.release()
        self._rings = []
        for grant in self.grants:
            grant.view.release()
        self.kernel.grants.unmap(self.grants)
        self.ports, self.grants = [], []


class FrontEnd(End):
    """A frontend: it grants an empty ring for each that the class has, and opens a port for each event channel."""

    judged = "backend"

    def __init__(self, kernel: Kernel, kind: DeviceClass, own: str, other: str, other_domid: int) -> None:
        super().__init__(kernel, kind, own, other, other_domid)
        self.pages: dict[int, Page] = {}
        self.ports: list[int] = []

    def make(self) -> dict[str, object]:
        """Make rings and ports; return the nodes that name them."""
        nodes: dict[str, object] = {}
        for key, what in self.kind.frontend.items():
            if what is RING:
                nodes[key] = self.make_ring()
            elif what is PORT:
                nodes[key] = self.make_port()
            else:
                nodes[key] = what
        return nodes

    def make_ring(self) -> int:
        """Grant an empty ring; return its reference."""
        page = self.kernel.mm.alloc_page()
        page.view[:] = bytes(4096)
        # ring.h, SHARED_RING_INIT: both ask to be told of the first.
        page.i[REQ_EVENT] = page.i[RSP_EVENT] = 1
        ref = self.kernel.grants.grant_access(self.domid, page)
        self.pages[ref] = page
        return ref

    def make_port(self) -> int:
        """Open an event channel for the backend; return its port."""
        port = self.kernel.events.alloc_unbound(self.domid, self._on_event)
        self.ports.append(port)
        return port

    async def publish(self, state: int = XenbusStateInitialised, **nodes: object) -> None:
        """Write everything and say that it is there; `nodes` are written as well, or instead."""
        await self.write_nodes({**self.make(), **{key.replace("_", "-"): value for key, value in nodes.items()}})
        await self.say(state)

    async def connect(self) -> None:
        """Wait for the offer, publish, and be Connected when the backend is."""
        await self.wait_for(XenbusStateInitWait)
        await self.publish()
        await self.wait_for(XenbusStateConnected)
        await self.say(XenbusStateConnected)

    async def close(self) -> None:
        """Close from this end; returns when both are Closed."""
        await self.say(XenbusStateClosing)
        await self.wait_for(XenbusStateClosing, XenbusStateClosed)
        await self.say(XenbusStateClosed)
        await self.wait_for(XenbusStateClosed, XenbusStateInitWait, GONE)

    @property
    def held(self) -> int:
        """How many of the pages the backend has mapped, or is reading and writing, at this moment."""
        return sum(self.kernel.grants.is_in_use(ref) for ref in self.pages)

    async def released(self) -> None:
        """Wait until the backend has let go of all pages. Raises Failure."""
        for _ in range(self.patience_ns // LOOK_NS):
            if not self.held:
                return
            await self.kernel.sleep(LOOK_NS)
        raise Failure(f"The backend still maps {self.held} pages of the frontend.")

    def let_go(self) -> None:
        """Take pages and ports back that the backend does not hold."""
        for port in self.ports:
            self.kernel.events.unbind(port)
        self.ports = []
        for ref, page in list(self.pages.items()):
            if self.kernel.grants.end_access(ref):
                self.kernel.mm.free_page(page)
            del self.pages[ref]


def _number(key: str, text: str) -> int:
    """Return the number that the frontend has written. Raises Failure."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Failure(f"The frontend's {key} is {text!r}, which is no number.")
    return int(text)
