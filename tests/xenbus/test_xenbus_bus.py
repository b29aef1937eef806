"""Devices on a real bus, client, ring and server: connecting, closing, reconnecting, being killed."""

from typing import Any

import pytest
from xenbus_drivers import Back, EagerFront, Fabric, Front, VifBack
from xenbus_world import World, paths

from guest_kernel.xenbus.states import CLOSED, CLOSING, CONNECTED

KIND, NUMBER = "vbd", "51712"
FE, BE = paths(KIND, NUMBER, 5, 0)


class Setup:
    """dom0 with backends, domain 5 with frontends."""

    def __init__(self, seed: int, **options: Any) -> None:
        self.world = World(seed)
        self.fabric = Fabric()
        self.dom0 = self.world.boot(0)
        self.guest = self.world.boot(5)
        make = {"fabric": self.fabric, "rng": self.world.rng, **options}
        self.back = Back(self.dom0, **make)
        self.front = Front(self.guest, **make)
        self.back_bus = self.dom0.start_bus(self.back, VifBack(self.dom0, **make))
        self.front_bus = self.guest.start_bus(self.front, EagerFront(self.guest, **make))

    def plug(self, **how: bool) -> None:
        self.world.plug(KIND, NUMBER, 5, 0, **how)
        self.world.run()

    def states(self) -> tuple[str | None, str | None]:
        return self.world.read(FE + "/state"), self.world.read(BE + "/state")

    def remove_nodes(self) -> None:
        self.world.rm(BE)
        self.world.rm(FE)
        self.world.run()

    def assert_nothing_left(self) -> None:
        fabric = self.fabric
        assert fabric.violations == []
        assert (fabric.rings, fabric.mappings, fabric.probed, fabric.usable) == ({}, {}, {}, {})
        for kernel in self.world.domains.values():
            assert kernel.bus is not None
            assert kernel.bus.devices == {}
            assert [watch.path for watch in kernel.xenbus.watches] == ["backend" if kernel.domid == 0 else "device"]
        assert not self.world.exists(FE)
        assert not self.world.exists(BE)
        self.world.assert_quiet()


@pytest.fixture(params=range(4))
def setup(request: pytest.FixtureRequest) -> Setup:
    made = Setup(request.param)
    made.world.run()
    return made


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_connect_and_unplug(setup: Setup, atomic: bool, reverse: bool) -> None:
    setup.plug(atomic=atomic, reverse=reverse)
    assert setup.states() == ("4", "4")
    assert setup.fabric.mappings == dict.fromkeys(setup.fabric.rings, 0)
    assert list(setup.front_bus.devices) == ["device/vbd/51712"]
    device = setup.back_bus.devices["backend/vbd/5/51712"]
    assert (device.path, device.otherend, device.otherend_id, device.id) == (BE, FE, 5, NUMBER)
    assert (device.state, device.otherend_state, device.online) == (CONNECTED, CONNECTED, True)
    assert setup.world.read(BE + "/sectors") == "8"
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    assert setup.states() == ("6", "6")
    assert setup.back_bus.devices == {}
    setup.remove_nodes()
    setup.assert_nothing_left()


def test_toolstack_that_writes_node_by_node_while_the_ends_run(setup: Setup) -> None:
    world = setup.world
    for directory, owner, reader in ((FE, 5, 0), (BE, 0, 5)):
        world.write(directory, "")
        world.set_perms(directory, f"n{owner}", f"r{reader}")
        world.run()
    for path, value in [
        (FE + "/state", "1"),
        (BE + "/state", "1"),
        (BE + "/frontend", FE),
        (FE + "/backend-id", "0"),
        (BE + "/frontend-id", "5"),
        (FE + "/backend", BE),
    ]:
        world.write(path, value)
        world.run()
    assert setup.states() == ("4", "4")


def test_nodes_and_state_become_visible_together(setup: Setup) -> None:
    world = setup.world
    seen = []
    world.plug(KIND, NUMBER, 5, 0)
    while world.move():
        pair = (world.read(FE + "/state"), world.read(FE + "/ring-ref") is not None)
        if pair not in seen:
            seen.append(pair)
    assert seen == [("1", False), ("3", True), ("4", True)]


def test_eager_frontend(setup: Setup) -> None:
    setup.world.plug("vif", "0", 5, 0)
    setup.world.run()
    fe, be = paths("vif", "0", 5, 0)
    assert (setup.world.read(fe + "/state"), setup.world.read(be + "/state")) == ("4", "4")
    assert (5, "device/vif/0") in setup.fabric.usable
    assert setup.fabric.hooks.count("frontend.connect") == 1


