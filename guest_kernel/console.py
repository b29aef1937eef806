"""The console: bytes out, lines in.

An unprivileged domain shares one page with xenconsoled (io/console.h): a ring of 2048 bytes out, one of 1024 bytes in,
and an event channel. What does not fit waits in memory and goes out when the other side has read; so printing never
waits, and `drain` is there for those who want to. The initial domain writes to Xen's own console by hypercall.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from guest_kernel.events import Events
from guest_kernel.hypercalls import Hypercalls
from guest_kernel.mm import Page
from guest_kernel.threads import Mailbox, WaitQueue
from hypervisor.abi.cpu import Run
from hypervisor.abi.io.console import xencons_interface
from hypervisor.abi.sched import SCHEDOP_poll, sched_poll
from hypervisor.abi.xen import VIRQ_CONSOLE, CONSOLEIO_read, CONSOLEIO_write, HYPERVISOR_console_io

_IN = xencons_interface.offset("in")
_OUT = xencons_interface.offset("out")
_IN_SIZE = _OUT - _IN
_OUT_SIZE = xencons_interface.offset("in_cons") - _OUT
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = (
    xencons_interface.offset(name) >> 2 for name in ("in_cons", "in_prod", "out_cons", "out_prod")
)
_U32 = 0xFFFF_FFFF

BACKLOG_LIMIT = 256 * 1024
"""Bytes that may wait for room in the ring; what is printed beyond them is lost, and the console says so."""
PANIC_PATIENCE_NS = 100_000_000
PANIC_ROUNDS = 20
"""A dying kernel gives the reader of its console this many times `PANIC_PATIENCE_NS` to take the last words."""
LINE_LIMIT = 4096
INPUT_LINES = 64
NEWLINE, KILL = 0x0A, 0x15
ERASE = (0x7F, 0x08)
"""Keys of a terminal, as a line discipline has them: end of line, Ctrl-U, backspace."""


class Sink(Protocol):
    """Where the bytes go: a shared ring, or Xen."""

    def put(self, data: bytes) -> int:
        """Take as much of `data` as there is room for; return how many bytes that was."""
        ...

    def wait(self) -> None:
        """Stop the vCPU, for a while, until there may be room."""
        ...


class Console:
    """The console of this domain."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._backlog = bytearray()
        self._lost = 0
        self._drained = WaitQueue()
        self.readers = 0
        """How many threads wait for a line."""
        self.echo = False
        """Whether what is typed is shown: the terminal at the other end does not do it."""
        self._line = bytearray()
        self._lines: Mailbox[bytes] = Mailbox()

    def write(self, data: bytes | str) -> None:
        """Print. Never waits; callable everywhere."""
        if isinstance(data, str):
            data = data.encode("utf-8", "backslashreplace")
        if self._backlog:
            if len(self._backlog) + len(data) > BACKLOG_LIMIT:
                self._lost += len(data)
                return
            self._backlog += data
            return
        taken = self._sink.put(data)
        if taken < len(data):
            self._backlog += data[taken : taken + BACKLOG_LIMIT]
            self._lost += max(0, len(data) - taken - BACKLOG_LIMIT)

    def printk(self, text: str) -> None:
        """Print one line of the kernel's own."""
        self.write(text + "\n")

    @property
    def waiting(self) -> int:
        """How many bytes have found no room yet."""
        return len(self._backlog)

    async def send(self, data: bytes | str) -> None:
        """Print all of it, waiting for the reader at the other end: nothing is lost, however much it is.

        What several threads send is mixed, each in pieces of at most a ring's size.
        """
        if isinstance(data, str):
            data = data.encode("utf-8", "backslashreplace")
        for start in range(0, len(data), _OUT_SIZE):
            await self.drain()
            self.write(data[start : start + _OUT_SIZE])

    async def drain(self) -> None:
        """Wait until everything printed has gone into the ring."""
        while self._backlog:
            await self._drained.wait()

    async def readline(self) -> str:
        """Return the next line of input, without its end; wait for it."""
        self.readers += 1
        try:
            return (await self._lines.get()).decode("utf-8", "replace")
        finally:
            self.readers -= 1

    def flush(self) -> None:
        """Put out what waits, as far as there is room. Called when the other side has made some."""
        if self._backlog:
            taken = self._sink.put(bytes(self._backlog))
            del self._backlog[:taken]
            if not self._backlog and self._lost:
                lost, self._lost = self._lost, 0
                self.write(f"\n[{lost} bytes of output lost: the console is not being read fast enough]\n")
            if not self._backlog:
                self._drained.wake_all()

    def receive(self, data: bytes) -> None:
        """Take input; carriage returns and newlines end lines. Backspace takes back a character, Ctrl-U the line."""
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        shown = bytearray()
        for byte in data:
            if byte == NEWLINE:
                shown.append(byte)
                self._end_line()
            elif byte in ERASE:
                shown += self._erase(1)
            elif byte == KILL:
                shown += self._erase(len(self._line))
            else:
                shown.append(byte)
                self._line.append(byte)
                if len(self._line) >= LINE_LIMIT:
                    self._end_line()
        if self.echo and shown:
            self.write(bytes(shown))

    def _end_line(self) -> None:
        if len(self._lines) < INPUT_LINES:
            self._lines.put_nowait(bytes(self._line))
        self._line.clear()

    def _erase(self, count: int) -> bytes:
        """Take so many characters of the unfinished line back; return what makes a terminal forget them."""
        forgotten = 0
        while self._line and forgotten < count:
            while self._line and self._line[-1] & 0xC0 == 0x80:  # the tail of a UTF-8 sequence
                self._line.pop()
            if self._line:
                self._line.pop()
            forgotten += 1
        return b"\b \b" * forgotten

    def last_words(self, text: str) -> Run:
        """Print when nothing else runs any more: wait for room with the whole vCPU, but not for ever."""
        self.write(text)
        rounds = 0
        while self._backlog and rounds < PANIC_ROUNDS:
            rounds += 1
            before = len(self._backlog)
            self._sink.wait()
            yield 0
            self.flush()
            if len(self._backlog) < before:
                rounds = 0


