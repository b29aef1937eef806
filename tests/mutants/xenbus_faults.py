"""What faulty drivers and buses are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guest_kernel.xenbus import bus, device, states
from guest_kernel.xenbus.device import Device

Patch = Callable[[pytest.MonkeyPatch], None]


def pair(side: str, own: int, others: tuple[int, ...], step: tuple[str, int]) -> Patch:
    """Have a bus take another step at some pairs of states."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for (of, _, _), table in states._TABLES.items():
            if of == side:
                for other in others:
                    monkeypatch.setitem(table, (own, other), step)

    return patch


def attribute(owner: Any, name: str, value: Any) -> Patch:
    """Put something in the place of something."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def no_fault(_monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the bus as it is: the driver itself is faulty."""


def credulous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what the other end's state holds for a number."""
    for module in (bus, device):
        monkeypatch.setattr(module, "parse_state", lambda text: int(text or 0))


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
