"""How often the host looks up from its guests."""

from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from toolstack import pace
from toolstack.cli import main
from toolstack.pace import MAX_STEPS, PATIENCE_NS, Others, Pace


@given(st.integers(1, 10**9))
def test_the_pace_settles_within_the_patience(stretch: int) -> None:
    """Whatever a stretch takes: soon nobody outside waits longer than the patience, or than one stretch."""
    tempo = Pace()
    for _ in range(20):
        tempo.took(tempo.steps * stretch)
        assert 1 <= tempo.steps <= MAX_STEPS
    assert tempo.steps == 1 or tempo.steps * stretch <= PATIENCE_NS
    # Nor does it look up all the time without need.
    assert tempo.steps == MAX_STEPS or tempo.steps * stretch >= PATIENCE_NS // 8 - stretch


def test_a_slow_time_passes() -> None:
    tempo = Pace()
    for _ in range(20):
        tempo.took(10**9)
    assert tempo.steps == 1
    for _ in range(20):
        tempo.took(1000 * tempo.steps)
    assert tempo.steps == MAX_STEPS


def test_it_measures_by_the_wall_clock() -> None:
    tempo = Pace(4)
    assert tempo.start() == 4
    tempo.stop()
    assert tempo.steps == 8


BUSY = """
from guest_kernel.guest import Guest


class Busy(Guest):
    async def main(self):
        for n in range(8):
            await self.cpu(ns=7_000_000)
            self.print(n)
            await self.sleep(0.001)
"""


@pytest.mark.parametrize("options", [(), ("--pcpus", "2"), ("--schedule", "random:3"), ("--scheduler", "credit")])
def test_when_the_host_looks_up_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """The pace follows the wall clock, so the trace must not depend on it: guests that compete, in any steps."""
    (tmp_path / "busy.py").write_text(BUSY)
    configs = []
    for name in ("one", "two", "three"):
        config = tmp_path / f"{name}.cfg"
        config.write_text(f'name = "{name}"\nkernel = "busy.py"\nmemory = 4\n')
        configs.append(str(config))
    traces = []
    for steps in (1, 2, 7, 500):
        monkeypatch.setattr(pace, "MAX_STEPS", steps)
        path = tmp_path / f"{steps}.trace"
        done = CliRunner().invoke(main, ["run", "--quiet", "--trace", str(path), *options, *configs])
        assert done.exit_code == 0, done.output
        traces.append(path.read_bytes())
    assert [trace == traces[0] for trace in traces] == [True] * 4


def test_others_run_whenever_there_are_some() -> None:
    async def other(turns: list[int]) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            turns.append(len(turns))

    async def run() -> list[int]:
        others, turns = Others(), list[int]()
        await others.let_run()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other, turns)
            await trio.sleep(2 * pace.ALONE_NS / 1e9)
            before = len(turns)
            for _ in range(100):
                await others.let_run()
            nursery.cancel_scope.cancel()
        return turns[before:]

    assert len(trio.run(run)) in (99, 100, 101)


def test_who_is_alone_goes_on_but_can_be_stopped() -> None:
    async def run() -> tuple[int, int]:
        others, rounds = Others(), 0
        loops = []
        trio.lowlevel.add_instrument(Counting(loops))
        with trio.move_on_after(5 * pace.ALONE_NS / 1e9):
            while True:
                await others.let_run()
                rounds += 1
        return rounds, len(loops)

    rounds, loops = trio.run(run)
    assert 0 < loops < 10 < 1000 < rounds


class Counting(trio.abc.Instrument):
    """Counts the turns of an event loop."""

    def __init__(self, turns: list[None]) -> None:
        self._turns = turns

    def before_io_wait(self, timeout: float) -> None:
        self._turns.append(None)
