"""`paravirt top`: the numbers of a host that runs, and xentop's screen of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from control_host import Steered, steered

from toolstack.commands.top import COLUMNS, format_sample
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
    full = format_sample(sample, None, "", full_name=True)
    assert full[4].startswith("a-very-long-name ------")
    assert len({len(line) for line in full[3:]}) == 1


def test_every_line_is_as_wide_as_the_header() -> None:
    lines = format_sample(host(1, domain(), domain(id=2, max_kib=4096)), None, "")
    assert len({len(line) for line in lines[3:]}) == 1
    assert len(lines[3]) == 10 + sum(width + 1 for _, width, _ in COLUMNS)
