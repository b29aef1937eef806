"""Every faulty subject is caught by the check meant for it, and the page of them all is true."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.kit.check import Outcome
from conformance.suites import SUITES
from tests.mutants.__main__ import CAUGHT, MISSED, page
from tests.mutants.families import FAMILIES

MISTAKES = re.compile("AttributeError|NameError|TypeError|KeyError")
"""What a mutant says that does not fit its subject any more: that is not its fault."""
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def test_there_are_enough() -> None:
    counts = {suite: len(family.mutants) for suite, family in FAMILIES.items()}
    assert sum(counts.values()) >= 280
    assert min(counts.values()) >= 12


@pytest.mark.breaks_host("what runs there is broken")
@pytest.mark.parametrize(("suite", "name"), [(suite, name) for suite in FAMILIES for name in FAMILIES[suite].mutants])
def test_the_check_catches_it(suite: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    family = FAMILIES[suite]
    result = family.judge(name, monkeypatch, tmp_path)
    assert result.outcome is Outcome.failure, f"{family.mutants[name][0]}: {result}"
    assert result.message
    assert not MISTAKES.search(result.message)


def test_the_page_is_up_to_date() -> None:
    found = {suite: dict.fromkeys(family.mutants, CAUGHT) for suite, family in FAMILIES.items()}
    written = (ROOT / "docs" / "conformance-mutants.md").read_text()
    assert written == page(found), "python -m tests.mutants > docs/conformance-mutants.md"


def test_all_mutants_are_in_a_family() -> None:
    tables = [
        module.MUTANTS
        for path in sorted(HERE.glob("*.py"))
        if not path.name.startswith(("test_", "__"))
        and hasattr(module := importlib.import_module(f"tests.mutants.{path.stem}"), "MUTANTS")
    ]
    names = [name for table in tables for name in table]
    assert sorted(names) == sorted(name for family in FAMILIES.values() for name in family.mutants)
    assert set(FAMILIES) <= set(SUITES)


def test_mutants_are_meant_for_checks_of_their_suite() -> None:
    for family in FAMILIES.values():
        ids = {check.id for check in SUITES[family.suite].checks}
        assert {mutant[1] for mutant in family.mutants.values()} <= ids


def test_the_command_judges(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutants", "--suite", "ring"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == page({"ring": dict.fromkeys(FAMILIES["ring"].mutants, CAUGHT)})


def test_one_that_is_missed_is_told() -> None:
    name = next(iter(FAMILIES["ring"].mutants))
    text = page({"ring": {name: f"{MISSED} (success)"}})
    assert "0 of 1 are caught." in text
    assert "| **missed** (success) |" in text
