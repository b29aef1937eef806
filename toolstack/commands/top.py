"""`paravirt top`: xentop for a simulated host. Its time is the host's, so in virtual time percentages are exact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
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
VCPUS_PER_LINE = 5
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


@attrs.frozen
class View:
    """What of a sample is shown, and in which order."""

    full_name: bool = False
    vcpus: bool = False
    networks: bool = False
    disks: bool = False
    repeat_header: bool = False
    sort: str = ""
    """The title of a column, in lower case; empty: by the domains' numbers."""


SORTS: dict[str, Callable[[Row, float], Any]] = {
    "name": lambda row, _c: row["name"],
    "state": lambda row, _c: [not row[state] for state in SUMMARY],
    "cpu(sec)": lambda row, _c: -row["cpu_ns"],
    "cpu(%)": lambda _r, cpu: -cpu,
    "mem(k)": lambda row, _c: -row["mem_kib"],
    "maxmem(k)": lambda row, _c: float("-inf") if row["max_kib"] is None else -row["max_kib"],
    "vcpus": lambda row, _c: -row["vcpus"],
    "nets": lambda row, _c: -row["nets"],
    "nettx(k)": lambda row, _c: -row["tx_bytes"],
    "netrx(k)": lambda row, _c: -row["rx_bytes"],
    "vbds": lambda row, _c: -row["vbds"],
    "vbd_rd": lambda row, _c: -row["rd"],
    "vbd_wr": lambda row, _c: -row["wr"],
    "vbd_rsect": lambda row, _c: -row["rsect"],
    "vbd_wsect": lambda row, _c: -row["wsect"],
}
"""What `--sort` takes: names from A to Z, numbers from the greatest down. The two of a percentage are in one order."""


def format_sample(sample: Sample, before: Sample | None, clock: str, view: View | None = None) -> list[str]:
    """Return the screen for one look at the host, given the one before it (None: percentages are 0).

    `clock` is the time of day for the first line. Raises nothing: a domain without a former self has used 0 %.
    """
    view = view or View()
    shares = {row["id"]: _cpu_percent(row, sample, before) for row in sample["domains"]}
    rows: list[Row] = sorted(sample["domains"], key=lambda row: row["id"])
    if view.sort:
        rows.sort(key=lambda row: SORTS[view.sort](row, shares[row["id"]]))
    width = max([10, *(len(row["name"]) for row in rows)]) if view.full_name else 10
    header = " ".join([f"{'NAME':>{width}}", *(f"{title:>{size}}" for title, size, _ in COLUMNS)])
    lines = [*_head(sample, rows), header]
    for number, row in enumerate(rows):
        if view.repeat_header and number:
            lines.append(header)
        cells = [f"{text(row, sample, shares[row['id']]):>{size}}" for _, size, text in COLUMNS]
        lines.append(" ".join([_name(row, width), *cells]))
        lines += _details(row, view)
    lines[0] = f"xentop - {clock}   {lines[0]}"
    return lines


def _head(sample: Sample, rows: Sequence[Row]) -> list[str]:
    used = sample["total_kib"] - sample["free_kib"]
    counts = dict.fromkeys(SUMMARY, 0)
    for row in rows:
        state = next((state for state in SUMMARY if row[state]), None)
        if state is not None:
            counts[state] += 1
    shown = ", ".join(f"{counts[state]} {state}" for state in ("running", "blocked", "paused", "crashed", "dying"))
    return [
        f"Xen {sample['version']}",
        f"{len(rows)} domains: {shown}, {counts['shutdown']} shutdown ",
        f"Mem: {sample['total_kib']}k total, {used}k used, {sample['free_kib']}k free    "
        f"CPUs: {sample['cpus']} @ {sample['mhz']}MHz",
    ]


def _details(row: Row, view: View) -> Iterable[str]:
    """Return the lines below a domain, as xentop's -v, -n and -x show its vCPUs, networks and disks."""
    if view.vcpus:
        cells = [f" {vcpu:2}: {ns // 1_000_000_000:10}s" for vcpu, ns in row["vcpu_ns"]]
        for at in range(0, max(len(cells), 1), VCPUS_PER_LINE):
            yield (" " * 8 if at else "VCPUs(sec): ") + "".join(cells[at : at + VCPUS_PER_LINE])
    for net in row["interfaces"] if view.networks else ():
        told = (
            f"{way.upper()}: {net[way + '_bytes']:8}bytes {net[way + '_packets']:8}pkts {0:8}err "
            f"{net[way + '_dropped']:8}drop"
            for way in ("rx", "tx")
        )
        yield f"Net{net['id']} " + "  ".join(told)
    for disk in row["disks"] if view.disks else ():
        number = disk["id"]
        yield (
            f"VBD BlkBack {number:4} [{number >> 8:2x}:{number & 255:2x}]  OO: {0:8}   RD: {disk['rd']:8}   "
            f"WR: {disk['wr']:8}   RSECT: {disk['rsect']:10}   WSECT: {disk['wsect']:10}"
        )


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
@click.option("--vcpus", "-v", is_flag=True, help="Show the vCPUs of each domain, too.")
@click.option("--networks", "-n", is_flag=True, help="Show the network interfaces of each domain, too.")
@click.option("--vbds", "-x", "disks", is_flag=True, help="Show the disks of each domain, too.")
@click.option("--repeat-header", "-r", is_flag=True, help="Repeat the titles of the columns before each domain.")
@click.option(
    "--sort", "-s", metavar="COLUMN", type=click.Choice(list(SORTS), case_sensitive=False),
    help="Order domains by this column, such as cpu(%) or vbd_rd. [default: by their numbers]",
)  # fmt: skip
@with_control
def top(
    path: Path,
    batch: bool,
    delay: float,
    iterations: int | None,
    full_name: bool,
    vcpus: bool,
    networks: bool,
    disks: bool,
    repeat_header: bool,
    sort: str | None,
) -> None:
    """Show what the domains of a running host use, as xentop does; Ctrl-C ends it."""
    console = Console()
    view = View(full_name, vcpus, networks, disks, repeat_header, sort or "")
    tables = _tables(path, delay, iterations, view)
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


def _tables(path: Path, delay: float, iterations: int | None, view: View) -> Iterable[list[str]]:
    before: Sample | None = None
    shown = 0
    with on_host(path) as control:
        while True:
            sample: Sample = control.ask("top")
            yield format_sample(sample, before, time.strftime("%H:%M:%S"), view)
            before = sample
            shown += 1
            if shown == iterations:
                return
            time.sleep(delay)
