"""Who is served from page to page: guests of several queues, those that have ordered hashing, with an MTU or a limit.

Each with numpy and without it, and each to the same effect as by way of the bridge's own pages.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from net_world import Host, Station
from test_net_gso import Large
from test_net_hashing import KEY, ip, packet
from test_net_queues import connected

from backends.net.credit import Credit
from backends.net.hashing import toeplitz
from backends.net.queue import Queue
from backends.net.slots import Packet
from guest_kernel import vectors
from guest_kernel.net.flow import spread
from guest_kernel.net.offload import BLANK, NONE, Offload
from guest_kernel.net.offload import gso as offload

MS = 1_000_000
ALL_TYPES = 15


@pytest.fixture(params=[False, True], ids=["plain", "numpy"], autouse=True)
def _with_numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        pytest.importorskip("numpy")
    monkeypatch.setattr(vectors, "disabled", not request.param)


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> list[Packet]:
    """What did not go from page to page."""
    packets: list[Packet] = []
    real: Callable[[Queue, list[Packet]], None] = Queue._finish

    def finish(self: Queue, batch: list[Packet]) -> None:
        packets.extend(batch)
        real(self, batch)

    monkeypatch.setattr(Queue, "_finish", finish)
    return packets


def bursts(one: Station, two: Station) -> list[list[bytes]]:
    """Runs of frames of one flow each: TCP, UDP, IPv6, with options or a tag, fragments, and no IP at all."""
    kinds = [(n, kind) for n in range(4) for kind in ("tcp", "udp", "fragment", "v6", "tagged", "options", "other")]
    found = []
    for number, kind in kinds:
        ends = (ip(f"10.0.{number}.1"), 1000 + number, ip("10.0.0.2"), 80, two.mac, one.mac)
        if kind == "v6":
            v6 = (bytes([32, number]) * 8, 1000, bytes([33, 1]) * 8, 80 + number, two.mac, one.mac)
            frame = packet(*v6, "tcp")
        elif kind == "other":
            frame = two.mac + one.mac + b"\x88\xb5" + bytes([number]) * 60
        else:
            frame = packet(*ends, kind if kind in ("udp", "fragment") else "tcp")
        if kind == "tagged":
            frame = frame[:12] + b"\x81\x00\x00\x00" + frame[12:]
        if kind == "options":
            frame = frame[:14] + b"\x46" + frame[15:34] + bytes(4) + frame[34:]
        # Not only the number of the packet differs: bytes that the hash is not over, too.
        found.append([frame[:18] + bytes([n]) + frame[19:] + bytes([number, n]) for n in range(20)])
    return found


def warm(one: Station, two: Station) -> None:
    """Have all buffers of all queues mapped."""
    one.warm_up(two)
    for _ in range(4):
        for burst in bursts(one, two):
            one.device.transmit_many(burst)
            two.device.transmit_many([frame[6:12] + frame[:6] + frame[12:] for frame in burst])
            one.host.run()
    for station in (one, two):
        station.received.clear()
        station.offloads.clear()


@pytest.mark.parametrize("counts", [(1, 1), (1, 4), (4, 1), (2, 3)])
def test_any_number_of_queues(counts: tuple[int, int], carried: list[Packet]) -> None:
    host = connected(*counts)
    one, two = host.guests
    warm(one, two)
    carried.clear()
    before = [queue._rx.rsp_prod_pvt for queue in two.vif.queues]
    expected = [0] * counts[1]
    for burst in bursts(one, two):
        assert one.device.transmit_many(burst) == len(burst)
        host.run()
        assert two.received == burst
        two.received.clear()
        expected[spread(burst[0], counts[1])] += len(burst)
    assert not carried
    assert [queue._rx.rsp_prod_pvt - n for queue, n in zip(two.vif.queues, before, strict=True)] == expected
    host.down()


def test_flows_that_are_mixed(carried: list[Packet]) -> None:
    """Frame by frame for another queue, and runs that end within a batch: in order in each flow."""
    host = connected(1, 4)
    one, two = host.guests
    warm(one, two)
    carried.clear()
    batches = bursts(one, two)
    mixed = [batch[n] for n in range(7) for batch in batches[:8]]
    runs = [frame for batch in batches[8:11] for frame in batch[:18]]
    for frames in (mixed, runs):
        assert one.device.transmit_many(frames) == len(frames)
        host.run()
        assert sorted(two.received) == sorted(frames)
        for burst in batches:
            flow = [frame for frame in frames if frame in burst]
            assert [frame for frame in two.received if frame in burst] == flow
        two.received.clear()
    assert not carried
    host.down()


@pytest.mark.parametrize(("count", "mapping"), [(1, []), (3, [0, 2, 1, 1])])
def test_frames_with_their_hash(count: int, mapping: list[int], carried: list[Packet]) -> None:
    host = connected(1, count)
    one, two = host.guests
    host.world.do(two.kernel, two.device.order_hashing(ALL_TYPES, KEY, mapping))
    warm(one, two)
    carried.clear()
    for burst in bursts(one, two):
        two.vif.counters.tx_bytes = two.vif.counters.tx_packets = 0
        assert one.device.transmit_many(burst) == len(burst)
        host.run()
        assert two.received == burst
        assert (two.vif.counters.tx_packets, two.vif.counters.tx_bytes) == (20, 20 * len(burst[0]))
        found = two.vif.hashing.hash(burst[0])
        assert {offload.hash for offload in two.offloads} == {None if found is None else found.value}
        two.received.clear()
        two.offloads.clear()
    assert not carried
    frame = bursts(one, two)[0][0]
    assert two.vif.hashing.hash(frame).value == toeplitz(KEY, frame[26:38])
    host.down()


@pytest.mark.parametrize("hashing", [False, True])
def test_large_packets_to_several_queues(hashing: bool, carried: list[Packet]) -> None:
    host = connected(1, 3)
    one, two = host.guests
    if hashing:
        host.world.do(two.kernel, two.device.order_hashing(ALL_TYPES, KEY))
    warm(one, two)
    packets = [Large(bytes([n]) * (9000 + 3000 * n)).frame(two.mac, one.mac) for n in range(12)]
    for round_ in range(14):
        two.received.clear()
        two.offloads.clear()
        two.vif.counters.tx_bytes = 0
        if round_ >= 12:
            carried.clear()
        for frame in packets:
            assert one.device.transmit(frame, offload(1448))
            host.run()
    assert two.received == packets
    assert [how.gso_size for how in two.offloads] == [1448] * 12
    hashes = [toeplitz(KEY, frame[26:38]) if hashing else None for frame in packets]
    assert [how.hash for how in two.offloads] == hashes
    assert two.vif.counters.tx_bytes == sum(map(len, packets))
    assert not carried
    host.down()


def test_frames_that_are_longer_than_the_mtu(carried: list[Packet]) -> None:
    host = Host().up()
    one, two = host.guests
    one.warm_up(two)
    two.vif.mtu = 1500
    carried.clear()
    good = [one.frame(two.mac, 1518, number) for number in range(40)]
    assert one.device.transmit_many(good) == 40
    host.run()
    assert two.received == good
    assert not carried
    for frames in ([one.frame(two.mac, 1519)] * 20, [good[0], one.frame(two.mac, 1519), good[1]]):
        two.received.clear()
        dropped = two.vif.counters.tx_dropped
        one.device.transmit_many(frames)
        host.run()
        assert two.received == [frame for frame in frames if len(frame) < 1519]
        assert two.vif.counters.tx_dropped - dropped == sum(len(frame) == 1519 for frame in frames)
    host.down()


@pytest.mark.parametrize("mtu", [None, 1502, 1501])
def test_large_packets_and_the_mtu(mtu: int | None, carried: list[Packet]) -> None:
    """Their segments are what must not be longer; 1448 bytes of data have 54 of headers, and a tag's 4 are free."""
    host = Host().up()
    one, two = host.guests
    warm(one, two)
    two.vif.mtu = mtu and mtu - 18
    packets = [Large(bytes([n]) * 20_000).frame(two.mac, one.mac) for n in range(20)]
    done = 0
    while done < len(packets):
        done += one.device.transmit_many(packets[done:], offload(1448))
        host.run()
    assert two.received == ([] if mtu == 1501 else packets)
    assert two.vif.counters.tx_dropped == (20 if mtu == 1501 else 0)
    carried.clear()
    assert one.device.transmit_many(packets[:4], offload(1448)) == 4
    host.run()
    assert (len(carried) > 0) == (mtu == 1501)
    host.down()


