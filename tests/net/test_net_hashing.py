"""Hashes, and queues chosen by them: each message of the control ring, and what becomes of frames."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_raw import RawFront
from net_world import Host, Station
from test_net_gso import Large

from backends.net import hashing
from backends.net.hashing import toeplitz
from guest_kernel.net.flow import Flow, flow_of, spread
from guest_kernel.net.offload import gso as offload
from hypervisor.abi.io import netif

CTRL = {
    name.removeprefix("XEN_NETIF_CTRL_TYPE_"): value
    for name, value in vars(netif).items()
    if name.startswith("XEN_NETIF_CTRL_TYPE_")
}
SUCCESS, NOT_SUPPORTED, INVALID, OVERFLOW = (
    netif.XEN_NETIF_CTRL_STATUS_SUCCESS,
    netif.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED,
    netif.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER,
    netif.XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW,
)
IPV4, IPV4_TCP = netif.XEN_NETIF_CTRL_HASH_TYPE_IPV4, netif.XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
IPV6, IPV6_TCP = netif.XEN_NETIF_CTRL_HASH_TYPE_IPV6, netif.XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP
TOEPLITZ = netif.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")


def ip(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def ip6(text: str) -> bytes:
    head, _, tail = text.partition("::")
    left = [int(part, 16) for part in head.split(":") if part]
    right = [int(part, 16) for part in tail.split(":") if part]
    return b"".join(part.to_bytes(2, "big") for part in [*left, *[0] * (8 - len(left) - len(right)), *right])


KNOWN = [
    (ip("66.9.149.187"), 2794, ip("161.142.100.80"), 1766, 0x323E8FC2, 0x51CCC178),
    (ip("199.92.111.2"), 14230, ip("65.69.140.83"), 4739, 0xD718262A, 0xC626B0EA),
    (ip("24.19.198.95"), 12898, ip("12.22.207.184"), 38024, 0xD2D0A5DE, 0x5C2B394A),
    (ip6("3ffe:2501:200:1fff::7"), 2794, ip6("3ffe:2501:200:3::1"), 1766, 0x2CC18CD5, 0x40207D3D),
    (ip6("3ffe:501:8::260:97ff:fe40:efab"), 14230, ip6("ff02::1"), 4739, 0x0F0C461C, 0xDDE51BBF),
]
"""Of Microsoft's "Verifying the RSS Hash Calculation": source, destination, each with its port; without, with ports."""


@pytest.mark.parametrize(("source", "sport", "destination", "dport", "plain", "tcp"), KNOWN)
def test_known_hashes(source: bytes, sport: int, destination: bytes, dport: int, plain: int, tcp: int) -> None:
    assert toeplitz(KEY, source + destination) == plain
    assert toeplitz(KEY, source + destination + struct.pack(">HH", sport, dport)) == tcp


PROBE = """
#include <stdint.h>
#include <stdio.h>
#define XEN_NETIF_DEFINE_TOEPLITZ
typedef uint16_t domid_t;
#include <xen/xen.h>
#include <xen/io/netif.h>
int main(void)
{
    uint8_t sizes[2], key[256], data[256];
    while (fread(sizes, 1, 2, stdin) == 2) {
        if (fread(key, 1, sizes[0], stdin) != sizes[0] || fread(data, 1, sizes[1], stdin) != sizes[1])
            return 1;
        printf("%u\\n", xen_netif_toeplitz_hash(key, sizes[0], data, sizes[1]));
    }
    return 0;
}
"""


