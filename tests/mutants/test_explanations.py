"""What `explain` shows of the runs of a check is what they are."""

from __future__ import annotations

import os

import pytest

from conformance.kit.check import CHECKS
from conformance.kit.pages import DIRECTORY
from conformance.suites import SUITES
from tests.boot import mini_kernel
from tests.mutants.explain import GOOD, pages
from tests.mutants.families import FAMILIES
from tests.mutants.kernels import require_compiler

STEP = 1 if os.environ.get("CI") else 6
"""Of how many checks one is looked at: all of them take a minute."""


@pytest.mark.breaks_host("some subjects are broken")
@pytest.mark.parametrize("suite", GOOD)
def test_the_pages_are_true(suite: str) -> None:
    if suite == "guest-abi":
        require_compiler()
    for id, text in pages(suite, STEP):
        assert (DIRECTORY / f"{id}.txt").read_text("utf-8") == text, "run `python -m tests.mutants.explain`"


@pytest.mark.breaks_host("some kernels are broken")
@pytest.mark.parametrize("option", ["-O0", "-O3", "-Os"])
def test_the_pages_of_kernels_do_not_depend_on_the_compiler(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.setattr(mini_kernel, "FLAGS", (*mini_kernel.FLAGS, option, "-fno-tree-loop-distribute-patterns"))
    for id, text in pages("guest-abi", STEP):
        assert (DIRECTORY / f"{id}.txt").read_text("utf-8") == text


def test_every_suite_has_a_good_subject() -> None:
    assert set(GOOD) == set(SUITES)


def test_every_check_has_a_page_and_every_page_a_check() -> None:
    assert {path.stem for path in DIRECTORY.iterdir()} == set(CHECKS)


def test_every_page_has_a_bad_run_for_a_faulty_subject_is_meant_for_every_check() -> None:
    caught = {mutant[1] for family in FAMILIES.values() for mutant in family.mutants.values()}
    assert sorted(set(CHECKS) - caught) == [], "each check needs a faulty subject that it fails, in tests/mutants"
    shown = {path.stem for path in DIRECTORY.iterdir() if "\nA bad run (" in path.read_text("utf-8")}
    assert shown == set(CHECKS)
