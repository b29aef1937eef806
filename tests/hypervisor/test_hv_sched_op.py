"""HYPERVISOR_sched_op, rule by rule (sched.h, and what Xen 4.17 answers)."""

from __future__ import annotations

import pytest
from core_world import MS, PENDING, SCHED_OP, SELF, World

from hypervisor.abi import errno, sched, xen
from hypervisor.vcpu import VPF_BLOCKED, VPF_DOWN

EINVAL, EPERM, ESRCH, ENOSYS, EFAULT = (
    -number for number in (errno.EINVAL, errno.EPERM, errno.ESRCH, errno.ENOSYS, errno.EFAULT)
)
NOWHERE = 0x700000
XEN = 0xFFFF800000000000
SECOND = 1_000_000_000


@pytest.fixture
def guest(pair):
    return pair.domu


def asleep(guest, vcpu=0):
    return bool(guest.vcpus[vcpu].pause_flags & VPF_BLOCKED)


class TestPoll:
    def test_sleeps_until_a_port_is_pending(self, pair, guest):
        remote = guest.alloc(0)
        local = pair.dom0.bind(1, remote)
        assert guest.poll([remote]) == 0
        assert asleep(guest)
        pair.dom0.send(local)
        assert not asleep(guest)

    @pytest.mark.parametrize("masked", [False, True])
    def test_returns_at_once_for_a_pending_port_masked_or_not(self, guest, masked):
        port = guest.ipi()
        if masked:
            guest.mask(port)
        guest.send(port)
        assert guest.poll([port]) == 0
        assert not asleep(guest)

    def test_a_masked_port_ends_it_too(self, pair, guest):
        remote = guest.alloc(0)
        local = pair.dom0.bind(1, remote)
        guest.mask(remote)
        guest.poll([remote])
        pair.dom0.send(local)
        assert not asleep(guest)
        assert guest.upcall_pending() == 0

    def test_another_port_does_not_end_it_if_masked(self, guest):
        port, other = guest.alloc(), guest.ipi()
        guest.mask(other)
        guest.poll([port])
        guest.send(other)
        assert asleep(guest)

    def test_another_port_unmasked_does_even_with_upcalls_masked(self, guest):
        port, other = guest.alloc(), guest.ipi()
        assert guest.upcall_mask() == 1
        guest.poll([port])
        guest.send(other)
        assert not asleep(guest)

    def test_of_several_ports_or_none_is_ended_by_any_event(self, guest):
        """Xen remembers one port at most; with several, every event makes it look again."""
        ports, other = [guest.alloc(), guest.alloc()], guest.ipi()
        guest.mask(other)
        for polled in (ports, []):
            guest.clear(other)
            guest.poll(polled)
            assert asleep(guest)
            guest.send(other)
            assert not asleep(guest)

    def test_ports_are_looked_at_in_order(self, guest):
        pending, idle = guest.ipi(), guest.alloc()
        guest.send(pending)
        assert guest.poll([pending, 4000]) == 0
        assert guest.poll([4000, pending]) == EINVAL
        assert guest.poll([idle, 4000]) == EINVAL
        assert not asleep(guest)

    @pytest.mark.parametrize("port", [0, 9, 64, 5000])
    def test_what_is_no_port(self, guest, port):
        assert guest.poll([port]) == EINVAL

    def test_at_most_128_ports(self, guest):
        port = guest.alloc()
        assert guest.poll([port] * 128) == 0
        assert asleep(guest)
        guest.hv.sched.wake(guest.vcpus[0])
        assert guest.poll([port] * 129) == EINVAL

    def test_unreadable_ports(self, guest):
        assert guest.poll([1], at=NOWHERE) == EFAULT
        assert not asleep(guest)

    def test_an_unreadable_port_behind_a_pending_one_is_not_read(self, guest):
        port = guest.ipi()
        guest.send(port)
        last = guest.va(28) - 4
        guest.poke(last, port.to_bytes(4, "little"))
        assert guest.poll([port, port], at=last) == 0
        guest.clear(port)
        assert guest.poll([port, port], at=last) == EFAULT

    def test_no_ports_the_pointer_is_not_read(self, guest):
        assert guest.poll([], at=NOWHERE) == 0
        assert asleep(guest)

    def test_a_pointer_into_xen_is_refused_all_the_same(self, guest):
        assert guest.poll([], at=XEN) == EFAULT

    def test_an_upcall_that_is_due_comes_first(self, guest):
        guest.set_upcall_mask(0)
        guest.set_upcall_pending(1)
        assert guest.poll([4000]) == 0
        assert not asleep(guest)

    def test_a_masked_upcall_does_not_count(self, guest):
        guest.set_upcall_pending(1)
        guest.poll([guest.alloc()])
        assert asleep(guest)

    def test_timeout(self, pair, guest):
        guest.poll([guest.alloc()], timeout=5 * MS)
        assert asleep(guest)
        pair.world.run(until=5 * MS)
        assert not asleep(guest)

    @pytest.mark.parametrize("timeout", [1, 1 << 63, (1 << 64) - 1])
    def test_a_timeout_that_has_passed(self, pair, guest, timeout):
        pair.world.run(until=1 * MS)
        assert guest.poll([guest.alloc()], timeout=timeout) == 0
        assert not asleep(guest)

    def test_no_timeout_is_for_ever(self, pair, guest):
        guest.poll([guest.alloc()], timeout=0)
        pair.world.run(until=1000 * SECOND)
        assert asleep(guest)

    def test_leaves_upcalls_masked(self, guest):
        guest.poll([guest.alloc()])
        assert guest.upcall_mask() == 1

    def test_a_dying_domain_polls_no_more(self, pair, guest):
        guest.poll([guest.alloc()], timeout=SECOND)
        pair.hv.domain_ops.kill(guest.domain)
        assert len(pair.hv.timers) == 0


