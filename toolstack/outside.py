"""What is plugged into the lines of the host's serial card: logs, pseudo-terminals, people.

    xenconsoled ── SERIAL_LOG ────── the live view of all consoles, and a file for each in `--log-dir`
                └─ SERIAL_TERMINAL ─ a pseudo-terminal (`--pty`), or whoever attaches (`paravirt console`, `--console`)
    toolstack ──── SERIAL_MANAGEMENT ─ the control socket (`--control`)

This is the one place where a running host hears from the world. While somebody out there might say something, a host on
which nothing can happen by itself waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tty
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from hypervisor.abi import device as sheet
from hypervisor.machine.serial import Plug
from toolstack.console_log import ConsoleLog
from toolstack.errors import UsageError

if TYPE_CHECKING:
    from toolstack.host import Host

BUFFER = 4096
"""Bytes that a line holds in each direction, as a pseudo-terminal does."""

PATIENCE = 1.0
"""Seconds that a host that has ended gives to those outside who still have something to write."""

Attached = Callable[[bytes], None]


class LogPlug(Plug):
    """Takes what a guest prints, all of it."""

    def __init__(self, outside: Outside, name: str, file: int | None) -> None:
        self._outside = outside
        self._tag = name
        self._file = file

    def send(self, data: bytes) -> int:
        """Show the bytes, and write them to the file; one that cannot be written to misses the rest."""
        self._outside.consoles.feed(self._tag, data)
        rest = memoryview(data)
        while self._file is not None and rest:
            try:
                rest = rest[os.write(self._file, rest) :]
            except OSError as error:
                self._outside.fail(f"the console log of {self._tag!r} is not complete: {error.strerror}")
                self.close()
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class AttachPlug(Plug):
    """A terminal that one person at a time may attach to.

    Nobody there: output waits, up to BUFFER bytes here and then in xenconsoled; who attaches gets it.
    """

    def __init__(self, forget: Callable[[Plug], None]) -> None:
        self._forget = forget
        self.room = trio.Event()
        """Set, and made anew, when some of what was typed has been taken."""
        self.output = bytearray()
        self.input = bytearray()
        self.attached: Attached | None = None
        self.on_close: Callable[[], None] = lambda: None
        self.closed = False

    def send(self, data: bytes) -> int:
        """Give output to the person who is attached, or keep a little."""
        if self.attached is not None:
            self.attached(data)
            return len(data)
        taken = data[: max(0, BUFFER - len(self.output))]
        self.output += taken
        return len(taken)

    def receive(self, limit: int) -> bytes:
        """Return what was typed."""
        data = bytes(self.input[:limit])
        del self.input[: len(data)]
        if data:
            self.room.set()
            self.room = trio.Event()
        return data

    def close(self) -> None:
        """The console is gone, and so is whoever was attached."""
        self.closed = True
        self._forget(self)
        self.room.set()
        self.on_close()

    # -- the person -----------------------------------------------------------------------------------------------

    def attach(self, take: Attached, on_close: Callable[[], None]) -> None:
        """Have output given to `take`, first what has waited; `on_close` is called when the console goes.

        Whoever was attached before is no more.
        """
        self.on_close()
        self.attached, self.on_close = take, on_close
        waiting = bytes(self.output)
        self.output.clear()
        if waiting:
            take(waiting)
        self.news()

    def detach(self) -> None:
        """Leave."""
        self.attached, self.on_close = None, lambda: None

    def type(self, data: bytes) -> int:
        """Type; return how many bytes there was room for."""
        taken = data[: max(0, BUFFER - len(self.input))]
        self.input += taken
        if taken:
            self.news()
        return len(taken)


class PtyPlug(Plug):
    """A pseudo-terminal in raw mode, as xenconsoled opens one. Its other side is for `screen`, `cu`, `xenconsole`."""

    def __init__(self, forget: Callable[[Plug], None]) -> None:
        """Open it. Raises OSError."""
        self._forget = forget
        self.master, self._slave = os.openpty()
        # The other side stays open here: else a reader that leaves would look like the end of the terminal.
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.name = os.ttyname(self._slave)
        self._full = trio.Event()
        self._taken = trio.Event()

    def send(self, data: bytes) -> int:
        """Write what the terminal's buffer has room for."""
        try:
            taken = os.write(self.master, data)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                return len(data)  # the terminal is broken: nobody will ever read this
            taken = 0
        if taken < len(data):
            self._full.set()
        return taken

    def receive(self, limit: int) -> bytes:
        """Read what was typed."""
        self._taken.set()
        try:
            return os.read(self.master, limit)
        except OSError:
            return b""

    def close(self) -> None:
        """Close both sides."""
        self._forget(self)
        trio.lowlevel.notify_closing(self.master)
        os.close(self.master)
        os.close(self._slave)
        self.master = -1
        self._full.set()
        self._taken.set()

    async def follow_input(self) -> None:
        """Tell the host whenever something has been typed, until the terminal is closed."""
        with contextlib.suppress(trio.ClosedResourceError):
            while self.master >= 0:
                await trio.lowlevel.wait_readable(self.master)
                self._taken = trio.Event()
                self.news()
                # A guest that does not read leaves the input in the terminal: look again when some has been taken.
                await self._taken.wait()

    async def follow_room(self) -> None:
        """Tell the host whenever a full terminal has been read from, until it is closed."""
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                await self._full.wait()
                if self.master < 0:
                    return
                await trio.lowlevel.wait_writable(self.master)
                self._full = trio.Event()
                self.news()