def test_frontend_closes_and_reopens(setup: Setup) -> None:
    setup.plug()
    device = setup.front_bus.devices["device/vbd/51712"]
    for _ in range(3):
        device.machine.ask_close()
        device.poke()
        setup.world.run()
        assert setup.states() == ("6", "6")
        assert setup.fabric.rings == {}
        setup.world.call(setup.guest, device.reopen())
        setup.world.run()
        assert setup.states() == ("4", "4")
    assert setup.fabric.hooks.count("frontend.probe") == 1
    assert setup.fabric.violations == []


def test_backend_cannot_reopen(setup: Setup) -> None:
    setup.plug()
    device = setup.back_bus.devices["backend/vbd/5/51712"]
    with pytest.raises(ValueError, match="waits for its frontend"):
        setup.world.call(setup.dom0, device.reopen())


def test_frontend_domain_killed(setup: Setup) -> None:
    setup.plug()
    setup.fabric.kill(5)
    setup.world.kill(5)
    setup.world.run()
    assert setup.world.read(BE + "/state") == "6"
    assert setup.fabric.mappings == {}
    assert setup.fabric.rings == {}
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    assert setup.back_bus.devices == {}


def test_backend_domain_killed_and_another_takes_over() -> None:
    """A driver domain dies; the toolstack detaches the device and attaches it from a new one."""
    setup = Setup(1)
    world = setup.world
    for domid in (7, 8):
        world.boot(domid).start_bus(Back(world.domains[domid], fabric=setup.fabric))
        world.run()
        fe, be = paths("vbd", "51713", 5, domid)
        world.plug("vbd", "51713", 5, domid)
        world.run()
        assert world.read(fe + "/state") == "4"
        setup.fabric.kill(domid)
        world.kill(domid)
        world.run()
        assert not world.exists(be)
        assert world.read(fe + "/state") == "6"
        assert setup.fabric.rings == {}
        world.rm(fe)
        world.run()
        assert setup.front_bus.devices == {}


def test_directories_removed_by_force(setup: Setup) -> None:
    setup.plug()
    setup.world.rm(BE)
    setup.world.run()
    assert not setup.world.exists(BE), "a removed directory came back to life"
    assert setup.back_bus.devices == {}
    assert setup.world.read(FE + "/state") == "6"
    setup.world.rm(FE)
    setup.world.run()
    # Without a word of warning the frontend cannot know whether the backend has unmapped.
    setup.fabric.violations.clear()
    setup.assert_nothing_left()


@pytest.mark.parametrize("below", ["/local/domain/0/backend", "/local/domain/0/backend/vbd", BE.rpartition("/")[0]])
def test_removal_of_a_directory_of_devices(setup: Setup, below: str) -> None:
    setup.plug()
    setup.world.rm(below)
    setup.world.run()
    assert setup.back_bus.devices == {}
    assert setup.fabric.mappings == {}


def test_directory_made_anew_in_one_transaction(setup: Setup) -> None:
    """The toolstack replaces the backend's directory at once: the device starts over, with nothing of the old one."""
    setup.plug()
    world = setup.world

    def again(tx: int) -> None:
        world.request(16 - 3, BE, tx=tx)  # XS_RM
        for key, value in {"frontend": FE, "frontend-id": "5", "online": "1", "state": "1"}.items():
            world.write(f"{BE}/{key}", value, tx)
        world.set_perms(BE, "n0", "r5", tx=tx)
        for key in ("frontend", "frontend-id", "online", "state"):
            world.set_perms(f"{BE}/{key}", "n0", "r5", tx=tx)

    world.transaction(again)
    world.run()
    assert setup.states() == ("4", "4")
    assert setup.fabric.hooks.count("backend.probe") == 2
    assert setup.fabric.violations == []


def test_spurious_events_cost_little(setup: Setup) -> None:
    """XSA-349: ten thousand rewrites of `state` are a handful of looks, and no hook."""
    setup.plug()
    hooks = list(setup.fabric.hooks)
    before = setup.dom0.xenbus.requests
    for _ in range(10_000):
        setup.world.write(FE + "/state", "4")
    setup.world.run()
    assert setup.fabric.hooks == hooks
    assert setup.dom0.xenbus.requests - before < 20
    assert setup.states() == ("4", "4")


@pytest.mark.parametrize("junk", ["", "9", "-1", "banana", "4 ", "99999999999999999999", "\udcff"])
def test_junk_in_the_frontends_state_closes_the_backend(setup: Setup, junk: str) -> None:
    setup.plug()
    setup.world.request(11, FE + "/state", value=junk.encode("utf-8", "surrogateescape"))
    setup.world.run()
    assert setup.world.read(BE + "/state") == "6"
    assert setup.fabric.mappings == {}


