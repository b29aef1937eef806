"""An Ethernet bridge: learns who is where, floods what it does not know (IEEE 802.1D, without spanning tree; 802.1Q).

Where no port says which VLANs it belongs to, and none is a mirror, addresses alone decide, and tags are bytes like any
others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import attrs

from backends.net.frame import Frame, FramePool
from backends.net.vlan import ALL, UNTAGGED, Membership
from guest_kernel.errors import OutOfMemory

if TYPE_CHECKING:
    from backends.net.lane import Lanes
    from guest_kernel.hw import PhysicalNic

AGEING_NS = 300_000_000_000
"""After this time without a frame from it, a station's place is forgotten (the standard's default)."""
SWEEP_NS = 1_000_000_000
"""A full table is searched for stations to forget at most this often: the search must not be paid for each frame."""
VLAN_SHIFT = 48
"""The table's keys have the VLAN above the address."""
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

    membership: Membership = ALL
    """VLANs that it belongs to; to be set before it is plugged in."""
    is_mirror: bool = False
    """It gets a copy of every frame that comes into the bridge, and sends none. To be set before it is plugged in."""

    @abstractmethod
    def deliver(self, frame: Frame) -> None:
        """Take a frame from the bridge; take a reference to keep it beyond the call."""

    def takes_whole(self, frame: Frame) -> bool:
        """Whether a frame that is to be cut into segments may be delivered as it is."""
        return False

    def refused(self) -> None:  # noqa: B027 - not every port keeps such books
        """A frame that came from here was thrown away by the bridge."""

    def open_lanes(self) -> Lanes | None:
        """Return lanes if frames can be put straight into this port's buffers; None otherwise."""
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
        """Told of every frame at every port, as a wire would have it."""
        self.broken: Callable[[Port, Port], bool] | None = None
        """Asked for each frame whether it is lost on the way from one port to another: a bridge with a fault."""
        self._has_vlans = False
        self._mirrors: list[Port] = []
        self._stations: dict[int, Station] = {}
        self._next_sweep = 0

    def add(self, port: Port) -> None:
        """Plug a port in."""
        self.ports.append(port)
        port.bridge = self
        port.stations = 0
        self._note_kinds()

    def remove(self, port: Port) -> None:
        """Unplug a port and forget who was behind it."""
        if port not in self.ports:
            return
        self.ports.remove(port)
        port.bridge = None
        self.changes += 1
        self._stations = {mac: station for mac, station in self._stations.items() if station.port is not port}
        self._note_kinds()

    def _note_kinds(self) -> None:
        """Note what the ports ask for beyond addresses. Without VLANs, tags are bytes like any others."""
        self._mirrors = [port for port in self.ports if port.is_mirror]
        self._has_vlans = any(not port.membership.is_all for port in self.ports)

    def route(self, destination: int, source: int, port: Port, now: int, vlan: int = 0) -> Port | None:
        """Learn that `source` is behind `port`; return the port that `destination` is behind, None if unknown.

        Each VLAN has a table of its own.
        """
        if not source & MULTICAST:
            self._learn(source | vlan << VLAN_SHIFT, port, now)
        if destination & MULTICAST:
            return None
        station = self._stations.get(destination | vlan << VLAN_SHIFT)
        return station.port if station is not None and now - station.seen < AGEING_NS else None

    @property
    def is_plain(self) -> bool:
        """Whether a frame's addresses alone say what becomes of it, nobody watches, and nothing is broken."""
        return self.watch is None and self.broken is None and not self._has_vlans and not self._mirrors

    def forward(self, frame: Frame, source: Port) -> None:
        """Send a frame on its way. The caller keeps its own reference."""
        if self.watch is not None:
            self.watch(source.name, True, bytes(frame.tobytes()))
        vlan = source.membership.arriving(frame.tag) if self._has_vlans else UNTAGGED
        if vlan is None or source.is_mirror:
            self.counters.dropped += 1
            source.refused()
            return
        for port in self._mirrors:
            self._send(frame, source, port, vlan)
        target = self.route(frame.destination, frame.source, source, self.now(), vlan)
        if target is source:
            # The other end of its own segment has it already.
            self.counters.dropped += 1
        elif target is not None:
            self.counters.forwarded += 1
            self._send(frame, source, target, vlan)
        else:
            self.counters.flooded += 1
            for port in self.ports:
                if port is not source and not port.is_mirror:
                    self._send(frame, source, port, vlan)

    def _send(self, frame: Frame, source: Port, port: Port, vlan: int) -> None:
        """Give a frame of this VLAN to a port that belongs to it, with the tag that it has there."""
        if self.broken is not None and self.broken(source, port):
            self.counters.dropped += 1
            return
        if not self._has_vlans:
            self._deliver(frame, port)
            return
        number = vlan if port.is_mirror else port.membership.leaving(vlan)
        if number is None:
            return
        if number == (frame.tag or UNTAGGED):
            self._deliver(frame, port)
            return
        try:
            copy = frame.with_tag(number)
        except OutOfMemory:
            self.counters.dropped += 1
            return
        self._deliver(copy, port)
        copy.put()

    def _deliver(self, frame: Frame, port: Port) -> None:
        """Give a port a frame, in segments if it is larger than the port takes."""
        if frame.cutting is not None and not port.takes_whole(frame):
            try:
                pieces = frame.cut()
            except OutOfMemory:
                self.counters.dropped += 1
                return
            for piece in pieces:
                self._deliver(piece, port)
            return
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
            self.refused()
            return
        self.bridge.forward(frame, self)
        frame.put()

    def refused(self) -> None:
        """Count a frame from the wire that was thrown away."""
        self.dropped += 1
