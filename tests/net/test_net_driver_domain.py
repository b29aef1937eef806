"""A driver domain for the network: its kernel carries backend and bridge, and dom0 has no part in the traffic."""

from __future__ import annotations

import textwrap
from pathlib import Path

import dpkt
import pytest
import trio

from toolstack.console_log import ConsoleLog
from toolstack.errors import UsageError
from toolstack.host import Host
from toolstack.preparation import parse_nic
from toolstack.report import HostResult
from toolstack.xl_config import load_config

HEAD = """
from guest_kernel.guest import Guest
from guest_kernel.net.offload import gso

KIND = b"\\x88\\xb5"


class Main(Guest):
    async def main(self):
"""
SWITCH = """
self.print("switching")
await self.kernel.never()
"""
PINGER = """
eth0 = await self.net.interface("eth0")
eth0.configure("10.0.0.1/24")
for _ in range(10):
    await self.net.ping("10.0.0.2")
self.print("answered")
"""
ANSWERER = """
eth0 = await self.net.interface("eth0")
eth0.configure("10.0.0.2/24")
await self.sleep(3)
"""


def run(
    folder: Path, bodies: dict[str, str], vifs: dict[str, str], net: str = "", **options: object
) -> tuple[HostResult, str]:
    """`net` is the driver domain (and its settings); the result, and what was printed."""
    configs = []
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(HEAD + textwrap.indent(body.strip("\n") + "\n", " " * 8))
        settings = f'vif = ["{vifs[name]}"]' if name in vifs else ""
        settings += f"\ndriver_domain = 1\n{net}" if name == "net" else ""
        (folder / f"{name}.cfg").write_text(f'name = "{name}"\nmemory = 16\nkernel = "{name}.py"\n{settings}\n')
        configs.append(load_config(folder / f"{name}.cfg"))
    lines: list[str] = []
    host = Host(consoles=ConsoleLog(lines.append), **options)  # type: ignore[arg-type]
    result = trio.run(host.run, configs)
    assert not host.leaks()
    return result, "".join(lines)


def test_two_guests_of_one_driver_domain(tmp_path: Path) -> None:
    bodies = {"net": SWITCH, "one": PINGER, "two": ANSWERER}
    result, text = run(tmp_path, bodies, dict.fromkeys(("one", "two"), "bridge=xenbr0,backend=net"))
    assert result.exit_code == 0, text
    assert "answered" in text
    usage = {domain.name: domain.usage for domain in result.domains}
    assert usage["one"].packets >= 20
    assert usage["one"].dropped == usage["two"].dropped == 0


def test_its_bridge_is_not_that_of_dom0(tmp_path: Path) -> None:
    """Both are called xenbr0; nothing passes from the one to the other."""
    bodies = {"net": SWITCH, "two": ANSWERER}
    bodies["one"] = """
from guest_kernel.net.errors import PingTimeout
eth0 = await self.net.interface("eth0")
eth0.configure("10.0.0.1/24")
try:
    await self.net.ping("10.0.0.2", timeout_ns=400_000_000)
except PingTimeout:
    self.print("nobody there")
"""
    vifs = {"one": "bridge=xenbr0,backend=net", "two": "bridge=xenbr0"}
    result, text = run(tmp_path, bodies, vifs)
    assert result.exit_code == 0, text
    assert "nobody there" in text


def test_one_that_is_a_guest_of_dom0_too(tmp_path: Path) -> None:
    """The driver domain has an interface of its own on dom0's bridge, beside the guests that it serves."""
    bodies = {
        "net": """
outside = (await self.net.interface("eth0")).device
outside.received_raw = lambda frame, offload: seen.append(offload.gso_size)
seen = []
await self.sleep(0.4)
self.print("from dom0's bridge", len(seen))
await self.kernel.never()
""",
        "one": PINGER,
        "two": ANSWERER,
        "three": """
device = (await self.net.interface("eth0")).device
await self.sleep(0.1)
for _ in range(3):
    device.transmit((b"\\xff" * 6 + device.mac + KIND).ljust(60, b"x"))
await self.sleep(0.1)
""",
    }
    vifs = dict.fromkeys(("one", "two"), "bridge=xenbr0,backend=net") | {
        "net": "bridge=xenbr0",
        "three": "bridge=xenbr0",
    }
    result, text = run(tmp_path, bodies, vifs)
    assert result.exit_code == 0, text
    assert "answered" in text
    assert "from dom0's bridge 3" in text


