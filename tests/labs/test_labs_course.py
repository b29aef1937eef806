"""Each lab is whole: its solution earns all points, its skeleton says what is missing, its questions have answers."""

import random
import re
from pathlib import Path

import pytest

from labs.course import LABS, SOLUTIONS, Lab
from labs.kit.grading import grade

LAB = pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)
SEED = 20261128


@LAB
def test_solution_earns_all_points(lab: Lab) -> None:
    score = grade(lab, SOLUTIONS / lab.name, SEED, patience=5)
    assert [(mark.check.name, mark.reason) for mark in score.marks if not mark.earned] == []
    assert score.points == score.out_of == 100


@LAB
def test_skeleton_earns_less_and_says_why(lab: Lab) -> None:
    score = grade(lab, lab.path / "skeleton", SEED, patience=5)
    assert score.points <= 15
    for mark in score.marks:
        if not mark.earned:
            assert re.search(r"\w", mark.reason), mark.check.name
    assert any("not written yet" in mark.reason for mark in score.marks)


@LAB
def test_page_names_every_file_and_its_sources(lab: Lab) -> None:
    page = lab.page
    assert page.startswith(f"# Lab {lab.number}: ")
    for path in lab.files:
        assert f"`{path.name}`" in page, path.name
    assert "## Where it is written" in page
    assert f"paravirt lab grade {lab.number}" in page


@LAB
def test_solution_has_the_files_of_the_skeleton(lab: Lab) -> None:
    assert {path.name for path in lab.files} <= {path.name for path in (SOLUTIONS / lab.name).iterdir()}


@LAB
def test_questions_are_a_students_own_and_a_host_answers_them(lab: Lab) -> None:
    make = lab.questions()
    asked = [[question.text for question in make(random.Random(seed))] for seed in range(6)]
    assert len(asked[0]) >= 3
    assert asked[0] == [question.text for question in make(random.Random(0))]
    assert any(texts != asked[0] for texts in asked)
    for question in make(random.Random(1)):
        first = question.answer()
        assert str(first), question.text
        assert first == question.answer(), question.text
        assert question.why


def test_labs_are_numbered_in_order() -> None:
    assert [lab.number for lab in LABS] == list(range(1, len(LABS) + 1))
    assert len({lab.name for lab in LABS}) == len(LABS)


def test_no_page_leads_nowhere() -> None:
    """What pages call a file of this project is one."""
    root = Path(__file__).parents[2]
    named = re.compile(r"`((?:docs(?!/misc/)|hypervisor|guest_kernel|examples|conformance)/[\w./-]+)`")
    for lab in LABS:
        for name in named.findall(lab.page):
            assert (root / name).exists(), f"lab {lab.number} names {name}"
