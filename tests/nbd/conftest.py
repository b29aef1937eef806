"""The scene that the tests of exported disks play in."""

from pathlib import Path

import pytest
from nbd_scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)
