"""`paravirt check`: somebody's driver, ring or store, judged against the protocols."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from conformance.kit.check import CHECKS, Check, Level, Outcome
from conformance.kit.reports import REPORTS, summary
from conformance.kit.runner import Result, run_checks
from conformance.subjects import SubjectError
from conformance.suites import SUITES, Suite
from toolstack.commands.common import OneSentence
from toolstack.errors import did_you_mean

EXIT_BROKEN = 1
EXIT_KIT = 3
_STYLES = {Outcome.success: "green", Outcome.skip: "yellow", Outcome.error: "magenta", Outcome.failure: "red"}


@click.group()
def check() -> None:
    """Judge somebody's driver, ring or store against the protocols.

    \b
        paravirt check list --suite xenstore
        paravirt check run --suite xenstore unix:/var/run/xenstored/socket
        paravirt check explain XENSTORE-062
    """


@check.command("list")
@click.option("--suite", "name", metavar="SUITE", help="Only this suite.")
def list_checks(name: str | None) -> None:
    """List the checks: id, level, title, source."""
    suites = [_suite(name)] if name is not None else list(SUITES.values())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("id", "level", "title", "source"):
        table.add_column(heading, no_wrap=heading in ("id", "level"))
    for suite in suites:
        for one in suite.checks:
            table.add_row(one.id, one.level.value, one.title, one.source)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@check.command()
@click.argument("id", metavar="ID")
def explain(id: str) -> None:
    """Say what a check asks, why, and where that is laid down."""
    one = _check(id)
    click.echo(f"{one.id} ({one.level.value})\n\n{one.title}\n\n{one.prose}\n\nSource: {one.source}")


@check.command()
@click.option("--suite", "name", metavar="SUITE", required=True, help=f"One of {', '.join(SUITES)}.")
@click.option("--only", metavar="ID", multiple=True, help="Run only this check; may be given several times.")
@click.option(
    "--report", "reports", metavar="FORMAT=FILE", multiple=True, help=f"Write the results, too: {', '.join(REPORTS)}."
)
@click.option("--verbose", is_flag=True, help="Show the checks that succeed, too.")
@click.argument("subject", metavar="SUBJECT")
def run(name: str, only: tuple[str, ...], reports: tuple[str, ...], verbose: bool, subject: str) -> None:
    """Run the checks of a suite on SUBJECT.

    Exits with 0 if the subject conforms, 1 if it fails a check (a `may` is only told), 2 if it or an option cannot be
    used, 3 if the kit could not judge it.
    """
    suite = _suite(name)
    files = [_report(text) for text in reports]
    checks = [_check(id) for id in only] or suite.checks
    for one in checks:
        if one.suite != suite.name:
            raise OneSentence(f"{one.id} is no check of suite {suite.name!r}")
    try:
        world = suite.world(subject)
    except SubjectError as error:
        raise OneSentence(f"{error}; suite {suite.name!r} judges {suite.what}: {suite.subject}") from None
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    results = []
    for result in run_checks(checks, world):
        results.append(result)
        if verbose or result.outcome is not Outcome.success:
            _show(console, result)
    console.print(summary(results))
    for form, path in files:
        path.write_text(REPORTS[form](suite.name, subject, results))
    if any(result.condemns for result in results):
        sys.exit(EXIT_BROKEN)
    if any(result.outcome is Outcome.error for result in results):
        sys.exit(EXIT_KIT)


def _show(console: Console, result: Result) -> None:
    style = _STYLES[result.outcome]
    told = "told only" if result.outcome is Outcome.failure and result.check.level is Level.may else ""
    head = f"[{style}]{result.outcome.value:8}[/] {result.check.id} {result.check.level.value:7}"
    console.print(head, result.check.title, told, soft_wrap=True)
    if result.message:
        console.print(f"         {result.message}", style=style, markup=False, soft_wrap=True)
        console.print(f"         see {result.check.source}", markup=False, soft_wrap=True)


def _suite(name: str) -> Suite:
    suite = SUITES.get(name)
    if suite is None:
        raise OneSentence(
            f"there is no suite {name!r}{did_you_mean(name, SUITES) or '; there are ' + ', '.join(SUITES)}"
        )
    return suite


def _check(id: str) -> Check:
    one = CHECKS.get(id.upper())
    if one is None:
        raise OneSentence(f"there is no check {id!r}{did_you_mean(id.upper(), CHECKS)}")
    return one


def _report(text: str) -> tuple[str, Path]:
    form, sign, path = text.partition("=")
    if form not in REPORTS or not sign or not path:
        raise OneSentence(f"report {text!r} is not FORMAT=FILE with a format of {', '.join(REPORTS)}")
    if not Path(path).parent.is_dir():
        raise OneSentence(f"there is no directory {str(Path(path).parent)!r} for a report")
    return form, Path(path)
