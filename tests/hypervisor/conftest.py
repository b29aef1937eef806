"""Fixtures for the tests of the hypervisor's core."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from core_world import World


@pytest.fixture
def world() -> Iterator[World]:
    """A host that is recounted at the end."""
    world = World()
    yield world
    world.check()


@pytest.fixture
def pair(world: World) -> SimpleNamespace:
    """Domain 0, and a domain 1 with two vCPUs."""
    return SimpleNamespace(dom0=world.guest(), domu=world.guest(vcpus=2), world=world, hv=world.hv)
