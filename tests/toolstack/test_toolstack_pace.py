"""How often the host looks up from its guests."""

from hypothesis import given
from hypothesis import strategies as st

from toolstack.pace import MAX_STEPS, PATIENCE_NS, Pace


@given(st.integers(1, 10**9))
def test_the_pace_settles_within_the_patience(stretch: int) -> None:
    """Whatever a stretch takes: soon nobody outside waits longer than the patience, or than one stretch."""
    pace = Pace()
    for _ in range(20):
        pace.took(pace.steps * stretch)
        assert 1 <= pace.steps <= MAX_STEPS
    assert pace.steps == 1 or pace.steps * stretch <= PATIENCE_NS
    # Nor does it look up all the time without need.
    assert pace.steps == MAX_STEPS or pace.steps * stretch >= PATIENCE_NS // 8 - stretch


def test_a_slow_time_passes() -> None:
    pace = Pace()
    for _ in range(20):
        pace.took(10**9)
    assert pace.steps == 1
    for _ in range(20):
        pace.took(1000 * pace.steps)
    assert pace.steps == MAX_STEPS


def test_it_measures_by_the_wall_clock() -> None:
    pace = Pace(4)
    assert pace.start() == 4
    pace.stop()
    assert pace.steps == 8
