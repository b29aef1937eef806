"""Linux's frontend with an XDP program, which needs room before each frame that it receives (xdp-headroom)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Build, paravirt

SOURCE = Path(__file__).with_name("xdp.c")
PEER = """
from guest_kernel.guest import Guest


class Peer(Guest):
    async def main(self):
        eth0 = await self.net.interface("eth0")
        eth0.configure("10.0.0.1/24")
        await self.sleep(40)
"""
JOB = """
ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0
pings() { ping -c 3 -s 1000 10.0.0.1 | grep received; ping -c 3 -s 1472 10.0.0.1 | grep received; }
pings
for how in on off on; do
    xdp eth0 $how; echo "$how: $?"
    pings
done
echo "errors: $(cat /sys/class/net/eth0/statistics/rx_errors)"
"""


def test_an_xdp_program_gets_its_room(build: Build, tmp_path: Path) -> None:
    """The program drops each frame before which there are no 200 bytes, and is loaded, taken off, and loaded again."""
    compiler = shutil.which("cc")
    program = tmp_path / "xdp"
    if compiler is None:
        pytest.skip("no C compiler here")
    made = subprocess.run(
        [compiler, "-static", "-O1", "-o", program, SOURCE], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no static C program can be made here: {made.stderr[-200:]}")
    linux = build(JOB, programs=[program])
    (tmp_path / "peer.py").write_text(PEER)
    (tmp_path / "peer.cfg").write_text('name = "peer"\nkernel = "peer.py"\nmemory = 16\nvif = [""]\n')
    trace = tmp_path / "linux.trace"
    config = linux.config(tmp_path / "linux.cfg", 'vif = [""]')
    done = paravirt("run", "--trace", trace, config, tmp_path / "peer.cfg")
    assert re.findall(r"(on|off): (\d+)", done.output) == [("on", "0"), ("off", "0"), ("on", "0")], done.output
    assert re.findall(r"(\d+) packets received", done.output) == ["3"] * 8
    assert "errors: 0" in done.output
    states = re.findall(r"path=/local/domain/0/backend/vif/1/0 old=\w+ new=(\w+)", paravirt("trace", trace).output)
    assert states[:2] == ["InitWait", "Connected"]
    assert states[2:8] == ["Reconfigured", "Connected"] * 3
