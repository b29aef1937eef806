"""`paravirt dmesg`, `uptime`: what a running host says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio
from control_host import Steered, steered

from toolstack.commands.uptime import format_uptime
from toolstack.control.host_verbs import CHUNK
from toolstack.xl_config import DomainConfig

S = 10**9


def sleeping(host: Steered) -> list[DomainConfig]:
    return [host.guest("sleeper", 'await self.sleep(90)\nself.print("up")\nawait self.kernel.never()')]


def run(host: Steered, *words: str) -> str:
    command = [sys.executable, "-c", "from toolstack.cli import main; main()", *words]
    command += ["--control", str(host.endpoint.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_the_log_is_xens_own(tmp_path: Path) -> None:
    async with steered(tmp_path, sleeping) as host:
        await host.says("up")
        for number in range(200):
            host.host.hv.xen_log.printk(f"line {number} of many \x1b[31m", 0)
        log: bytes = await host.ask("dmesg")
        assert len(log) > 2 * CHUNK
        assert log == bytes(host.host.hv.xen_log.ring)
        shown = await trio.to_thread.run_sync(run, host, "dmesg", "-c")
        assert "(XEN) line 199 of many \\x1b[31m\n" in shown
        assert shown.count("\n") == log.count(b"\n")
        assert await host.ask("dmesg") == b""
        host.host.hv.xen_log.printk("later", 0)
        assert await host.ask("dmesg") == b"(XEN) later\n"


async def test_uptime_is_in_the_hosts_own_time(tmp_path: Path) -> None:
    async with steered(tmp_path, sleeping) as host:
        await host.says("up")
        rows = await host.ask("uptime")
        assert [(row["name"], row["id"]) for row in rows] == [("Domain-0", 0), ("sleeper", 1)]
        assert rows[0]["ns"] > rows[1]["ns"] > 90 * S
        assert [row["id"] for row in await host.ask("uptime", domain="sleeper")] == [1]
        assert [row["id"] for row in await host.ask("uptime", domain="0")] == [0]
        shown = await trio.to_thread.run_sync(run, host, "uptime")
        lines = shown.splitlines()
        assert lines[0] == f"{'Name':<33}   ID Uptime"
        assert lines[2] == f"{'sleeper':<33}    1  0:01:30"
        assert " up  0:01, sleeper (1)" in await trio.to_thread.run_sync(run, host, "uptime", "-s", "sleeper")


@pytest.mark.parametrize(
    ("ns", "long", "short"),
    [
        (0, " 0:00:00", " 0:00"),
        (3661 * S, " 1:01:01", " 1:01"),
        (86400 * S, "1 day,  0:00:00", "1 day,  0:00"),
        ((3 * 86400 + 86399) * S, "3 days, 23:59:59", "3 days, 23:59"),
    ],
)
def test_uptimes_are_written_as_xl_does(ns: int, long: str, short: str) -> None:
    assert (format_uptime(ns), format_uptime(ns, short=True)) == (long, short)
