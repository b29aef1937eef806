"""The figures of a campaign in short: means over the seeds, for each combination of settings."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import attrs

from toolstack.report import Usage
from toolstack.sweep.grid import Run, Value
from toolstack.sweep.worker import OK, Row

MAX_FIGURES = 6
USAGE = frozenset(("ended", "lives", *(field.name for field in attrs.fields(Usage))))
"""What the table has of every domain; a summary shows what the scenario itself has measured."""
_OWN = ("outcome", "message", "virtual_ns", "wall_s")


@attrs.frozen
class Line:
    """One combination of settings. `figures` are texts: mean, and least and most if they differ."""

    settings: tuple[Value, ...]
    runs: int
    failed: int
    virtual_ns: float
    figures: tuple[str, ...]


@attrs.frozen
class Summary:
    """The names of the settings and figures, and the lines."""

    settings: tuple[str, ...]
    figures: tuple[str, ...]
    lines: list[Line]


def summarize(rows: Mapping[Run, Row]) -> Summary:
    """Return the summary; figures are those columns of numbers that are not the same for every scenario."""
    groups: dict[tuple[tuple[str, Value], ...], list[Row]] = {}
    for run, row in rows.items():
        groups.setdefault(tuple(run.settings.items()), []).append(row)
    names = dict.fromkeys(
        name
        for row in rows.values()
        for name, value in row.items()
        if name not in _OWN and name.rpartition(".")[2] not in USAGE and _is_number(value)
    )
    figures = tuple(names)[:MAX_FIGURES]
    lines = [
        Line(
            settings=tuple(value for _, value in chosen),
            runs=len(group),
            failed=sum(row["outcome"] != OK for row in group),
            virtual_ns=_mean(_numbers(group, "virtual_ns")),
            figures=tuple(_spread(_numbers(group, name)) for name in figures),
        )
        for chosen, group in groups.items()
    ]
    first = next(iter(groups), ())
    return Summary(tuple(key for key, _ in first), figures, lines)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(group: list[Row], name: str) -> list[float]:
    return [float(row[name]) for row in group if name in row and _is_number(row[name])]


def _mean(numbers: list[float]) -> float:
    return fmean(numbers) if numbers else 0.0


def _spread(numbers: list[float]) -> str:
    if not numbers:
        return "-"
    low, high = min(numbers), max(numbers)
    return f"{low:g}" if low == high else f"{_mean(numbers):.6g} ({low:g} to {high:g})"
