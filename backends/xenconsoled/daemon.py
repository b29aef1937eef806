"""xenconsoled as threads of dom0.

For each domain that xenstored introduces it reads `/local/domain/N/console/ring-ref` and `port`, maps the page and
binds the event channel. What the guest prints goes to two places: a log, which takes everything at once, and a
terminal, which somebody may read or not. What is typed on the terminal goes to the guest. Both are lines of the
machine's serial card, opened by the domain's name; a terminal that has a name of its own gets it into the node
`console/tty`.

A guest that signals without end is slowed down, as the C daemon does: after `ALLOWANCE` events within `PERIOD_NS` its
port stays masked until the period is over.  Its ring fills, and the guest has to wait; nobody else does.  A terminal
that is not read costs at most what `console/limit` says, and holds up neither the guest nor the log (`OutputBuffer`).

A domain that has gone (its nodes are removed) has its ring emptied once more, then everything is given back.
"""

from collections.abc import Callable
from typing import Final, Protocol, final

from backends.reserved_page import ReservedPage
from backends.xenconsoled.ring import ConsoleRing
from backends.xenconsoled.terminal import OutputBuffer, parse_limit
from guest_kernel.errors import XenError
from guest_kernel.hw.serial import LOG, TERMINAL
from guest_kernel.kernel import Kernel
from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus.client import Transaction, XenstoreError
from hypervisor.abi import tracepoints
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE

ALLOWANCE: Final = 30
PERIOD_NS: Final = 200_000_000
CHUNK: Final = 4096
"""Bytes that are offered to a terminal at a time."""
SERVED: Final = ("", "xenconsoled", None)
"""What the node `console/type` may say for this daemon to serve it."""


