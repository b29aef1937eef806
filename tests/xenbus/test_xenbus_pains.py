"""What users of other implementations have run into: one test for each, and a paragraph each in docs/xenbus.md.

The other end is played by a script where it is one of another make: it owns its directory and writes what it likes. The
test plays the toolstack.
"""

from collections.abc import Callable
from typing import Any

import pytest
from test_xenbus_bus import BE, FE, KIND, NUMBER, Setup
from xenbus_drivers import Back, EagerFront, Fabric, Front, VifBack
from xenbus_world import FakeKernel, World

from guest_kernel.xenbus.device import ANSWER_TIMEOUT_NS
from guest_kernel.xenbus.states import CLOSED, CLOSING, CONNECTED, INITIALISED, INITIALISING, INITWAIT

FRONT_STAGES = (INITIALISING, INITIALISED, CONNECTED)
BACK_STAGES = (INITIALISING, INITWAIT, CONNECTED)
SEEDS = range(3)


class Scripted:
    """One real end on a real bus; the other one is written by hand."""

    def __init__(self, side: str, seed: int = 0) -> None:
        self.world = World(seed)
        self.fabric = Fabric()
        self.dom0, self.guest = self.world.boot(0), self.world.boot(5)
        make: dict[str, Any] = {"fabric": self.fabric, "rng": self.world.rng}
        if side == "front":
            self.bus = self.guest.start_bus(Front(self.guest, **make))
        else:
            self.bus = self.dom0.start_bus(Back(self.dom0, **make))
        self.world.run()
        self.world.plug(KIND, NUMBER, 5, 0)
        self.world.run()

    @property
    def hooks(self) -> list[str]:
        return [hook.partition(".")[2] for hook in self.fabric.hooks]

    def front(self, state: int | None = None, **nodes: object) -> None:
        self._write(FE, state, nodes)

    def back(self, state: int | None = None, **nodes: object) -> None:
        self._write(BE, state, nodes)

    def _write(self, directory: str, state: int | None, nodes: dict[str, object]) -> None:
        def work(tx: int) -> None:
            for key, value in nodes.items():
                self.world.write(f"{directory}/{key.replace('_', '-')}", str(value), tx)
            if state is not None:
                self.world.write(f"{directory}/state", str(int(state)), tx)

        self.world.transaction(work)
        self.world.run()

    def ring(self, number: int) -> int:
        """Make a ring that the scripted frontend owns."""
        self.fabric.rings[number] = 5
        return number

    @property
    def states(self) -> tuple[str | None, str | None]:
        return self.world.read(FE + "/state"), self.world.read(BE + "/state")


# -- ends that look at fewer states than there are ----------------------------------------------------------------


def test_a_backend_that_never_says_initwait_and_connects_at_once() -> None:
    """It goes from Initialising to Connected when it sees our rings, and to Closed without Closing."""
    script = Scripted("front")
    script.back(INITWAIT)
    assert script.states == ("3", "2")
    script.back(CONNECTED, sectors=8)
    assert script.states == ("4", "4")
    script.back(CLOSED)
    assert script.states == ("6", "6")
    assert script.fabric.rings == {}


def test_a_backend_that_knows_only_connected_and_closed() -> None:
    """It ignores our Closing, waiting for Closed; at shutdown we wait for it so long, and then go without it."""
    script = Scripted("front")
    script.back(INITWAIT)
    script.back(CONNECTED, sectors=8)
    (device,) = script.bus.devices.values()
    before = script.world.now
    script.world.call(script.guest, device.shutdown())
    assert script.world.now - before >= ANSWER_TIMEOUT_NS
    assert script.bus.devices == {}
    assert script.hooks[-2:] == ["close", "remove"]


def test_a_backend_that_answers_closing_with_closed() -> None:
    script = Scripted("front")
    script.back(INITWAIT)
    script.back(CONNECTED, sectors=8)
    (device,) = script.bus.devices.values()
    device.retire()
    script.world.run(until=lambda: script.states[0] == "5")
    script.back(CLOSED)
    assert script.states == ("6", "6")
    assert script.fabric.rings == {}


