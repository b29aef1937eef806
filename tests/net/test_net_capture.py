"""Captures of bridges: what stands in them, read by dpkt, and by tshark where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dpkt
import pytest
from dpkt import pcapng
from test_net_host import ECHO_CLIENT, ECHO_SERVER, SENDER, Lab

from guest_kernel.net import checksum
from toolstack.capture import INBOUND, OUTBOUND, Capture
from toolstack.errors import UsageError


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


class Packet:
    def __init__(self, port: str, inbound: bool, ns: int, frame: bytes) -> None:
        self.port, self.inbound, self.ns, self.frame = port, inbound, ns, frame

    @property
    def key(self) -> tuple[str, bool, bytes]:
        return self.port, self.inbound, self.frame


def read(path: Path) -> Iterator[Packet]:
    """Read a capture block by block, as the specification has it."""
    data, names = path.read_bytes(), []
    at = 0
    while at < len(data):
        kind, size = int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 4 : at + 8], "little")
        assert size % 4 == 0
        assert data[at + size - 4 : at + size] == data[at + 4 : at + 8]
        raw = data[at : at + size]
        if kind == pcapng.PCAPNG_BT_SHB:
            assert at == 0
            assert pcapng.SectionHeaderBlockLE(raw).sec_len == -1
        elif kind == pcapng.PCAPNG_BT_IDB:
            options = {opt.code: opt.data for opt in pcapng.InterfaceDescriptionBlockLE(raw).opts}
            assert options[pcapng.PCAPNG_OPT_IF_TSRESOL] == b"\x09"
            names.append(bytes(options[pcapng.PCAPNG_OPT_IF_NAME]).decode())
        else:
            assert kind == pcapng.PCAPNG_BT_EPB
            block = pcapng.EnhancedPacketBlockLE(raw)
            (way,) = [bytes(opt.data) for opt in block.opts if opt.code == 2]
            assert way in (INBOUND, OUTBOUND)
            ns = block.ts_high << 32 | block.ts_low
            yield Packet(names[block.iface_id], way == INBOUND, ns, bytes(block.pkt_data))
        at += size
    assert len(set(names)) == len(names)


def tshark(path: Path) -> list[dict[str, Any]]:
    """Return what tshark says of each packet; every checksum is verified."""
    program = shutil.which("tshark")
    if program is None:
        pytest.skip("tshark is not installed")
    fields = ("frame.interface_name", "frame.packet_flags_direction", "_ws.malformed", "udp.checksum.status")
    command = [program, "-n", "-r", path, "-T", "json", "-o", "udp.check_checksum:TRUE"]
    for field in fields:
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    complaints = [line for line in done.stderr.splitlines() if "Running as user" not in line]
    assert not complaints
    layers = [packet["_source"]["layers"] for packet in json.loads(done.stdout)]
    return [{field: layer.get(field, [None])[0] for field in fields} for layer in layers]


@pytest.mark.parametrize("where", ["capture", "nic"])
def test_everything_between_two_guests(lab: Lab, where: str) -> None:
    file = lab.directory / "all.pcapng"
    options: dict[str, Any] = {"capture": file} if where == "capture" else {}
    nics = ["xenbr0=none"] if where == "capture" else [f"xenbr0=pcap:{file}"]
    assert lab.run(ECHO_CLIENT, ECHO_SERVER, nics=nics, **options).exit_code == 0, lab.text
    packets = list(read(file))
    assert {packet.port for packet in packets} == {"vif1.0", "vif2.0", "eth0"}
    # Datagrams that the bridge can place came in at one port and went out at the other, each once, and nowhere else.
    ports = {port: [p for p in packets if p.port == port] for port in ("vif1.0", "vif2.0", "eth0")}
    questions = [p.frame for p in ports["vif1.0"] if p.inbound and dpkt.ethernet.Ethernet(p.frame).type == 0x0800]
    assert len(questions) >= 303
    assert [p.frame for p in ports["vif2.0"] if not p.inbound and p.frame in set(questions)] == questions
    (broadcast,) = [p for p in ports["eth0"] if p.frame.endswith(b"for all")]
    assert not broadcast.inbound
    assert all(checksum.verify(packet.frame) for packet in packets if packet.frame[12:14] == b"\x08\0")
    times = [packet.ns for packet in packets]
    assert times == sorted(times)
    assert times[-1] > times[0] > 10**18


def test_tshark_reads_it_without_a_complaint(lab: Lab) -> None:
    file = lab.directory / "all.pcapng"
    assert lab.run(ECHO_CLIENT, ECHO_SERVER, capture=file).exit_code == 0, lab.text
    shown = tshark(file)
    packets = list(read(file))
    assert [packet["frame.interface_name"] for packet in shown] == [packet.port for packet in packets]
    ways = ["1" if packet.inbound else "2" for packet in packets]
    assert [str(int(packet["frame.packet_flags_direction"], 0)) for packet in shown] == ways
    assert not any(packet["_ws.malformed"] for packet in shown)
    assert {packet["udp.checksum.status"] for packet in shown} == {None, "1"}


def test_what_the_fast_way_would_have_carried(lab: Lab) -> None:
    """Guests that stage their buffers are recorded as well as others."""
    file = lab.directory / "all.pcapng"
    receiver = """
        seen = []
        self.device.received = lambda frame, validated: seen.append(frame)
        while len(seen) < 4000:
            await self.sleep(0.001)
    """
    assert lab.run(SENDER, receiver, capture=file).exit_code == 0, lab.text
    packets = list(read(file))
    for port, inbound in (("vif1.0", True), ("vif2.0", False)):
        numbers = [int.from_bytes(p.frame[14:18], "big") for p in packets if (p.port, p.inbound) == (port, inbound)]
        assert numbers == list(range(4000))


def test_the_same_run_makes_the_same_file(lab: Lab) -> None:
    files = [lab.directory / f"{number}.pcapng" for number in range(2)]
    for file in files:
        lab.run(ECHO_CLIENT, ECHO_SERVER, capture=file, schedule="random:5")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_name_of_classic_pcap_gets_the_wire_alone(lab: Lab) -> None:
    file = lab.directory / "wire.pcap"
    assert lab.run(ECHO_CLIENT, ECHO_SERVER, nics=[f"xenbr0=pcap:{file}"]).exit_code == 0
    with file.open("rb") as opened:
        assert len(list(dpkt.pcap.Reader(opened))) < 10


def test_one_file_for_two_captures_is_refused(lab: Lab) -> None:
    file = lab.directory / "all.pcapng"
    with pytest.raises(UsageError, match="named twice"):
        lab.run(ECHO_SERVER, nics=[f"xenbr0=pcap:{file}"], capture=file)
    assert not file.exists()


def test_a_disk_that_is_full(lab: Lab) -> None:
    """The network goes on; the person is told, once."""
    result = lab.run(ECHO_CLIENT, ECHO_SERVER, capture=Path("/dev/full"))
    assert result.exit_code == 0
    assert result.unfinished == ["capture file /dev/full: No space left on device; it is not complete"]


def test_a_frame_of_any_length(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "x.pcapng")
    capture.now = lambda: 1_700_000_000_123_456_789
    watch = capture.watcher("xenbr0")
    frames = [os.urandom(size) for size in (14, 15, 16, 17, 65535)]
    for frame in frames:
        watch("vif1.0", True, frame)
    capture.close()
    packets = list(read(capture.path))
    assert [packet.frame for packet in packets] == frames
    assert {packet.ns for packet in packets} == {1_700_000_000_123_456_789}
