"""Segmentation offload, both halves: whole to whoever takes it whole, in right segments to everybody else."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_raw import RawBack, RawFront
from net_world import Host, Station
from test_net_host import Lab

from backends.net.vlan import Membership
from guest_kernel.net import gso
from guest_kernel.net.offload import BLANK, NONE, VALIDATED, Offload
from guest_kernel.net.offload import gso as offload
from hypervisor.abi.io import netif

V4, V6 = netif.XEN_NETIF_GSO_TYPE_TCPV4, netif.XEN_NETIF_GSO_TYPE_TCPV6
OKAY, ERROR, NULL = netif.NETIF_RSP_OKAY, netif.NETIF_RSP_ERROR, netif.NETIF_RSP_NULL
MORE, EXTRA = netif.NETTXF_more_data, netif.NETTXF_extra_info
ALL = b"\xff" * 6
FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80


@attrs.frozen
class Large:
    """A large TCP packet, built by hand: what a stack gives to its driver when that cuts."""

    data: bytes
    version: int = 4
    flags: int = ACK | PSH
    sequence: int = 0xFFFF_F000
    ident: int = 0xFFF0
    options: bytes = b""
    tag: int | None = None
    extensions: bytes = b""
    """Of IPv6, with the first one's number before them."""

    def frame(self, to: bytes = ALL, source: bytes = b"\x00\x16\x3e\0\0\1") -> bytes:
        tcp_size = 20 + len(self.options) + len(self.data)
        tcp = struct.pack(
            ">HHIIBBHHH", 1000, 2000, self.sequence, 77, 5 + len(self.options) // 4 << 4, self.flags, 500, 0, 9
        )
        if self.version == 4:
            pair = bytes([10, 0, 0, 1, 10, 0, 0, 2])
            ip = struct.pack(">BBHHHBBH", 0x45, 3, 20 + tcp_size, self.ident, 0x4000, 64, 6, 0) + pair
            ip = ip[:10] + dpkt.in_cksum(ip).to_bytes(2, "big") + ip[12:]
            kind = b"\x08\x00"
        else:
            pair = bytes(range(32))
            first, extensions = (self.extensions[0], self.extensions[1:]) if self.extensions else (6, b"")
            ip = struct.pack(">IHBB", 6 << 28 | 5, len(extensions) + tcp_size, first, 64) + pair + extensions
            kind = b"\x86\xdd"
        blank = ~dpkt.in_cksum(pair + struct.pack(">HH", 6, tcp_size)) & 0xFFFF
        tcp = tcp[:16] + blank.to_bytes(2, "big") + tcp[18:]
        tag = b"" if self.tag is None else b"\x81\x00" + self.tag.to_bytes(2, "big")
        return to + source + tag + kind + ip + tcp + self.options + self.data

    @property
    def offload_type(self) -> int:
        return V4 if self.version == 4 else V6