def test_a_frontend_that_knows_only_initialised_and_closed() -> None:
    script = Scripted("back")
    assert script.states == ("1", "2")
    script.front(INITIALISED, ring_ref=script.ring(9), event_channel=1)
    assert script.states == ("3", "4")
    assert script.fabric.mappings == {9: 0}
    script.front(CLOSED)
    assert script.states == ("6", "6")
    assert script.fabric.mappings == {}


def test_a_frontend_that_jumps_to_connected() -> None:
    """Network frontends do, and mini-os' block frontend has: there is no Initialised to be seen."""
    script = Scripted("back")
    script.front(CONNECTED, ring_ref=script.ring(9), event_channel=1)
    assert script.states == ("4", "4")
    script.front(CLOSING)
    script.front(CLOSED)
    assert script.states == ("6", "6")


def test_a_frontend_that_ends_with_initialising_instead_of_closed() -> None:
    """A boot loader's frontend: Closing, Closed, Initialising in one breath, for the kernel that comes after it."""
    script = Scripted("back")
    script.front(CONNECTED, ring_ref=script.ring(9), event_channel=1)
    for state in (CLOSING, CLOSED, INITIALISING):
        script.world.write(FE + "/state", str(int(state)))
    script.world.run()
    assert script.states == ("1", "2")
    assert script.fabric.mappings == {}
    del script.fabric.rings[9]
    script.front(INITIALISED, ring_ref=script.ring(10), event_channel=2)
    assert script.fabric.mappings == {10: 0}


# -- ends that are too early --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [INITIALISED, CONNECTED])
def test_a_frontend_that_publishes_before_the_backend_was_there(state: int) -> None:
    """It does not wait for InitWait: its rings are found when the backend gets to them."""
    world = World(1)
    fabric = Fabric()
    dom0, _ = world.boot(0), world.boot(5)
    world.plug(KIND, NUMBER, 5, 0)
    fabric.rings[9] = 5
    world.write(FE + "/ring-ref", "9")
    world.write(FE + "/event-channel", "1")
    world.write(FE + "/state", str(int(state)))
    dom0.start_bus(Back(dom0, fabric=fabric))
    world.run()
    assert fabric.mappings == {9: 0}
    assert world.read(BE + "/state") == "4"


def test_a_frontend_whose_nodes_come_after_its_state() -> None:
    """Two unequal writes: the backend sees Initialised and no ring. It gives the device up, and says why."""
    script = Scripted("back")
    script.front(INITIALISED)
    assert script.states == ("3", "5")
    assert script.world.read(f"/local/domain/0/error/backend/vbd/5/{NUMBER}/error") == "5 connect: no ring 0"
    # The frontend may close and come again.
    script.front(CLOSED)
    script.front(INITIALISING)
    script.front(INITIALISED, ring_ref=script.ring(9), event_channel=1)
    assert script.states == ("3", "4")


# -- starting again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [(), (INITIALISING,), (CLOSING, CLOSED, INITIALISING), (CLOSED, INITIALISING)])
def test_rings_that_are_made_anew_are_read_anew(between: tuple[int, ...]) -> None:
    """However a frontend gets back to its first state, the backend maps the ring that is named now, and one only."""
    script = Scripted("back")
    script.front(INITIALISED, ring_ref=script.ring(9), event_channel=1)
    for state in between or (INITIALISING,):
        script.front(state)
        assert 9 not in script.fabric.mappings or state == CLOSING
    del script.fabric.rings[9]
    script.front(INITIALISED, ring_ref=script.ring(10), event_channel=2)
    assert script.fabric.mappings == {10: 0}
    assert script.fabric.violations == []
    assert script.states == ("3", "4")


def test_a_ring_that_changes_under_a_connected_backend_is_not_looked_at() -> None:
    """ring-ref belongs to the connection: rewriting it while Connected means nothing, whoever does it."""
    script = Scripted("back")
    script.front(INITIALISED, ring_ref=script.ring(9), event_channel=1)
    script.front(INITIALISED, ring_ref=script.ring(10), event_channel=2)
    script.front(CONNECTED)
    assert script.fabric.mappings == {9: 0}