class TestShutdown:
    @pytest.mark.parametrize(("reason", "code"), [(0, 0), (1, 1), (3, 3), (5, 5), (255, 255), (256, 0), (0x1FF, 255)])
    def test_reason_is_cut_to_8_bits(self, guest, reason, code):
        assert guest.shutdown(reason) == 0
        assert guest.domain.shutting_down
        assert guest.domain.shutdown_code == code

    def test_an_announced_reason_sticks(self, guest):
        announce = sched.SCHEDOP_shutdown_code
        assert guest.sched(announce, sched.sched_shutdown, reason=0x102) == 0
        assert not guest.domain.shutting_down
        assert guest.shutdown(1) == 0
        assert guest.domain.shutdown_code == 2

    def test_the_last_announcement_counts(self, guest):
        announce = sched.SCHEDOP_shutdown_code
        guest.sched(announce, sched.sched_shutdown, reason=2)
        guest.sched(announce, sched.sched_shutdown, reason=3)
        guest.shutdown(0)
        assert guest.domain.shutdown_code == 3

    def test_only_the_first_counts(self, guest):
        guest.shutdown(1)
        guest.shutdown(2)
        assert guest.domain.shutdown_code == 1

    def test_unreadable_argument(self, guest):
        assert guest.hypercall(SCHED_OP, sched.SCHEDOP_shutdown, NOWHERE) == EFAULT

    def test_stops_all_vcpus(self, pair, guest):
        ran = []

        def first(cpu):
            yield 1000
            guest.shutdown(0)
            yield 0
            ran.append("first")

        def second(cpu):
            while True:
                yield 1 * MS
                ran.append(pair.hv.clock.now)

        guest.runs(first, second)
        pair.world.run(until=100 * MS)
        assert ran == []
        assert not pair.hv.sched.run_queue

    def test_by_the_old_form_of_the_hypercall(self, guest):
        old = xen.HYPERVISOR_sched_op_compat
        assert guest.hypercall(old, 9, 0) == ENOSYS
        assert guest.hypercall(old, sched.SCHEDOP_poll, 0) == ENOSYS
        assert guest.hypercall(old, sched.SCHEDOP_yield, 0) == 0
        assert guest.hypercall(old, sched.SCHEDOP_block, 0) == 0
        assert asleep(guest)
        assert guest.hypercall(old, sched.SCHEDOP_shutdown, 1) == 0
        assert guest.domain.shutdown_code == 1


class TestRemoteShutdown:
    def remote(self, guest, domid, reason=3):
        op = sched.SCHEDOP_remote_shutdown
        return guest.sched(op, sched.sched_remote_shutdown, domain_id=domid, reason=reason)

    def test_by_dom0(self, pair):
        assert self.remote(pair.dom0, 1, 0x203) == 0
        assert pair.domu.domain.shutdown_code == 3

    def test_not_by_a_domu(self, pair):
        assert self.remote(pair.domu, 0) == EPERM
        assert not pair.dom0.domain.shutting_down

    def test_by_a_stub_domain_for_its_target(self, pair):
        other = pair.world.guest()
        other.domain.target = pair.domu.domain
        assert self.remote(other, 1) == 0

    @pytest.mark.parametrize("domid", [SELF, 77, xen.DOMID_IO])
    def test_of_a_missing_domain(self, pair, domid):
        assert self.remote(pair.domu, domid) == ESRCH


