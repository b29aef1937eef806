"""The same command gives the same bytes: in another process, with other hashes, on one pCPU or on several."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hypervisor.abi import tracepoints
from hypervisor.abi.tracepoints import SCHEDULE
from hypervisor.trace import read_records

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "from toolstack.cli import main; main()"
CONFIGS = ("guest1.cfg", "guest2.cfg")

MUST_OCCUR = {
    *("hypercall", "evtchn_pending", "upcall", "schedule", "deschedule", "wake", "timer", "irq", "vcpu_up"),
    *("domain_create", "domain_name", "domain_shutdown", "domain_destroy", "gnttab_map", "gnttab_unmap", "gnttab_copy"),
    *(
        "ring_connect",
        "ring_push",
        "xenbus_state",
        "xenstore_op",
        "xenstore_event",
        "console",
        "block_request",
        "net_packet",
    ),
}
"""The kinds of records of a run in which everything works: what is missing are crashes, unplugged vCPUs and notes, and
page transfers, which no driver uses."""


class Bench:
    """The first-host example in a directory of its own, so that its files have the same paths in every run."""

    def __init__(self, directory: Path) -> None:
        shutil.copytree(ROOT / "examples" / "first-host", directory, dirs_exist_ok=True)
        self.directory = directory
        self.runs = 0

    def run(self, *options: str) -> Path:
        """Run the example in a process of its own, with hashes of its own; returns the trace."""
        with (self.directory / "guest1.img").open("wb") as file:
            file.truncate(1 << 20)
        self.runs += 1
        trace = self.directory / f"{self.runs}.trace"
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                COMMAND,
                "run",
                "--quiet",
                "--time",
                "virtual",
                "--trace",
                trace,
                *options,
                *CONFIGS,
            ],
            cwd=self.directory,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(self.runs * 1000 + 1)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr or done.stdout
        return trace


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def plain(bench: Bench) -> Path:
    return bench.run()


def schedule(trace: Path) -> list[list[object]]:
    return [record for record in read_records(trace) if record[3] == SCHEDULE]


def same(one: Path, other: Path) -> None:
    """Say where two traces part, which is more useful than that they do."""
    if one.read_bytes() == other.read_bytes():
        return
    for number, (a, b) in enumerate(zip(read_records(one), read_records(other), strict=False)):
        assert a == b, f"record {number} differs"
    raise AssertionError("the headers or the lengths of the traces differ")


def test_again(bench: Bench, plain: Path) -> None:
    same(plain, bench.run())


def test_another_seed(bench: Bench, plain: Path) -> None:
    assert bench.run("--seed", "1").read_bytes() != plain.read_bytes()


@pytest.mark.parametrize("options", [("--schedule", "random:7"), ("--pcpus", "3")], ids=" ".join)
def test_other_ways_twice(bench: Bench, plain: Path, options: tuple[str, ...]) -> None:
    first = bench.run(*options)
    same(first, bench.run(*options))
    assert schedule(first) != schedule(plain)


@pytest.mark.parametrize(
    "options",
    [(), ("--schedule", "random:7"), ("--pcpus", "3"), ("--pcpus", "2", "--schedule", "random:3")],
    ids=lambda options: " ".join(options) or "plain",
)
def test_replay(bench: Bench, options: tuple[str, ...]) -> None:
    recorded = bench.run(*options)
    pcpus = [word for pair in zip(options[::2], options[1::2], strict=True) if pair[0] == "--pcpus" for word in pair]
    replayed = bench.run(*pcpus, "--schedule", f"replay:{recorded}")
    assert schedule(replayed) == schedule(recorded)
    records = zip(read_records(recorded), read_records(replayed), strict=True)
    assert all(a == b for a, b in records)


def test_replay_of_another_run(bench: Bench, plain: Path) -> None:
    """One sentence, exit code 2."""
    recorded = bench.run("--schedule", "random:7")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run", "--quiet", "--schedule", f"replay:{recorded}", "guest2.cfg"],
        cwd=bench.directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"this run is not the one that {recorded} recorded" in done.stderr


def test_everything_that_happens_is_in_the_trace(plain: Path) -> None:
    count = Counter(tracepoints.KINDS[record[3]][0] for record in read_records(plain))
    assert set(count) == MUST_OCCUR


def test_records_have_the_fields_of_their_kind(plain: Path) -> None:
    for record in read_records(plain):
        assert len(record) == 4 + len(tracepoints.KINDS[record[3]][1]), record
