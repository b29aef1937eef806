"""rtds: every deadline that can be met is met; extratime; parameters of single vCPUs."""

from __future__ import annotations

import random

import pytest
from core_world import MS, World
from sched_world import adjust, check_times, make, set_rtds, shares

from hypervisor.abi import errno


def periodic(guest, period: int, work: int, missed: list[int], late: int = 0):
    """A real-time task: `work` ns in each period, and a note of each deadline that it misses."""

    def program(cpu):
        release = guest.hv.now() // period * period + period
        while True:
            guest.poll([], timeout=release)
            yield 0
            yield work
            if guest.hv.now() > release + period:
                missed.append(release)
            release += period

    return program


@pytest.mark.parametrize("seed", range(6))
def test_every_schedulable_deadline_is_met(seed):
    """Tasks with a total utilization below 1 on one pCPU (EDF's bound), beside hogs without claims."""
    rng = random.Random(seed)
    world = World(scheduler="rtds")
    control = world.guest()
    missed: list[int] = []
    left = 0.93
    for _ in range(5):
        period = rng.choice([5, 8, 10, 20, 40, 50]) * MS
        budget = max(int(period * min(left, rng.uniform(0.05, 0.4))), 50_000)
        left -= budget / period
        if left < 0:
            break
        guest = world.guest()
        # Its server's periods begin with the guest, at time 0. (A turn and hypercalls cost something, too.)
        assert set_rtds(control, guest, period // 1000, budget // 1000, extra=False) == 0
        guest.runs(periodic(guest, period, budget - 20_000, missed))
    for guest in make(world, 2):
        assert set_rtds(control, guest, 100_000, 10, extra=True) == 0
    world.run(until=3000 * MS, steps=1_000_000)
    assert missed == []
    check_times(world)


def test_who_is_owed_less_than_it_wants_gets_what_it_is_owed():
    world = World(scheduler="rtds")
    control, *guests = world.guest(), *make(world, 3)
    for guest, budget in zip(guests, (1000, 2000, 4000), strict=True):
        assert set_rtds(control, guest, 10_000, budget, extra=False) == 0
    got = shares(world, guests, 100 * MS, 2100 * MS)
    assert got == [pytest.approx(share, rel=0.02) for share in (0.1, 0.2, 0.4)]
    check_times(world)


def test_extratime_is_what_is_left():
    world = World(scheduler="rtds")
    control, a, b = world.guest(), *make(world, 2)
    assert set_rtds(control, a, 10_000, 3000, extra=False) == 0
    assert set_rtds(control, b, 10_000, 1000, extra=True) == 0
    assert shares(world, [a, b], 100 * MS, 2100 * MS) == [pytest.approx(0.3, rel=0.02), pytest.approx(0.7, rel=0.02)]


def test_global_edf_on_two_pcpus():
    world = World(scheduler="rtds", pcpus=2)
    control, *guests = world.guest(), *make(world, 3)
    for guest in guests:
        assert set_rtds(control, guest, 10_000, 5000, extra=False) == 0
    assert shares(world, guests, 100 * MS, 2100 * MS) == [pytest.approx(0.5, rel=0.03)] * 3
    check_times(world)


def test_parameters():
    world = World(scheduler="rtds")
    control, a = world.guest(), world.guest(vcpus=2)
    assert (adjust(control, a, "rtds").period, adjust(control, a, "rtds").budget) == (10_000, 4000)
    assert adjust(control, a, "rtds", period=0, budget=1) == -errno.EINVAL
    assert adjust(control, a, "rtds", period=20_000, budget=1000).period == 20_000
    assert set_rtds(control, a, 20_000, 20_001, extra=True) == -errno.EINVAL
    assert set_rtds(control, a, 9, 9, extra=True) == -errno.EINVAL
    assert set_rtds(control, a, 5000, 1000, extra=True, vcpu=2) == -errno.EINVAL
    assert set_rtds(control, a, 5000, 1000, extra=True, vcpu=1) == 0
    assert a.vcpus[1].unit.period == 5 * MS
    assert a.vcpus[0].unit.period == 20 * MS


def test_an_idle_host_has_no_timers():
    world = World(scheduler="rtds")
    guest = world.guest()

    def program(cpu):
        yield 25 * MS
        guest.block()
        yield 0

    guest.runs(program)
    world.run()
    assert not len(world.hv.timers)


def test_killing_the_depleted():
    world = World(scheduler="rtds")
    control, a, b = world.guest(), *make(world, 2)
    set_rtds(control, a, 10_000, 1000, extra=False)
    set_rtds(control, b, 10_000, 1000, extra=False)
    a.vcpus[0].unit.extra = b.vcpus[0].unit.extra = False
    world.run(until=305 * MS)
    world.hv.domain_ops.kill(a.domain)
    world.run(until=400 * MS)
    world.check()