def kexec(setup: Setup, seed: int) -> FakeKernel:
    """Throw the guest's kernel away without a word and boot another one in the same domain."""
    world, old = setup.world, setup.guest
    old.scheduler.destroy()
    page = old.page
    setup.fabric.probed = {key: None for key in setup.fabric.probed if key[0] != 5}
    setup.fabric.usable = {key: None for key in setup.fabric.usable if key[0] != 5}
    world.server.reset(world.transport.connections[5])
    new = world.domains[5] = FakeKernel(world, 5)
    assert new.page is not page
    world.rings[5] = type(world.rings[5])(new.page)
    new.start_bus(Front(new, fabric=setup.fabric, rng=world.rng), EagerFront(new, fabric=setup.fabric, rng=world.rng))
    return new


@pytest.mark.parametrize("stage", [*FRONT_STAGES, CLOSED])
@pytest.mark.parametrize("seed", SEEDS)
def test_another_kernel_in_the_same_domain(stage: int, seed: int) -> None:
    """As after kexec: the new kernel finds the nodes of the old one, has the backend let go, and begins anew."""
    setup = Setup(seed)
    setup.world.run()
    setup.world.plug(KIND, NUMBER, 5, 0)
    if stage == CLOSED:
        setup.world.run()
        (device,) = setup.front_bus.devices.values()
        device.machine.ask_close()
        device.poke()
    setup.world.run(until=lambda: setup.states()[0] == str(int(stage)))
    kexec(setup, seed)
    # The old kernel's memory is the domain's still: a ring of it may be mapped until the backend has let go.
    setup.world.run()
    assert setup.states() == ("4", "4")
    assert len(setup.fabric.mappings) == 1
    assert setup.fabric.violations == []


def test_another_kernel_does_not_revive_what_is_being_unplugged() -> None:
    setup = Setup(0)
    setup.world.run()
    setup.plug()
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    kexec(setup, 0)
    setup.world.run()
    assert setup.states() == ("6", "6")


def test_nodes_of_a_former_life_are_not_taken_for_this_one() -> None:
    """A frontend's old ring-ref and features lie around: nothing is read of them before the state says so."""
    script = Scripted("back")
    script.world.rm(BE)
    script.world.run()
    script.front(INITIALISING, ring_ref=77, event_channel=66, feature_persistent=1)
    script.world.plug(KIND, NUMBER, 5, 0)
    script.world.write(FE + "/ring-ref", "77")
    script.world.run()
    assert script.states == ("1", "2")
    assert "connect" not in script.hooks
    script.front(INITIALISED, ring_ref=script.ring(9), event_channel=1)
    assert script.fabric.mappings == {9: 0}


# -- watches that fire too often ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["published", "connected", "closed"])
@pytest.mark.parametrize("seed", SEEDS)
def test_rewriting_what_is_there_changes_nothing(stage: str, seed: int) -> None:
    """Restores, live updates and other watchers replay events: every node of both ends is written again as it is."""
    setup = Setup(seed, wait=stage == "published")
    setup.world.run()
    setup.plug()
    if stage == "closed":
        setup.world.unplug(KIND, NUMBER, 5, 0)
        setup.world.run()
    states, hooks = setup.states(), list(setup.fabric.hooks)
    assert states == {"published": ("3", "2"), "connected": ("4", "4"), "closed": ("6", "6")}[stage]
    tree = setup.world.server.store.tree
    nodes = [(path.decode(), node.value.decode()) for path, node in tree.walk(b"/") if node.value]
    for path, value in nodes * 3:
        setup.world.write(path, value)
    setup.world.run()
    assert setup.states() == states
    # A connected frontend looks whether there is something new, and that is all.
    looks = setup.fabric.hooks[len(hooks) :]
    assert setup.fabric.hooks[: len(hooks)] == hooks
    assert set(looks) == ({"frontend.refresh"} if stage == "connected" else set())
    assert len(looks) <= 3
    # (A hook that waits must come to its end before the world is thrown away.)
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()


# -- closing and dying at every state -----------------------------------------------------------------------------


def at_stage(side: str, stage: int, seed: int) -> Setup:
    """Stop the world at the moment when one end has written a state."""
    setup = Setup(seed)
    setup.world.run()
    setup.world.plug(KIND, NUMBER, 5, 0)
    end = 0 if side == "front" else 1
    setup.world.run(until=lambda: setup.states()[end] == str(int(stage)))
    return setup


STAGES = [("front", stage) for stage in FRONT_STAGES] + [("back", stage) for stage in BACK_STAGES]
every_stage = pytest.mark.parametrize(("side", "stage"), STAGES)


