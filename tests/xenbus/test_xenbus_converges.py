"""Whatever happens in whatever order, both ends come to rest and nothing stays allocated.

A machine of Hypothesis plays the toolstack, an adversary who writes into state nodes, and fate that kills domains,
while both ends run a few moves at a time in an order drawn from a seed.  At the end the toolstack takes every device
away as libxl does, and nothing may be left: no ring, mapping, device, watch, transaction, thread or node.
"""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from xenbus_drivers import Back, EagerFront, Fabric, Front, VifBack
from xenbus_world import FakeKernel, World, paths

KINDS = st.sampled_from(["vbd", "vif"])
SIDES = st.sampled_from(["front", "back"])
BACK_DOMAIN = 3
FRONT_DOMAIN = 5
RESTING = {
    ("4", "4"),
    ("6", "6"),
    # One end was killed or has been cleared away; the other has noticed.
    (None, None),
    ("6", None),
    (None, "6"),
    # Never met: the backend was unplugged before the frontend looked, or has only its features to give.
    ("1", "6"),
}
"""States of (frontend, backend) in which both ends may stay when nobody has interfered."""


class Split(RuleBasedStateMachine):
    """One frontend domain, one driver domain, two devices."""

    @initialize(seed=st.integers(0, 2**32), adversary=st.booleans())
    def begin(self, seed: int, adversary: bool) -> None:
        self.adversary = adversary
        self.world = World(seed)
        self.fabric = Fabric()
        #: Kinds of devices for which something else than connecting was asked.
        self.disturbed = {"vbd", "vif"} if adversary else set()
        self.numbers = {"front": FRONT_DOMAIN, "back": BACK_DOMAIN}
        self.fresh = 10
        self.world.boot(0)
        for side in self.numbers:
            self.boot(side)

    # ---- helpers

    def boot(self, side: str) -> None:
        kernel = self.world.boot(self.numbers[side])
        drivers = (Front, EagerFront) if side == "front" else (Back, VifBack)
        kernel.start_bus(*[make(kernel, fabric=self.fabric, rng=self.world.rng) for make in drivers])

    def kernel(self, side: str) -> FakeKernel:
        return self.world.domains[self.numbers[side]]

    def directories(self, kind: str) -> tuple[str, str]:
        return paths(kind, "0", self.numbers["front"], self.numbers["back"])

    def device(self, kind: str, side: str) -> Any:
        bus = self.kernel(side).bus
        assert bus is not None
        node = f"device/{kind}/0" if side == "front" else f"backend/{kind}/{self.numbers['front']}/0"
        return bus.devices.get(node)

    def assert_at_rest(self) -> None:
        """With no adversary about, both ends have gone as far as they can."""
        if self.adversary:
            return
        for kind in ("vbd", "vif"):
            fe, be = self.directories(kind)
            pair = (self.world.read(fe + "/state"), self.world.read(be + "/state"))
            if kind in self.disturbed:
                assert pair in RESTING
            else:
                assert pair in (("4", "4"), (None, None))
            device = self.device(kind, "front")
            if device is not None and pair != ("4", "4"):
                assert not device.machine.holding, pair

    # ---- what happens

    @rule(moves=st.integers(1, 60))
    def time_passes(self, moves: int) -> None:
        for _ in range(moves):
            if not self.world.move():
                break

    @rule()
    def all_come_to_rest(self) -> None:
        self.world.run()
        self.assert_at_rest()

    @rule(kind=KINDS, atomic=st.booleans(), reverse=st.booleans())
    def plug(self, kind: str, atomic: bool, reverse: bool) -> None:
        if any(self.world.exists(directory) for directory in self.directories(kind)):
            return
        self.world.plug(kind, "0", self.numbers["front"], self.numbers["back"], atomic=atomic, reverse=reverse)

    @rule(kind=KINDS)
    def unplug(self, kind: str) -> None:
        self.disturbed.add(kind)
        self.world.unplug(kind, "0", self.numbers["front"], self.numbers["back"])

    @rule(kind=KINDS)
    def remove_after_closed(self, kind: str) -> None:
        fe, be = self.directories(kind)
        if self.world.read(be + "/state") == "6" and self.world.read(be + "/online") == "0":
            self.world.rm(be)
            self.world.rm(fe)

    @rule(kind=KINDS, side=SIDES)
    def remove_by_force(self, kind: str, side: str) -> None:
        if self.adversary:
            self.world.rm(self.directories(kind)[side == "back"])

    @rule(kind=KINDS, side=SIDES, state=st.sampled_from([*"012345678", "", "9", "banana"]))
    def somebody_writes_a_state(self, kind: str, side: str, state: str) -> None:
        directory = self.directories(kind)[side == "back"]
        if self.adversary and self.world.exists(directory):
            self.world.write(directory + "/state", state)

    @rule(kind=KINDS, side=SIDES)
    def same_state_again(self, kind: str, side: str) -> None:
        path = self.directories(kind)[side == "back"] + "/state"
        state = self.world.read(path)
        if state is not None:
            self.world.write(path, state)

    @rule(kind=KINDS, online=st.sampled_from("01"))
    def toolstack_changes_its_mind(self, kind: str, online: str) -> None:
        path = self.directories(kind)[1] + "/online"
        self.disturbed.add(kind)
        if self.world.exists(path):
            self.world.write(path, online)

    @rule(side=SIDES)
    def domain_is_killed(self, side: str) -> None:
        """The domain dies; the toolstack clears away, and a new one comes up under a new number."""
        if not self.adversary:
            self.disturbed.clear()
        number = self.numbers[side]
        self.fabric.kill(number)
        self.world.kill(number)
        stale = [self.directories(kind) for kind in ("vbd", "vif")]
        self.numbers[side] = self.fresh
        self.fresh += 1
        if not self.adversary or self.world.rng.random() < 0.5:
            self.world.run()
        if not self.adversary:
            # Whatever the dead one shared has been let go of.
            assert self.fabric.rings == self.fabric.mappings == {}
        for fe, be in stale:
            self.world.rm(fe)
            self.world.rm(be)
        self.boot(side)
        for kernel in self.world.domains.values():
            for driver in kernel.bus._drivers.values() if kernel.bus else ():
                driver.failing.clear()  # type: ignore[attr-defined]

    @rule(kind=KINDS, side=SIDES)
    def driver_gives_up(self, kind: str, side: str) -> None:
        device = self.device(kind, side)
        if device is not None:
            self.disturbed.add(kind)
            kernel = self.kernel(side)
            kernel.spawn(device.fatal("a driver's thread gives up"))

    @rule(kind=KINDS)
    def user_closes(self, kind: str) -> None:
        device = self.device(kind, "front")
        if device is not None:
            self.disturbed.add(kind)
            device.machine.ask_close()
            device.poke()

    @rule(kind=KINDS)
    def user_reopens(self, kind: str) -> None:
        device = self.device(kind, "front")
        if device is not None:
            self.kernel("front").spawn(device.reopen())

    @rule(kind=KINDS, side=SIDES, hook=st.sampled_from(["probe", "publish", "connect"]))
    def next_hook_fails(self, kind: str, side: str, hook: str) -> None:
        bus = self.kernel(side).bus
        assert bus is not None
        driver: Any = bus._drivers["frontend" if side == "front" else "backend", kind]
        driver.failing[hook] = 1
        self.disturbed.add(kind)

    # ---- the end

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world, fabric = self.world, self.fabric
        world.run()
        self.assert_at_rest()
        if not self.adversary:
            # Pages are never freed while the other end maps them, nor mapped twice.
            assert fabric.violations == []
        for kind in ("vbd", "vif"):
            world.unplug(kind, "0", self.numbers["front"], self.numbers["back"])
        world.run()
        for kind in ("vbd", "vif"):
            for directory in self.directories(kind):
                world.rm(directory)
        world.run()
        assert (fabric.rings, fabric.mappings, fabric.probed, fabric.usable) == ({}, {}, {}, {})
        for side, root in (("front", "device"), ("back", "backend")):
            bus = self.kernel(side).bus
            assert bus is not None
            assert bus.devices == {}
            assert [watch.path for watch in self.kernel(side).xenbus.watches] == [root]
        for kind in ("vbd", "vif"):
            for directory in self.directories(kind):
                assert not world.exists(directory), f"{directory} came back to life"
        world.assert_quiet()


def test_both_ends_converge() -> None:
    run_state_machine_as_test(
        Split,
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_a_directory_that_goes_while_it_is_being_looked_at() -> None:
    """The values were read before it was removed, and the event came before there was a device to tell."""
    state = Split()
    state.begin(seed=0, adversary=True)
    state.plug(atomic=False, kind="vbd", reverse=False)
    state.time_passes(moves=36)
    state.remove_by_force(kind="vbd", side="front")
    state.remove_by_force(kind="vbd", side="back")
    state.teardown()
