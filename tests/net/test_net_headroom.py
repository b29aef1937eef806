"""Room before the data of received frames (xdp-headroom), as Linux's frontend asks for it with an XDP program."""

from __future__ import annotations

import pytest
from net_raw import RawFront
from net_world import Host
from test_net_gso import ALL, SIZE, Large, taker_by_hand

from guest_kernel.net.offload import NONE
from guest_kernel.net.offload import gso as offload
from hypervisor.abi.io import netif

MORE, EXTRA = netif.NETRXF_more_data, netif.NETRXF_extra_info
XDP, GSO, HASH = 5, netif.XEN_NETIF_EXTRA_TYPE_GSO, netif.XEN_NETIF_EXTRA_TYPE_HASH
KEY = "frontend/xdp-headroom"


def taken(front: RawFront) -> tuple[bytes, list[tuple[int, int, bytes]], list[tuple[int, int, int]]]:
    """Take one frame: its bytes, its extra info (type, flags, the rest), and each slot's offset, flags and status."""
    first = front.rx.rsp_cons
    slots: list[tuple[int, tuple[int, int, int, int]]] = []
    extras: list[tuple[int, int, bytes]] = []
    is_extra = False
    for number, answer in enumerate(front.received()):
        at = front.rx.offset(first + number)
        raw = bytes(front.rx.view[at : at + 8])
        if is_extra:
            extras.append((raw[0], raw[1], raw[2:]))
            is_extra = bool(raw[1] & netif.XEN_NETIF_EXTRA_FLAG_MORE)
            continue
        is_extra = bool(answer[2] & EXTRA)
        slots.append((front.free[first + number], answer))
    data = b"".join(bytes(front.buffers[ref].view[start : start + size]) for ref, (_, start, _, size) in slots)
    return data, extras, [answer[1:] for _, answer in slots]


def wants(front: RawFront, room: object) -> None:
    front.guest.store[KEY] = str(room)
    front.guest.back.hook("probe")
    front.guest.back.watches["xdp-headroom"]()
    front.host.run()


def test_the_offer_and_who_does_not_take_it() -> None:
    with taker_by_hand() as (host, one, front):
        assert front.guest.store["backend/feature-xdp-headroom"] == "1"
        sent = one.frame(ALL, 1514)
        one.device.transmit(sent)
        host.run()
        assert taken(front) == (sent, [], [(0, 0, 1514)])


@pytest.mark.parametrize("size", [60, 1514, 4096 - 256])
def test_a_frame_of_one_slot(size: int) -> None:
    host = Host()
    one, two = host.guests
    one.connect()
    two.store[KEY] = "256"
    front = RawFront(two)
    sent = one.frame(ALL, size)
    one.device.transmit(sent)
    host.run()
    assert taken(front) == (sent, [(XDP, 0, b"\0\x01\0\0\0\0")], [(256, EXTRA, size)])
    one.close()
    front.down()
    host.check_no_leaks()


@pytest.mark.parametrize("size", [4096 - 255, 4096, 9014, 65535])
def test_a_frame_of_several_slots(size: int) -> None:
    """Every slot has the room; the largest frame takes all 18 of them."""
    with taker_by_hand("feature-gso-tcpv4") as (host, one, front):
        wants(front, 256)
        is_large = size == 65535
        data = (bytes(range(256)) * 256)[: size - 54]
        sent = Large(data).frame(ALL, one.mac) if is_large else one.frame(ALL, size)
        one.device.transmit(sent, offload(SIZE) if is_large else NONE)
        host.run()
        data, extras, slots = taken(front)
        assert data == sent
        assert [kind for kind, _, _ in extras] == ([GSO, XDP] if is_large else [XDP])
        assert [flags for _, flags, _ in extras] == [netif.XEN_NETIF_EXTRA_FLAG_MORE] * (len(extras) - 1) + [0]
        assert {start for start, _, _ in slots} == {256}
        assert [status for *_, status in slots[:-1]] == [3840] * (len(slots) - 1)
        assert [bool(flags & MORE) for _, flags, _ in slots] == [True] * (len(slots) - 1) + [False]
        assert len(slots) == -(-len(sent) // 3840) <= netif.XEN_NETIF_NR_SLOTS_MIN


def test_the_hash_stands_before_it() -> None:
    host = Host()
    one, two = host.guests
    one.connect()
    two.store[KEY] = "256"
    front = RawFront(two, control=True)
    assert front.ask(netif.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, 1, 0, 0)[0] == 0
    assert front.ask(netif.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, 1, 0, 0)[0] == 0
    one.device.transmit(Large(bytes(100)).frame(ALL, one.mac))
    host.run()
    _, extras, _ = taken(front)
    assert [(kind, flags) for kind, flags, _ in extras] == [(HASH, netif.XEN_NETIF_EXTRA_FLAG_MORE), (XDP, 0)]
    one.close()
    front.down()
    host.check_no_leaks()


def test_it_may_change_while_connected() -> None:
    """By the watch, or by the hook that answers Reconfiguring; a frame that waits keeps what it was put in with."""
    with taker_by_hand(rx=0) as (host, one, front):
        frames = [one.frame(ALL, 200, number) for number in range(3)]
        one.device.transmit(frames[0])
        host.run()
        wants(front, 256)
        one.device.transmit(frames[1])
        host.run()
        front.guest.store[KEY] = "0"
        front.guest.back.hook("reconfigure")
        one.device.transmit(frames[2])
        host.run()
        for frame, count, slots in zip(
            frames, (1, 2, 1), ([(0, 0, 200)], [(256, EXTRA, 200)], [(0, 0, 200)]), strict=True
        ):
            for _ in range(count):
                front.free.append(front.buffer())
                front.post(front.free[-1] & 0xFFFF, front.free[-1])
            front.show(front.rx)
            host.run()
            data, _, found = taken(front)
            assert (data, found) == (frame, slots)


@pytest.mark.parametrize("room", ["", "x", "-1", "1 ", "٤", "99999999999", "0"])
def test_what_is_no_number_means_none(room: str) -> None:
    with taker_by_hand() as (host, one, front):
        wants(front, room)
        one.device.transmit(one.frame(ALL, 100))
        host.run()
        assert taken(front)[2] == [(0, 0, 100)]


@pytest.mark.parametrize("room", [4095, 4096, 5000, 0x7FFF, 0xFFFFFFFF])
def test_more_room_than_a_page_leaves_none_for_frames(room: int) -> None:
    """They are dropped, and counted; whoever asked for that can ask for less."""
    with taker_by_hand() as (host, one, front):
        wants(front, room)
        one.device.transmit(one.frame(ALL, 100))
        host.run()
        assert front.received() == []
        assert front.guest.vif.counters.tx_dropped == 1
        wants(front, 4000)
        sent = one.frame(ALL, 1000)
        one.device.transmit(sent)
        host.run()
        data, _, slots = taken(front)
        assert (data, len(slots)) == (sent, 11)


def test_a_frame_that_would_take_too_many_slots_is_dropped() -> None:
    with taker_by_hand() as (host, one, front):
        wants(front, 4000)
        one.device.transmit(one.frame(ALL, 18 * 96))
        one.device.transmit(one.frame(ALL, 18 * 96 + 1))
        host.run()
        assert len(taken(front)[2]) == 18
        assert front.guest.vif.counters.tx_dropped == 1
