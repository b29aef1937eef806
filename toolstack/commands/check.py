"""`paravirt check`: somebody's driver, ring or store, judged against the protocols."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.table import Table

from conformance.kit.check import CHECKS, Check, Level, Outcome
from conformance.kit.pages import explanation
from conformance.kit.reports import REPORTS, WITH_TRACES, summary
from conformance.kit.runner import Result, World, run_checks
from conformance.kit.schedules import schedule, scheduled
from conformance.subjects import SubjectError
from conformance.suites import SUITES, Suite
from conformance.wire.subject import Patience, WireSubject
from hypervisor.sched.policy import Policy
from hypervisor.trace import TraceError
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
    if runs := explanation(one):
        click.echo(f"\n{runs}", nl=False)


_suite_option = click.option("--suite", "name", metavar="SUITE", required=True, help=f"One of {', '.join(SUITES)}.")
_only_option = click.option(
    "--only", metavar="ID", multiple=True, help="Run only this check; may be given several times."
)
_report_option = click.option(
    "--report", "reports", metavar="FORMAT=FILE", multiple=True, help=f"Write the results, too: {', '.join(REPORTS)}."
)
_class_option = click.option(
    "--class", "type", metavar="CLASS",
    help="In the suites of the bus: with which device a guest or a process is judged, vbd (as a rule) or vif.",
)  # fmt: skip
_verbose_option = click.option("--verbose", is_flag=True, help="Show the checks that succeed, too.")


@check.command()
@_suite_option
@_only_option
@_report_option
@_class_option
@_verbose_option
@click.option(
    "--schedules",
    metavar="N",
    type=click.IntRange(min=0),
    help="Run each check under N adversarial schedules, too. [default: those checks that ask for it]",
)
@click.option(
    "--schedule", "text", metavar="POLICY", help="Run under this schedule only: decisions:N=I,..., random:SEED."
)
@click.argument("subject", metavar="SUBJECT")
def run(
    name: str, only: tuple[str, ...], reports: tuple[str, ...], type: str | None, verbose: bool, schedules: int | None,
    text: str | None, subject: str,
) -> None:  # fmt: skip
    """Run the checks of a suite on SUBJECT.

    Exits with 0 if the subject conforms, 1 if it fails a check (a `may` is only told), 2 if it or an option cannot be
    used, 3 if the kit could not judge it.
    """
    suite, checks, files = _what(name, only, reports)
    try:
        world = suite.world(subject, *_class(suite, type))
    except SubjectError as error:
        raise OneSentence(f"{error}; suite {suite.name!r} judges {suite.what}: {suite.subject}") from None
    if text is None:
        _judge(suite, checks, world, subject, files, verbose, schedules)
    else:
        with scheduled(_schedule(text)):
            _judge(suite, checks, world, subject, files, verbose, 0)


def _schedule(text: str) -> Callable[[], Policy]:
    try:
        return schedule(text)
    except ValueError as error:
        raise OneSentence(str(error)) from None
    except (OSError, TraceError) as error:
        raise OneSentence(f"schedule {text!r}: {error}") from None


@check.command()
@_suite_option
@click.option(
    "--socket", "path", metavar="PATH", type=click.Path(path_type=Path), required=True, help="Where to listen."
)
@_only_option
@_report_option
@_class_option
@_verbose_option
@click.option(
    "--silence", metavar="SECONDS", default=5.0, type=click.FloatRange(min=0, min_open=True), show_default=True,
    help="How long the process may think between two messages.",
)  # fmt: skip
@click.option(
    "--limit", metavar="SECONDS", default=60.0, type=click.FloatRange(min=0, min_open=True), show_default=True,
    help="How long a check may take.",
)  # fmt: skip
@click.argument("command", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def serve(
    name: str, path: Path, only: tuple[str, ...], reports: tuple[str, ...], type: str | None, verbose: bool,
    silence: float, limit: float, command: tuple[str, ...],
) -> None:  # fmt: skip
    """Run the checks of a suite on a process in any language, which connects to PATH once for each check.

    \b
        paravirt check serve --suite blkif-backend --socket /tmp/check.sock
        paravirt check serve --suite blkif-backend --socket /tmp/check.sock -- ./my_backend

    With COMMAND it is started for each check, and finds PATH in the environment variable PARAVIRT_SOCKET. What it
    then sends and receives is in docs/conformance-wire.md. Exit codes are those of `check run`.
    """
    suite, checks, files = _what(name, only, reports)
    if suite.wire is None:
        judged = ", ".join(suite.name for suite in SUITES.values() if suite.wire is not None)
        raise OneSentence(f"suite {name!r} judges no processes, for {suite.why_not}; these do: {judged}")
    chosen = _class(suite, type)
    if command and shutil.which(command[0]) is None:
        raise OneSentence(f"there is no command {command[0]!r}")
    try:
        with WireSubject(path, command, Patience(silence=silence, check=limit)) as subject:
            if not command:
                click.echo(f"waiting for a process at {path}", err=True)
            world = suite.wire(subject, *chosen)
            _judge(suite, checks, world, " ".join(command) or str(path), files, verbose)
    except SubjectError as error:
        raise OneSentence(str(error)) from None


def _what(
    name: str, only: Sequence[str], reports: Sequence[str]
) -> tuple[Suite, Sequence[Check], list[tuple[str, Path]]]:
    """Return the suite, the checks and the reports that a person has named."""
    suite = _suite(name)
    files = [_report(text) for text in reports]
    checks = [_check(id) for id in only] or suite.checks
    for one in checks:
        if one.suite != suite.name:
            raise OneSentence(f"{one.id} is no check of suite {suite.name!r}")
    return suite, checks, files


def _judge(
    suite: Suite, checks: Sequence[Check], world: World, subject: str, files: Sequence[tuple[str, Path]], verbose: bool,
    schedules: int | None = None,
) -> None:  # fmt: skip
    """Run checks, show and write what came of them, and exit with the code for that."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    results = []
    with TemporaryDirectory() as name:
        traces = Path(name) if any(form in WITH_TRACES for form, _ in files) else None
        for result in run_checks(checks, world, traces, schedules):
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


def _class(suite: Suite, type: str | None) -> tuple[str, ...]:
    """Return the class of devices that a person has named, as the suite takes it."""
    if type is None:
        return ()
    if not suite.classes:
        raise OneSentence(f"suite {suite.name!r} is about one class of devices: --class is for the suites of the bus")
    if type not in suite.classes:
        raise OneSentence(
            f"there is no class {type!r} of devices here{did_you_mean(type, suite.classes)}; "
            f"there are {', '.join(suite.classes)}"
        )
    return (type,)


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
