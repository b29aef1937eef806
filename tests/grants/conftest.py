"""Fixtures for the grant tests: every test ends with a recount."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from grant_world import World


@pytest.fixture
def world() -> Iterator[World]:
    """A host whose account of grants is checked at the end."""
    host = World()
    yield host
    host.check()


@pytest.fixture
def make_world() -> Callable[[], World]:
    return World


@pytest.fixture
def pair(world: World) -> SimpleNamespace:
    """Domain 0 and an ordinary domain 1; nothing may be left mapped between them at the end."""
    return SimpleNamespace(dom0=world.guest(), domu=world.guest(), world=world, hv=world.hv)
