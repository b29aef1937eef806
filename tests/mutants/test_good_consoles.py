"""No check fails the guest kernel's console."""

from __future__ import annotations

from conformance.console.world import OurConsole, scene
from conformance.kit.check import Outcome
from conformance.kit.runner import run_check
from conformance.suites import SUITES


def test_ours_is_good() -> None:
    results = [run_check(check, lambda: scene(OurConsole)) for check in SUITES["console"].checks]
    assert [result for result in results if result.outcome is not Outcome.success] == []
