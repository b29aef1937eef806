"""An Ethernet bridge: learns who is where, floods what it does not know (IEEE 802.1D, without spanning tree)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs

from backends.net.frame import Frame, FramePool

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_kernel.hw import PhysicalNic

AGEING_NS = 300_000_000_000
"""After this time without a frame from it, a station's place is forgotten (the standard's default)."""
MAX_STATIONS = 4096
"""Bound of the table: a guest that makes addresses up must not grow it for ever."""


class Port(ABC):
    """Something that is plugged into a bridge."""

    bridge: Bridge | None = None

    @abstractmethod
    def deliver(self, frame: Frame) -> None:
        """Take a frame from the bridge; take a reference to keep it beyond the call."""


@attrs.define
class BridgeCounters:
    """What passed a bridge."""

    forwarded: int = 0
    flooded: int = 0
    dropped: int = 0


class Bridge:
    """`xenbr0`. `now` tells the time in ns, for ageing."""

    def __init__(self, name: str, now: Callable[[], int]) -> None:
        self.name = name
        self.ports: list[Port] = []
        self.counters = BridgeCounters()
        self._now = now
        self._stations: dict[int, tuple[Port, int]] = {}

    def add(self, port: Port) -> None:
        """Plug a port in."""
        self.ports.append(port)
        port.bridge = self

    def remove(self, port: Port) -> None:
        """Unplug a port and forget who was behind it."""
        if port in self.ports:
            self.ports.remove(port)
        port.bridge = None
        self._stations = {mac: entry for mac, entry in self._stations.items() if entry[0] is not port}

    def forward(self, frame: Frame, source: Port) -> None:
        """Send a frame on its way. The caller keeps its own reference."""
        now = self._now()
        page = frame.pages[0]
        word = page.q[0]
        mac = word >> 48 | page.i[2] << 16
        if not mac & 1:
            self._learn(mac, source, now)
        destination = word & 0xFFFF_FFFF_FFFF
        if not destination & 1:
            entry = self._stations.get(destination)
            if entry is not None and now - entry[1] < AGEING_NS:
                if entry[0] is source:
                    self.counters.dropped += 1
                    return
                self.counters.forwarded += 1
                entry[0].deliver(frame)
                return
        self.counters.flooded += 1
        for port in self.ports:
            if port is not source:
                port.deliver(frame)

    def _learn(self, mac: int, source: Port, now: int) -> None:
        stations = self._stations
        if mac not in stations and len(stations) >= MAX_STATIONS:
            self._stations = stations = {
                known: entry for known, entry in stations.items() if now - entry[1] < AGEING_NS
            }
            if len(stations) >= MAX_STATIONS:
                return
        stations[mac] = (source, now)


class NicPort(Port):
    """The physical network card of the bridge."""

    def __init__(self, nic: PhysicalNic, pool: FramePool) -> None:
        self._nic = nic
        self._pool = pool
        nic.on_receive(self._received)

    def deliver(self, frame: Frame) -> None:
        """Send a frame to the wire, checksum filled in."""
        self._nic.transmit(bytes(frame.tobytes()))

    def _received(self, data: bytes) -> None:
        if self.bridge is None or len(data) < 14:
            return
        frame = self._pool.frame(data)
        frame.references = 1
        self.bridge.forward(frame, self)
        frame.put()
