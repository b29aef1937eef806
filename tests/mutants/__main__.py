"""Judge every faulty subject, and print the page that says which is caught by what (docs/conformance-mutants.md).

usage: python -m tests.mutants [--suite SUITE]... > docs/conformance-mutants.md
Exits with 1 if a fault is not caught.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance.kit.check import CHECKS, Outcome
from tests.mutants.families import FAMILIES, Family

PREFACE = """\
# The faults that the conformance kit catches

Who judges the judge? Each row is a subject with one fault, made of a good one, and the
[check](../conformance/README.md) that is meant for it. It must fail that check; the good ones must fail none.
`python -m tests.mutants` judges them all and prints this page; `pytest tests/mutants` does the same, one by one.
"""
CAUGHT, MISSED = "caught", "**missed**"


def judge(family: Family) -> dict[str, str]:
    """Return what came of each mutant of a family."""
    found = {}
    for number, name in enumerate(family.mutants, 1):
        if sys.stderr.isatty():
            print(f"\r\033[K{family.suite}: {number} of {len(family.mutants)}", end="\r", file=sys.stderr, flush=True)
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
            outcome = family.judge(name, patch, Path(directory)).outcome
        found[name] = CAUGHT if outcome is Outcome.failure else f"{MISSED} ({outcome.value})"
    return found


def page(found: Mapping[str, Mapping[str, str]]) -> str:
    """Return the page; `found` says by suite and mutant what came of it."""
    total = sum(len(rows) for rows in found.values())
    caught = sum(said == CAUGHT for rows in found.values() for said in rows.values())
    lines = [PREFACE, f"{caught} of {total} are caught.", ""]
    for suite, rows in found.items():
        lines += [f"## {suite}: {len(rows)}", "", "| fault | the check that is meant for it | |", "|---|---|---|"]
        for name, said in rows.items():
            fault, meant_for_it, *_ = FAMILIES[suite].mutants[name]
            lines.append(f"| {_cell(fault)} | {meant_for_it}: {_cell(CHECKS[meant_for_it].title)} | {said} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="append", choices=FAMILIES, help="only this one; may be given several times")
    suites = parser.parse_args().suite or list(FAMILIES)
    # Of faulty drivers that are thrown away in the middle of something.
    warnings.simplefilter("ignore", RuntimeWarning)
    found = {suite: judge(FAMILIES[suite]) for suite in suites}
    print(page(found), end="")
    sys.exit(any(said != CAUGHT for rows in found.values() for said in rows.values()))


if __name__ == "__main__":
    main()
