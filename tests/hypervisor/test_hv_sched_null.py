"""null and arinc653: who has a place of its own, in space or in time."""

from __future__ import annotations

import pytest
from core_world import MS, World
from sched_world import check_times, make, shares, spin

from hypervisor.abi import errno, sysctl, xen
from hypervisor.vcpu import VPF_DOWN, VPF_PAUSED


class TestNull:
    def test_a_pcpu_for_each(self):
        world = World(scheduler="null", pcpus=3)
        guests = make(world, 4)
        assert shares(world, guests, 10 * MS, 110 * MS) == [pytest.approx(1, rel=0.01)] * 3 + [0]
        assert sorted(guest.vcpus[0].processor for guest in guests[:3]) == [0, 1, 2]
        world.hv.domain_ops.kill(guests[1].domain)
        got = shares(world, [guests[0], guests[2], guests[3]], 120 * MS, 220 * MS)
        assert got == [pytest.approx(1, rel=0.01)] * 3
        check_times(world)

    def test_one_that_goes_down_gives_its_place(self):
        world = World(scheduler="null")
        a, b = make(world, 2)
        world.run(until=10 * MS)
        world.hv.sched.stop(a.vcpus[0], VPF_PAUSED)
        assert shares(world, [a, b], 20 * MS, 30 * MS) == [0, 0], "who is only paused keeps it"
        world.hv.sched.stop(a.vcpus[0], VPF_DOWN)
        world.hv.sched.unpause(a.vcpus[0], VPF_PAUSED)
        world.run(until=40 * MS)
        assert world.hv.sched.algorithm.assigned == {world.hv.sched.pcpus[0]: b.vcpus[0].unit}
        assert shares(world, [a, b], 50 * MS, 60 * MS) == [0, pytest.approx(1, rel=0.01)]

    def test_affinity_moves(self):
        world = World(scheduler="null", pcpus=2)
        (a,) = make(world, 1)
        world.run(until=5 * MS)
        assert a.vcpus[0].processor == 0
        world.hv.sched.set_affinity(a.vcpus[0], 0b10)
        world.run(until=250 * MS)
        assert a.vcpus[0].processor == 1
        assert shares(world, [a], 260 * MS, 270 * MS) == [pytest.approx(1, rel=0.01)]


def timetable(control, *windows: tuple[bytes, int, int], frame: int) -> int:
    layout = sysctl.xen_sysctl_arinc653_schedule
    entries = [{"dom_handle": handle, "vcpu_id": vcpu, "runtime": ns} for handle, vcpu, ns in windows]
    table = layout.pack(major_frame=frame, num_sched_entries=len(windows), sched_entries=entries)
    control.poke(control.va(0), table)
    return scheduler_op(control, sysctl.XEN_SYSCTL_SCHEDOP_putinfo)


def scheduler_op(control, cmd: int) -> int:
    fields = {
        "cmd": sysctl.XEN_SYSCTL_scheduler_op,
        "interface_version": sysctl.XEN_SYSCTL_INTERFACE_VERSION,
        "u": {"scheduler_op": {"sched_id": 7, "cmd": cmd, "u": {"sched_arinc653": {"schedule": control.va(0)}}}},
    }
    return control.call(xen.HYPERVISOR_sysctl, layout=sysctl.xen_sysctl, **fields)[0]


class TestArinc653:
    def world(self):
        world = World(scheduler="arinc653")
        control, a, b = world.guest(), *make(world, 2)
        for number, guest in enumerate((a, b)):
            guest.domain.handle = bytes([number + 1] * 16)
        return world, control, a, b

    def test_only_dom0_has_a_window_at_first(self):
        world, control, a, b = self.world()
        control.runs(spin())
        assert shares(world, [control, a, b], 20 * MS, 120 * MS) == [pytest.approx(1, rel=0.01), 0, 0]

    def test_a_timetable_is_kept(self):
        world, control, a, b = self.world()
        rows = (bytes([1] * 16), 0, 5 * MS), (bytes([2] * 16), 0, 3 * MS)
        assert timetable(control, *rows, frame=20 * MS) == 0
        got = shares(world, [a, b], 100 * MS, 1100 * MS)
        assert got == [pytest.approx(0.25, rel=0.01), pytest.approx(0.15, rel=0.01)]
        check_times(world)

    def test_who_sleeps_leaves_its_window_empty(self):
        world, control, a, b = self.world()
        timetable(control, (bytes([1] * 16), 0, 5 * MS), (bytes([2] * 16), 0, 5 * MS), frame=10 * MS)
        world.run(until=50 * MS)
        world.hv.sched.stop(a.vcpus[0], VPF_PAUSED)
        assert shares(world, [b], 100 * MS, 1100 * MS) == [pytest.approx(0.5, rel=0.01)]

    def test_what_is_refused(self):
        _world, control, _a, _b = self.world()
        good = (bytes(16), 0, 5 * MS)
        assert timetable(control, good, frame=5 * MS) == 0
        assert timetable(control, good, frame=5 * MS - 1) == -errno.EINVAL
        assert timetable(control, frame=5 * MS) == -errno.EINVAL
        assert timetable(control, (bytes(16), 0, 0), frame=5 * MS) == -errno.EINVAL
        assert timetable(control, (bytes(16), 0, (1 << 64) - 1), frame=5 * MS) == -errno.EINVAL
        assert timetable(control, good, frame=(1 << 64) - 1) == -errno.EINVAL

    def test_reading_it_back(self):
        _world, control, _a, _b = self.world()
        timetable(control, (bytes([7] * 16), 3, 5 * MS), frame=11 * MS)
        control.poke(control.va(0), bytes(4000))
        assert scheduler_op(control, sysctl.XEN_SYSCTL_SCHEDOP_getinfo) == 0
        layout = sysctl.xen_sysctl_arinc653_schedule
        table = layout.unpack(control.peek(control.va(0), layout.size))
        assert (table.major_frame, table.num_sched_entries) == (11 * MS, 1)
        entry = table.sched_entries[0]
        assert (bytes(entry.dom_handle), entry.vcpu_id, entry.runtime) == (bytes([7] * 16), 3, 5 * MS)
        assert table.sched_entries[1].vcpu_id == 0xFFFFFFFF