def check(pieces: list[bytes], large: Large, size: int) -> None:
    """The segments of a packet, by dpkt's reading of them."""
    data = b""
    for number, piece in enumerate(pieces):
        if large.tag is not None:
            assert piece[12:16] == b"\x81\x00" + large.tag.to_bytes(2, "big")
            piece = piece[:12] + piece[16:]
        ethernet = dpkt.ethernet.Ethernet(piece)
        ip = ethernet.data
        tcp = dpkt.tcp.TCP(bytes(ip.data)) if isinstance(ip.data, dpkt.tcp.TCP) else ip.data
        last = number == len(pieces) - 1
        if large.version == 4:
            assert isinstance(ip, dpkt.ip.IP)
            assert dpkt.in_cksum(piece[14:34]) == 0
            assert ip.len == len(piece) - 14
            assert ip.id == (large.ident + number) & 0xFFFF
            assert (ip.df, ip.ttl, ip.tos) == (1, 64, 3)
            start = 34
        else:
            assert isinstance(ip, dpkt.ip6.IP6)
            assert ip.plen == len(piece) - 54
            start = 54 + max(0, len(large.extensions) - 1)
        pair = ip.src + ip.dst
        segment = piece[start:]
        assert dpkt.in_cksum(pair + struct.pack(">HH", 6, len(segment)) + segment) == 0
        tcp = dpkt.tcp.TCP(segment)
        assert tcp.seq == (large.sequence + number * size) & 0xFFFF_FFFF
        expected = large.flags
        if not last:
            expected &= ~(FIN | PSH)
        if number:
            expected &= ~CWR
        assert tcp.flags == expected
        assert (tcp.sport, tcp.dport, tcp.ack, tcp.win, tcp.urp) == (1000, 2000, 77, 500, 9)
        assert tcp.opts == large.options
        assert len(tcp.data) == size or last
        data += tcp.data
    assert data == large.data
    assert len(pieces) == max(1, -(-len(large.data) // size))


EXTENSIONS = [b"", b"\0" + b"\x06\0" + bytes(6), b"\0" + b"\x3c\1" + bytes(14) + b"\x06\0" + bytes(6)]
PACKETS = st.builds(
    Large,
    data=st.binary(max_size=40).flatmap(lambda seed: st.integers(0, 9000).map(lambda n: (seed * n + bytes(n))[:n])),
    version=st.sampled_from([4, 6]),
    flags=st.integers(0, 255),
    sequence=st.integers(0, 0xFFFF_FFFF),
    ident=st.integers(0, 0xFFFF),
    options=st.sampled_from([b"", b"\1" * 4, b"\1" * 12, b"\1" * 40]),
    tag=st.none() | st.integers(0, 4095),
    extensions=st.sampled_from(EXTENSIONS),
)


@given(PACKETS, st.integers(48, 9001))
@settings(deadline=None)
def test_segments_are_right(large: Large, size: int) -> None:
    pieces = gso.segments(large.frame(), offload(size, large.offload_type))
    check([bytes(piece) for piece in pieces], large, size)


@given(PACKETS, st.integers(1, 3000), st.integers(0, 5), st.data())
@settings(deadline=None)
def test_anything_at_all_is_cut_or_is_not(large: Large, size: int, kind: int, data: st.DataObject) -> None:
    """Whatever the headers say: no exception, no more segments than there may be, none without its headers."""
    frame = bytearray(large.frame())
    for _ in range(data.draw(st.integers(0, 4))):
        frame[data.draw(st.integers(0, min(len(frame) - 1, 90)))] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(0, len(frame))) :]
    pieces = gso.segments(frame, offload(size, kind))
    assert len(pieces) <= gso.MOST_SEGMENTS
    assert all(len(piece) >= 54 for piece in pieces)


WHOLE = Large(bytes(range(256)) * 255)
SIZE = 1448


def world(**options: object) -> tuple[Host, Station, Station]:
    """A host with a wire, whose guests know each other."""
    host = Host(nics={"xenbr0": 0}, **options).up()  # type: ignore[arg-type]
    one, two = host.guests[:2]
    one.device.transmit(one.frame(two.mac))
    two.device.transmit(two.frame(one.mac))
    host.run()
    for guest in host.guests:
        guest.received.clear()
        guest.offloads.clear()
    host.kernel.nics[0].sent.clear()
    return host, one, two


@contextmanager
def taker_by_hand(*keys: str, rx: int = 64) -> Iterator[tuple[Host, Station, RawFront]]:
    """Yield a host, a guest that is connected, and the other one's frontend, which says that it takes these."""
    host = Host()
    one, two = host.guests
    one.connect()
    host.run()
    for key in keys:
        two.store[f"frontend/{key}"] = "1"
    front = RawFront(two, rx=rx)
    yield host, one, front
    one.close()
    front.down()
    host.check_no_leaks()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_large_packet_stays_whole_between_two_guests(version: int, mapped: bool) -> None:
    host, one, two = world()
    if mapped:
        one.warm_up(two)
    large = attrs.evolve(WHOLE, version=version)
    how = offload(SIZE, large.offload_type)
    sent = large.frame(two.mac, one.mac)
    for number in range(12):
        assert one.device.transmit(sent, how)
        assert one.device.transmit(one.frame(two.mac, 60, number))
        host.run()
    assert two.received[0::2] == [sent] * 12
    assert two.received[1::2] == [one.frame(two.mac, 60, number) for number in range(12)]
    assert two.offloads == [how, NONE] * 12
    assert one.device.counters.tx_dropped == two.vif.counters.tx_dropped == 0
    assert one.device.tx_room() == 256
    assert one.device.queues[0].tx._extras_out == 0
    host.down()


