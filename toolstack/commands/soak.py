"""`paravirt soak`: random faults with many seeds, and what a good host owes its guests all the same."""

from __future__ import annotations

import os
import sys
from collections import Counter

import click
from rich.console import Console
from rich.progress import Progress

from toolstack.commands.common import EXIT_INTERRUPTED, OneSentence
from toolstack.errors import UsageError
from toolstack.faults.order import parse_fault
from toolstack.soak.campaign import run_trials
from toolstack.soak.trial import MOST_FAULTS, Trial
from toolstack.sweep.grid import parse_seeds

EXIT_PROBLEM = 1


@click.command()
@click.option(
    "--seeds", "text", metavar="A..B", default="0..99", show_default=True, help="Seeds, as 7, 0..99 or 1,5,9."
)
@click.option(
    "--fault", "faults", metavar="NAME[:KEY=VALUE]...", multiple=True, help="These faults, not those of the seed."
)
@click.option(
    "--most",
    type=click.IntRange(1, 20),
    default=MOST_FAULTS,
    show_default=True,
    help="How many faults a seed stands for at most.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 256), default=None, help="How many processes. [default: one for each processor]"
)
@click.option("--verbose", is_flag=True, help="Tell of each seed.")
def soak(text: str, faults: tuple[str, ...], most: int, jobs: int | None, verbose: bool) -> None:
    """Run hosts with random faults, and check what must hold whatever breaks.

    Three guests write, flush, read, compute and ping each other; faults of the menu (`paravirt faults`) strike two of
    them. Nothing that was acknowledged and flushed may be lost, nothing may be left behind, and whom no fault is about
    must get everything done. Exits with 0, or with 1 if that did not hold for a seed; the same seed does the same
    again.
    """
    try:
        seeds = parse_seeds(text)
        for fault in faults:
            parse_fault(fault)
    except (UsageError, ValueError) as error:
        raise OneSentence(str(error)) from None
    try:
        trials = _run(seeds, list(faults) or None, most, jobs or os.cpu_count() or 1, verbose)
    except UsageError as error:
        raise OneSentence(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    bad = [trial for trial in trials if trial.problems]
    counts = Counter(fault.partition(":")[0] for trial in trials for fault in trial.faults)
    struck = sum(trial.struck for trial in trials)
    click.echo(
        f"{len(trials)} seeds, {sum(counts.values())} faults of {len(counts)} kinds, which struck {struck} times"
    )
    if bad:
        click.echo(f"paravirt: {len(bad)} of {len(trials)} seeds have found something", err=True)
        sys.exit(EXIT_PROBLEM)


def _run(seeds: list[int], faults: list[str] | None, most: int, jobs: int, verbose: bool) -> list[Trial]:
    trials = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("soaking", total=len(seeds))
        for trial in run_trials(seeds, faults, most, jobs):
            trials.append(trial)
            progress.advance(task)
            if verbose or trial.problems:
                _tell(trial)
    return trials


def _tell(trial: Trial) -> None:
    struck = f"struck {trial.struck} times, {trial.virtual_ns / 1e6:.1f} ms, digest {trial.digest}"
    click.echo(f"seed {trial.seed}: {struck}")
    for fault in trial.faults:
        click.echo(f"    --fault {fault}")
    for problem in trial.problems:
        click.echo(f"  ! {problem}")
    if trial.problems:
        click.echo(f"  again: {trial.command}")
