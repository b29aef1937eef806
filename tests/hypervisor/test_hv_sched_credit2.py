"""credit2: shares by weight, caps, who goes first, moves between pCPUs and run queues."""

from __future__ import annotations

from itertools import pairwise

import pytest
from core_world import MS, SCHED_OP, World
from sched_world import adjust, check_times, make, shares, spin, used, work

from hypervisor.abi import errno, sched
from hypervisor.abi.tracepoints import DESCHEDULE, SCHEDULE
from hypervisor.sched.credit2 import CREDIT_INIT, Credit2
from hypervisor.sched.load import Load
from hypervisor.vcpu import VPF_PAUSED

SECOND = 1000 * MS


class TestShares:
    def test_by_weight(self):
        world = World()
        control, a, b = world.guest(), *make(world, 2)
        assert adjust(control, a, "credit2", weight=512).weight == 512
        first, second = shares(world, [a, b], 100 * MS, 3100 * MS)
        assert first / second == pytest.approx(2, rel=0.02)
        assert first + second == pytest.approx(1, abs=0.01)
        check_times(world)

    def test_changed_while_they_run(self):
        world = World()
        control, a, b = world.guest(), *make(world, 2)
        first, second = shares(world, [a, b], 100 * MS, 2100 * MS)
        assert first == pytest.approx(second, rel=0.02)
        adjust(control, b, "credit2", weight=768)
        first, second = shares(world, [a, b], 2200 * MS, 5200 * MS)
        assert second / first == pytest.approx(3, rel=0.02)

    @pytest.mark.parametrize("pcpus", [1, 2, 4])
    def test_many_on_several_pcpus(self, pcpus):
        world = World(pcpus=pcpus)
        guests = make(world, 3 * pcpus + 1)
        got = shares(world, guests, 500 * MS, 4500 * MS)
        fair = pcpus / len(guests)
        assert all(share == pytest.approx(fair, rel=0.02) for share in got), got
        check_times(world)

    def test_smp_guest_beside_single(self):
        """Weights are of domains, but every vCPU has credit of its own: two vCPUs get twice as much, as in Xen."""
        world = World()
        single, double = *make(world, 1), *make(world, 1, vcpus=2)
        first, second = shares(world, [single, double], 100 * MS, 3100 * MS)
        assert second / first == pytest.approx(2, rel=0.03)

    def test_who_sleeps_a_lot_is_served_at_once(self):
        """A guest that needs a twentieth of the processor gets it beside hogs, and hardly waits."""
        world = World()
        guest = world.guest()
        guest.runs(work(guest, 500_000, 9_500_000))
        make(world, 3)
        (share,) = shares(world, [guest], 100 * MS, 2100 * MS)
        vcpu = guest.vcpus[0]
        turns = 2100 / 10
        assert share == pytest.approx(0.05, rel=0.15)
        assert vcpu.time_runnable / turns < 1.2 * MS, "it waits for the rate limit of the others, 1 ms, at most"

    def test_a_hog_that_was_alone_does_not_pay_for_it(self):
        world = World()
        (hog,) = make(world, 1)
        world.run(until=SECOND)
        (late,) = make(world, 1)
        first, second = shares(world, [hog, late], 1050 * MS, 2050 * MS)
        assert first == pytest.approx(second, rel=0.05)


