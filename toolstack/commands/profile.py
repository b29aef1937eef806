"""`paravirt profile`: where guests spent virtual time, from a recorded trace."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hypervisor.sched.costs import Costs, costs_from_trace
from hypervisor.trace import TraceError, read_trace
from toolstack.commands.common import OneSentence, check_output
from toolstack.output import StandardOutput
from toolstack.profiling.profile import Profile
from toolstack.profiling.speedscope import format_speedscope
from toolstack.profiling.table import LEVELS, print_profile
from toolstack.report import make_console

PROFILE_ROWS = 25
"""Lines of a table, if nobody says how many."""


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--by", type=click.Choice(list(LEVELS)), default="call", show_default=True,
    help="What to add time up for: domains, vCPUs, threads, their hypercalls, or costs and hypercalls of all.",
)  # fmt: skip
@click.option(
    "--rows", metavar="N", type=click.IntRange(1), default=PROFILE_ROWS, show_default=True, help="Lines of a table."
)
@click.option(
    "-o", "--output", metavar="OUT", type=click.Path(path_type=Path),
    help="Write a flame graph, too: a JSON file for speedscope (speedscope.app).",
)  # fmt: skip
def profile(file: Path, by: str, rows: int, output: Path | None) -> None:
    """Show where guests spent virtual time, from a trace that `run --trace` recorded.

    Threads are known if it was recorded with --trace-threads. `run --profile` needs no trace.
    """
    if output is not None and output.exists() and file.exists() and output.samefile(file):
        raise OneSentence(f"{str(output)!r} is the trace itself")
    found = _read(file)
    if output is not None:
        save_speedscope(found, output, file.name)
    shown = StandardOutput()
    shown.attempt(lambda: print_profile(found, make_console(), by, rows))
    check_output(shown)


def _read(file: Path) -> Profile:
    try:
        header, records = read_trace(file)
        about: dict[str, Any] = header["about"]
        with closing(records):
            if about.get("time") == "real":
                raise OneSentence(f"{str(file)!r} was recorded in real time, and a profile is of virtual time")
            found = Profile(costs_from_trace(about.get("costs")) or Costs())
            found.add_all(records)
    except TraceError as error:
        raise OneSentence(str(error)) from None
    except OSError as error:
        raise OneSentence(f"cannot read the trace {str(file)!r}: {error.strerror}") from None
    found.finish()
    return found


def save_speedscope(found: Profile, path: Path, name: str) -> None:
    """Write the file. Raises OneSentence."""
    try:
        path.write_bytes(format_speedscope(found, name))
    except OSError as error:
        raise OneSentence(f"cannot write {str(path)!r}: {error.strerror}") from None
