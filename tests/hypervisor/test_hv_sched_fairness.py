"""A hundred guests on several pCPUs: everybody gets the fair share, and all time is accounted for."""

from __future__ import annotations

import pytest
from core_world import MS, World
from sched_world import check_times, make, shares, spin, work

from hypervisor.abi.vcpu import vcpu_runstate_info


@pytest.mark.parametrize(("scheduler", "end"), [("credit2", 4500), ("credit", 12_500)])
@pytest.mark.parametrize("pcpus", [1, 7])
def test_a_hundred_guests(scheduler, pcpus, end):
    world = World(scheduler=scheduler, pcpus=pcpus)
    guests = make(world, 100)
    got = shares(world, guests, 500 * MS, end * MS)
    fair = pcpus / 100
    # At the ends of the measurement somebody is amid a turn: so exact can it be in so many seconds.
    turn = (10 if scheduler == "credit2" else 30) / (end - 500)
    worst = max(abs(share - fair) for share in got)
    assert worst <= 0.02 * fair + turn, (min(got), max(got))
    assert sum(got) == pytest.approx(pcpus, rel=0.005)
    check_times(world)


@pytest.mark.parametrize("scheduler", ["credit2", "credit", "rtds"])
def test_steal_is_what_the_others_had(scheduler):
    """On one pCPU, what a guest waits for is to the nanosecond what the others run while it wants to."""
    world = World(scheduler=scheduler)
    guests = make(world, 3)
    sleeper = world.guest()
    sleeper.runs(work(sleeper, 300_000, 4_000_000))
    world.run(until=777 * MS, steps=100_000)
    now = world.hv.sched.pcpus[0].now
    ran = sum(guest.vcpus[0].unit.running_time(now) for guest in (*guests, sleeper))
    assert ran == now, "the pCPU was never idle"
    for guest in guests:
        vcpu = guest.vcpus[0]
        info = vcpu_runstate_info.unpack(world.hv.time.runstate(vcpu))
        running, runnable, blocked, offline = info.time
        assert (blocked, offline) == (0, 0)
        age = max(world.hv.now(), vcpu.since) - vcpu.created
        assert running + runnable == age


def test_smp_guests_with_ipis():
    """Two vCPUs of each guest hand a token to each other by IPIs, beside hogs, on two pCPUs."""
    world = World(pcpus=2)
    rounds = [0] * 4

    def program(guest, number, own, other_port):
        def run(cpu):
            while True:
                guest.poll([own], on=cpu.vcpu_id)
                yield 0
                guest.clear(own)
                guest.set_selector(0, cpu.vcpu_id)
                guest.set_upcall_pending(0, cpu.vcpu_id)
                rounds[number] += 1
                yield 20_000
                guest.send(other_port)

        return run

    for number in range(4):
        guest = world.guest(vcpus=2)
        ports = []
        for vcpu in range(2):
            ports.append(guest.ipi(vcpu))
        guest.runs(program(guest, number, ports[0], ports[1]), program(guest, number, ports[1], ports[0]))
        guest.send(ports[0])
    make(world, 2, program=lambda: spin(1_000_000))
    world.run(until=500 * MS, steps=400_000)
    assert min(rounds) > 100
    assert max(rounds) < 1.5 * min(rounds)
    check_times(world)
