"""No check fails a kernel that is right, in C or in Python."""

from __future__ import annotations

from pathlib import Path

from conformance.kit.check import Level, Outcome
from conformance.kit.runner import run_check
from conformance.suites import SUITES
from tests.boot import mini_kernel
from tests.mutants.kernels import build, require_compiler

SUITE = SUITES["guest-abi"]


GOOD = (Outcome.success, Outcome.skip)


def test_a_kernel_that_is_right(tmp_path: Path) -> None:
    require_compiler()
    world = SUITE.world(f"elf:{build(tmp_path)}")
    results = {check.id: run_check(check, world) for check in SUITE.checks}
    assert [result for result in results.values() if result.outcome not in GOOD] == []
    skipped = [id for id, result in results.items() if result.outcome is Outcome.skip]
    assert skipped == ["GUEST-ABI-044"]


def test_ours_is_right(tmp_path: Path) -> None:
    (tmp_path / "still.py").write_text(
        "from guest_kernel.guest import Guest\n"
        "class Still(Guest):\n"
        "    async def main(self):\n"
        "        self.print('here')\n"
        "        await self.kernel.never()\n"
    )
    (tmp_path / "still.cfg").write_text('name = "still"\nmemory = 16\nkernel = "still.py"\n')
    world = SUITE.world(f"cfg:{tmp_path / 'still.cfg'}")
    results = [run_check(check, world) for check in SUITE.checks]
    assert [result for result in results if result.condemns or result.outcome is Outcome.error] == []


def test_a_kernel_that_ends_by_itself_is_not_condemned(tmp_path: Path) -> None:
    require_compiler()
    world = SUITE.world(f"elf:{mini_kernel.build(tmp_path)}")
    results = [run_check(check, world) for check in SUITE.checks]
    assert [result for result in results if result.outcome not in GOOD] == []
    assert any(result.check.level is Level.must and result.outcome is Outcome.success for result in results)
