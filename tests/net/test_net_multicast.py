"""Multicast control: a guest says which groups it wants (netif.h, feature-multicast-control)."""

from __future__ import annotations

from net_raw import RawFront
from net_world import Host, Station
from test_net_host import Lab

from backends.net.multicast import BROADCAST, CAPACITY
from guest_kernel.xenbus.client import XenstoreError
from hypervisor.abi.io import netif

ADD, DELETE = netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD, netif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL
OKAY, ERROR, NULL = netif.NETIF_RSP_OKAY, netif.NETIF_RSP_ERROR, netif.NETIF_RSP_NULL
GROUPS = [bytes([1, 0, 0x5E, 0, 0, number]) for number in range(80)]


def listen(guest: Station, wanted: bool) -> None:
    """Ask for the filter, or for everything; the test plays xenstore's watch."""
    guest.host.world.do(guest.kernel, guest.device.request_multicast(wanted))
    guest.back.watches["request-multicast-control"]()
    guest.host.run()


def test_a_storm_of_changes_is_one_look_at_a_time() -> None:
    host = Host()
    one, two = host.guests
    two.back.hook("probe")
    host.up()
    threads = []
    spawn = host.kernel.spawn
    host.kernel.spawn = lambda *words, **more: (threads.append(words[1]), spawn(*words, **more))[1]  # type: ignore[method-assign,func-returns-value]
    two.store["frontend/request-multicast-control"] = "1"
    for _ in range(1000):
        two.back.watches["request-multicast-control"]()
    host.run()
    assert len(threads) == 1
    assert two.vif.multicast.active
    one.close()
    two.close()
    two.back.watches["request-multicast-control"]()
    host.check_no_leaks()


def heard(one: Station, two: Station, *groups: bytes) -> list[bytes]:
    for group in groups:
        assert one.device.transmit(one.frame(group))
    one.host.run()
    frames = [frame[:6] for frame in two.received]
    two.received.clear()
    return frames


def test_a_guest_gets_the_groups_it_wants() -> None:
    host = Host()
    one, two = host.guests
    two.back.hook("probe")
    host.up()
    everything = [GROUPS[1], GROUPS[2], b"\xff" * 6, two.mac]
    assert heard(one, two, *everything) == everything
    assert two.device.order_multicast(GROUPS[1], wanted=True)
    # The list may be made before it counts.
    assert heard(one, two, *everything) == everything
    listen(two, wanted=True)
    assert heard(one, two, *everything) == [GROUPS[1], b"\xff" * 6, two.mac]
    two.device.order_multicast(GROUPS[2], wanted=True)
    two.device.order_multicast(GROUPS[1], wanted=False)
    assert heard(one, two, *everything) == everything[1:]
    listen(two, wanted=False)
    assert heard(one, two, *everything) == everything
    # What nobody wants is not lost.
    assert two.vif.counters.tx_dropped == two.vif.counters.rx_dropped == two.device.counters.tx_dropped == 0
    host.down()


def test_orders_between_frames() -> None:
    """They have slots without an id of their own, among others that have one."""
    host = Host().up()
    one, two = host.guests
    one.warm_up(two)
    for number in range(300):
        assert one.device.transmit(one.frame(two.mac, 60, number))
        assert one.device.order_multicast(GROUPS[number % CAPACITY], wanted=number % 3 > 0)
        if number % 50 == 0:
            host.run()
    host.run()
    assert two.received == [one.frame(two.mac, 60, number) for number in range(300)]
    assert one.device.queues[0].tx._extras_out == 0
    assert one.device.counters.tx_dropped == 0
    assert not one.device.broken
    host.down()


def test_a_list_has_an_end() -> None:
    host = Host().up()
    one, _ = host.guests
    for group in GROUPS:
        assert one.device.order_multicast(group, wanted=True)
        host.run()
    assert len(one.vif.multicast.addresses) == CAPACITY
    assert one.device.counters.tx_dropped == len(GROUPS) - CAPACITY
    host.down()


def test_a_backend_that_keeps_no_list() -> None:
    host = Host(guests=1)
    one = host.guests[0]
    one.back.hook("publish")
    one.store["backend/feature-multicast-control"] = "0"
    one.front.hook("publish")
    one.back.hook("connect")
    one.front.hook("connect")
    assert not one.device.order_multicast(GROUPS[0], wanted=True)
    one.close()
    host.check_no_leaks()


