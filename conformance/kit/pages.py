"""What `explain` shows of a check besides its prose: how a good run and a bad one go, told in lines.

The pages are files below `conformance/explain`, made of a good subject and of a faulty one that the check catches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import attrs

from conformance.kit.check import Check, Outcome
from conformance.kit.runner import Result
from conformance.kit.telling import DONE, telling

DIRECTORY: Final = Path(__file__).parent.parent / "explain"
_PLACE: Final = re.compile(r" \(at [\w.]+:\d+\)")
"""A line of a program, which moves with every line before it."""
_ADDRESS: Final = re.compile(r"\b0xffff[0-9a-f]{12}\b")
"""Where something is in a kernel, which is another place for each compiler."""
LIFE: Final = "(A life "
"""What the line begins with that says that a subject begins to live once more in the same run."""
_WIDTH: Final = 150
_BEFORE, _FIRST, _LAST = 3, 7, 4
"""Lines that are shown before the two runs part, behind that, and before the end."""


@attrs.frozen
class Run:
    """One run of a check."""

    lines: list[str]
    result: Result

    @property
    def end(self) -> str:
        """How it ends, in a line."""
        if self.result.outcome is Outcome.success:
            return "The check succeeds."
        return f"The check fails: {_ADDRESS.sub('0xffff...', _PLACE.sub('', self.result.message))}"


def record(judge: Callable[[], Result]) -> Run:
    """Have a check run, and told what happens."""
    with telling() as recorder:
        result = judge()
    return Run(_shorten(recorder.lines), result)


def _shorten(lines: Sequence[str]) -> list[str]:
    """Return lines of a width that can be read; of the same line again and again one, that says how often."""
    found = []
    for line, same in groupby(lines):
        count = sum(1 for _ in same)
        line = _PLACE.sub("", line)
        cut = line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ..."
        found.append(cut if count == 1 else f"{cut}   ({count} times)")
    return found


def page(good: Run, fault: str = "", bad: Run | None = None) -> str:
    """Return the text of a page: both runs from shortly before they part, or the good one alone."""
    if bad is None:
        return _section("A good run:", good, _begin(good.lines))
    common = 0
    for one, other in zip(good.lines, bad.lines, strict=False):
        if one != other:
            break
        common += 1
    start = max(0, common - _BEFORE)
    return _section("A good run:", good, start) + "\n" + _section(f"A bad run ({fault}):", bad, start)


def _begin(lines: Sequence[str]) -> int:
    """Return where it becomes interesting: behind the last time that an end says that it is connected."""
    connected = [place for place, line in enumerate(lines) if "state=4 (Connected)" in line]
    return max(0, connected[-1] - 1) if connected else 0


def _section(head: str, run: Run, start: int) -> str:
    before: list[str] = []
    rest = run.lines
    if start > 1:
        before, rest = _before(rest[:start], ", the same in both" if "bad" in head else ""), rest[start:]
    if run.result.outcome is Outcome.success and DONE in rest and rest.index(DONE) > _BEFORE:
        rest = rest[: rest.index(DONE)]
    most = _BEFORE + _FIRST + _LAST
    if len(rest) > most:
        middle = _left_out(rest[_BEFORE + _FIRST : 1 - _LAST], " more")
        rest = [*rest[: _BEFORE + _FIRST], *middle, *rest[1 - _LAST :]]
    return "\n".join([head, *(f"    {line}" for line in [*before, *rest]), f"    {run.end}"]) + "\n"


def _before(lines: Sequence[str], same: str) -> list[str]:
    """Return what stands for lines that come before all that is shown: of several lives the last one is told of."""
    begins = max((at for at, line in enumerate(lines) if line.startswith(LIFE)), default=len(lines))
    skipped = [f"... {begins} lines before{same}"] if begins else []
    return skipped + _left_out(lines[begins:], " more" if begins else f" more{same}")


def _left_out(lines: Sequence[str], more: str) -> list[str]:
    """Return what stands for lines: how many they are, and remarks of who looks on, which are lines in brackets."""
    found: list[str] = []
    for is_remark, group in groupby(lines, lambda line: line.startswith("(") and line != DONE):
        some = list(group)
        found += some if is_remark else [f"... {len(some)} lines{more}"]
    return found


def explanation(check: Check) -> str:
    """Return the page of a check; the empty string if there is none."""
    path = DIRECTORY / f"{check.id}.txt"
    return path.read_text("utf-8") if path.is_file() else ""
