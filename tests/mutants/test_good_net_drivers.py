"""No check fails our network drivers."""

from __future__ import annotations

import pytest

from backends.net import NetBack
from conformance.kit.check import Check, Outcome
from conformance.kit.runner import run_check
from conformance.net.world import scene as back_scene
from conformance.net_front.world import scene as front_scene
from conformance.suites import SUITES
from frontends.net import NetFront


@pytest.mark.parametrize("check", SUITES["netif-backend"].checks, ids=lambda check: check.id)
def test_our_net_backend_is_good(check: Check) -> None:
    result = run_check(check, lambda: back_scene(NetBack))
    assert (result.outcome, result.message) == (Outcome.success, "")


@pytest.mark.parametrize("check", SUITES["netif-frontend"].checks, ids=lambda check: check.id)
def test_our_net_frontend_is_good(check: Check) -> None:
    result = run_check(check, lambda: front_scene(NetFront))
    assert (result.outcome, result.message) == (Outcome.success, "")
