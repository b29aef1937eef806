"""The hardware by itself: memory, timers, interrupt lines, ports."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.machine.interrupts import NR_IRQS, Interrupts
from hypervisor.machine.memory import PAGE_SIZE, Memory
from hypervisor.machine.ports import ALL_ONES, Ports
from hypervisor.machine.timers import Timers


def test_a_large_memory_is_lazy() -> None:
    memory = Memory(4 << 20)  # 16 GiB
    memory.q[-1] = 0x1122334455667788
    assert memory.b[-1] == 0x11
    assert memory.h[-4] == 0x7788
    assert memory.i[-1] == 0x11223344


@given(st.integers(0, 3 * PAGE_SIZE - 1), st.binary(max_size=PAGE_SIZE + 7))
def test_the_funnel_writes_and_marks_just_the_frames_it_touched(maddr: int, data: bytes) -> None:
    memory = Memory(5)
    memory.write(maddr, data)
    assert bytes(memory.b[maddr : maddr + len(data)]) == data
    touched = {address // PAGE_SIZE for address in range(maddr, maddr + len(data))}
    assert [mfn for mfn in range(5) if memory.written[mfn]] == sorted(touched)


def test_discarded_frames_read_as_zero() -> None:
    memory = Memory(4)
    memory.write(PAGE_SIZE, b"secret" * 100)
    memory.discard(1, 2)
    assert bytes(memory.frame(1)) == bytes(PAGE_SIZE)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=30), st.integers(0, 25))
def test_timers_fire_in_order_of_deadline_then_of_arming(armed: list[tuple[int, bool]], now: int) -> None:
    timers = Timers()
    fired: list[int] = []
    for number, (deadline, cancelled) in enumerate(armed):
        timer = timers.add(deadline, lambda number=number: fired.append(number))  # type: ignore[misc]
        if cancelled:
            timer.cancel()
    while (timer_due := timers.pop_due(now)) is not None:
        assert timer_due.function is not None
        timer_due.function()
    live = [(deadline, number) for number, (deadline, cancelled) in enumerate(armed) if not cancelled]
    assert fired == [number for deadline, number in sorted(live) if deadline <= now]
    later = [deadline for deadline, _ in live if deadline > now]
    assert timers.prune() == min(later, default=Timers.NEVER)
    assert len(timers) == len(later)


def test_an_edge_waits_for_its_listener() -> None:
    lines = Interrupts()
    seen: list[int] = []
    lines.raise_line(5)
    lines.raise_line(5)
    lines.connect(5, lambda: seen.append(5))
    assert seen == [5]
    lines.raise_line(5)
    assert seen == [5, 5]
    with pytest.raises(ValueError, match="already routed"):
        lines.connect(5, lambda: None)
    lines.disconnect(5)
    lines.raise_line(5)
    assert seen == [5, 5]
    with pytest.raises(ValueError, match="no interrupt line"):
        lines.connect(NR_IRQS, lambda: None)


def test_ports_answer_only_where_a_device_is() -> None:
    ports = Ports()
    written: list[tuple[int, int]] = []
    claimed = ports.map(0x100, 4, lambda port: port * 2, lambda port, value: written.append((port, value)))
    assert ports.inl(0x103) == 0x206
    assert ports.inl(0x104) == ALL_ONES
    ports.outl(0x100, 1 << 40 | 7)
    ports.outl(0x200, 1)
    assert written == [(0x100, 7)]
    with pytest.raises(ValueError, match="already taken"):
        ports.map(0x102, 4, lambda port: 0, lambda port, value: None)
    with pytest.raises(ValueError, match="no I/O ports"):
        ports.map(0xFFFF, 2, lambda port: 0, lambda port, value: None)
    ports.unmap(claimed)
    assert ports.inl(0x100) == ALL_ONES
