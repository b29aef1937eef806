"""The stack of a guest: on a wire that the test holds the other end of, and against another stack."""

from __future__ import annotations

from typing import Any

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_world import FakeKernel, Host, World

from guest_kernel.net import NetDevice, NetError, checksum
from guest_kernel.net.errors import PingTimeout
from guest_kernel.net.neighbours import MAX_NEIGHBOURS, MAX_QUESTIONS, MAX_WAITING
from guest_kernel.net.offload import NONE, VALIDATED, Offload

MAC, PEER = b"\x00\x16\x3e\0\0\1", b"\x00\x16\x3e\0\0\2"
IP, PEER_IP = b"\x0a\0\0\1", b"\x0a\0\0\2"
ALL = b"\xff" * 6


class Cable(NetDevice):
    def __init__(self, name: str = "eth0") -> None:
        super().__init__(name, MAC)
        self.sent: list[bytes] = []

    def transmit(self, frame: bytes | memoryview, offload: Offload = NONE) -> bool:
        assert not offload.blank or self.checksum_offload
        self.sent.append(bytes(frame))
        return True


class Guest:
    def __init__(self) -> None:
        self.world = World(pages=16)
        self.kernel = FakeKernel(self.world, 1)
        self.net = self.kernel.net
        self.cable = Cable()
        self.iface = self.net.attach(self.cable)
        self.iface.configure("10.0.0.1/24")

    def get(self, frame: bytes, validated: bool = False) -> list[bytes]:
        """Take a frame; returns what is sent because of it."""
        self.cable.sent.clear()
        self.cable.hand_over([frame], [VALIDATED if validated else NONE])
        self.world.run(until=self.world.now)
        return self.cable.sent

    def knows_peer(self) -> Guest:
        self.get(arp(dpkt.arp.ARP_OP_REPLY, PEER, PEER_IP, MAC, IP, to=MAC))
        assert PEER_IP in self.iface.neighbours
        return self


def arp(op: int, sha: bytes, spa: bytes, tha: bytes, tpa: bytes, to: bytes = ALL) -> bytes:
    return to + sha + b"\x08\x06" + bytes(dpkt.arp.ARP(op=op, sha=sha, spa=spa, tha=tha, tpa=tpa))


def packet(
    protocol: int, payload: Any, *, src: bytes = PEER_IP, dst: bytes = IP, to: bytes = MAC, **fields: Any
) -> bytes:
    ip = dpkt.ip.IP(src=src, dst=dst, p=protocol, data=payload)
    ip.len = len(ip)
    for key, value in fields.items():
        setattr(ip, key, value)
    return to + PEER + b"\x08\x00" + bytes(ip)


def udp(data: bytes, dport: int = 7, **fields: Any) -> bytes:
    return packet(17, dpkt.udp.UDP(sport=9, dport=dport, ulen=8 + len(data), data=data), **fields)


def echo(data: bytes = b"abc", kind: int = 8, **fields: Any) -> bytes:
    return packet(1, dpkt.icmp.ICMP(type=kind, data=dpkt.icmp.ICMP.Echo(id=5, seq=6, data=data)), **fields)


def poke(frame: bytes, place: int, value: int) -> bytes:
    """Change 16 bits of the IP header, and its checksum with them."""
    header = bytearray(frame)
    header[place : place + 2] = value.to_bytes(2, "big")
    header[24:26] = b"\0\0"
    header[24:26] = checksum.checksum(header[14:34]).to_bytes(2, "big")
    return bytes(header)


def test_arp_request_is_answered_and_learned() -> None:
    guest = Guest()
    (reply,) = guest.get(arp(1, PEER, PEER_IP, bytes(6), IP))
    assert reply == arp(2, MAC, IP, PEER, PEER_IP, to=PEER)
    assert guest.iface.neighbours.get(PEER_IP) == PEER


