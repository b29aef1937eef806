"""What can be known to be wrong with a campaign before its first run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolstack.sweep.grid import Run, Value, combinations
from toolstack.sweep.scenario import Source, make_host


def check_scenario(source: Source, settings: Mapping[str, Sequence[Value]]) -> None:
    """Put the first host of each combination of settings together, without switching it on. Raises `UsageError`."""
    source.check(list(settings))
    for chosen in combinations(settings):
        run = Run(0, chosen)
        with tempfile.TemporaryDirectory(prefix="paravirt-check-") as directory:
            make_host(source.build(run, Path(directory)), run)
