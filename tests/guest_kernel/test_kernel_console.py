"""The console: ring and hypercall, backpressure, input, last words."""

import pytest
from fake_cpu import CONSOLE_PORT, Booted, FakeMachine, run
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_kernel import console as console_module
from guest_kernel.errors import GuestError
from guest_kernel.kernel import Kernel
from hypervisor.abi.io.console import xencons_interface
from hypervisor.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff


def reading_machine(chunks: list[bytes], limit: int = 2048, **options: int) -> FakeMachine:
    """A machine on which xenconsoled reads at once, `limit` bytes at a time."""
    machine = FakeMachine(**options)

    def read(machine: FakeMachine) -> None:
        data = machine.read_console(limit)
        chunks.append(data)
        if data:
            machine.raise_event(CONSOLE_PORT)

    machine.reader = read
    return machine


def test_what_is_printed_is_in_the_ring_and_the_other_end_is_told() -> None:
    async def main(kernel: Kernel) -> None:
        kernel.console.write("grüße\n")
        kernel.console.write(b"\xff\x00")

    machine = run(main)
    assert machine.read_console() == "grüße\n".encode() + b"\xff\x00"
    assert machine.sent == [CONSOLE_PORT] * 2


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=8), st.integers(1, 2048))
@settings(max_examples=25, deadline=None)
def test_everything_arrives_in_order_however_slow_the_reader(parts: list[bytes], limit: int) -> None:
    async def main(kernel: Kernel) -> None:
        for part in parts:
            kernel.console.write(part)
        await kernel.console.drain()
        assert kernel.console.waiting == 0

    chunks: list[bytes] = []
    machine = reading_machine(chunks, limit, nr_pages=1024)
    booted = Booted(main, machine)
    booted.run()
    booted.code.close()
    assert b"".join(chunks) + machine.read_console() == b"".join(parts)


