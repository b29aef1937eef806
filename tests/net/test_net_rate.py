"""Rate limit and MTU of a vif."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from net_world import Host
from test_net_host import Lab

from backends.net import NetBack
from backends.net.credit import LARGEST_BURST, Credit, parse_rate
from guest_kernel.net.device import parse_mtu
from guest_kernel.xenbus.driver import XenbusDevice

MS = 1_000_000


def limited(rate: str, **options: bool) -> Host:
    host = Host()
    host.guests[0].store["backend/rate"] = rate
    return host.up(**options)


@given(
    st.integers(1, 200_000),
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(14, 65535), st.integers(0, 500)), max_size=60),
)
def test_credit(nbytes: int, interval: int, frames: list[tuple[int, int]]) -> None:
    """No more passes than the intervals' bytes; each frame does at last, after as many intervals as it needs."""
    credit = Credit(nbytes, interval, 0)
    now = paid = 0
    for size, wait in frames:
        now += wait
        waits = 0
        while not credit.take(size, now):
            assert credit.next > now
            assert 0 <= credit.left < size
            now = credit.next
            waits += 1
            assert waits <= size // nbytes + 1
        paid += size
        assert 0 <= credit.left <= max(LARGEST_BURST, nbytes)
        # As much as one interval has at the start, and for each whole one that went by.
        assert paid <= nbytes * (now // interval + 1)


@pytest.mark.parametrize("control", [False, True])
def test_frames_wait_for_credit_and_none_is_lost(control: bool) -> None:
    host = limited("3000,10000", control=control)
    one, two = host.guests
    frames = [one.frame(two.mac, 1000, number) for number in range(10)]
    assert one.device.transmit_many(frames) == 10
    host.world.run(until=0)
    assert two.received == frames[:3]
    host.world.run(until=10 * MS)
    assert two.received == frames[:6]
    host.world.run(until=29 * MS)
    assert two.received == frames[:9]
    host.run()
    assert two.received == frames
    assert host.world.now == 30 * MS
    assert one.vif.counters.rx_packets == 10
    assert one.vif.counters.rx_dropped == 0
    host.down()


def test_the_fast_way_knows_the_limit() -> None:
    host = Host().up()
    one, two = host.guests
    one.warm_up(two)
    one.vif.credit = Credit(3000, 10 * MS, host.world.now)
    start = host.world.now
    frames = [one.frame(two.mac, 1000, number) for number in range(10)]
    assert one.device.transmit_many(frames) == 10
    host.world.run(until=start)
    assert two.received == frames[:3]
    host.run()
    assert two.received == frames
    host.down()


def test_a_frame_of_several_intervals() -> None:
    host = limited("1000,1000")
    one, two = host.guests
    frames = [one.frame(two.mac, size, size) for size in (60000, 100, 100)]
    for frame in frames:
        assert one.device.transmit(frame)
    host.world.run(until=58 * MS)
    assert not two.received
    host.world.run(until=59 * MS)
    assert two.received == frames[:1]
    host.run()
    assert two.received == frames
    assert host.world.now == 60 * MS
    host.down()


def test_a_storm_of_events_gains_nothing() -> None:
    host = limited("1000,10000")
    one, two = host.guests
    one.device.transmit_many([one.frame(two.mac, 1000, number) for number in range(4)])
    host.world.run(until=0)
    timers = len(host.world.timers)
    for _ in range(100):
        one.kernel.events.notify(one.device.queues[0].tx.port)
        host.world.run(until=0)
    assert len(two.received) == 1
    assert len(host.world.timers) == timers == 1
    # Others are served meanwhile.
    two.device.transmit(two.frame(one.mac))
    host.world.run(until=0)
    assert len(one.received) == 1
    host.run()
    assert len(two.received) == 4
    host.down()


def test_a_guest_that_goes_while_it_waits() -> None:
    host = limited("1000,10000")
    one, two = host.guests
    one.device.transmit_many([one.frame(two.mac, 1000, number) for number in range(4)])
    host.world.run(until=0)
    assert host.world.timers
    one.close()
    assert not host.world.timers
    two.close()
    host.check_no_leaks()


@pytest.mark.parametrize("text", ["", "1", "1,", ",1", "0,1", "1,0", "-1,1", "1,1,1", "a,b", "1 ,2", "\u0661,1"])
def test_rates_that_say_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="BYTES,MICROSECONDS"):
        parse_rate(text, 0)


def test_rates() -> None:
    credit = parse_rate("62500,50000", 7)
    assert credit is not None
    assert (credit.nbytes, credit.interval, credit.next) == (62500, 50 * MS, 7 + 50 * MS)
    assert parse_rate(None, 0) is None


@pytest.mark.parametrize("text", ["", "67", "65536", "-100", "1e3", "1500.0", "999999"])
def test_mtus_that_say_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="mtu"):
        parse_mtu(text)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("mtu", [68, 1000, 4078, 4079, 9000])