def test_from_page_to_page() -> None:
    """Once all is mapped: no grant copies, no page of the backend's; books and order as on the long way."""
    host, one, two = world()
    one.warm_up(two)
    for _ in range(2):
        # All buffers of a ring: those are mapped that have been used.
        while one.device.transmit(WHOLE.frame(two.mac, one.mac), offload(SIZE)):
            pass
        host.run()
    one.device.counters.tx_dropped = 0
    two.received.clear()
    larges = [Large(bytes([number]) * (9000 + 2600 * number), sequence=number) for number in range(20)]
    before = host.world.copies
    books = [attrs.evolve(counters) for counters in (one.vif.counters, two.vif.counters)]
    sent = []
    for number, large in enumerate(larges):
        frame = large.frame(two.mac, one.mac)
        while not one.device.transmit(frame, offload(SIZE)):
            host.run()
        sent.append(frame)
        if number % 3 == 0:
            sent.append(one.frame(two.mac, 100, number))
            one.device.transmit(sent[-1])
    host.run()
    assert two.received == sent
    assert host.driver.pool.out == 0
    assert host.world.copies == before
    for counters, old, side in ((one.vif.counters, books[0], "rx"), (two.vif.counters, books[1], "tx")):
        assert getattr(counters, f"{side}_packets") - getattr(old, f"{side}_packets") == len(sent)
        assert getattr(counters, f"{side}_bytes") - getattr(old, f"{side}_bytes") == sum(map(len, sent))
    assert two.device.counters.rx_dropped == 0
    host.down()


def test_what_is_remembered_has_a_bound() -> None:
    """A guest whose packets are never alike costs time, and no memory."""
    host, one, two = world()
    one.warm_up(two)
    for _ in range(2):
        while one.device.transmit(WHOLE.frame(two.mac, one.mac), offload(SIZE)):
            pass
        host.run()
    two.received.clear()
    sent = [Large(bytes(9000 - number)).frame(two.mac, one.mac) + bytes(number) for number in range(40)]
    for frame in sent:
        assert one.device.transmit(frame, offload(SIZE))
        host.run()
    assert two.received == sent
    known = one.vif.queues[0]._express._large
    assert 0 < len(known) <= 1024
    assert max(len(shapes) for *_, shapes in known.values()) <= 8
    host.down()


def test_headers_that_change_after_they_were_checked() -> None:
    """From page to page, the receiver gets the headers that were checked, whatever the sender's page has by then."""
    host, one, two = world()
    one.warm_up(two)
    for _ in range(2):
        one.device.transmit(WHOLE.frame(two.mac, one.mac), offload(SIZE))
        host.run()
    two.received.clear()
    sent = WHOLE.frame(two.mac, one.mac)
    vif = one.vif.queues[0]
    find = vif._express._find_lanes
    spoilt: list[int] = []

    def spoil(*words: object) -> object:
        for view in one.device.queues[0].tx._views:
            if view[:12] == sent[:12] and view[23] == 6:
                view[12:64] = bytes(52)
                spoilt.append(1)
        return find(*words)

    vif._express._find_lanes = spoil
    one.device.transmit(sent, offload(SIZE))
    host.run()
    assert spoilt
    assert two.received == [sent]
    host.down()


