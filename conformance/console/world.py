"""A guest in which both ends of a console page are: the subject, and the check as its daemon.

A subject is called with the kernel, a page and a port, and returns the console on them. Of that the checks use

    write(data: bytes)          print; returns at once, however full the ring is
    async readline() -> str     the next line that was typed, without its end

The port leads back into the same domain, where the check has its other end.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, final

import trio

from conformance.console.daemon import LOOK_NS, PATIENCE_NS, Daemon
from conformance.kit.check import Failure
from conformance.kit.place import Place
from conformance.kit.recording import host_options, note_failure
from conformance.kit.runner import World
from conformance.kit.telling import told
from conformance.subjects import load_class
from guest_kernel.console import Console, open_ring_console
from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from hypervisor.abi.xen import DOMID_SELF
from toolstack.domains import CRASH
from toolstack.host import Host
from toolstack.xl_config import parse_config

HANG_LIMIT: Final = 20.0
"""Seconds after which a subject that does not yield is ended."""


class Judged(Protocol):
    """What a subject makes."""

    def write(self, data: bytes) -> None:
        """Print."""

    async def readline(self) -> str:
        """Return the next line of input."""
        ...


def OurConsole(kernel: Kernel, page: Page, port: int) -> Console:
    """Make the console of the guest kernel; it does not show what is typed."""
    console = open_ring_console(kernel.hypercalls, kernel.events, page, port, kernel.monotonic_ns)
    console.echo = False
    return console


@final
class Scene:
    """What a check gets."""

    def __init__(self, subject: Any) -> None:
        self.subject = subject
        self.kernel: Kernel
        self.daemon: Daemon
        self.console: Judged
        self.lines: list[str] = []
        """What the guest has read."""
        self.failure: Exception | None = None
        self.over = False
        self._port = 0
        self._check: Coroutine[Any, Any, None] | None = None

    def open(self, out: int = 0, into: int = 0) -> Daemon:
        """Make a page with these indices, and give it to the subject; return the daemon, which is connected."""
        daemon = self.open_alone(out, into)
        self.connect()
        return daemon

    def open_alone(self, out: int = 0, into: int = 0) -> Daemon:
        """As `open`, and the daemon is not connected yet."""
        kernel = self.kernel
        daemon: Daemon = told("daemon", Daemon(kernel, kernel.mm.alloc_page()))
        self.daemon = daemon
        daemon.begin(out, into)
        self._port = kernel.events.alloc_unbound(DOMID_SELF, _nobody)
        self.console = told("console", self.subject(kernel, daemon.page, self._port))
        return daemon

    def connect(self) -> None:
        """Connect the daemon."""
        daemon = self.daemon

        def heard() -> None:
            daemon.events += 1

        daemon.port = self.kernel.events.bind_interdomain(DOMID_SELF, self._port, heard)

    def write(self, data: bytes) -> None:
        """Have the guest print. Raises Failure if it cannot."""
        try:
            self.console.write(data)
        except Exception as error:
            raise Failure(f"To print {len(data)} bytes raises {error!r}.") from None

    def listen(self) -> None:
        """Have the guest read lines from now on."""

        async def work() -> None:
            while True:
                self.lines.append(await self.console.readline())

        self.kernel.spawn(work(), "reads")

    async def has_read(self, count: int) -> list[str]:
        """Wait until the guest has read so many lines; return them. Raises Failure."""
        for _ in range(PATIENCE_NS // LOOK_NS):
            if len(self.lines) >= count:
                return self.lines
            await self.kernel.sleep(LOOK_NS)
        raise Failure(f"Of {count} lines that are typed the guest reads {len(self.lines)}.")

    async def live(self, kernel: Kernel) -> None:
        """Be the guest's program."""
        self.kernel = kernel
        check, self._check = self._check, None
        assert check is not None, "the check has been begun before"
        try:
            await check
        except Exception as error:
            self.failure = error
            note_failure(kernel, error)
        self.over = True

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check in the guest. Raises what it raises, and Failure if the guest does not live to its end."""
        self._check = check
        host = Host(hang_limit=HANG_LIMIT, **host_options())
        config = parse_config('name = "guest"\nmemory = 8\nkernel = "guest.py"\n', "guest.cfg", Path(__file__).parent)
        with place.taken_by(self):
            try:
                trio.run(host.run, [config])
            finally:
                check.close()
        if self.failure is not None:
            raise self.failure
        result = host.results["guest"]
        if result.reason == CRASH:
            raise Failure(f"The guest crashes: {result.message}")
        if not self.over:
            raise Failure(f"The guest ends before the check does. {result.message}")


def _nobody() -> None:
    """Take an event that nobody waits for."""


place: Final[Place[Scene]] = Place()
"""Where programs find it."""


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    subject = load_class(text)
    return lambda: scene(subject)


@contextmanager
def scene(subject: Any) -> Iterator[Scene]:
    """Make a scene."""
    yield Scene(subject)