class TestWatchdog:
    def test_ids(self, guest):
        assert guest.watchdog(0, 10) == 1
        assert guest.watchdog(0, 10) == 2
        assert guest.watchdog(0, 10) == 4294967268  # -ENOSPC, as an unsigned 32-bit number
        assert guest.watchdog(1, 10) == 0
        assert guest.watchdog(2, 0) == 0
        assert guest.watchdog(0, 10) == 2

    @pytest.mark.parametrize("number", [1, 2, 3, 0xFFFFFFFF])
    def test_one_that_is_not_in_use(self, guest, number):
        assert guest.watchdog(number, 10) == EINVAL

    def test_bites(self, pair, guest):
        guest.watchdog(0, 2)
        pair.world.run(until=2 * SECOND - 1)
        assert not guest.domain.shutting_down
        pair.world.run(until=2 * SECOND)
        assert guest.domain.shutdown_code == sched.SHUTDOWN_watchdog

    def test_a_new_one_without_time_bites_at_once(self, pair, guest):
        assert guest.watchdog(0, 0) == 1
        pair.world.run(until=1_001)
        assert guest.domain.shutdown_code == 4

    def test_poked(self, pair, guest):
        guest.watchdog(0, 2)
        pair.world.run(until=1 * SECOND)
        guest.watchdog(1, 2)
        pair.world.run(until=2 * SECOND)
        assert not guest.domain.shutting_down

    def test_stopped(self, pair, guest):
        guest.watchdog(0, 2)
        guest.watchdog(1, 0)
        pair.world.run(until=3 * SECOND)
        assert not guest.domain.shutting_down

    def test_leaves_a_domain_alone_that_has_shut_down(self, pair, guest):
        guest.watchdog(0, 2)
        guest.shutdown(0)
        pair.world.run(until=3 * SECOND)
        assert guest.domain.shutdown_code == 0

    def test_dies_with_its_domain(self, pair, guest):
        guest.watchdog(0, 2)
        guest.watchdog(0, 3)
        pair.hv.domain_ops.kill(guest.domain)
        assert len(pair.hv.timers) == 0


class TestOthers:
    @pytest.mark.parametrize("op", [8, 11, 99, 0xFFFFFFFF])
    def test_unknown_even_with_a_bad_pointer(self, guest, op):
        assert guest.hypercall(SCHED_OP, op, NOWHERE) == ENOSYS

    def test_command_is_a_32_bit_number(self, guest):
        assert guest.hypercall(SCHED_OP, 1 << 32 | sched.SCHEDOP_block, 0) == 0
        assert asleep(guest)

    def test_pinning(self, pair):
        op = sched.SCHEDOP_pin_override
        assert pair.domu.hypercall(SCHED_OP, op, NOWHERE) == EPERM
        assert pair.dom0.hypercall(SCHED_OP, op, NOWHERE) == EFAULT
        assert pair.dom0.sched(op, sched.sched_pin_override, pcpu=99) == EINVAL
        assert pair.dom0.sched(op, sched.sched_pin_override, pcpu=-1) == EINVAL
        assert pair.dom0.sched(op, sched.sched_pin_override, pcpu=0) == 0
        assert pair.dom0.sched(op, sched.sched_pin_override, pcpu=0) == -errno.EBUSY
        assert pair.dom0.sched(op, sched.sched_pin_override, pcpu=-5) == 0
        assert pair.dom0.sched(op, sched.sched_pin_override, pcpu=-1) == EINVAL

    @pytest.mark.parametrize("pcpu", [0, 1, 2])
    def test_a_pinned_vcpu_stays_where_it_is(self, pcpu):
        world = World(pcpus=3)
        dom0 = world.guest(vcpus=2)
        others = [world.guest() for _ in range(4)]
        seen: list[set[int]] = [set(), set()]

        def works(cpu):
            while True:
                seen[0].add(cpu._vcpu.processor)
                yield MS

        def pinned(cpu):
            assert dom0.sched(sched.SCHEDOP_pin_override, sched.sched_pin_override, pcpu=pcpu, on=1) == 0
            yield 0
            for _ in range(100):
                seen[1].add(cpu._vcpu.processor)
                dom0.poll([], timeout=world.hv.now() + MS, on=1)
                yield 0
            assert dom0.sched(sched.SCHEDOP_pin_override, sched.sched_pin_override, pcpu=-1, on=1) == 0
            for guest in others:
                world.hv.domain_ops.kill(guest.domain)
            dom0.shutdown(0)
            yield 0

        for guest in others:
            guest.runs(works)
        dom0.runs(works, pinned)
        world.run(steps=100_000)
        assert seen == [{0, 1, 2}, {pcpu}]
        world.check()

    def test_blocking_a_vcpu_does_not_take_it_down(self, guest):
        guest.block()
        guest.vcpus[0].pause_flags &= ~VPF_DOWN
        assert guest.is_up(0) == 1

    def test_pending_bits_set_by_hand_count_for_a_poll(self, guest):
        port = guest.alloc()
        guest.set_bit(PENDING, port, True)
        assert guest.poll([port]) == 0
        assert not asleep(guest)
