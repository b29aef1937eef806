"""Guest time: stamps, wall clock, and the three ways to VIRQ_TIMER (xen.h, vcpu.h, and what Xen 4.17 answers)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from core_world import MS, VCPU_OP

from hypervisor.abi import errno, xen
from hypervisor.abi import vcpu as abi
from hypervisor.machine.clock import VIRTUAL_EPOCH_NS

SET_TIMER = xen.HYPERVISOR_set_timer_op
SECOND = 1_000_000_000
EINVAL, EFAULT, ENOENT = -errno.EINVAL, -errno.EFAULT, -errno.ENOENT
NOWHERE = 0x700000


@pytest.fixture
def guest(pair):
    """A domain that only makes hypercalls, its 10 ms tick stopped, with VIRQ_TIMER bound to port 1."""
    guest = pair.domu
    assert guest.vcpu_op(abi.VCPUOP_stop_periodic_timer, 0) == 0
    assert guest.virq(xen.VIRQ_TIMER) == 1
    return guest


def set_timer(guest, deadline):
    return guest.hypercall(SET_TIMER, deadline)


def stamps(guest, vcpu=0):
    memory = guest.hv.memory
    info = guest.vcpus[vcpu].info
    return xen.vcpu_info.unpack_from(bytes(memory.b[info : info + xen.vcpu_info.size])).time


def fires_at(pair, guest, *times):
    """Let time pass; returns at which of the times the timer was found to have fired, and takes note of each firing."""
    found = []
    for time in times:
        pair.world.run(until=time)
        if guest.pending(1):
            found.append(time)
            guest.acknowledge()
    return found


class TestSetTimerOp:
    def test_fires_then(self, pair, guest):
        assert set_timer(guest, 5 * MS) == 0
        assert fires_at(pair, guest, 5 * MS - 1, 5 * MS, 50 * MS) == [5 * MS]

    def test_zero_cancels(self, pair, guest):
        set_timer(guest, 5 * MS)
        assert set_timer(guest, 0) == 0
        assert fires_at(pair, guest, 50 * MS) == []

    def test_there_is_one_timer(self, pair, guest):
        set_timer(guest, 20 * MS)
        set_timer(guest, 40 * MS)
        assert fires_at(pair, guest, 30 * MS, 40 * MS, 90 * MS) == [40 * MS]

    def test_a_past_time_fires_before_the_call_returns(self, pair, guest):
        pair.world.run(until=MS)
        assert set_timer(guest, 1) == 0
        assert guest.pending(1)

    @pytest.mark.parametrize("deadline", [1 << 50, 1 << 51, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1])
    def test_what_cannot_be_meant_fires_after_100_ms(self, pair, guest, deadline):
        assert set_timer(guest, deadline) == 0
        assert fires_at(pair, guest, 99 * MS, 101 * MS) == [101 * MS]

    def test_just_below_that_is_meant(self, pair, guest):
        set_timer(guest, (1 << 50) - 1)
        assert fires_at(pair, guest, 101 * MS, 10 * SECOND) == []

    def test_an_unbound_virq_is_lost(self, pair, guest):
        guest.close(1)
        set_timer(guest, MS)
        assert fires_at(pair, guest, 2 * MS) == []


class TestSingleshot:
    def arm(self, guest, when, flags=0, vcpu=0):
        layout = abi.vcpu_set_singleshot_timer
        return guest.vcpu_op(abi.VCPUOP_set_singleshot_timer, vcpu, layout, timeout_abs_ns=when, flags=flags)

    def test_is_the_same_timer(self, pair, guest):
        assert self.arm(guest, 30 * MS) == 0
        set_timer(guest, 5 * MS)
        assert fires_at(pair, guest, 5 * MS, 50 * MS) == [5 * MS]

    @pytest.mark.parametrize("when", [0, 1, 1 << 63, (1 << 64) - 1])
    @pytest.mark.parametrize("flags", [0, abi.VCPU_SSHOTTMR_future, 0xFFFFFFFF])
    def test_a_past_time_fires_whatever_the_flags(self, pair, guest, when, flags):
        pair.world.run(until=MS)
        assert self.arm(guest, when, flags) == 0
        assert guest.pending(1)

    def test_a_far_time_is_meant(self, pair, guest):
        self.arm(guest, 1 << 60)
        assert fires_at(pair, guest, 10 * SECOND) == []

    def test_stopped(self, pair, guest):
        self.arm(guest, 30 * MS)
        assert guest.vcpu_op(abi.VCPUOP_stop_singleshot_timer, 0) == 0
        assert fires_at(pair, guest, 50 * MS) == []

    def test_not_of_another_vcpu(self, guest):
        assert self.arm(guest, 1, vcpu=1) == EINVAL
        assert guest.vcpu_op(abi.VCPUOP_stop_singleshot_timer, 1) == EINVAL
        assert self.arm(guest, 1, vcpu=2) == ENOENT

    def test_unreadable_argument(self, guest):
        assert guest.hypercall(VCPU_OP, abi.VCPUOP_set_singleshot_timer, 0, NOWHERE) == EFAULT


class TestPeriodic:
    def period(self, guest, ns, vcpu=0):
        return guest.vcpu_op(abi.VCPUOP_set_periodic_timer, vcpu, abi.vcpu_set_periodic_timer, period_ns=ns)

    @pytest.mark.parametrize("period", [0, 1, 999_999, 1 << 62, (1 << 64) - 1])
    def test_periods_that_cannot_be(self, guest, period):
        assert self.period(guest, period) == EINVAL

    @pytest.mark.parametrize("period", [1_000_000, (1 << 62) - 1])
    def test_periods_that_can(self, guest, period):
        assert self.period(guest, period) == 0

    def ticks(self, pair, guest, program, until):
        """Run a program on vCPU 0; returns the times of the ticks."""
        times = []

        def handler():
            times.append(pair.hv.now())
            guest.acknowledge()

        def unmasked(cpu):
            guest.set_upcall_mask(0)
            yield from program(cpu)

        guest.runs(unmasked, handler=handler)
        pair.world.run(until=until)
        return times

    def test_ticks_while_it_runs(self, pair, guest):
        self.period(guest, 10 * MS)

        def program(cpu):
            while True:
                yield 5 * MS

        assert len(self.ticks(pair, guest, program, 105 * MS)) == 10

    def test_every_pv_vcpu_starts_with_10_ms(self, pair):
        guest = pair.domu
        guest.virq(xen.VIRQ_TIMER)

        def program(cpu):
            while True:
                yield 5 * MS

        assert len(self.ticks(pair, guest, program, 105 * MS)) == 10

    def test_does_not_wake_a_poll_and_shows_up_after_it(self, pair, guest):
        self.period(guest, 10 * MS)
        order = []

        def program(cpu):
            guest.poll([guest.alloc()], timeout=pair.hv.now() + 80 * MS)
            yield 0
            order.append(pair.hv.now())
            guest.shutdown(0)
            yield 0

        ticks = self.ticks(pair, guest, program, 200 * MS)
        assert len(ticks) == 1
        assert ticks[0] >= 80 * MS
        assert order[0] >= ticks[0]

    def test_stopped(self, pair, guest):
        self.period(guest, 10 * MS)
        assert guest.vcpu_op(abi.VCPUOP_stop_periodic_timer, 0) == 0

        def program(cpu):
            while True:
                yield 5 * MS

        assert self.ticks(pair, guest, program, 105 * MS) == []

    def test_of_another_vcpu(self, guest):
        assert self.period(guest, 10 * MS, vcpu=1) == 0
        assert guest.vcpus[1].periodic_ns == 10 * MS


class TestStamps:
    def test_version_2_at_the_first_entry_and_2_more_each_second(self, pair):
        guest = pair.domu
        seen = []

        def program(cpu):
            while True:
                seen.append(stamps(guest).version)
                guest.poll([], timeout=pair.hv.now() + SECOND)
                yield 0

        guest.runs(program)
        pair.world.run(until=3 * SECOND + MS)
        assert seen == [2, 4, 6, 8]

    def test_read_as_guests_read_them(self, pair):
        guest = pair.domu
        readings = []

        def program(cpu):
            while True:
                time = stamps(guest)
                delta = cpu.rdtsc() - time.tsc_timestamp
                delta = delta << time.tsc_shift if time.tsc_shift >= 0 else delta >> -time.tsc_shift
                readings.append((time.system_time + (delta * time.tsc_to_system_mul >> 32), pair.hv.now()))
                yield 700 * MS

        guest.runs(program)
        pair.world.run(until=5 * SECOND)
        assert len(readings) > 5
        assert all(read == true for read, true in readings)

    def test_time_moves_with_every_hypercall(self, pair):
        guest = pair.domu
        times = []

        def program(cpu):
            for _ in range(3):
                times.append(cpu.rdtsc())
                cpu.hypercall(xen.HYPERVISOR_xen_version, 0)
            yield 0

        guest.runs(program)
        pair.world.run()
        assert [b - a for a, b in pairwise(times)] == [pair.hv.sched.costs.hypercall] * 2

    def test_wall_clock(self, pair):
        pair.domu.runs(lambda cpu: iter([0]))
        memory, base = pair.hv.memory, pair.domu.domain.shared_info_mfn << 12
        info = xen.shared_info.unpack_from(bytes(memory.b[base : base + xen.shared_info.size]))
        assert info.wc_version == 2
        assert (info.wc_sec_hi << 32 | info.wc_sec) * SECOND + info.wc_nsec == VIRTUAL_EPOCH_NS
        assert info.arch.max_pfn == 0


def test_nothing_is_left_of_a_dead_domains_timers(pair, guest):
    set_timer(guest, SECOND)

    def program(cpu):
        while True:
            yield MS

    guest.domain.text.clear()
    guest.runs(program)
    pair.world.run(until=5 * MS)
    pair.hv.domain_ops.kill(guest.domain)
    assert len(pair.hv.timers) == 0
