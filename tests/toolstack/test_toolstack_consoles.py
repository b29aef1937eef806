"""Consoles of whole hosts: pseudo-terminals, log files, a person at standard input."""

import os
import pty
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from toolstack.console_log import ConsoleLog
from toolstack.errors import UsageError
from toolstack.host import Host
from toolstack.outside import BUFFER, AttachPlug, Outside, PtyPlug
from toolstack.person import Screen, until_escape
from toolstack.report import HostResult
from toolstack.xl_config import DomainConfig, load_config

PARAVIRT = [sys.executable, "-c", "from toolstack.cli import main; main()"]
ASK = """
    self.print("what is your name?")
    name = await self.kernel.console.readline()
    self.print("hello", name)
"""
FLOOD = """
    for number in range(4000):
        self.print(f"line {number:06}")
    await self.kernel.console.drain()
"""


def guest(directory: Path, name: str, body: str) -> DomainConfig:
    code = "from guest_kernel.guest import Guest\n\nclass Main(Guest):\n    async def main(self):\n"
    (directory / f"{name}.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
    (directory / f"{name}.cfg").write_text(f'name = "{name}"\nmemory = 4\nkernel = "{name}.py"\n')
    return load_config(directory / f"{name}.cfg")


class Running:
    """A host in the background of a test."""

    def __init__(self, outside: Outside, **options: object) -> None:
        self.lines: list[str] = []
        self.outside = outside
        self.host = Host(outside=outside, consoles=ConsoleLog(self.lines.append), **options)  # type: ignore[arg-type]
        self.result: HostResult | None = None

    async def run(self, *configs: DomainConfig) -> None:
        self.result = await self.host.run(configs)
        assert self.host.leaks() == []

    async def terminal(self, name: str) -> object:
        while name not in self.outside.terminals:
            await self.outside.opened.wait()
        return self.outside.terminals[name]

    def store(self, path: str) -> str | None:
        node = self.host.xenstored.server.store.tree.get(path.encode())
        return None if node is None else node.value.decode()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another world
            await trio.sleep(0.001)


async def read_until(descriptor: int, wanted: bytes) -> bytes:
    got = b""
    with trio.fail_after(20):
        while wanted not in got:
            await trio.lowlevel.wait_readable(descriptor)
            got += os.read(descriptor, 4096)
    return got


@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_a_guest_is_talked_to_over_its_pseudo_terminal(tmp_path: Path, clock: str) -> None:
    running = Running(Outside(ptys=True), time=clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, guest(tmp_path, "ask", ASK))
        plug = await running.terminal("ask")
        assert isinstance(plug, PtyPlug)
        other = os.open(plug.name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        await read_until(other, b"what is your name?\n")
        assert running.store("/local/domain/1/console/tty") == plug.name
        os.write(other, b"Anna\n")
        # The host ends when the guest does, and takes the terminal with it: that may be sooner than the last words.
        os.close(other)
    assert running.result is not None
    assert running.result.exit_code == 0
    assert "ask | hello Anna\n" in running.lines or any("hello Anna" in line for line in running.lines)


async def test_a_terminal_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    running = Running(Outside(ptys=True))
    await running.run(guest(tmp_path, "flood", FLOOD), guest(tmp_path, "other", 'self.print("free")'))
    assert "other | free\n" in running.lines
    assert "flood | line 003999\n" in running.lines


async def test_output_that_waits_is_there_for_who_comes_late(tmp_path: Path) -> None:
    """More than the pseudo-terminal holds: xenconsoled keeps the rest until there is room."""
    running = Running(Outside(ptys=True))
    body = FLOOD + '    await self.kernel.console.readline()\n    self.print("bye")\n'
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, guest(tmp_path, "flood", body))
        plug = await running.terminal("flood")
        assert isinstance(plug, PtyPlug)
        await until(lambda: any("003999" in line for line in running.lines))
        other = os.open(plug.name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        text = await read_until(other, b"line 003999\n")
        assert text == b"".join(b"line %06d\n" % number for number in range(4000))
        os.write(other, b"\n")
        os.close(other)
    assert running.result is not None
    assert running.result.exit_code == 0


async def test_one_may_attach_without_a_pseudo_terminal(tmp_path: Path) -> None:
    outside = Outside()
    outside.attachable = True
    outside.listeners = 1
    running = Running(outside)
    shown: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.run, guest(tmp_path, "ask", ASK))
        plug = await running.terminal("ask")
        assert isinstance(plug, AttachPlug)
        await until(lambda: bool(plug.output))
        assert plug.name == ""
        assert running.store("/local/domain/1/console/tty") in ("", None)
        plug.attach(shown.append, lambda: shown.append(b"(gone)"))
        assert b"".join(shown) == b"what is your name?\n"
        assert plug.type(b"x" * 10_000) == BUFFER
        plug.input.clear()
        assert plug.type(b"Anna\n") == 5
    assert b"".join(shown).endswith(b"hello Anna\n(gone)")


async def test_logs_are_appended_to(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for _ in range(2):
        await Running(Outside(log_dir=logs)).run(guest(tmp_path, "a", 'self.print("one\\x1b[2J")'))
    assert (logs / "guest-a.log").read_bytes() == b"one\x1b[2J\n" * 2
    assert [file.name for file in logs.iterdir()] == ["guest-a.log"]


@pytest.mark.parametrize("what", ["missing", "a file"])
async def test_a_log_directory_that_is_none(tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    if what == "a file":
        place.write_text("")
    with pytest.raises(UsageError, match=r"--log-dir .*place' is no directory"):
        await Running(Outside(log_dir=place)).run(guest(tmp_path, "a", "pass"))


async def test_a_log_that_cannot_be_written_is_told_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "guest-a.log").mkdir()
    running = Running(Outside(log_dir=tmp_path))
    await running.run(guest(tmp_path, "a", 'self.print("still shown")'))
    (sentence,) = running.result.unfinished
    assert sentence.startswith("cannot write the console log ")
    assert sentence.endswith("guest-a.log': Is a directory")
    assert "a | still shown\n" in running.lines


def paravirt(directory: Path, *arguments: str, typed: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [*PARAVIRT, "run", *arguments]
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command, cwd=directory, input=typed, capture_output=True, timeout=300, env={**os.environ, "PYTHONPATH": path}
    )


def test_typing_from_a_pipe(tmp_path: Path) -> None:
    guest(tmp_path, "ask", ASK)
    guest(tmp_path, "other", 'self.print("unseen")')
    done = paravirt(tmp_path, "ask.cfg", "other.cfg", "--console", "ask", typed=b"Anna\n")
    assert done.returncode == 0, done.stderr
    # As on a terminal: what is typed is shown.
    assert done.stdout.startswith(b"what is your name?\nAnna\nhello Anna\n")
    assert b"unseen" not in done.stdout


def test_input_that_ends_too_soon(tmp_path: Path) -> None:
    guest(tmp_path, "ask", ASK)
    done = paravirt(tmp_path, "ask.cfg", "--console", "ask", typed=b"")
    assert done.returncode == 1
    assert done.stderr.endswith(b"paravirt: ask: it waits for a line of input on its console, and nobody types one\n")


def test_an_unknown_guest_has_no_console(tmp_path: Path) -> None:
    guest(tmp_path, "ask", ASK)
    done = paravirt(tmp_path, "ask.cfg", "--console", "asc", typed=b"")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"paravirt: --console 'asc': there is no such guest; did you mean 'ask'?\n"


def test_typing_at_a_terminal_and_leaving_it(tmp_path: Path) -> None:
    """A real terminal: keys go to the guest as they are, Ctrl-] leads back to the view of all consoles."""
    body = """
        self.print("type")
        self.print("got", repr(await self.kernel.console.readline()))
        self.print("more")
        await self.kernel.console.readline()
    """
    guest(tmp_path, "talk", body)
    root = str(Path(__file__).resolve().parents[2])
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.environ["PYTHONPATH"] = root
        os.execv(sys.executable, [*PARAVIRT, "run", "talk.cfg", "--console", "talk"])
    seen = b""
    deadline = time.monotonic() + 30
    answers = [(b"type\r\n", b"a\x03b\r"), (b"more\r\n", b"\x1d"), (b"waits for a line of input", b"")]
    while answers and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 4096)
            except OSError:
                break
        if answers[0][0] in seen:
            os.write(terminal, answers.pop(0)[1])
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert not answers, seen
    assert b"got 'a\\x03b'" in seen
    assert os.waitstatus_to_exitcode(status) == 1


@pytest.mark.parametrize(
    ("typed", "parts"),
    [(b"abc", (b"abc", False)), (b"a\x1dc", (b"a", True)), (b"\x1d", (b"", True)), (b"", (b"", False))],
)
def test_escape(typed: bytes, parts: tuple[bytes, bool]) -> None:
    assert until_escape(typed) == parts


@pytest.mark.parametrize(
    ("pieces", "seen"),
    [
        ((b"bare\nlines\n",), b"bare\r\nlines\r\n"),
        ((b"a guest's\r\nterminal\r\n",), b"a guest's\r\nterminal\r\n"),
        ((b"cut\r", b"\nin two\r\n"), b"cut\r\nin two\r\n"),
        ((b" 10%\r", b" 20%\r", b"done\n"), b" 10%\r 20%\rdone\r\n"),
        ((b"the end\r",), b"the end\r"),
    ],
)
def test_a_screen_shows_each_line_with_one_carriage_return(pieces: tuple[bytes, ...], seen: bytes) -> None:
    ours, theirs = pty.openpty()
    try:
        screen = Screen(theirs)
        for piece in pieces:
            screen.show(piece)
        screen.finish()
        shown = b""
        while len(shown) < len(seen):
            # (A terminal passes on what it has got so far.)
            shown += os.read(ours, 4096)
        assert shown == seen
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_is_no_terminal_gets_the_console_as_it_is() -> None:
    ours, theirs = os.pipe()
    try:
        screen = Screen(theirs)
        screen.show(b"one\r\ntwo\r")
        screen.finish()
        assert os.read(ours, 4096) == b"one\r\ntwo\r"
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_panic_is_what_a_crash_was() -> None:
    """Linux says more after it; the next life has its own last words."""
    log = ConsoleLog(lambda line: None)
    log.feed("linux", b"[1.0] Kernel panic - not syncing: no init\n[1.1] Call Trace:\n[1.2] Rebooting in 1 seconds..\n")
    assert log.last["linux"] == "[1.0] Kernel panic - not syncing: no init"
    log.finish("linux")
    assert log.last["linux"] == "[1.0] Kernel panic - not syncing: no init"
    log.feed("linux", b"another life\nends otherwise\n")
    assert log.last["linux"] == "ends otherwise"
