"""Every faulty network driver is caught by the check meant for it, and ours by none."""

from __future__ import annotations

import re

import pytest

from backends.net import NetBack
from conformance.kit.check import CHECKS, Check, Outcome
from conformance.kit.runner import Result, run_check
from conformance.net.world import scene as back_scene
from conformance.net_front.world import scene as front_scene
from conformance.suites import SUITES
from frontends.net import NetFront
from tests.mutants import net_backends, net_frontends

MISTAKES = re.compile("AttributeError|NameError|TypeError|KeyError")
"""What a mutant says that does not fit the driver any more: that is not its fault."""


def assert_caught(result: Result, fault: str) -> None:
    assert result.outcome is Outcome.failure, f"{fault}: {result}"
    assert not MISTAKES.search(result.message), result.message


def test_there_are_enough() -> None:
    assert len(net_backends.MUTANTS) >= 60
    assert len(net_frontends.MUTANTS) >= 40


@pytest.mark.breaks_host("its backend is broken")
@pytest.mark.parametrize("name", net_backends.MUTANTS)
def test_a_faulty_net_backend_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, meant_for_it, patch = net_backends.MUTANTS[name]
    patch(monkeypatch)
    assert_caught(run_check(CHECKS[meant_for_it], lambda: back_scene(NetBack)), fault)


@pytest.mark.parametrize("check", SUITES["netif-backend"].checks, ids=lambda check: check.id)
def test_our_net_backend_is_good(check: Check) -> None:
    result = run_check(check, lambda: back_scene(NetBack))
    assert (result.outcome, result.message) == (Outcome.success, "")


@pytest.mark.breaks_host("its frontend is broken")
@pytest.mark.parametrize("name", net_frontends.MUTANTS)
def test_a_faulty_net_frontend_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, meant_for_it, patch = net_frontends.MUTANTS[name]
    patch(monkeypatch)
    assert_caught(run_check(CHECKS[meant_for_it], lambda: front_scene(NetFront)), fault)


@pytest.mark.parametrize("check", SUITES["netif-frontend"].checks, ids=lambda check: check.id)
def test_our_net_frontend_is_good(check: Check) -> None:
    result = run_check(check, lambda: front_scene(NetFront))
    assert (result.outcome, result.message) == (Outcome.success, "")
