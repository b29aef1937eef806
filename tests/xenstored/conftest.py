"""What every test of the store gets, and what is looked at behind each of them."""

from collections.abc import Iterator

import pytest
from store_world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.check()
