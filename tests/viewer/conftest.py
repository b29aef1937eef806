"""Traces of hosts with the state in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolstack.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two guests that have a disk and a network."""
    directory = tmp_path_factory.mktemp("guests")
    shutil.copytree(ROOT / "examples" / "first-host", directory, dirs_exist_ok=True)
    with (directory / "guest1.img").open("wb") as image:
        image.truncate(1 << 20)
    return directory


@pytest.fixture(scope="session")
def state_trace(guests: Path) -> Path:
    """A trace that shows the host's state."""
    return record(guests, "state.trace", "--trace-state")


def record(guests: Path, name: str, *options: str) -> Path:
    """Run the two guests and return their trace."""
    file = guests / name
    configs = [str(guests / "guest1.cfg"), str(guests / "guest2.cfg")]
    done = CliRunner().invoke(main, ["run", "--quiet", "--trace", str(file), *options, *configs])
    assert done.exit_code == 0, done.output
    return file
