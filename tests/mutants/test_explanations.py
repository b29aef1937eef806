"""What `explain` shows of the runs of a check is what they are."""

from __future__ import annotations

import os

import pytest

from conformance.kit.check import CHECKS
from conformance.kit.pages import DIRECTORY
from tests.mutants.explain import GOOD, pages

STEP = 1 if os.environ.get("CI") else 6
"""Of how many checks one is looked at: all of them take a minute."""


@pytest.mark.breaks_host("some subjects are broken")
@pytest.mark.parametrize("suite", GOOD)
def test_the_pages_are_true(suite: str) -> None:
    for id, text in pages(suite, STEP):
        assert (DIRECTORY / f"{id}.txt").read_text("utf-8") == text, "run `python -m tests.mutants.explain`"


def test_every_page_is_of_a_check() -> None:
    assert {path.stem for path in DIRECTORY.iterdir()} <= CHECKS.keys()


def test_every_check_has_a_page() -> None:
    wanted = {check.id for check in CHECKS.values() if check.suite in GOOD}
    assert wanted <= {path.stem for path in DIRECTORY.iterdir()}
