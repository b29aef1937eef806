"""Random hypercalls of hostile guests; `python tests/fuzz/hypercalls.py` makes millions of them."""

from __future__ import annotations

import pytest
from fuzz_round import Round, fuzz

CALLS = 2500
pytestmark = pytest.mark.leaves_live_host("a hostile dom0 may shut the host down at any time")


@pytest.mark.parametrize("seed", ["a", "b", "c", "d", "e", "f", "g", "h"])
def test_random_hypercalls(seed: str) -> None:
    """Nothing escapes, all accounts hold, the bystander notices nothing, and nothing is left behind."""
    calls, results = fuzz(CALLS, seed)
    assert calls >= CALLS
    accepted = sum(count for (_, error), count in results.items() if not error)
    assert accepted > calls // 5, "most calls are refused: the guests have nothing to say"


def test_a_seed_says_the_same_every_time() -> None:
    rounds = [Round("again"), Round("again")]
    for one in rounds:
        one.run(300)
    assert rounds[0].recent == rounds[1].recent
    assert rounds[0].results == rounds[1].results
