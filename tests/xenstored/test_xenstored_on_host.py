"""The daemons on whole hosts: real hypervisor, grants and event channels.  Every run ends with a leak check."""

import textwrap
from pathlib import Path

import pytest
import trio

from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.report import HostResult
from toolstack.xl_config import DomainConfig, load_config


class Scene:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []

    def guest(self, name: str, body: str) -> DomainConfig:
        """Write a guest whose `main` is `body`."""
        code = "from guest_kernel.guest import Guest\n\n\nclass Main(Guest):\n    async def main(self):\n"
        start = "kernel, xenbus = self.kernel, self.kernel.xenbus\n"
        (self.directory / f"{name}.py").write_text(code + textwrap.indent(start + textwrap.dedent(body), " " * 8))
        file = self.directory / f"{name}.cfg"
        file.write_text(f'name = "{name}"\nkernel = "{name}.py"\nmemory = 8\non_crash = "destroy"\n')
        return load_config(file)

    def run(self, *configs: DomainConfig) -> HostResult:
        host = Host(consoles=ConsoleLog(self.lines.append))
        result = trio.run(host.run, configs)
        assert host.leaks() == []
        return result

    def said(self, name: str) -> list[str]:
        """The lines on a domain's console."""
        return [line.split("| ", 1)[1].rstrip("\n") for line in self.lines if line.startswith(f"{name} ")]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def failures(result: HostResult) -> list[str]:
    return [domain.name for domain in result.domains if domain.failed]


CLIENT = """
from guest_kernel.xenbus.client import XenstoreError

await xenbus.write("data/big", "v" * 1900)
assert await xenbus.read("data/big") == "v" * 1900
assert await xenbus.read(f"/local/domain/{await xenbus.read('domid')}/data/big") == "v" * 1900
async with xenbus.transaction() as t:
    for number in range(30):
        await t.write(f"data/n{number}", number)
assert await xenbus.directory("data") == ["big", *[f"n{number}" for number in range(30)]]
for path in ("/", "/vm", "/local/domain/0/name"):
    try:
        await xenbus.write(path, "mine")
    except XenstoreError as error:
        assert error.name == "EACCES"
    else:
        raise AssertionError(path)
watch = await xenbus.watch("data/n1")
assert (await watch.get())[0] == "data/n1"
await xenbus.write("data/n1", "new")
assert (await watch.get())[0] == "data/n1"
await xenbus.rm("data/n1")
assert (await watch.get())[0] == "data/n1"
await watch.cancel()
try:
    for number in range(2000):
        await xenbus.mkdir(f"data/x{number}")
except XenstoreError as error:
    assert error.name == "ENOSPC"
    self.print("full")
"""


def test_a_guest_uses_the_store(scene: Scene) -> None:
    result = scene.run(scene.guest("client", CLIENT), scene.guest("other", CLIENT))
    assert failures(result) == [], scene.lines
    assert scene.said("client") == scene.said("other") == ["full"]


def test_guests_that_break_their_rings_harm_nobody(scene: Scene) -> None:
    broken = [
        "xenbus.ring.words[513] = (xenbus.ring.words[512] + 5000) & 0xFFFFFFFF",
        "xenbus.ring.words[514] = (xenbus.ring.words[515] + 7) & 0xFFFFFFFF",
        'xenbus.ring.write(b"\\xff" * 64)',
        "xenbus.ring.words[512] = xenbus.ring.words[515] = 12345",
    ]
    after = "\nkernel.events.notify(kernel.start_info.store_evtchn)\nself.print('done')\nawait kernel.sleep(10**9)\n"
    configs = [scene.guest(f"bad{number}", body + after) for number, body in enumerate(broken)]
    result = scene.run(*configs, scene.guest("good", CLIENT))
    assert scene.said("good") == ["full"]
    assert "good" not in failures(result)
    for number in range(len(broken)):
        assert scene.said(f"bad{number}")[0] == "done"


def test_a_guest_that_does_not_read_is_given_up_and_the_others_go_on(scene: Scene) -> None:
    deaf = """
        await xenbus.write("data/x", "")
        watch = await xenbus.watch("data")
        kernel.events.mask(kernel.start_info.store_evtchn)
        self.print("deaf")
        while xenbus.ring.words[518] == 0:
            xenbus.ring.write(bytes([2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0]) + b"name\\0")
            kernel.events.notify(kernel.start_info.store_evtchn)
            await kernel.sleep(10**9)
        self.print("given up:", xenbus.ring.words[518], "after", kernel.monotonic_ns() // 10**9, "s")
    """
    scene.run(scene.guest("deaf", deaf), scene.guest("good", CLIENT))
    assert scene.said("good") == ["full"]
    first, second = scene.said("deaf")[:2]
    assert first == "deaf"
    # Its replies fill the ring after a while; from then on it has twenty seconds.
    assert second.startswith("given up: 1 after ")
    assert int(second.split()[-2]) > 20


def test_long_output_reaches_the_console_whole(scene: Scene) -> None:
    body = "for number in range(2000):\n    self.print(f'{number:04} ' + 'x' * 30)\n"
    result = scene.run(scene.guest("talker", body), scene.guest("quiet", "self.print('I am heard')"))
    assert failures(result) == []
    assert scene.said("talker") == [f"{number:04} " + "x" * 30 for number in range(2000)]
    assert scene.said("quiet") == ["I am heard"]


def test_a_guest_that_crashes_takes_its_nodes_along(scene: Scene) -> None:
    crash = 'await xenbus.write("data/secret", "v")\nself.print("last words")\nraise ValueError("on purpose")\n'
    look = """
        await kernel.sleep(3 * 10**9)
        from guest_kernel.xenbus.client import XenstoreError
        try:
            await xenbus.read("/local/domain/1/data/secret")
        except XenstoreError as error:
            self.print(error.name)
    """
    result = scene.run(scene.guest("crash", crash), scene.guest("look", look))
    assert failures(result) == ["crash"]
    assert "last words" in scene.said("crash")
    assert any("ValueError: on purpose" in line for line in scene.said("crash"))
    assert scene.said("look") == ["EACCES"]


def test_fifty_guests_at_once(scene: Scene) -> None:
    body = """
        for number in range(10):
            await xenbus.write("data/n", number)
        async with xenbus.transaction() as t:
            await t.write("data/n", int(await t.read("data/n")) + 1)
        self.print(await xenbus.read("data/n"))
    """
    result = scene.run(*[scene.guest(f"g{number}", body) for number in range(50)])
    assert failures(result) == []
    assert all(scene.said(f"g{number}") == ["10"] for number in range(50))