def test_junk_in_the_own_state_is_overwritten_when_it_matters(setup: Setup) -> None:
    setup.plug()
    setup.world.write(BE + "/state", "banana")
    setup.world.run()
    # To the frontend a backend of no known state is a backend that is gone.
    setup.fabric.violations.clear()
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    setup.remove_nodes()
    setup.assert_nothing_left()


@pytest.mark.parametrize("hook", ["publish", "connect"])
@pytest.mark.parametrize("side", ["front", "back"])
def test_failing_hook_closes_the_device_and_says_why(setup: Setup, side: str, hook: str) -> None:
    driver = getattr(setup, side)
    driver.failing[hook] = 1
    setup.plug()
    assert setup.fabric.rings == {}
    assert setup.fabric.mappings == {}
    assert setup.states() == ("6", "6")
    kernel, node = (setup.guest, "device/vbd/51712") if side == "front" else (setup.dom0, "backend/vbd/5/51712")
    error = setup.world.read(f"/local/domain/{kernel.domid}/error/{node}/error")
    assert error == f"5 {hook}: {hook} was told to fail"
    assert any(f"{hook} failed" in line for line in kernel.log)
    device = setup.front_bus.devices["device/vbd/51712"]
    setup.world.call(setup.guest, device.reopen())
    setup.world.run()
    assert setup.states() == ("4", "4")
    assert setup.fabric.violations == []


@pytest.mark.parametrize("side", ["front", "back"])
def test_failing_probe(setup: Setup, side: str) -> None:
    getattr(setup, side).failing["probe"] = 1
    setup.plug()
    assert setup.world.read((FE if side == "front" else BE) + "/state") == "6"
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    setup.remove_nodes()
    setup.assert_nothing_left()


def test_fatal_from_a_drivers_own_thread(setup: Setup) -> None:
    setup.plug()
    device = setup.back_bus.devices["backend/vbd/5/51712"]
    setup.world.call(setup.dom0, device.fatal("garbage in the ring", 22))
    assert setup.world.read("/local/domain/0/error/backend/vbd/5/51712/error") == "22 garbage in the ring"
    setup.world.run()
    assert setup.states() == ("6", "6")
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    setup.remove_nodes()
    setup.assert_nothing_left()
    assert not setup.world.exists("/local/domain/0/error/backend/vbd/5/51712")


@pytest.mark.parametrize("seed", range(3))
def test_backend_that_waits_for_the_hotplug_script(seed: int) -> None:
    setup = Setup(seed, wait=True)
    setup.plug()
    assert setup.states() == ("3", "2")
    setup.world.write(BE + "/physical-device", "8:0")
    setup.world.run()
    assert setup.states() == ("4", "4")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["unplug", "kill", "rm", "close"])
def test_waiting_backend_is_interrupted(seed: int, how: str) -> None:
    setup = Setup(seed, wait=True)
    setup.plug()
    if how == "unplug":
        setup.world.unplug(KIND, NUMBER, 5, 0)
    elif how == "kill":
        setup.fabric.kill(5)
        setup.world.kill(5)
    elif how == "rm":
        setup.world.rm(BE)
    else:
        device = setup.front_bus.devices["device/vbd/51712"]
        device.machine.ask_close()
        device.poke()
    setup.world.run()
    assert "backend.interrupted" in setup.fabric.hooks
    if how != "kill":
        assert setup.world.read(FE + "/state") == "6"
    assert setup.world.read(BE + "/state") in ("6", None)
    assert setup.fabric.rings == {}
    setup.world.assert_quiet()


def test_shutdown_of_the_guest_closes_its_devices(setup: Setup) -> None:
    setup.plug()
    setup.world.plug("vif", "0", 5, 0)
    setup.world.run()
    setup.world.call(setup.guest, setup.front_bus.shutdown())
    setup.world.run()
    assert setup.world.now == 0, "nobody had to wait for a timeout"
    assert setup.states() == ("6", "6")
    assert setup.front_bus.devices == {}
    assert setup.guest.xenbus.watches == []
    assert (setup.fabric.rings, setup.fabric.mappings, setup.fabric.violations) == ({}, {}, [])


def test_shutdown_of_the_backends_domain(setup: Setup) -> None:
    setup.plug()
    setup.world.call(setup.dom0, setup.back_bus.shutdown())
    setup.world.run()
    assert setup.states() == ("6", "6")
    assert setup.back_bus.devices == {}
    assert (setup.fabric.rings, setup.fabric.mappings, setup.fabric.violations) == ({}, {}, [])


