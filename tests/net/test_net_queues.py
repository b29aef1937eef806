"""Several queues of one vif, both halves: each a pair of rings with event channels of its own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from net_raw import RawFront
from net_world import Host, Station
from test_net_gso import Large
from test_net_hashing import KEY, ip, packet
from test_net_host import Lab

from backends.net.hashing import toeplitz
from guest_kernel.net import NetError
from guest_kernel.net.flow import spread
from guest_kernel.net.offload import gso as offload
from hypervisor.abi.io import netif

ALL_TYPES = 15


def connected(*queues: int, split: bool = True, offered: int | None = None) -> Host:
    """A host whose guests have so many queues each."""
    host = Host(guests=len(queues))
    for guest, count in zip(host.guests, queues, strict=True):
        guest.driver.options["max_queues"] = count
        guest.back.hook("publish")
        if offered is not None:
            guest.store["backend/multi-queue-max-queues"] = str(offered)
        guest.store["backend/feature-split-event-channels"] = str(int(split))
        guest.front.hook("publish")
        guest.back.hook("connect")
        guest.front.hook("connect")
        guest.device.received_raw = guest.record
    host.run()
    return host


def flows(source: Station, to: bytes, count: int) -> list[bytes]:
    """TCP frames, each of another flow."""
    ends = ip("10.0.0.1"), ip("10.0.0.2")
    return [packet(ends[0], 1000 + n, ends[1], 80, to, source.mac, "tcp") for n in range(count)]


@pytest.mark.parametrize("split", [False, True])
def test_the_nodes_of_two_queues(split: bool) -> None:
    """Those that netif.h shows for an example, and none in the device's own directory."""
    host = connected(2, split=split)
    store = host.guests[0].store
    assert store["backend/multi-queue-max-queues"] == "4"
    assert store["frontend/multi-queue-num-queues"] == "2"
    ends = {"event-channel-tx", "event-channel-rx"} if split else {"event-channel"}
    keys = {f"queue-{n}/{key}" for n in range(2) for key in {"tx-ring-ref", "rx-ring-ref"} | ends}
    found = {key for key in store if key.startswith("frontend/") and ("-ring-ref" in key or "event-channel" in key)}
    assert found - {"frontend/ctrl-ring-ref", "frontend/event-channel-ctrl"} == {f"frontend/{key}" for key in keys}
    assert len({store[f"frontend/{key}"] for key in keys if "event" in key}) == len(ends) * 2
    host.down()


@pytest.mark.parametrize(("wanted", "offered", "count"), [(1, 4, 1), (3, 4, 3), (9, 4, 4), (3, 1, 1), (0, 4, 1)])
def test_how_many_there_are(wanted: int, offered: int, count: int) -> None:
    host = connected(wanted, offered=offered)
    guest = host.guests[0]
    assert len(guest.device.queues) == len(guest.vif.queues) == count
    assert ("frontend/multi-queue-num-queues" in guest.store) == (count > 1)
    host.down()


@pytest.mark.parametrize("text", ["0", "5", "-1", "x", "", "4294967296", "1.0"])
def test_numbers_that_make_no_sense(text: str) -> None:
    host = Host(guests=1)
    guest = host.guests[0]
    guest.back.hook("publish")
    guest.front.hook("publish")
    guest.store["frontend/multi-queue-num-queues"] = text
    with pytest.raises(ValueError, match="queues"):
        guest.back.hook("connect")
    guest.close()
    host.check_no_leaks()


@pytest.mark.parametrize("key", ["tx-ring-ref", "rx-ring-ref", "event-channel"])
@pytest.mark.parametrize("value", [None, "99999", "x"])
def test_a_queue_that_is_not_described(key: str, value: str | None) -> None:
    """Then none is connected, and nothing stays mapped or bound."""
    host = Host(guests=1)
    guest = host.guests[0]
    guest.driver.options["max_queues"] = 3
    guest.back.hook("publish")
    guest.store["backend/feature-split-event-channels"] = "0"
    guest.front.hook("publish")
    guest.store.pop(f"frontend/queue-1/{key}")
    if value is not None:
        guest.store[f"frontend/queue-1/{key}"] = value
    with pytest.raises((ValueError, OSError)):
        guest.back.hook("connect")
    guest.close()
    host.check_no_leaks()


