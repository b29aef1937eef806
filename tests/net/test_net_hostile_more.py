"""Hostile peers of the network drivers, at the places that the two larger files do not reach."""

from __future__ import annotations

import pytest
from net_raw import RawBack, RawFront
from net_world import Host

BROADCAST = b"\xff" * 6


def test_a_storm_of_events_from_the_backend() -> None:
    """XSA-391: a thousand events without a response; the guest sends none back, and the next frame arrives."""
    host = Host(guests=1)
    guest = host.guests[0]
    back = RawBack(guest)
    buffers = back.rx_requests()
    sent = host.world.notifications
    for _ in range(1000):
        back.kernel.events.notify(back.port)
        host.run()
    assert host.world.notifications == sent + 1000
    back.page(buffers[0][2])[:60] = b"y" * 60
    back.answer_rx(buffers[0][0], 0, 0, 60)
    back.push()
    assert guest.received == [b"y" * 60]
    back.down()


def full_queue(host: Host, front: RawFront) -> None:
    """More frames than are kept for a guest that posts no buffers."""
    good = host.guests[1]
    for _ in range(10):
        good.device.transmit_many([good.frame(BROADCAST, 9000)] * 40)
        host.run()
    assert front.guest.vif.counters.tx_dropped


def death_with_a_queue(host: Host, front: RawFront) -> None:
    """Frames wait for a guest that is closed then."""
    good = host.guests[1]
    good.device.transmit_many([good.frame(BROADCAST, 9000)] * 10)
    host.run()


def bad_frames(host: Host, front: RawFront) -> None:
    """Frames that are dropped on their way in: too short, too long a slot, a bogus reference."""
    for offset, size, ref in [(0, 3, None), (4000, 500, None), (0, 60, 424242)]:
        front.put(front.grant() if ref is None else ref, offset, 0, 1, size)
    assert front.push() == [(1, -1)] * 3


def broken_ring(host: Host, front: RawFront) -> None:
    """The ring is broken while frames wait."""
    death_with_a_queue(host, front)
    front.tx.shared[0] = 5000
    front.kernel.events.notify(front.port)
    host.run()
    assert len(front.guest.back.fatals) == 1


@pytest.mark.parametrize("drop", [full_queue, death_with_a_queue, bad_frames, broken_ring])
def test_frames_are_dropped_to_the_end(drop: object) -> None:
    """XSA-424: wherever a frame is dropped, that completes: no page of it is lost, and others go on."""
    assert callable(drop)
    host = Host(guests=3)
    evil, good, other = host.guests
    good.connect(control=False)
    other.connect(control=False)
    front = RawFront(evil, rx=0)
    drop(host, front)
    front.down()
    host.run()
    before = len(other.received)
    assert good.device.transmit(good.frame(other.mac, 60))
    host.run()
    assert len(other.received) == before + 1
    good.close()
    other.close()
    host.check_no_leaks()


def test_an_interface_that_is_removed_before_it_has_reconnected() -> None:
    """XSA-465: closed, not published again, and taken away."""
    host = Host().up()
    evil, good = host.guests
    device = evil.device
    evil.back.hook("close")
    evil.front.hook("close")
    evil.front.hook("remove")
    evil.back.hook("remove")
    assert not device.transmit(evil.frame(good.mac))
    good.device.transmit(good.frame(evil.mac))
    host.run()
    assert not evil.back.fatals
    good.close()
    host.check_no_leaks()
