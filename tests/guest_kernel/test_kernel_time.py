"""Clocks and timers."""

import pytest
from fake_cpu import FakeMachine, run
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_kernel.kernel import Kernel
from guest_kernel.time import Clock
from hypervisor.abi import xen
from hypervisor.abi.sched import SHUTDOWN_poweroff


def make_shared(tsc: int, system: int, mul: int, shift: int) -> memoryview:
    shared = memoryview(bytearray(4096))
    xen.vcpu_time_info.pack_into(
        shared,
        xen.shared_info.offset("vcpu_info[0].time"),
        version=2,
        tsc_timestamp=tsc,
        system_time=system,
        tsc_to_system_mul=mul,
        tsc_shift=shift,
    )
    return shared


@pytest.mark.parametrize(("khz", "shift"), [(1_000_000, 1), (3_000_000, -1), (2_400_000, 0), (500_000, 2)])
def test_pvclock_scales_the_counter(khz: int, shift: int) -> None:
    scale = (1_000_000 << 32) / khz
    mul = int(scale / 2**shift)
    counter = [10_000]
    clock = Clock(lambda: counter[0], make_shared(10_000, 777, mul, shift))
    assert clock.monotonic_ns() == 777
    counter[0] += khz * 1000  # one second of ticks
    assert clock.monotonic_ns() == pytest.approx(777 + 10**9, abs=2)


def test_pvclock_rereads_when_the_version_changes() -> None:
    shared = make_shared(0, 0, 1 << 31, 1)
    version = xen.shared_info.offset("vcpu_info[0].time.version") >> 2
    system = xen.shared_info.offset("vcpu_info[0].time.system_time") >> 3
    updates = [0]

    def rdtsc() -> int:
        if not updates[0]:
            # Xen updates in the middle of the read, as it would between two instructions.
            updates[0] = 1
            shared.cast("I")[version] = 4
            shared.cast("Q")[system] = 5000
        return 100

    clock = Clock(rdtsc, shared)
    assert clock.monotonic_ns() == 5100


def test_time_does_not_go_backwards() -> None:
    shared = make_shared(0, 1000, 1 << 31, 1)
    clock = Clock(lambda: 50, shared)
    assert clock.monotonic_ns() == 1050
    shared.cast("Q")[xen.shared_info.offset("vcpu_info[0].time.system_time") >> 3] = 990
    assert clock.monotonic_ns() == 1050


def test_wall_clock() -> None:
    async def main(kernel: Kernel) -> None:
        assert kernel.wallclock_ns() == 1_700_000_000 * 10**9 + 500 + kernel.monotonic_ns()

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_the_periodic_tick_is_stopped() -> None:
    async def main(kernel: Kernel) -> None:
        machine = kernel.cpu
        assert isinstance(machine, FakeMachine)
        assert not machine.periodic

    assert run(main).shutdown == SHUTDOWN_poweroff


@given(st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=60))
@settings(max_examples=25, deadline=None)
def test_timers_fire_in_order_at_their_time_unless_cancelled(plan: list[tuple[int, bool]]) -> None:
    fired: list[tuple[int, int]] = []
    wanted: list[tuple[int, int]] = []

    async def main(kernel: Kernel) -> None:
        begin = kernel.monotonic_ns()
        timers = []
        for number, (delay, cancel) in enumerate(plan):
            timer = kernel.timers.add(
                begin + delay, lambda number=number: fired.append((kernel.monotonic_ns() - begin, number))
            )
            timers.append((timer, cancel))
        for timer, cancel in timers:
            if cancel:
                timer.cancel()
                timer.cancel()
        wanted.extend(sorted((delay, number) for number, (delay, cancel) in enumerate(plan) if not cancel))
        await kernel.sleep(10_000)
        assert kernel.timers._heap == []
        assert kernel.timers._cancelled == 0

    assert run(main, nr_pages=1024).shutdown == SHUTDOWN_poweroff
    assert fired == wanted


def test_a_timeout_that_never_comes_costs_no_hypercall_each_time() -> None:
    async def main(kernel: Kernel) -> None:
        async def nothing() -> None:
            await kernel.yield_()

        machine = kernel.cpu
        assert isinstance(machine, FakeMachine)
        await kernel.wait_for(nothing(), 10**9)
        before = machine.calls[xen.HYPERVISOR_set_timer_op]
        for _ in range(1000):
            await kernel.wait_for(nothing(), 10**9)
        assert machine.calls[xen.HYPERVISOR_set_timer_op] == before
        assert len(kernel.timers._heap) < 100

    assert run(main).shutdown == SHUTDOWN_poweroff


def test_random_numbers_come_from_the_seed() -> None:
    numbers: list[int] = []

    async def main(kernel: Kernel) -> None:
        numbers.append(kernel.rng.randrange(2**64))

    for cmdline in ("", "seed=7", "console=x seed=7", "seed=8", ""):
        run(main, cmdline=cmdline)
    assert numbers[0] == numbers[4]
    assert numbers[1] == numbers[2]
    assert len(set(numbers)) == 3