@pytest.mark.parametrize("counts", [(4, 4), (1, 4), (4, 1), (2, 3)])
def test_flows_over_queues(counts: tuple[int, int]) -> None:
    """All arrive; those of one flow in order, and on one queue of each end."""
    host = connected(*counts)
    one, two = host.guests
    sent = flows(one, two.mac, 40)
    two.device.transmit(two.frame(b"\xff" * 6))
    host.run()
    for round_ in range(6):
        marked = [frame + round_.to_bytes(2, "big") for frame in sent]
        assert one.device.transmit_many(marked) == len(marked)
        host.run()
    assert len(two.received) == 240
    for frame in sent:
        assert [got[-2:] for got in two.received if got[:-2] == frame] == [n.to_bytes(2, "big") for n in range(6)]
    for number, queue in enumerate(one.device.queues):
        mine = sum(spread(frame, counts[0]) == number for frame in sent) if counts[0] > 1 else 40
        assert queue.tx.ring.req_prod_pvt == 6 * mine
    for number, back in enumerate(two.vif.queues):
        mine = sum(spread(frame, counts[1]) == number for frame in sent) if counts[1] > 1 else 40
        assert back._rx.rsp_prod_pvt == 6 * mine
    assert one.device.counters.tx_packets == two.device.counters.rx_packets == 240
    assert one.device.counters.tx_bytes == sum(map(len, sent)) * 6 + 480
    host.down()


def test_mapped_buffers_of_all_queues() -> None:
    """Each queue's buffers are registered; from several queues to one, frames go from page to page."""
    host = connected(3, 1)
    one, two = host.guests
    one.warm_up(two)
    sent = flows(one, two.mac, 30)
    for _ in range(3):
        one.device.transmit_many(sent)
        host.run()
    two.received.clear()
    before = host.world.copies
    one.device.transmit_many(sent)
    host.run()
    assert sorted(two.received) == sorted(sent)
    assert host.world.copies == before
    assert {ref for queue in one.device.queues for ref in queue.tx.refs} <= set(one.vif.mapped)
    host.down()


def test_large_packets_over_queues() -> None:
    host = connected(4, 4)
    one, two = host.guests
    two.device.transmit(two.frame(b"\xff" * 6))
    host.run()
    packets = [Large(bytes([n]) * (5000 + 3000 * n)).frame(two.mac, one.mac) for n in range(12)]
    for frame in packets:
        assert one.device.transmit(frame, offload(1448))
        host.run()
    assert two.received == packets
    host.down()


def test_a_queue_that_is_full() -> None:
    """Room is room on any queue; a batch ends with the first frame that has none."""
    host = connected(2, 1)
    one, two = host.guests
    sent = flows(one, two.mac, 600)
    count = one.device.transmit_many(sent)
    assert 256 <= count < 600
    full = spread(sent[count], 2)
    assert one.device.queues[full].tx.free_slots() == 0
    assert one.device.tx_room() == 0
    assert not one.device.transmit(sent[count])
    thread = one.kernel.spawn(one.device.wait_for_room())
    one.kernel.run_ready()
    assert not thread.done
    host.run()
    assert thread.done
    assert one.device.tx_room() == 256
    host.down()


def test_one_queue_that_attacks_closes_the_vif() -> None:
    host = Host()
    front = RawFront(host.guests[0], queues=3)
    other = host.guests[1].connect()
    front.use(2)
    front.tx.shared[0] = 1 << 20
    front.kernel.events.notify(front.port)
    host.run()
    assert len(host.guests[0].back.fatals) == 1
    other.device.transmit(other.frame(b"\xff" * 6))
    host.run()
    front.down()
    other.close()
    host.check_no_leaks()


def test_a_rate_is_that_of_all_queues() -> None:
    host = Host()
    one, two = host.guests
    one.store["backend/rate"] = "10000,50000"
    front = RawFront(one, queues=2)
    two.connect()
    frame = one.frame(b"\xff" * 6, 1000)
    ref = front.grant(frame)
    for number in range(2):
        front.use(number)
        for ident in range(15):
            front.put(ref, 0, 0, ident, 1000)
        front.show(front.tx)
    host.world.run(until=host.world.now)
    assert len(two.received) == 10
    host.run()
    assert len(two.received) == 30
    assert host.world.now == 100_000_000
    front.down()
    two.close()
    host.check_no_leaks()


