"""What is left undone in a frame goes with it, through a guest that sends it on too."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from net_world import Host, Station
from test_net_transfers import udp_frame

from guest_kernel.net import checksum
from guest_kernel.net.offload import BLANK, NONE, VALIDATED
from hypervisor.abi.io import netif


def forwards(how: str, middle: Station, to: Station) -> None:
    """Have a guest send on what it gets, in one of three ways."""
    device = middle.device

    def redirected(frame: bytes) -> bytes:
        return to.mac + middle.mac + frame[12:]

    ways: dict[str, Callable[[], None]] = {
        "received": lambda: setattr(device, "received", lambda frame, validated: device.transmit(redirected(frame))),
        "received_many": lambda: setattr(
            device, "received_many", lambda frames, validated: device.transmit_many([redirected(f) for f in frames])
        ),
        "received_raw": lambda: setattr(
            device, "received_raw", lambda frame, offload: device.transmit(redirected(frame), offload)
        ),
    }
    ways[how]()


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("size", [5, 1000, 9000])
@pytest.mark.parametrize("how", ["received", "received_many", "received_raw"])
def test_a_blank_checksum_passes_a_guest_that_forwards(how: str, size: int, control: bool) -> None:
    """Whoever knows of it leaves it blank; for whoever does not it was filled in before."""
    host = Host(guests=3).up(control=control)
    one, middle, two = host.guests
    if control:
        one.warm_up(middle)
        middle.warm_up(two)
    for station in (middle, two):
        station.device.transmit(station.frame(b"\xff" * 6))
    host.run()
    two.received.clear()
    two.offloads.clear()
    forwards(how, middle, two)
    blank, right = udp_frame(one.mac, middle.mac, (bytes(range(256)) * 40)[:size])
    for _ in range(20):
        one.device.transmit(blank, BLANK)
        one.device.transmit(right)
        one.device.transmit(right, VALIDATED)
    host.run()
    whole = two.mac + middle.mac + right[12:]
    assert len(two.received) == 60
    assert two.received[1::3] == two.received[2::3] == [whole] * 20
    if how == "received_raw":
        assert two.received[0::3] == [two.mac + middle.mac + blank[12:]] * 20
        assert two.offloads == [BLANK, NONE, VALIDATED] * 20
    else:
        assert two.received[0::3] == [whole] * 20
        assert checksum.verify(two.received[0])
    host.down()


def test_who_asks_last_gets_the_frames() -> None:
    host = Host().up(record=False)
    one, two = host.guests
    seen: list[str] = []
    device = two.device

    def send() -> list[str]:
        seen.clear()
        one.device.transmit(one.frame(two.mac))
        host.run()
        return seen

    device.received_raw = lambda frame, offload: seen.append("raw")
    assert send() == ["raw"]
    device.received = lambda frame, validated: seen.append("one")
    assert send() == ["one"]
    device.received_raw = lambda frame, offload: seen.append("raw")
    device.received_many = lambda frames, validated: seen.append("many")
    assert send() == ["many"]
    device.received_many = None
    assert send() == ["raw"]
    host.down()


def ipv6_udp(source: bytes, to: bytes, data: bytes) -> bytes:
    """An IPv6 packet without its checksum."""
    pair = bytes(range(32))
    size = 8 + len(data)
    total = checksum.pseudo_header(pair[:16], pair[16:], 17, size)
    udp = struct.pack(">4H", 1, 2, size, total) + data
    return to + source + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, size, 17, 64) + pair + udp


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("takes", ["0", "1", None])
def test_ipv6_without_a_checksum(takes: str | None, mapped: bool) -> None:
    """Blank to who says that it takes that, filled in for everybody else; IPv4 is the other way round."""
    host = Host(nics={"xenbr0": 0})
    one, two = host.guests
    one.connect()
    two.back.hook("publish")
    two.front.hook("publish")
    two.store.pop("frontend/feature-ipv6-csum-offload")
    if takes is not None:
        two.store["frontend/feature-ipv6-csum-offload"] = takes
    two.back.hook("connect")
    two.front.hook("connect")
    two.device.received_raw = two.record
    if mapped:
        one.warm_up(two)
    blank = ipv6_udp(one.mac, two.mac, b"hello")
    for _ in range(2):
        one.device.transmit(blank, BLANK)
        host.run()
    one.device.transmit(ipv6_udp(one.mac, b"\xff" * 6, b"hello"), BLANK)
    host.run()
    assert checksum.verify(host.kernel.nics[0].sent[-1])
    if takes == "1":
        assert two.received[:2] == [blank] * 2
        assert two.offloads == [BLANK] * 3
    else:
        assert all(checksum.verify(frame) for frame in two.received)
        assert two.offloads == [VALIDATED] * 3
    host.down()


def test_a_backend_that_takes_no_ipv6_without_a_checksum() -> None:
    host = Host(guests=1, nics={"xenbr0": 0})
    one = host.guests[0]
    one.back.hook("publish")
    one.store["backend/feature-ipv6-csum-offload"] = "0"
    one.front.hook("publish")
    one.back.hook("connect")
    one.front.hook("connect")
    flags: list[int] = []
    put = one.device.queues[0].tx._put_batch
    one.device.queues[0].tx._put_batch = lambda frames, sizes, mark=0: (flags.append(mark), put(frames, sizes, mark))[1]  # type: ignore[method-assign,func-returns-value]
    one.device.transmit(ipv6_udp(one.mac, b"\xff" * 6, b"hello"), BLANK)
    one.device.transmit(udp_frame(one.mac, b"\xff" * 6, b"hello")[0], BLANK)
    host.run()
    assert flags == [netif.NETTXF_data_validated, netif.NETTXF_csum_blank | netif.NETTXF_data_validated]
    assert all(checksum.verify(frame) for frame in host.kernel.nics[0].sent)
    host.down()
