"""How vifs come and go: whatever dies at whatever moment, nothing is left behind."""

from __future__ import annotations

import pytest
from net_raw import RawFront
from net_world import Host

from guest_kernel.errors import GrantError, OutOfMemory


def test_open_and_close_leave_nothing() -> None:
    host = Host().up()
    host.down()


def test_closing_is_idempotent_and_may_come_at_any_time() -> None:
    for stage in range(5):
        host = Host(guests=1)
        guest = host.guests[0]
        hooks = [(guest.back, "publish"), (guest.front, "publish"), (guest.back, "connect"), (guest.front, "connect")]
        for device, hook in hooks[:stage]:
            device.hook(hook)
        guest.front.hook("disconnect")
        guest.back.hook("disconnect")
        for _ in range(2):
            guest.back.hook("close")
            guest.front.hook("close")
        host.check_no_leaks()


def test_reconnecting_a_hundred_times() -> None:
    """XSA-350."""
    host = Host()
    a, b = host.guests
    b.connect()
    for number in range(100):
        a.connect()
        a.device.transmit_many([a.frame(b.mac, 60, fill=number)] * 100)
        if number % 3:
            host.run()
        a.front.hook("disconnect")
        a.back.hook("close")
        a.front.hook("close")
    host.run()
    assert len(b.received) >= 6600
    assert host.bridge.changes > 0
    b.close()
    host.check_no_leaks()


@pytest.mark.parametrize("steps", range(0, 60, 3))
@pytest.mark.parametrize("mapped", [False, True])
def test_a_guest_is_killed_while_frames_flow(mapped: bool, steps: int) -> None:
    host = Host().up(control=mapped)
    a, b = host.guests
    if mapped:
        a.warm_up(b)
    for _ in range(3):
        a.device.transmit_many([a.frame(b.mac, 600)] * 100)
        b.device.transmit_many([b.frame(a.mac, 6000)] * 30)
        for _ in range(steps % 7):
            host.world.step()
    for _ in range(steps):
        host.world.step()
    host.world.kill(b.kernel)
    a.device.transmit_many([a.frame(b.mac, 600)] * 100)
    host.run()
    b.back.hook("close")
    a.device.transmit_many([a.frame(b.mac, 600)] * 100)
    host.run()
    assert not a.back.fatals
    # Nothing of it is mapped any more.
    assert not [entry for entry in b.kernel.grants.entries.values() if entry.pins]
    a.close()
    host.check_no_leaks()


@pytest.mark.parametrize("steps", range(0, 30, 2))
def test_the_backend_is_killed_while_frames_flow(steps: int) -> None:
    host = Host().up()
    a, b = host.guests
    a.warm_up(b)
    a.device.transmit_many([a.frame(b.mac, 600)] * 200)
    for _ in range(steps):
        host.world.step()
    host.world.kill(host.kernel)
    for guest in (a, b):
        guest.device.transmit_many([guest.frame(b.mac, 60)] * 100)
        host.run()
        guest.front.hook("close")
        assert guest.kernel.mm.used == 0
        assert not guest.kernel.grants.entries
        assert not guest.kernel.events.ports


NODES = {
    "tx-ring-ref": ["", "x", "-1", "99999999999", "4294967296", "4294967295", " 8", "²"],
    "rx-ring-ref": ["0", "12345", None],
    "event-channel": ["", "0", "77777", "4294967295", None],
    "event-channel-tx": ["", "0", "77777", "4294967295", None],
    "event-channel-rx": ["", "0", "77777", "4294967295", None],
    "request-rx-copy": ["0", None, "yes"],
    "ctrl-ring-ref": ["x", "31337"],
    "event-channel-ctrl": ["x", "0", None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NODES.items() for value in values])
def test_nodes_that_make_no_sense(key: str, value: str | None) -> None:
    host = Host(guests=1)
    guest = host.guests[0]
    guest.back.hook("publish")
    if key == "event-channel":
        guest.store["backend/feature-split-event-channels"] = "0"
    guest.front.hook("publish")
    right = guest.store.pop(f"frontend/{key}")
    if value is not None:
        guest.store[f"frontend/{key}"] = value
    with pytest.raises((ValueError, OSError)):
        guest.back.hook("connect")
    guest.back.hook("close")
    assert not host.kernel.grants.maps
    assert not host.kernel.events.ports
    assert not host.bridge.ports
    guest.store[f"frontend/{key}"] = right
    guest.back.hook("connect")
    guest.front.hook("connect")
    guest.close()
    host.check_no_leaks()


@pytest.mark.parametrize(
    ("text", "yes"), [("1", True), ("2", True), ("01", True), ("0", False), ("00", False), ("", False), ("yes", False)]
)
def test_any_number_but_0_is_a_yes(text: str, yes: bool) -> None:
    """As in Linux's drivers, on both sides."""
    host = Host()
    one, two = host.guests
    for key in ("feature-sg", "feature-no-csum-offload", "feature-gso-tcpv4", "request-multicast-control"):
        one.store[f"frontend/{key}"] = text
    front = RawFront(one)
    assert one.vif.takes_blank is not yes
    assert bool(one.vif.gso_types) is one.vif.multicast.active is yes
    two.back.hook("publish")
    for key in ("feature-sg", "feature-gso-tcpv6", "feature-ctrl-ring"):
        two.store[f"backend/{key}"] = text
    two.front.hook("publish")
    assert two.device.scatter is (two.device.control is not None) is yes
    assert len(two.device.gso_types) == 1 + yes
    front.down()
    two.front.hook("close")
    host.check_no_leaks()


