"""Debian's stock kernel with its own frontends, on our backends: it must work as on any Xen."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
from pathlib import Path

import dpkt
import pytest
import trio
from conftest import Build, paravirt

from guest_kernel.net import checksum
from hypervisor.machine.clock import VIRTUAL_EPOCH_NS
from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.xl_config import load_config

MIB = 1 << 20
PEER = """
from guest_kernel.guest import Guest


class Peer(Guest):
    async def main(self):
        eth0 = await self.net.interface("eth0")
        eth0.configure("10.0.0.1/24")
        while True:
            try:
                took = await self.net.ping("10.0.0.2")
                break
            except OSError:
                await self.sleep(0.1)
        self.print(f"ping: {took > 0}")
        await self.sleep(10)
"""


def test_disk_and_network(build: Build, tmp_path: Path) -> None:
    """The kernel of every Debian machine, its disks and its network.

    64 MiB read with the right hash, a file system that is clean afterwards, discards that make the images smaller
    (a part of one, all of one, none where they are not to be), secure ones where they are promised, a Python guest on
    the same bridge.
    """
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here (Debian: e2fsprogs)")
    names = ("random", "ext4", "full", "emptied", "fixed", "vouched")
    random_disk, ext4, full, emptied, fixed, vouched = (tmp_path / f"{name}.img" for name in names)
    data = random.Random(1).randbytes(MIB) * 64
    random_disk.write_bytes(data)
    ext4.write_bytes(bytes(32 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-F", ext4], check=True, capture_output=True)
    linux = build(
        """
        dmesg | grep blkfront
        echo "hash: $(dd if=/dev/xvda bs=1M 2>/dev/null | md5sum)"
        mount -t ext4 /dev/xvdb /mnt
        dd if=/dev/xvda of=/mnt/copy bs=1M count=8 2>/dev/null
        mkdir /mnt/dir && echo hello > /mnt/dir/file && sync && rm /mnt/copy
        dd if=/dev/xvda of=/mnt/kept bs=64k count=32 2>/dev/null
        dd if=/dev/xvda of=/mnt/lost bs=1M count=16 2>/dev/null && sync && rm /mnt/lost && sync
        fstrim -v /mnt
        umount /mnt
        blkdiscard -o 1048576 -l 2097152 /dev/xvdc && md5sum < /dev/xvdc
        blkdiscard /dev/xvdd && echo "step: emptied"
        blkdiscard -o 1048576 -l 1048576 /dev/xvde || echo "step: refused"
        blkdiscard -s /dev/xvdc || echo "step: nobody promises it"
        blkdiscard -s -o 1048576 -l 1048576 /dev/xvdf && echo "step: gone for good"
        blkdiscard -s /dev/xvdg && echo "step: forgotten"
        ip link set eth0 up
        ip addr add 10.0.0.2/24 dev eth0
        ping -c 2 10.0.0.1
        """,
        flavour="amd64",
    )
    for image in (full, emptied, fixed, vouched):
        image.write_bytes(data[: 4 * MIB])
    disks = f'disk = ["{random_disk},raw,xvda,r", "{ext4},raw,xvdb,w", "{full},raw,xvdc,w"'
    disks += f', "{emptied},raw,xvdd,w", "{fixed},raw,xvde,w,no-discard"'
    disks += f', "{vouched},raw,xvdf,w,discard-secure=1", "4M,memory,xvdg"]'
    config = linux.config(tmp_path / "linux.cfg", disks, 'vif = ["bridge=xenbr0"]')
    (tmp_path / "peer.py").write_text(PEER)
    peer = tmp_path / "peer.cfg"
    peer.write_text('name = "peer"\nkernel = "peer.py"\nmemory = 8\nvif = ["bridge=xenbr0"]\n')
    done = paravirt("run", config, peer)
    assert done.exit_code == 0, done.output
    assert f"hash: {hashlib.md5(data).hexdigest()}" in done.output
    for name in ("xvda", "xvdb", "xvdc"):
        asked = re.search(f"blkfront: {name}: .*persistent grants: enabled; indirect descriptors: enabled", done.output)
        assert asked, done.output
    assert "2 packets transmitted, 2 packets received, 0% packet loss" in done.output
    assert "peer     | ping: True\n" in done.output
    checked = subprocess.run(["e2fsck", "-fn", ext4], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    listed = subprocess.run(["debugfs", "-R", "stat kept", ext4], capture_output=True, text=True, check=True)
    assert f"Size: {2 * MIB}" in listed.stdout
    shown = subprocess.run(["debugfs", "-R", "cat dir/file", ext4], capture_output=True, text=True, check=True)
    assert shown.stdout == "hello\n"
    left = data[:MIB] + bytes(2 * MIB) + data[3 * MIB : 4 * MIB]
    assert full.read_bytes() == left
    assert hashlib.md5(left).hexdigest() in done.output
    # An image has 512 bytes for each of its blocks; those that were discarded it has no more.
    assert full.stat().st_blocks * 512 <= 2 * MIB + 65536
    assert re.search(r"/mnt: \d+ bytes trimmed", done.output), done.output
    assert ext4.stat().st_blocks * 512 < 16 * MIB
    assert "step: emptied" in done.output
    assert (emptied.stat().st_blocks, emptied.read_bytes()) == (0, bytes(4 * MIB))
    assert "step: refused" in done.output
    assert fixed.read_bytes() == data[: 4 * MIB]
    for step in ("nobody promises it", "gone for good", "forgotten"):
        assert f"step: {step}" in done.output
    assert vouched.read_bytes() == data[:MIB] + bytes(MIB) + data[2 * MIB : 4 * MIB]


def test_tcp_between_two(build: Build, tmp_path: Path) -> None:
    """Linux's own stack at both ends, our netback in between; a queue for each vCPU, packets that nobody cuts."""
    server = build(
        """
        ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0
        echo "queues: $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
        echo "server: $(nc -l -p 5000 | md5sum)"
        """,
        "server",
    )
    client = build(
        """
        ip link set eth0 up; ip addr add 10.0.0.3/24 dev eth0
        dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
        echo "client: $(md5sum < /tmp/data)"
        until ping -c 1 10.0.0.2 >/dev/null; do sleep 1; done
        until nc 10.0.0.2 5000 < /tmp/data; do sleep 1; done
        """,
        "client",
    )
    configs = [
        kernel.config(tmp_path / f"{name}.cfg", f"vcpus = {vcpus}", 'vif = ["bridge=xenbr0"]', memory=128)
        for name, kernel, vcpus in (("server", server, 2), ("client", client, 1))
    ]
    capture = tmp_path / "all.pcapng"
    done = paravirt("run", "--capture", capture, *configs)
    assert done.exit_code == 0, done.output
    sums = dict(re.findall(r"(server|client): ([0-9a-f]{32})", done.output))
    assert len(sums) == 2
    assert sums["server"] == sums["client"]
    assert "queues: 2" in done.output
    with capture.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcapng.Reader(file)]
    assert max(map(len, frames)) > 20000
    assert all(map(checksum.verify, frames))