@pytest.mark.parametrize(
    "frame",
    [
        arp(1, PEER, PEER_IP, bytes(6), b"\x0a\0\0\3"),
        arp(1, PEER, b"\x0b\0\0\2", bytes(6), IP),
        arp(1, PEER, IP, bytes(6), IP),
        arp(1, ALL, PEER_IP, bytes(6), IP),
        arp(1, PEER, b"\x0a\0\0\xff", bytes(6), IP),
        arp(1, PEER, PEER_IP, bytes(6), IP)[:41],
        arp(1, PEER, PEER_IP, bytes(6), IP, to=PEER),
        arp(1, PEER, PEER_IP, bytes(6), IP).replace(b"\x06\x04", b"\x06\x06"),
    ],
)
def test_other_arp_is_not(frame: bytes) -> None:
    guest = Guest()
    assert guest.get(frame) == []
    assert len(guest.iface.neighbours) == 0


def test_a_neighbour_that_moves_says_so_to_all() -> None:
    guest = Guest().knows_peer()
    other = b"\x00\x16\x3e\0\0\x77"
    guest.get(arp(1, other, PEER_IP, bytes(6), PEER_IP))
    assert guest.iface.neighbours.get(PEER_IP) == other


def test_ping_is_answered() -> None:
    guest = Guest().knows_peer()
    (reply,) = guest.get(echo(b"payload"))
    parsed = dpkt.ethernet.Ethernet(reply)
    assert (parsed.src, parsed.dst, parsed.data.src, parsed.data.dst) == (MAC, PEER, IP, PEER_IP)
    assert parsed.data.data.type == dpkt.icmp.ICMP_ECHOREPLY
    assert bytes(parsed.data.data.data)[4:] == b"payload"
    assert checksum.checksum(reply[14:34]) == checksum.checksum(reply[34:]) == 0


@pytest.mark.parametrize(
    "frame",
    [
        echo(dst=b"\x0a\0\0\xff", to=ALL),
        echo(to=PEER),
        echo(dst=PEER_IP),
        echo(src=b"\x0b\0\0\2"),
        echo(kind=13),
        echo()[:-1],
        echo()[:30],
        echo()[:-1] + b"!",
        echo(hl=4),
        echo(hl=15),
        echo(v=6),
        poke(echo(), 16, 19),
        poke(echo(), 16, 32),
        poke(echo(), 16, 0xFFFF),
        echo(mf=1),
        echo(offset=8),
        echo()[:24] + b"\0\1" + echo()[26:],
        b"",
        MAC,
        MAC + PEER + b"\x08",
        MAC + PEER + b"\x08\x00",
        MAC + PEER + b"\x86\xdd" + bytes(40),
    ],
)
def test_what_is_wrong_is_not_answered(frame: bytes) -> None:
    guest = Guest().knows_peer()
    assert guest.get(frame) == []


def test_udp_arrives() -> None:
    guest = Guest()
    socket = guest.net.udp_socket(7)
    guest.get(udp(b"hello"))
    guest.get(udp(b"to all", dst=b"\x0a\0\0\xff", to=ALL))
    guest.get(udp(b"to all there are", dst=b"\xff" * 4, to=ALL))
    guest.get(udp(b"padded") + bytes(30))
    for expected in (b"hello", b"to all", b"to all there are", b"padded"):
        assert guest.world.do(guest.kernel, socket.recvfrom()) == (expected, ("10.0.0.2", 9))
    guest.get(udp(b"nobody", dport=8))


def test_wrong_udp_does_not() -> None:
    guest = Guest()
    socket = guest.net.udp_socket(7)
    for ulen in (0, 7, 14, 0xFFFF):
        layer = dpkt.udp.UDP(sport=9, dport=7, ulen=ulen, sum=0, data=b"hello")
        guest.get(packet(17, layer), validated=True)
    assert guest.cable.counters.rx_dropped == 4
    good = udp(b"hello")
    assert guest.get(good[:-1] + b"!") == []
    assert guest.cable.counters.rx_dropped == 5
    assert not socket._queue
    guest.get(good[:-1] + b"!", validated=True)
    assert len(socket._queue) == 1