def test_the_largest_there_is() -> None:
    host, one, two = world()
    for options in (b"", b"\1" * 40):
        large = Large(bytes(65535 - 54 - len(options)), options=options)
        sent = large.frame(two.mac, one.mac)
        assert len(sent) == 65535
        assert one.device.transmit(sent, offload(SIZE))
        host.run()
        assert two.received.pop() == sent
        one.device.transmit(large.frame(ALL, one.mac), offload(SIZE))
        host.run()
        check(host.kernel.nics[0].sent, large, SIZE)
        host.kernel.nics[0].sent.clear()
        two.received.clear()
    host.down()


@pytest.mark.parametrize("version", [4, 6])
def test_segments_for_the_wire_and_whoever_takes_no_large_packets(version: int) -> None:
    """One flooded packet: whole to the one, in segments to the other and to the wire; cut only once."""
    host = Host(nics={"xenbr0": 0}, guests=3)
    one, two, three = host.guests
    three.store["frontend/feature-gso-tcpv4"] = three.store["frontend/feature-gso-tcpv6"] = "0"
    one.connect()
    two.connect()
    three.back.hook("publish")
    three.front.hook("publish")
    three.store["frontend/feature-gso-tcpv4"] = three.store["frontend/feature-gso-tcpv6"] = "0"
    three.back.hook("connect")
    three.front.hook("connect")
    three.device.received_raw = three.record
    large = attrs.evolve(WHOLE, version=version, flags=ACK | PSH | FIN | CWR)
    sent = large.frame(ALL, one.mac)
    assert one.device.transmit(sent, offload(SIZE, large.offload_type))
    host.run()
    assert two.received == [sent]
    check(three.received, large, SIZE)
    assert set(three.offloads) == {VALIDATED}
    assert host.kernel.nics[0].sent == three.received
    assert max(map(len, three.received)) == len(sent) - len(large.data) + SIZE
    host.down()


@pytest.mark.parametrize(
    ("key", "value"),
    [("feature-gso-tcpv4", "0"), ("feature-sg", "0"), ("feature-no-csum-offload", "1")],
)
def test_what_a_guest_must_take_to_get_large_packets(key: str, value: str) -> None:
    host = Host()
    one, two = host.guests
    one.connect()
    two.back.hook("publish")
    two.front.hook("publish")
    two.store[f"frontend/{key}"] = value
    two.back.hook("connect")
    two.front.hook("connect")
    two.device.received_raw = two.record
    one.device.transmit(WHOLE.frame(ALL, one.mac), offload(SIZE))
    host.run()
    check(two.received, WHOLE, SIZE)
    host.down()


@pytest.mark.parametrize("gone", [["feature-gso-tcpv4"], ["feature-gso-tcpv6"], ["feature-gso-tcpv4", "feature-sg"]])
def test_a_backend_that_takes_no_large_packets(gone: list[str]) -> None:
    """The frontend cuts them."""
    host = Host()
    one, two = host.guests
    one.back.hook("publish")
    for key in gone:
        one.store[f"backend/{key}"] = "0"
    one.front.hook("publish")
    one.back.hook("connect")
    one.front.hook("connect")
    two.connect()
    large = attrs.evolve(WHOLE, version=6 if "feature-gso-tcpv6" in gone else 4)
    assert one.device.transmit(large.frame(ALL, one.mac), offload(SIZE, large.offload_type))
    host.run()
    check(two.received, large, SIZE)
    assert set(two.offloads) == {VALIDATED}
    assert one.device.counters.tx_packets == len(two.received)
    # What cannot be cut, and what has no room any more, is dropped and counted.
    assert not one.device.transmit(b"\0" * 3000, offload(SIZE, large.offload_type))
    assert one.device.counters.tx_dropped == 1
    for _ in range(8):
        one.device.transmit(large.frame(ALL, one.mac), offload(SIZE, large.offload_type))
    assert one.device.counters.tx_dropped > 1
    host.run()
    host.down()