def test_a_guest_that_hides_its_wish() -> None:
    """It may take its directory away from the backend at any time; that ends the filter, and nothing else."""
    host = Host()
    two = host.guests[1]
    two.back.hook("probe")
    host.up()
    listen(two, wanted=True)
    assert two.vif.multicast.active

    async def refuse(key: str) -> str | None:
        raise XenstoreError("EACCES", "read", key)

    two.back.read_otherend = refuse  # type: ignore[method-assign]
    two.back.watches["request-multicast-control"]()
    host.run()
    assert not two.vif.multicast.active
    host.down()


def extra(kind: int, address: bytes, more: bool = False) -> tuple[int, int, int, int, int]:
    """A slot of extra info as the fields of a request: gref, offset, flags, id, size."""
    data = (bytes([kind, int(more)]) + address).ljust(12, b"\0")
    words = [int.from_bytes(data[at : at + 2], "little") for at in range(0, 12, 2)]
    return words[0] | words[1] << 16, *words[2:6]


def test_orders_by_hand() -> None:
    host = Host(guests=1)
    front = RawFront(host.guests[0])
    vif = host.guests[0].vif

    def order(*slots: tuple[int, int, int, int, int], flags: int = 0) -> list[tuple[int, int]]:
        front.put(0, 0, netif.NETTXF_extra_info | flags, 5, 0)
        for slot in slots:
            front.put(*slot)
        return front.push()

    number = int.from_bytes(GROUPS[3], "little")
    assert order(extra(ADD, GROUPS[3])) == [(5, OKAY), (0, NULL)]
    assert vif.multicast.addresses == {number}
    assert order(extra(ADD, GROUPS[3])) == [(5, OKAY), (0, NULL)]
    assert order(extra(DELETE, GROUPS[4])) == [(5, OKAY), (0, NULL)]
    assert order(extra(ADD, GROUPS[5], more=True), extra(DELETE, GROUPS[3])) == [(5, OKAY), (0, NULL), (0, NULL)]
    assert vif.multicast.addresses == {int.from_bytes(GROUPS[5], "little")}
    # A station's address is no group's; and what is no multicast order is not taken for one.
    assert order(extra(ADD, b"\x02" + bytes(5))) == [(5, ERROR), (0, NULL)]
    assert order(extra(netif.XEN_NETIF_EXTRA_TYPE_GSO, bytes(6))) == [(5, ERROR), (0, NULL)]
    assert order(extra(77, GROUPS[6], more=True), extra(ADD, GROUPS[6])) == [(5, ERROR), (0, NULL), (0, NULL)]
    assert len(vif.multicast.addresses) == 1
    # One that claims to be the start of a longer frame is an error as a whole.
    front.put(0, 0, netif.NETTXF_extra_info | netif.NETTXF_more_data, 5, 60)
    front.put(*extra(ADD, GROUPS[7]))
    front.put(front.grant(bytes(60)), 0, 0, 6, 60)
    assert front.push() == [(5, ERROR), (0, NULL), (6, ERROR)]
    assert len(vif.multicast.addresses) == 1
    assert vif.multicast.passes(BROADCAST)
    front.down()


def test_on_a_whole_host(tmp_path: object) -> None:
    lab = Lab(tmp_path)  # type: ignore[arg-type]
    sender = """
        for _ in range(2):
            await self.sleep(0.1)
            for last in (1, 2):
                self.device.transmit((bytes([1, 0, 0x5e, 0, 0, last]) + self.device.mac + KIND).ljust(60, b"x"))
    """
    receiver = """
        seen = []
        self.device.received = lambda frame, validated: seen.append(frame[5])
        await self.sleep(0.15)
        self.device.order_multicast(bytes([1, 0, 0x5e, 0, 0, 2]), wanted=True)
        await self.device.request_multicast(True)
        await self.sleep(0.1)
        self.print("seen", seen)
    """
    result = lab.run(sender, receiver)
    assert result.exit_code == 0, lab.text
    assert "seen [1, 2, 2]" in lab.text
