"""What faulty drivers and buses are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guest_kernel.xenbus import bus, device, states
from guest_kernel.xenbus.device import Device
from guest_kernel.xenbus.driver import XenbusDevice, XenbusDriver

Patch = Callable[[pytest.MonkeyPatch], None]


class LeaksPage(XenbusDriver):
    """Each life costs a page."""

    async def probe(self, device: XenbusDevice) -> None:
        self.kernel.mm.alloc_page()


class KeepsWatch(XenbusDriver):
    """A watch is not taken back."""

    async def probe(self, device: XenbusDevice) -> None:
        await self.kernel.xenbus.watch(f"{device.otherend}/state", lambda path, token: None)


class Remembers(XenbusDriver):
    """Each event costs a page."""

    async def probe(self, device: XenbusDevice) -> None:
        events: list[Any] = []
        await device.watch_otherend("state", lambda: events.append(self.kernel.mm.alloc_page()))


class LastWord(XenbusDriver):
    """It writes its state where its directory was."""

    async def remove(self, device: XenbusDevice) -> None:
        await self.kernel.xenbus.write(f"{device.path}/state", states.CLOSED)


def pair(side: str, own: int, others: tuple[int, ...], step: tuple[str, int]) -> Patch:
    """Have a bus take another step at some pairs of states."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for (of, *_), table in states._TABLES.items():
            if of == side:
                for other in others:
                    monkeypatch.setitem(table, (own, other), step)

    return patch


def pairs(*patches: Patch) -> Patch:
    """Do several of these."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for one in patches:
            one(monkeypatch)

    return patch


def not_now(side: str, *closing: int) -> Patch:
    """Have a bus follow to Reconfiguring, and hear nothing of closing there."""
    return pairs(
        pair(side, states.CONNECTED, (states.RECONFIGURING,), (states.IGNORE, states.RECONFIGURING)),
        pair(side, states.RECONFIGURING, closing, (states.IGNORE, states.RECONFIGURING)),
    )


def attribute(owner: Any, name: str, value: Any) -> Patch:
    """Put something in the place of something."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def no_fault(_monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the bus as it is: the driver itself is faulty."""


def credulous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what the other end's state holds for a number, and a number for a state."""

    def state(text: str | None) -> int:
        number = int(text or 0)
        if number > states.RECONFIGURED:
            raise RuntimeError(f"a table of states that ends before {number}")
        return number

    for module in (bus, device):
        monkeypatch.setattr(module, "parse_state", state)


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hear nothing any more of an other end for which a device has waited for 20 ms."""
    old = Device._otherend_event
    began: dict[Device, int] = {}

    def event(self: Device, path: str, token: str) -> None:
        now = self.kernel.monotonic_ns()
        if self.state != states.INITIALISING or now - began.setdefault(self, now) < 20_000_000:
            old(self, path, token)

    monkeypatch.setattr(Device, "_otherend_event", event)


def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell nobody why a device was given up."""

    async def error(self: Device, message: str, errno: int = 5) -> None:
        return None

    monkeypatch.setattr(Device, "error", error)


def overwriting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write nodes without looking at what stands in the own state."""

    async def commit(self: Device, values: Any, announce: Any = None) -> None:
        await self._client.write_many({f"{self.path}/{key}": value for key, value in values.items()})
        if "state" in values:
            self._node_text = values["state"].decode()

    monkeypatch.setattr(Device, "_commit", commit)


def distracted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop what the other end says while the device is being looked at: somebody is looking already."""
    old = Device._otherend_event

    def event(self: Device, path: str, token: str) -> None:
        if not self._running or self._first_event:
            old(self, path, token)

    monkeypatch.setattr(Device, "_otherend_event", event)
