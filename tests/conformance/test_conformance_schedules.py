"""Adversarial schedules: made up, noted, repeated, and made as short as they can be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from backends.block import BlockBack
from conformance.block.world import scene as block_scene
from conformance.kit.check import CHECKS, Check, Level, Outcome, expect
from conformance.kit.runner import run_check
from conformance.kit.schedules import SHRINKS, Adversary, options, schedule, scheduled, shrink
from conformance.xenbus.world import scene
from hypervisor.sched.policy import Decisions, Policy, parse_policy
from tests.mutants.block_backends import MUTANTS
from tests.mutants.toys import ToyBack
from tests.mutants.xenbus_faults import distracted
from toolstack.cli import main

HELD = [SimpleNamespace(domain=SimpleNamespace(domid=domid)) for domid in (0, 1, 2)]


def line(length: int) -> Any:
    return HELD[:length]


@given(st.integers(0, 50), st.lists(st.integers(1, 3), max_size=60))
def test_what_an_adversary_did_can_be_repeated(seed: int, lines: list[int]) -> None:
    adversary = Adversary(seed, 20)
    did = [adversary.choose(line(length)) for length in lines]
    assert all(0 <= index < length for index, length in zip(did, lines, strict=True))
    repeated = parse_policy(str(adversary))
    assert [repeated.choose(line(length)) for length in lines] == did
    again = Adversary(seed, 20)
    assert [again.choose(line(length)) for length in lines] == did


@given(st.sets(st.integers(0, 60), min_size=1, max_size=3), st.sets(st.integers(0, 60)))
def test_the_shortest_is_what_matters(needed: set[int], more: set[int]) -> None:
    found, runs = shrink(dict.fromkeys(needed | more, 1), lambda policy: needed <= set(policy.taken))
    assert runs <= SHRINKS
    assert needed <= set(found.taken)
    if runs < SHRINKS:
        assert set(found.taken) == needed


@pytest.mark.parametrize("text", ["decisions:x", "decisions:1", "decisions:1=", "decisions:1=-1", "decisions:1=1,"])
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(ValueError, match="is no decision"):
        parse_policy(text)


def test_no_decisions_are_a_schedule() -> None:
    policy = parse_policy("decisions:")
    assert isinstance(policy, Decisions)
    assert policy.choose(line(3)) == 0


@pytest.mark.breaks_host("its backend is broken")
def test_a_wake_up_that_is_lost_is_found_only_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a rule nothing is wrong; a few decisions of the scheduler's show it, and show it again."""
    check = CHECKS["XENBUS-BACKEND-050"]
    distracted(monkeypatch)
    assert run_check(check, lambda: scene(ToyBack, "backend"), schedules=0).outcome is Outcome.success
    result = run_check(check, lambda: scene(ToyBack, "backend"))
    assert result.outcome is Outcome.failure
    assert result.schedule in result.message
    assert len(result.schedule.split(",")) < 30
    with scheduled(schedule(result.schedule)):
        again = run_check(check, lambda: scene(ToyBack, "backend"), schedules=0)
    assert again.outcome is Outcome.failure
    assert result.message.startswith(again.message)


@pytest.mark.breaks_host("its backend is broken")
def test_a_dozing_backend_serves_as_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS["dozes"][2](monkeypatch)
    check = CHECKS["BLKIF-BACKEND-060"]
    assert run_check(check, lambda: block_scene(BlockBack), schedules=0).outcome is Outcome.success
    assert run_check(check, lambda: block_scene(BlockBack)).outcome is Outcome.failure


def paravirt(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["check", "run", "--suite", "xenbus-frontend", *words])
    return done.exit_code, done.output


def test_the_options(tmp_path: Path) -> None:
    words = ("--only", "XENBUS-FRONTEND-020", "--report", f"json={tmp_path / 'r.json'}")
    assert paravirt("--schedules", "3", *words, "frontends.block:BlockFront") == (0, "1 checks: 1 success\n")
    assert json.loads((tmp_path / "r.json").read_text())["results"][0]["outcome"] == "success"
    assert paravirt("--schedule", "random:3", *words, "frontends.block:BlockFront")[0] == 0
    assert paravirt("--schedule", "decisions:3=1,9=2", *words, "frontends.block:BlockFront")[0] == 0
    code, text = paravirt("--schedule", "decisions:3", *words, "frontends.block:BlockFront")
    assert (code, text) == (2, "paravirt: schedule 'decisions:3': '3' is no decision, as 12=1 is\n")
    code, text = paravirt("--schedule", "replay:/nowhere", *words, "frontends.block:BlockFront")
    assert code == 2
    assert "/nowhere" in text


class Toy:
    """A world without a host: its checks ask for the policy that one would have, and make two choices with it."""

    def __init__(self) -> None:
        self.subject = Toy
        self.runs = 0

    @contextmanager
    def world(self) -> Iterator[Toy]:
        self.runs += 1
        yield self

    def play(self) -> Policy | None:
        policy = options().get("policy")
        if policy is not None:
            policy.choose(line(2))
            policy.choose(line(3))
        return policy


def fragile(toy: Toy) -> None:
    """Nobody may be interrupted."""
    policy = toy.play()
    expect(policy is None or not policy.preempts, "It was interrupted.")


def tired(toy: Toy) -> None:
    """It works three times."""
    toy.play()
    expect(toy.runs <= 3, "It is tired.")


def test_a_failure_that_needs_no_decision_is_told_as_such() -> None:
    toy = Toy()
    result = run_check(Check("TOY-001", Level.must, "", fragile, 5), toy.world)
    assert result.outcome is Outcome.failure
    assert result.schedule == "decisions:"
    assert result.message.startswith("It was interrupted. (Under the schedule decisions: alone")
    assert " 0 " not in result.message
    with scheduled(schedule(result.schedule)):
        assert run_check(Check("TOY-001", Level.must, "", fragile), toy.world).outcome is Outcome.failure


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_subject_that_wears_out_is_told_as_such(before: int) -> None:
    """No schedule is named that would not show it again."""
    toy = Toy()
    toy.runs = before
    result = run_check(Check("TOY-002", Level.must, "", tired, 5), toy.world)
    assert result.outcome is Outcome.failure
    assert result.schedule == ""
    assert result.message.startswith("It is tired. (Under one and the same schedule it succeeds and then fails.")