@pytest.mark.parametrize("how", ["received", "received_many"])
def test_a_guest_that_knows_nothing_of_it(how: str) -> None:
    host, one, two = world()
    seen: list[bytes] = []
    good: list[bool] = []
    if how == "received":
        two.device.received = lambda frame, validated: (seen.append(frame), good.append(validated))  # type: ignore[func-returns-value,assignment]
    else:
        two.device.received_many = lambda frames, validated: (seen.extend(frames), good.extend(validated))  # type: ignore[func-returns-value,assignment]
    one.device.transmit(WHOLE.frame(two.mac, one.mac), offload(SIZE))
    host.run()
    check(seen, WHOLE, SIZE)
    assert all(good)
    host.down()


def test_a_guest_that_forwards() -> None:
    host, one, two = world(guests=3)
    three = host.guests[2]
    three.device.transmit(three.frame(ALL))
    host.run()
    three.received.clear()

    def forward(frame: bytes, how: Offload) -> None:
        two.device.transmit(three.mac + two.mac + frame[12:], how)

    two.device.received_raw = forward
    one.device.transmit(WHOLE.frame(two.mac, one.mac), offload(SIZE))
    host.run()
    assert three.received == [WHOLE.frame(three.mac, two.mac)]
    assert three.offloads[-1] == offload(SIZE)
    host.down()


def test_a_packet_that_fits_is_no_large_one() -> None:
    host, one, two = world()
    small = Large(bytes(1000))
    one.device.transmit(small.frame(two.mac, one.mac), offload(1000))
    host.run()
    assert two.received == [small.frame(two.mac, one.mac)]
    assert two.offloads == [BLANK]
    host.down()


def test_the_mtu_is_that_of_segments() -> None:
    host, one, two = world()
    two.vif.mtu = 1500
    one.device.transmit(WHOLE.frame(two.mac, one.mac), offload(1460))
    one.device.transmit(WHOLE.frame(two.mac, one.mac), offload(1600))
    host.run()
    assert len(two.received) == 1
    assert two.vif.counters.tx_dropped == 1
    host.down()


@pytest.mark.parametrize("version", [4, 6])
def test_vlans(version: int) -> None:
    """A tag goes on and off a large packet; with a tag it is cut, as nobody looks behind one for what is blank."""
    host = Host(nics={"xenbr0": 0})
    one, two = host.guests
    host.up()
    host.bridge.remove(one.vif)
    host.bridge.remove(two.vif)
    one.vif.membership, two.vif.membership = Membership(access=10), Membership(trunks=frozenset([10]))
    host.bridge.add(one.vif)
    host.bridge.add(two.vif)
    large = attrs.evolve(WHOLE, version=version)
    how = offload(SIZE, large.offload_type)
    one.device.transmit(large.frame(ALL, one.mac), how)
    host.run()
    check(two.received, attrs.evolve(large, tag=10), SIZE)
    assert host.kernel.nics[0].sent == two.received
    two.device.transmit(attrs.evolve(large, tag=10).frame(ALL, two.mac), how)
    host.run()
    assert one.received == [large.frame(ALL, two.mac)]
    assert one.offloads == [how]
    host.down()


def test_without_memory_for_the_segments() -> None:
    host, one, two = world()
    limit, host.kernel.mm.limit = host.kernel.mm.limit, host.kernel.mm.used + 20
    one.device.transmit(WHOLE.frame(ALL, one.mac), offload(SIZE))
    host.run()
    assert not host.kernel.nics[0].sent
    assert host.bridge.counters.dropped == 1
    assert len(two.received) == 1
    host.kernel.mm.limit = limit
    one.device.transmit(WHOLE.frame(ALL, one.mac), offload(SIZE))
    host.run()
    check(host.kernel.nics[0].sent, WHOLE, SIZE)
    host.down()


