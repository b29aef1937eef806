"""Faulty backends: a toy, or the bus under it, with one fault each."""

from __future__ import annotations

import re
from typing import Any

from guest_kernel.xenbus import device as device_module
from guest_kernel.xenbus import states
from guest_kernel.xenbus.bus import Bus
from guest_kernel.xenbus.driver import XenbusDevice
from guest_kernel.xenbus.states import (
    CLOSE,
    CLOSED,
    CLOSING,
    CONNECT,
    CONNECTED,
    IGNORE,
    INITIALISING,
    INITWAIT,
    RECONFIGURED,
    RECONFIGURING,
    RECONNECT,
    UNKNOWN,
    Machine,
)
from tests.mutants.toys import ToyBack
from tests.mutants.xenbus_faults import (
    KeepsWatch,
    LastWord,
    LeaksPage,
    Patch,
    Remembers,
    attribute,
    credulous,
    distracted,
    no_fault,
    not_now,
    overwriting,
    pair,
    silent,
)


class Later(ToyBack):
    async def connect(self, device: XenbusDevice) -> None:
        self.kernel.spawn(self._later(device), "later")

    async def _later(self, device: XenbusDevice) -> None:
        await self.kernel.sleep(3_000_000)
        await super().connect(device)


class MapsTwice(ToyBack):
    async def refresh(self, device: XenbusDevice) -> None:
        first = device.data
        await self.connect(device)
        device.data = [*first, *device.data]

    def let_go(self, held: list[Any]) -> None:
        for start in range(0, len(held), 2):
            super().let_go(held[start : start + 2])


class RereadsRing(ToyBack):
    async def refresh(self, device: XenbusDevice) -> None:
        await self.close(device)
        await self.connect(device)


class Lenient(ToyBack):
    async def told(self, device: XenbusDevice) -> tuple[int, int]:
        nodes = await device.read_otherend_many("ring-ref", "event-channel")
        found = [int((re.match(r"\s*(\d*)", text or "") or [0, 0])[1] or 0) & 0xFFFF_FFFF for text in nodes.values()]
        return found[0], found[1]

    async def connect(self, device: XenbusDevice) -> None:
        try:
            await super().connect(device)
        except ValueError:
            return


class HalfWay(ToyBack):
    async def close(self, device: XenbusDevice) -> None:
        held = device.data or []
        if len(held) > 1:
            self.let_go(held)


class Careless(ToyBack):
    async def told(self, device: XenbusDevice) -> tuple[int, int]:
        nodes = await device.read_otherend_many("ring-ref", "event-channel")
        if None in nodes.values():
            self.kernel.power.panic(RuntimeError("the frontend has no ring"), "netback")
        return await super().told(device)


class Keeps(ToyBack):
    def let_go(self, held: list[Any]) -> None:
        if len(held) > 1:
            self.kernel.events.unbind(held[1])


class FirstRing(ToyBack):
    def __init__(self, kernel: Any, **options: Any) -> None:
        super().__init__(kernel, **options)
        self.seen: dict[str, int] = {}

    async def told(self, device: XenbusDevice) -> tuple[int, int]:
        ref, port = await super().told(device)
        return self.seen.setdefault(device.path, ref), port


class LeaksPageBack(LeaksPage, ToyBack):
    pass


class KeepsWatchBack(KeepsWatch, ToyBack):
    pass


class RemembersBack(Remembers, ToyBack):
    pass


class LastWordBack(LastWord, ToyBack):
    pass


def _looks_away(old: Any) -> Any:
    def done(self: Machine, step: Any) -> None:
        old(self, step)
        if "publish" in step.hooks and self.side == "backend":
            self.other = INITIALISING

    return done


def _rest(monkeypatch: Any) -> None:
    monkeypatch.setattr(Machine, "done", _looks_away(Machine.done))


def _always_online(monkeypatch: Any) -> None:
    for side, eager, reconfigures, online in list(states._TABLES):
        if side == "backend" and not online:
            table = states.table(side, reconfigures=reconfigures, online=True)
            monkeypatch.setitem(states._TABLES, (side, eager, reconfigures, online), table)


def _robs(monkeypatch: Any) -> None:
    monkeypatch.setattr(states, "BACKEND_CLOSE", {**states.BACKEND_CLOSE, CONNECTED: (CLOSE, CLOSED)})


def _remembers_device(monkeypatch: Any) -> None:
    monkeypatch.setattr(Bus, "forget", lambda self, device: None)


