"""The network frontend against backends that lie: it takes no harm, and gives up rather than go on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_raw import RawBack
from net_world import Host

from guest_kernel.net.offload import BLANK
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32

MORE, EXTRA = netif.NETRXF_more_data, netif.NETRXF_extra_info


class Scene:
    def __init__(self, *, control: bool = False) -> None:
        self.host = Host(guests=1)
        self.guest = self.host.guests[0]
        self.back = RawBack(self.guest, control=control)
        self.device = self.guest.device
        self.buffers = self.back.rx_requests()

    def fill(self, number: int, data: bytes, offset: int = 0) -> int:
        """Put data into the guest's buffer number `number`; returns its id."""
        ident, _, ref = self.buffers[number]
        self.back.page(ref)[offset : offset + len(data)] = data
        return ident

    @property
    def gave_up(self) -> bool:
        """Whether the device gave up; then exactly one fatal error was reported, and nothing more is sent."""
        if self.device.broken:
            assert len(self.guest.front.fatals) == 1
            assert not self.device.transmit(bytes(60))
        else:
            assert not self.guest.front.fatals
        return bool(self.device.broken)


def test_an_honest_exchange() -> None:
    scene = Scene()
    assert scene.device.transmit(b"x" * 60, BLANK)
    ((ref, offset, flags, ident, size),) = scene.back.tx_requests()
    assert bytes(scene.back.page(ref)[offset : offset + size]) == b"x" * 60
    assert flags == 3
    scene.back.answer_tx(ident, 0)
    scene.back.answer_rx(scene.fill(0, b"y" * 60, 100), 100, 0, 60)
    scene.back.push()
    assert scene.guest.received == [b"y" * 60]
    assert not scene.gave_up
    scene.back.down()


def test_answers_out_of_order() -> None:
    scene = Scene()
    sent = [bytes([n]) * 60 for n in range(20)]
    assert scene.device.transmit_many(sent) == 20
    requests = scene.back.tx_requests()
    order = list(range(20))
    scene.host.world.rng.shuffle(order)
    for number in order[:7]:
        scene.back.answer_tx(requests[number][3], 0)
    scene.back.push()
    assert scene.device.transmit_many(sent[:5]) == 5
    more = scene.back.tx_requests()
    live = {request[3] for request in [*more, *(requests[n] for n in order[7:])]}
    assert len(live) == 18, "a buffer is used twice"
    for number in order[7:]:
        scene.back.answer_tx(requests[number][3], -1)
    for request in reversed(more):
        scene.back.answer_tx(request[3], 0)
    for number in order:
        scene.back.answer_rx(scene.fill(number, bytes([number]) * 20), 0, 0, 20)
    scene.back.push()
    assert scene.guest.received == [bytes([n]) * 20 for n in order]
    assert scene.device.counters.tx_dropped == 13
    assert scene.device.tx_room() == 256
    assert sorted(scene.device.queues[0].tx._free) == list(range(len(scene.device.queues[0].tx.refs)))
    assert not scene.gave_up
    posted = scene.back.rx_requests()
    assert [ident for ident, _, _ in posted] == [scene.buffers[n][0] for n in order]
    scene.back.down()


@pytest.mark.parametrize("idents", [[5], [0, 0], [0xFFFF], [1], [256]])
def test_answers_to_frames_that_were_not_sent(idents: list[int]) -> None:
    scene = Scene()
    assert scene.device.transmit_many([bytes(60)] * 2) == 2
    out = {request[3] for request in scene.back.tx_requests()}
    assert out == {0, 1}
    for ident in idents:
        scene.back.answer_tx(ident, 0)
    scene.back.push()
    assert scene.gave_up == (idents != [1])
    scene.back.down()


