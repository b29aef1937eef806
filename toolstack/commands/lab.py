"""`paravirt lab`: a course on paravirtualization; pages, skeletons, questions, and a grader."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from labs.course import LABS, Lab, find
from labs.kit.grading import Mark, Score, grade, missing_files
from labs.kit.seed import rng_for, seed_of
from toolstack.commands.common import OneSentence
from toolstack.errors import did_you_mean

EXIT_MISSED = 1
MAX_SEED = 1 << 32


@click.group()
def lab() -> None:
    """Learn: a course of labs, each with a page to read, gaps to fill, and a grader.

    \b
        paravirt lab list
        paravirt lab start 1
        paravirt lab grade 1 --student "Ada Lovelace"
        paravirt lab questions 1 --student "Ada Lovelace" --answers
    """


def _whose(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say whose work it is."""
    command = click.option("--seed", type=click.IntRange(0, MAX_SEED - 1), help="The same by its number.")(command)
    return click.option("--student", metavar="NAME", help="Whose it is: each student has numbers of his own.")(command)


@lab.command("list")
def list_labs() -> None:
    """List the labs."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("lab", justify="right")
    table.add_column("name")
    table.add_column("title")
    table.add_column("minutes", justify="right")
    table.add_column("files")
    for one in LABS:
        files = " ".join(path.name for path in one.files)
        table.add_row(str(one.number), one.name, one.title, str(one.minutes), files)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@lab.command()
@click.argument("which", metavar="LAB")
def show(which: str) -> None:
    """Print the page of LAB (its number or its name)."""
    click.echo(_lab(which).page, nl=False)


@lab.command()
@click.argument("which", metavar="LAB")
@click.argument("directory", metavar="[DIR]", required=False)
def start(which: str, directory: str | None) -> None:
    """Copy the page and the skeleton of LAB into DIR (default: a new directory here)."""
    one = _lab(which)
    target = Path(directory or one.directory_name)
    sources = [one.path / "README.md", *one.files]
    for source in sources:
        if (target / source.name).exists():
            raise OneSentence(f"there is a {str(target / source.name)!r} already, which is left as it is")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copyfile(source, target / source.name)
    except OSError as error:
        raise OneSentence(f"cannot write to {str(target)!r}: {error.strerror}") from None
    files = ", ".join(path.name for path in one.files)
    click.echo(f"{target}: README.md to read, {files} to complete; then: paravirt lab grade {one.number} {target}")


@lab.command("grade")
@click.argument("which", metavar="LAB")
@click.argument("directory", metavar="[DIR]", required=False)
@_whose
@click.option(
    "--class", "whole_class", metavar="DIR", help="Grade all of a class: a directory for each student in DIR."
)
@click.option("--csv", "table", metavar="FILE", help="With --class: write the points as a table.")
@click.option("--json", "as_json", is_flag=True, help="Print the result for programs.")
@click.option("--verbose", is_flag=True, help="Show what the submission prints.")
@click.option(
    "--patience",
    type=click.FloatRange(0.01, 1000),
    default=1.0,
    metavar="FACTOR",
    help="Give each check so many times its time (20 s of the wall clock, as a rule).",
)
def grade_lab(
    which: str,
    directory: str | None,
    student: str | None,
    seed: int | None,
    whole_class: str | None,
    table: str | None,
    as_json: bool,
    verbose: bool,
    patience: float,
) -> None:
    """Grade what is in DIR (default: where `start` puts it, or here).

    Exits with 0 if all points have been earned, 1 if some are missing, 2 if an argument is wrong. A class exits with 0.
    """
    one = _lab(which)
    if whole_class is not None:
        if directory is not None or student is not None or seed is not None:
            raise OneSentence("--class takes the students from its directories: no DIR, --student or --seed beside it")
        _grade_class(one, Path(whole_class), table, patience)
        return
    if table is not None:
        raise OneSentence("--csv writes the table of a class: --class DIR is missing")
    number = _seed(student, seed)
    where = _submission(one, directory)
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if not as_json:
        out.print(f"[bold]lab {one.number}: {one.title}[/] (seed {number})")
    on_mark = (lambda mark: None) if as_json else (lambda mark: _show(out, mark, verbose))
    try:
        score = grade(one, where, number, on_mark, patience=patience)
    except OSError as error:
        raise OneSentence(f"cannot read {error.filename!r}: {error.strerror}") from None
    if as_json:
        click.echo(json.dumps(_plain(score, number), indent=1))
    else:
        out.print(f"[bold]score: {score.points}/{score.out_of}[/]")
    sys.exit(0 if score.is_full else EXIT_MISSED)


@lab.command()
@click.argument("which", metavar="LAB")
@_whose
@click.option("--answers", is_flag=True, help="Show the answers, as a host gives them.")
def questions(which: str, student: str | None, seed: int | None, answers: bool) -> None:
    """Ask the questions of LAB."""
    _ask(_lab(which), _seed(student, seed), answers)


@lab.command("answers")
@click.argument("which", metavar="LAB")
@_whose
def show_answers(which: str, student: str | None, seed: int | None) -> None:
    """Show the questions of LAB with their answers."""
    _ask(_lab(which), _seed(student, seed), True)


def _ask(one: Lab, seed: int, answers: bool) -> None:
    click.echo(f"lab {one.number}: {one.title} (seed {seed})")
    for number, question in enumerate(one.questions()(rng_for(seed, one.name, "questions")), 1):
        click.echo(f"\n{number}. {question.text}")
        if answers:
            click.echo(f"   answer: {question.answer()}")
            if question.why:
                click.echo(f"   {question.why}")


def _show(out: Console, mark: Mark, verbose: bool) -> None:
    style = "green" if mark.earned else "red"
    points = f"{mark.points}/{mark.check.points}"
    out.print(f"  [{style}]{points:>7}[/] ", end="")
    out.print(f"{mark.check.name}: {mark.check.title}", markup=False, soft_wrap=True)
    if not mark.earned:
        out.print(f"          {mark.reason}", style="red", markup=False, soft_wrap=True)
    if verbose and mark.output:
        for line in mark.output.splitlines():
            out.print(f"          | {line}", markup=False, soft_wrap=True)


def _plain(score: Score, seed: int) -> dict[str, Any]:
    marks = [
        {
            "check": mark.check.name,
            "title": mark.check.title,
            "points": mark.points,
            "out_of": mark.check.points,
            "reason": mark.reason,
        }
        for mark in score.marks
    ]
    return {"lab": score.lab.number, "seed": seed, "points": score.points, "out_of": score.out_of, "checks": marks}


def _grade_class(one: Lab, root: Path, table: str | None, patience: float) -> None:
    """Grade a directory for each student, whose name it has; print a line for each."""
    if not root.is_dir():
        raise OneSentence(f"there is no directory {str(root)!r}")
    students = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._")
    if not students:
        raise OneSentence(f"{str(root)!r} holds no directories, one for each student")
    names = [check.name for check in one.checks().all]
    rows: list[list[object]] = []
    width = max(len(path.name) for path in students)
    for path in students:
        # As `start` makes it, or the files themselves.
        inner = path / one.directory_name
        where = inner if inner.is_dir() else path
        missing = missing_files(one, where)
        if missing:
            rows.append([path.name, 0, *[0] * len(names), f"no {missing[0]}"])
            click.echo(f"{path.name:{width}}    0  no {missing[0]}")
            continue
        try:
            score = grade(one, where, seed_of(path.name), patience=patience)
        except OSError as error:
            rows.append([path.name, 0, *[0] * len(names), f"cannot be read: {error.strerror}"])
            click.echo(f"{path.name:{width}}    0  cannot be read: {error.strerror}")
            continue
        missed = ", ".join(mark.check.name for mark in score.marks if not mark.earned)
        rows.append([path.name, score.points, *[mark.points for mark in score.marks], missed])
        click.echo(f"{path.name:{width}}  {score.points:3}  {'missed: ' + missed if missed else ''}".rstrip())
    if table is not None:
        try:
            with open(table, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["student", "points", *names, "missed"])
                writer.writerows(rows)
        except OSError as error:
            raise OneSentence(f"cannot write to {table!r}: {error.strerror}") from None


def _submission(one: Lab, text: str | None) -> Path:
    """Return the directory of a submission that has all files."""
    default = Path(one.directory_name)
    where = Path(text) if text is not None else default if default.is_dir() else Path()
    if not where.is_dir():
        raise OneSentence(f"there is no directory {str(where)!r}")
    missing = missing_files(one, where)
    if missing:
        begin = f"`paravirt lab start {one.number}` makes one to begin with"
        raise OneSentence(f"there is no {missing[0]} in {str(where.resolve())!r}; {begin}")
    return where.resolve()


def _seed(student: str | None, seed: int | None) -> int:
    if student is not None and seed is not None:
        raise OneSentence("--student and --seed both say whose work it is")
    return seed_of(student) if student is not None else seed or 0


def _lab(text: str) -> Lab:
    one = find(text)
    if one is None:
        names = [lab.name for lab in LABS]
        raise OneSentence(f"there is no lab {text!r}{did_you_mean(text, names)}; `paravirt lab list` shows all")
    return one
