"""Many runs on a Dask cluster (https://www.dask.org): batches of runs as tasks, each in a process beside its worker.

The machines of the cluster must have paravirt installed, and see the scenario's files at the same paths.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from toolstack.errors import UsageError
from toolstack.sweep.grid import Run
from toolstack.sweep.local import Report
from toolstack.sweep.scenario import Source
from toolstack.sweep.worker import COMMAND, LOST, Row, job_of

BATCH = 16
"""Runs of one task, at most: a process has to be started for each."""
ROUNDS = 3
"""So many tasks a thread of the cluster should have at least, that all end at about the same time."""
CONNECT_SECONDS = 10


def simulate_batch(jobs: list[str], timeout: float | None) -> list[str]:
    """Do some runs in a process of their own; what a worker of the cluster executes. Returns the lines that came."""
    limit = None if timeout is None else timeout * len(jobs)
    text = "".join(job + "\n" for job in jobs)
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        output, _ = process.communicate(text, timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    finally:
        process.kill()
    return [line for line in output.splitlines(keepends=True) if line.endswith("\n")]


def run_on_cluster(source: Source, runs: Sequence[Run], address: str, timeout: float | None, report: Report) -> None:
    """Do the runs on the cluster whose scheduler is at `address`. Raises `UsageError`."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise UsageError("--dask needs Dask: pip install 'paravirt[dask]'") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--dask {address!r}: {str(error).splitlines()[0]}") from None
    futures: dict[Any, Sequence[Run]] = {}
    try:
        for batch in _batches(runs, sum(client.nthreads().values())):
            jobs = [job_of(source, run) for run in batch]
            # (Not pure: a run that was lost may be asked for again.)
            futures[client.submit(simulate_batch, jobs, timeout, pure=False)] = batch
        for future in as_completed(list(futures), loop=client.loop):
            batch = futures.pop(future)
            _report_batch(future, batch, report)
    finally:
        client.cancel(list(futures))
        client.close()


def _batches(runs: Sequence[Run], threads: int) -> list[Sequence[Run]]:
    size = max(1, min(BATCH, -(-len(runs) // (max(threads, 1) * ROUNDS))))
    return [runs[at : at + size] for at in range(0, len(runs), size)]


def _report_batch(future: Any, batch: Sequence[Run], report: Report) -> None:
    failure = future.exception()
    lines = [] if failure is not None else future.result()
    why = "its process has died, or was too late" if failure is None else f"{type(failure).__name__}: {failure}"
    rows: list[Row] = [json.loads(line) for line in lines]
    rows += [{"outcome": LOST, "message": why}] * (len(batch) - len(rows))
    for run, row in zip(batch, rows, strict=True):
        report(run, row)