@pytest.mark.parametrize("twice", [False, True])
def test_answers_for_buffers_that_it_does_not_have(twice: bool) -> None:
    scene = Scene()
    ident = scene.fill(0, b"z" * 60)
    scene.back.answer_rx(ident if twice else 64, 0, 0, 60)
    scene.back.answer_rx(ident, 0, 0, 60)
    scene.back.push()
    assert scene.gave_up
    assert not scene.guest.received
    scene.back.down()


@pytest.mark.parametrize("ring", ["tx", "rx"])
@pytest.mark.parametrize("ahead", [3, 257, 1 << 31, MASK32])
def test_more_answers_than_requests(ring: str, ahead: int) -> None:
    scene = Scene()
    assert scene.device.transmit_many([bytes(60)] * 2) == 2
    target = scene.back.tx if ring == "tx" else scene.back.rx
    # 2 frames are out, and 64 buffers.
    target.shared[2] = ahead if ring == "tx" or ahead > 257 else 62 + ahead
    for _ in range(3):
        scene.back.kernel.events.notify(scene.back.port)
        scene.host.run()
    assert scene.gave_up
    scene.back.down()


@pytest.mark.parametrize(
    ("offset", "status"),
    [(0, 0), (0, -1), (0, -2), (0, -32768), (0, 4097), (0, 32767), (1, 4096), (4096, 1), (0xFFFF, 60), (4095, 2)],
)
def test_impossible_data_is_dropped(offset: int, status: int) -> None:
    scene = Scene()
    scene.back.answer_rx(scene.buffers[0][0], offset, 0, status)
    scene.back.answer_rx(scene.fill(1, b"good" * 20), 0, 0, 80)
    scene.back.push()
    assert scene.guest.received == [b"good" * 20]
    assert scene.device.counters.rx_dropped == 1
    assert not scene.gave_up
    scene.back.down()


@pytest.mark.parametrize("bad", range(3))
def test_a_long_frame_with_a_bad_slot_is_dropped_whole(bad: int) -> None:
    scene = Scene()
    for number in range(3):
        flags = MORE if number < 2 else 0
        scene.back.answer_rx(scene.fill(number, b"s" * 100), 0, flags, -1 if number == bad else 100)
    scene.back.answer_rx(scene.fill(3, b"good" * 20), 0, 0, 80)
    scene.back.push()
    assert scene.guest.received == [b"good" * 20]
    assert scene.device.counters.rx_dropped == 1
    scene.back.down()


def test_a_frame_without_end_does_not_grow() -> None:
    scene = Scene()
    for _ in range(40):
        for number in range(len(scene.buffers)):
            scene.back.answer_rx(scene.fill(number, b"s" * 100), 0, MORE, 100)
        scene.back.push()
        scene.buffers = scene.back.rx_requests()
        assert len(scene.device.queues[0].rx.reassembly._pieces) <= 18
    scene.back.answer_rx(scene.fill(0, b"end"), 0, 0, 3)
    scene.back.answer_rx(scene.fill(1, b"good" * 20), 0, 0, 80)
    scene.back.push()
    assert scene.guest.received == [b"good" * 20]
    scene.back.down()


def test_eighteen_slots_are_taken() -> None:
    scene = Scene()
    for number in range(18):
        scene.back.answer_rx(scene.fill(number, bytes([number]) * 50), 0, MORE if number < 17 else 0, 50)
    scene.back.push()
    assert scene.guest.received == [b"".join(bytes([n]) * 50 for n in range(18))]
    scene.back.down()


def test_extra_info_was_not_offered() -> None:
    scene = Scene()
    scene.back.answer_rx(scene.fill(0, b"s" * 100), 0, EXTRA, 100)
    scene.back.answer_rx(netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD, 0, 0, 0)
    scene.back.push()
    assert scene.gave_up
    scene.back.down()


