"""`paravirt uptime`: for how long a running host and its domains have run, in their own time."""

from __future__ import annotations

import time
from pathlib import Path

import click

from toolstack.commands.control import on_host, print_lines, with_control

NS = 1_000_000_000
DAY = 86_400


@click.command()
@click.option("--short", "-s", is_flag=True, help="As uptime(1) prints it, a line for each domain.")
@click.argument("domain", metavar="[DOMAIN]", default="")
@with_control
def uptime(path: Path, short: bool, domain: str) -> None:
    """Show for how long domains have run: in virtual time, if that is what the host has."""
    with on_host(path) as control:
        rows = control.ask("uptime", domain=domain)
    if short:
        now = time.strftime("%H:%M:%S")
        lines = [f" {now} up {format_uptime(row['ns'], short=True)}, {row['name']} ({row['id']})" for row in rows]
    else:
        lines = [f"{'Name':<33} {'ID':>4} Uptime"]
        lines += [f"{row['name']:<33} {row['id']:4d} {format_uptime(row['ns'])}" for row in rows]
    print_lines(*lines)


def format_uptime(ns: int, *, short: bool = False) -> str:
    """Return `2 days,  3:04:05` as xl prints it; without the seconds if it is to be short."""
    days, rest = divmod(ns // NS, DAY)
    hours, minutes, seconds = rest // 3600, rest // 60 % 60, rest % 60
    text = f"{hours:2d}:{minutes:02d}" + ("" if short else f":{seconds:02d}")
    return f"{days} day{'s' * (days > 1)}, {text}" if days else text