def test_a_limit_is_one_for_all_queues(carried: list[Packet]) -> None:
    """What one queue has used up, another has not either; and those that wait have not paid yet."""
    host = connected(2, 1)
    one, two = host.guests
    warm(one, two)
    carried.clear()
    one.vif.limit(Credit(3000, 10 * MS, host.world.now))
    start = host.world.now
    frames = [burst[0].ljust(1000, b"=") for burst in bursts(one, two)[:10]]
    assert len({spread(frame, 2) for frame in frames}) == 2
    assert one.device.transmit_many(frames) == 10
    host.world.run(until=start)
    assert len(two.received) == 3
    for passed in (6, 9):
        host.world.run(until=start + 10 * MS * (passed // 3 - 1))
        assert len(two.received) == passed
    host.run()
    assert sorted(two.received) == sorted(frames)
    assert host.world.now == start + 30 * MS
    assert not carried
    host.down()


def test_blank_checksums_go_along(carried: list[Packet]) -> None:
    host = connected(1, 2)
    one, two = host.guests
    warm(one, two)
    carried.clear()
    frame = bursts(one, two)[0][0]
    for how in (NONE, BLANK):
        for _ in range(20):
            assert one.device.transmit(frame, how)
    host.run()
    assert [how.blank for how in two.offloads] == [False] * 20 + [True] * 20
    assert not carried
    host.down()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, None])
