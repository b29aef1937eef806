"""No check fails our rings, store and block drivers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.block import BlockBack
from conformance.block.world import scene
from conformance.block_front.world import scene as front_scene
from conformance.kit.check import Check, Outcome
from conformance.kit.runner import run_check
from conformance.ring.world import OurRings, rings
from conformance.suites import SUITES
from conformance.xenstore.world import open_subject
from frontends.block import BlockFront
from tests.xenstored.store_process import ThreadedStore


def test_our_rings_are_good() -> None:
    results = [run_check(check, lambda: rings(OurRings)) for check in SUITES["ring"].checks]
    assert [result for result in results if result.outcome is not Outcome.success] == []


def test_our_store_is_good(tmp_path: Path) -> None:
    store = ThreadedStore(tmp_path / "socket")
    try:
        world: Any = open_subject(f"unix:{store.path}")
        results = [run_check(check, world) for check in SUITES["xenstore"].checks]
    finally:
        store.stop()
    assert [result for result in results if result.outcome is not Outcome.success] == []


@pytest.mark.parametrize("check", SUITES["blkif-backend"].checks, ids=lambda check: check.id)
def test_our_block_backend_is_good(check: Check) -> None:
    result = run_check(check, lambda: scene(BlockBack))
    assert (result.outcome, result.message) == (Outcome.success, "")


@pytest.mark.parametrize("check", SUITES["blkif-frontend"].checks, ids=lambda check: check.id)
def test_our_block_frontend_is_good(check: Check) -> None:
    result = run_check(check, lambda: front_scene(BlockFront))
    assert (result.outcome, result.message) == (Outcome.success, "")
