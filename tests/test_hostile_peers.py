"""Each advisory about backends and frontends has a test, and docs/hostile-peers.md says which."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "hostile-peers.md"
ROW = re.compile(r"^\| ([0-9, ]+) \| (.+?) \| (.+) \|$", re.MULTILINE)
NAME = re.compile(r"`([a-z_/0-9]+\.py)::(\w+)(?:::(\w+))?`")

BACKENDS = (39, 155, 216, 229, 331, 332, 349, 350, 361, 362, 365, 367, 371, 392, 423, 424, 432, 448)
FRONTENDS = (391, 396, 403, 405, 441, 465, 376, 363, 313, 77, 492, 499, 206, 272, 326)
VCHAN = (86,)

rows = ROW.findall(PAGE.read_text())
named = sorted({match for _, _, tests in rows for match in NAME.findall(tests)})


def test_every_advisory_is_there() -> None:
    listed = [int(number) for numbers, _, _ in rows for number in numbers.split(",")]
    assert sorted(listed) == sorted(BACKENDS + FRONTENDS + VCHAN)


def test_every_row_names_tests_and_nothing_else() -> None:
    for numbers, _, tests in rows:
        assert NAME.findall(tests), f"XSA-{numbers} has no test"
        assert not NAME.sub("", tests).strip(), f"XSA-{numbers}: what is {tests!r}?"


@cache
def defined(file: str) -> frozenset[tuple[str, str]]:
    """The test functions of a file, and those of its classes."""
    found = set()
    for node in ast.parse((TESTS / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add((node.name, ""))
        elif isinstance(node, ast.ClassDef):
            found |= {(node.name, child.name) for child in node.body if isinstance(child, ast.FunctionDef)}
    return frozenset(found)


@pytest.mark.parametrize(("file", "name", "method"), named)
def test_each_of_the_tests_exists(file: str, name: str, method: str) -> None:
    assert name.startswith("test_") or method.startswith("test_")
    assert (name, method) in defined(file)
