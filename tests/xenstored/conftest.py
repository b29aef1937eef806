"""What every test of the store gets, and what is looked at behind each of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_process import ThreadedStore
from store_world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.check()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ThreadedStore]:
    """A store behind a socket."""
    store = ThreadedStore(tmp_path / "socket")
    yield store
    store.stop()