@pytest.mark.parametrize("after", [0.01, 0.1, 0.5])
def test_a_driver_domain_that_crashes(tmp_path: Path, after: float) -> None:
    """Its guests lose their network, and nothing else; a guest of dom0's bridge does not notice."""
    bodies = {
        "net": f"""
await self.sleep({after})
raise RuntimeError("that is enough")
""",
        "one": """
device = None
for _ in range(100):
    await self.sleep(0.01)
    if "eth0" in self.net.interfaces:
        device = self.net.interfaces["eth0"].device
        device.transmit(b"\\xff" * 6 + device.mac + KIND + bytes(46))
self.print("alive")
""",
        "two": PINGER,
        "three": ANSWERER,
    }
    vifs = {"one": "bridge=xenbr0,backend=net", "two": "bridge=xenbr0", "three": "bridge=xenbr0"}
    result, text = run(tmp_path, bodies, vifs, nics=[parse_nic("net/xenbr0=none"), parse_nic("xenbr0=none")])
    ends = {domain.name: domain.reason for domain in result.domains}
    assert ends == {"Domain-0": "poweroff", "net": "crash", "one": "poweroff", "two": "poweroff", "three": "poweroff"}
    assert "alive" in text
    assert "answered" in text


def test_a_capture_of_its_bridge(tmp_path: Path) -> None:
    """Large packets stay whole on it, and the file says whose port they passed."""
    bodies = {
        "net": SWITCH,
        "one": """
import sys
sys.path.insert(0, HERE)
from test_net_gso import Large
device = (await self.net.interface("eth0")).device
await self.sleep(0.05)
for _ in range(5):
    device.transmit(Large(bytes(30000)).frame(b"\\xff" * 6, device.mac), gso(1448))
    await self.sleep(0.01)
""".replace("HERE", repr(str(Path(__file__).parent))),
        "two": """
device = (await self.net.interface("eth0")).device
seen = []
device.received_raw = lambda frame, offload: seen.append(len(frame))
await self.sleep(0.5)
self.print("seen", seen)
""",
    }
    capture = tmp_path / "all.pcapng"
    vifs = dict.fromkeys(("one", "two"), "bridge=xenbr0,backend=net")
    result, text = run(tmp_path, bodies, vifs, capture=capture)
    assert result.exit_code == 0, text
    assert "seen [30054, 30054, 30054, 30054, 30054]" in text
    with capture.open("rb") as file:
        frames = [frame for _, frame in dpkt.pcapng.Reader(file)]
    assert [len(frame) for frame in frames if len(frame) > 1514] == [30054] * 10


TALKER = """
device = (await self.net.interface("eth0")).device
for number in range(5):
    await self.sleep(0.01)
    device.transmit((b"\\xff" * 6 + device.mac + KIND + bytes([number])).ljust(60, b"x"))
"""


def test_a_card_of_its_own(tmp_path: Path) -> None:
    """The machine's second card is the driver domain's: what its guests say to all goes onto that wire alone."""
    bodies = {"net": SWITCH, "one": TALKER, "two": TALKER}
    vifs = {"one": "bridge=lan,backend=net", "two": "bridge=lan"}
    wires = {name: tmp_path / f"{name}.pcap" for name in ("dom0", "net")}
    nics = [parse_nic(f"lan=pcap:{wires['dom0']}"), parse_nic(f"net/lan=pcap:{wires['net']}")]
    result, text = run(tmp_path, bodies, vifs, nics=nics)
    assert result.exit_code == 0, text
    seen = {}
    for name, path in wires.items():
        with path.open("rb") as file:
            seen[name] = [frame for _, frame in dpkt.pcap.Reader(file)]
    assert [frame[14] for frame in seen["net"]] == [frame[14] for frame in seen["dom0"]] == [0, 1, 2, 3, 4]
    assert seen["net"][0][6:12] != seen["dom0"][0][6:12]


@pytest.mark.parametrize(
    ("text", "message"),
    [("nte/xenbr0=none", "no driver domain 'nte'.*did you mean 'net'"), ("one/xenbr0=none", "no driver domain 'one'")],
)
def test_cards_of_nobody(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path, {"net": SWITCH, "one": TALKER}, {}, nics=[parse_nic(text)])


@pytest.mark.parametrize("text", ["/xenbr0=none", "net/=none", "n et/xenbr0=none", "net/xenbr0"])
def test_cards_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match="is not of the form"):
        parse_nic(text)


def test_the_same_bridge_twice(tmp_path: Path) -> None:
    nics = [parse_nic("net/lan=none"), parse_nic("lan=none"), parse_nic("net/lan=none")]
    with pytest.raises(UsageError, match="'net/lan' twice"):
        run(tmp_path, {"net": SWITCH}, {}, nics=nics)


def test_one_that_reboots_has_its_card_again(tmp_path: Path) -> None:
    """Another life, with the same card; in between the card has no driver."""
    bodies = {
        "net": f"""
from pathlib import Path
life = Path({str(tmp_path / "life")!r})
if not life.exists():
    life.touch()
    await self.sleep(0.2)
    raise RuntimeError("that is enough")
self.print("again, with card", self.kernel.hw.nic(0).unit)
await self.kernel.never()
""",
        "one": "await self.sleep(2)",
    }
    result, text = run(tmp_path, bodies, {}, nics=[parse_nic("net/xenbr0=none")], net='on_crash = "restart"')
    ends = {domain.name: domain for domain in result.domains}
    assert ends["net"].lives == 2, text
    assert ends["one"].reason == "poweroff"