class RingSink:
    """The output ring of the page that the domain shares with xenconsoled, and its input ring."""

    def __init__(
        self, hypercalls: Hypercalls, events: Events, page: Page, port: int, monotonic_ns: Callable[[], int]
    ) -> None:
        self._hypercalls = hypercalls
        self._now = monotonic_ns
        self._bytes = page.view
        self._words = page.i
        self._notify = events.notify
        self._port = port

    def put(self, data: bytes) -> int:
        """Copy into the ring what fits, and tell the other side."""
        words = self._words
        consumed, produced = words[_OUT_CONS], words[_OUT_PROD]
        used = (produced - consumed) & _U32
        if used >= _OUT_SIZE:  # full, or the reader claims to have read what was never written
            return 0
        count = min(len(data), _OUT_SIZE - used)
        if count:
            at = produced & (_OUT_SIZE - 1)
            head = min(count, _OUT_SIZE - at)
            self._bytes[_OUT + at : _OUT + at + head] = data[:head]
            self._bytes[_OUT : _OUT + count - head] = data[head:count]
            words[_OUT_PROD] = (produced + count) & _U32
            self._notify(self._port)
        return count

    def take(self) -> bytes:
        """Return the input that has come, and free its place in the ring."""
        words = self._words
        consumed, produced = words[_IN_CONS], words[_IN_PROD]
        count = (produced - consumed) & _U32
        if not count:
            return b""
        count = min(count, _IN_SIZE)
        at = consumed & (_IN_SIZE - 1)
        head = min(count, _IN_SIZE - at)
        data = bytes(self._bytes[_IN + at : _IN + at + head]) + bytes(self._bytes[_IN : _IN + count - head])
        words[_IN_CONS] = produced
        self._notify(self._port)
        return data

    def wait(self) -> None:
        """Poll the console's port."""
        page = self._hypercalls.page
        page.i[256] = self._port
        self._hypercalls.sched(
            SCHEDOP_poll,
            sched_poll,
            "SCHEDOP_poll",
            ports=page.va + 1024,
            nr_ports=1,
            timeout=self._now() + PANIC_PATIENCE_NS,
        )


class XenSink:
    """Xen's own console, for the initial domain."""

    def __init__(self, hypercalls: Hypercalls, page: Page) -> None:
        self._call = hypercalls.call
        self._check = hypercalls.check
        self._page = page

    def put(self, data: bytes) -> int:
        """Hand all of it to Xen, a page at a time. Raises XenError."""
        page = self._page
        for start in range(0, len(data), len(page.view)):
            part = data[start : start + len(page.view)]
            page.view[: len(part)] = part
            self._check(self._call(HYPERVISOR_console_io, CONSOLEIO_write, len(part), page.va), "CONSOLEIO_write")
        return len(data)

    def take(self) -> bytes:
        """Return the input that Xen holds for this domain."""
        data = b""
        while True:
            count = self._check(
                self._call(HYPERVISOR_console_io, CONSOLEIO_read, len(self._page.view), self._page.va), "CONSOLEIO_read"
            )
            if not count:
                return data
            data += bytes(self._page.view[:count])

    def wait(self) -> None:
        """Xen takes everything at once; there is nothing to wait for."""


def open_ring_console(
    hypercalls: Hypercalls, events: Events, page: Page, port: int, monotonic_ns: Callable[[], int]
) -> Console:
    """Open the console of an unprivileged domain on the page and the port that its builder made."""
    sink = RingSink(hypercalls, events, page, port, monotonic_ns)
    console = Console(sink)
    console.echo = True

    def interrupt() -> None:
        console.flush()
        data = sink.take()
        if data:
            console.receive(data)

    events.adopt(port, interrupt)
    return console


def open_xen_console(hypercalls: Hypercalls, events: Events, page: Page) -> Console:
    """Open Xen's console for the initial domain. Raises XenError (EPERM in any other)."""
    sink = XenSink(hypercalls, page)
    console = Console(sink)
    events.bind_virq(VIRQ_CONSOLE, lambda: console.receive(sink.take()))
    return console
