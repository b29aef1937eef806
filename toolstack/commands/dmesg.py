"""`paravirt dmesg`: what Xen has printed on a running host."""

from __future__ import annotations

from pathlib import Path

import click

from toolstack.commands.control import on_host, print_lines, with_control
from toolstack.console_log import printable


@click.command()
@click.option("--clear", "-c", is_flag=True, help="Forget it after showing it.")
@with_control
def dmesg(path: Path, clear: bool) -> None:
    """Show the log of a running host's Xen."""
    with on_host(path) as control:
        log: bytes = control.ask("dmesg", clear=clear)
    print_lines(*map(printable, log.decode("utf-8", "backslashreplace").split("\n")[:-1]))