def test_ports() -> None:
    guest = Guest()
    first = guest.net.udp_socket(7)
    with pytest.raises(NetError, match="in use"):
        guest.net.udp_socket(7)
    with pytest.raises(NetError, match="no UDP port"):
        guest.net.udp_socket(65536)
    assert guest.net.udp_socket().port != guest.net.udp_socket().port
    first.close()
    second = guest.net.udp_socket(7)
    first.close()
    with pytest.raises(NetError, match="in use"):
        guest.net.udp_socket(7)
    thread = guest.kernel.spawn(second.recvfrom(), panics=False)
    guest.world.run()
    second.close()
    guest.world.run()
    assert isinstance(thread.exception, NetError)


@pytest.mark.parametrize(
    ("data", "address", "message"),
    [
        (b"x", ("10.0.1.1", 7), "no route"),
        (b"x", ("10.0.0", 7), "not an IPv4 address"),
        (b"x", ("10.0.0.2", 0), "no UDP port"),
        (b"x", ("10.0.0.2", 65536), "no UDP port"),
        (bytes(1473), ("10.0.0.2", 7), "do not fit"),
    ],
)
def test_what_cannot_be_sent(data: bytes, address: tuple[str, int], message: str) -> None:
    guest = Guest()
    socket = guest.net.udp_socket(7)
    with pytest.raises(NetError, match=message):
        guest.world.do(guest.kernel, socket.sendto(data, address))


def test_the_largest_datagram_and_its_checksum() -> None:
    guest = Guest().knows_peer()
    socket = guest.net.udp_socket(7)
    for size in (0, 1, 1472):
        guest.cable.sent.clear()
        guest.world.do(
            guest.kernel,
            socket.sendto(bytes(range(256)) * 5 + bytes(192) if size == 1472 else bytes(size), ("10.0.0.2", 8)),
        )
        (frame,) = guest.cable.sent
        assert len(frame) == 42 + size
        assert frame[40:42] != b"\0\0"
        assert checksum.verify(frame)
        assert checksum.checksum(frame[14:34]) == 0


def test_questions_are_repeated_and_given_up() -> None:
    guest = Guest()
    socket = guest.net.udp_socket(7)

    async def send() -> None:
        for number in range(MAX_WAITING):
            await socket.sendto(b"%d" % number, ("10.0.0.2", 8))

    guest.world.do(guest.kernel, send())
    assert guest.cable.sent == [arp(1, MAC, IP, bytes(6), PEER_IP)] * 3
    assert guest.cable.counters.tx_dropped == MAX_WAITING
    assert guest.world.now == 3_000_000_000
    assert not guest.kernel.scheduler.threads


def test_whoever_sends_without_end_to_nobody_waits_for_each_question() -> None:
    """Nothing is pushed out unseen, and the time goes on."""
    guest = Guest()
    socket = guest.net.udp_socket(7)

    async def send() -> None:
        number = 0
        while guest.world.now < 10_000_000_000:
            await socket.sendto(b"%d" % number, ("10.0.0.2", 8))
            number += 1

    guest.world.do(guest.kernel, send())
    assert guest.cable.counters.tx_dropped == 4 * MAX_WAITING + 1
    assert guest.cable.sent == [arp(1, MAC, IP, bytes(6), PEER_IP)] * 3 * 5


def test_what_was_held_back_arrives_in_order_after_the_answer() -> None:
    guest = Guest()
    socket = guest.net.udp_socket(7)

    async def send() -> None:
        for number in range(MAX_WAITING + 5):
            await socket.sendto(b"%d" % number, ("10.0.0.2", 8))

    guest.kernel.spawn(send())
    guest.world.run(until=0)
    sent = guest.get(arp(2, PEER, PEER_IP, MAC, IP, to=MAC))
    assert [frame[42:] for frame in sent] == [b"%d" % number for number in range(MAX_WAITING + 5)]
    assert guest.cable.counters.tx_dropped == 0


