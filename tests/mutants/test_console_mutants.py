"""Every faulty console is caught by the check meant for it, and the guest kernel's by none."""

from __future__ import annotations

import pytest

from conformance.console.world import OurConsole, scene
from conformance.kit.check import CHECKS, Outcome
from conformance.kit.runner import run_check
from conformance.suites import SUITES
from tests.mutants.consoles import MUTANTS


@pytest.mark.parametrize("name", MUTANTS)
def test_a_faulty_console_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, meant_for_it, patch = MUTANTS[name]

    def faulty(kernel: object, page: object, port: int) -> object:
        # The guest's own console is a good one: what it says would be lost.
        patch(monkeypatch)
        return OurConsole(kernel, page, port)  # type: ignore[arg-type]

    result = run_check(CHECKS[meant_for_it], lambda: scene(faulty))
    assert result.outcome is Outcome.failure, f"{fault}: {result}"


def test_ours_is_good() -> None:
    results = [run_check(check, lambda: scene(OurConsole)) for check in SUITES["console"].checks]
    assert [result for result in results if result.outcome is not Outcome.success] == []
