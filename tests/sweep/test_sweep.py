"""Campaigns: the grid, runs that share nothing, results that survive, processes that do not."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from toolstack.cli import main
from toolstack.errors import UsageError
from toolstack.sweep.cluster import simulate_batch
from toolstack.sweep.grid import Run, combinations, parse_seeds, parse_settings, parse_value, runs_of
from toolstack.sweep.results import JOURNAL, Results, column_types
from toolstack.sweep.scenario import Source
from toolstack.sweep.worker import job_of

ROOT = Path(__file__).resolve().parent.parent.parent
SHARES = ROOT / "examples" / "sweep" / "shares.py"
PARAVIRT = (sys.executable, "-c", "from toolstack.cli import main; main()")


def sweep(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sweep", "--quiet", *map(str, arguments)])


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def guest(tmp_path: Path) -> Callable[..., Path]:
    """Write a guest with a disk; return its configuration."""

    def write(body: str, name: str = "g", *lines: str) -> Path:
        code = "from guest_kernel.guest import Guest\n\nclass Main(Guest):\n    async def main(self):\n"
        (tmp_path / f"{name}.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
        (tmp_path / "disk.img").write_bytes(bytes(1 << 16))
        settings = [f'name = "{name}"', "memory = 4", f'kernel = "{name}.py"', *lines]
        (tmp_path / f"{name}.cfg").write_text("\n".join(settings) + "\n")
        return tmp_path / f"{name}.cfg"

    return write


# -- the grid -----------------------------------------------------------------------------------------------------


def test_seeds_are_numbers_and_ranges_each_once() -> None:
    assert parse_seeds("0..3") == [0, 1, 2, 3]
    assert parse_seeds("7, 1..2,2") == [7, 1, 2]


@pytest.mark.parametrize("text", ["", "a", "3..1", "1..", "-1", "0..99999999", "1;2"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_seeds(text)


def test_settings_have_types() -> None:
    assert parse_settings(["a=1,2.5,x,true", "b.c=-3"]) == {"a": [1, 2.5, "x", True], "b.c": [-3]}
    assert [parse_value(text) for text in ("nan", "inf", "1e3", "0x10", "")] == ["nan", "inf", 1000.0, "0x10", ""]


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a b=1"], ["a=1", "a=2"]])
def test_other_settings_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_settings(texts)


def test_every_seed_meets_every_combination() -> None:
    runs = runs_of([5, 6], {"a": [1, 2], "b": ["x", "y"]})
    assert [(run.settings["a"], run.settings["b"], run.seed) for run in runs] == [
        (a, b, seed) for a in (1, 2) for b in ("x", "y") for seed in (5, 6)
    ]
    assert len({run.key for run in runs}) == 8
    assert str(runs[3]) == "--seeds 6 --set a=1 --set b=y"
    assert list(combinations({})) == [{}]
    with pytest.raises(UsageError):
        runs_of(range(1000), {"a": list(range(1001))})


def test_columns_have_the_narrowest_type_that_takes_all() -> None:
    rows: list[dict[str, Any]] = [{"i": 1, "d": 1, "s": 1, "b": True, "m": True}, {"d": 0.5, "s": "x", "m": 1}]
    assert column_types(rows) == {"i": "int64", "d": "double", "s": "string", "b": "bool", "m": "string"}


# -- runs ---------------------------------------------------------------------------------------------------------


def test_a_campaign_of_a_python_scenario(tmp_path: Path) -> None:
    done = sweep(SHARES, "--seeds", "0..2", "--set", "weight=256,512", "--set", "seconds=0.2", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "6 runs, 0 failed" in done.output
    rows = table(tmp_path / "out")
    assert [(row["weight"], row["seed"]) for row in rows] == [(w, s) for w in ("256", "512") for s in "012"]
    for row in rows:
        assert float(row["share"]) == pytest.approx(0.5 if row["weight"] == "256" else 2 / 3, abs=0.06)
        assert int(row["one.longest_wait_ns"]) > 0
    assert len({row["one.longest_wait_ns"] for row in rows}) > 1, "the seed decides"
    kinds = json.loads((tmp_path / "out" / "columns.json").read_text())
    assert list(kinds) == list(rows[0])
    expected = {"weight": "int64", "seconds": "double", "share": "double", "outcome": "string", "one.cpu_ns": "int64"}
    assert {name: kinds[name] for name in expected} == expected


def test_the_same_campaign_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    for jobs in (1, 3):
        done = sweep(SHARES, "--seeds", "0..5", "--set", "seconds=0.05", "-j", jobs, "-o", tmp_path / str(jobs))
        assert done.exit_code == 0, done.output
    first, second = ((tmp_path / name / "results.csv").read_bytes() for name in ("1", "3"))
    assert first == second


def test_runs_do_not_share_a_disk(guest: Callable[..., Path], tmp_path: Path) -> None:
    body = """
        disk = await self.disk("xvda")
        before = int.from_bytes(await disk.read(0, 1), "little")
        await disk.write(0, (before + 1).to_bytes(512, "little"))
        self.print(f"result: before={before} after={(await disk.read(0, 1))[0]}")
    """
    cfg = guest(body, "g", 'disk = ["disk.img,raw,xvda,w"]')
    done = sweep(cfg, "--seeds", "0..3", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert [(row["g.before"], row["g.after"]) for row in table(tmp_path / "out")] == [("0", "1")] * 4
    assert (tmp_path / "disk.img").read_bytes() == bytes(1 << 16)


def test_settings_reach_hosts_and_guests(guest: Callable[..., Path], tmp_path: Path) -> None:
    cfg = guest("self.print('result: word=' + self.args[0])", "g", 'extra = "none"')
    done = sweep(cfg, "--seeds", 0, "--set", "pcpus=1,2", "--set", "g.extra=a,b", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    rows = table(tmp_path / "out")
    assert [(row["pcpus"], row["g.extra"], row["g.word"]) for row in rows] == [
        ("1", "a", "a"),
        ("1", "b", "b"),
        ("2", "a", "a"),
        ("2", "b", "b"),
    ]
    done = sweep(cfg, "--seeds", 0, "--set", "*.extra=c", "-o", tmp_path / "other")
    assert table(tmp_path / "other")[0]["g.word"] == "c"


def test_failures_are_told_with_the_seed_that_repeats_them(guest: Callable[..., Path], tmp_path: Path) -> None:
    cfg = guest(
        """
        if self.kernel.rng.random() < 0.5:
            raise ValueError("a bad day")
        """
    )
    done = sweep(cfg, "--seeds", "0..7", "-o", tmp_path / "out")
    assert done.exit_code == 1
    failed = [row["seed"] for row in table(tmp_path / "out") if row["outcome"] == "failed"]
    assert 0 < len(failed) < 8
    for seed in failed:
        assert f"--seeds {seed}\n" in done.output
    assert "a bad day" in done.output
    again = sweep(cfg, "--seeds", failed[0], "-o", tmp_path / "again")
    assert again.exit_code == 1
    assert table(tmp_path / "again")[0] == next(r for r in table(tmp_path / "out") if r["seed"] == failed[0])


def test_a_process_that_dies_costs_its_own_run_only(guest: Callable[..., Path], tmp_path: Path) -> None:
    cfg = guest(
        """
        import os, sys
        if self.args == ["die"]:
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        """,
    )
    done = sweep(cfg, "--seeds", "0..1", "--set", "g.extra=live,die,well", "-j", 1, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert [row["outcome"] for row in table(tmp_path / "out")] == ["ok", "ok", "lost", "lost", "ok", "ok"]
    assert "its process has died (exit code 3: the last words)" in done.output


def test_a_run_that_takes_too_long_is_given_up(guest: Callable[..., Path], tmp_path: Path) -> None:
    cfg = guest(
        """
        while self.args == ["ever"]:
            await self.sleep(1)
        """,
    )
    done = sweep(cfg, "--seeds", 0, "--set", "g.extra=ever,not", "--timeout", 6, "-j", 1, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert [row["outcome"] for row in table(tmp_path / "out")] == ["timeout", "ok"]


def test_what_a_guest_prints_on_the_hosts_own_output_does_no_harm(guest: Callable[..., Path], tmp_path: Path) -> None:
    done = sweep(guest("print('{}')"), "--seeds", "0..1", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output


# -- taking it up again -------------------------------------------------------------------------------------------


def test_a_campaign_goes_on_where_it_stopped(guest: Callable[..., Path], tmp_path: Path) -> None:
    cfg, out = guest("self.print('result: x=1')"), tmp_path / "out"
    assert sweep(cfg, "--seeds", "0..2", "-o", out).exit_code == 0
    before = (out / JOURNAL).read_text()
    # The last line was being written when the power failed.
    (out / JOURNAL).write_text(before[:-20])
    done = sweep(cfg, "--seeds", "0..4", "-o", out)
    assert done.exit_code == 0, done.output
    after = (out / JOURNAL).read_text().splitlines()
    assert after[:3] == before.splitlines()[:3], "what was done is not done again"
    assert len(after) == 6
    assert [row["seed"] for row in table(out)] == list("01234")
    assert sweep(cfg, "--seeds", "0..4", "-o", out).exit_code == 0
    assert (out / JOURNAL).read_text().splitlines() == after


def test_failed_runs_are_repeated_if_that_is_asked_for(guest: Callable[..., Path], tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    cfg = guest(f"from pathlib import Path\nif not Path({str(flag)!r}).exists(): raise ValueError")
    assert sweep(cfg, "--seeds", "0", "-o", tmp_path / "out").exit_code == 1
    flag.touch()
    assert sweep(cfg, "--seeds", "0", "-o", tmp_path / "out").exit_code == 1
    assert sweep(cfg, "--seeds", "0", "-o", tmp_path / "out", "--again").exit_code == 0
    assert [row["outcome"] for row in table(tmp_path / "out")] == ["ok"]


def test_results_of_another_scenario_are_not_mixed_in(guest: Callable[..., Path], tmp_path: Path) -> None:
    cfg = guest("pass")
    assert sweep(cfg, "--seeds", 0, "-o", tmp_path / "out").exit_code == 0
    guest("self.print('changed')")
    done = sweep(cfg, "--seeds", 0, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "another scenario" in done.output


@pytest.mark.parametrize("text", ["", "rubbish\n", "[]\n", '{"magic": "paravirt sweep", "version": 99}\n'])
def test_a_journal_that_is_none_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / JOURNAL).write_text(text)
    with pytest.raises(UsageError):
        Results(tmp_path, "digest")
    assert (tmp_path / JOURNAL).read_text() == text


def test_ctrl_c_keeps_what_is_done_and_leaves_no_process(guest: Callable[..., Path], tmp_path: Path) -> None:
    cfg, out = guest("await self.sleep(1)\nimport time\ntime.sleep(0.2)"), tmp_path / "out"
    command = [*PARAVIRT, "sweep", "--quiet", str(cfg), "--seeds", "0..199", "-j", "2", "-o", str(out)]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not (out / JOURNAL).exists() or (out / JOURNAL).read_text().count("\n") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130, output
    assert "still to be done" in output
    done = len(table(out))
    assert 3 <= done < 200
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert len((out / JOURNAL).read_text().splitlines()) == done + 1


# -- Dask ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_dask_cluster_gives_the_same_table(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    arguments = (SHARES, "--seeds", "0..7", "--set", "seconds=0.05")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs="CRITICAL"
    ) as cluster:
        done = sweep(*arguments, "--dask", cluster.scheduler_address, "-o", tmp_path / "dask")
    assert done.exit_code == 0, done.output
    assert sweep(*arguments, "-o", tmp_path / "local").exit_code == 0
    first, second = ((tmp_path / name / "results.csv").read_bytes() for name in ("dask", "local"))
    assert first == second


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{cfg}", "--seeds", "x"], "neither a number nor a range"),
        (["{cfg}", "--set", "cpus=1"], "'cpus' is nothing of the host"),
        (["{cfg}", "--set", "h.extra=1"], "there is no guest 'h'"),
        (["{cfg}", "--set", "g.weihgt=1"], "unknown setting 'weihgt'"),
        (["{cfg}", "--set", "scheduler=credit3"], "there is no scheduler 'credit3'"),
        (["{cfg}", "--set", "pcpus=many"], "pcpus is a whole number"),
        (["missing.cfg"], "does not exist"),
        (["{cfg}", "{cfg}"], "the domain name 'g' is already taken"),
        (["{cfg}", "--set", "g.kernel=other.py"], "other.py"),
        (["{cfg}", "--set", "g.cpus=0,7"], "none of these CPUs is there"),
        (["missing.py"], "does not exist"),
        ([str(SHARES), "--set", "wieght=3"], "unexpected keyword argument 'wieght'"),
        ([str(SHARES), "{cfg}"], "one Python file"),
        ([str(ROOT / "examples" / "sweep" / "burner.py")], "has no function scenario"),
        (["{cfg}", "--dask", "nowhere", "-j", "2"], "--jobs is for this machine"),
    ],
)
def test_mistakes_are_one_sentence(
    guest: Callable[..., Path], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    cfg = guest("pass")
    done = sweep(*(word.format(cfg=cfg) for word in arguments), "-o", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert sentence in done.output
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_batch_on_a_cluster_loses_one_run_with_a_process(guest: Callable[..., Path]) -> None:
    cfg = guest("import os\nif self.args == ['die']:\n    os._exit(3)")
    source = Source((cfg,))
    jobs = [job_of(source, Run(0, {"g.extra": word})) for word in ("live", "die", "well")]
    rows = [json.loads(line) for line in simulate_batch(jobs, 60)]
    assert [row["outcome"] for row in rows] == ["ok", "lost", "ok"]
    assert rows[1]["message"] == "its process has died (exit code 3)"


def test_a_worker_ends_with_its_parent(guest: Callable[..., Path]) -> None:
    cfg = guest("while True:\n    await self.sleep(1)")
    job = job_of(Source((cfg,)), Run(0, {}))
    parent = (
        "import subprocess, sys, time\nfrom toolstack.sweep.worker import worker_command\n"
        "worker = subprocess.Popen(worker_command(), stdin=subprocess.PIPE, text=True)\n"
        f"worker.stdin.write({job!r} + '\\n')\nworker.stdin.flush()\n"
        "print(worker.pid, flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}/stat").exists() and ") Z " not in Path(f"/proc/{worker}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_dask_that_is_not_installed_is_one_sentence(
    guest: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = sweep(guest("pass"), "--dask", "tcp://127.0.0.1:1", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "pip install 'paravirt[dask]'" in done.output


def test_a_run_tells_how_to_repeat_it() -> None:
    assert str(Run(3, {})) == "--seeds 3"
