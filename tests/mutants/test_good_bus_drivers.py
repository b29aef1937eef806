"""No check fails a driver that behaves well on the bus."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backends.block import BlockBack
from backends.net import NetBack
from conformance.kit.check import Check, Outcome
from conformance.kit.runner import run_check
from conformance.suites import SUITES
from conformance.xenbus.world import scene
from frontends.block import BlockFront
from frontends.net import NetFront
from guest_kernel.xenbus.driver import XenbusDriver
from tests.mutants.toys import ToyBack, ToyFront


@pytest.mark.parametrize("driver", [ToyFront, BlockFront, NetFront, ToyBack, BlockBack, NetBack])
def test_ours_are_good(driver: type[XenbusDriver]) -> None:
    side = driver.side
    results = [run_check(check, lambda: scene(driver, side)) for check in SUITES[f"xenbus-{side}"].checks]
    assert [result for result in results if result.outcome is not Outcome.success] == []


def _examples() -> list[tuple[Check, str]]:
    names = {"frontend": "dice_front:DiceFront", "backend": "dice_back:DiceBack"}
    return [(check, name) for side, name in names.items() for check in SUITES[f"xenbus-{side}"].checks[::4]]


@pytest.mark.parametrize(("check", "name"), _examples(), ids=lambda value: getattr(value, "id", value))
def test_the_example_is_good(check: Check, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that the kit has never heard of, named as a person names it."""
    monkeypatch.chdir(Path(__file__).parents[2] / "examples" / "split-driver")
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path])
    result = run_check(check, SUITES[check.suite].world(name))
    assert (result.outcome, result.message) == (Outcome.success, "")
