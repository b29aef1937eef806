"""Faulty frontends: a toy, or the bus under it, with one fault each."""

from __future__ import annotations

from typing import Any

from guest_kernel.xenbus import device as device_module
from guest_kernel.xenbus.bus import Bus
from guest_kernel.xenbus.device import Device
from guest_kernel.xenbus.driver import XenbusDevice
from guest_kernel.xenbus.states import (
    CLOSE,
    CLOSED,
    CLOSING,
    CONNECTED,
    IGNORE,
    INITIALISED,
    INITIALISING,
    INITWAIT,
    PUBLISH,
    RECONFIGURED,
    RECONFIGURING,
    UNKNOWN,
    Machine,
)
from tests.mutants.toys import ToyFront
from tests.mutants.xenbus_faults import (
    KeepsWatch,
    LastWord,
    LeaksPage,
    Patch,
    Remembers,
    attribute,
    credulous,
    distracted,
    impatient,
    no_fault,
    not_now,
    overwriting,
    pair,
    pairs,
)

IGNORES = (IGNORE, CONNECTED)


class StateFirst(ToyFront):
    async def announce(self, device: XenbusDevice, nodes: dict[str, object]) -> None:
        async def later() -> None:
            await self.kernel.sleep(200_000)
            await device.write(nodes)

        self.kernel.spawn(later(), "late")


class WrongDomain(ToyFront):
    async def announce(self, device: XenbusDevice, nodes: dict[str, object]) -> None:
        page, ref, port = device.data
        assert self.kernel.grants.end_access(ref)
        ref = self.kernel.grants.grant_access(0, page)
        device.data = page, ref, port
        await device.write({**nodes, "ring-ref": ref})


class Again(ToyFront):
    async def refresh(self, device: XenbusDevice) -> None:
        page, _, port = device.data
        ref = self.kernel.grants.grant_access(device.otherend_id, page)
        await device.write({"ring-ref": ref, "event-channel": port})


class FreesEarly(ToyFront):
    async def disconnect(self, device: XenbusDevice) -> None:
        page, ref, port = device.data
        self.kernel.mm.free_page(page)
        device.data = None, ref, port

    async def close(self, device: XenbusDevice) -> None:
        page, ref, port = device.data
        device.data = page or self.kernel.mm.alloc_page(), ref, port
        await super().close(device)


class KeepsGrant(ToyFront):
    async def close(self, device: XenbusDevice) -> None:
        self.kernel.events.unbind(device.data[2])


class KeepsPort(ToyFront):
    async def close(self, device: XenbusDevice) -> None:
        assert self.kernel.grants.end_access(device.data[1])


class KnownNumber(ToyFront):
    """What a device has shared is known by its number, beyond the end of the device."""

    def __init__(self, kernel: Any, **options: Any) -> None:
        super().__init__(kernel, **options)
        self.shared: dict[str, dict[str, object]] = {}

    async def publish(self, device: XenbusDevice) -> None:
        if device.id in self.shared:
            await device.write(self.shared[device.id])
        else:
            await super().publish(device)

    async def announce(self, device: XenbusDevice, nodes: dict[str, object]) -> None:
        self.shared[device.id] = nodes
        await device.write(nodes)

    async def close(self, device: XenbusDevice) -> None:
        if device.data is not None:
            await super().close(device)


class LeaksPageFront(LeaksPage, ToyFront):
    pass


class KeepsWatchFront(KeepsWatch, ToyFront):
    pass


class RemembersFront(Remembers, ToyFront):
    pass


class LastWordFront(LastWord, ToyFront):
    pass


def _deaf(self: Machine, state: int) -> None:
    """See what the other end says, but not what it had said when the device was found."""
    first, self._seen = not self._seen, True
    self.other = INITIALISING if first else state


async def _forgets(self: Bus) -> None:
    self._closing = True


def _no_doubt(old: Any) -> Any:
    def make(self: Bus, side: Any, node: str, link: str | None, domid: str | None) -> Device | None:
        assert link is not None
        assert link.startswith("/")
        return old(self, side, node, link, domid)  # type: ignore[no-any-return]

    return make


def _link(monkeypatch: Any) -> None:
    monkeypatch.setattr(Bus, "_make", _no_doubt(Bus._make))


def _blind(old: Any) -> Any:
    return lambda self, state: True if state == INITIALISING else old(self, state)


def _own(monkeypatch: Any) -> None:
    monkeypatch.setattr(Machine, "see_own", _blind(Machine.see_own))