def test_too_many_questions_at_a_time_make_the_next_one_wait() -> None:
    guest = Guest()
    guest.iface.configure("10.0.0.1/16")
    socket = guest.net.udp_socket(7)

    async def send() -> None:
        for number in range(MAX_QUESTIONS + 3):
            await socket.sendto(b"", (f"10.0.1.{number}", 8))

    guest.world.do(guest.kernel, send())
    asked = {frame[38:42] for frame in guest.cable.sent}
    assert len(asked) == MAX_QUESTIONS + 3
    assert guest.cable.counters.tx_dropped == MAX_QUESTIONS + 3


def test_a_datagram_that_pushes_another_out_is_counted() -> None:
    guest = Guest()
    for _ in range(MAX_WAITING + 5):
        guest.iface.send(PEER_IP, 17, bytes(8))
    assert guest.cable.counters.tx_dropped == 5
    guest.world.run()
    assert guest.cable.counters.tx_dropped == MAX_WAITING + 5


def test_whoever_sends_to_itself_without_end_gives_way() -> None:
    guest = Guest()
    socket = guest.net.udp_socket(7)
    turns = []

    async def send() -> None:
        while len(turns) < 3:
            await socket.sendto(b"me", ("10.0.0.1", 7))

    async def other() -> None:
        for _ in range(3):
            turns.append(None)
            await guest.kernel.yield_()

    guest.kernel.spawn(send())
    guest.kernel.spawn(other())
    guest.world.run(until=0)
    assert len(turns) == 3


def test_an_answer_lets_what_waits_go() -> None:
    guest = Guest()
    socket = guest.net.udp_socket(7)
    guest.kernel.spawn(socket.sendto(b"1", ("10.0.0.2", 8)))
    guest.kernel.spawn(socket.sendto(b"2", ("10.0.0.2", 8)))
    guest.world.run(until=0)
    sent = guest.get(arp(2, PEER, PEER_IP, MAC, IP, to=MAC))
    assert [frame[42:] for frame in sent] == [b"1", b"2"]
    assert not guest.kernel.scheduler.threads, "the question is still asked"


def test_strangers_cannot_make_it_remember_without_bound() -> None:
    guest = Guest()
    guest.iface.configure("10.0.0.1/8")
    for number in range(3000):
        guest.get(arp(1, PEER, b"\x0a\1" + number.to_bytes(2, "big"), bytes(6), IP))
    assert len(guest.iface.neighbours) == MAX_NEIGHBOURS
    for number in range(3000):
        guest.get(echo(src=b"\x0a\2" + number.to_bytes(2, "big")))
    assert len(guest.kernel.scheduler.threads) == MAX_QUESTIONS
    assert guest.cable.counters.tx_dropped == 3000 - MAX_QUESTIONS
    guest.world.run()
    assert not guest.kernel.scheduler.threads


def test_to_itself() -> None:
    guest = Guest()
    assert guest.world.do(guest.kernel, guest.net.ping("10.0.0.1")) == 0
    socket = guest.net.udp_socket(7)
    guest.world.do(guest.kernel, socket.sendto(b"me", ("10.0.0.1", 7)))
    assert guest.world.do(guest.kernel, socket.recvfrom()) == (b"me", ("10.0.0.1", 7))
    assert not guest.cable.sent


def test_ping_that_is_not_answered() -> None:
    guest = Guest()
    with pytest.raises(PingTimeout, match=r"no answer from 10\.0\.0\.9 within 5 s"):
        guest.world.do(guest.kernel, guest.net.ping("10.0.0.9"))
    with pytest.raises(NetError, match=r"no route to 10\.9\.0\.9"):
        guest.world.do(guest.kernel, guest.net.ping("10.9.0.9"))
    assert not guest.net._echoes


def test_addresses() -> None:
    guest = Guest()
    for text in ("10.0.0.1/33", "10.0.0/24", "", "eth0"):
        with pytest.raises(NetError):
            guest.iface.configure(text)
    assert guest.iface.ip == IP
    guest.iface.configure("10.0.0.0/31")
    assert guest.iface.reaches(IP)
    assert not guest.iface.reaches(PEER_IP)