def test_frames_beyond_the_mtu_do_not_get_in(warm: bool, mtu: int) -> None:
    host = Host()
    one, two = host.guests
    two.store["backend/mtu"] = two.store["frontend/mtu"] = str(mtu)
    host.up()
    if warm:
        one.device.transmit_many([one.frame(two.mac, 60)] * 100)
        two.device.transmit_many([two.frame(one.mac, 60)] * 100)
        host.run()
        two.received.clear()
    assert (one.device.mtu, two.device.mtu) == (1500, mtu)
    largest = mtu + 14 + 4
    frames = [one.frame(two.mac, size) for size in (largest - 1, largest, largest + 1, largest + 2)]
    for frame in frames:
        one.device.transmit(frame)
    host.run()
    assert two.received == frames[:2]
    assert two.vif.counters.tx_dropped == 2
    # What it sends itself is its own affair.
    two.device.transmit(two.frame(one.mac, largest + 100))
    host.run()
    assert one.received[-1] == two.frame(one.mac, largest + 100)
    host.down()


def test_a_configuration_with_both(tmp_path: Path) -> None:
    """Of 100 frames of 1000 bytes at 100 KB/s, 5 go in each of 20 intervals; the first has begun when they come."""
    lab = Lab(tmp_path)
    sender = """
        self.print("mtu", self.device.mtu)
        to = bytes([0, 0x16, 0x3e, 0, 0, 2])
        for number in range(100):
            await self.device.wait_for_room()
            self.device.transmit((to + self.device.mac + KIND).ljust(1000, b"x"))
        await self.sleep(2)
    """
    receiver = """
        times = []
        self.device.received = lambda frame, validated: times.append(self.kernel.monotonic_ns())
        while len(times) < 100:
            await self.sleep(0.01)
        self.print("took", (times[-1] - times[0]) // 10_000_000, "of 10 ms")
    """
    result = lab.run(sender, receiver, vifs=["xenbr0,rate=100KB/s,mtu=1200", "xenbr0"])
    assert result.exit_code == 0, lab.text
    assert "mtu 1200" in lab.text
    took = int(lab.text.partition("took ")[2].split()[0])
    assert 90 <= took <= 95


def test_a_rate_that_changes_while_connected() -> None:
    """Higher, to none, and back: what waits is looked at again at once; and a rate that is none changes nothing."""
    host = Host()
    one, two = host.guests
    one.store["backend/rate"] = "1000,1000000"
    one.back.hook("probe")
    host.up()

    def change(text: str | None) -> None:
        if text is None:
            one.store.pop("backend/rate")
        else:
            one.store["backend/rate"] = text
        one.back.watches["rate"]()
        host.world.run(until=host.world.now)

    frames = [one.frame(two.mac, 1000, number) for number in range(10)]
    assert one.device.transmit_many(frames) == 10
    host.world.run(until=0)
    assert two.received == frames[:1]
    change("1000,1000000")
    assert two.received == frames[:1], "nothing has changed"
    change("3000,1000000")
    assert two.received == frames[:4]
    change("quick")
    assert two.received == frames[:4]
    ((message, number),) = one.back.errors
    assert "'quick'" in message
    assert number == errno.EINVAL
    host.world.run(until=1000 * MS)
    assert two.received == frames[:7]
    change(None)
    assert two.received == frames
    assert host.world.now == 1000 * MS
    change("1000,1000")
    one.device.transmit_many(frames)
    host.run()
    assert two.received == frames * 2
    assert host.world.now == 1009 * MS
    host.down()
    one.back.watches["rate"]()
    host.run()


def test_a_rate_changed_on_a_whole_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dom0 writes the node, as a toolstack does there; the watch is xenstored's."""
    connect = NetBack.connect

    async def connect_and_change(self: NetBack, device: XenbusDevice) -> None:
        async def change() -> None:
            await self.kernel.sleep(500 * MS)
            await device.write(rate="1000000,1000")

        await connect(self, device)
        if device.id == "0" and device.otherend_id == 1:
            self.kernel.spawn(change(), "change")

    monkeypatch.setattr(NetBack, "connect", connect_and_change)
    sender = """
        for number in range(60):
            await self.device.wait_for_room()
            self.device.transmit((b"\\xff" * 6 + self.device.mac + KIND).ljust(1000, b"x"))
        await self.sleep(1)
    """
    receiver = """
        seen = []
        self.device.received = lambda frame, validated: seen.append(frame)
        await self.sleep(0.45)
        self.print("before", 5 <= len(seen) <= 20)
        await self.sleep(0.3)
        self.print("after", len(seen))
    """
    lab = Lab(tmp_path)
    result = lab.run(sender, receiver, vifs=["xenbr0,rate=10KB/s@100ms", "xenbr0"])
    assert result.exit_code == 0, lab.text
    assert "before True" in lab.text
    assert "after 60" in lab.text