def test_shutdown_does_not_wait_for_ever_for_a_dead_backend() -> None:
    world = World()
    fabric = Fabric()
    world.boot(0)
    guest = world.boot(5)
    bus = guest.start_bus(Front(guest, fabric=fabric))
    world.plug(KIND, NUMBER, 5, 0)
    world.write(BE + "/state", "2")
    world.run()
    assert world.read(FE + "/state") == "3"
    world.call(guest, bus.shutdown())
    assert world.now == 5_000_000_000
    assert (fabric.rings, fabric.probed, bus.devices) == ({}, {}, {})
    assert any("does not answer" in line for line in guest.log)


def test_driver_registered_later_finds_existing_devices() -> None:
    world = World()
    fabric = Fabric()
    dom0, guest = world.boot(0), world.boot(5)
    back_bus = dom0.start_bus()
    front_bus = guest.start_bus(Front(guest, fabric=fabric))
    world.plug(KIND, NUMBER, 5, 0)
    world.run()
    assert world.read(BE + "/state") == "1"
    world.call(dom0, back_bus.register(Back(dom0, fabric=fabric)))
    world.run()
    assert (world.read(FE + "/state"), world.read(BE + "/state")) == ("4", "4")
    with pytest.raises(ValueError, match="two frontend drivers"):
        world.call(guest, front_bus.register(Front(guest, fabric=fabric)))


def test_devices_of_a_former_life_are_left_alone(setup: Setup) -> None:
    world = setup.world
    world.plug(KIND, NUMBER, 5, 0)
    world.write(FE + "/state", "4")
    world.write(BE + "/state", "6")
    world.run()
    assert setup.fabric.hooks == []
    assert setup.states() == ("4", "6")


@pytest.mark.parametrize(("key", "value"), [("frontend-id", "banana"), ("frontend", "relative"), ("frontend-id", "²")])
def test_directory_that_is_no_device(setup: Setup, key: str, value: str) -> None:
    world = setup.world
    nodes = {"frontend": FE, "frontend-id": "5", "state": "1", key: value}
    for name, text in nodes.items():
        world.write(f"{BE}/{name}", text)
    world.run()
    assert setup.back_bus.devices == {}
    assert any("not a device" in line for line in setup.dom0.log)


@pytest.mark.parametrize("link", ["/", "/local//domain", "/local/domain/0/back end"])
def test_a_directory_whose_other_end_cannot_be_watched_is_one_again_when_it_is_made_anew(
    setup: Setup, link: str
) -> None:
    world = setup.world
    for name, text in {"backend": link, "backend-id": "0", "state": "1"}.items():
        world.write(f"{FE}/{name}", text)
    world.run()
    assert setup.front_bus.devices == {}
    setup.remove_nodes()
    setup.plug()
    assert setup.states() == ("4", "4")


