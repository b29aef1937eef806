"""Large packets in the old form: behind a slot of their own with the length of a segment (NETRXF_gso_prefix)."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from net_world import Host, Station
from test_net_gso import ALL, SIZE, V4, V6, WHOLE, Large, Received, taker_by_hand
from test_net_host import Lab

from guest_kernel.net.offload import NONE
from guest_kernel.net.offload import gso as offload
from hypervisor.abi.io import netif

RX_MORE, RX_EXTRA, PREFIX = netif.NETRXF_more_data, netif.NETRXF_extra_info, netif.NETRXF_gso_prefix
CSUM = netif.NETRXF_csum_blank | netif.NETRXF_data_validated


def old(guest: Station) -> Station:
    """Have a guest take large packets in the old form only."""
    guest.driver.options["gso_prefix"] = 1
    return guest


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_large_packet_stays_whole_for_a_guest_of_the_old_kind(version: int, mapped: bool) -> None:
    host = Host()
    one, two = host.guests
    old(two)
    host.up()
    assert two.store["frontend/feature-gso-tcpv4-prefix"] == two.store["frontend/feature-gso-tcpv6-prefix"] == "1"
    assert "frontend/feature-gso-tcpv4" not in two.store
    if mapped:
        one.device.transmit(one.frame(two.mac))
        two.device.transmit(two.frame(one.mac))
        host.run()
        one.warm_up(two)
        two.received.clear()
        two.offloads.clear()
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
    assert two.device.counters.rx_dropped == 0
    # What it sends, it sends with extra info: that is the only form there is.
    two.device.transmit(large.frame(one.mac, two.mac), how)
    host.run()
    assert one.received[-1] == large.frame(one.mac, two.mac)
    assert one.offloads[-1] == how
    host.down()


def test_what_is_on_the_rx_ring() -> None:
    """The slot before the packet has the length of a segment, the number of buffers, and a buffer without data."""
    with taker_by_hand("feature-gso-tcpv4-prefix", "feature-gso-tcpv6-prefix", "feature-ipv6-csum-offload") as (
        host,
        one,
        front,
    ):
        for version in (4, 6):
            large = Large(bytes(range(256)) * 40, version=version)
            sent = large.frame(ALL, one.mac)
            first = front.rx.rsp_cons
            one.device.transmit(sent, offload(1000, large.offload_type))
            host.run()
            prefix, head, *rest = front.received()
            assert prefix[1:] == (1000, PREFIX | RX_MORE, 4)
            assert head[1:] == (0, CSUM | RX_MORE, 4096)
            assert [answer[2] for answer in rest] == [RX_MORE, 0]
            refs = front.free[first : front.rx.rsp_cons]
            assert [answer[0] for answer in (prefix, head, *rest)] == [ref & 0xFFFF for ref in refs]
            data = b"".join(
                bytes(front.buffers[ref].view[: answer[3]]) for ref, answer in zip(refs[1:], (head, *rest), strict=True)
            )
            assert data == sent


def test_who_takes_both_forms_gets_extra_info_and_who_takes_one_kind_gets_segments_of_the_other() -> None:
    with taker_by_hand("feature-gso-tcpv4-prefix", "feature-gso-tcpv4", "feature-ipv6-csum-offload") as (
        host,
        one,
        front,
    ):
        large = Large(bytes(range(256)) * 20)
        one.device.transmit(large.frame(ALL, one.mac), offload(1000))
        host.run()
        assert front.received()[0][2] == CSUM | RX_MORE | RX_EXTRA
        one.device.transmit(attrs.evolve(large, version=6).frame(ALL, one.mac), offload(1000, V6))
        host.run()
        answers = front.received()
        assert len(answers) == 6
        assert {flags for _, _, flags, _ in answers} == {netif.NETRXF_data_validated}


def test_it_waits_for_a_buffer_more() -> None:
    """With buffers for the data alone the packet waits; those that come for others do not overtake it."""
    with taker_by_hand("feature-gso-tcpv4-prefix", rx=3) as (host, one, front):
        large = Large(bytes(9000))
        one.device.transmit(large.frame(ALL, one.mac), offload(1000))
        host.run()
        assert front.received() == []
        front.free.append(front.buffer())
        front.post(front.free[-1] & 0xFFFF, front.free[-1])
        front.show(front.rx)
        host.run()
        assert [answer[2] for answer in front.received()] == [PREFIX | RX_MORE, CSUM | RX_MORE, RX_MORE, 0]


class Taken(Received):
    """A backend by hand, and a guest that takes the old form from it."""

    def __init__(self) -> None:
        super().__init__()
        self.guest.device.queues[0].rx.reassembly.takes_prefix = True

    def prefix(self, number: int, size: int, flags: int = PREFIX | RX_MORE, slots: int = 2) -> None:
        self.back.answer_rx(self.buffers[number][0], size, flags, slots)

    def end(self) -> None:
        """The device lives, and each buffer has come back."""
        self.back.push()
        assert not self.guest.device.broken
        used = self.back.rx.rsp_prod_pvt
        assert [ident for ident, _, _ in self.back.rx_requests()] == [ident for ident, _, _ in self.buffers[:used]]
        self.back.down()


@pytest.mark.parametrize("at_once", [True, False])
def test_prefixes_from_a_backend(at_once: bool) -> None:
    scene = Taken()
    frames = [Large(bytes(range(200)), version=version).frame() for version in (4, 6)]
    place = 0
    for frame, flags in zip(frames, (CSUM, netif.NETRXF_data_validated), strict=True):
        scene.prefix(place, 77)
        if not at_once:
            scene.back.push()
        scene.back.answer_rx(scene.fill(place + 1, frame[:100]), 0, RX_MORE | flags, 100)
        if not at_once:
            scene.back.push()
        scene.back.answer_rx(scene.fill(place + 2, frame[100:]), 0, 0, len(frame) - 100)
        place += 3
    scene.back.answer_rx(scene.fill(place, b"d" * 70), 0, 0, 70)
    scene.back.push()
    assert scene.guest.received == [*frames, b"d" * 70]
    assert scene.guest.offloads == [offload(77, V4), offload(77, V6), NONE]
    scene.end()


@pytest.mark.parametrize(
    ("sizes", "flags"),
    [
        ([0], PREFIX | RX_MORE),
        ([9, 9], PREFIX | RX_MORE),
        ([9], PREFIX),
        ([9], PREFIX | RX_MORE | CSUM),
    ],
    ids=["no length", "two of them", "nothing behind", "flags of a frame"],
)
def test_prefixes_that_are_none(sizes: list[int], flags: int) -> None:
    """That packet is dropped, and nothing else; flags that belong to the data are not looked at."""
    scene = Taken()
    for number, size in enumerate(sizes):
        scene.prefix(number, size, flags)
    frame = Large(bytes(100)).frame()
    scene.back.answer_rx(scene.fill(len(sizes), frame), 0, 0, len(frame))
    scene.back.answer_rx(scene.fill(len(sizes) + 1, b"b" * 60), 0, 0, 60)
    scene.back.push()
    bad = flags & ~CSUM != PREFIX | RX_MORE or sizes != [9]
    alone = [] if flags & RX_MORE and bad else [frame]
    assert scene.guest.received == [*alone, b"b" * 60]
    assert scene.guest.device.counters.rx_dropped == bad
    scene.end()


def test_a_prefix_before_what_is_no_packet_of_tcp() -> None:
    scene = Taken()
    scene.prefix(0, 9)
    scene.back.answer_rx(scene.fill(1, b"a" * 100), 0, 0, 100)
    scene.prefix(2, 9)
    scene.back.answer_rx(scene.fill(3, Large(bytes(100)).frame()), 0, RX_EXTRA, 154)
    scene.extra(netif.XEN_NETIF_EXTRA_TYPE_GSO, 9, V4)  # said twice
    scene.back.push()
    assert scene.guest.received == []
    assert scene.guest.device.counters.rx_dropped == 2
    scene.end()


@pytest.mark.parametrize("flags", [PREFIX, PREFIX | RX_MORE])
def test_a_prefix_that_was_not_asked_for(flags: int) -> None:
    scene = Received()
    frame = Large(bytes(100)).frame()
    scene.back.answer_rx(scene.buffers[0][0], 9, flags, 2)
    scene.back.answer_rx(scene.fill(1, frame), 0, 0, len(frame))
    scene.back.push()
    assert scene.guest.received == ([] if flags & RX_MORE else [frame])
    assert scene.guest.device.counters.rx_dropped == 1
    assert not scene.guest.device.broken
    scene.back.down()


def test_on_a_whole_host(tmp_path: Path) -> None:
    """From guest to guest through real hypercalls; the parameter is on their command line."""
    lab = Lab(tmp_path)
    sender = """
        import sys
        sys.path.insert(0, HERE)
        from test_net_gso import Large, offload
        await self.sleep(0.05)
        for size in (100, 9000, 65481):
            frame = Large((bytes(range(256)) * 300)[:size]).frame(bytes([0, 0x16, 0x3e, 0, 0, 2]), self.device.mac)
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
        self.print("seen", seen, self.device.gso_prefix)
    """
    result = lab.run(sender, receiver, extra="xen_netfront.gso_prefix=1")
    assert result.exit_code == 0, lab.text
    assert "seen [(154, 0), (9054, 1448), (65535, 1448)] True" in lab.text
