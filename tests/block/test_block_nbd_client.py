"""Guests whose disks are at NBD servers: slow ones, dead ones, and what others notice of them."""

import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from block_scene import RANDOM_TRAFFIC, Scene

import hypervisor.machine.nbd as nbd
from hypervisor.trace import read_trace
from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.report import HostResult

pytestmark = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="needs nbdkit, a real server")

MIB = 1 << 20
Serve = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture
def serve(scene: Scene) -> Iterator[Serve]:
    """Start nbdkit with a memory disk of 1 MiB at s.sock, or with other arguments."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, name: str = "s.sock") -> subprocess.Popen[bytes]:
        path = scene.directory / name
        path.unlink(missing_ok=True)
        command = ["nbdkit", "-f", "-U", path, *(arguments or ("memory", "1M"))]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 20
        while not listens(path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


SERVED = Path("nbd:unix:s.sock")

MANY_AT_ONCE = """
disk = await self.disk("xvda")

async def one(n):
    await disk.write(8 * n, bytes([n + 1]) * 4096)
    assert await disk.read(8 * n, 8) == bytes([n + 1]) * 4096

threads = [self.kernel.spawn(one(n)) for n in range(24)]
for thread in threads:
    await thread.join()
await disk.flush()
self.print("done")
"""
COUNTS = """
for n in range(200):
    await self.sleep(2e-6)
    self.print(n)
"""


PATIENT = "format=raw,reconnect-delay=60"
"""A disk whose guest never hears of its server's troubles."""


def run_two(scene: Scene, trace: str) -> HostResult:
    guests = [scene.guest("a", MANY_AT_ONCE, SERVED), scene.guest("b", COUNTS)]
    result = scene.run(*guests, trace_file=scene.directory / trace)
    assert result.exit_code == 0, scene.text
    return result


def test_a_slow_server_changes_nothing_in_virtual_time(scene: Scene, serve: Serve) -> None:
    """The same trace, byte for byte, of a server that answers at once, and of one that is slow and not always alike."""
    quick = serve()
    took = run_two(scene, "quick").wall_ns
    quick.kill()
    quick.wait()
    serve("--filter=delay", "memory", "1M", "rdelay=100ms", "wdelay=150ms")
    # 24 requests of each kind, one after the other, would take six seconds more.
    assert 250_000_000 < run_two(scene, "slow").wall_ns < took + 3_000_000_000
    assert (scene.directory / "quick").read_bytes() == (scene.directory / "slow").read_bytes()


