"""The network backend against frontends that lie: what each lie is answered with, and that nothing is lost by it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_raw import RawFront
from net_world import Host

from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32

OKAY, ERROR, NULL = netif.NETIF_RSP_OKAY, netif.NETIF_RSP_ERROR, netif.NETIF_RSP_NULL
MORE, EXTRA = netif.NETTXF_more_data, netif.NETTXF_extra_info
BROADCAST = b"\xff" * 6


class Scene:
    """A hostile guest, and an honest one that hears what the bridge floods."""

    def __init__(self, *, control: bool = False, rx: int = 64) -> None:
        self.host = Host()
        self.evil, self.good = self.host.guests
        self.good.connect(control=False)
        self.front = RawFront(self.evil, control=control, rx=rx)

    @property
    def fatals(self) -> list[str]:
        return self.evil.back.fatals

    def check(self) -> None:
        """The vif still works, and nothing is lost."""
        assert not self.fatals
        before = len(self.good.received)
        frame = self.evil.frame(BROADCAST, 100)
        self.front.put(self.front.grant(frame), 0, 0, 9, 100)
        assert self.front.push()[-1] == (9, OKAY)
        assert self.good.received[before:] == [frame]
        self.down()

    def down(self) -> None:
        self.front.down()
        self.good.close()
        self.host.check_no_leaks()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("offset", "flags", "size", "status"),
    [
        (0, 0, 14, OKAY),
        (0, 0, 13, ERROR),
        (0, 0, 0, ERROR),
        (0, 0, 4096, OKAY),
        (0, 0, 4097, ERROR),
        (1, 0, 4095, OKAY),
        (1, 0, 4096, ERROR),
        (4082, 0, 14, OKAY),
        (4083, 0, 14, ERROR),
        (4096, 0, 14, ERROR),
        (0xFFFF, 0, 14, ERROR),
        (0xFFFF, 0, 0xFFFF, ERROR),
        (0, 0xFFF0, 60, OKAY),
        (0, 3, 60, OKAY),
    ],
)
def test_one_slot_at_its_limits(mapped: bool, offset: int, flags: int, size: int, status: int) -> None:
    scene = Scene(control=True)
    front = scene.front
    ref = front.grant((BROADCAST + b"\0\x16\x3e\0\0\1" + b"\x88\xb5") * 292)
    if mapped:
        _, lists = front.grefs((ref, 1))
        assert front.ask(netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, 0, lists, 1) == (0, 0)
    front.put(ref, offset, flags, 0xFFFF, size)
    assert front.push() == [(0xFFFF, status)]
    assert [len(frame) for frame in scene.good.received] == ([size] if status == OKAY else [])
    scene.check()


@pytest.mark.parametrize("ref", [0, 1, 7, 5000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_bogus_reference_is_an_error(ref: int) -> None:
    scene = Scene()
    scene.front.put(ref, 0, 0, 3, 60)
    assert scene.front.push() == [(3, ERROR)]
    assert not scene.good.received
    scene.check()


def test_a_bad_frame_among_good_ones_costs_only_itself() -> None:
    for place in range(5):
        scene = Scene()
        frames = [scene.evil.frame(BROADCAST, 60, fill=n) for n in range(5)]
        for number, frame in enumerate(frames):
            ref = scene.front.grant(frame) if number != place else 99999
            scene.front.put(ref, 0, 0, number, 60)
        assert scene.front.push() == [(n, ERROR if n == place else OKAY) for n in range(5)]
        assert scene.good.received == frames[:place] + frames[place + 1 :]
        scene.check()


@pytest.mark.parametrize("ahead", [257, 1000, 1 << 31, MASK32])
@pytest.mark.parametrize("ring", ["tx", "rx"])
def test_a_ring_overflow_is_fatal_once(ring: str, ahead: int) -> None:
    """XSA-39: no loop over garbage, one close, and never looked at again."""
    scene = Scene()
    front = scene.front
    if ring == "tx":
        front.tx.shared[0] = front.tx.req_prod_pvt + ahead & MASK32
    else:
        front.rx.shared[0] = ahead
        scene.good.device.transmit(scene.good.frame(BROADCAST))
    before = scene.host.world.steps
    for _ in range(5):
        front.kernel.events.notify(front.port)
        scene.host.run()
    assert len(scene.fatals) == 1
    assert "overflow" in scene.fatals[0]
    assert scene.host.world.steps - before < 100
    scene.good.device.transmit(scene.good.frame(BROADCAST))
    scene.host.run()
    scene.down()


def put_slots(front: RawFront, frame: bytes, cuts: list[int], first_flags: int = 0) -> int:
    """Put a frame in slots that end at `cuts`; returns the number of slots."""
    starts = [0, *cuts]
    ends = [*cuts, len(frame)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        more = MORE if number < len(cuts) else 0
        ref = front.grant(frame[start:end]) if end > start else 0xDEAD
        flags = more | (first_flags if not number else 0)
        front.put(ref, 0 if end > start else 0xFFFF, flags, number, end - start if number else len(frame))
    return len(ends)


@pytest.mark.parametrize("at", range(61))
def test_headers_split_over_slots(at: int) -> None:
    """XSA-423: wherever the frame is cut, the bridge sees a whole header."""
    scene = Scene()
    frame = scene.evil.frame(BROADCAST, 60, fill=77)
    slots = put_slots(scene.front, frame, [at])
    assert scene.front.push() == [(n, OKAY) for n in range(slots)]
    assert scene.good.received == [frame]
    scene.check()


def test_eighteen_slots_of_one_byte() -> None:
    """XSA-432: as many slots as may be, and less data than headers would have."""
    scene = Scene()
    frame = scene.evil.frame(BROADCAST, 18)
    assert put_slots(scene.front, frame, list(range(1, 18))) == 18
    assert scene.front.push() == [(n, OKAY) for n in range(18)]
    assert scene.good.received == [frame]
    scene.check()


def test_slots_without_data_are_not_looked_at() -> None:
    """XSA-448: their references may be anything."""
    scene = Scene()
    frame = scene.evil.frame(BROADCAST, 100)
    slots = put_slots(scene.front, frame, [0, 50, 50, 50, 100, 100])
    assert scene.front.push() == [(n, OKAY) for n in range(slots)]
    assert scene.good.received == [frame]
    scene.check()


@pytest.mark.parametrize("slots", [19, 20])
def test_too_many_slots(slots: int) -> None:
    scene = Scene()
    put_slots(scene.front, scene.evil.frame(BROADCAST, 100), list(range(1, slots)))
    assert scene.front.push() == [(n, ERROR) for n in range(slots)]
    assert not scene.good.received
    scene.check()


@pytest.mark.parametrize("before", [0, 1, 3])
def test_an_attack_by_slots_is_fatal(before: int) -> None:
    scene = Scene()
    good = scene.evil.frame(BROADCAST, 60)
    for number in range(before):
        scene.front.put(scene.front.grant(good), 0, 0, 100 + number, 60)
    put_slots(scene.front, scene.evil.frame(BROADCAST, 100), list(range(1, 21)))
    assert scene.front.push() == [(100 + n, OKAY) for n in range(before)]
    assert scene.good.received == [good] * before
    assert len(scene.fatals) == 1
    scene.down()


def test_the_end_of_a_frame_may_come_later() -> None:
    scene = Scene()
    front = scene.front
    frame = scene.evil.frame(BROADCAST, 90)
    pieces = [front.grant(frame[n : n + 30]) for n in (0, 30, 60)]
    front.put(pieces[0], 0, MORE, 0, 90)
    assert front.push() == []
    front.put(pieces[1], 0, MORE, 1, 30)
    assert front.push() == []
    front.put(pieces[2], 0, 0, 2, 30)
    assert front.push() == [(0, OKAY), (1, OKAY), (2, OKAY)]
    assert scene.good.received == [frame]
    front.put(pieces[0], 0, MORE, 0, 90)
    assert front.push() == []
    scene.down()


@pytest.mark.parametrize("sizes", [(60, 61), (60, 30, 31), (100, 0xFFFF), (13, 5), (0, 0), (0, 1)])
def test_sizes_that_do_not_add_up(sizes: tuple[int, ...]) -> None:
    scene = Scene()
    ref = scene.front.grant(scene.evil.frame(BROADCAST, 60))
    for number, size in enumerate(sizes):
        scene.front.put(ref, 0, MORE if number + 1 < len(sizes) else 0, number, size)
    assert scene.front.push() == [(n, ERROR) for n in range(len(sizes))]
    assert not scene.good.received
    scene.check()


def test_extra_info_that_no_frame_has() -> None:
    """Types that mean nothing here or nothing at all, one twice, and segmentation of what is no TCP packet."""
    scene = Scene()
    front = scene.front
    ref = front.grant(scene.evil.frame(BROADCAST, 60))
    kinds = (netif.XEN_NETIF_EXTRA_TYPE_NONE, netif.XEN_NETIF_EXTRA_TYPE_GSO, netif.XEN_NETIF_EXTRA_TYPE_MAX, 0xFF)
    for kind in (*kinds, netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD):
        for extras in (1, 2, 4):
            if kind == netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD:
                continue
            front.put(ref, 0, EXTRA, 5, 60)
            for number in range(extras):
                more = netif.XEN_NETIF_EXTRA_FLAG_MORE if number + 1 < extras else 0
                front.put(kind | more << 8 | 1000 << 16, 1, 0, 0, 0)
            assert front.push() == [(5, ERROR)] + [(0, NULL)] * extras
        front.put(ref, 0, EXTRA | MORE, 5, 60)
        front.put(kind | 1000 << 16, 1, 0, 0, 0)
        front.put(ref, 0, 0, 6, 20)
        assert front.push() == [(5, ERROR), (0, NULL), (6, ERROR)]
    assert not scene.good.received
    scene.check()


def test_endless_extra_info_is_fatal() -> None:
    scene = Scene()
    scene.front.put(scene.front.grant(), 0, EXTRA, 5, 60)
    for _ in range(10):
        scene.front.put(1 | netif.XEN_NETIF_EXTRA_FLAG_MORE << 8, 0, 0, 0, 0)
    assert scene.front.push() == []
    assert len(scene.fatals) == 1
    scene.down()


def test_a_guest_that_posts_no_buffers_costs_a_bound() -> None:
    """XSA-392."""
    scene = Scene(rx=0)
    good, host = scene.good, scene.host
    vif = scene.evil.back.data.vif.queues[0]
    for _ in range(5):
        for _ in range(40):
            good.device.transmit(good.frame(BROADCAST, 9000))
        for _ in range(40):
            good.device.transmit(good.frame(BROADCAST, 60))
        host.run()
    assert vif.vif.counters.tx_dropped > 0
    assert host.driver.pool.out <= 256
    assert vif.vif.counters.tx_dropped + len(vif._queue) == 400
    free = good.kernel.mm.used
    good.device.transmit(good.frame(BROADCAST, 60))
    host.run()
    assert good.kernel.mm.used == free
    # It comes back to its senses: what waits is delivered.
    for ident in range(200):
        scene.front.post(ident, scene.front.buffer())
    scene.front.show(scene.front.rx)
    host.run()
    assert scene.front.received()[0][3] == 4096
    scene.check()


def test_bad_receive_buffers_are_answered_with_errors() -> None:
    scene = Scene(rx=0)
    front, good = scene.front, scene.good
    readonly = front.grant(readonly=True)
    for ident, ref in enumerate([0, 0xFFFFFFFF, readonly, 12345]):
        front.post(ident, ref)
    front.post(0xFFFF, front.buffer())
    front.show(front.rx)
    for _ in range(5):
        good.device.transmit(good.frame(BROADCAST, 60))
    scene.host.run()
    assert [(ident, status) for ident, _, _, status in front.received()] == [
        (0, ERROR), (1, ERROR), (2, ERROR), (3, ERROR), (0xFFFF, 60),
    ]  # fmt: skip
    scene.check()


def test_one_bad_buffer_of_a_long_frame() -> None:
    scene = Scene(rx=0)
    front, good = scene.front, scene.good
    for ident, ref in enumerate([front.buffer(), 4242, front.buffer()]):
        front.post(ident, ref)
    front.show(front.rx)
    good.device.transmit(good.frame(BROADCAST, 9000))
    scene.host.run()
    assert [(status, flags & 4) for _, _, flags, status in front.received()] == [(4096, 4), (ERROR, 4), (808, 0)]
    scene.check()


class Shifting:
    """A view of words that change each time after they were read (XSA-155)."""

    def __init__(self, words: memoryview) -> None:
        self.words = words
        self.itemsize = words.itemsize
        self.reads: list[int] = []

    def __getitem__(self, key: Any) -> Any:
        value = self.words[key]
        if not isinstance(key, slice):
            key = slice(key, key + 1)
            copy: Any = value
        else:
            copy = memoryview(bytes(value)).cast(self.words.format)  # type: ignore[call-overload]
        places = range(*key.indices(len(self.words)))
        self.reads += places
        for place in places:
            self.words[place] ^= 0xFFFFFFFF
        return copy

    def __setitem__(self, key: Any, value: Any) -> None:
        self.words[key] = value

    def release(self) -> None:
        self.words.release()


@pytest.mark.parametrize("mapped", [False, True])
def test_requests_are_read_once(mapped: bool) -> None:
    scene = Scene(control=True)
    front = scene.front
    vif = scene.evil.back.data.vif.queues[0]
    frames = [scene.evil.frame(BROADCAST, 60 + n, fill=n) for n in range(20)]
    refs = [front.grant(frame) for frame in frames]
    if mapped:
        _, lists = front.grefs(*((ref, 1) for ref in refs))
        assert front.ask(netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, 0, lists, len(refs)) == (0, 0)
    shifting = vif.tx_words = Shifting(vif.tx_words)
    for number, (ref, frame) in enumerate(zip(refs, frames, strict=True)):
        front.put(ref, 0, 0, number, len(frame))
    put_slots(front, scene.evil.frame(BROADCAST, 90), [30, 60])
    assert front.push() == [(n, OKAY) for n in (*range(20), 0, 1, 2)]
    assert scene.good.received == [*frames, scene.evil.frame(BROADCAST, 90)]
    assert len(shifting.reads) == len(set(shifting.reads)) == 23 * 3
    vif.tx_words = shifting.words
    scene.check()


def test_the_addresses_that_were_looked_at_decide() -> None:
    """A page that stays mapped can change under the copy: the frame still goes where its first reading said."""
    host = Host(guests=3).up()
    a, b, c = host.guests
    a.warm_up(b)
    a.warm_up(c)
    vif = a.vif.queues[0]
    real = vif._express._find_lanes

    def find(bridge: Any, addresses: Any, lanes: Any) -> Any:
        lane = real(bridge, addresses, lanes)
        for ref, view in vif.vif.mapped.items():
            if ref not in vif.vif.writable:
                a.device.queues[0].tx._views[a.device.queues[0].tx.refs.index(ref)][:6] = c.mac
                assert bytes(view[:6]) == c.mac
        return lane

    vif._express._find_lanes = find
    b.received.clear()
    c.received.clear()
    assert a.device.transmit_many([a.frame(b.mac, 60)] * 2)
    host.run()
    assert [frame[:6] for frame in b.received] == [c.mac]
    assert [frame[:6] for frame in c.received] == [c.mac]
    host.down()


words = st.tuples(
    st.one_of(st.integers(0, 40), st.integers(0, MASK32)),
    st.one_of(st.sampled_from([0, 1, 4082, 4095, 4096]), st.integers(0, 0xFFFF)),
    st.one_of(st.sampled_from([0, 0, 1, 3, 4, 8, 12]), st.integers(0, 0xFFFF)),
    st.integers(0, 0xFFFF),
    st.one_of(st.sampled_from([0, 13, 14, 60, 4096, 0xFFFF]), st.integers(0, 0xFFFF)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, st.booleans()), max_size=60), st.booleans())
def test_any_requests_at_all(requests: list[tuple[Any, bool]], control: bool) -> None:
    """Whatever is in the ring: each slot gets at most one answer, the host goes on, and nothing is lost."""
    scene = Scene(control=control)
    front = scene.front
    refs = [front.grant(scene.evil.frame(BROADCAST, 4096)) for _ in range(20)]
    if control:
        _, lists = front.grefs(*((ref, 1) for ref in refs[:10]))
        front.ask(netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, 0, lists, 10)
    put = answered = 0
    for (ref, offset, flags, ident, size), push in requests:
        front.put(refs[ref] if ref < 20 else ref, offset, flags, ident, size)
        put += 1
        if push:
            answered += len(front.push())
    answered += len(front.push())
    assert answered <= put
    if not scene.fatals:
        # All are answered but those of a last frame that has no end.
        assert put - answered <= 25
    other = scene.host.guests[1]
    other.device.transmit(other.frame(BROADCAST))
    scene.host.run()
    scene.down()
