"""What can be known to be wrong with a campaign before its first run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolstack.preparation import check_processors, prepare
from toolstack.sweep.grid import Run, Value, combinations
from toolstack.sweep.scenario import Source, make_host


def check_scenario(source: Source, settings: Mapping[str, Sequence[Value]]) -> None:
    """Put the first host of each combination of settings together, without switching it on. Raises `UsageError`."""
    source.check(list(settings))
    for chosen in combinations(settings):
        run = Run(0, chosen)
        with tempfile.TemporaryDirectory(prefix="paravirt-check-") as directory:
            scenario = source.build(run, Path(directory))
            host = make_host(scenario, run)
            check_processors(scenario.configs, host.pcpus, host.scheduler, host.pools)
            prepare(scenario.configs, host.nics, run.seed).close()
