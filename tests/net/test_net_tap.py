"""A TAP interface as wire: real stacks of Linux, in network namespaces, talk through two vifs and a guest."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolstack.errors import UsageError
from toolstack.host import Host
from toolstack.preparation import parse_nic
from toolstack.tap import DEVICE, IFF_NO_PI, IFF_TAP, IFREQ, TUNSETIFF, TapWire

OWN = f"pvt{os.getpid()}"
"""Other runs of the tests may have interfaces at the same time."""
LEFT, RIGHT, PROBE, ONE = f"{OWN}-l", f"{OWN}-r", f"{OWN}-p", f"{OWN}-o"


@pytest.fixture(scope="module")
def linux() -> None:
    """Skip where there can be no TAP interfaces and network namespaces."""
    if os.geteuid():
        pytest.skip("only root makes TAP interfaces and network namespaces")
    try:
        file = os.open(DEVICE, os.O_RDWR)
        try:
            fcntl.ioctl(file, TUNSETIFF, IFREQ.pack(PROBE.encode(), IFF_TAP | IFF_NO_PI))
        finally:
            os.close(file)
        subprocess.run(["ip", "netns", "add", PROBE], check=True, capture_output=True)
        subprocess.run(["ip", "netns", "del", PROBE], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no TAP interfaces or network namespaces here: {error}")


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def inside(namespace: str, *words: str, **options: object) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", namespace, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload,no-any-return]


class Between:
    """A host with a bridge to each namespace, and a guest that carries frames from one to the other."""

    def __init__(self, directory: Path, guest: str, vifs: str) -> None:
        (directory / "g.py").write_text(guest)
        (directory / "g.cfg").write_text(f'name = "g"\nmemory = 16\nkernel = "g.py"\nvif = {vifs}\n')
        command = [str(Path(sys.executable).with_name("paravirt")), "run", "g.cfg", "--time", "real"]
        command += ["--nic", f"xenbr0=tap:{LEFT}", "--nic", f"xenbr1=tap:{RIGHT}", "--capture", "all.pcapng"]
        self.process = subprocess.Popen(
            command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for tap, address in ((LEFT, "10.77.0.1/24"), (RIGHT, "10.77.0.2/24")):
            deadline = time.monotonic() + 30
            while not Path(f"/sys/class/net/{tap}").exists():
                assert self.process.poll() is None, self.process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            ip("netns", "add", tap)
            ip("link", "set", tap, "netns", tap)
            ip("-n", tap, "addr", "add", address, "dev", tap)
            ip("-n", tap, "link", "set", "lo", "up")
            ip("-n", tap, "link", "set", tap, "up")

    def end(self) -> str:
        self.process.terminate()
        return self.process.communicate(timeout=30)[0]


FORWARDER = """
from guest_kernel.guest import Guest

class Forwarder(Guest):
    async def main(self):
        left = (await self.net.interface("eth0")).device
        right = (await self.net.interface("eth1")).device
        left.received_raw = right.transmit
        right.received_raw = left.transmit
        self.print("forwarding")
        while True:
            await self.sleep(1)
"""


@pytest.fixture
def between(linux: None, tmp_path: Path) -> Iterator[Between]:
    host = Between(tmp_path, FORWARDER, '["bridge=xenbr0", "bridge=xenbr1"]')
    try:
        yield host
    finally:
        if host.process.returncode is None:
            host.process.kill()
            host.process.communicate()
        for name in (LEFT, RIGHT):
            ip("netns", "del", name, check=False)


SERVER = """
import hashlib, socket
listener = socket.create_server(("10.77.0.2", 7777))
peer, _ = listener.accept()
seen = hashlib.sha256()
while data := peer.recv(65536):
    seen.update(data)
peer.sendall(seen.digest())
"""
CLIENT = """
import hashlib, random, socket, time
data = random.Random(1).randbytes({size})
for attempt in range(50):
    try:
        peer = socket.create_connection(("10.77.0.2", 7777), timeout=20)
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
peer.sendall(data)
peer.shutdown(socket.SHUT_WR)
print("same" if peer.recv(32, socket.MSG_WAITALL) == hashlib.sha256(data).digest() else "not the same")
"""


def test_ping_and_tcp_between_two_namespaces(between: Between) -> None:
    """Linux's own stacks at the ends: ICMP, and 4 MiB over TCP, unharmed."""
    # The first tries may be lost while the guest boots; the interface is there from the beginning.
    ping, _ = inside(LEFT, "ping", "-c", "5", "-i", "0.3", "-W", "5", "10.77.0.2").communicate(timeout=60)
    assert " 0 received" not in ping, ping
    ping, _ = inside(LEFT, "ping", "-c", "5", "-i", "0.3", "-W", "5", "-s", "1400", "10.77.0.2").communicate(timeout=60)
    assert " 0% packet loss" in ping, ping
    server = inside(RIGHT, sys.executable, "-c", SERVER)
    said, _ = inside(LEFT, sys.executable, "-c", CLIENT.format(size=4 << 20)).communicate(timeout=60)
    assert said == "same\n", said
    assert not server.communicate(timeout=10)[0]
    text = between.end()
    assert "g" in text
    assert "Traceback" not in text


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 is not installed")
def test_iperf3_for_two_seconds(between: Between) -> None:
    """Several connections at once, in both directions: none is lost."""
    server = inside(RIGHT, "iperf3", "-s", "-1")
    time.sleep(2)
    said, _ = inside(LEFT, "iperf3", "-c", "10.77.0.2", "-t", "2", "-P", "3", "--bidir", "-J").communicate(timeout=60)
    report = json.loads(said)
    assert "error" not in report, report
    assert report["end"]["sum_received"]["bytes"] > 1 << 20
    assert report["end"]["sum_received_bidir_reverse"]["bytes"] > 1 << 20
    server.communicate(timeout=10)
    assert between.process.poll() is None


def test_an_interface_that_goes_away(between: Between) -> None:
    ip("-n", LEFT, "link", "del", LEFT)
    time.sleep(0.5)
    assert between.process.poll() is None
    text = between.end()
    assert between.process.returncode == 2, text
    assert f"the TAP interface '{LEFT}' is not there any more" in text
    assert "Traceback" not in text


@pytest.mark.usefixtures("linux")
def test_an_interface_in_use_or_of_another_kind() -> None:
    wire = TapWire(ONE)
    try:
        with pytest.raises(UsageError, match=f"'{ONE}' cannot be used: Device or resource busy"):
            TapWire(ONE)
    finally:
        wire.close()
    with pytest.raises(UsageError, match="'lo' cannot be used: an interface of this name is no TAP"):
        TapWire("lo")


def test_a_tap_needs_real_time() -> None:
    with pytest.raises(UsageError, match="needs --time real"):
        Host(nics=[parse_nic("xenbr0=tap:x")])


@pytest.mark.parametrize("name", ["", "a/b", "a b", "sixteen-letters-", "\u00e4" * 8])
def test_names_that_no_interface_has(name: str) -> None:
    with pytest.raises(UsageError, match="--nic"):
        parse_nic(f"xenbr0=tap:{name}")
