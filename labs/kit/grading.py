"""Grades a submission: its checks, run in processes of their own, and the points that come of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import attrs

from labs.course import Lab
from labs.kit.check import Check


@attrs.frozen
class Mark:
    """What came of one check."""

    check: Check
    earned: bool
    reason: str
    """Why there are no points, for the student; empty if there are."""
    output: str
    """The beginning of what the submission printed."""

    @property
    def points(self) -> int:
        """The points that it brings."""
        return self.check.points if self.earned else 0


@attrs.frozen
class Score:
    """What came of a submission."""

    lab: Lab
    marks: list[Mark]

    @property
    def points(self) -> int:
        """The sum of the points."""
        return sum(mark.points for mark in self.marks)

    @property
    def out_of(self) -> int:
        """The points that could be had."""
        return sum(mark.check.points for mark in self.marks)

    @property
    def is_full(self) -> bool:
        """Whether nothing is missing."""
        return self.points == self.out_of


def missing_files(lab: Lab, directory: Path) -> list[str]:
    """Return the names of the lab's files that are not in a directory."""
    return [path.name for path in lab.files if not (directory / path.name).is_file()]


def grade(
    lab: Lab,
    directory: Path,
    seed: int,
    on_mark: Callable[[Mark], None] = lambda mark: None,
    *,
    patience: float = 1.0,
) -> Score:
    """Grade the submission in a directory; `on_mark` hears of each check when it is over.

    `patience` is how many times its limit each check may take. The checks work on a copy: what a submission writes into
    its directory is gone afterwards.
    """
    checks = lab.checks().all
    marks: list[Mark] = []
    with tempfile.TemporaryDirectory(prefix="paravirt-lab-") as name:
        copy = Path(name).resolve()
        for path in directory.iterdir():
            if path.is_file() and path.suffix == ".py":
                shutil.copyfile(path, copy / path.name)
        command = [sys.executable, "-P", "-m", "labs.kit.worker", lab.name, str(copy), str(seed), str(patience)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for check, line in zip(checks, worker.stdout, strict=False):
                reply = json.loads(line)
                mark = Mark(check, reply["earned"], reply["reason"], reply["output"])
                marks.append(mark)
                on_mark(mark)
    for check in checks[len(marks) :]:
        mark = Mark(check, False, "the grader's own process was killed before this check", "")
        marks.append(mark)
        on_mark(mark)
    return Score(lab, marks)
