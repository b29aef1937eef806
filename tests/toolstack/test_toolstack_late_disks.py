"""Hosts that are started before the NBD servers of their disks answer, or whose servers never do."""

import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from control_host import Steered, steered

import hypervisor.machine.nbd_connector as connector
from hypervisor.trace import read_trace
from toolstack.console_log import ConsoleLog
from toolstack.errors import UsageError
from toolstack.host import Host
from toolstack.report import DomainResult, HostResult
from toolstack.xl_config import DomainConfig, load_config

pytestmark = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="needs nbdkit, a real server")

Serve = Callable[..., Path]
MUTE = 1.0
"""Seconds that a server may take in these tests."""


class Scene:
    """A directory with guests, and what they print."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def guest(self, name: str, body: str, *targets: Path, kind: str = "format=raw", more: str = "") -> DomainConfig:
        """Write a guest whose `main` is `body`, with xvda, xvdb, ... at these places."""
        code = "from guest_kernel.guest import Guest\n\n\nclass Main(Guest):\n    async def main(self):\n"
        (self.directory / f"{name}.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
        disks = [f"{kind},vdev=xvd{'abcdefgh'[n]},access=rw,target={target}" for n, target in enumerate(targets)]
        file = self.directory / f"{name}.cfg"
        file.write_text(f'name = "{name}"\nkernel = "{name}.py"\nmemory = 16\ndisk = {disks!r}\n{more}')
        return load_config(file)

    def of(self, result: HostResult, name: str) -> DomainResult:
        return next(domain for domain in result.domains if domain.name == name)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Make servers that can be connected to and never say anything; nobody waits for these longer than a second."""
    monkeypatch.setattr(connector, "PATIENCE", MUTE)
    listeners: list[socket.socket] = []

    def listen(name: str) -> Path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / name))
        listener.listen(16)
        listeners.append(listener)
        return Path(f"nbd:unix:{name}")

    yield listen
    for listener in listeners:
        listener.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start nbdkit with a memory disk of 1 MiB that opens its export after some time."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, opens: str = "0") -> Path:
        path = tmp_path / name
        path.unlink(missing_ok=True)
        command = ["nbdkit", "-f", "-U", path, "--filter=delay", "memory", "1M", f"delay-open={opens}"]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return Path(f"nbd:unix:{name}")

    yield start
    for process in started:
        process.kill()
        process.wait()


def run(scene: Scene, *configs: DomainConfig, **options: Any) -> tuple[HostResult, list[str]]:
    """Run a host; return its result, and what people were told meanwhile."""
    notices: list[str] = []
    host = Host(consoles=ConsoleLog(scene.lines.append), **options)
    host.on_notice = notices.append
    result = trio.run(host.run, configs)
    assert host.leaks() == []
    return result, notices


READS = """
self.print("up at", self.kernel.monotonic_ns())
disk = await self.disk("xvda")
await disk.write(8, b"w" * 4096)
assert await disk.read(8, 8) == b"w" * 4096
self.print("read at", self.kernel.monotonic_ns())
"""
ASKS = """
self.print("up at", self.kernel.monotonic_ns())
try:
    await self.disk("xvda")
except OSError as error:
    self.print("no disk:", error)
self.print("told at", self.kernel.monotonic_ns())
"""


def moments(scene: Scene, what: str) -> dict[str, int]:
    """Return when each guest has printed "... at TIME"."""
    found = {}
    for line in scene.text.splitlines():
        guest, _, said = line.partition(" | ")
        if said.startswith(f"{what} at "):
            found[guest.strip()] = int(said.split()[-1])
    return found


# -- in real time: guests start --------------------------------------------------------------------------------------


def test_guests_start_before_slow_servers_answer(scene: Scene, serve: Serve) -> None:
    """Each gets its disk when its own server is there, and nobody waits for the server of another."""
    guests = [
        scene.guest("slow", READS, serve("slow.sock", "2")),
        scene.guest("slower", READS, serve("slower.sock", "2")),
        scene.guest("quick", READS, serve("quick.sock")),
        scene.guest("other", 'self.print("up at", self.kernel.monotonic_ns())'),
    ]
    result, notices = run(scene, *guests, time="real")
    assert result.exit_code == 0, scene.text
    assert notices == []
    up, read = moments(scene, "up"), moments(scene, "read")
    assert set(up) == {"slow", "slower", "quick", "other"}
    assert max(up.values()) < min(read["slow"], read["slower"])
    assert read["quick"] < min(read["slow"], read["slower"])
    # One after the other it would have been four seconds.
    assert 1_500_000_000 < result.wall_ns < 3_900_000_000


def test_servers_that_never_answer_are_given_up_all_at_once(scene: Scene, mute: Callable[[str], Path]) -> None:
    """As `block-attach` does: the device goes, people are told in a sentence, and the guest goes on."""
    guests = [scene.guest(name, ASKS, mute(f"{name}.sock")) for name in ("a", "b", "c")]
    result, notices = run(scene, *guests, scene.guest("d", "self.print('alone')"), time="real")
    assert result.exit_code == 1, scene.text
    assert scene.of(result, "d").message == ""
    for name in ("a", "b", "c"):
        assert f"{name} | no disk: xvda: its backend did not connect" in scene.text
        sentence = f"{name} is without its disk xvda: nbd:unix:{scene.directory}/{name}.sock: timed out"
        assert sentence in notices
        assert scene.of(result, name).message == sentence
    assert len(notices) == 3
    assert result.wall_ns < 2.5 * MUTE * 1e9