def test_the_header_says_the_same(tmp_path: Path) -> None:
    """`xen_netif_toeplitz_hash` of netif.h, compiled: keys and data of all lengths."""
    source = tmp_path / "probe.c"
    source.write_text(PROBE)
    try:
        subprocess.run(["cc", "-o", tmp_path / "probe", source], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler, or no netif.h (Debian: gcc libxen-dev)")
    rng = random.Random(1)
    cases = [(rng.randbytes(n % 41), rng.randbytes((0, 8, 12, 32, 36, 1, 35)[n % 7])) for n in range(300)]
    words = b"".join(bytes([len(key), len(data)]) + key + data for key, data in cases)
    done = subprocess.run([tmp_path / "probe"], input=words, capture_output=True, check=True)
    assert [int(line) for line in done.stdout.split()] == [toeplitz(key, data) for key, data in cases]


# -- the control ring -----------------------------------------------------------------------------------------------


def front_of(queues: int = 1, **options: object) -> RawFront:
    return RawFront(Host(guests=2).guests[0], control=True, queues=queues, **options)  # type: ignore[arg-type]


def down(front: RawFront) -> None:
    front.down()
    for guest in front.host.guests[1:]:
        if guest.front.data is not None:
            guest.close()
    front.host.check_no_leaks()


def ask(front: RawFront, kind: str, *data: int) -> tuple[int, int]:
    return front.ask(CTRL[kind], *data, *[0] * (3 - len(data)))


def words(front: RawFront, numbers: Sequence[int]) -> int:
    return front.grant(struct.pack(f"<{len(numbers)}I", *numbers))


def test_algorithms_and_types() -> None:
    front = front_of()
    assert ask(front, "GET_HASH_FLAGS") == (NOT_SUPPORTED, 0)
    assert ask(front, "SET_HASH_FLAGS", IPV4) == (INVALID, 0)
    for unknown in (2, 0xFFFFFFFF):
        assert ask(front, "SET_HASH_ALGORITHM", unknown) == (INVALID, 0)
    assert ask(front, "SET_HASH_ALGORITHM", TOEPLITZ) == (SUCCESS, 0)
    assert ask(front, "GET_HASH_FLAGS") == (SUCCESS, IPV4 | IPV4_TCP | IPV6 | IPV6_TCP)
    for unknown in (16, 0x80000001):
        assert ask(front, "SET_HASH_FLAGS", unknown) == (INVALID, 0)
    orders = front.guest.vif.hashing
    assert ask(front, "SET_HASH_FLAGS", IPV4 | IPV6_TCP) == (SUCCESS, 0)
    assert orders.active
    assert ask(front, "SET_HASH_FLAGS", 0) == (SUCCESS, 0)
    assert not orders.active
    assert ask(front, "SET_HASH_FLAGS", IPV4) == (SUCCESS, 0)
    assert ask(front, "SET_HASH_ALGORITHM", 0) == (SUCCESS, 0)
    assert not orders.active
    down(front)


def test_keys() -> None:
    front = front_of()
    orders = front.guest.vif.hashing
    page = front.grant(KEY + b"more")
    assert ask(front, "SET_HASH_KEY", page, 40) == (SUCCESS, 0)
    assert orders.key == KEY
    for size in (41, 4096, 0xFFFFFFFF):
        assert ask(front, "SET_HASH_KEY", page, size) == (OVERFLOW, 0)
    assert ask(front, "SET_HASH_KEY", 0xFFFFFF, 8) == (INVALID, 0)
    assert orders.key == KEY
    assert ask(front, "SET_HASH_KEY", page, 3) == (SUCCESS, 0)
    assert orders.key == KEY[:3]
    # No key at all has no page either.
    assert ask(front, "SET_HASH_KEY", 0xFFFFFF, 0) == (SUCCESS, 0)
    assert toeplitz(orders.key, bytes(range(36))) == 0
    down(front)


def test_mappings() -> None:
    front = front_of(queues=3)
    orders = front.guest.vif.hashing
    assert ask(front, "GET_HASH_MAPPING_SIZE") == (SUCCESS, 128)
    assert ask(front, "SET_HASH_MAPPING", words(front, [1]), 1, 0) == (INVALID, 0), "there is no table yet"
    for size in (129, 0xFFFFFFFF):
        assert ask(front, "SET_HASH_MAPPING_SIZE", size) == (INVALID, 0)
    assert ask(front, "SET_HASH_MAPPING_SIZE", 5) == (SUCCESS, 0)
    assert orders.mapping == [0] * 5
    assert ask(front, "SET_HASH_MAPPING", words(front, [2, 1, 0, 2]), 4, 1) == (SUCCESS, 0)
    assert orders.mapping == [0, 2, 1, 0, 2]
    assert ask(front, "SET_HASH_MAPPING", words(front, [1, 3]), 2, 0) == (INVALID, 0)
    assert ask(front, "SET_HASH_MAPPING", words(front, [1, 1]), 2, 4) == (INVALID, 0)
    assert ask(front, "SET_HASH_MAPPING", words(front, [1, 1]), 2, 0xFFFFFFFF) == (INVALID, 0)
    assert ask(front, "SET_HASH_MAPPING", words(front, [1]), 129, 0) == (OVERFLOW, 0)
    assert ask(front, "SET_HASH_MAPPING", words(front, [1]), 0xFFFFFFFF, 0) == (OVERFLOW, 0)
    assert ask(front, "SET_HASH_MAPPING", 0xFFFFFF, 1, 0) == (INVALID, 0)
    assert orders.mapping == [0, 2, 1, 0, 2]
    assert ask(front, "SET_HASH_MAPPING", 0xFFFFFF, 0, 5) == (SUCCESS, 0)
    assert ask(front, "SET_HASH_MAPPING_SIZE", 2) == (SUCCESS, 0)
    assert orders.mapping == [0, 0]
    assert ask(front, "SET_HASH_MAPPING_SIZE", 0) == (SUCCESS, 0)
    assert orders.mapping == []
    down(front)


NUMBERS = st.integers(0, 130) | st.sampled_from([0x7FFFFFFF, 0xFFFFFFFF])


@given(st.lists(st.tuples(st.integers(0, 8), NUMBERS, NUMBERS, NUMBERS), max_size=12))
@settings(deadline=None, max_examples=50)
def test_any_orders_at_all(orders: list[tuple[int, int, int, int]]) -> None:
    """No order harms anything: frames still arrive, in some queue that there is."""
    host = Host()
    front = RawFront(host.guests[0], control=True, queues=2, rx=8)
    table = words(front, range(100))
    for kind, *data in orders:
        front.ask(kind, table if data[0] == 100 else data[0], *data[1:])
    other = host.guests[1].connect()
    other.device.transmit(Large(b"hello").frame(b"\xff" * 6, other.mac))
    other.device.transmit(other.frame(b"\xff" * 6))
    host.run()
    assert front.guest.vif.counters.tx_packets == 2
    assert sum(queue._rx.rsp_prod_pvt > 0 for queue in front.guest.vif.queues) in (1, 2)
    down(front)


# -- what becomes of frames -----------------------------------------------------------------------------------------


def packet(source: bytes, sport: int, destination: bytes, dport: int, to: bytes, sender: bytes, kind: str) -> bytes:
    """An IPv4 or IPv6 packet of TCP or UDP; "fragment": the first piece of one of TCP."""
    layer = struct.pack(">HH", sport, dport) + bytes(8) + b"\x50" + bytes(7)
    protocol = 17 if kind == "udp" else 6
    if len(source) == 4:
        flags = 0x2000 if kind == "fragment" else 0
        header = struct.pack(">BBHHHBBH", 0x45, 0, 40, 1, flags, 64, protocol, 0) + source + destination
        return to + sender + b"\x08\x00" + header + layer + bytes(20)
    header = struct.pack(">IHBB", 6 << 28, 20, protocol, 64) + source + destination
    return to + sender + b"\x86\xdd" + header + layer


class Scene:
    """A guest by hand, of several queues, that has ordered hashing; and one that sends to it."""

    def __init__(self, queues: int, types: int, mapping: Sequence[int] = ()) -> None:
        self.host = Host()
        self.front = RawFront(self.host.guests[0], control=True, queues=queues)
        self.sender: Station = self.host.guests[1].connect()
        for kind, *data in (
            ("SET_HASH_ALGORITHM", TOEPLITZ),
            ("SET_HASH_KEY", self.front.grant(KEY), 40),
            ("SET_HASH_FLAGS", types),
            ("SET_HASH_MAPPING_SIZE", len(mapping)),
            ("SET_HASH_MAPPING", words(self.front, mapping), len(mapping)),
        ):
            assert ask(self.front, str(kind), *data)[0] == SUCCESS  # type: ignore[arg-type]
        self.seen = [0] * queues

    def send(self, frame: bytes, how: object = None) -> tuple[int, list[bytes]]:
        """Returns the queue that the frame came to, and its slots there."""
        assert self.sender.device.transmit(frame, *([how] if how else []))  # type: ignore[list-item]
        self.host.run()
        found = []
        for number in range(len(self.seen)):
            self.front.use(number)
            ring = self.front.rx
            first, count = ring.rsp_cons, ring.unconsumed_responses()
            slots = [bytes(ring.view[ring.offset(first + place) :][:8]) for place in range(count)]
            self.front.received()
            if slots:
                found.append((number, slots))
        ((number, slots),) = found
        return number, slots


def info(kind: int, value: int, more: int = 0) -> bytes:
    return struct.pack("<BBBBI", netif.XEN_NETIF_EXTRA_TYPE_HASH, more, kind, TOEPLITZ, value)


@pytest.mark.parametrize(("source", "sport", "destination", "dport", "plain", "tcp"), KNOWN)
@pytest.mark.parametrize("mapping", [[], [2, 0, 1, 2, 1]])
def test_frames_go_by_their_hash(
    source: bytes, sport: int, destination: bytes, dport: int, plain: int, tcp: int, mapping: list[int]
) -> None:
    v6 = len(source) == 16
    for types, kind, number, value in (
        (15, "tcp", 3 if v6 else 1, tcp),
        (15, "udp", 2 if v6 else 0, plain),
        (IPV4 | IPV6, "tcp", 2 if v6 else 0, plain),
        (IPV4_TCP | IPV6_TCP, "udp", None, 0),
        (IPV4 | IPV4_TCP if v6 else IPV6 | IPV6_TCP, "tcp", None, 0),
        *([] if v6 else [(15, "fragment", 0, plain)]),
    ):
        scene = Scene(3, types, mapping)
        frame = packet(source, sport, destination, dport, b"\xff" * 6, scene.sender.mac, kind)
        queue, slots = scene.send(frame)
        assert queue == (mapping[value % len(mapping)] if mapping else value % 3)
        flags = struct.unpack("<HHHh", slots[0])[2]
        if number is None:
            assert len(slots) == 1
            assert not flags & netif.NETRXF_extra_info
        else:
            assert flags & netif.NETRXF_extra_info
            assert slots[1:] == [info(number, value)]
        down(scene.front)


def test_a_hash_goes_with_a_large_packet() -> None:
    """Two slots of extra info behind the first: the size of segments, and the hash."""
    scene = Scene(2, 15)
    front = scene.front
    scene.front.guest.vif.gso_types = frozenset([netif.XEN_NETIF_GSO_TYPE_TCPV4])
    large = Large(bytes(9000))
    frame = large.frame(b"\xff" * 6, scene.sender.mac)
    value = toeplitz(KEY, frame[26:38])
    queue, slots = scene.send(frame, offload(1000))
    assert queue == value % 2
    assert slots[1:3] == [struct.pack("<BBHBBH", 1, 1, 1000, 1, 0, 0), info(1, value)]
    sizes = [struct.unpack("<HHHh", slot)[3] for slot in (slots[0], *slots[3:])]
    assert sizes == [4096, 4096, len(frame) - 8192]
    down(front)


def test_hashing_that_ends() -> None:
    scene = Scene(1, 15)
    frame = packet(*KNOWN[0][:4], b"\xff" * 6, scene.sender.mac, "tcp")
    assert len(scene.send(frame)[1]) == 2
    assert ask(scene.front, "SET_HASH_ALGORITHM", 0) == (SUCCESS, 0)
    assert len(scene.send(frame)[1]) == 1
    down(scene.front)


def test_a_hash_in_a_frame_that_is_sent() -> None:
    """A backend that hashes takes it (netif.h), from one that has ordered nothing too, once for each frame."""
    host = Host()
    front = RawFront(host.guests[0])
    other = host.guests[1].connect()
    frame = host.guests[0].frame(b"\xff" * 6, 60)
    ref = front.grant(frame)
    for slots, status in ((1, 0), (2, -1)):
        front.put(ref, 0, netif.NETTXF_extra_info, 3, 60)
        for number in range(slots):
            front.put(netif.XEN_NETIF_EXTRA_TYPE_HASH | int(number + 1 < slots) << 8 | 1 << 16, 1, 2, 3, 4)
        assert front.push() == [(3, status)] + [(0, netif.NETIF_RSP_NULL)] * slots
    assert other.received == [frame]
    down(front)


def test_flows() -> None:
    """Without orders, a flow stays in its queue, and flows are spread over all of them."""
    frames = [Large(bytes(n)).frame(source=bytes([2, 0, 0, 0, 0, n])) for n in range(20)]
    assert {flow_of(frame) for frame in frames} == {Flow(4, bytes([10, 0, 0, 1, 10, 0, 0, 2]), b"\x03\xe8\x07\xd0")}
    assert len({spread(frame, 4) for frame in frames}) == 1
    others = [packet(ip("10.0.0.1"), port, ip("10.0.0.2"), 80, b"", bytes(12), "tcp") for port in range(1000, 1400)]
    counts = [sum(spread(frame, 4) == queue for frame in others) for queue in range(4)]
    assert min(counts) > 50
    assert flow_of(b"\xff" * 60) is None
    assert spread(b"\xff" * 60, 4) in range(4)


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00\x45", b"\x86\xdd\x60", b"\x81\x00\0\5\x86\xdd\x60"]))
def test_flows_of_anything_at_all(data: bytes, head: bytes) -> None:
    frame = bytes(12) + head + data if head else data
    flow = flow_of(frame)
    assert flow is None or (len(flow.addresses), len(flow.ports)) in {(8, 0), (8, 4), (32, 0), (32, 4)}
    orders = hashing.Hashing(3)
    orders.set_algorithm(TOEPLITZ)
    orders.set_types(15)
    orders.set_key(KEY)
    assert orders.queue(orders.hash(frame)) in range(3)
    assert spread(frame, 3) in range(3)
