"""The serial card, driven through its registers as a driver would."""

import errno

import pytest

from hypervisor.abi import device as sheet
from hypervisor.machine.machine import Machine
from hypervisor.machine.memory import PAGE_SIZE
from hypervisor.machine.serial import Plug, SerialCard

FRAME = 5
NOTHING = 0xFFFFFFFF


class Echo(Plug):
    """Gives back what it was sent; takes 10 bytes at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes = b""
        self.open = True

    def send(self, data: bytes) -> int:
        self.bytes += data[:10]
        return len(data[:10])

    def receive(self, limit: int) -> bytes:
        data, self.bytes = self.bytes[:limit], self.bytes[limit:]
        return data

    def close(self) -> None:
        self.open = False


class Bench:
    def __init__(self) -> None:
        self.machine = Machine(memory_mib=1)
        self.asked: list[tuple[int, str]] = []
        self.card = SerialCard(self.machine, self.panel)
        self.interrupts = 0
        self.machine.interrupts.connect(sheet.SERIAL_IRQ, self.interrupt)
        self.out(sheet.SERIAL_PAGE, FRAME)

    def panel(self, kind: int, name: str) -> Plug | None:
        self.asked.append((kind, name))
        return None if kind == sheet.SERIAL_MANAGEMENT else Echo(f"/dev/{name}")

    def interrupt(self) -> None:
        self.interrupts += 1

    def out(self, register: int, value: int) -> int:
        self.machine.ports.outl(sheet.SERIAL_PORT + register, value)
        result = self.machine.ports.inl(sheet.SERIAL_PORT + sheet.SERIAL_RESULT)
        return result - (1 << 32) if result >> 31 else result

    @property
    def news(self) -> int:
        return self.machine.ports.inl(sheet.SERIAL_PORT + sheet.SERIAL_NEWS)

    @property
    def page(self) -> memoryview:
        return self.machine.memory.frame(FRAME)

    def open(self, kind: int, name: str) -> int:
        text = name.encode() + b"\0"
        self.page[: len(text)] = text
        return self.out(sheet.SERIAL_OPEN, kind)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_line_is_opened_by_name(bench: Bench) -> None:
    first, second = bench.open(sheet.SERIAL_LOG, "one"), bench.open(sheet.SERIAL_TERMINAL, "two")
    assert first != second
    assert bytes(bench.page[:9]) == b"/dev/two\0"
    assert bench.asked == [(sheet.SERIAL_LOG, "one"), (sheet.SERIAL_TERMINAL, "two")]
    assert bench.open(sheet.SERIAL_MANAGEMENT, "x") == -errno.ENODEV


def test_bytes_go_through_the_page(bench: Bench) -> None:
    line = bench.open(sheet.SERIAL_TERMINAL, "a")
    bench.out(sheet.SERIAL_LINE, line)
    bench.page[:16] = b"0123456789abcdef"
    assert bench.out(sheet.SERIAL_SEND, 16) == 10
    bench.page[:16] = bytes(16)
    bench.machine.memory.written[FRAME] = 0
    assert bench.out(sheet.SERIAL_RECEIVE, 4) == 4
    assert bytes(bench.page[:5]) == b"0123\0"
    assert bench.machine.memory.written[FRAME]
    assert bench.out(sheet.SERIAL_RECEIVE, 100) == 6
    assert bench.out(sheet.SERIAL_RECEIVE, 100) == 0


def test_news_interrupts_once_and_is_told_once(bench: Bench) -> None:
    lines = [bench.open(sheet.SERIAL_TERMINAL, name) for name in "abc"]
    for number in (2, 0, 2):
        bench.card.lines[lines[number]].news()
    assert bench.interrupts == 1
    assert [bench.news, bench.news, bench.news] == [lines[2], lines[0], NOTHING]
    bench.card.lines[lines[1]].news()
    assert bench.interrupts == 2


def test_a_closed_line_is_gone(bench: Bench) -> None:
    line = bench.open(sheet.SERIAL_TERMINAL, "a")
    plug = bench.card.lines[line]
    assert isinstance(plug, Echo)
    plug.news()
    bench.out(sheet.SERIAL_LINE, line)
    assert bench.out(sheet.SERIAL_CLOSE, 0) == 0
    assert not plug.open
    assert bench.news == NOTHING
    plug.news()
    assert bench.news == NOTHING
    for command in (sheet.SERIAL_CLOSE, sheet.SERIAL_SEND, sheet.SERIAL_RECEIVE):
        assert bench.out(command, 1) == -errno.EBADF


def test_nonsense_hurts_nobody(bench: Bench) -> None:
    line = bench.open(sheet.SERIAL_LOG, "a")
    bench.out(sheet.SERIAL_LINE, line)
    assert bench.out(sheet.SERIAL_RECEIVE, NOTHING) == 0
    assert bench.out(sheet.SERIAL_SEND, NOTHING) == 10
    bench.page[:PAGE_SIZE] = b"\xff" * PAGE_SIZE
    assert bench.out(sheet.SERIAL_OPEN, 77) > 0
    bench.out(sheet.SERIAL_LINE, 12345)
    assert bench.out(sheet.SERIAL_SEND, 1) == -errno.EBADF
    bench.out(sheet.SERIAL_PAGE, bench.machine.memory.frames)
    assert bench.out(sheet.SERIAL_OPEN, 0) == -errno.EFAULT
    bench.card.unplug_all()
    assert bench.card.lines == {}