def test_a_slow_server_stops_nobody_in_real_time(scene: Scene, serve: Serve) -> None:
    serve("--filter=delay", "memory", "1M", "delay-read=2")
    waits = """
    disk = await self.disk("xvda")
    began = self.kernel.monotonic_ns()
    assert await disk.read(0, 8) == bytes(4096)
    self.print("waited", self.kernel.monotonic_ns() - began)
    """
    ticks = """
    longest = 0
    for _ in range(300):
        before = self.kernel.monotonic_ns()
        await self.sleep(0.005)
        longest = max(longest, self.kernel.monotonic_ns() - before)
    self.print("longest", longest)
    """
    result = scene.run(scene.guest("a", waits, SERVED), scene.guest("b", ticks), time="real")
    assert result.exit_code == 0, scene.text
    told = {word: int(number) for word, number in re.findall(r"(waited|longest) ([0-9]+)", scene.text)}
    assert told["waited"] >= 2_000_000_000
    assert told["longest"] < 1_500_000_000  # others may keep this machine busy, but not for that long


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_random_traffic(scene: Scene, serve: Serve, clock: str) -> None:
    image = scene.image("image")
    serve("file", image)
    result = scene.run(scene.guest("guest", RANDOM_TRAFFIC.format(seed=4), SERVED), time=clock)
    assert result.exit_code == 0, scene.text
    assert "all is well" in scene.text
    assert any(image.read_bytes())


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_the_death_of_a_server_is_an_error_for_its_disk_alone(scene: Scene, serve: Serve, clock: str) -> None:
    server = serve("--filter=delay", "memory", "1M", "wdelay=10")
    asks = """
    disk = await self.disk("xvda")

    async def one(n):
        try:
            await disk.write(8 * n, bytes(4096))
        except OSError as error:
            self.print("failed:", error.errno)

    threads = [self.kernel.spawn(one(n)) for n in range(6)]
    for thread in threads:
        await thread.join()
    try:
        await disk.flush()
    except OSError as error:
        self.print("flush failed:", error.errno)
    """
    other = """
    disk = await self.disk("xvda")
    await disk.write(0, b"o" * 512)
    await disk.flush()
    """
    image = scene.image("other")
    threading.Timer(0.7, server.send_signal, (signal.SIGKILL,)).start()
    result = scene.run(scene.guest("a", asks, SERVED), scene.guest("b", other, image), time=clock)
    assert result.exit_code == 0, scene.text
    assert scene.text.count("failed: 5") == 7
    assert scene.text.count("flush failed: 5") == 1
    assert image.read_bytes()[:512] == b"o" * 512
    assert result.wall_ns < 8_000_000_000


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_a_server_that_says_nothing_is_given_up(
    scene: Scene, serve: Serve, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    monkeypatch.setattr(nbd, "TIMEOUT", 0.5)
    serve("--filter=delay", "memory", "1M", "rdelay=60")
    asks = """
    disk = await self.disk("xvda")
    try:
        await disk.read(0, 8)
    except OSError as error:
        self.print("failed:", error.errno)
    """
    result = scene.run(scene.guest("a", asks, SERVED), time=clock)
    assert result.exit_code == 0, scene.text
    assert "failed: 5" in scene.text
    assert 500_000_000 < result.wall_ns < 8_000_000_000


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_a_guest_that_is_destroyed_while_its_server_thinks(scene: Scene, serve: Serve, clock: str) -> None:
    """Its memory is not given to others before the disk is done with it; nothing is left behind."""
    serve("--filter=delay", "memory", "1M", "rdelay=500ms")
    asks = """
    disk = await self.disk("xvda")
    for n in range(20):
        self.kernel.spawn(disk.read(8 * n, 8))
    await self.sleep(1e-5)
    raise RuntimeError("enough")
    """
    result = scene.run(scene.guest("a", asks, SERVED), time=clock)
    assert result.exit_code != 0
    assert "enough" in scene.text


@pytest.mark.parametrize("kind", ["format=raw", "format=raw,reconnect-delay=600", "format=raw,faults=bad:100"])
def test_who_wants_the_end_twice_does_not_wait_for_a_server(scene: Scene, serve: Serve, kind: str) -> None:
    """In virtual time the host stands still for an answer, but not for somebody who insists."""
    server = serve("--filter=delay", "memory", "1M", "rdelay=60")
    # (Behind faults the host stands still at once, so that it is to be told before.)
    body = "disk = await self.disk('xvda')\nself.print('reads')\nawait self.sleep(0.01)\nawait disk.read(0, 8)"
    guest = scene.guest("a", body, SERVED, kind=kind)
    host = Host(consoles=ConsoleLog(scene.lines.append))

    def insist() -> None:
        if "reconnect" in kind:
            server.kill()
        for _ in range(2):
            time.sleep(0.3)
            host.interrupt()

    async def run() -> HostResult:
        while_running = threading.Thread(target=lambda: (wait_for(lambda: "reads" in scene.text), insist()))
        while_running.start()
        result = await host.run([guest])
        while_running.join()
        return result

    result = trio.run(run)
    assert host.leaks() == []
    assert result.interrupted
    assert result.wall_ns < 10_000_000_000


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- servers that come back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", ["virtual", "real"])
@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
def test_a_server_that_is_killed_again_and_again_under_load(scene: Scene, serve: Serve, clock: str, kind: str) -> None:
    """The guest checks all that it reads, and notices nothing; what it has flushed is in the image at the end."""
    if shutil.which(kind) is None:
        pytest.skip(f"needs {kind}")
    image = scene.image("image")
    ends = threading.Event()
    servers = [start_server(scene, kind, image)]

    def trouble() -> None:
        while not ends.wait(0.25):
            servers[-1].kill()  # -9
            servers[-1].wait()
            time.sleep(0.05)
            servers.append(start_server(scene, kind, image))

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        guest = scene.guest("guest", WRITES_AND_CHECKS, SERVED, kind=PATIENT)
        result = scene.run(guest, time=clock)
    finally:
        ends.set()
        thread.join()
        servers[-1].terminate()
        servers[-1].wait()
    assert result.exit_code == 0, scene.text
    assert "all is well" in scene.text
    assert len(servers) > 3
    assert image.read_bytes() == b"".join(bytes([n % 251]) * 4096 for n in range(256))


WRITES_AND_CHECKS = """
import random
import time

disk = await self.disk("xvda")
rng = random.Random(7)
began = time.monotonic()
rounds = 0

async def one(n, value):
    await disk.write(8 * n, bytes([value]) * 4096)
    assert await disk.read(8 * n, 8) == bytes([value]) * 4096

while time.monotonic() - began < 2.0:  # the servers live by that clock
    rounds += 1
    places = rng.sample(range(256), 24)
    threads = [self.kernel.spawn(one(n, rng.randrange(256))) for n in places]
    for thread in threads:
        await thread.join()
    if rounds % 3 == 0:
        await disk.flush()
    await self.sleep(0.001)
for n in range(256):
    await disk.write(8 * n, bytes([n % 251]) * 4096)
await disk.flush()
self.print("all is well")
"""


def start_server(scene: Scene, kind: str, image: Path) -> subprocess.Popen[bytes]:
    """Start a real server of an image at s.sock."""
    path = scene.directory / "s.sock"
    path.unlink(missing_ok=True)
    commands = {
        "nbdkit": ["nbdkit", "-f", "-U", path, "file", image],
        "qemu-nbd": ["qemu-nbd", "-t", "-f", "raw", "-e", "8", "-k", path, image],
    }
    process = subprocess.Popen(commands[kind], stderr=subprocess.DEVNULL)
    wait_for(lambda: listens(path))
    return process


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_a_server_that_does_not_come_back_in_time(scene: Scene, serve: Serve, clock: str) -> None:
    server = serve("--filter=delay", "memory", "1M", "wdelay=10")
    asks = """
    disk = await self.disk("xvda")
    for _ in range(2):
        try:
            await disk.write(0, bytes(4096))
        except OSError as error:
            self.print("failed:", error.errno)
    """
    threading.Timer(0.5, server.send_signal, (signal.SIGKILL,)).start()
    result = scene.run(scene.guest("a", asks, SERVED, kind="format=raw,reconnect-delay=1"), time=clock)
    assert result.exit_code == 0, scene.text
    assert scene.text.count("failed: 5") == 2
    assert 1_000_000_000 < result.wall_ns < 8_000_000_000


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_people_are_told_of_a_lost_server_and_that_no_seed_repeats_it(scene: Scene, serve: Serve, clock: str) -> None:
    server = serve()
    reads = """
    disk = await self.disk("xvda")
    self.print("reads")
    import time
    while True:
        try:
            await disk.read(0, 8)
        except OSError as error:
            return
        time.sleep(0.01)
    """
    guest = scene.guest("a", reads, SERVED, kind="format=raw,reconnect-delay=1")
    host = Host(consoles=ConsoleLog(scene.lines.append), trace_file=scene.directory / "trace", time=clock)
    notices: list[str] = []
    host.on_notice = notices.append
    thread = threading.Thread(target=lambda: (wait_for(lambda: "reads" in scene.text), server.kill()))
    thread.start()
    result = trio.run(host.run, [guest])
    thread.join()
    assert result.exit_code == 0, scene.text
    header, records = read_trace(scene.directory / "trace")
    records.close()
    if clock == "virtual":
        assert notices.pop(0) == "a/xvda is at an NBD server: what it contains and when it fails, no seed repeats"
    assert header["about"].get("unrepeatable") == (["a/xvda"] if clock == "virtual" else None)
    where = f"a's disk xvda: nbd:unix:{scene.directory}/s.sock: "
    assert notices[0].startswith(where)
    assert notices[0].endswith("; looking for it, for 1 s until requests fail")
