"""What a run has come to: figures for each domain, and the closing table."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from toolstack.faults.injector import FaultReport

OK_REASONS = ("poweroff", "reboot")
"""How a domain ends in order."""
ABORTED = "aborted"


@attrs.define
class Usage:
    """What a domain has used, over all its lives. Times in ns."""

    cpu_ns: int = 0
    hypercalls: int = 0
    events: int = 0
    grants_mapped: int = 0
    grants_copied: int = 0
    blocks: int = 0
    """512-byte sectors read and written by its disks."""
    block_bytes: int = 0
    packets: int = 0
    """Packets sent and received by its network interfaces."""
    packet_bytes: int = 0
    dropped: int = 0
    """Packets to and from its network interfaces that were thrown away."""

    def add(self, other: Usage) -> None:
        """Add another life's figures."""
        for field in attrs.fields(Usage):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@attrs.define
class DomainResult:
    """How one configured domain fared."""

    name: str
    domid: int = -1
    """Number of its last life; -1 if it never lived."""
    lives: int = 0
    reason: str = ""
    """How the last life ended."""
    message: str = ""
    """A sentence for a person, if something went wrong."""
    usage: Usage = attrs.field(factory=Usage)

    @property
    def failed(self) -> bool:
        """Whether it did not end in order."""
        return bool(self.message) or self.reason not in OK_REASONS

    @property
    def sentence(self) -> str:
        """What went wrong, for a person."""
        if self.message:
            return self.message
        if not self.lives:
            return f"{self.name} was not started"
        return f"{self.name} has not ended in order: {self.reason}"


@attrs.define
class HostResult:
    """How a run of the whole host ended."""

    domains: list[DomainResult]
    """dom0 first, then the guests in the order of their configurations."""
    virtual_ns: int = 0
    wall_ns: int = 0
    real_time: bool = False
    interrupted: bool = False
    """A person stopped it (Ctrl-C)."""
    faults: list[FaultReport] = attrs.field(factory=list)
    """What came of each fault that was ordered."""
    unfinished: list[str] = attrs.field(factory=list)
    """What could not be written to its end, a sentence each: the trace, a capture, a log."""

    @property
    def failures(self) -> list[DomainResult]:
        """The domains that did not end in order."""
        return [domain for domain in self.domains if domain.failed]

    @property
    def exit_code(self) -> int:
        """What the command exits with: 0, or 1 when a guest failed."""
        return 1 if self.failures else 0


_COLUMNS = ("domain", "id", "ended", "vCPU time", "hypercalls", "events", "grants", "blocks", "packets", "dropped")
_TEXT_COLUMNS = _COLUMNS[0], _COLUMNS[2]


PIPE_WIDTH = 160
WIDE = 112
"""A console of so many columns has room for two figures in a cell; else they stand one above the other."""


def make_console() -> Console:
    """Return standard output as rich sees it. A file or a pipe has no width of its own: nothing is folded there.

    What stands between colons is what it is, not the name of a picture, and so nobody waits for thousands of these.
    """
    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=PIPE_WIDTH, emoji=False)


def print_table(result: HostResult, console: Console) -> None:
    """Print the closing table."""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=_title(result),
        title_justify="left",
    )
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _TEXT_COLUMNS else "right", overflow="fold")
    both = " / " if console.width >= WIDE else "\n"
    for domain in result.domains:
        table.add_row(*_row(domain, both), style="red" if domain.failed else None)
    console.print(table)
    console.print(_CAPTION, style="dim")


_CAPTION = (
    "grants: of others, mapped and copied. blocks: 512-byte sectors. packets: sent and received. "
    "dropped: by backend and bridge."
)


def _title(result: HostResult) -> str:
    if result.real_time:
        return f"{duration(result.wall_ns)} of real time"
    return f"{duration(result.virtual_ns)} of virtual time, in {duration(result.wall_ns)}"


def _row(domain: DomainResult, both: str) -> Sequence[str]:
    usage = domain.usage
    ended = domain.reason + (f" ({domain.lives} lives)" if domain.lives > 1 else "")
    return (
        domain.name,
        str(domain.domid) if domain.domid >= 0 else "-",
        ended,
        duration(usage.cpu_ns),
        f"{usage.hypercalls:,}",
        f"{usage.events:,}",
        f"{usage.grants_mapped:,}{both}{usage.grants_copied:,}",
        f"{usage.blocks:,}{both}{size(usage.block_bytes)}" if usage.blocks else "-",
        f"{usage.packets:,}{both}{size(usage.packet_bytes)}" if usage.packets else "-",
        f"{usage.dropped:,}" if usage.packets or usage.dropped else "-",
    )


def duration(ns: int) -> str:
    """Return a time for a person: `12.3 us`, `4.50 ms`, `1.500 s`."""
    if ns < 1_000_000:
        return f"{ns / 1e3:.1f} us"
    return f"{ns / 1e6:.2f} ms" if ns < 1_000_000_000 else f"{ns / 1e9:.3f} s"


def size(nbytes: int) -> str:
    """Return a number of bytes for a person: `512 B`, `1.5 KiB`, `3.0 MiB`."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"