class Line(Protocol):
    """A line of the serial card (`guest_kernel.hw.serial.SerialLine`)."""

    number: int
    name: str
    on_news: Callable[[], None]

    def send(self, data: bytes, /) -> int:
        """Send; return how many bytes were taken."""
        ...

    def receive(self, limit: int, /) -> bytes:
        """Return at most `limit` bytes of input."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


class Lines(Protocol):
    """The serial card (`guest_kernel.hw.serial.PhysicalSerial`)."""

    def open(self, kind: int, name: str, /) -> Line | None:
        """Open a line; None if nothing is plugged in there."""
        ...


@final
class GuestConsole:
    """The console of one domain."""

    __slots__ = (
        "domid",
        "events",
        "full",
        "log",
        "name",
        "output",
        "page",
        "period_end",
        "port",
        "ring",
        "signalled",
        "terminal",
        "throttled",
    )

    def __init__(self, domid: int, name: str, page: ReservedPage) -> None:
        self.domid = domid
        self.name = name
        self.page = page
        self.ring = ConsoleRing(page.view)
        self.port = 0
        self.log: Line | None = None
        self.terminal: Line | None = None
        #: What the terminal has not taken yet.
        self.output = OutputBuffer()
        #: The terminal has not taken all that it was sent.
        self.full = False
        #: An event has come that nobody has looked at.
        self.signalled = True
        #: Events in the current period, and when that is over.
        self.events = 0
        self.period_end = 0
        self.throttled = False


@final
class XenConsoled:
    """The daemon.  `start` begins; `consoles` are those that are served, by domain.

    `discard` False (the C daemon's `--overflow-data=keep`): while a terminal has as much unread as its limit allows,
    the guest is not read; it waits, and nothing is lost.
    """

    def __init__(
        self,
        kernel: Kernel,
        lines: Lines,
        *,
        allowance: int = ALLOWANCE,
        period_ns: int = PERIOD_NS,
        discard: bool = True,
    ) -> None:
        self.kernel = kernel
        self.lines = lines
        self.consoles: dict[int, GuestConsole] = {}
        self._allowance = allowance
        self._period_ns = period_ns
        self._discard = discard
        self._trace = kernel.cpu.trace
        self._ready: dict[GuestConsole, None] = {}
        self._wake = WaitQueue()
        self._throttled: dict[GuestConsole, None] = {}
        self._throttle = WaitQueue()

    def start(self) -> None:
        """Start the threads."""
        self.kernel.spawn(self._serve(), "xenconsoled")
        self.kernel.spawn(self._follow_domains(), "xenconsoled domains")
        self.kernel.spawn(self._release_throttled(), "xenconsoled throttle")

    def terminal_of(self, domid: int) -> int | None:
        """Return the line of a domain's terminal; None if it has none."""
        console = self.consoles.get(domid)
        return None if console is None or console.terminal is None else console.terminal.number

    # ---- the thread that moves bytes

    def _on_event(self, console: GuestConsole) -> Callable[[], None]:
        """Return the handler of a guest's event channel."""
        ready, wake = self._ready, self._wake.wake

        def on_event() -> None:
            console.signalled = True
            ready[console] = None
            wake()

        return on_event

    def _on_news(self, console: GuestConsole) -> Callable[[], None]:
        """Return the handler of news from a terminal: something typed, or room again."""
        ready, wake = self._ready, self._wake.wake

        def on_news() -> None:
            console.full = False
            ready[console] = None
            wake()

        return on_news

    async def _serve(self) -> None:
        ready = self._ready
        while True:
            while ready:
                console = next(iter(ready))
                del ready[console]
                if self.consoles.get(console.domid) is console:
                    self._move(console)
            await self._wake.wait()

    def _move(self, console: GuestConsole) -> None:
        """Pass output and input on, as far as both sides let it; signal once."""
        self._send(console)
        if console.signalled and not console.throttled and (self._discard or not console.output.full):
            console.signalled = False
            data = console.ring.read()
            if data:
                self._emit(console, data)
            self._count(console)
        terminal = console.terminal
        if terminal is not None:
            room = console.ring.room
            if room and (typed := terminal.receive(room)):
                console.ring.write(typed)
        self._signal(console)

    def _count(self, console: GuestConsole) -> None:
        """Count an event; a guest that has had its share is not listened to until the period is over."""
        now = self.kernel.monotonic_ns()
        if now >= console.period_end:
            console.period_end = now + self._period_ns
            console.events = 0
        console.events += 1
        if console.events >= self._allowance:
            console.throttled = True
            self.kernel.events.mask(console.port)
            self._throttled[console] = None
            self._throttle.wake()

    def _emit(self, console: GuestConsole, data: bytes) -> None:
        """Show what a guest has printed."""
        if self._trace is not None:
            self._trace(tracepoints.CONSOLE, console.domid, data)
        if console.log is not None:
            console.log.send(data)
        if console.terminal is not None:
            console.output.append(data)
            self._send(console)

    def _send(self, console: GuestConsole) -> None:
        """Send to the terminal what it has room for; once it is full, not before it has news."""
        output, terminal = console.output, console.terminal
        while output.data and terminal is not None and not console.full:
            part = bytes(output.data[:CHUNK])
            taken = terminal.send(part)
            output.advance(taken)
            console.full = taken < len(part)

    def _signal(self, console: GuestConsole) -> None:
        if console.ring.notify:
            console.ring.notify = False
            try:
                self.kernel.events.notify(console.port)
            except XenError:
                # The guest's end is closed: it is on its way out, and xenstored will say so.
                return

    async def _release_throttled(self) -> None:
        """Listen again to those whose period is over."""
        while True:
            while self._throttled:
                console = next(iter(self._throttled))
                left = console.period_end - self.kernel.monotonic_ns()
                if left > 0:
                    await self.kernel.sleep(left)
                    continue
                del self._throttled[console]
                console.throttled = False
                if self.consoles.get(console.domid) is console:
                    self.kernel.events.unmask(console.port)
                    self._ready[console] = None
                    self._wake.wake()
            await self._throttle.wait()

    # ---- domains

    async def _follow_domains(self) -> None:
        """Serve the domains that are introduced, and let go of those that have gone."""
        xenbus = self.kernel.xenbus
        changed = WaitQueue()
        news = [True]

        def note(path: str, token: str = "") -> None:
            news[0] = True
            changed.wake()

        for name in ("@introduceDomain", "@releaseDomain"):
            await xenbus.watch(name, note)
        while True:
            while news[0]:
                news[0] = False
                await self._compare()
            await changed.wait()

    async def _compare(self) -> None:
        try:
            names = await self.kernel.xenbus.directory("/local/domain")
        except XenstoreError as error:
            if error.name != "ENOENT":
                raise
            names = []  # there is no such directory before the first domain
        present = {int(name): None for name in names if name.isdecimal()}
        for domid in sorted(self.consoles.keys() - present.keys()):
            self._close(self.consoles[domid])
        for domid in sorted(present.keys() - self.consoles.keys()):
            if domid:
                await self._open(domid)

    async def _open(self, domid: int) -> None:
        """Serve a domain's console if it has one (its nodes may not be written yet, or it may be half gone)."""
        home = f"/local/domain/{domid}"
        paths = [
            f"{home}/{key}" for key in ("console/ring-ref", "console/port", "console/type", "console/limit", "name")
        ]
        ring_ref, port, kind, limit, name = await self.kernel.xenbus.read_many(paths)
        if not (ring_ref and ring_ref.isdecimal() and port and port.isdecimal() and kind in SERVED):
            return
        kernel = self.kernel
        page = None
        try:
            page = ReservedPage(kernel, domid, GNTTAB_RESERVED_CONSOLE, int(ring_ref))
            console = GuestConsole(domid, name or f"d{domid}", page)
            console.port = kernel.events.bind_interdomain(domid, int(port), self._on_event(console))
        except XenError as error:
            kernel.console.printk(f"xenconsoled: no console for domain {domid}: {error}")
            if page is not None:
                page.unmap()
            return
        self.consoles[domid] = console
        console.log = self.lines.open(LOG, console.name)
        console.terminal = self.lines.open(TERMINAL, console.name)
        self._ready[console] = None
        self._wake.wake()
        if console.terminal is not None:
            console.output.limit = parse_limit(limit)
            console.terminal.on_news = self._on_news(console)
            if console.terminal.name:
                await self._publish(f"{home}/console", console.terminal.name)

    async def _publish(self, directory: str, name: str) -> None:
        """Write the terminal's name, if the directory is still there: a plain write would bring a part of it back."""

        async def write(transaction: Transaction) -> None:
            if await transaction.exists(directory):
                await transaction.write(f"{directory}/tty", name)

        await self.kernel.xenbus.transact(write)

    def _close(self, console: GuestConsole) -> None:
        """Pass on what is left, and give everything back."""
        data = console.ring.read()
        if data:
            self._emit(console, data)
        del self.consoles[console.domid]
        self._ready.pop(console, None)
        self._throttled.pop(console, None)
        self.kernel.events.unbind(console.port)
        del console.ring
        console.page.unmap()
        for line in (console.log, console.terminal):
            if line is not None:
                line.close()