def test_nothing_of_the_guest_lies_in_its_pages() -> None:
    """XSA-403: pages are zero when they are granted, and hold frames only."""
    host = Host(guests=1)
    guest = host.guests[0]
    junk = guest.kernel.mm.alloc_pages(200)
    for page in junk:
        page.view[:] = b"secret.." * 512
    guest.kernel.mm.free_pages_of(junk)
    back = RawBack(guest)
    guest.device.transmit(b"hello" * 12)
    for entry in guest.kernel.grants.entries.values():
        content = bytes(host.world.memory[entry.mfn * 4096 : entry.mfn * 4096 + 4096])
        assert b"secret" not in content
        assert b"\xdb" not in content
    back.down()


@pytest.mark.parametrize("answer", [(7, 9, 2, 0), (0, 0, 0, 0), (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)])
def test_a_control_ring_that_answers_nonsense(answer: tuple[int, int, int, int]) -> None:
    """Whatever it says, frames go on."""
    scene = Scene(control=True)
    store = scene.guest.store
    (grant,) = scene.back.kernel.grants.map_refs(1, [int(store["frontend/ctrl-ring-ref"])])
    port = scene.back.kernel.events.bind_interdomain(1, int(store["frontend/event-channel-ctrl"]), lambda: None)
    words = grant.view.cast("I")
    for produced in (5, 1, MASK32):
        for _ in range(70):
            scene.device.transmit(bytes(60))
            ((_, _, _, ident, _),) = scene.back.tx_requests()
            scene.back.answer_tx(ident, 0)
            scene.back.push()
        netif.xen_netif_ctrl_response.codec.pack_into(grant.view, 64, *answer)
        words[2] = produced
        scene.back.kernel.events.notify(port)
        scene.host.run()
    assert not scene.gave_up
    words.release()
    scene.back.kernel.grants.unmap([grant])
    scene.back.kernel.events.unbind(port)
    scene.back.down()


def test_pages_that_the_backend_keeps_are_not_used_again() -> None:
    """XSA-396: a grant that cannot be ended keeps its page away from everybody."""
    host = Host(guests=1)
    guest = host.guests[0]
    back = RawBack(guest)
    ref = guest.device.queues[0].rx.posts[3] >> 32
    mfn = guest.kernel.grants.entries[ref].mfn
    kept = host.kernel.grants.map_refs(1, [ref])
    back.tx.release()
    back.rx.release()
    host.kernel.grants.unmap(back.grants)
    host.kernel.events.unbind(back.port)
    guest.front.hook("close")
    assert guest.kernel.mm.used == 1
    assert mfn not in host.world.frames
    guest.front.hook("close")
    host.kernel.grants.unmap(kept)
    back = RawBack(guest)
    assert mfn in host.world.frames or guest.kernel.mm.used == len(guest.kernel.grants.entries)
    back.down()


answers = st.tuples(
    st.integers(0, 70) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 0, 1, 4095, 0xFFFF]),
    st.sampled_from([0, 0, 3, 4, 7, 8, 16]),
    st.sampled_from([0, 1, 60, 4096, 4097, -1]),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(answers, max_size=12), max_size=6), st.lists(st.integers(0, 300), max_size=10))
def test_any_answers_at_all(batches: list[list[tuple[int, int, int, int]]], tx: list[int]) -> None:
    scene = Scene()
    scene.device.transmit_many([bytes([n]) * 60 for n in range(10)])
    scene.back.tx_requests()
    for batch in batches:
        for answer in batch:
            scene.back.answer_rx(*answer)
        if tx:
            scene.back.answer_tx(tx.pop(), 0)
        scene.back.push()
    for frame in scene.guest.received:
        assert 0 < len(frame) <= 18 * 4096
    assert scene.gave_up in (False, True)
    if not scene.device.broken:
        # Each buffer is posted exactly once.
        ring, order = scene.device.queues[0].rx.ring, scene.device.queues[0].rx._order
        out = [order[index & ring.mask] for index in range(ring.rsp_cons, ring.req_prod_pvt)]
        assert sorted(out) == list(range(len(scene.device.queues[0].rx.posts)))
    scene.back.down()