def test_reboot_is_another_life_and_a_panic_its_end(build: Build, tmp_path: Path) -> None:
    """The disk remembers the first life; the second one, of the same host, ends in a crash."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(MIB))
    linux = build(
        """
        if [ "$(dd if=/dev/xvda bs=5 count=1 2>/dev/null)" = again ]; then
            echo "the second life, $(date -u +%Y)"
            echo 1 > /proc/sys/kernel/panic
            echo c > /proc/sysrq-trigger
        else
            echo "the first life"
            echo -n again | dd of=/dev/xvda conv=fsync 2>/dev/null
            reboot -f
        fi
        """
    )
    done = paravirt("run", linux.config(tmp_path / "linux.cfg", f'disk = ["{disk},raw,xvda,w"]'))
    assert done.exit_code == 1
    assert done.output.count("the first life") == 1
    assert "the second life, 2023" in done.output
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.output
    # Its registers, which it prints itself.
    assert re.search(r"RIP: [0-9a-f]{4}:0x[0-9a-f]+\n", done.output)
    assert re.search(r"R13: [0-9a-f]{16} R14: [0-9a-f]{16} R15: [0-9a-f]{16}\n", done.output)
    assert re.search(r"linux +2 +crash \(2 lives\)", done.output)
    assert re.search(r"paravirt: linux crashed: \[.*\] Kernel panic - not syncing: sysrq triggered crash", done.output)


def test_processes_signals_and_the_clock(build: Build, tmp_path: Path) -> None:
    """With two vCPUs: both work, processes are forked and get signals, timers fire in time, idling loses no time."""
    linux = build(
        """
        (trap 'echo "step: told by a signal"; exit' USR1; while true; do sleep 1; done) &
        sleep 2; kill -USR1 $!; wait $!
        timeout 1 sleep 1000; echo "step: ended with $?"
        for cpu in 0 1; do (taskset $((1 << cpu)) sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done') & done
        wait
        sleep 1
        echo "step: $(grep -c '^cpu[01] [1-9]' /proc/stat) vCPUs have worked"
        seconds() { date +%s; }
        up() { cut -d. -f1 /proc/uptime; }
        before=$(seconds) up_before=$(up)
        sleep 1000
        echo "step: $(($(seconds) - before)) seconds, $(($(up) - up_before)) of them up, now $(seconds)"
        """
    )
    lines: list[str] = []
    host = Host(pcpus=2, consoles=ConsoleLog(lines.append))
    config = linux.config(tmp_path / "linux.cfg", "vcpus = 2")
    result = trio.run(host.run, [load_config(config)])
    assert result.exit_code == 0
    assert host.leaks() == []
    text = "".join(lines)
    assert "step: told by a signal\n" in text
    assert "step: ended with 143\n" in text
    assert "step: 2 vCPUs have worked\n" in text
    found = re.search(r"step: (\d+) seconds, (\d+) of them up, now (\d+)\n", text)
    assert found, text
    assert found[1] in ("1000", "1001")
    assert found[2] in ("1000", "1001")
    # The host's own clock, when it was switched off a moment later.
    assert 0 <= (VIRTUAL_EPOCH_NS + host.hv.clock.now) / 1e9 - int(found[3]) < 2


def test_the_same_seed_gives_the_same_boot(build: Build, tmp_path: Path) -> None:
    """Console and trace, byte for byte; with two vCPUs."""
    linux = build("nproc; ls /sys/bus/xen/devices; dd if=/dev/urandom bs=64 count=1 2>/dev/null | md5sum")
    config = linux.config(tmp_path / "linux.cfg", "vcpus = 2", 'vif = ["bridge=xenbr0"]')
    consoles, traces = [], []
    for name in ("one", "two"):
        trace = tmp_path / f"{name}.trace"
        done = paravirt("run", "--seed", "7", "--trace", trace, config)
        assert done.exit_code == 0, done.output
        # The closing table tells how long it took by the wall clock.
        consoles.append([line for line in done.output.splitlines() if " | " in line])
        traces.append(trace.read_bytes())
    assert consoles[0] == consoles[1]
    assert "linux    | 2" in consoles[0]
    assert traces[0] == traces[1]
