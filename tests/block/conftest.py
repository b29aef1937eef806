"""What the tests of the block drivers share."""

from collections.abc import Callable

import pytest
from block_pair import Pair


@pytest.fixture
def make_pair() -> Callable[..., Pair]:
    return Pair
