"""The cost model: what is charged, and how a person says otherwise."""

from __future__ import annotations

from contextlib import suppress

import pytest
from core_world import SCHED_OP, World

from hypervisor.abi import grant_table as gnt
from hypervisor.abi import sched, xen
from hypervisor.abi.cpu import PageFault
from hypervisor.sched.costs import OFF, CostError, Costs, load_costs

VERSION = xen.HYPERVISOR_xen_version


def elapsed(costs: Costs | None, *calls: tuple[int, ...]) -> tuple[int, list[int]]:
    """How long a guest takes that makes some hypercalls, and what time it saw after each (without the switch to it)."""
    world = World(costs=costs)
    guest = world.guest()
    seen = []

    def program(cpu):
        for call in calls:
            cpu.hypercall(*call)
            seen.append(cpu.rdtsc())
        cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
        yield 0

    guest.runs(program)
    world.run()
    assert guest.vcpus[0].time_running == world.hv.sched.pcpus[0].now
    return world.hv.sched.pcpus[0].now, seen


def test_the_defaults():
    total, seen = elapsed(None, (VERSION, 0), (VERSION, 0))
    assert total == 700 + 300 + 3 * 200
    assert seen == [200, 400]


def test_a_dearer_hypercall():
    costs = Costs(hypercalls={VERSION: 5000})
    total, seen = elapsed(costs, (VERSION, 0), (xen.HYPERVISOR_set_timer_op, 0), (VERSION, 0))
    assert total == 700 + 300 + 4 * 200 + 2 * 5000
    assert seen == [5200, 5400, 10600]


def test_copies_by_the_byte():
    world = World(costs=Costs(grant_copy_page=4096))
    guest = world.guest()
    ops = b"".join(gnt.gnttab_copy.pack(len=length) for length in (4096, 100))

    def program(cpu):
        guest.poke(guest.args, ops)
        cpu.hypercall(xen.HYPERVISOR_grant_table_op, gnt.GNTTABOP_copy, guest.args, 2)
        cpu.hypercall(xen.HYPERVISOR_grant_table_op, gnt.GNTTABOP_copy, 0x700000, 2)
        cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
        yield 0

    guest.runs(program)
    world.run()
    assert world.hv.sched.pcpus[0].now == 700 + 300 + 3 * 200 + 4196


def test_a_fault():
    world = World(costs=Costs(fault=3000))
    guest = world.guest()
    times = []

    def program(cpu):
        for address in (guest.args, 0x700000, guest.args):
            with suppress(PageFault):
                cpu.view(address, 8)
            times.append(cpu.rdtsc())
        cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
        yield 0

    guest.runs(program)
    world.run()
    assert times == [0, 3000, 3000]
    assert world.hv.sched.pcpus[0].now == 700 + 300 + 200 + 3000


def test_off():
    assert elapsed(OFF, (VERSION, 0), (VERSION, 0)) == (1, [0, 0])
    assert load_costs("off") is OFF


def test_a_file(tmp_path):
    path = tmp_path / "costs.toml"
    path.write_text("hypercall = 460\ngrant_copy_page = 1000\n[hypercalls]\nmmu_update = 1000\n")
    assert load_costs(str(path)) == Costs(
        hypercall=460, grant_copy_page=1000, hypercalls={xen.HYPERVISOR_mmu_update: 1000}
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hypercal = 1", "there is no cost 'hypercal'; there are hypercall, run, switch, idle_yield, grant_copy_page"),
        ("hypercall = -1", "hypercall is to be a whole number of nanoseconds"),
        ("hypercall = true", "hypercall is to be a whole number of nanoseconds"),
        ("hypercall = 2_000_000_000", "up to 1000000000"),
        ("run = 0", "run and idle_yield are 1 at least"),
        ("hypercalls = 3", "hypercalls is to be a table"),
        ("[hypercalls]\nnone = 3", "there is no hypercall 'none'"),
        ("x =", "Invalid value"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, text, sentence):
    path = tmp_path / "costs.toml"
    path.write_text(text)
    with pytest.raises(CostError, match=sentence):
        load_costs(str(path))
    with pytest.raises(CostError, match="cannot read the costs"):
        load_costs(str(tmp_path / "none"))
