"""`paravirt sweep`: a scenario with many seeds and settings, and a table of what came out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import trio
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from toolstack.commands.common import EXIT_INTERRUPTED, OneSentence, check_output
from toolstack.errors import UsageError
from toolstack.output import StandardOutput
from toolstack.report import duration, make_console
from toolstack.sweep.check import check_scenario
from toolstack.sweep.cluster import run_on_cluster
from toolstack.sweep.grid import Run, parse_seeds, parse_settings, runs_of
from toolstack.sweep.local import Report, run_locally
from toolstack.sweep.results import Results
from toolstack.sweep.scenario import Source
from toolstack.sweep.summary import summarize
from toolstack.sweep.worker import OK, Row

SHOWN_FAILURES = 10


@click.command()
@click.argument("files", metavar="SCENARIO...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--seeds", metavar="SEEDS", default="0..9", show_default=True, help="Such as 0..999, or 1,5,20..29.")
@click.option(
    "--set", "settings", metavar="KEY=A,B,…", multiple=True,
    help="Try each of these values, in all combinations: pcpus, memory, scheduler, schedule, costs of the host, "
         "NAME.KEY of a guest's configuration (*.KEY of every guest's), or a parameter of a Python scenario.",
)  # fmt: skip
@click.option("--jobs", "-j", metavar="N", type=click.IntRange(1), help="Processes. [default: one a processor]")
@click.option("--dask", metavar="ADDRESS", help="Run on a Dask cluster instead, whose scheduler is there.")
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
    help="Give a run up after so much wall-clock time.",
)  # fmt: skip
@click.option(
    "-o", "--output", "directory", metavar="DIR", default="sweep", show_default=True, type=click.Path(path_type=Path),
    help="Where the results go. A campaign that is there already goes on where it stopped.",
)  # fmt: skip
@click.option("--again", is_flag=True, help="Repeat the runs that did not end in order.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def sweep(
    files: tuple[Path, ...],
    seeds: str,
    settings: tuple[str, ...],
    jobs: int | None,
    dask: str | None,
    timeout: float | None,
    directory: Path,
    again: bool,
    quiet: bool,
) -> None:
    """Simulate a SCENARIO many times, with other seeds and settings, and make a table of the results.

    SCENARIO is what `paravirt run` takes, or a Python file with a function scenario(seed, directory, …); see
    docs/sweep.md. Exits with 0, with 1 if a run failed, with 130 if it was interrupted.
    """
    try:
        if dask is not None and jobs is not None:
            raise UsageError("--jobs is for this machine, --dask for a cluster")
        source, grid = Source(files), parse_settings(settings)
        runs = runs_of(parse_seeds(seeds), grid)
        check_scenario(source, grid)
        with Results(directory, source.digest()) as results:
            todo = results.missing(runs, again=again)
            interrupted = _do(source, todo, results, jobs or _processors(), dask, timeout, quiet)
            table = results.save_table(runs)
            rows = {run: results.rows[run.key] for run in runs if run.key in results.rows}
    except UsageError as error:
        raise OneSentence(str(error)) from None
    _finish(rows, len(runs), table, files)
    if interrupted:
        sys.exit(EXIT_INTERRUPTED)
    if any(row["outcome"] != OK for row in rows.values()):
        sys.exit(1)


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _do(
    source: Source,
    runs: Sequence[Run],
    results: Results,
    jobs: int,
    dask: str | None,
    limit: float | None,
    quiet: bool,
) -> bool:
    """Do the runs; return whether a person has interrupted that."""
    if not runs:
        return False
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=quiet,
    )  # fmt: skip
    task = progress.add_task("runs", total=len(runs))
    failed = 0

    def report(run: Run, row: Row) -> None:
        nonlocal failed
        results.add(run, row)
        if row["outcome"] != OK:
            failed += 1
            progress.update(task, description=f"runs ({failed} failed)")
        progress.advance(task)

    with progress:
        if dask is None:
            return trio.run(_do_locally, source, runs, jobs, limit, report)
        try:
            run_on_cluster(source, runs, dask, limit, report)
        except KeyboardInterrupt:
            return True
        return False


async def _do_locally(source: Source, runs: Sequence[Run], jobs: int, limit: float | None, report: Report) -> bool:
    """As `run_locally`, until Ctrl-C or SIGTERM; returns whether that came. Raises what `report` does."""
    interrupted = False
    failure: UsageError | None = None
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            nonlocal interrupted
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    interrupted = True
                    nursery.cancel_scope.cancel()

        def note(run: Run, row: Row) -> None:
            nonlocal failure
            try:
                report(run, row)
            except UsageError as error:
                failure = error  # to be raised as it is, not as one of a group
                nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        await run_locally(source, runs, jobs, limit, note)
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return interrupted


def _finish(rows: dict[Run, Row], wanted: int, table: Path, files: Sequence[Path]) -> None:
    output = StandardOutput()
    output.attempt(lambda: make_console().print(_table(rows)))
    failures = [(run, row) for run, row in rows.items() if row["outcome"] != OK]
    for run, row in failures[:SHOWN_FAILURES]:
        output.write(f"{row['outcome']}: {row['message']}\n    paravirt sweep {' '.join(map(str, files))} {run}\n")
    if len(failures) > SHOWN_FAILURES:
        output.write(f"... and {len(failures) - SHOWN_FAILURES} more that failed\n")
    missing = f", {wanted - len(rows)} are still to be done" if wanted > len(rows) else ""
    output.write(f"{len(rows)} runs, {len(failures)} failed{missing}: {table}\n")
    check_output(output)


def _table(rows: dict[Run, Row]) -> Table:
    """Return the table of means, one row for each combination of settings."""
    summary = summarize(rows)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in summary.settings:
        table.add_column(name)
    for name in ("runs", "failed", "virtual time", *summary.figures):
        table.add_column(name, justify="right", overflow="fold")
    for line in summary.lines:
        table.add_row(
            *(Text(str(value)) for value in line.settings),
            str(line.runs),
            str(line.failed),
            duration(round(line.virtual_ns)),
            *line.figures,
        )
    return table