MUTANTS: dict[str, tuple[str, str, type[ToyBack], Patch]] = {
    "after-you": (
        "it waits for its frontend before it offers anything",
        "XENBUS-BACKEND-001",
        ToyBack,
        pair("backend", INITIALISING, (UNKNOWN, INITIALISING), (IGNORE, INITIALISING)),
    ),
    "too-early": (
        "it connects to a frontend that is Initialising",
        "XENBUS-BACKEND-002",
        ToyBack,
        pair("backend", INITWAIT, (INITIALISING,), (CONNECT, CONNECTED)),
    ),
    "connected-first": ("it is Connected and maps later", "XENBUS-BACKEND-003", Later, no_fault),
    "initialised-only": (
        "it does not connect to a frontend that is Connected",
        "XENBUS-BACKEND-004",
        ToyBack,
        pair("backend", INITWAIT, (CONNECTED,), (IGNORE, INITWAIT)),
    ),
    "looks-away": ("after InitWait it looks at nothing until an event comes", "XENBUS-BACKEND-005", ToyBack, _rest),
    "maps-twice": ("at each event it maps the ring once more", "XENBUS-BACKEND-006", MapsTwice, no_fault),
    "rereads": ("it looks at the ring's reference again", "XENBUS-BACKEND-007", RereadsRing, no_fault),
    "credulous": ("it takes any text for a state", "XENBUS-BACKEND-008", ToyBack, credulous),
    "credulous-later": ("it takes any text for a state", "XENBUS-BACKEND-009", ToyBack, credulous),
    "gives-up": (
        "it tries a transaction once",
        "XENBUS-BACKEND-010",
        ToyBack,
        attribute(device_module, "TRANSACT_ATTEMPTS", 1),
    ),
    "lenient": ("it takes any text for a number", "XENBUS-BACKEND-011", Lenient, no_fault),
    "half-way": ("a ring without a port stays mapped", "XENBUS-BACKEND-012", HalfWay, no_fault),
    "careless": ("it falls over a node that is missing", "XENBUS-BACKEND-013", Careless, no_fault),
    "silent": ("it does not say why it gives a device up", "XENBUS-BACKEND-014", ToyBack, silent),
    "waits-for-the-next": (
        "it lets go when its frontend is Reconfigured, and waits for another",
        "XENBUS-BACKEND-015",
        ToyBack,
        pair("backend", CONNECTED, (RECONFIGURED,), (RECONNECT, INITWAIT)),
    ),
    "not-now": (
        "it does not follow Closing out of Reconfiguring",
        "XENBUS-BACKEND-016",
        ToyBack,
        not_now("backend", CLOSING, CLOSED),
    ),
    "connects-for-anything": (
        "it connects to a frontend that is Reconfiguring",
        "XENBUS-BACKEND-017",
        ToyBack,
        pair("backend", INITWAIT, (RECONFIGURING,), (CONNECT, CONNECTED)),
    ),
    "keeps": ("a ring stays mapped", "XENBUS-BACKEND-020", Keeps, no_fault),
    "wants-closing": (
        "it does not follow Closed without Closing",
        "XENBUS-BACKEND-021",
        ToyBack,
        pair("backend", CONNECTED, (CLOSED,), (IGNORE, CONNECTED)),
    ),
    "faithful": (
        "it does not see that its frontend is gone",
        "XENBUS-BACKEND-022",
        ToyBack,
        pair("backend", CONNECTED, (UNKNOWN,), (IGNORE, CONNECTED)),
    ),
    "keeps-the-dead": ("a dead domain's ring stays mapped", "XENBUS-BACKEND-023", Keeps, no_fault),
    "robs": ("unplugged, it does not wait for its frontend", "XENBUS-BACKEND-024", ToyBack, _robs),
    "waits-for-nobody": (
        "unplugged, it waits for a frontend that never came",
        "XENBUS-BACKEND-025",
        ToyBack,
        pair("backend", CLOSING, (UNKNOWN, INITIALISING), (IGNORE, CLOSING)),
    ),
    "overwriting": ("it writes over the toolstack's Closing", "XENBUS-BACKEND-026", ToyBack, overwriting),
    "always-online": ("unplugged, it comes back", "XENBUS-BACKEND-027", ToyBack, _always_online),
    "last-word": ("it writes its state where its directory was", "XENBUS-BACKEND-028", LastWordBack, no_fault),
    "keeps-a-watch": ("it does not take a watch back", "XENBUS-BACKEND-028", KeepsWatchBack, no_fault),
    "one-life": (
        "it serves no frontend that comes back",
        "XENBUS-BACKEND-040",
        ToyBack,
        pair("backend", CLOSED, (INITIALISING,), (IGNORE, CLOSED)),
    ),
    "wants-a-word": (
        "it does not see that its frontend has begun anew",
        "XENBUS-BACKEND-041",
        ToyBack,
        pair("backend", CONNECTED, (INITIALISING,), (IGNORE, CONNECTED)),
    ),
    "wants-three-words": (
        "it sees nothing in an Initialising that follows Closed at once",
        "XENBUS-BACKEND-042",
        ToyBack,
        pair("backend", CONNECTED, (INITIALISING,), (IGNORE, CONNECTED)),
    ),
    "first-ring": ("it maps the ring of the first life again", "XENBUS-BACKEND-043", FirstRing, no_fault),
    "remembers-the-device": (
        "a device of the same number is not looked at", "XENBUS-BACKEND-044", ToyBack, _remembers_device,
    ),
    "remembers": ("each event costs a page", "XENBUS-BACKEND-045", RemembersBack, no_fault),
    "leaks-a-page": ("each life costs a page", "XENBUS-BACKEND-046", LeaksPageBack, no_fault),
    "distracted": ("it drops events that come while it works", "XENBUS-BACKEND-050", ToyBack, distracted),
}  # fmt: skip
"""Name → the fault, the check meant for it, the driver, what is done to the bus."""