def test_a_device_that_comes_back_keeps_its_address() -> None:
    guest = Guest()
    guest.net.detach(guest.cable)
    assert not guest.net.interfaces
    cable = Cable()
    iface = guest.net.attach(cable)
    assert str(iface.address) == "10.0.0.1/24"
    assert cable.sent == [arp(1, MAC, IP, bytes(6), IP)]
    guest.net.detach(guest.cable)
    assert guest.net.interfaces == {"eth0": iface}


def test_packets_in_packets_in_packets() -> None:
    """dpkt would go down a thousand layers, and Python would not follow."""
    guest = Guest()
    inner = b""
    for _ in range(3000):
        header = bytearray(dpkt.ip.IP(src=PEER_IP, dst=IP, p=4, len=20 + len(inner)).pack_hdr())
        header[10:12] = checksum.checksum(header).to_bytes(2, "big")
        inner = bytes(header) + inner
    assert guest.get(MAC + PEER + b"\x08\x00" + inner) == []
    header = bytearray(dpkt.ip.IP(src=PEER_IP, dst=IP, p=1, len=28 + len(inner)).pack_hdr())
    header[10:12] = checksum.checksum(header).to_bytes(2, "big")
    message = bytearray(b"\3\1\0\0\0\0\0\0" + inner)
    message[2:4] = checksum.checksum(message).to_bytes(2, "big")
    assert guest.get(MAC + PEER + b"\x08\x00" + bytes(header) + bytes(message)) == []


BASES = [echo(), udp(b"data"), arp(1, PEER, PEER_IP, bytes(6), IP), echo(kind=0), echo(kind=3), udp(b"", dport=53)]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(BASES),
    st.lists(st.tuples(st.integers(6, 80), st.integers(0, 255)), max_size=6),
    st.integers(0, 99),
    st.booleans(),
)
def test_malformed_packets_raise_nothing(
    base: bytes, changes: list[tuple[int, int]], cut: int, validated: bool
) -> None:
    guest = Guest()
    guest.net.udp_socket(7)
    frame = bytearray(base)
    for place, value in changes:
        if place < len(frame):
            frame[place] = value
    if frame[12:14] == b"\x08\x00" and len(frame) >= 34 and cut & 1:
        # Most changes would end at the checksum of the header.
        frame[24:26] = b"\0\0"
        frame[24:26] = checksum.checksum(frame[14 : 14 + (frame[14] & 15) * 4]).to_bytes(2, "big")
    guest.get(bytes(frame[: len(frame) - cut // 3]), validated)


@settings(deadline=None)
@given(st.binary(max_size=100), st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x08\x00\x45\x00"]))
def test_garbage_raises_nothing(data: bytes, kind: bytes) -> None:
    Guest().get(MAC + PEER + kind + data)


def test_two_stacks_over_the_drivers() -> None:
    host = Host().up(record=False)
    a, b = (guest.kernel for guest in host.guests)
    a.net.interfaces["eth0"].configure("10.0.0.1/24")
    b.net.interfaces["eth0"].configure("10.0.0.2/24")
    server = b.net.udp_socket(7)

    async def serve() -> None:
        while True:
            data, sender = await server.recvfrom()
            await server.sendto(data[::-1], sender)

    async def talk() -> list[bytes]:
        assert await a.net.ping("10.0.0.2") == 0
        socket = a.net.udp_socket()
        answers = []
        for number in range(300):
            await socket.sendto(b"%d" % number * (1 + number % 300), ("10.0.0.2", 7))
            data, sender = await socket.recvfrom()
            assert sender == ("10.0.0.2", 7)
            answers.append(data)
        return answers

    thread = b.spawn(serve())
    answers = host.world.do(a, talk())
    assert answers == [(b"%d" % n * (1 + n % 300))[::-1] for n in range(300)]
    assert host.guests[0].vif.mapped
    thread.cancel()
    host.down()
