"""The example of a block backend in Python passes, and each mistake of its page is found by the check that it names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conformance.kit.check import CHECKS, Outcome
from conformance.kit.runner import run_check
from conformance.suites import SUITES

HERE = Path(__file__).parents[2] / "examples" / "conformance" / "python_backend"
SUITE = SUITES["blkif-backend"]
MISTAKES = {
    "BLKIF-BACKEND-013": ("            place += len(part)\n", "            place += len(part) + SECTOR\n"),
    "BLKIF-BACKEND-023": ("segment.last_sect < 8", "segment.last_sect <= 8"),
    "BLKIF-BACKEND-025": ("return blkif.BLKIF_RSP_EOPNOTSUPP", "return blkif.BLKIF_RSP_OKAY"),
    "BLKIF-BACKEND-031": (
        "if ring.push_responses_and_check_notify():",
        "if not ring.push_responses_and_check_notify():",
    ),
}
"""By the check that is to find it: what is right, and what is wrong."""


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example, where the kit looks for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "tiny_disk", raising=False)
    copy = tmp_path / "tiny_disk.py"
    copy.write_text((HERE / "tiny_disk.py").read_text())
    return copy


def test_it_passes(subject: Path) -> None:
    world = SUITE.world("tiny_disk:TinyDisk")
    results = [run_check(check, world) for check in SUITE.checks]
    assert [result for result in results if result.outcome not in (Outcome.success, Outcome.skip)] == []
    assert all(result.message.startswith("It does not offer") for result in results if result.message)


@pytest.mark.breaks_host("the backend is broken")
@pytest.mark.parametrize("id", MISTAKES)
def test_a_mistake_is_found(subject: Path, id: str) -> None:
    right, wrong = MISTAKES[id]
    text = subject.read_text()
    assert text.count(right) == 1
    subject.write_text(text.replace(right, wrong))
    result = run_check(CHECKS[id], SUITE.world("tiny_disk:TinyDisk"))
    assert result.outcome is Outcome.failure, result
