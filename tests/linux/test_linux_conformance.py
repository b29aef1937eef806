"""Debian's stock kernel does what a guest's kernel should, by the conformance kit."""

from __future__ import annotations

from pathlib import Path

from conftest import Build

from conformance.kit.check import Outcome
from conformance.kit.runner import run_check
from conformance.suites import SUITES

LIVES = {"GUEST-ABI-021", "GUEST-ABI-023", "GUEST-ABI-032", "GUEST-ABI-042", "GUEST-ABI-043", "GUEST-ABI-044"}
"""Checks that want a life of their own, of half a minute each."""


def test_linux_is_a_good_guest(build: Build, tmp_path: Path) -> None:
    config = build(None).config(tmp_path / "linux.cfg")
    suite = SUITES["guest-abi"]
    world = suite.world(f"cfg:{config}")
    results = [run_check(check, world) for check in suite.checks if check.id not in LIVES]
    assert [result for result in results if result.condemns or result.outcome is Outcome.error] == []
    # It makes its hypercalls itself.
    assert [result.check.id for result in results if result.outcome is Outcome.skip] == ["GUEST-ABI-003"]
