"""Link state (netif.h): the backend's node `disconnect` takes a vif off its bridge, `carrier` tells the frontend."""

from __future__ import annotations

from pathlib import Path

import pytest
from net_world import Host, Station
from test_net_host import Lab

from backends.net import NetBack
from guest_kernel.xenbus.driver import XenbusDevice

MS = 1_000_000
BROADCAST = b"\xff" * 6


def probed() -> Host:
    host = Host()
    for guest in host.guests:
        guest.back.hook("probe")
        guest.front.hook("probe")
    return host


def plug(guest: Station, text: str | None) -> None:
    """The toolstack writes the node, and xenstored tells who watches."""
    if text is None:
        guest.store.pop("backend/disconnect", None)
    else:
        guest.store["backend/disconnect"] = text
    guest.back.watches["disconnect"]()
    guest.host.run()
    guest.front.watches["carrier"]()
    guest.host.run()


@pytest.mark.parametrize("control", [False, True])
def test_a_cable_that_is_pulled_out(control: bool) -> None:
    host = probed().up(control=control)
    one, two = host.guests
    bridge = host.bridge
    if control:
        one.warm_up(two)
    seen: list[bool] = []
    two.device.carrier_changed = seen.append
    assert two.store["backend/carrier"] == "1"
    assert two.device.carrier
    plug(two, "1")
    assert two.store["backend/carrier"] == "0"
    assert seen == [False]
    assert two.vif not in bridge.ports
    # Nothing comes in, and nothing is sent.
    assert one.device.transmit_many([one.frame(two.mac)] * 20 + [one.frame(BROADCAST)]) == 21
    host.run()
    assert not two.received
    assert not two.device.transmit(two.frame(one.mac))
    assert two.device.transmit_many([two.frame(one.mac)]) == 0
    assert two.device.tx_room() == 0
    assert two.device.counters.tx_dropped == 1
    thread = two.kernel.spawn(two.device.wait_for_room())
    host.run()
    assert not thread.done
    plug(two, "0")
    assert thread.done
    assert two.store["backend/carrier"] == "1"
    assert seen == [False, True]
    assert two.device.transmit(two.frame(one.mac))
    host.run()
    assert one.received == [two.frame(one.mac)]
    assert one.device.transmit(one.frame(two.mac))
    host.run()
    assert two.received == [one.frame(two.mac)]
    host.down()


def test_a_guest_that_sends_all_the_same() -> None:
    """Its frames are answered, and counted as dropped."""
    host = probed().up()
    one, two = host.guests
    one.store["backend/disconnect"] = "1"
    one.back.watches["disconnect"]()
    host.run()
    before = one.vif.counters.rx_packets
    assert one.device.carrier, "nobody has told it"
    assert one.device.transmit_many([one.frame(two.mac)] * 3) == 3
    host.run()
    assert one.device.queues[0].tx.free_slots() == 256
    assert not two.received
    assert one.vif.counters.rx_dropped == 3
    assert one.vif.counters.rx_packets == before
    host.down()


def test_without_a_cable_from_the_beginning() -> None:
    host = probed()
    one, two = host.guests
    one.store["backend/disconnect"] = "1"
    host.up()
    assert one.store["backend/carrier"] == "0"
    assert not one.device.carrier
    two.device.transmit(two.frame(BROADCAST))
    host.run()
    assert not one.received
    plug(one, None)
    assert one.device.carrier
    two.device.transmit(two.frame(BROADCAST))
    host.run()
    assert one.received == [two.frame(BROADCAST)]
    host.down()


@pytest.mark.parametrize(("text", "is_up"), [(None, True), ("1", True), ("0", False), ("", True), ("00", True)])
def test_what_a_backend_may_say(text: str | None, is_up: bool) -> None:
    """Only "0" says that the link is down; a backend that has no such node has no such feature."""
    host = probed().up()
    guest = host.guests[0]
    guest.store["backend/carrier"] = "0"
    guest.front.watches["carrier"]()
    host.run()
    if text is None:
        guest.store.pop("backend/carrier")
    else:
        guest.store["backend/carrier"] = text
    guest.front.watches["carrier"]()
    host.run()
    assert guest.device.carrier == is_up
    host.down()
    # The watch may still be told.
    guest.front.watches["carrier"]()
    guest.back.watches["disconnect"]()
    host.run()


def test_on_and_off_and_on() -> None:
    """However often it changes, the last word counts, and one look follows the other."""
    host = probed().up()
    one, two = host.guests
    bridge = host.bridge
    for number in range(51):
        one.store["backend/disconnect"] = str(number % 2)
        one.back.watches["disconnect"]()
        one.front.watches["carrier"]()
    host.run()
    one.front.watches["carrier"]()
    host.run()
    assert one.device.carrier
    assert bridge.ports.count(one.vif) == 1
    for number in range(50):
        one.store["backend/disconnect"] = str(number % 2)
        one.back.watches["disconnect"]()
    host.run()
    assert one.vif not in bridge.ports
    # It goes while it is unplugged.
    one.close()
    assert one.store["backend/carrier"] == "0"
    two.close()
    host.check_no_leaks()


def test_on_a_whole_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dom0 writes the node, as a toolstack does there; the watches are xenstored's."""
    connect = NetBack.connect

    async def connect_and_pull(self: NetBack, device: XenbusDevice) -> None:
        async def pull() -> None:
            for text in ("1", "0"):
                await self.kernel.sleep(300 * MS)
                await device.write(disconnect=text)

        await connect(self, device)
        if device.otherend_id == 1:
            self.kernel.spawn(pull(), "pull")

    monkeypatch.setattr(NetBack, "connect", connect_and_pull)
    sender = """
        for number in range(60):
            await self.device.wait_for_room()
            self.device.transmit((b"\\xff" * 6 + self.device.mac + KIND + bytes([number])).ljust(100, b"x"))
            await self.sleep(0.01)
        await self.sleep(1)
    """
    receiver = """
        times = []
        self.device.received = lambda frame, validated: times.append(self.kernel.monotonic_ns())
        while len(times) < 60:
            await self.sleep(0.01)
        gaps = [later - earlier for earlier, later in zip(times, times[1:])]
        self.print("gap", 290_000_000 < max(gaps) < 320_000_000, sum(gap > 20_000_000 for gap in gaps))
    """
    lab = Lab(tmp_path)
    result = lab.run(sender, receiver, vifs=["xenbr0", "xenbr0"])
    assert result.exit_code == 0, lab.text
    assert "gap True 1" in lab.text
