"""`paravirt top`: xentop for a simulated host. Its time is the host's, so in virtual time percentages are exact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from toolstack.commands.common import check_output
from toolstack.commands.control import on_host, with_control
from toolstack.output import StandardOutput

Row = Mapping[str, Any]
Sample = Mapping[str, Any]

STATES = (("dying", "d"), ("shutdown", "s"), ("blocked", "b"), ("crashed", "c"), ("paused", "p"), ("running", "r"))
SUMMARY = ("running", "blocked", "paused", "shutdown", "crashed", "dying")
"""The first of these that is true of a domain is what the summary counts it as."""


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


def _name(row: Row, width: int) -> str:
    return f"{row['name'][:width]:>{width}}"


def _limit(row: Row) -> str:
    return "no limit" if row["max_kib"] is None else str(row["max_kib"])


def _limit_percent(row: Row, sample: Sample) -> str:
    return "n/a" if row["max_kib"] is None else f"{_percent(row['max_kib'], sample['total_kib']):.1f}"


COLUMNS: tuple[tuple[str, int, Callable[[Row, Sample, float], str]], ...] = (
    ("STATE", 6, lambda row, _s, _c: "".join(letter if row[state] else "-" for state, letter in STATES)),
    ("CPU(sec)", 10, lambda row, _s, _c: str(row["cpu_ns"] // 1_000_000_000)),
    ("CPU(%)", 6, lambda _r, _s, cpu: f"{cpu:.1f}"),
    ("MEM(k)", 10, lambda row, _s, _c: str(row["mem_kib"])),
    ("MEM(%)", 6, lambda row, sample, _c: f"{_percent(row['mem_kib'], sample['total_kib']):.1f}"),
    ("MAXMEM(k)", 10, lambda row, _s, _c: _limit(row)),
    ("MAXMEM(%)", 9, lambda row, sample, _c: _limit_percent(row, sample)),
    ("VCPUS", 5, lambda row, _s, _c: str(row["vcpus"])),
    ("NETS", 4, lambda row, _s, _c: str(row["nets"])),
    ("NETTX(k)", 8, lambda row, _s, _c: str(row["tx_bytes"] // 1024)),
    ("NETRX(k)", 8, lambda row, _s, _c: str(row["rx_bytes"] // 1024)),
    ("VBDS", 4, lambda row, _s, _c: str(row["vbds"])),
    ("VBD_OO", 8, lambda _r, _s, _c: "0"),
    ("VBD_RD", 8, lambda row, _s, _c: str(row["rd"])),
    ("VBD_WR", 8, lambda row, _s, _c: str(row["wr"])),
    ("VBD_RSECT", 10, lambda row, _s, _c: str(row["rsect"])),
    ("VBD_WSECT", 10, lambda row, _s, _c: str(row["wsect"])),
    ("SSID", 4, lambda row, _s, _c: str(row["ssid"])),
)
"""xentop's columns after NAME: title, width, text. Nothing is ever out of requests here (VBD_OO)."""


def format_sample(sample: Sample, before: Sample | None, clock: str, *, full_name: bool = False) -> list[str]:
    """Return the screen for one look at the host, given the one before it (None: percentages are 0).

    `clock` is the time of day for the first line. Raises nothing: a domain without a former self has used 0 %.
    """
    rows: Sequence[Row] = sorted(sample["domains"], key=lambda row: row["id"])
    width = max([10, *(len(row["name"]) for row in rows)]) if full_name else 10
    used = sample["total_kib"] - sample["free_kib"]
    counts = dict.fromkeys(SUMMARY, 0)
    for row in rows:
        state = next((state for state in SUMMARY if row[state]), None)
        if state is not None:
            counts[state] += 1
    shown = ", ".join(f"{counts[state]} {state}" for state in ("running", "blocked", "paused", "crashed", "dying"))
    lines = [
        f"xentop - {clock}   Xen {sample['version']}",
        f"{len(rows)} domains: {shown}, {counts['shutdown']} shutdown ",
        f"Mem: {sample['total_kib']}k total, {used}k used, {sample['free_kib']}k free    "
        f"CPUs: {sample['cpus']} @ {sample['mhz']}MHz",
        " ".join([f"{'NAME':>{width}}", *(f"{title:>{size}}" for title, size, _ in COLUMNS)]),
    ]
    for row in rows:
        cpu = _cpu_percent(row, sample, before)
        cells = [f"{text(row, sample, cpu):>{size}}" for _, size, text in COLUMNS]
        lines.append(" ".join([_name(row, width), *cells]))
    return lines


def _cpu_percent(row: Row, sample: Sample, before: Sample | None) -> float:
    old = next((old for old in before["domains"] if old["id"] == row["id"]), None) if before is not None else None
    if before is None or old is None:
        return 0.0
    return _percent(row["cpu_ns"] - old["cpu_ns"], sample["now_ns"] - before["now_ns"])


@click.command()
@click.option("--batch", "-b", is_flag=True, help="Print one table after the other, for files and pipes.")
@click.option(
    "--delay", "-d", metavar="SECONDS", type=click.FloatRange(min=0.01), default=3, show_default=True,
    help="Between two tables, by the wall clock.",
)  # fmt: skip
@click.option("--iterations", "-i", metavar="N", type=click.IntRange(min=1), help="End after so many tables.")
@click.option("--full-name", "-f", is_flag=True, help="Do not cut names to ten characters.")
@with_control
def top(path: Path, batch: bool, delay: float, iterations: int | None, full_name: bool) -> None:
    """Show what the domains of a running host use, as xentop does; Ctrl-C ends it."""
    console = Console()
    tables = _tables(path, delay, iterations, full_name)
    try:
        if batch or not console.is_terminal:
            _print(tables)
        else:
            with Live(console=console, auto_refresh=False, screen=True) as live:
                for lines in tables:
                    live.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
    except KeyboardInterrupt:
        return


def _print(tables: Iterable[Sequence[str]]) -> None:
    output = StandardOutput()
    for lines in tables:
        output.write("\n".join(lines) + "\n")
        check_output(output)


def _tables(path: Path, delay: float, iterations: int | None, full_name: bool) -> Iterable[list[str]]:
    before: Sample | None = None
    shown = 0
    with on_host(path) as control:
        while True:
            sample: Sample = control.ask("top")
            yield format_sample(sample, before, time.strftime("%H:%M:%S"), full_name=full_name)
            before = sample
            shown += 1
            if shown == iterations:
                return
            time.sleep(delay)