class TestCaps:
    def test_half_of_an_idle_pcpu(self):
        world = World()
        control, a = world.guest(), *make(world, 1)
        adjust(control, a, "credit2", cap=50)
        (share,) = shares(world, [a], 100 * MS, 2100 * MS)
        assert share == pytest.approx(0.5, rel=0.01)
        check_times(world)

    def test_beside_somebody_without(self):
        world = World()
        control, a, b = world.guest(), *make(world, 2)
        adjust(control, a, "credit2", cap=20)
        first, second = shares(world, [a, b], 100 * MS, 2100 * MS)
        assert first == pytest.approx(0.2, rel=0.01)
        assert second == pytest.approx(0.8, rel=0.01)

    @pytest.mark.parametrize("cap", [50, 150])
    def test_of_an_smp_guest_is_for_all_its_vcpus(self, cap):
        world = World(pcpus=4)
        control, a = world.guest(), *make(world, 1, vcpus=4)
        adjust(control, a, "credit2", cap=cap)
        (share,) = shares(world, [a], 100 * MS, 2100 * MS)
        assert share == pytest.approx(cap / 100, rel=0.02)

    def test_one_vcpu_may_use_what_the_others_leave(self):
        world = World(pcpus=2)
        control, a = world.guest(), world.guest(vcpus=2)

        def sleeper(cpu):
            while True:
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                yield 0

        a.runs(spin(), sleeper)
        adjust(control, a, "credit2", cap=80)
        (share,) = shares(world, [a], 100 * MS, 2100 * MS)
        assert share == pytest.approx(0.8, rel=0.02)

    def test_comes_and_goes(self):
        world = World()
        control, a = world.guest(), *make(world, 1)
        for cap, share in ((30, 0.3), (60, 0.6), (0, 1), (10, 0.1), (0, 1)):
            world.run(until=world.hv.now() + 3 * MS + 77)
            vcpu = a.vcpus[0]
            weight = 256
            rc = adjust(control, a, "credit2", weight=weight, cap=cap)
            assert (rc.weight, rc.cap) == (weight, cap)
            now = world.hv.now()
            assert shares(world, [a], now + 20 * MS, now + 520 * MS) == [pytest.approx(share, rel=0.01)]
            assert not vcpu.pause_flags

    def test_pausing_and_killing_who_is_parked(self):
        world = World()
        control, a, b = world.guest(), *make(world, 2)
        for guest in (a, b):
            adjust(control, guest, "credit2", cap=10)
        world.run(until=25 * MS)
        for guest in (a, b):
            assert guest.vcpus[0].parked
            assert guest.vcpus[0] not in world.hv.sched.run_queue
        world.hv.sched.stop(a.vcpus[0], VPF_PAUSED)
        ran = a.vcpus[0].time_running
        world.hv.domain_ops.kill(b.domain)
        world.run(until=100 * MS)
        assert a.vcpus[0].time_running == ran
        world.hv.sched.unpause(a.vcpus[0], VPF_PAUSED)
        (share,) = shares(world, [a], 150 * MS, 350 * MS)
        assert share == pytest.approx(0.1, rel=0.05)
        check_times(world)
        world.check()

    def test_too_large(self):
        world = World()
        control, a = world.guest(), world.guest(vcpus=2)
        assert adjust(control, a, "credit2", cap=201) == -errno.EINVAL


class TestPlaces:
    def test_hard_affinity(self):
        world = World(pcpus=2)
        guests = make(world, 3)
        for guest in guests[:2]:
            world.hv.sched.set_affinity(guest.vcpus[0], 1)
        got = shares(world, guests, 100 * MS, 2100 * MS)
        assert got == [pytest.approx(0.5, rel=0.03), pytest.approx(0.5, rel=0.03), pytest.approx(1, rel=0.01)]

    def test_soft_affinity(self):
        """It would rather run on pCPU 2, and while that is free it does."""
        seen: list[int] = []

        def emit(domid, vcpu_id, kind, *fields):
            if kind == SCHEDULE:
                seen.append(fields[0])

        world = World(pcpus=3, trace=emit)
        guest = world.guest()
        world.hv.sched.set_soft_affinity(guest.vcpus[0], 0b100)
        guest.runs(work(guest, MS, MS))
        world.run(until=100 * MS)
        assert len(seen) > 40
        assert seen.count(2) >= len(seen) - 1

    def test_a_vcpu_comes_back_to_where_it_was(self):
        moved: dict[tuple[int, int], list[int]] = {}

        def emit(domid, vcpu_id, kind, *fields):
            if kind == SCHEDULE:
                moved.setdefault((domid, vcpu_id), []).append(fields[0])

        world = World(pcpus=4, trace=emit)
        for index in range(4):
            guest = world.guest()
            guest.runs(work(guest, (3 + index) * MS, 2 * MS))
        world.run(until=500 * MS, steps=100_000)
        for places in moved.values():
            changes = sum(one != other for one, other in pairwise(places))
            assert changes <= 2, places

    def test_run_queues_share_the_load(self):
        """18 pCPUs have two run queues of 9."""
        world = World(pcpus=18)
        algorithm = world.hv.sched.algorithm
        assert isinstance(algorithm, Credit2)
        assert len(algorithm.queues) == 2
        assert [len(queue.pcpus) for queue in algorithm.queues] == [9, 9]
        guests = make(world, 36)
        got = shares(world, guests, 1000 * MS, 2000 * MS)
        assert sum(got) == pytest.approx(18, rel=0.01)
        assert min(got) > 0.3
        check_times(world)


