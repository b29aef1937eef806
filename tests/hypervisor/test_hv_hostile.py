"""Hypercalls that no sane kernel makes: what random ones (tests/fuzz) have found wrong."""

from __future__ import annotations

from collections import deque

import pytest
from core_world import KERNEL, SCHED_OP

from hypervisor.abi import domctl, sched, xen
from hypervisor.event_channel.check import check_events
from hypervisor.machine.timers import Timers
from hypervisor.mm.check import check as check_frames

DOMCTL = xen.HYPERVISOR_domctl


def control(dom0, cmd, domid, **u):
    return dom0.call(
        DOMCTL,
        layout=domctl.xen_domctl,
        cmd=cmd,
        interface_version=domctl.XEN_DOMCTL_INTERFACE_VERSION,
        domain=domid,
        u=u,
    )[0]


def test_a_second_poll_before_the_processor_is_left_replaces_the_first(world):
    """Each poll was counted, and the timer of the first was lost."""
    world.guest()
    guest = world.guest()
    went_on = []

    def program(cpu):
        for timeout in (1_000_000, 5_000_000):
            guest.poke(guest.args, sched.sched_poll.pack(timeout=timeout))
            assert cpu.hypercall(SCHED_OP, sched.SCHEDOP_poll, guest.args) == 0
        assert guest.domain.pollers == 1
        yield 0
        went_on.append(world.hv.clock.now)
        yield 0
        cpu.hypercall(SCHED_OP, sched.SCHEDOP_block)
        yield 0

    guest.runs(program)
    world.run(until=20_000_000)
    assert 5_000_000 <= went_on[0] < 6_000_000
    assert guest.domain.pollers == 0
    check_events(world.hv)


@pytest.mark.parametrize("seconds", [-(1 << 63), -1, (1 << 63) - 1])
def test_a_time_offset_may_be_any_number(world, seconds):
    """A negative sum or one of more than 64 bits did not fit into shared_info."""
    dom0, guest = world.guest(), world.guest()
    at = guest.domain.shared_info_mfn << 12
    shared = xen.shared_info
    q = world.hv.memory.i
    # The wall clock is set when vCPU 0 gets its registers, which this one never does, or with the offset.
    assert control(dom0, domctl.XEN_DOMCTL_settimeoffset, 1, settimeoffset={"time_offset_seconds": 0}) == 0
    before = q[(at + shared.offset("wc_sec")) >> 2] | q[(at + shared.offset("wc_sec_hi")) >> 2] << 32
    assert control(dom0, domctl.XEN_DOMCTL_settimeoffset, 1, settimeoffset={"time_offset_seconds": seconds}) == 0
    after = q[(at + shared.offset("wc_sec")) >> 2] | q[(at + shared.offset("wc_sec_hi")) >> 2] << 32
    assert after == before + seconds & (1 << 64) - 1


def test_a_vcpu_that_is_reset_forgets_its_translations(world):
    """What it remembered outlived the page tables that it was true of."""
    dom0, guest = world.guest(), world.guest()
    guest.peek(guest.args, 8)
    vcpu = guest.vcpus[0]
    vcpu.context.rip, vcpu.initialised = KERNEL, True
    assert vcpu.tlb_r
    assert control(dom0, domctl.XEN_DOMCTL_setvcpucontext, 1, vcpucontext={"vcpu": 0, "ctxt": 0}) == 0
    assert not vcpu.tlb_r
    assert not vcpu.tlb_w
    check_frames(world.hv)


def test_a_timer_after_the_end_of_time_never_fires(world):
    """One of an idle host was taken for "nothing to do" by half of the loop, and for a timer by the other half."""
    world.guest()
    fired = []
    timer = world.hv.timers.add(Timers.NEVER, lambda: fired.append(1))
    world.hv.timers.add(Timers.NEVER + 5, lambda: fired.append(2)).cancel()
    world.hv.timers.add(1000, lambda: fired.append(3))
    assert world.hv.sched.drain(10) == Timers.NEVER
    assert fired == [3]
    timer.cancel()


def test_at_the_end_of_time_nothing_happens_any_more(world):
    """A timer one nanosecond before the end let the clock step over it, and the loop looked for a timer in vain."""
    world.guest()
    guest = world.guest()

    def program(cpu):
        while True:
            yield 1_000_000

    world.hv.timers.add(Timers.NEVER - 1, lambda: guest.runs(program))
    for _ in range(20):
        last = world.hv.sched.drain(1)
    assert last == Timers.NEVER
    assert world.hv.clock.now == Timers.NEVER - 1


class AllThings:
    """Says that it is equal to everything and as long as it likes."""

    def __bool__(self) -> bool:
        raise RuntimeError("no truth here")

    def __repr__(self) -> str:
        return "AllThings()"


class Counted(deque):
    """Not a deque, but derived from one: whether it is empty is code of the guest's."""

    def __len__(self) -> int:
        return 1


WISHES = ["long", -1, 1.5, [1], 1 << 70, AllThings(), True, Counted(), (), [], {}, None]


@pytest.mark.parametrize("wish", WISHES, ids=[f"{type(wish).__name__}{n}" for n, wish in enumerate(WISHES)])
def test_a_guest_that_asks_for_a_senseless_amount_of_computing_crashes_alone(world, wish):
    """What a guest yields goes into the arithmetic of the pCPU loop, so it must be a number of nanoseconds, or a deque
    to be idle by: no code of the guest's is run to find out whether there is something in that.
    """
    world.guest()
    guest, other = world.guest(), world.guest()
    steps = []

    def program(cpu):
        yield wish
        steps.append("wished")
        yield 0

    def bystander(cpu):
        for _ in range(5):
            steps.append("other")
            yield 1000
        cpu.hypercall(SCHED_OP, sched.SCHEDOP_block)
        yield 0

    guest.runs(program)
    other.runs(bystander)
    world.run(until=1_000_000)
    assert guest.domain.shutdown_code == sched.SHUTDOWN_crash
    assert steps == ["other"] * 5