def test_a_guest_without_buffers_for_it() -> None:
    """A large packet waits until there are buffers for all of it, its extra info among them."""
    with taker_by_hand("feature-gso-tcpv4", rx=17) as (host, one, front):
        large = Large(bytes(65535 - 54))
        one.device.transmit(large.frame(ALL, one.mac), offload(SIZE))
        host.run()
        # 16 pages and one slot of extra info.
        answers = front.received()
        assert len(answers) == 17
        assert [answer[2] & netif.NETRXF_more_data for answer in answers[2:]] == [netif.NETRXF_more_data] * 14 + [0]
        one.device.transmit(large.frame(ALL, one.mac), offload(SIZE))
        for ref in front.free[:16]:
            front.post(ref & 0xFFFF, ref)
        front.show(front.rx)
        host.run()
        assert front.received() == []
        front.post(front.free[16] & 0xFFFF, front.free[16])
        front.show(front.rx)
        front.kernel.events.notify(front.port)
        host.run()
        assert len(front.received()) == 17


def test_what_is_on_the_rx_ring() -> None:
    """First slot, extra info in the second, the rest; each answer in the slot of its request, as Linux needs it."""
    with taker_by_hand("feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload") as (host, one, front):
        for version in (4, 6):
            large = Large(bytes(range(256)) * 40, version=version)
            sent = large.frame(ALL, one.mac)
            first = front.rx.rsp_cons
            one.device.transmit(sent, offload(1000, large.offload_type))
            host.run()
            head, _, *rest = front.received()
            raw = bytes(front.rx.view[front.rx.offset(first + 1) :][:8])
            assert raw == struct.pack("<BBHBBH", 1, 0, 1000, large.offload_type, 0, 0)
            csum = netif.NETRXF_csum_blank | netif.NETRXF_data_validated
            assert head[1:] == (0, csum | netif.NETRXF_more_data | netif.NETRXF_extra_info, 4096)
            assert [answer[2] for answer in rest] == [netif.NETRXF_more_data, 0]
            refs = front.free[first : front.rx.rsp_cons]
            assert [answer[0] for answer in (head, *rest)] == [ref & 0xFFFF for ref in (refs[0], *refs[2:])]
            data = b"".join(
                bytes(front.buffers[ref].view[: answer[3]])
                for ref, answer in zip((refs[0], *refs[2:]), (head, *rest), strict=True)
            )
            assert data == sent


class Scene:
    """A frontend by hand that sends to a guest which takes large packets, and to a wire."""

    def __init__(self) -> None:
        self.host = Host(nics={"xenbr0": 0})
        self.evil, self.good = self.host.guests
        self.good.connect()
        self.host.run()
        self.front = RawFront(self.evil)

    def send(self, frame: bytes, size: int, kind: int, *, flags: int = 1, features: int = 0) -> list[tuple[int, int]]:
        front = self.front
        pieces = [frame[at : at + 4096] for at in range(0, len(frame), 4096)]
        more = MORE if len(pieces) > 1 else 0
        front.put(front.grant(pieces[0]), 0, flags | EXTRA | more, 0, len(frame))
        front.put(1 | size << 16, kind, features, 0, 0)
        for number, piece in enumerate(pieces[1:], 1):
            front.put(front.grant(piece), 0, MORE if number < len(pieces) - 1 else 0, number, len(piece))
        return front.push()

    def end(self) -> None:
        """The vif lives, and sends large packets as before."""
        assert not self.evil.back.fatals
        before = len(self.good.received)
        answers = self.send(WHOLE.frame(ALL, self.evil.mac), SIZE, V4)
        assert answers[:2] == [(0, OKAY), (0, NULL)]
        assert {status for _, status in answers[2:]} == {OKAY}
        assert self.good.received[before:] == [WHOLE.frame(ALL, self.evil.mac)]
        self.good.close()
        self.front.down()
        self.host.check_no_leaks()


FRAME = Large(bytes(6000)).frame()
UDP = FRAME[:23] + b"\x11" + FRAME[24:]