@pytest.mark.parametrize("half", ["event-channel-tx", "event-channel-rx"])
def test_one_half_of_a_pair_of_event_channels_does_not_count_beside_one_for_both(half: str) -> None:
    host = Host()
    one, two = host.guests
    two.connect()
    one.store[f"frontend/{half}"] = "77777"
    front = RawFront(one)
    two.device.transmit(two.frame(one.mac))
    host.run()
    assert len(front.received()) == 1
    assert front.events
    front.down()
    two.close()
    host.check_no_leaks()


@pytest.mark.parametrize("split", [True, False])
def test_event_channels(split: bool) -> None:
    """With an event channel for each ring, each end tells of a ring on that ring's own."""
    host = Host()
    one, two = host.guests
    one.back.hook("publish")
    assert one.store["backend/feature-split-event-channels"] == "1"
    one.store["backend/feature-split-event-channels"] = str(int(split))
    one.front.hook("publish")
    keys = {key for key in one.store if key.startswith("frontend/event-channel")} - {"frontend/event-channel-ctrl"}
    assert keys == ({"frontend/event-channel-tx", "frontend/event-channel-rx"} if split else {"frontend/event-channel"})
    one.back.hook("connect")
    one.front.hook("connect")
    one.device.received_raw = one.record
    two.connect()
    host.run()
    assert (
        (one.device.queues[0].tx.port != one.device.queues[0].rx.port)
        == (one.vif.queues[0].port != one.vif.queues[0].rx_port)
        == split
    )
    told: list[int] = []
    notify = host.kernel.events.notify
    host.kernel.events.notify = lambda port: (told.append(port), notify(port))[1]  # type: ignore[method-assign,func-returns-value]
    one.device.transmit(one.frame(b"\xff" * 6))
    host.run()
    assert told == [one.vif.queues[0].port, two.vif.queues[0].rx_port]
    told.clear()
    two.device.transmit(two.frame(one.mac))
    host.run()
    assert set(told) == {two.vif.queues[0].port, one.vif.queues[0].rx_port}
    assert one.received == [two.frame(one.mac)]
    host.down()


def test_one_event_channel_for_both_rings_under_two_names() -> None:
    host = Host(guests=1)
    guest = host.guests[0]
    guest.back.hook("publish")
    guest.front.hook("publish")
    guest.store["frontend/event-channel-rx"] = guest.store["frontend/event-channel-tx"]
    with pytest.raises((ValueError, OSError)):
        guest.back.hook("connect")
    guest.close()
    host.check_no_leaks()


def test_nobody_sends_to_a_vif_without_an_event_channel() -> None:
    """Its rings are right and its channel is not: until the bus has closed it, frames may come."""
    host = Host()
    one, two = host.guests
    two.connect()
    one.back.hook("publish")
    one.front.hook("publish")
    one.store["frontend/event-channel-rx"] = "77777"
    with pytest.raises((ValueError, OSError)):
        one.back.hook("connect")
    two.device.transmit(two.frame(b"\xff" * 6))
    host.run()
    assert not host.world.failures
    host.down()


def test_an_unknown_bridge() -> None:
    host = Host(guests=1, bridge="nowhere")
    guest = host.guests[0]
    guest.back.hook("publish")
    guest.front.hook("publish")
    with pytest.raises(ValueError, match="there is no bridge 'nowhere'"):
        guest.back.hook("connect")
    guest.close()
    host.check_no_leaks()


@pytest.mark.parametrize("copy", ["0", None])
def test_a_backend_that_cannot_copy(copy: str | None) -> None:
    host = Host(guests=1)
    guest = host.guests[0]
    guest.back.hook("publish")
    guest.store.pop("backend/feature-rx-copy")
    if copy is not None:
        guest.store["backend/feature-rx-copy"] = copy
    guest.front.hook("publish")
    guest.back.hook("connect")
    with pytest.raises(ValueError, match="feature-rx-copy"):
        guest.front.hook("connect")
    guest.close()
    host.check_no_leaks()


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 40, 67])
def test_a_guest_without_memory_cannot_publish(limit: int) -> None:
    for what in ("memory", "grants"):
        host = Host(guests=1)
        guest = host.guests[0]
        if what == "memory":
            guest.kernel.mm.limit = limit
        else:
            guest.kernel.grants.limit = limit
        guest.back.hook("publish")
        with pytest.raises((OutOfMemory, GrantError)):
            guest.front.hook("publish")
        guest.front.hook("close")
        host.check_no_leaks()


def test_a_bad_address() -> None:
    host = Host(guests=1)
    guest = host.guests[0]
    guest.store["frontend/mac"] = "00:16:3e"
    with pytest.raises(OSError, match="not an Ethernet address"):
        guest.front.hook("publish")
    guest.close()
    host.check_no_leaks()


def test_events_without_work_cost_little() -> None:
    """XSA-332: a storm of notifications is one look at the ring for each time that the worker runs."""
    host = Host()
    good = host.guests[1].connect()
    front = RawFront(host.guests[0])
    polls = []
    vif = front.guest.vif.queues[0]
    vif.poll_tx = lambda real=vif.poll_tx: (polls.append(1), real())
    for _ in range(1000):
        front.kernel.events.notify(front.port)
    good.device.transmit(good.frame(b"\xff" * 6))
    host.run()
    assert len(polls) <= 2
    assert len(front.received()) == 1
    front.down()
    good.close()
    host.check_no_leaks()


def test_counters_outlive_the_vif() -> None:
    host = Host().up()
    a, b = host.guests
    a.device.transmit_many([a.frame(b.mac, 100)] * 10)
    host.run()
    a.close()
    a.connect()
    a.device.transmit(a.frame(b.mac, 100))
    host.run()
    assert host.driver.counters[1, "0"].rx_packets == 11
    assert host.driver.counters[2, "0"].tx_bytes == 1100
    host.down()
