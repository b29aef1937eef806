"""Every faulty subject is caught by the check meant for it, and no good one by any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.block import BlockBack
from conformance.block.world import scene
from conformance.block_front.world import scene as front_scene
from conformance.kit.check import CHECKS, Check, Outcome
from conformance.kit.runner import run_check
from conformance.ring.world import OurRings, rings
from conformance.suites import SUITES
from conformance.xenstore.world import open_subject
from frontends.block import BlockFront
from tests.mutants import block_backends as block_mutants
from tests.mutants import block_frontends as front_mutants
from tests.mutants import rings as ring_mutants
from tests.mutants import stores as store_mutants
from tests.xenstored.store_process import ThreadedStore


def test_there_are_enough() -> None:
    tables = (ring_mutants.MUTANTS, store_mutants.MUTANTS, block_mutants.MUTANTS, front_mutants.MUTANTS)
    assert sum(map(len, tables)) >= 90


@pytest.mark.parametrize("name", ring_mutants.MUTANTS)
def test_a_faulty_ring_is_caught(name: str) -> None:
    fault, meant_for_it, subject = ring_mutants.MUTANTS[name]
    result = run_check(CHECKS[meant_for_it], lambda: rings(subject))
    assert result.outcome is Outcome.failure, f"{fault}: {result}"
    assert result.message


def test_our_rings_are_good() -> None:
    results = [run_check(check, lambda: rings(OurRings)) for check in SUITES["ring"].checks]
    assert [result for result in results if result.outcome is not Outcome.success] == []


@pytest.mark.parametrize("name", store_mutants.MUTANTS)
def test_a_faulty_store_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, meant_for_it, patch = store_mutants.MUTANTS[name]
    store = ThreadedStore(tmp_path / "socket")
    try:
        patch(monkeypatch)
        result = run_check(CHECKS[meant_for_it], open_subject(f"unix:{store.path}"))
    finally:
        # What a faulty store has made of itself is not looked at.
        monkeypatch.undo()
        store._stop = True
        store._thread.join()
        store.sockets.close()
    assert result.outcome is Outcome.failure, f"{fault}: {result}"


def test_our_store_is_good(tmp_path: Path) -> None:
    store = ThreadedStore(tmp_path / "socket")
    try:
        world: Any = open_subject(f"unix:{store.path}")
        results = [run_check(check, world) for check in SUITES["xenstore"].checks]
    finally:
        store.stop()
    assert [result for result in results if result.outcome is not Outcome.success] == []


@pytest.mark.breaks_host("its backend is broken")
@pytest.mark.parametrize("name", block_mutants.MUTANTS)
def test_a_faulty_block_backend_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, meant_for_it, patch = block_mutants.MUTANTS[name]
    patch(monkeypatch)
    result = run_check(CHECKS[meant_for_it], lambda: scene(BlockBack))
    assert result.outcome is Outcome.failure, f"{fault}: {result}"


@pytest.mark.parametrize("check", SUITES["blkif-backend"].checks, ids=lambda check: check.id)
def test_our_block_backend_is_good(check: Check) -> None:
    result = run_check(check, lambda: scene(BlockBack))
    assert (result.outcome, result.message) == (Outcome.success, "")


@pytest.mark.breaks_host("its frontend is broken")
@pytest.mark.parametrize("name", front_mutants.MUTANTS)
def test_a_faulty_block_frontend_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, meant_for_it, patch = front_mutants.MUTANTS[name]
    patch(monkeypatch)
    result = run_check(CHECKS[meant_for_it], lambda: front_scene(BlockFront))
    assert result.outcome is Outcome.failure, f"{fault}: {result}"


@pytest.mark.parametrize("check", SUITES["blkif-frontend"].checks, ids=lambda check: check.id)
def test_our_block_frontend_is_good(check: Check) -> None:
    result = run_check(check, lambda: front_scene(BlockFront))
    assert (result.outcome, result.message) == (Outcome.success, "")
