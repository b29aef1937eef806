"""The network on whole hosts: real hypercalls, real page tables, xenstore and all."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dpkt
import pytest
import trio

from guest_kernel.net import checksum
from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.preparation import parse_nic
from toolstack.report import HostResult
from toolstack.xl_config import load_config

HEAD = """
from guest_kernel.guest import Guest

KIND = b"\\x88\\xb5"

class Main(Guest):
    async def main(self):
        self.device = (await self.net.interface("eth0")).device
        await self.work()

    async def work(self):
"""


class Lab:
    """Guests `a`, `b`, ... with the addresses 00:16:3e:00:00:0N, each given by the body of its `work`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []

    def run(
        self, *bodies: str, nics: Sequence[str] = (), vifs: Sequence[str] = (), extra: str = "", **options: Any
    ) -> HostResult:
        """`vifs`: the bridge, and more words, of each guest's interface; `extra`: their command line."""
        configs = []
        for number, body in enumerate(bodies, 1):
            name = "abcd"[number - 1]
            (self.directory / f"{name}.py").write_text(HEAD + textwrap.indent(textwrap.dedent(body), " " * 8))
            file = self.directory / f"{name}.cfg"
            words = vifs[number - 1] if vifs else "xenbr0"
            file.write_text(
                f'name = "{name}"\nmemory = 8\nkernel = "{name}.py"\n'
                f'extra = "{extra}"\n'
                f'vif = ["mac=00:16:3e:00:00:{number:02x},bridge={words}"]\n'
            )
            configs.append(load_config(file))
        self.host = Host(consoles=ConsoleLog(self.lines.append), nics=[parse_nic(nic) for nic in nics], **options)
        result = trio.run(self.host.run, configs)
        assert not self.host.leaks()
        return result

    @property
    def text(self) -> str:
        return "".join(self.lines)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


ECHO_SERVER = """
    (await self.net.interface("eth0")).configure("10.0.0.2/24")
    socket = self.net.udp_socket(7)
    while True:
        data, sender = await socket.recvfrom()
        await socket.sendto(data, sender)
        if data == b"bye":
            break
"""
ECHO_CLIENT = """
    (await self.net.interface("eth0")).configure("10.0.0.1/24")
    rtt = await self.net.ping("10.0.0.2")
    self.print("ping", rtt)
    socket = self.net.udp_socket()
    for number in range(300):
        data = number.to_bytes(2, "big") * (1 + 7 * number % 700)
        await socket.sendto(data, ("10.0.0.2", 7))
        assert await socket.recvfrom() == (data, ("10.0.0.2", 7)), number
    await socket.sendto(b"for all", ("10.0.0.255", 9))
    await socket.sendto(b"bye", ("10.0.0.2", 7))
    await socket.recvfrom()
    self.print("all there")
"""


