"""Every scheduler under random treatment: nobody is lost, nobody runs where it may not, all times add up."""

from __future__ import annotations

import contextlib

import pytest
from core_world import MS, SCHED_OP, World
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sched_world import adjust, check_times, set_rtds

from hypervisor.abi import sched
from hypervisor.errors import HypercallError
from hypervisor.sched.schedulers import XENS
from hypervisor.vcpu import VPF_PAUSED

PCPUS = 3
GUESTS = st.integers(1, 5)
CPUS = st.integers(0, PCPUS - 1)


class Treatment(RuleBasedStateMachine):
    """Guests that compute, yield, sleep and wake each other, on pools that change."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @initialize(scheduler=st.sampled_from(sorted(XENS)), pcpus=st.sampled_from([1, PCPUS]))
    def power_on(self, scheduler, pcpus):
        self.world = world = World(scheduler=scheduler, pcpus=pcpus)
        self.control = world.guest()
        self.guests = [world.guest(vcpus=1 + number % 2) for number in range(5)]
        self.paused: set[object] = set()
        for number, guest in enumerate(self.guests):
            guest.runs(*(self.program(guest, number, vcpu.vcpu_id) for vcpu in guest.vcpus))

    @staticmethod
    def program(guest, number, vcpu_id):
        def program(cpu):
            turn = number
            while True:
                turn += 1
                yield (turn * 7919 + number * 104_729) % 4_000_000
                if turn % 3 == 0:
                    cpu.hypercall(SCHED_OP, sched.SCHEDOP_yield, 0)
                    yield 0
                elif turn % 4 == 1:
                    guest.poll([], timeout=guest.hv.now() + turn * 31_337 % 5_000_000 + 1, on=vcpu_id)
                    yield 0

        return program

    def guest(self, number):
        return self.guests[number - 1]

    @rule(us=st.integers(1, 40_000))
    def run(self, us):
        self.world.run(until=self.world.hv.now() + us * 1000, steps=200_000)

    @rule(number=GUESTS)
    def pause_or_go_on(self, number):
        for vcpu in self.guest(number).vcpus:
            if vcpu in self.paused:
                self.paused.discard(vcpu)
                self.world.hv.sched.unpause(vcpu, VPF_PAUSED)
            else:
                self.paused.add(vcpu)
                self.world.hv.sched.stop(vcpu, VPF_PAUSED)

    @rule(number=GUESTS, weight=st.integers(1, 65535), cap=st.integers(0, 100))
    def weigh(self, number, weight, cap):
        guest = self.guest(number)
        kind = self.world.hv.sched.algorithm_of(guest.domain).name
        if kind in ("credit", "credit2"):
            told = adjust(self.control, guest, kind, weight=weight, cap=cap)
            assert (told.weight, told.cap) == (weight, cap)
        elif kind == "rtds":
            period = weight + 10
            assert set_rtds(self.control, guest, period, 10 + weight * cap // 100, extra=bool(cap % 2)) == 0

    @rule(number=GUESTS, mask=st.integers(1, (1 << PCPUS) - 1), soft=st.integers(0, 7))
    def pin(self, number, mask, soft):
        guest = self.guest(number)
        for vcpu in guest.vcpus:
            if mask & self.world.hv.sched.algorithm_of(guest.domain).cpu_mask:
                self.world.hv.sched.set_affinity(vcpu, mask)
            self.world.hv.sched.set_soft_affinity(vcpu, soft)

    @rule(scheduler=st.sampled_from(sorted(XENS)))
    def make_pool(self, scheduler):
        self.refusable(self.world.hv.sched.pools.create, None, XENS[scheduler])

    @rule(number=st.integers(0, 3))
    def give_pool_up(self, number):
        self.refusable(self.world.hv.sched.pools.destroy, number)

    @rule(number=st.integers(0, 3), cpu=CPUS)
    def add_cpu(self, number, cpu):
        self.refusable(self.world.hv.sched.pools.add_cpu, number, cpu)

    @rule(number=st.integers(0, 3), cpu=CPUS)
    def remove_cpu(self, number, cpu):
        self.refusable(self.world.hv.sched.pools.remove_cpu, number, cpu)

    @rule(number=GUESTS, pool=st.integers(0, 3))
    def move(self, number, pool):
        self.refusable(self.world.hv.sched.pools.move, self.guest(number).domain, pool)

    @staticmethod
    def refusable(function, *arguments):
        with contextlib.suppress(HypercallError):
            function(*arguments)

    @invariant()
    def everything_is_in_its_place(self):
        if self.world is None:
            return
        sched_ = self.world.hv.sched
        waiting = list(sched_.run_queue)
        assert len(set(waiting)) == len(waiting)
        for guest in self.guests:
            algorithm = sched_.algorithm_of(guest.domain)
            for vcpu in guest.vcpus:
                assert vcpu.unit.algorithm is algorithm
                assert vcpu.unit in algorithm.units
                on = [pcpu for pcpu in sched_.pcpus if pcpu.current is vcpu]
                assert len(on) <= 1
                assert vcpu.queued == (vcpu in waiting or vcpu.parked)
                assert not (vcpu.parked and vcpu in waiting)
                if not vcpu.pause_flags:
                    assert vcpu.queued or on, f"{vcpu} is lost"
                else:
                    assert not vcpu.queued
        self.world.check()
        check_times(self.world)

    @invariant()
    def nobody_waits_for_an_idle_pcpu(self):
        """After a while of running, whoever could run on an idle pCPU does."""
        if self.world is None or self.world.hv.now() < MS:
            return
        sched_ = self.world.hv.sched
        for vcpu in sched_.run_queue:
            for pcpu in sched_.pcpus:
                if pcpu.current is None and vcpu.cpus >> pcpu.cpu_id & 1:
                    # The loop has not come to it yet: it must be able to, at the time that it is ready.
                    assert sched_._next_start(pcpu) >> 1 <= max(vcpu.ready_at, pcpu.now)


Treatment.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestTreatment = pytest.mark.leaves_live_host("hosts are taken apart by the next one")(Treatment.TestCase)
