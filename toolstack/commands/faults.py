"""`paravirt faults`: the menu of what can be broken."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.table import Table

from toolstack.commands.common import OneSentence
from toolstack.errors import did_you_mean
from toolstack.faults.menu import LOSSES, MENU, Entry
from toolstack.faults.spec import KEYS


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
def faults(name: str | None) -> None:
    """List what `paravirt run --fault NAME[:KEY=VALUE]...` can break, or tell all of one fault."""
    if name is None:
        _list()
        return
    entry = MENU.get(name)
    if entry is None:
        raise OneSentence(f"there is no fault {name!r}{did_you_mean(name, MENU)}")
    _tell(entry)


def _list() -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("fault", "what it does", "what a good host does about it"):
        table.add_column(heading, no_wrap=heading == "fault")
    for entry in MENU.values():
        table.add_row(entry.name, entry.does, entry.good)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _tell(entry: Entry) -> None:
    click.echo(f"{entry.name}\n\n{entry.does}\nA good host: {entry.good}\n")
    losses = "; ".join(LOSSES[loss] for loss in sorted(entry.hurts)) or "nothing but time"
    click.echo(f"What the victim may lose: {losses}. Nobody else may lose anything.\n")
    for key in entry.keys:
        default = getattr(entry.default, KEYS[key].field)
        known = isinstance(default, int | float | str) and default not in ("", 0) and KEYS[key].field != "at"
        click.echo(f"  {key}=    {KEYS[key].form}{f' [default: {_say(key, default)}]' if known else ''}")


def _say(key: str, value: object) -> str:
    return f"{value / 1_000_000:g}ms" if key in ("by", "every", "for") and isinstance(value, int) else str(value)
