"""An Ethernet bridge: learns who is where, floods what it does not know (IEEE 802.1D, without spanning tree)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import attrs

from backends.net.frame import Frame, FramePool
from guest_kernel.errors import OutOfMemory

if TYPE_CHECKING:
    from backends.net.lane import Lane
    from guest_kernel.hw import PhysicalNic

AGEING_NS = 300_000_000_000
"""After this time without a frame from it, a station's place is forgotten (the standard's default)."""
SWEEP_NS = 1_000_000_000
"""A full table is searched for stations to forget at most this often: the search must not be paid for each frame."""
MULTICAST = 1
"""This bit of an address (as a number, first byte lowest) says that it is a group's, or everybody's."""


Watch = Callable[[str, bool, bytes], None]
"""`watch(port, inbound, frame)`: a frame came into the bridge from a port, or goes out of the bridge to it."""


class Port(ABC):
    """Something that is plugged into a bridge."""

    name: str = ""
    station_limit: ClassVar[int] = 256
    """Addresses that may be behind it: a guest that makes addresses up gains nothing, and takes nobody's place."""
    bridge: Bridge | None = None
    stations: int = 0
    """Addresses that the bridge knows behind this port."""

    @abstractmethod
    def deliver(self, frame: Frame) -> None:
        """Take a frame from the bridge; take a reference to keep it beyond the call."""

    def open_lane(self) -> Lane | None:
        """Return a lane if frames can be put straight into this port's buffers at the moment; else None."""
        return None


@attrs.define
class BridgeCounters:
    """What passed a bridge."""

    forwarded: int = 0
    flooded: int = 0
    dropped: int = 0


@attrs.define
class Station:
    """Where an address is, and when it was last heard."""

    port: Port
    seen: int


class Bridge:
    """`xenbr0`. `now` tells the time in ns, for ageing."""

    def __init__(self, name: str, now: Callable[[], int]) -> None:
        self.name = name
        self.ports: list[Port] = []
        self.counters = BridgeCounters()
        self.changes = 0
        """Counts changes of the table: what was looked up stays right while it does not move."""
        self.now = now
        self.watch: Watch | None = None
        """Told of every frame at every port, as a wire would have it. Frames that nobody looks at go faster."""
        self._stations: dict[int, Station] = {}
        self._next_sweep = 0

    def add(self, port: Port) -> None:
        """Plug a port in."""
        self.ports.append(port)
        port.bridge = self
        port.stations = 0

    def remove(self, port: Port) -> None:
        """Unplug a port and forget who was behind it."""
        if port not in self.ports:
            return
        self.ports.remove(port)
        port.bridge = None
        self.changes += 1
        self._stations = {mac: station for mac, station in self._stations.items() if station.port is not port}

    def route(self, destination: int, source: int, port: Port, now: int) -> Port | None:
        """Learn that `source` is behind `port`; return the port that `destination` is behind, None if unknown."""
        if not source & MULTICAST:
            self._learn(source, port, now)
        if destination & MULTICAST:
            return None
        station = self._stations.get(destination)
        return station.port if station is not None and now - station.seen < AGEING_NS else None

    @property
    def is_plain(self) -> bool:
        """Whether a frame's addresses alone say what becomes of it, and nobody watches."""
        return self.watch is None

    def forward(self, frame: Frame, source: Port) -> None:
        """Send a frame on its way. The caller keeps its own reference."""
        if self.watch is not None:
            self.watch(source.name, True, bytes(frame.tobytes()))
        target = self.route(frame.destination, frame.source, source, self.now())
        if target is source:
            # The other end of its own segment has it already.
            self.counters.dropped += 1
        elif target is not None:
            self.counters.forwarded += 1
            self._send(frame, target)
        else:
            self.counters.flooded += 1
            for port in self.ports:
                if port is not source:
                    self._send(frame, port)

    def _send(self, frame: Frame, port: Port) -> None:
        if self.watch is not None:
            self.watch(port.name, False, bytes(frame.tobytes()))
        port.deliver(frame)

    def _learn(self, mac: int, port: Port, now: int) -> None:
        station = self._stations.get(mac)
        if station is not None and station.port is port:
            station.seen = now
            return
        if port.stations >= port.station_limit and not self._sweep(port, now):
            return
        if station is not None:
            station.port.stations -= 1
        port.stations += 1
        self.changes += 1
        self._stations[mac] = Station(port, now)

    def _sweep(self, port: Port, now: int) -> bool:
        """Forget stations that have been silent for too long; whether this port may have another one."""
        if now < self._next_sweep:
            return False
        self._next_sweep = now + SWEEP_NS
        for mac, station in list(self._stations.items()):
            if now - station.seen >= AGEING_NS:
                station.port.stations -= 1
                self.changes += 1
                del self._stations[mac]
        return port.stations < port.station_limit


class NicPort(Port):
    """The physical network card of the bridge."""

    station_limit: ClassVar[int] = 4096

    def __init__(self, nic: PhysicalNic, pool: FramePool) -> None:
        self._nic = nic
        self.name = f"eth{nic.unit}"
        self._pool = pool
        self.dropped = 0
        nic.on_receive(self._received)

    def deliver(self, frame: Frame) -> None:
        """Send a frame to the wire, checksum filled in."""
        self._nic.transmit(bytes(frame.tobytes()))

    def _received(self, data: bytes) -> None:
        if self.bridge is None or len(data) < 14:
            return
        try:
            frame = self._pool.frame(data)
        except OutOfMemory:
            self.dropped += 1
            return
        self.bridge.forward(frame, self)
        frame.put()