@every_stage
@pytest.mark.parametrize("seed", SEEDS)
def test_unplugged_at_every_state(side: str, stage: int, seed: int) -> None:
    setup = at_stage(side, stage, seed)
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    assert setup.states()[1] == "6"
    setup.remove_nodes()
    setup.assert_nothing_left()


@every_stage
@pytest.mark.parametrize("seed", SEEDS)
def test_frontend_closes_at_every_state(side: str, stage: int, seed: int) -> None:
    setup = at_stage(side, stage, seed)
    setup.world.run(until=lambda: bool(setup.front_bus.devices))
    (device,) = setup.front_bus.devices.values()
    setup.world.call(setup.guest, device.shutdown())
    setup.world.run()
    assert setup.states()[0] == "6"
    assert setup.fabric.rings == setup.fabric.mappings == {}
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    setup.remove_nodes()
    setup.assert_nothing_left()


@every_stage
@pytest.mark.parametrize("seed", SEEDS)
def test_backend_gives_up_at_every_state(side: str, stage: int, seed: int) -> None:
    setup = at_stage(side, stage, seed)
    setup.world.run(until=lambda: bool(setup.back_bus.devices))
    (device,) = setup.back_bus.devices.values()
    setup.world.call(setup.dom0, device.fatal("the disk is on fire"))
    setup.world.run()
    assert setup.states() in (("6", "6"), ("1", "6"))
    assert setup.fabric.rings == setup.fabric.mappings == {}
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    setup.remove_nodes()
    setup.assert_nothing_left()


@every_stage
@pytest.mark.parametrize("seed", SEEDS)
def test_frontend_domain_dies_at_every_state(side: str, stage: int, seed: int) -> None:
    setup = at_stage(side, stage, seed)
    setup.fabric.kill(5)
    setup.world.kill(5)
    setup.world.run()
    assert setup.fabric.rings == setup.fabric.mappings == {}
    setup.world.unplug(KIND, NUMBER, 5, 0)
    setup.world.run()
    assert setup.states() == (None, "6")
    assert setup.back_bus.devices == {}


@every_stage
@pytest.mark.parametrize("seed", SEEDS)
def test_backend_domain_dies_at_every_state(side: str, stage: int, seed: int) -> None:
    world = World(seed)
    fabric = Fabric()
    world.boot(0)
    for domid, makes in ((5, (Front, EagerFront)), (7, (Back, VifBack))):
        kernel = world.boot(domid)
        kernel.start_bus(*[make(kernel, fabric=fabric, rng=world.rng) for make in makes])
    world.run()
    fe, be = f"/local/domain/5/device/vbd/{NUMBER}", f"/local/domain/7/backend/vbd/5/{NUMBER}"
    world.plug(KIND, NUMBER, 5, 7)
    path = fe if side == "front" else be
    world.run(until=lambda: world.read(path + "/state") == str(int(stage)))
    fabric.kill(7)
    world.kill(7)
    world.run()
    assert fabric.rings == fabric.mappings == {}
    assert world.read(fe + "/state") in ("1", "6")
    world.rm(fe)
    world.run()
    bus = world.domains[5].bus
    assert bus is not None
    assert bus.devices == {}


Removal = Callable[[Setup], None]
REMOVALS: dict[str, Removal] = {
    "frontend": lambda setup: setup.world.rm(FE),
    "backend": lambda setup: setup.world.rm(BE),
    "both": lambda setup: (setup.world.rm(FE), setup.world.rm(BE))[0],
}


@every_stage
@pytest.mark.parametrize("what", list(REMOVALS))
def test_toolstack_that_removes_nodes_too_early(side: str, stage: int, what: str) -> None:
    """Without asking anybody: no end may bring a part of a directory back to life, or wait for ever."""
    for seed in SEEDS:
        setup = at_stage(side, stage, seed)
        REMOVALS[what](setup)
        setup.world.run()
        for path, kind in ((FE, "frontend"), (BE, "backend")):
            if what in (kind, "both"):
                assert not setup.world.exists(path), "a removed directory came back to life"
        setup.remove_nodes()
        # Without a word of warning a frontend cannot know whether the backend has unmapped.
        setup.fabric.violations.clear()
        setup.assert_nothing_left()
        # And the same number can be used again.
        setup.plug()
        assert setup.states() == ("4", "4")