def test_a_sender_waits_for_a_slow_reader_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more than is kept for writers that cannot wait, from two threads, past a reader of 100 bytes at once."""
    monkeypatch.setattr(console_module, "BACKLOG_LIMIT", 4096)
    most = 0

    async def main(kernel: Kernel) -> None:
        async def send(letter: str) -> None:
            nonlocal most
            for _ in range(10):
                await kernel.console.send(letter * 2000)
                most = max(most, kernel.console.waiting)

        threads = [kernel.spawn(send(letter)) for letter in "ab"]
        for thread in threads:
            await thread.join()
        await kernel.console.send(bytes(50_000))
        await kernel.console.drain()

    chunks: list[bytes] = []
    booted = Booted(main, reading_machine(chunks, 100, nr_pages=1024))
    booted.run()
    booted.code.close()
    text = b"".join(chunks) + booted.machine.read_console()
    assert (text.count(b"a"), text.count(b"b"), text.count(b"\0"), len(text)) == (20_000, 20_000, 50_000, 90_000)
    assert 0 < most <= 4096


def test_events_without_work_cost_the_console_nothing() -> None:
    """XSA-391: a thousand events from the daemon that bring nothing; none goes back, and printing goes on."""

    async def main(kernel: Kernel) -> None:
        machine = kernel.cpu
        assert isinstance(machine, FakeMachine)
        sent = len(machine.sent)
        for _ in range(1000):
            machine.raise_event(CONSOLE_PORT)
            await kernel.sleep(1)
        assert len(machine.sent) == sent
        kernel.console.write("still here")

    assert run(main).read_console() == b"still here"


def test_a_console_that_nobody_reads_loses_output_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "BACKLOG_LIMIT", 3000)

    async def main(kernel: Kernel) -> None:
        kernel.console.write(b"a" * 4000)
        kernel.console.write(b"b" * 2000)
        kernel.console.write(b"c" * 100)
        assert kernel.console.waiting == 4000 - 2048 + 100
        await kernel.never()

    booted = Booted(main)
    machine = booted.run()
    output = b""
    while data := machine.read_console():
        output += data
        machine.raise_event(CONSOLE_PORT)
        booted.run()
    assert output.startswith(b"a" * 4000 + b"c" * 100)
    assert b"2000 bytes of output lost" in output


def test_a_hostile_reader_cannot_make_the_guest_write_outside_of_the_ring() -> None:
    async def main(kernel: Kernel) -> None:
        machine = kernel.cpu
        assert isinstance(machine, FakeMachine)
        page = machine.frame(machine.mfn(machine.layout.console))
        page.cast("I")[xencons_interface.offset("out_cons") >> 2] = 0x80000000
        before = bytes(page)
        kernel.console.write("hello")
        assert bytes(page) == before
        assert kernel.console.waiting == 5

    run(main)


def test_lines_of_input() -> None:
    lines: list[str] = []

    async def main(kernel: Kernel) -> None:
        while True:
            line = await kernel.console.readline()
            lines.append(line)
            if line == "exit":
                return

    booted = Booted(main)
    machine = booted.run()
    machine.type_console(b"first\rsec")
    booted.run()
    assert lines == ["first"]
    machine.type_console("ond ü\r\n\nexit\n".encode())
    booted.run()
    assert lines == ["first", "second ü", "", "exit"]
    assert machine.shutdown == SHUTDOWN_poweroff


def test_the_initial_domain_prints_through_xen() -> None:
    async def main(kernel: Kernel) -> None:
        kernel.console.write("x" * 5000 + "\n")

    machine = FakeMachine(initial=True)
    booted = Booted(main, machine)
    booted.run(until=10**6)
    assert machine.xen_console == b"x" * 5000 + b"\n"


def failing_line() -> None:
    raise RuntimeError("not what was expected")


def test_the_traceback_of_main_is_printed_and_the_domain_crashes() -> None:
    async def main(kernel: Kernel) -> None:
        kernel.console.write("y" * 3000)
        failing_line()

    chunks: list[bytes] = []
    machine = reading_machine(chunks)
    Booted(main, machine).run()
    output = (b"".join(chunks) + machine.read_console()).decode()
    assert machine.shutdown == SHUTDOWN_crash
    assert output.startswith("y" * 3000)
    assert "test_kernel_console.py" in output
    assert "failing_line" in output
    assert "RuntimeError: not what was expected" in output
    assert "run_loop.py" not in output
    assert "kernel.py" not in output


def test_last_words_do_not_wait_for_ever() -> None:
    async def main(kernel: Kernel) -> None:
        kernel.console.write("z" * 3000)
        raise GuestError("end")

    machine = run(main)
    assert machine.shutdown == SHUTDOWN_crash
    assert machine.read_console() == b"z" * 2048
    assert machine.now < 10**10


class _Screen:
    """Takes everything, as a terminal does."""

    def __init__(self) -> None:
        self.data = b""

    def put(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def wait(self) -> None:
        raise AssertionError("there is always room")


@pytest.mark.parametrize(
    ("typed", "lines", "shown"),
    [
        (b"ab\r", [b"ab"], b"ab\n"),
        (b"a\r\nb\n", [b"a", b"b"], b"a\nb\n"),
        (b"abd\x7fc\n", [b"abc"], b"abd\b \bc\n"),
        (b"\x7f\x08x\n", [b"x"], b"x\n"),
        ("gr\u00fc\x7fu\n".encode(), [b"gru"], "gr\u00fc\b \bu\n".encode()),
        (b"wrong\x15right\n", [b"right"], b"wrong" + b"\b \b" * 5 + b"right\n"),
        (b"\xbf\xbf\x7f\n", [b""], b"\xbf\xbf\b \b\n"),
    ],
)
def test_what_is_typed_is_shown_and_can_be_taken_back(typed: bytes, lines: list[bytes], shown: bytes) -> None:
    screen = _Screen()
    console = console_module.Console(screen)
    console.echo = True
    for byte in typed if b"\r\n" not in typed else ():
        console.receive(bytes([byte]))
    if b"\r\n" in typed:
        console.receive(typed)
    assert [console._lines.get_nowait() for _ in range(len(console._lines))] == lines
    assert screen.data == shown


def test_the_host_console_does_not_echo() -> None:
    screen = _Screen()
    console_module.Console(screen).receive(b"shutdown\n")
    assert screen.data == b""