@pytest.mark.parametrize(
    ("frame", "size", "kind"),
    [
        (FRAME, 0, V4),
        (FRAME, SIZE, 0),
        (FRAME, SIZE, V6),
        (FRAME, SIZE, 3),
        (FRAME, SIZE, 255),
        (UDP, SIZE, V4),
        (FRAME[:12] + b"\x08\x06" + FRAME[14:], SIZE, V4),
        (FRAME[:14] + b"\x65" + FRAME[15:], SIZE, V4),
        (FRAME[:14] + b"\x44" + FRAME[15:], SIZE, V4),
        (FRAME[:20] + b"\x20" + FRAME[21:], SIZE, V4),
        (FRAME[:46] + b"\x40" + FRAME[47:], SIZE, V4),
        (FRAME[:54], SIZE, V4),
        (FRAME[:5000], SIZE, V4),
        (FRAME[:16] + b"\xff\xff" + FRAME[18:], SIZE, V4),
        (FRAME[:16] + b"\x00\x27" + FRAME[18:], SIZE, V4),
        (FRAME, 4, V4),
        (Large(bytes(6000), version=6).frame(), SIZE, V4),
        (Large(bytes(6000), version=6, extensions=b"\x2b\x06\0" + bytes(6)).frame(), SIZE, V6),
        (Large(bytes(6000), version=6, extensions=b"\0\x06\xff" + bytes(2046)).frame(), SIZE, V6),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_packets_that_cannot_be_cut(frame: bytes, size: int, kind: int) -> None:
    scene = Scene()
    answers = scene.send(frame, size, kind)
    assert answers[0] == (0, ERROR)
    assert answers[1] == (0, NULL)
    assert all(status == ERROR for _, status in answers[2:])
    assert not scene.good.received
    assert not scene.host.kernel.nics[0].sent
    assert scene.evil.vif.counters.rx_dropped == 1
    scene.end()


def test_a_large_packet_whose_checksum_is_not_blank() -> None:
    """It is taken for blank: the sum of the whole is of no use to segments (Linux's backend mends it too)."""
    scene = Scene()
    frame = WHOLE.frame(ALL, scene.evil.mac)
    spoilt = frame[:50] + b"\x12\x34" + frame[52:]
    answers = scene.send(spoilt, SIZE, V4, flags=0, features=0xFFFF)
    assert answers[0] == (0, OKAY)
    assert scene.good.received == [frame]
    assert scene.good.offloads == [offload(SIZE)]
    check(scene.host.kernel.nics[0].sent, WHOLE, SIZE)
    scene.end()


def test_headers_in_small_pieces() -> None:
    """XSA-423: wherever slots are cut, the headers are read in one piece."""
    scene = Scene()
    front = scene.front
    large = Large(bytes(range(256)) * 20)
    frame = large.frame(ALL, scene.evil.mac)
    cuts = [0, 1, 13, 15, 33, 36, 51, 53, 55, 56, 1000, 5000, len(frame)]
    pieces = [frame[start:end] for start, end in itertools.pairwise(cuts)]
    front.put(front.grant(pieces[0]), 0, 1 | EXTRA | MORE, 0, len(frame))
    front.put(1 | 500 << 16, V4, 0, 0, 0)
    for number, piece in enumerate(pieces[1:], 1):
        front.put(front.grant(piece), 0, MORE if number < len(pieces) - 1 else 0, number, len(piece))
    assert front.push()[0] == (0, OKAY)
    assert scene.good.received == [frame]
    check(scene.host.kernel.nics[0].sent, large, 500)
    scene.end()


class Received:
    """A backend by hand, and what its guest gets."""

    def __init__(self) -> None:
        self.host = Host(guests=1)
        self.guest = self.host.guests[0]
        self.back = RawBack(self.guest)
        self.buffers = self.back.rx_requests()

    def fill(self, number: int, data: bytes) -> int:
        ident, _, ref = self.buffers[number]
        self.back.page(ref)[: len(data)] = data
        return ident

    def extra(self, kind: int, size: int, gso_type: int, more: int = 0) -> None:
        ring = self.back.rx
        at = ring.offset(ring.rsp_prod_pvt)
        ring.view[at : at + 8] = struct.pack("<BBHBBH", kind, more, size, gso_type, 0, 0)
        ring.rsp_prod_pvt += 1


RX_MORE, RX_EXTRA = netif.NETRXF_more_data, netif.NETRXF_extra_info


def test_extra_info_from_a_backend() -> None:
    """In one push or in many, with one slot of data or several; every buffer comes back."""
    for at_once in (True, False):
        scene = Received()
        back = scene.back

        def step(back: RawBack = back, at_once: bool = at_once) -> None:
            if not at_once:
                back.push()

        back.answer_rx(scene.fill(0, b"a" * 100), 0, RX_MORE | RX_EXTRA, 100)
        step()
        scene.extra(1, 40, V4)
        step()
        back.answer_rx(scene.fill(2, b"b" * 50), 0, 0, 50)
        step()
        back.answer_rx(scene.fill(3, b"c" * 60), 0, RX_EXTRA, 60)
        step()
        scene.extra(1, 9, V6)
        step()
        back.answer_rx(scene.fill(5, b"d" * 70), 0, netif.NETRXF_data_validated, 70)
        back.push()
        assert scene.guest.received == [b"a" * 100 + b"b" * 50, b"c" * 60, b"d" * 70]
        assert scene.guest.offloads == [offload(40, V4), offload(9, V6), VALIDATED]
        again = back.rx_requests()
        assert [ident for ident, _, _ in again] == [ident for ident, _, _ in scene.buffers[:6]]
        back.down()


@pytest.mark.parametrize(
    ("size", "kind", "times"), [(0, V4, 1), (10, 0, 1), (10, 7, 1), (10, V4, 2), (10, V6, 4)], ids=str
)
def test_bad_extra_info_from_a_backend(size: int, kind: int, times: int) -> None:
    scene = Received()
    scene.back.answer_rx(scene.fill(0, b"a" * 100), 0, RX_EXTRA, 100)
    for number in range(times):
        scene.extra(1, size, kind, more=int(number + 1 < times))
    scene.back.answer_rx(scene.fill(times + 1, b"b" * 60), 0, 0, 60)
    scene.back.push()
    assert scene.guest.received == [b"b" * 60]
    assert scene.guest.device.counters.rx_dropped == 1
    assert not scene.guest.device.broken
    scene.back.down()


@pytest.mark.parametrize("kind", [0, 2, 3, 5, 255])
def test_extra_info_that_was_not_offered(kind: int) -> None:
    scene = Received()
    scene.back.answer_rx(scene.fill(0, b"a" * 100), 0, RX_EXTRA, 100)
    scene.extra(kind, 1, 1)
    scene.back.push()
    assert "not offered" in scene.guest.device.broken
    scene.back.down()


def test_on_a_whole_host(tmp_path: Path) -> None:
    """From guest to guest through real hypercalls, and onto a wire in segments."""
    lab = Lab(tmp_path)
    sender = """
        import sys
        sys.path.insert(0, HERE)
        from test_net_gso import Large, offload
        await self.sleep(0.05)
        for size in (100, 9000, 65481):
            frame = Large(bytes(range(256)) * 300)
            frame = Large(frame.data[:size]).frame(bytes([0, 0x16, 0x3e, 0, 0, 2]), self.device.mac)
            self.print("sent", self.device.transmit(frame, offload(1448)))
            await self.sleep(0.01)
        await self.sleep(0.05)
    """.replace("HERE", repr(str(Path(__file__).parent)))
    receiver = """
        seen = []
        self.device.received_raw = lambda frame, how: seen.append((len(frame), how.gso_size))
        await self.sleep(0.02)
        self.device.transmit(b"\\xff" * 6 + self.device.mac + KIND + bytes(46))
        await self.sleep(0.2)
        self.print("seen", seen)
    """
    wire = tmp_path / "all.pcapng"
    result = lab.run(sender, receiver, nics=[f"xenbr0=pcap:{wire}"])
    assert result.exit_code == 0, lab.text
    assert lab.text.count("sent True") == 3
    assert "seen [(154, 0), (9054, 1448), (65535, 1448)]" in lab.text
    with wire.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcapng.Reader(file)]
    assert sorted({len(frame) for frame in frames if frame[12:14] == b"\x08\x00"}) == [154, 9054, 65535]
