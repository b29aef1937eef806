"""xenconsoled as a thread of dom0.

For each domain that xenstored introduces it reads `/local/domain/N/console/ring-ref` and `port`, maps the page, binds
the event channel and passes on what the guest writes: `sink(domid, bytes)`, cut anywhere; lines are the sink's
business.  `feed` is the other direction.

A guest that signals without end is slowed down, as the C daemon does: after `ALLOWANCE` events within `PERIOD_NS` its
port stays masked until the period is over.  Its ring fills, and the guest has to wait; nobody else does.

A domain that has gone (its nodes are removed) has its ring emptied once more, then everything is given back.
"""

from collections.abc import Callable
from typing import Final, final

from backends.reserved_page import ReservedPage
from backends.xenconsoled.ring import ConsoleRing
from guest_kernel.errors import XenError
from guest_kernel.kernel import Kernel
from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus.client import XenstoreError
from hypervisor.abi import tracepoints
from hypervisor.abi.grant_table import GNTTAB_RESERVED_CONSOLE

ALLOWANCE: Final = 30
PERIOD_NS: Final = 200_000_000
BACKLOG: Final = 4096
"""Bytes of input that are kept for a guest whose ring is full."""

Sink = Callable[[int, bytes], None]


@final
class GuestConsole:
    """The console of one domain."""

    __slots__ = ("backlog", "domid", "events", "page", "period_end", "port", "ring", "room", "throttled")

    def __init__(self, domid: int, page: ReservedPage) -> None:
        self.domid = domid
        self.page = page
        self.ring = ConsoleRing(page.view)
        self.port = 0
        #: Input that did not fit into the ring.
        self.backlog = b""
        #: Who waits for room in the backlog.
        self.room = WaitQueue()
        #: Events in the current period, and when that is over.
        self.events = 0
        self.period_end = 0
        self.throttled = False


@final
class XenConsoled:
    """The daemon.  `start` begins; `consoles` are those that are served, by domain."""

    def __init__(self, kernel: Kernel, sink: Sink, *, allowance: int = ALLOWANCE, period_ns: int = PERIOD_NS) -> None:
        self.kernel = kernel
        self.sink = sink
        self.consoles: dict[int, GuestConsole] = {}
        self._allowance = allowance
        self._period_ns = period_ns
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

    # ---- output

    def _make_handler(self, console: GuestConsole) -> Callable[[], None]:
        ready, wake = self._ready, self._wake.wake

        def on_event() -> None:
            ready[console] = None
            wake()

        return on_event

    async def _serve(self) -> None:
        ready = self._ready
        while True:
            while ready:
                console = next(iter(ready))
                del ready[console]
                if self.consoles.get(console.domid) is console:
                    self._count(console)
                    self._move(console)
            await self._wake.wait()

    def _count(self, console: GuestConsole) -> None:
        """Count an event; a guest that has had its share is not listened to until the period is over."""
        now = self.kernel.monotonic_ns()
        if now >= console.period_end:
            console.period_end = now + self._period_ns
            console.events = 0
        console.events += 1
        if console.events > self._allowance and not console.throttled:
            console.throttled = True
            self.kernel.events.mask(console.port)
            self._throttled[console] = None
            self._throttle.wake()

    def _move(self, console: GuestConsole) -> None:
        """Pass output on, put waiting input into the ring, signal once."""
        ring = console.ring
        data = ring.read()
        if data:
            self._emit(console, data)
        if console.backlog:
            taken = ring.write(console.backlog)
            if taken:
                console.backlog = console.backlog[taken:]
                console.room.wake_all()
        self._signal(console)

    def _emit(self, console: GuestConsole, data: bytes) -> None:
        if self._trace is not None:
            self._trace(tracepoints.CONSOLE, console.domid, data)
        self.sink(console.domid, data)

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
                    self._move(console)
                    self.kernel.events.unmask(console.port)
            await self._throttle.wait()

    # ---- input

    def feed(self, domid: int, data: bytes) -> int:
        """Type into a console; return how many bytes were taken (0 too if the domain has none).

        What the ring has no room for is kept, up to BACKLOG bytes; the rest is for the caller to offer again.
        """
        console = self.consoles.get(domid)
        if console is None:
            return 0
        taken = 0 if console.backlog else console.ring.write(data)
        kept = data[taken : taken + BACKLOG - len(console.backlog)]
        console.backlog += kept
        self._signal(console)
        return taken + len(kept)

    async def feed_all(self, domid: int, data: bytes) -> bool:
        """Type all of `data`, waiting while the guest does not read; False if the domain goes away meanwhile."""
        while data:
            console = self.consoles.get(domid)
            if console is None:
                return False
            data = data[self.feed(domid, data) :]
            if data:
                await console.room.wait()
        return True

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
        home = f"/local/domain/{domid}/console"
        ring_ref, port, kind = await self.kernel.xenbus.read_many([f"{home}/ring-ref", f"{home}/port", f"{home}/type"])
        if not (ring_ref and ring_ref.isdecimal() and port and port.isdecimal() and kind in (None, "", "xenconsoled")):
            return
        kernel = self.kernel
        page = None
        try:
            page = ReservedPage(kernel, domid, GNTTAB_RESERVED_CONSOLE, int(ring_ref))
            console = GuestConsole(domid, page)
            console.port = kernel.events.bind_interdomain(domid, int(port), self._make_handler(console))
        except XenError as error:
            kernel.console.printk(f"xenconsoled: no console for domain {domid}: {error}")
            if page is not None:
                page.unmap()
            return
        self.consoles[domid] = console
        self._ready[console] = None
        self._wake.wake()

    def _close(self, console: GuestConsole) -> None:
        """Pass on what is left, and give everything back."""
        data = console.ring.read()
        if data:
            self._emit(console, data)
        del self.consoles[console.domid]
        self._ready.pop(console, None)
        self._throttled.pop(console, None)
        console.room.wake_all()
        self.kernel.events.unbind(console.port)
        del console.ring
        console.page.unmap()