def test_ties_and_times_do_not_depend_on_the_path():
    """Without a trace the quick loop decides; with one, the other. Who ran when, how long, is the same."""

    def run(traced: bool):
        log: list[tuple] = []
        world = World(trace=(lambda *fields: log.append(fields)) if traced else None)
        control, *guests = (world.guest() for _ in range(5))
        for index, guest in enumerate(guests):
            guest.runs(work(guest, (index + 1) * 300_000, (5 - index) * 400_000))
        books = []
        for moment in range(1, 200):
            world.run(until=moment * 777_777)
            if moment == 50:
                adjust(control, guests[1], "credit2", weight=1000)
            if moment == 90:
                adjust(control, guests[2], "credit2", cap=15)
            if moment == 150:
                adjust(control, guests[2], "credit2", weight=256)
            vcpus = [guest.vcpus[0] for guest in guests]
            books.append([(v.time_running, v.time_runnable, v.since, v.credit_end, v.pause_flags) for v in vcpus])
        if traced:
            assert sum(fields[2] == DESCHEDULE for fields in log) > 200
        return books, world.hv.clock.now

    assert run(traced=False) == run(traced=True)


def test_wakes_are_served_at_their_moment_on_several_pcpus():
    """All pCPUs compute, in stretches of 10 ms; one that wakes takes the place of one that has run for 1 ms."""
    world = World(pcpus=2)
    make(world, 2)
    guest = world.guest()
    late: list[int] = []

    def program(cpu):
        for number in range(1, 30):
            due = number * 7_300_000
            guest.poll([], timeout=due)
            yield 0
            late.append(cpu.rdtsc() - due)

    guest.runs(program)
    world.run(until=250 * MS)
    assert len(late) == 29
    assert max(late) < 1_010_000
    assert sorted(late)[15] < 10_000


def test_an_ipi_interrupts_a_computation_elsewhere():
    world = World(pcpus=2)
    guest = world.guest(vcpus=2)
    times: list[tuple[int, int]] = []
    sent: list[int] = []
    port = guest.ipi(1)

    def sender(cpu):
        for _ in range(10):
            yield 3 * MS
            sent.append(cpu.rdtsc())
            guest.send(port)
        while True:
            yield MS

    def handler():
        guest.acknowledge(1)
        times.append((world.hv.now(), len(times)))

    guest.runs(sender, spin(), handler=handler)
    guest.set_upcall_mask(0, 1)
    world.run(until=50 * MS)
    assert len(times) == 10
    assert all(0 <= heard - told < 2_000 for (heard, _), told in zip(times, sent, strict=True)), (times, sent)


def test_credit_is_bounded():
    world = World()
    guests = make(world, 3)
    sleeper = world.guest()
    sleeper.runs(work(sleeper, 100_000, 50 * MS))
    for moment in range(1, 100):
        world.run(until=moment * 5 * MS)
        now = world.hv.now()
        for guest in (*guests, sleeper):
            assert -CREDIT_INIT <= guest.vcpus[0].unit.credit(now) <= CREDIT_INIT + 500_000
    assert used(sleeper, world.hv.now()) > 0


def test_load_follows_what_runs():
    load = Load()
    load.change(0, 1)
    assert load.average(1 << 30) == Load.ONE
    load.change(1 << 30, -1)
    assert load.average(3 << 29) == Load.ONE // 2
    assert load.average(4 << 30) == 0
