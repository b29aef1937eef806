"""A process that simulates one run after the other: jobs come as lines of JSON, results go back as lines of JSON.

A process of its own, because a host wants the main thread (its watchdog), and because nothing that goes wrong in one
may touch another. `python -m toolstack.sweep.worker` is not for people.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import trio

from hypervisor.errors import DeviceError, InvariantError, ReplayError
from toolstack.console_log import ConsoleLog
from toolstack.errors import UsageError
from toolstack.report import HostResult
from toolstack.sweep.grid import Run, Value, parse_value
from toolstack.sweep.scenario import Source, make_host

RESULT = "result:"
"""How a line begins by which a guest puts figures into the table: `result: latency_ns=1234 lost=0`."""
READY = "ready\n"
"""What a worker says first: only from then on a run takes time."""
OK, FAILED, ERROR, INTERNAL, LOST, TIMEOUT = "ok", "failed", "error", "internal", "lost", "timeout"
"""How a run ends: in order; a guest failed; it could not be run; a bug of the simulator; its process died; too late."""

PARENT_SECONDS = 1.0
"""How often a worker looks whether its parent is still there."""

Row = dict[str, Value]


def worker_command() -> list[str]:
    """Return what starts a worker for this process."""
    return [sys.executable, "-m", "toolstack.sweep.worker", str(os.getpid())]


def job_of(source: Source, run: Run) -> str:
    """Return the line that asks a worker for a run."""
    files = [str(path.absolute()) for path in source.files]
    return json.dumps({"files": files, "seed": run.seed, "settings": dict(run.settings)})


def simulate(source: Source, run: Run) -> Row:
    """Do one run; return its row, whatever happens. Only a person's interrupt gets out."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="paravirt-run-") as directory:
        try:
            row = _simulate(source, run, Path(directory))
        except (UsageError, ReplayError, DeviceError) as error:
            row = {"outcome": ERROR, "message": str(error)}
        except InvariantError as error:
            row = {"outcome": INTERNAL, "message": str(error)}
        except Exception as error:
            row = {"outcome": ERROR, "message": f"{type(error).__name__}: {error}"}
    return row | {"wall_s": round(time.monotonic() - began, 3)}


def _simulate(source: Source, run: Run, directory: Path) -> Row:
    scenario = source.build(run, directory)
    figures: Row = {}
    tags = {config.name for config in scenario.configs}

    def look(line: str) -> None:
        tag, _, text = line.rstrip("\n").partition(" | ")
        if tag.strip() in tags and text.startswith(RESULT):
            figures.update(_figures(tag.strip(), text.removeprefix(RESULT)))

    host = make_host(scenario, run, consoles=ConsoleLog(look))
    result = trio.run(host.run, scenario.configs)
    if scenario.measure is not None:
        figures |= scenario.measure(host, result)
    failures = result.failures
    row: Row = {
        "outcome": FAILED if failures else OK,
        "message": failures[0].sentence if failures else "",
        "virtual_ns": result.virtual_ns,
    }
    return row | _usage(result) | figures


def _figures(name: str, text: str) -> Row:
    """Return what a guest says of itself: `KEY=VALUE` words."""
    pairs = (word.partition("=") for word in text.split())
    return {f"{name}.{key}": parse_value(value) for key, equals, value in pairs if key and equals}


def _usage(result: HostResult) -> Row:
    row: Row = {}
    for domain in result.domains:
        row[f"{domain.name}.ended"] = domain.reason
        row[f"{domain.name}.lives"] = domain.lives
        row |= {f"{domain.name}.{key}": value for key, value in attrs.asdict(domain.usage).items()}
    return row


def _do(job: Mapping[str, Any]) -> Row:
    source = Source(tuple(Path(file) for file in job["files"]))
    return simulate(source, Run(job["seed"], job["settings"]))


def _end_with(parent: int) -> None:
    """End this process when the one that gives it work is gone: amid a run nobody reads what is on its way."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Serve jobs until there are no more."""
    _end_with(int(sys.argv[1]))
    # Ctrl-C at a terminal reaches the whole group of processes: whether this one ends is for its parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the scenario's code prints must not get in between.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    replies.write(READY)
    replies.flush()
    for line in sys.stdin:
        replies.write(json.dumps(_do(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