MUTANTS: dict[str, tuple[str, str, type[ToyFront], Patch]] = {
    "too-early": (
        "it publishes before its backend has offered anything",
        "XENBUS-FRONTEND-001",
        ToyFront,
        pair("frontend", INITIALISING, (UNKNOWN, INITIALISING), (PUBLISH, INITIALISED)),
    ),
    "deaf-at-first": (
        "it waits for an event though its backend is in InitWait already",
        "XENBUS-FRONTEND-002",
        ToyFront,
        attribute(Machine, "see_other", _deaf),
    ),
    "impatient": (
        "it waits 20 ms for its backend, and then hears nothing of it any more",
        "XENBUS-FRONTEND-003",
        ToyFront,
        impatient,
    ),
    "state-first": ("its nodes come after its state", "XENBUS-FRONTEND-004", StateFirst, no_fault),
    "wrong-domain": ("it grants its ring to domain 0", "XENBUS-FRONTEND-005", WrongDomain, no_fault),
    "again": ("it publishes anew at each event", "XENBUS-FRONTEND-006", Again, no_fault),
    "credulous": ("it takes any text for a state", "XENBUS-FRONTEND-007", ToyFront, credulous),
    "credulous-later": ("it takes any text for a state", "XENBUS-FRONTEND-008", ToyFront, credulous),
    "one-by-one": (
        "it publishes at InitWait only",
        "XENBUS-FRONTEND-009",
        ToyFront,
        pair("frontend", INITIALISING, (INITIALISED,), (IGNORE, INITIALISING)),
    ),
    "gives-up": (
        "it tries a transaction once",
        "XENBUS-FRONTEND-010",
        ToyFront,
        attribute(device_module, "TRANSACT_ATTEMPTS", 1),
    ),
    "no-doubt": ("it falls over a backend that is no path", "XENBUS-FRONTEND-011", ToyFront, _link),
    "takes-it-for-the-end": (
        "it closes when its backend is Reconfiguring",
        "XENBUS-FRONTEND-012",
        ToyFront,
        pair("frontend", CONNECTED, (RECONFIGURING,), (CLOSE, CLOSED)),
    ),
    "reconfigured-for-good": (
        "it follows to Reconfigured, and stays there",
        "XENBUS-FRONTEND-012",
        ToyFront,
        pairs(
            pair("frontend", CONNECTED, (RECONFIGURED,), (IGNORE, RECONFIGURED)),
            pair("frontend", RECONFIGURED, (CONNECTED,), (IGNORE, RECONFIGURED)),
        ),
    ),
    "not-now": (
        "it does not follow Closing out of Reconfiguring",
        "XENBUS-FRONTEND-013",
        ToyFront,
        not_now("frontend", CLOSING),
    ),
    "publishes-for-anything": (
        "it publishes when its backend is Reconfigured",
        "XENBUS-FRONTEND-014",
        ToyFront,
        pair("frontend", INITIALISING, (RECONFIGURED,), (PUBLISH, INITIALISED)),
    ),
    "stays": (
        "it does not follow Closing",
        "XENBUS-FRONTEND-020",
        ToyFront,
        pair("frontend", CONNECTED, (CLOSING,), IGNORES),
    ),
    "keeps-its-grant": ("it takes no grant back", "XENBUS-FRONTEND-020", KeepsGrant, no_fault),
    "keeps-its-port": ("it closes no event channel", "XENBUS-FRONTEND-020", KeepsPort, no_fault),
    "frees-early": ("its page is somebody else's while it is mapped", "XENBUS-FRONTEND-021", FreesEarly, no_fault),
    "wants-closing": (
        "it does not follow Closed without Closing",
        "XENBUS-FRONTEND-022",
        ToyFront,
        pair("frontend", CONNECTED, (CLOSED,), IGNORES),
    ),
    "not-before-connected": (
        "it does not follow Closing before it is Connected",
        "XENBUS-FRONTEND-023",
        ToyFront,
        pair("frontend", INITIALISED, (CLOSING,), (IGNORE, INITIALISED)),
    ),
    "not-before-published": (
        "it does not follow Closing while it waits",
        "XENBUS-FRONTEND-024",
        ToyFront,
        pair("frontend", INITIALISING, (CLOSING,), (IGNORE, INITIALISING)),
    ),
    "faithful": (
        "it does not see that its backend is dead",
        "XENBUS-FRONTEND-025",
        ToyFront,
        pair("frontend", CONNECTED, (UNKNOWN,), IGNORES),
    ),
    "hopeful": (
        "it waits for a backend that has died",
        "XENBUS-FRONTEND-026",
        ToyFront,
        pair("frontend", INITIALISED, (UNKNOWN,), (IGNORE, INITIALISED)),
    ),
    "last-word": ("it writes its state where its directory was", "XENBUS-FRONTEND-027", LastWordFront, no_fault),
    "keeps-a-watch": ("it does not take a watch back", "XENBUS-FRONTEND-027", KeepsWatchFront, no_fault),
    "overwriting": ("it does not look whether its directory is there", "XENBUS-FRONTEND-028", ToyFront, overwriting),
    "no-goodbye": (
        "its guest ends without closing it",
        "XENBUS-FRONTEND-029",
        ToyFront,
        attribute(Bus, "shutdown", _forgets),
    ),
    "polite": (
        "it answers each Closing with another one",
        "XENBUS-FRONTEND-030",
        ToyFront,
        pair("frontend", CLOSED, (CLOSING,), (IGNORE, CLOSING)),
    ),
    "known-number": (
        "of a device whose number it has had before it publishes what it had shared then",
        "XENBUS-FRONTEND-040",
        KnownNumber,
        no_fault,
    ),
    "one-life": (
        "its directory, made anew, is not looked at",
        "XENBUS-FRONTEND-041",
        ToyFront,
        _own,
    ),
    "alone": (
        "it stays Connected to a backend that begins anew",
        "XENBUS-FRONTEND-042",
        ToyFront,
        pair("frontend", CONNECTED, (INITIALISING,), IGNORES),
    ),
    "leaks-a-page": ("each life costs a page", "XENBUS-FRONTEND-043", LeaksPageFront, no_fault),
    "remembers": ("each event costs a page", "XENBUS-FRONTEND-044", RemembersFront, no_fault),
    "new-rings": (
        "at each InitWait it makes new rings",
        "XENBUS-FRONTEND-045",
        ToyFront,
        pair("frontend", INITIALISED, (INITWAIT,), (PUBLISH, INITIALISED)),
    ),
    "distracted": ("it drops events that come while it works", "XENBUS-FRONTEND-050", ToyFront, distracted),
}
"""Name → the fault, the check meant for it, the driver, what is done to the bus."""
