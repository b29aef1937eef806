"""Fixtures for the memory management tests: every test ends with a recount and a leak check."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mm_world import Guest, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.check()
    world.close()


@pytest.fixture
def guest(world: World) -> Guest:
    return world.guest()
