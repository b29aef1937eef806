"""A Linux guest that the toolstack takes vCPUs and memory from, and gives them back to, while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, Build

from toolstack.control.client import Control

SECONDS = 180
JOB = """
has() { free -m | sed -n '2s/Mem: *\\([0-9]*\\).*/\\1/p'; }
echo "step: $(nproc) vCPUs"
while [ $(nproc) = 2 ]; do sleep 1; done
echo "step: $(nproc) vCPU"
# The kernel leaves it to udev, which is not here, to use a vCPU that has come back.
until echo 1 > /sys/devices/system/cpu/cpu1/online; do sleep 1; done 2>/dev/null
echo "step: $(nproc) vCPUs again"
before=$(has)
while [ $(has) -gt $((before - 32)) ]; do sleep 1; done
echo "step: $((before - $(has))) MiB less"
while [ $(has) -lt $before ]; do sleep 1; done
echo "step: $((before - $(has))) MiB less again"
while true; do sleep 1000; done
"""


class Steered:
    """A host in a process of its own: what it prints, and its control socket."""

    def __init__(self, directory: Path, config: Path) -> None:
        self.log = directory / "log"
        self.socket = directory / "control"
        command = [sys.executable, "-c", "from toolstack.cli import main; main()", "run", "--pcpus", "2"]
        words = [*command, "--control", str(self.socket), str(config)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def says(self, text: str, times: int = 1) -> None:
        """Wait for a text of the guest, which comes so many times."""
        self._until(lambda: self.log.read_text().count(f"step: {text}\n") >= times, text)

    def ask(self, verb: str, **args: object) -> None:
        with Control(self.socket) as control:
            control.ask(verb, domain="linux", **args)

    def ended(self) -> int:
        self._until(lambda: self.process.poll() is not None, "the end")
        return self.process.wait()

    def _until(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened():
            assert time.monotonic() < deadline, f"{what!r} does not come:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)


def test_vcpus_and_memory_go_and_come_back(build: Build, tmp_path: Path) -> None:
    linux = build(JOB)
    host = Steered(tmp_path, linux.config(tmp_path / "linux.cfg", "vcpus = 2", memory=192))
    try:
        host.says("2 vCPUs")
        host.ask("vcpu-set", count=1)
        host.says("1 vCPU")
        host.ask("vcpu-set", count=2)
        host.says("2 vCPUs again")
        host.ask("mem-set", kib=160 << 10)
        host.says("32 MiB less")
        host.ask("mem-set", kib=192 << 10)
        host.says("0 MiB less again")
        host.ask("reboot")
        host.says("2 vCPUs", times=2)
        host.ask("shutdown")
        assert host.ended() == 0, host.log.read_text()[-3000:]
        assert "poweroff (2 lives)" in host.log.read_text()
    finally:
        host.process.kill()
        host.process.wait()