class Outside:
    """The panel of the serial card: finds what to plug into a line that the host opens."""

    def __init__(self, *, log_dir: Path | None = None, ptys: bool = False) -> None:
        self.consoles = ConsoleLog(lambda line: None)
        """The live view of all consoles."""
        self.log_dir = log_dir
        self.ptys = ptys
        self.terminals: dict[str, Plug] = {}
        """Terminals of the guests that run, by name."""
        self.attachable = False
        """Whether people may attach to terminals, and so every guest has to have one."""
        self.by_hand: set[str] = set()
        """Guests whose terminal is not a pseudo-terminal in any case: a person of this process attaches to it."""
        self.management: Plug | None = None
        self.store: Plug | None = None
        """Clients of xenstored."""
        self.failure = ""
        """What has gone wrong out there, in one sentence."""
        self.listeners = 0
        """How many of those outside may still say something."""
        self.opened: trio.Event = trio.Event()
        """Set, and made anew, when a terminal is opened."""
        self._busy = 0
        self.tasks: list[Callable[[Host], Awaitable[None]]] = []
        """What runs outside for as long as the host does, besides the terminals."""
        self._nursery: trio.Nursery | None = None

    def start(self, nursery: trio.Nursery, host: Host) -> None:
        """Begin to look at terminals, in tasks of a nursery, and start what is in `tasks`."""
        self._nursery = nursery
        for task in self.tasks:
            nursery.start_soon(task, host)

    def follow(self, task: Callable[[Host], Awaitable[None]], host: Host) -> None:
        """Have a task run outside from now on, or from the start of the host."""
        if self._nursery is None:
            self.tasks.append(task)
        else:
            self._nursery.start_soon(task, host)

    @property
    def may_speak(self) -> bool:
        """Whether something may come from outside without the host's doing."""
        return self.listeners > 0 or (self.ptys and bool(self.terminals))

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Something outside is under way that is to be finished even when the host has ended."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    async def finish(self) -> None:
        """Wait until nothing is under way outside, for a second at most: a client may have stopped reading."""
        with trio.move_on_after(PATIENCE):
            while self._busy:  # noqa: ASYNC110 - the host is off; a thousandth of a second is soon enough
                await trio.sleep(0.001)

    def panel(self, kind: int, name: str) -> Plug | None:
        """See `hypervisor.machine.serial.Panel`."""
        if kind == sheet.SERIAL_LOG:
            return LogPlug(self, name, self._log_file(name))
        if kind == sheet.SERIAL_TERMINAL:
            return self._terminal(name)
        if kind == sheet.SERIAL_STORE:
            return self.store
        return self.management if kind == sheet.SERIAL_MANAGEMENT else None

    def _terminal(self, name: str) -> Plug | None:
        def forget(plug: Plug) -> None:
            if self.terminals.get(name) is plug:
                del self.terminals[name]

        plug: Plug
        if self.ptys and name not in self.by_hand:
            try:
                plug = PtyPlug(forget)
            except OSError as error:
                self.fail(f"there is no terminal for {name!r}: {error.strerror}")
                return None
            assert self._nursery is not None
            self._nursery.start_soon(plug.follow_input)
            self._nursery.start_soon(plug.follow_room)
        elif self.attachable or name in self.by_hand:
            plug = AttachPlug(forget)
        else:
            return None
        self.terminals[name] = plug
        self.opened.set()
        self.opened = trio.Event()
        return plug

    def _log_file(self, name: str) -> int | None:
        if self.log_dir is None:
            return None
        path = self.log_dir / f"guest-{name.replace(os.sep, '_')}.log"
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self.fail(f"cannot write the console log {str(path)!r}: {error.strerror}")
            return None

    def fail(self, sentence: str) -> None:
        """Note what has gone wrong; the first time counts."""
        self.failure = self.failure or sentence

    def check(self) -> None:
        """See whether logs can be written at all. Raises `UsageError`."""
        if self.log_dir is not None and not os.access(self.log_dir, os.W_OK | os.X_OK):
            why = "cannot be written to" if self.log_dir.is_dir() else "is no directory"
            raise UsageError(f"--log-dir {str(self.log_dir)!r} {why}")
