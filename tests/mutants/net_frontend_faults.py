"""What more faulty network frontends are made of: the table of them all is in `net_frontends`."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from guest_kernel.xenbus import bus, device, states

SHORTEST = 60
"""What a card makes of a shorter frame."""


def waits_to_be_connected(old: Any) -> Any:
    """While the backend has not been Connected, take its Closing for nothing."""

    def step(self: Any) -> Any:
        is_early = self.side == "frontend" and self.own == states.CONNECTED and not self.connected
        return None if is_early and self.other == states.CLOSING else old(self)

    return step


def looks_states_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what the backend's state holds for the number of a row."""
    for module in (bus, device):
        monkeypatch.setattr(module, "parse_state", lambda text: states.STATES[int(text or 0)])


def sends_with_leave(old: Any) -> Any:
    """Send nothing while a request on the control ring is under way."""

    def register(self: Any) -> None:
        old(self)
        control = self._device.control
        if control is not None and control._done is not None:
            self._device.set_carrier(False)
            told = control._done

            def done(status: int) -> None:
                told(status)
                self._device.set_carrier(True)

            control._done = done

    return register


def pads(self: Any, at: int) -> None:
    """Send no frame that is shorter than a wire's."""
    view = self.ring.view
    if not view[at + 6] & 12:
        size = int.from_bytes(view[at + 10 : at + 12], "little")
        view[at + 10 : at + 12] = max(size, SHORTEST).to_bytes(2, "little")


def keeps_sizes(self: Any, at: int) -> None:
    """Write a slot's size the first time that the ring comes around."""
    view = self.ring.view
    first = self.__dict__.setdefault("sizes", {}).setdefault(at, bytes(view[at + 10 : at + 12]))
    view[at + 10 : at + 12] = first


def drops_debris(slot: bytearray) -> None:
    """Take a short frame for what is left of one after a collision."""
    if not slot[4] and int.from_bytes(slot[6:8], "little") < SHORTEST:
        slot[6:8] = b"\xff\xff"


def mixes_up(old: Any) -> Any:
    """Post buffers again with each other's ids."""

    def post(self: Any, idents: list[int], posts: Any = None) -> None:
        if self.ring.req_prod_pvt:
            refs = [self.posts[ident] >> 32 for ident in reversed(idents)]
            posts = memoryview(array("Q", [ident | ref << 32 for ident, ref in zip(idents, refs, strict=True)]))
        old(self, idents, posts)

    return post


def takes_cover(old: Any) -> Any:
    """After an event without work listen to no other one."""

    def interrupt(self: Any) -> None:
        is_idle = not any(end.ring.unconsumed_responses() for end in (self.tx, self.rx))
        self.covered = getattr(self, "covered", False) or is_idle
        if not self.covered:
            old(self)

    return interrupt