@pytest.mark.parametrize("fails", [False, True])
def test_a_frontend_that_wants_something_changed(setup: Setup, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend says Reconfigured once it has read it; a hook that raises is reported, and the device goes on."""
    monkeypatch.setattr(type(setup.back), "reconfigures", True)
    setup.plug()
    setup.back.failing["reconfigure"] = int(fails)
    setup.world.write(FE + "/state", "7")
    setup.world.run()
    assert setup.states() == ("7", "8")
    assert setup.fabric.hooks[-1] == "backend.reconfigure"
    assert (setup.world.read("/local/domain/0/error/backend/vbd/5/51712/error") is not None) == fails
    setup.world.write(FE + "/state", "4")
    setup.world.run()
    assert setup.states() == ("4", "4")
    assert setup.fabric.violations == []


def test_a_backend_that_has_something_new_to_say(setup: Setup) -> None:
    setup.plug()
    front, back = setup.front_bus.devices["device/vbd/51712"], setup.back_bus.devices["backend/vbd/5/51712"]
    assert "frontend.refresh" not in setup.fabric.hooks
    back.announce({"sectors": 16})
    back.announce({"sectors": 24})
    setup.world.run()
    assert (setup.world.read(BE + "/sectors"), front.data["sectors"]) == ("24", "24")
    assert setup.fabric.hooks.count("frontend.refresh") == 1
    setup.front.failing["refresh"] = 1
    back.announce({"sectors": 32})
    setup.world.run()
    assert setup.states() == ("4", "4")
    back.announce({"sectors": 40})
    setup.world.run()
    assert front.data["sectors"] == "40"
    assert setup.fabric.violations == []


@pytest.mark.parametrize("moves", range(0, 60, 3))
def test_news_while_the_device_comes_and_goes(setup: Setup, moves: int) -> None:
    """They wait until both are connected, and never bring a closing device back to Connected."""
    world = setup.world
    world.plug(KIND, NUMBER, 5, 0)
    while (back := setup.back_bus.devices.get("backend/vbd/5/51712")) is None:
        assert world.move()
    for _ in range(moves):
        world.move()
    back.announce({"sectors": 16})
    world.run()
    assert setup.states() == ("4", "4")
    assert world.read(BE + "/sectors") == "16"
    world.unplug(KIND, NUMBER, 5, 0)
    for _ in range(moves):
        world.move()
    back.announce({"sectors": 24})
    world.run()
    assert setup.states() == ("6", "6")
    setup.remove_nodes()
    setup.assert_nothing_left()


def test_driver_may_not_write_the_state(setup: Setup) -> None:
    setup.plug()
    device = setup.front_bus.devices["device/vbd/51712"]
    with pytest.raises(ValueError, match="belongs to the state machine"):
        setup.world.call(setup.guest, device.write(state=4))


def test_reads_writes_and_watches_of_a_device(setup: Setup) -> None:
    setup.plug()
    device = setup.front_bus.devices["device/vbd/51712"]
    changes: list[str] = []

    async def work() -> None:
        await device.watch("note", lambda: changes.append("own"))
        await device.watch_otherend("sectors", lambda: changes.append("other"))
        await device.write({"note": "hello", "deep/note": True}, other=b"x")
        assert await device.read("note") == "hello"
        assert await device.read_many("deep/note", "other", "nope") == {"deep/note": "1", "other": "x", "nope": None}
        assert await device.read_otherend("sectors") == "8"
        await device.write_many({"a": 1, "b": 2})
        assert await device.read("b") == "2"

    setup.world.call(setup.guest, work())
    setup.world.write(BE + "/sectors", "16")
    setup.world.run()
    assert changes.count("own") >= 2
    assert changes.count("other") == 2
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    setup.remove_nodes()
    setup.assert_nothing_left()


def test_write_to_a_removed_device_brings_nothing_back(setup: Setup) -> None:
    setup.plug()
    device = setup.front_bus.devices["device/vbd/51712"]
    thread = setup.guest.spawn(device.write(note="x"))
    setup.world.rm(FE)
    setup.world.run()
    assert thread.done
    assert not setup.world.exists(FE)


def test_unplug_that_comes_while_the_state_is_being_written() -> None:
    """The toolstack's Closing is never overwritten: whatever the moment, the device ends Closed and removed."""
    for moves in range(0, 140, 3):
        setup = Setup(moves)
        setup.world.run()
        setup.world.plug(KIND, NUMBER, 5, 0)
        for _ in range(moves):
            setup.world.move()
        setup.world.unplug(KIND, NUMBER, 5, 0)
        setup.world.run()
        assert setup.states()[1] == "6", moves
        setup.remove_nodes()
        setup.assert_nothing_left()


def test_trace_names_every_transition(setup: Setup) -> None:
    lines: list[tuple[Any, ...]] = []
    setup.guest.cpu.trace = lambda *fields: lines.append(fields)
    setup.plug()
    assert [fields[1:] for fields in lines] == [("device/vbd/51712", 1, 3), ("device/vbd/51712", 3, CONNECTED)]
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    assert lines[-1][1:] == ("device/vbd/51712", CONNECTED, CLOSED)
    assert CLOSING not in [fields[3] for fields in lines]


def test_cost_of_a_device_does_not_grow_with_their_number() -> None:
    """Requests and round trips of dom0 per device, from discovery to Connected."""
    world = World(in_order=True)
    fabric = Fabric()
    dom0 = world.boot(0)
    dom0.start_bus(Back(dom0, fabric=fabric))
    world.run()
    per_device = []
    for domid in range(1, 41):
        guest = world.boot(domid)
        guest.start_bus(Front(guest, fabric=fabric))
        world.run()
        before = dom0.xenbus.requests, dom0.xenbus.flushes
        world.plug(KIND, NUMBER, domid, 0)
        world.run()
        per_device.append((dom0.xenbus.requests - before[0], dom0.xenbus.flushes - before[1]))
    assert len(fabric.mappings) == 40
    assert len(set(per_device[1:])) == 1, per_device
    requests, round_trips = per_device[-1]
    assert requests <= 24
    assert round_trips <= 14
