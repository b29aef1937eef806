"""credit: shares, caps, boost, and the thief who lives between the ticks."""

from __future__ import annotations

import pytest
from core_world import MS, World
from sched_world import adjust, check_times, make, shares, work

from hypervisor.abi import errno

SECOND = 1000 * MS


def world_with(scheduler: str = "credit", **options) -> World:
    return World(scheduler=scheduler, **options)


def test_weights():
    world = world_with()
    control, a, b = world.guest(), *make(world, 2)
    assert adjust(control, a, "credit", weight=512, cap=0xFFFF).weight == 512
    first, second = shares(world, [a, b], 300 * MS, 6300 * MS)
    assert first / second == pytest.approx(2, rel=0.02)
    check_times(world)


@pytest.mark.parametrize("others", [0, 1])
def test_a_cap_is_a_cap(others):
    world = world_with()
    control, a = world.guest(), *make(world, 1)
    rest = make(world, others)
    assert adjust(control, a, "credit", weight=0, cap=30).cap == 30
    got = shares(world, [a, *rest], 300 * MS, 6300 * MS)
    assert got == [pytest.approx(0.3, rel=0.03), *[pytest.approx(0.7, rel=0.03)] * others]
    check_times(world)


@pytest.mark.parametrize("pcpus", [2, 4])
def test_stealing_keeps_everybody_at_the_fair_share(pcpus):
    world = world_with(pcpus=pcpus)
    guests = make(world, 3 * pcpus + 1)
    got = shares(world, guests, 600 * MS, 12_600 * MS)
    fair = pcpus / len(guests)
    assert all(share == pytest.approx(fair, rel=0.02) for share in got), got
    check_times(world)


def test_who_wakes_is_boosted():
    """It does not wait for the 30 ms of the others."""
    world = world_with()
    guest = world.guest()
    guest.runs(work(guest, 500_000, 9_700_000))
    make(world, 2)
    (share,) = shares(world, [guest], 300 * MS, 2300 * MS)
    assert share == pytest.approx(0.05, rel=0.15)
    assert guest.vcpus[0].time_runnable < 230 * 1.2 * MS


def thief(guest, tick=10 * MS):
    """Runs for 9.5 ms of every 10, and sleeps when the tick comes."""

    def program(cpu):
        while True:
            into = guest.hv.now() % tick
            if into < 9_500_000:
                yield 9_500_000 - into
            guest.poll([], timeout=guest.hv.now() // tick * tick + tick + 1000)
            yield 0

    return program


@pytest.mark.parametrize(("scheduler", "low", "high"), [("credit-sampled", 0.92, 0.96), ("credit", 0.45, 0.6)])
def test_the_thief(scheduler, low, high):
    """With samples it takes 95 % of the pCPU and pays nothing; with time stamps about its fair share is left."""
    world = world_with(scheduler)
    victims = make(world, 1)
    guest = world.guest()
    guest.runs(thief(guest))
    stolen, left = shares(world, [guest, *victims], 300 * MS, 6300 * MS)
    assert low < stolen < high
    assert stolen + left == pytest.approx(1, abs=0.01)


def test_an_idle_host_does_not_tick():
    world = world_with()
    guest = world.guest()

    def program(cpu):
        yield 25 * MS
        guest.block()
        yield 0

    guest.runs(program)
    world.run()
    assert world.hv.now() < SECOND
    assert not len(world.hv.timers)


def test_pausing_and_killing_who_is_parked():
    world = world_with()
    control, a, b = world.guest(), *make(world, 2)
    for guest in (a, b):
        adjust(control, guest, "credit", weight=0, cap=10)
    world.run(until=5 * SECOND // 10)
    world.hv.domain_ops.kill(b.domain)
    now = world.hv.now()
    (share,) = shares(world, [a], now + 300 * MS, now + 3300 * MS)
    assert share == pytest.approx(0.1, rel=0.05)
    assert adjust(control, a, "credit2") == -errno.EINVAL
    world.check()