def test_a_server_that_refuses_at_once_is_a_mistake_of_the_person(scene: Scene) -> None:
    guest = scene.guest("a", READS, Path("nbd:unix:nobody.sock"))
    for clock in ("real", "virtual"):
        with pytest.raises(UsageError, match=r"a.cfg.*nobody\.sock: No such file or directory"):
            run(scene, guest, time=clock)


def test_a_disk_with_faults_and_a_slow_server(scene: Scene, serve: Serve) -> None:
    guest = scene.guest("a", READS, serve("s.sock", "1"), kind="format=raw,faults=bad:1000")
    result, _ = run(scene, guest, time="real")
    assert result.exit_code == 0, scene.text
    assert "read at" in scene.text


def test_a_guest_that_ends_before_its_server_answers(scene: Scene, serve: Serve) -> None:
    result, notices = run(scene, scene.guest("a", "self.print('enough')", serve("s.sock", "20")), time="real")
    assert result.exit_code == 0, scene.text
    assert notices == []
    assert result.wall_ns < 5e9


def test_a_guest_that_is_restarted_waits_for_the_same_answer(scene: Scene, serve: Serve) -> None:
    body = """
    import pathlib
    flag = pathlib.Path(self.args[0])
    if not flag.exists():
        flag.touch()
        await self.kernel.power.reboot()
    disk = await self.disk("xvda")
    self.print("has", disk.sectors)
    """
    more = f'extra = "{scene.directory}/flag"\non_reboot = "restart"\n'
    guest = scene.guest("a", body, serve("s.sock", "2"), more=more)
    result, notices = run(scene, guest, time="real")
    assert result.exit_code == 0, scene.text
    assert scene.of(result, "a").lives == 2
    assert "has 2048" in scene.text
    assert notices == []


def test_a_driver_domain_gets_the_disk_when_its_server_answers(scene: Scene, serve: Serve) -> None:
    driver = scene.guest("driver", "await self.kernel.never()", more="driver_domain = 1\n")
    guest = scene.guest("a", READS, serve("s.sock", "1"), kind="format=raw,backend=driver")
    result, notices = run(scene, driver, guest, time="real")
    assert result.exit_code == 0, scene.text
    assert "read at" in scene.text
    assert notices == []


def waits(host: Steered, where: str) -> DomainConfig:
    return host.guest("one", ASKS + "\nawait self.kernel.never()", f'disk = ["format=raw,vdev=xvda,target={where}"]')


def test_what_people_can_do_to_a_disk_that_is_waited_for(tmp_path: Path, serve: Serve) -> None:
    """It can be taken away; it cannot be resized; and its backend is where Linux's is without a physical device."""

    async def steer() -> None:
        where = serve("s.sock", "20")
        async with steered(tmp_path, lambda host: [waits(host, str(where))], time="real") as host:
            await host.says("up at")
            (domid,) = [live.domid for live in host.host.lifecycle.live.values()]  # type: ignore[union-attr]
            backend = f"/local/domain/0/backend/vbd/{domid}/51712"
            with trio.fail_after(10):
                while host.store(f"{backend}/state") != "2":  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert host.store(f"{backend}/physical-device") is None
            assert host.store(f"{backend}/hotplug-status") is None
            with pytest.raises(Exception, match="the disk is not there yet: its server has not answered"):
                await host.ask("block-resize", domain="one", device="xvda", size="2M")
            await host.ask("block-detach", domain="one", device="xvda")
            assert host.names(f"/local/domain/{domid}/device/vbd") == []
            await host.says("no disk: xvda")

    began = time.monotonic()
    trio.run(steer)
    assert time.monotonic() - began < 10


def test_who_wants_the_end_does_not_wait_for_a_server(tmp_path: Path, serve: Serve) -> None:
    where = serve("s.sock", "20")

    async def steer() -> None:
        async with steered(tmp_path, lambda host: [waits(host, str(where))], time="real") as host:
            await host.says("up at")

    began = time.monotonic()
    trio.run(steer)
    assert time.monotonic() - began < 10


# -- in virtual time: it does not begin before all have answered -----------------------------------------------------


def test_virtual_time_waits_for_all_servers_together_and_nothing_shows(scene: Scene, serve: Serve) -> None:
    traces = []
    for opens in ("0", "1"):
        guests = [scene.guest(name, READS, serve(f"{name}.sock", opens)) for name in ("a", "b", "c", "d")]
        began = time.monotonic()
        result, _ = run(scene, *guests, trace_file=scene.directory / opens)
        took = time.monotonic() - began
        assert result.exit_code == 0, scene.text
        traces.append((scene.directory / opens).read_bytes())
    assert 1 < took < 3.5
    assert traces[0] == traces[1]
    header, records = read_trace(scene.directory / "0")
    records.close()
    assert header["about"]["unrepeatable"] == ["a/xvda", "b/xvda", "c/xvda", "d/xvda"]


def test_virtual_time_gives_up_all_together(scene: Scene, mute: Callable[[str], Path]) -> None:
    """And names the first of them in the order of the configurations."""
    guests = [scene.guest(name, READS, mute(f"{name}.sock")) for name in ("a", "b", "c", "d")]
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"a.cfg.*a\.sock: timed out"):
        run(scene, *guests)
    assert time.monotonic() - began < 2.5 * MUTE


def test_a_person_who_interrupts_the_start_does_not_wait(scene: Scene, mute: Callable[[str], Path]) -> None:
    """Ctrl-C before there is a host ends the command at once."""
    guest = scene.guest("a", READS, mute("a.sock"))
    command = [sys.executable, "-c", "from toolstack.cli import main; main()", "run", str(guest.source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=scene.directory) as process:
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.communicate(timeout=20)
        assert time.monotonic() - began < 5
    assert process.returncode != 0