@pytest.mark.parametrize("length", [14, 60, 1500, 4096, 4097, 9000])
def test_frames_of_any_type(length: int, kind: type | None) -> None:
    """Frames are whatever has bytes, in one batch, too."""
    host = Host().up()
    one, two = host.guests
    one.warm_up(two)
    kinds = (bytes, bytearray, memoryview)
    frames = [one.frame(two.mac, length, n) for n in range(40)]
    sent = [(kind or kinds[n * n % 7 % 3])(frame) for n, frame in enumerate(frames)]
    done = 0
    while done < len(sent):
        done += one.device.transmit_many(sent[done:])
        host.run()
    assert two.received == frames
    host.down()


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("how", [BLANK, offload(1448)])
def test_many_with_one_offload(queues: int, able: bool, how: Offload) -> None:
    """What is left undone of all: by the backend, or by ourselves if it takes none such. What has no room waits."""
    host = connected(queues, 1)
    one, two = host.guests
    warm(one, two)
    if not able:
        one.device.gso_types = frozenset()
        one.device.ipv6_checksum_offload = False
    packets = [
        Large(bytes([n]) * (3000 if how is BLANK else 20_000 + n % 3)).frame(two.mac, one.mac) for n in range(60)
    ]
    done = 0
    while done < len(packets):
        count = one.device.transmit_many(packets[done:], how)
        assert 0 < count <= len(packets) - done
        done += count
        host.run()
    if able or how is BLANK:
        assert two.received == packets
        assert {(got.blank, got.gso_size) for got in two.offloads} == {(True, how.gso_size)}
    else:
        assert b"".join(frame[54:] for frame in two.received) == b"".join(frame[54:] for frame in packets)
        assert max(map(len, two.received)) == 1448 + 54
    assert one.device.counters.tx_dropped == 0
    assert one.device.transmit_many([], how) == 0
    one.device.disconnect()
    assert one.device.transmit_many(packets, how) == 0
    host.down()


def test_a_packet_among_many_that_cannot_be_cut() -> None:
    """It is dropped, and counted; those behind it go on."""
    host = connected(1, 1)
    one, two = host.guests
    one.warm_up(two)
    one.device.gso_types = frozenset()
    good = Large(bytes(3000)).frame(two.mac, one.mac)
    assert one.device.transmit_many([good, one.frame(two.mac, 3000), good], offload(1448)) == 3
    host.run()
    assert len(two.received) == 6
    assert one.device.counters.tx_dropped == 1
    host.down()
