"""A whole Debian with systemd on our disk: to the login prompt, logged in at the console, and down again.

PARAVIRT_LINUX_SYSTEM names a disk image that `examples/linux/rootfs.sh` has made. It takes some minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tty
from pathlib import Path

import pytest
from conftest import ROOT, Build
from terminal import SECONDS, Terminal

from toolstack.control.client import Control
from toolstack.control.protocol import ControlError, ProtocolError

VARIABLE = "PARAVIRT_LINUX_SYSTEM"
PEER = """
from guest_kernel.guest import Guest


class Peer(Guest):
    async def main(self):
        (await self.net.interface("eth0")).configure("10.0.0.1/24")
        while True:
            await self.sleep(1000)
"""


def console_of(socket: Path, name: str, process: subprocess.Popen[str]) -> str:
    """The path of the console's pseudo-terminal, as soon as the host has one."""
    while process.poll() is None:
        try:
            with Control(socket) as control:
                return str(control.ask("console", domain=name)["tty"])
        except (ControlError, ProtocolError, OSError):
            time.sleep(0.1)
    raise AssertionError(process.communicate()[0])


def test_systemd_to_login_and_down(build: Build, tmp_path: Path) -> None:
    if VARIABLE not in os.environ:
        pytest.skip(f"no disk image of a Debian ({VARIABLE} names one; examples/linux/rootfs.sh makes it)")
    disk = tmp_path / "debian.img"
    shutil.copyfile(os.environ[VARIABLE], disk)
    linux = build("", "debian")
    settings = (f'disk = ["{disk},raw,xvda,w"]', 'vif = ["bridge=xenbr0"]')
    config = linux.config(tmp_path / "debian.cfg", *settings, memory=512, extra="root=/dev/xvda")
    (tmp_path / "peer.py").write_text(PEER)
    peer = tmp_path / "peer.cfg"
    peer.write_text('name = "peer"\nkernel = "peer.py"\nmemory = 8\nvif = ["bridge=xenbr0"]\n')
    command = [sys.executable, "-c", "from toolstack.cli import main; main()", "run", "--quiet", "--pty"]
    process = subprocess.Popen(
        [*command, "--control", str(tmp_path / "control"), str(config), str(peer)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        fd = os.open(console_of(tmp_path / "control", "debian", process), os.O_RDWR | os.O_NOCTTY)
        tty.setraw(fd)
        terminal = Terminal(fd)
        terminal.expect("paravirt login: ")
        terminal.type("root\n")
        terminal.expect(r"root@paravirt:~# ")
        terminal.type(
            "systemctl is-system-running --wait; systemctl --failed --no-legend | wc -l; echo done-$((1+1))\n"
        )
        assert re.search(r"running\s+0\s+done-2", terminal.expect("done-2"))
        # udev gives the interface a name of its own.
        terminal.type("nic=$(basename /sys/class/net/e*); ip link set $nic up; ip addr add 10.0.0.2/24 dev $nic\n")
        terminal.type("ip -brief addr show dev $nic\n")
        terminal.type("ping -c 3 -q 10.0.0.1 | grep received; echo done-$((1+2))\n")
        shown = terminal.expect("done-3")
        assert "3 received" in shown
        assert re.search(r"e\w+ +UP +10\.0\.0\.2/24", shown)
        with Control(tmp_path / "control") as control:
            control.ask("shutdown", domain="peer")
        terminal.type("dd if=/dev/zero bs=64k count=16 2>/dev/null | tee data | md5sum; sync; echo done-$((2+2))\n")
        assert "b6d81b360a5672d80c27430f39153e2c" in terminal.expect("done-4")
        terminal.type("systemctl poweroff\n")
        output, _ = process.communicate(timeout=SECONDS)
        terminal.close()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    assert re.search(r"debian +1 +poweroff", output)
    checked = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
