"""How and when a vCPU is told of events: the upcall."""

from __future__ import annotations

from core_world import CALLBACK, MS

from hypervisor.abi import sched, xen

SCHED_OP, VERSION = xen.HYPERVISOR_sched_op, xen.HYPERVISOR_xen_version


class Scene:
    """Domain 1 runs a program; `upcalls` says what its handler found, one list each."""

    def __init__(self, pair):
        self.guest, self.dom0, self.world = pair.domu, pair.dom0, pair.world
        self.upcalls = []
        self.seen_masks = []
        self.remote = self.guest.alloc(0)
        self.local = self.dom0.bind(1, self.remote)
        self.guest.acknowledge()

    def handler(self):
        self.seen_masks.append(self.guest.upcall_mask())
        self.upcalls.append(self.guest.acknowledge())

    def run(self, program, handler=None):
        self.guest.runs(program, handler=handler or self.handler)
        self.world.run(until=50 * MS)


def block(cpu):
    cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)


def test_masks_on_entry_and_unmasks_on_return(pair):
    scene = Scene(pair)
    after = []

    def program(cpu):
        scene.guest.set_upcall_mask(0)
        scene.dom0.send(scene.local)
        yield 0
        after.append(scene.guest.upcall_mask())
        while True:
            block(cpu)
            yield 0

    scene.run(program)
    assert (scene.upcalls, scene.seen_masks, after) == ([[scene.remote]], [1], [0])


def test_a_mask_of_any_value_holds_it_back(pair):
    scene = Scene(pair)
    seen = []

    def program(cpu):
        for value in (1, 2, 255):
            scene.guest.set_upcall_mask(value)
            scene.dom0.send(scene.local)
            yield 0
            seen.append((len(scene.upcalls), scene.guest.upcall_mask()))
        scene.guest.set_upcall_mask(0)
        seen.append(len(scene.upcalls))
        yield 0
        seen.append(len(scene.upcalls))
        while True:
            block(cpu)
            yield 0

    scene.run(program)
    assert seen == [(0, 1), (0, 2), (0, 255), 0, 1]


def test_the_guest_may_ask_for_one_itself(pair):
    scene = Scene(pair)

    def program(cpu):
        scene.guest.set_upcall_mask(0)
        scene.guest.set_upcall_pending(7)
        yield 0
        while True:
            block(cpu)
            yield 0

    scene.run(program)
    assert scene.upcalls == [[]]


def test_a_handler_that_leaves_it_pending_is_entered_again_at_once(pair):
    scene = Scene(pair)
    order = []

    def handler():
        order.append("upcall")
        if order.count("upcall") == 4:
            scene.guest.acknowledge()

    def program(cpu):
        scene.guest.set_upcall_mask(0)
        scene.dom0.send(scene.local)
        yield 0
        order.append("program")
        while True:
            block(cpu)
            yield 0

    scene.run(program, handler)
    assert order == ["upcall"] * 4 + ["program"]


def test_blocking_unmasks_always(pair):
    scene = Scene(pair)
    guest = scene.guest
    assert guest.upcall_mask() == 1
    assert guest.block() == 0
    assert guest.upcall_mask() == 0


def test_blocking_with_an_upcall_pending_returns_and_delivers_it(pair):
    scene = Scene(pair)
    order = []

    def handler():
        order.append(scene.guest.acknowledge())

    def program(cpu):
        scene.dom0.send(scene.local)
        block(cpu)
        order.append("blocked")
        yield 0
        order.append("on")
        while True:
            block(cpu)
            yield 0

    scene.run(program, handler)
    assert order == ["blocked", [scene.remote], "on"]


def test_blocking_heeds_no_masked_port(pair):
    scene = Scene(pair)
    order = []

    def program(cpu):
        scene.guest.mask(scene.remote)
        scene.dom0.send(scene.local)
        block(cpu)
        yield 0
        order.append("woken")

    scene.run(program)
    assert order == []
    assert scene.guest.vcpus[0].pause_flags == 1
    scene.guest.unmask(scene.remote)
    scene.world.run(until=60 * MS)
    assert order == ["woken"]
    assert scene.upcalls == [[scene.remote]]


def test_amid_computing(pair):
    """A vCPU that computes is an instruction boundary every time that something happens."""
    scene = Scene(pair)
    when = []

    def handler():
        when.append(pair.hv.now())
        scene.guest.acknowledge()

    def program(cpu):
        scene.guest.set_upcall_mask(0)
        yield 20 * MS
        when.append(pair.hv.now())

    pair.hv.timers.add(3 * MS, lambda: scene.dom0.send(scene.local))
    scene.run(program, handler)
    assert len(when) == 2
    assert 3 * MS <= when[0] < 4 * MS
    assert when[1] >= 20 * MS


def test_a_handler_that_fails_crashes_its_domain_alone(pair):
    scene = Scene(pair)

    def handler():
        raise ZeroDivisionError("oops")

    def program(cpu):
        scene.guest.set_upcall_mask(0)
        yield 20 * MS

    pair.hv.timers.add(3 * MS, lambda: scene.dom0.send(scene.local))
    scene.run(program, handler)
    assert pair.domu.domain.shutdown_code == sched.SHUTDOWN_crash
    assert not pair.dom0.domain.shutting_down
    assert any(b"ZeroDivisionError: oops" in line for line in pair.world.log)


def test_without_a_callback_it_is_the_end(pair):
    scene = Scene(pair)

    def program(cpu):
        scene.guest.set_upcall_mask(0)
        scene.dom0.send(scene.local)
        yield 0

    scene.guest.runs(program)
    scene.world.run()
    assert scene.guest.domain.shutdown_code == sched.SHUTDOWN_crash


def test_a_program_that_ends_crashes_its_domain(pair):
    def program(cpu):
        yield 0

    pair.domu.runs(program)
    pair.world.run()
    assert pair.domu.domain.shutdown_code == sched.SHUTDOWN_crash
    assert any(b"ran off the end" in line for line in pair.world.log)


def test_a_new_callback_counts_at_once(pair):
    scene = Scene(pair)
    second = []

    def other():
        second.append(scene.guest.acknowledge())

    def program(cpu):
        scene.guest.set_upcall_mask(0)
        scene.dom0.send(scene.local)
        yield 0
        cpu.text[CALLBACK + 0x1000] = other
        cpu.hypercall(xen.HYPERVISOR_set_callbacks, CALLBACK + 0x1000, 0, 0)
        scene.dom0.send(scene.local)
        yield 0
        while True:
            block(cpu)
            yield 0

    scene.run(program)
    assert (scene.upcalls, second) == ([[scene.remote]], [[scene.remote]])
