"""VLANs, the mirror port, and what is counted as dropped: through real rings."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from net_world import Host, Station

from backends.net.vlan import ALL, LAST, TPID, Membership, parse_bridge
from guest_kernel.net import checksum
from guest_kernel.net.offload import BLANK

EVERYBODY = b"\xff" * 6
KIND = b"\x88\xb5"


def tagged(frame: bytes, number: int, priority: int = 0) -> bytes:
    return frame[:12] + struct.pack(">HH", TPID, priority << 13 | number) + frame[12:]


def net(*bridges: str, mirror: int | None = None) -> Host:
    """A card, and guests whose `bridge` nodes are these."""
    host = Host(nics={"xenbr0": 0}, guests=len(bridges))
    for number, (guest, bridge) in enumerate(zip(host.guests, bridges, strict=True)):
        guest.store["backend/bridge"] = bridge
        if number == mirror:
            guest.store["backend/mirror"] = "1"
    return host.up()


def frame(source: Station, to: bytes = EVERYBODY) -> bytes:
    return (to + source.mac + KIND + b"payload").ljust(60, b".")


def heard(host: Host) -> list[list[bytes]]:
    """Take what each guest, and then the wire, has got."""
    host.run()
    lists = [guest.received for guest in host.guests] + [host.kernel.nics[0].sent]
    got = [list(frames) for frames in lists]
    for frames in lists:
        frames.clear()
    return got


def test_access_ports_hear_their_vlan_only() -> None:
    host = net("xenbr0.10", "xenbr0.10", "xenbr0.20")
    one, two, other = host.guests
    sent = frame(one)
    one.device.transmit(sent)
    # The card is in all VLANs: there the frame has its tag.
    assert heard(host) == [[], [sent], [], [tagged(sent, 10)]]
    answer = frame(two, one.mac)
    two.device.transmit(answer)
    assert heard(host) == [[answer], [], [], []]
    # Even one who knows the address does not get there from another VLAN.
    other.device.transmit(frame(other, one.mac))
    assert heard(host) == [[], [], [], [tagged(frame(other, one.mac), 20)]]
    host.down()


def test_an_access_port_has_no_say_in_its_vlan() -> None:
    host = net("xenbr0.10", "xenbr0.20")
    one = host.guests[0]
    for number in (10, 20, 4095):
        one.device.transmit(tagged(frame(one), number))
    assert heard(host) == [[], [], []]
    assert one.vif.counters.rx_dropped == 3
    assert host.bridge.counters.dropped == 3
    # A tag that says a priority only belongs to the port's VLAN.
    one.device.transmit(tagged(frame(one), 0, priority=5))
    assert heard(host) == [[], [], [tagged(frame(one), 10, priority=5)]]
    host.down()


def test_a_trunk_and_a_native_vlan() -> None:
    host = net("xenbr0:10:20", "xenbr0.10:20", "xenbr0.20", "xenbr0")
    trunk, both, access, plain = host.guests
    sent = frame(trunk)
    trunk.device.transmit(sent)
    assert heard(host) == [[], [], [], [], []], "a trunk has no VLAN for frames without a tag"
    trunk.device.transmit(tagged(sent, 10, 3))
    assert heard(host) == [[], [sent], [], [tagged(sent, 10, 3)], [tagged(sent, 10, 3)]]
    trunk.device.transmit(tagged(sent, 20))
    assert heard(host) == [[], [tagged(sent, 20)], [sent], [tagged(sent, 20)], [tagged(sent, 20)]]
    trunk.device.transmit(tagged(sent, 30))
    assert heard(host) == [[], [], [], [], []]
    both.device.transmit(frame(both))
    assert heard(host) == [[tagged(frame(both), 10)], [], [], [tagged(frame(both), 10)], [tagged(frame(both), 10)]]
    plain.device.transmit(frame(plain))
    assert heard(host) == [[], [], [], [], [frame(plain)]]
    host.kernel.nics[0].receive(tagged(frame(access), 20))
    assert heard(host)[:3] == [[tagged(frame(access), 20)], [tagged(frame(access), 20)], [frame(access)]]
    host.down()


def test_the_same_address_in_two_vlans() -> None:
    """Each VLAN learns for itself."""
    host = net("xenbr0.10", "xenbr0.20", "xenbr0:10:20")
    one, two, trunk = host.guests
    same = EVERYBODY + b"\x02same!" + KIND + bytes(46)
    one.device.transmit(same)
    two.device.transmit(same)
    heard(host)
    to = frame(trunk, b"\x02same!")
    for number, place in ((10, 0), (20, 1)):
        trunk.device.transmit(tagged(to, number))
        got = heard(host)
        assert got.pop(place) == [to]
        assert got == [[], [], []]
    host.down()


def test_without_vlans_tags_are_bytes_like_others() -> None:
    host = net("xenbr0", "xenbr0")
    one = host.guests[0]
    sent = tagged(frame(one), 10)
    one.device.transmit(sent)
    assert heard(host) == [[], [sent], [sent]]
    assert host.bridge.is_plain
    host.down()


@pytest.mark.parametrize("where", ["tagged", "untagged"])
def test_checksums_that_were_left_out(where: str) -> None:
    """Where a tag is put on or taken off, and towards the wire, the checksum is filled in."""
    host = net("xenbr0.10", "xenbr0:10")
    access, trunk = host.guests
    address = bytes([10, 0, 0, 1])
    udp = struct.pack(">4H", 1, 2, 8 + 5, checksum.pseudo_header(address, address, 17, 13)) + b"hello"
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, address, address)
    source = access if where == "untagged" else trunk
    blank = EVERYBODY + source.mac + b"\x08\0" + ip + udp
    assert not checksum.verify(blank)
    source.device.transmit(blank if where == "untagged" else tagged(blank, 10), BLANK)
    got = heard(host)
    for (arrived,) in [got[1] if where == "untagged" else got[0], got[2]]:
        plain = arrived[:12] + arrived[16:] if arrived[12:14] == b"\x81\0" else arrived
        assert checksum.verify(plain)
        assert plain[-5:] == b"hello"
    host.down()


def test_long_frames_change_their_tags_too() -> None:
    host = net("xenbr0.10", "xenbr0:10")
    access, trunk = host.guests
    sent = (EVERYBODY + access.mac + KIND + bytes(range(256)) * 40)[: 2 * 4096 - 2]
    access.device.transmit(sent)
    assert heard(host)[1] == [tagged(sent, 10)]
    trunk.device.transmit(tagged(sent, 10))
    assert heard(host)[0] == [sent]
    host.down()


def test_a_mirror_gets_everything_once_and_sends_nothing() -> None:
    host = net("xenbr0", "xenbr0", "xenbr0", mirror=2)
    one, two, mirror = host.guests
    question, answer = frame(one), frame(two, one.mac)
    one.device.transmit(question)
    two.device.transmit(answer)
    assert heard(host) == [[answer], [question], [question, answer], [question]]
    mirror.device.transmit(frame(mirror))
    assert heard(host) == [[], [], [], []]
    assert mirror.vif.counters.rx_dropped == 1
    # It is not where its address is: that is flooded, and the mirror gets its copy as of anything else.
    one.device.transmit(frame(one, mirror.mac))
    assert heard(host) == [[], [frame(one, mirror.mac)], [frame(one, mirror.mac)], [frame(one, mirror.mac)]]
    mirror.close()
    assert host.bridge.is_plain
    for guest in (one, two):
        guest.close()
    host.check_no_leaks()


def test_a_mirror_of_vlans_sees_tags() -> None:
    host = net("xenbr0.10", "xenbr0.20", "xenbr0", mirror=2)
    for guest in host.guests[:2]:
        guest.device.transmit(frame(guest))
    host.guests[0].device.transmit(tagged(frame(host.guests[0]), 20))
    assert heard(host)[2] == [tagged(frame(host.guests[0]), 10), tagged(frame(host.guests[1]), 20)]
    host.down()


def test_mapped_buffers_do_not_lead_past_vlans() -> None:
    """The fast way from page to page knows addresses only."""
    host = Host(guests=2).up()
    one, two = host.guests
    one.warm_up(two)
    host.bridge.remove(two.vif)
    two.vif.membership = Membership(access=10)
    host.bridge.add(two.vif)
    one.device.transmit_many([frame(one, two.mac)] * 10)
    host.run()
    assert not two.received
    host.down()


def test_memory_for_a_copy_is_missing() -> None:
    host = net("xenbr0.10", "xenbr0:10")
    access = host.guests[0]
    limit, host.kernel.mm.limit = host.kernel.mm.limit, host.kernel.mm.used + 1 - len(host.driver.pool._free)
    access.device.transmit(frame(access))
    assert heard(host) == [[], [], []]
    assert host.bridge.counters.dropped == 2
    host.kernel.mm.limit = limit
    access.device.transmit(frame(access))
    assert heard(host)[1] == [tagged(frame(access), 10)]
    host.down()


NUMBERS = st.integers(1, LAST)
MEMBERSHIPS = st.builds(Membership, st.none() | NUMBERS, st.frozensets(NUMBERS, max_size=5))


@given(MEMBERSHIPS, st.none() | st.integers(0, 4095))
def test_what_comes_in_goes_back_as_it_came(membership: Membership, tag: int | None) -> None:
    vlan = membership.arriving(tag)
    if vlan is not None and not (vlan == membership.access and vlan in membership.trunks):
        assert membership.leaving(vlan) == (tag or 0)


@given(st.none() | NUMBERS, st.lists(NUMBERS, max_size=5))
def test_bridge_nodes(access: int | None, trunks: list[int]) -> None:
    text = "xenbr0" + (f".{access}" if access else "") + "".join(f":{trunk}" for trunk in trunks)
    assert parse_bridge(text) == ("xenbr0", Membership(access, frozenset(trunks)))


@pytest.mark.parametrize(
    "text", ["", ".10", ":10", "x.", "x:", "x.0", "x.4095", "x:1:", "x.1.2", "x:1.2", "x.-1", "x.99999", "x.\u0661"]
)
def test_bridge_nodes_that_say_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"VLAN|names no bridge"):
        parse_bridge(text)


def test_a_port_without_vlans_is_in_all() -> None:
    assert ALL.is_all
    for number in itertools.chain([0, 1], range(4090, LAST + 1)):
        assert ALL.leaving(number) == number
