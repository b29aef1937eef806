"""Which runs a campaign has: every seed with every combination of settings."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import attrs

from toolstack.errors import UsageError

Value = int | float | bool | str
"""What a setting or a result can be: a cell of a table."""
MAX_RUNS = 1_000_000
_SEEDS = re.compile(r"([0-9]{1,18})(?:\.\.([0-9]{1,18}))?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_KEY = re.compile(r"[A-Za-z_*][A-Za-z0-9_.:+*-]*")


@attrs.frozen(eq=False)
class Run:
    """One run: its seed and its settings. (Two of them are never the same; `key` is to be compared.)"""

    seed: int
    settings: Mapping[str, Value]

    @property
    def key(self) -> str:
        """What tells it from the others of any campaign of the scenario."""
        return json.dumps([self.seed, dict(sorted(self.settings.items()))])

    def __str__(self) -> str:
        """What a person types to have this run alone."""
        return " ".join([f"--seeds {self.seed}", *(f"--set {key}={value}" for key, value in self.settings.items())])


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that `0..999`, `7` or `1,4,10..12` mean, each once. Raises `UsageError`."""
    seeds: dict[int, None] = {}
    for word in text.split(","):
        match = _SEEDS.fullmatch(word.strip())
        if match is None:
            raise UsageError(f"--seeds {text!r}: {word.strip()!r} is neither a number nor a range such as 0..999")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"--seeds {text!r}: the range {word.strip()!r} is empty")
        if last - first >= MAX_RUNS:
            raise UsageError(f"--seeds {text!r}: a campaign has {MAX_RUNS:,} runs at most")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def parse_settings(texts: Sequence[str]) -> dict[str, list[Value]]:
    """Return the values to try of each `KEY=a,b,c`, in order. Raises `UsageError`."""
    found: dict[str, list[Value]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not _KEY.fullmatch(key):
            raise UsageError(f"--set {text!r} is not of the form KEY=VALUE,VALUE,…")
        if key in found:
            raise UsageError(f"--set {key!r} is there twice: put all values behind one '='")
        tried = map(parse_value, values.split(","))
        # (1 and true are the same to Python.)
        found[key] = list({(type(value), value): value for value in tried}.values())
    return found


def parse_value(text: str) -> Value:
    """Return the number or truth value that a text is; else the text itself."""
    text = text.strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    if text in ("true", "false"):
        return text == "true"
    try:
        number = float(text)
    except ValueError:
        return text
    # ("nan" and "infinity" are words here, for a table of results must have an order.)
    return number if abs(number) < float("inf") else text


def combinations(settings: Mapping[str, Sequence[Value]]) -> Iterator[dict[str, Value]]:
    """Yield every combination of settings; the last one varies fastest."""
    for values in itertools.product(*settings.values()):
        yield dict(zip(settings, values, strict=True))


def runs_of(seeds: Sequence[int], settings: Mapping[str, Sequence[Value]]) -> list[Run]:
    """Return all runs in order. Raises `UsageError` if there are too many."""
    count = len(seeds)
    for values in settings.values():
        count *= len(values)
    if count > MAX_RUNS:
        raise UsageError(f"that is {count:,} runs; a campaign has {MAX_RUNS:,} at most")
    return [Run(seed, chosen) for chosen in combinations(settings) for seed in seeds]
