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
from toolstack.sweep.worker import LOST, READY, Row, job_of, worker_command

BATCH = 16
"""Runs of one task, at most: a process has to be started for each."""
ROUNDS = 3
"""So many tasks a thread of the cluster should have at least, that all end at about the same time."""
CONNECT_SECONDS = 10


def simulate_batch(jobs: list[str], limit: float | None) -> list[str]:
    """Do some runs beside the worker of the cluster that executes this; return a line of JSON for each.

    A process that dies is lost with the run that it was at; another one does the rest. `limit` is in seconds of
    wall-clock time for each run that is left.
    """
    lines: list[str] = []
    while len(lines) < len(jobs):
        left = jobs[len(lines) :]
        done, why = _in_a_process(left, None if limit is None else limit * len(left))
        lines += done
        if why and len(lines) < len(jobs):
            lines.append(json.dumps({"outcome": LOST, "message": why}))
    return lines


def _in_a_process(jobs: list[str], seconds: float | None) -> tuple[list[str], str]:
    """Do runs until all are done; return the lines that came, and why there are not more of them."""
    process = subprocess.Popen(
        worker_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        output, _ = process.communicate("".join(job + "\n" for job in jobs), timeout=seconds)
        why = f"its process has died (exit code {process.returncode})"
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        why = f"its batch was not over after {seconds:g} s of wall-clock time"
    finally:
        process.kill()
    lines = [line for line in output.removeprefix(READY).splitlines(keepends=True) if line.endswith("\n")]
    return lines, why if len(lines) < len(jobs) else ""


def run_on_cluster(source: Source, runs: Sequence[Run], address: str, limit: float | None, report: Report) -> None:
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
            futures[client.submit(simulate_batch, jobs, limit, pure=False)] = batch
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
    if failure is None:
        rows: list[Row] = [json.loads(line) for line in future.result()]
    else:
        rows = [{"outcome": LOST, "message": f"{type(failure).__name__}: {failure}"} for _ in batch]
    for run, row in zip(batch, rows, strict=True):
        report(run, row)