@pytest.mark.parametrize("schedule", ["fifo", "random:3"])
def test_ping_and_datagrams_and_the_wire(lab: Lab, schedule: str) -> None:
    capture = lab.directory / "wire.pcap"
    result = lab.run(ECHO_CLIENT, ECHO_SERVER, nics=[f"xenbr0=pcap:{capture}"], schedule=schedule)
    assert result.exit_code == 0, lab.text
    assert "all there" in lab.text
    with capture.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcap.Reader(file)]
    packets = [dpkt.ethernet.Ethernet(frame) for frame in frames]
    assert {packet.type for packet in packets} == {dpkt.ethernet.ETH_TYPE_ARP, dpkt.ethernet.ETH_TYPE_IP}
    (broadcast,) = [frame for frame in frames if frame.endswith(b"for all")]
    assert checksum.verify(broadcast)
    assert broadcast[40:42] != b"\0\0"
    # What went from guest to guest did not go to the wire, once the bridge knew them.
    assert len(frames) < 10
    if shutil.which("tcpdump"):
        shown = subprocess.run(["tcpdump", "-nvv", "-r", capture], capture_output=True, text=True, check=True).stdout
        assert "Request who-has 10.0.0.2" in shown
        assert "udp sum ok" in shown
        assert "bad udp cksum" not in shown
    else:
        assert capture.read_bytes()[:4] in (b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d")


SENDER = """
    to = bytes([0, 0x16, 0x3e, 0, 0, 2])
    frames = [(to + self.device.mac + KIND + n.to_bytes(4, "big")).ljust(60 + n % 1400, b"x") for n in range(4000)]
    if "long" in "{words}":
        frames = [frame * (1 + n % 40) for n, frame in enumerate(frames[:400])]
    sent = 0
    while sent < len(frames):
        await self.device.wait_for_room()
        count = self.device.transmit_many(frames[sent:sent + 30])
        sent += count
        await self.sleep(0.0001)
    self.print("sent", sent)
"""


@pytest.mark.parametrize("words", ["", "long"])
def test_many_frames_arrive_intact_and_in_order(lab: Lab, words: str) -> None:
    receiver = """
        import zlib
        total = 400 if "long" in "{words}" else 4000
        seen = []
        self.device.received = lambda frame, validated: seen.append((int.from_bytes(frame[14:18], "big"), len(frame)))
        while len(seen) < total:
            await self.sleep(0.001)
        self.print([n for n, _ in seen] == list(range(total)))
        sizes = [(60 + n % 1400) * (1 + n % 40 if total == 400 else 1) for n in range(total)]
        self.print([size for _, size in seen] == sizes)
    """
    result = lab.run(SENDER.replace("{words}", words), receiver.replace("{words}", words))
    assert result.exit_code == 0, lab.text
    assert lab.text.count("True") == 2, lab.text
    sender = next(domain for domain in result.domains if domain.name == "a")
    assert sender.usage.packets >= (400 if words else 4000)


@pytest.mark.parametrize("after", [0, 1, 100, 1000])
def test_a_receiver_that_crashes(lab: Lab, after: int) -> None:
    receiver = f"""
        seen = []
        self.device.received = lambda frame, validated: seen.append(frame)
        while len(seen) < {after}:
            await self.sleep(0.0001)
        raise RuntimeError("that is enough")
    """
    result = lab.run(SENDER, receiver)
    ends = {domain.name: domain.reason for domain in result.domains}
    assert ends == {"Domain-0": "poweroff", "a": "poweroff", "b": "crash"}
    assert "sent 4000" in lab.text


def test_a_sender_that_crashes_with_a_full_ring(lab: Lab) -> None:
    sender = """
        to = bytes([0, 0x16, 0x3e, 0, 0, 2])
        frames = [(to + self.device.mac + KIND).ljust(1500, b"x")] * 256
        for _ in range(3):
            self.device.transmit_many(frames)
            await self.device.wait_for_room()
        self.device.transmit_many(frames)
        raise RuntimeError("that is enough")
    """
    receiver = """
        await self.sleep(0.1)
        self.print("alive")
    """
    result = lab.run(sender, receiver)
    ends = {domain.name: domain.reason for domain in result.domains}
    assert ends == {"Domain-0": "poweroff", "a": "crash", "b": "poweroff"}
    assert "alive" in lab.text


def test_a_hostile_guest_on_a_real_host(lab: Lab) -> None:
    """Its ring is closed; its neighbours and dom0 go on."""
    hostile = """
        front = self.device
        front.queues[0].tx.ring.shared[0] = 100000
        self.kernel.events.notify(front.queues[0].tx.port)
        await self.sleep(0.01)
        self.print("state", await self.kernel.xenbus.read("device/vif/0/state"))
    """
    result = lab.run(hostile, ECHO_SERVER, ECHO_CLIENT.replace("10.0.0.1/", "10.0.0.3/"))
    assert result.exit_code == 0, lab.text
    assert "all there" in lab.text
    assert "state 4" not in lab.text


def test_vlans_and_a_mirror_of_a_configuration(lab: Lab) -> None:
    """Two guests talk in VLAN 10; one outside hears nothing and is told what it lost; the analyser sees all."""
    outside = """
        seen = []
        self.device.received = lambda frame, validated: seen.append(frame)
        tag = b"\\x81\\0\\0\\x0a"
        for _ in range(7):
            self.device.transmit(b"\\xff" * 6 + self.device.mac + tag + KIND + bytes(46))
        await self.sleep(0.1)
        self.print("outside heard", len(seen))
    """
    analyser = outside.replace("range(7)", "range(3)").replace("outside heard", "analyser heard")
    bodies = (ECHO_CLIENT, ECHO_SERVER, outside, analyser)
    result = lab.run(*bodies, vifs=["xenbr0.10", "xenbr0.10", "xenbr0.20", "xenbr0,mirror=1"])
    ends = {domain.name: domain for domain in result.domains}
    assert "outside heard 0" in lab.text
    assert "analyser heard 0" not in lab.text
    assert ends["c"].usage.dropped == 7
    assert ends["d"].usage.dropped == 3
    assert ends["a"].usage.dropped == ends["b"].usage.dropped == 0
    assert "all there" in lab.text