def test_hashing_as_a_guest_orders_it() -> None:
    host = connected(1, 3)
    one, two = host.guests
    mapping = [2, 0, 1, 1, 2]
    host.world.do(two.kernel, two.device.order_hashing(ALL_TYPES, KEY, mapping))
    sent = flows(one, two.mac, 30)
    one.device.transmit_many(sent)
    one.device.transmit(Large(bytes(9000)).frame(two.mac, one.mac), offload(1448))
    one.device.transmit(one.frame(two.mac))
    host.run()
    assert len(two.received) == 32
    places = [0, 0, 0]
    for frame, how in zip(two.received, two.offloads, strict=True):
        if frame[12:14] == b"\x88\xb5":
            assert how.hash is None
            places[mapping[0]] += 1
            continue
        value = toeplitz(KEY, frame[26:38])
        assert how.hash == value
        large = len(frame) > 9000
        assert how.gso_size == 1448 * large
        # Pages, and extra info of the hash and of the segments' size.
        places[mapping[value % 5]] += 5 if large else 2
    assert [queue._rx.rsp_prod_pvt for queue in two.vif.queues] == places
    host.world.do(two.kernel, two.device.order_hashing(0))
    one.device.transmit(sent[0])
    host.run()
    assert two.offloads[-1].hash is None
    host.down()


def test_orders_that_are_refused() -> None:
    host = connected(2, 1)
    one = host.guests[0]
    for types, key, mapping in ((16, KEY, ()), (1, bytes(41), ()), (1, KEY, (5,)), (1, KEY, range(129))):
        with pytest.raises(NetError, match="refuses"):
            host.world.do(one.kernel, one.device.order_hashing(types, key, mapping))
    with pytest.raises(NetError, match="too many"):
        host.world.do(one.kernel, one.device.order_hashing(1, bytes(5000)))
    one.device.control, kept = None, one.device.control
    with pytest.raises(NetError, match="no control ring"):
        host.world.do(one.kernel, one.device.order_hashing(1))
    one.device.control = kept
    host.down()


def test_an_order_that_is_out_when_the_device_goes() -> None:
    host = connected(1)
    one = host.guests[0]
    host.driver._control_event = lambda control: None  # type: ignore[method-assign]
    one.back.data.control.ready = lambda control: None
    thread = one.kernel.spawn(one.device.order_hashing(1, KEY), panics=False)
    one.kernel.run_ready()
    assert not thread.done
    one.close()
    host.run()
    assert isinstance(thread.exception, NetError)
    host.check_no_leaks()


def test_a_hash_that_nobody_asked_for() -> None:
    host = connected(1)
    one = host.guests[0]
    back = one.vif.queues[0]
    ring = back._rx
    flags = netif.NETRXF_extra_info
    netif.netif_rx_response.codec.pack_into(ring.view, ring.offset(0), 0, 0, flags, 60)
    ring.view[ring.offset(1) : ring.offset(1) + 8] = struct.pack("<BBBBI", 4, 0, 1, 1, 77)
    ring.rsp_prod_pvt = ring.req_cons = 2
    ring.push_responses()
    host.kernel.events.notify(back.rx_port)
    host.run()
    assert "not offered" in one.device.broken
    host.down()


def test_on_a_whole_host(tmp_path: Path) -> None:
    """Asked for on the command line; nodes, rings and the trace's names are there, and datagrams arrive."""
    lab = Lab(tmp_path)
    body = """
        (await self.net.interface("eth0")).configure("10.0.0.{me}/24")
        self.print("queues", len(self.device.queues))
        await self.sleep(0.05)
        if {me} == 1:
            for _ in range(20):
                await self.net.ping("10.0.0.2")
            self.print("answered")
        await self.sleep(0.2)
    """
    result = lab.run(body.replace("{me}", "1"), body.replace("{me}", "2"), extra="xen_netfront.max_queues=3")
    assert result.exit_code == 0, lab.text
    assert lab.text.count("queues 3") == 2
    assert "answered" in lab.text
