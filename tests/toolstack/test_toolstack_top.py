"""`paravirt top`: the numbers of a host that runs, and xentop's screen of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner
from control_host import Steered, steered

from toolstack.cli import main
from toolstack.commands.top import COLUMNS, SORTS, View, format_sample
from toolstack.live_view import look
from toolstack.xl_config import DomainConfig

WORK = """
disk = await self.disk("xvda")
eth0 = await self.net.interface("eth0")
for n in range(5):
    await disk.write(8 * n, bytes(4096))
await disk.flush()
await disk.read(0, 16)
await self.cpu(ns=2_000_000_000)
self.print("up")
await self.kernel.never()
"""
# The titles of xentop's columns, each at the right end of its width.
HEADER = (
    "      NAME  STATE   CPU(sec) CPU(%)     MEM(k) MEM(%)  MAXMEM(k) MAXMEM(%) VCPUS NETS NETTX(k) NETRX(k) VBDS"
    "   VBD_OO   VBD_RD   VBD_WR  VBD_RSECT  VBD_WSECT SSID"
)


def working(host: Steered) -> list[DomainConfig]:
    host.image("d.img")
    return [host.guest("worker", WORK, 'disk = ["d.img,raw,xvda,w"]', 'vif = ["bridge=xenbr0"]')]


async def test_the_numbers_are_those_of_the_host(tmp_path: Path) -> None:
    async with steered(tmp_path, working) as host:
        await host.says("worker | up")
        sample = await host.ask("top")
        dom0, worker = sample["domains"]
        assert (dom0["name"], dom0["id"], worker["name"], worker["id"]) == ("Domain-0", 0, "worker", 1)
        assert (worker["rd"], worker["wr"], worker["rsect"], worker["wsect"]) == (1, 6, 16, 40)
        assert (worker["vbds"], worker["nets"], worker["vcpus"]) == (1, 1, 1)
        assert (worker["mem_kib"], worker["max_kib"]) == (4096, 4096 + 1024)
        assert 2_000_000_000 <= worker["cpu_ns"] < 2_100_000_000
        assert worker["blocked"]
        assert not worker["running"]
        assert dom0["running"]
        assert sample["total_kib"] > sample["free_kib"] > 0
        assert sample["cpus"] == 1
        info = await host.ask("info")
        assert sample["version"] == f"{info['major']}.{info['minor']}{info['extra']}"
        assert sample["version"].startswith("4.17")


async def test_the_command_in_batch_mode(tmp_path: Path) -> None:
    def run() -> str:
        words = ("top", "-b", "-i", "2", "-d", "0.01", "--control", str(host.endpoint.path))
        command = [sys.executable, "-c", "from toolstack.cli import main; main()", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    async with steered(tmp_path, working) as host:
        await host.says("worker | up")
        shown = await trio.to_thread.run_sync(run)
    assert shown.count("xentop - ") == 2
    assert "2 domains: 1 running, 1 blocked, 0 paused, 0 crashed, 0 dying, 0 shutdown \n" in shown
    assert shown.count(HEADER + "\n") == 2
    assert len(re.findall(r"^    worker --b---          2    0\.0       4096 .* 16 +40 +0$", shown, re.MULTILINE)) == 2


def domain(**changes: Any) -> dict[str, Any]:
    states = dict.fromkeys(("dying", "shutdown", "blocked", "crashed", "paused", "running"), False)
    numbers = dict.fromkeys(("cpu_ns", "nets", "tx_bytes", "rx_bytes", "vbds", "rd", "wr", "rsect", "wsect", "ssid"), 0)
    return {"name": "one", "id": 1, "vcpus": 1, "mem_kib": 1 << 20, "max_kib": None, **states, **numbers, **changes}


def host(now_s: float, *domains: dict[str, Any]) -> dict[str, Any]:
    machine = {"total_kib": 4 << 20, "free_kib": 1 << 20, "cpus": 2, "mhz": 1000, "version": "4.17.5"}
    return {"now_ns": round(now_s * 1e9), **machine, "domains": list(domains)}


def test_percentages_are_of_the_time_between_two_looks() -> None:
    before = host(1, domain(cpu_ns=500_000_000))
    lines = format_sample(host(3, domain(cpu_ns=2_000_000_000, running=True)), before, "12:00:00")
    assert lines[0] == "xentop - 12:00:00   Xen 4.17.5"
    assert lines[2] == "Mem: 4194304k total, 3145728k used, 1048576k free    CPUs: 2 @ 1000MHz"
    assert lines[3] == HEADER
    assert lines[4].split()[:8] == ["one", "-----r", "2", "75.0", "1048576", "25.0", "no", "limit"]
    assert "n/a" in lines[4]


def test_who_is_new_has_used_nothing_yet() -> None:
    lines = format_sample(host(3, domain(id=2, cpu_ns=10**9)), host(1, domain()), "12:00:00")
    assert lines[4].split()[3] == "0.0"
    assert format_sample(host(3, domain(cpu_ns=10**9)), None, "12:00:00")[4].split()[3] == "0.0"


@pytest.mark.parametrize(
    ("state", "letters", "counted"),
    [
        ("dying", "d-----", "1 dying"),
        ("shutdown", "-s----", "1 shutdown"),
        ("blocked", "--b---", "1 blocked"),
        ("crashed", "---c--", "1 crashed"),
        ("paused", "----p-", "1 paused"),
        ("running", "-----r", "1 running"),
    ],
)
def test_states(state: str, letters: str, counted: str) -> None:
    lines = format_sample(host(1, domain(**{state: True})), None, "12:00:00")
    assert lines[4].split()[1] == letters
    assert counted in lines[1]


def test_long_names_are_cut_unless_wanted() -> None:
    sample = host(1, domain(name="a-very-long-name"), domain(id=2, name="b"))
    assert format_sample(sample, None, "")[4].startswith("a-very-lon ------")
    full = format_sample(sample, None, "", View(full_name=True))
    assert full[4].startswith("a-very-long-name ------")
    assert len({len(line) for line in full[3:]}) == 1


def test_every_line_is_as_wide_as_the_header() -> None:
    lines = format_sample(host(1, domain(), domain(id=2, max_kib=4096)), None, "")
    assert len({len(line) for line in lines[3:]}) == 1
    assert len(lines[3]) == 10 + sum(width + 1 for _, width, _ in COLUMNS)


def detailed() -> dict[str, Any]:
    disk = {"id": 51712, "rd": 3, "wr": 4, "rsect": 24, "wsect": 32}
    net = {"id": 0} | {f"{way}_{what}": 7 for way in ("rx", "tx") for what in ("bytes", "packets", "dropped")}
    vcpus = [[number, number * 1_000_000_000] for number in range(7)]
    return domain(vcpus=7, vcpu_ns=vcpus, interfaces=[net], disks=[disk])


def test_the_views_of_single_vcpus_vifs_and_disks() -> None:
    lines = format_sample(host(1, detailed()), None, "12:00:00", View(vcpus=True, networks=True, disks=True))
    assert lines[5:] == [
        "VCPUs(sec):   0:          0s  1:          1s  2:          2s  3:          3s  4:          4s",
        "          5:          5s  6:          6s",
        "Net0 RX:        7bytes        7pkts        0err        7drop  "
        "TX:        7bytes        7pkts        0err        7drop",
        "VBD BlkBack 51712 [ca: 0]  OO:        0   RD:        3   WR:        4   RSECT:         24   WSECT:         32",
    ]
    assert len(format_sample(host(1, detailed()), None, "12:00:00")) == 5


@pytest.mark.parametrize("title", SORTS)
def test_every_column_sorts(title: str) -> None:
    rows = [domain(id=number, name=name) for number, name in enumerate("cab")]
    rows[1] |= {"blocked": True, "max_kib": 1, "cpu_ns": 10**9, "vcpus": 3, "mem_kib": 2 << 20}
    rows[1] |= dict.fromkeys(("nets", "vbds", "tx_bytes", "rx_bytes", "rd", "wr", "rsect", "wsect"), 5)
    rows[2]["max_kib"] = 5
    before = host(0, *(domain(id=number) for number in range(3)))
    lines = format_sample(host(1, *rows), before, "12:00:00", View(sort=title))
    names = [line.split()[0] for line in lines[4:]]
    assert names[0] == {"maxmem(k)": "c"}.get(title, "a")
    assert sorted(names) == ["a", "b", "c"]


def test_the_header_is_repeated_if_that_is_asked_for() -> None:
    lines = format_sample(host(1, domain(id=1), domain(id=2)), None, "12:00:00", View(repeat_header=True))
    assert lines.count(HEADER) == 2


async def test_looking_from_outside_sees_what_dom0_sees(tmp_path: Path) -> None:
    async with steered(tmp_path, working) as steered_host:
        await steered_host.says("worker | up")
        asked = await steered_host.ask("top")
        running = steered_host.host
        seen = look(running.hv, running.dom0_drivers(), running.names())
        for mine, theirs in zip(seen["domains"], asked["domains"], strict=True):
            same = set(mine) - {"cpu_ns", "vcpu_ns", "running", "blocked"}
            assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}
        worker = seen["domains"][1]
        assert worker["vcpu_ns"] == [[0, worker["cpu_ns"]]]
        assert [(disk["rd"], disk["wr"]) for disk in worker["disks"]] == [(1, 6)]
        assert [net["id"] for net in worker["interfaces"]] == [0]
        rest = set(seen) - {"now_ns", "domains"}
        assert {key: seen[key] for key in rest} == {key: asked[key] for key in rest}


LOOKED_AT = """
for _ in range(40):
    await self.cpu(ns=1_000_000)
    await self.sleep(0.01)
    import time
    time.sleep(0.02)
"""


@pytest.mark.parametrize("options", [("--top", "0.05"), ("--progress",), ("--top", "0.05", "--progress")])
def test_a_run_that_is_looked_at_is_the_same_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = Steered(tmp_path).guest("g", LOOKED_AT).source
    runner = CliRunner()
    plain = runner.invoke(main, ["run", "--trace", str(tmp_path / "plain"), path])
    seen = runner.invoke(main, ["run", "--trace", str(tmp_path / "seen"), *options, path])
    assert (plain.exit_code, seen.exit_code) == (0, 0), seen.output
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "seen").read_bytes()
    shown = seen.output.count("xentop - ")
    assert (shown >= 3) if "--top" in options else not shown


def test_progress_says_how_far_and_how_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolstack.live_view.PLAIN_SECONDS", 0.1)
    path = Steered(tmp_path).guest("g", LOOKED_AT).source
    done = CliRunner().invoke(main, ["run", "--quiet", "--progress", path])
    assert done.exit_code == 0
    assert re.search(
        r"ms of virtual time in \d\.\d s \(\S+ times as fast as real time\), 1 of 1 guests run", done.output
    )
