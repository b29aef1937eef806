"""The bridge alone: who is where, and what it forgets."""

from __future__ import annotations

from backends.net.bridge import AGEING_NS, Bridge, Port
from backends.net.frame import Frame


class Wire(Port):
    def __init__(self) -> None:
        self.frames: list[object] = []

    def deliver(self, frame: Frame) -> None:
        self.frames.append(frame)


class Sketch:
    """A frame as the bridge looks at it."""

    def __init__(self, destination: int, source: int) -> None:
        self.destination = destination
        self.source = source
        self.cutting = None


class Net:
    def __init__(self, ports: int = 3) -> None:
        self.now = 0
        self.bridge = Bridge("test", lambda: self.now)
        self.ports = [Wire() for _ in range(ports)]
        for port in self.ports:
            self.bridge.add(port)

    def send(self, port: int, destination: int, source: int) -> list[int]:
        """Send a frame from a port; returns the ports that got it."""
        frame = Sketch(destination, source)
        self.bridge.forward(frame, self.ports[port])  # type: ignore[arg-type]
        return [n for n, other in enumerate(self.ports) if frame in other.frames]

    def check(self) -> None:
        """The count of each port is right."""
        stations = self.bridge._stations.values()
        for port in self.ports:
            assert port.stations == sum(station.port is port for station in stations)


A, B, C, GROUP, ALL = 0x020000000010, 0x020000000020, 0x020000000030, 0x010000000001, 0xFFFFFFFFFFFF


def test_unknown_is_flooded_known_is_not() -> None:
    net = Net()
    assert net.send(0, B, A) == [1, 2]
    assert net.send(1, A, B) == [0]
    assert net.send(0, B, A) == [1]
    assert net.send(0, ALL, A) == [1, 2]
    assert net.send(0, GROUP, A) == [1, 2]
    assert (net.bridge.counters.forwarded, net.bridge.counters.flooded) == (2, 3)
    net.check()


def test_own_segment_is_not_left() -> None:
    net = Net()
    net.send(0, B, A)
    net.send(0, A, B)
    assert net.send(0, B, A) == []
    assert net.bridge.counters.dropped == 2


def test_groups_are_not_learned() -> None:
    net = Net()
    net.send(0, A, GROUP)
    net.send(0, A, ALL)
    assert not net.bridge._stations
    assert net.send(1, GROUP, B) == [0, 2]


def test_a_station_that_moves() -> None:
    net = Net()
    net.send(0, B, A)
    changes = net.bridge.changes
    net.send(2, B, A)
    assert net.bridge.changes > changes
    assert net.send(1, A, B) == [2]
    net.check()


def test_stations_age() -> None:
    net = Net()
    net.send(0, B, A)
    net.now = AGEING_NS - 1
    assert net.send(1, A, B) == [0]
    net.now = AGEING_NS
    assert net.send(1, A, B) == [0, 2]
    net.send(0, B, A)
    assert net.send(1, A, B) == [0]


def test_a_port_that_makes_addresses_up_harms_itself() -> None:
    net = Net()
    net.send(1, A, B)
    for number in range(10_000):
        net.send(0, B, 0x020000100000 + 2 * number)
    assert net.ports[0].stations == Port.station_limit
    assert len(net.bridge._stations) == Port.station_limit + 1
    assert net.send(2, B, C) == [1]
    assert net.send(1, C, B) == [2]
    net.check()
    # What was made up ages away, at a bounded price.
    net.now = 2 * AGEING_NS
    net.send(0, B, A)
    assert net.ports[0].stations == 1
    assert len(net.bridge._stations) == 1
    net.check()


def test_a_full_port_is_not_searched_for_each_frame() -> None:
    net = Net()
    sweeps = []
    real = net.bridge._stations
    for number in range(Port.station_limit):
        net.send(0, B, 0x020000100000 + 2 * number)

    class Counting(dict):  # type: ignore[type-arg]
        def items(self):  # type: ignore[no-untyped-def]
            sweeps.append(1)
            return super().items()

    net.bridge._stations = Counting(real)
    for number in range(1000):
        net.send(0, B, 0x020000200000 + 2 * number)
    assert len(sweeps) <= 1


def test_a_port_that_goes() -> None:
    net = Net()
    net.send(0, B, A)
    net.send(1, A, B)
    net.bridge.remove(net.ports[0])
    net.bridge.remove(net.ports[0])
    assert net.ports[0].bridge is None
    assert net.send(1, A, B) == [2]
    assert set(net.bridge._stations) == {B}
    net.bridge.add(net.ports[0])
    assert net.send(1, A, B) == [0, 2]
    net.check()
