"""Looking on while a host runs: xentop's table (`run --top`), and how far it has got (`run --progress`).

On a terminal both stand below what the consoles print, and are renewed in place. In a file or a pipe there is a table
each time, and a line of progress every ten seconds. It is read off Xen's books from outside, between two stretches of
guest code, so that a host that is looked at does what it does when nobody looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import trio
from rich.console import Console
from rich.live import Live
from rich.text import Text

from hypervisor.abi.domctl import xen_domctl_getdomaininfo
from hypervisor.time import TSC_HZ
from hypervisor.version import EXTRAVERSION, MAJOR, MINOR
from toolstack.control.top import PAGE_KIB, describe
from toolstack.report import duration

if TYPE_CHECKING:
    from guest_kernel.xenbus.driver import XenbusDriver
    from hypervisor.hypervisor import Hypervisor

Sample = Mapping[str, Any]


class Host(Protocol):
    """What is looked at."""

    hv: Hypervisor
    real_time: bool

    def dom0_drivers(self) -> Iterable[XenbusDriver]:
        """Return the drivers of dom0 that keep books of devices."""

    def names(self) -> Mapping[int, str]:
        """Return the names of domains by their numbers."""

    def guests_that_run(self) -> tuple[int, int]:
        """Return how many guests run, and how many there are."""


PROGRESS_SECONDS = 0.5
"""How often progress is renewed on a terminal."""
PLAIN_SECONDS = 10.0
"""... and how often a line of it is printed elsewhere."""


def look(hv: Hypervisor, drivers: Iterable[XenbusDriver], names: Mapping[int, str]) -> dict[str, Any]:
    """Return one look at the host from outside; `drivers` are those of dom0."""
    drivers = list(drivers)
    domains = []
    for domid, domain in sorted(hv.domains.items()):
        info = xen_domctl_getdomaininfo.unpack_from(hv.domctl.record(domain), 0)
        vcpus = [(vcpu.vcpu_id, vcpu.time_running) for vcpu in domain.online_vcpus()]
        domains.append(describe(drivers, info, names.get(domid, "(null)"), vcpus))
    return {
        "now_ns": hv.clock.read() if hv.clock.real else hv.clock.now,
        "total_kib": hv.memory.frames * PAGE_KIB,
        "free_kib": hv.frames.free_frames * PAGE_KIB,
        "cpus": len(hv.sched.pcpus),
        "mhz": TSC_HZ // 1_000_000,
        "version": f"{MAJOR}.{MINOR}{EXTRAVERSION.decode()}",
        "domains": domains,
    }


class LiveView:
    """Shows a running host to a person. `top_seconds` is how often the table is renewed (0: there is none).

    `format_top(sample, before, clock)` makes its lines. `write` prints lines, where there is no terminal.
    """

    def __init__(
        self,
        *,
        top_seconds: float,
        progress: bool,
        format_top: Callable[[Sample, Sample | None, str], list[str]],
        write: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._top_seconds = top_seconds
        self._progress = progress
        self._format_top = format_top
        self._write = write
        self._warn = warn
        self._table: list[str] = []
        self._before: Sample | None = None
        self._began = time.monotonic()

    async def run(self, host: Host) -> None:
        """Look on for as long as the host runs; the last table is as it was then."""
        console = Console() if self._top_seconds else Console(stderr=True)
        if console.is_terminal:
            await self._on_terminal(host, console)
        else:
            await self._in_lines(host)

    async def _on_terminal(self, host: Host, console: Console) -> None:
        to_terminal = Console().is_terminal
        with ExitStack() as stack:
            live = stack.enter_context(
                Live(console=console, auto_refresh=False, transient=not self._top_seconds, redirect_stdout=to_terminal)
            )
            due = 0.0
            while True:
                now = time.monotonic()
                if self._top_seconds and now >= due:
                    self._look(host)
                    due = now + self._top_seconds
                lines = [*self._table, *([self._line(host)] if self._progress else [])]
                live.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
                step = due - time.monotonic() if self._top_seconds else PROGRESS_SECONDS
                await trio.sleep(max(min(step, PROGRESS_SECONDS) if self._progress else step, 0.01))

    async def _in_lines(self, host: Host) -> None:
        async with trio.open_nursery() as nursery:
            if self._top_seconds:
                nursery.start_soon(self._print_tables, host)
            if self._progress:
                nursery.start_soon(self._print_progress, host)

    async def _print_tables(self, host: Host) -> None:
        while True:
            self._look(host)
            self._write("\n".join(self._table) + "\n")
            await trio.sleep(self._top_seconds)

    async def _print_progress(self, host: Host) -> None:
        while True:
            await trio.sleep(PLAIN_SECONDS)
            self._warn(self._line(host))

    def _look(self, host: Host) -> None:
        sample = look(host.hv, host.dom0_drivers(), host.names())
        self._table = self._format_top(sample, self._before, time.strftime("%H:%M:%S"))
        self._before = sample

    def _line(self, host: Host) -> str:
        """Return `12.3 s of virtual time in 4.1 s (3.0 times as fast), 3 of 4 guests run`."""
        wall = time.monotonic() - self._began
        now = host.hv.clock.read() if host.real_time else host.hv.clock.now
        running, all_ = host.guests_that_run()
        guests = f"{running} of {all_} guests run"
        if host.real_time:
            return f"{duration(now)} of real time, {guests}"
        ratio = now / 1e9 / wall if wall else 0.0
        return f"{duration(now)} of virtual time in {wall:.1f} s ({ratio:.2g} times as fast as real time), {guests}"
