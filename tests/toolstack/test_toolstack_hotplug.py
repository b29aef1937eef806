"""Disks and interfaces that come and go: guests that answer, hold on, say nothing; driver domains; restarts."""

import shutil
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from control_host import Steered, steered

from toolstack.control.protocol import ControlError
from toolstack.devices import TIMEOUT_NS
from toolstack.xl_config import DomainConfig

FOLLOW = """
    self.print("up")

    async def interfaces():
        async with self.kernel.net.changes.follow() as changes:
            while True:
                change = await changes.get()
                self.print("interface", change.name, "came" if change.present else "went")

    self.kernel.spawn(interfaces())
    async with self.kernel.block.changes.follow() as changes:
        while True:
            change = await changes.get()
            self.print("disk", change.name, "came" if change.present else "went")
            if change.present:
                disk = await self.disk(change.name)
                await disk.write(1, b"written!" * 64)
                self.print("reads", bytes((await disk.read(1, 1))[:8]), disk.sectors)
"""
HOLD = """
    disk = await self.disk("xvdb")
    with disk.hold():
        self.print("holds")
        line = await self.kernel.console.readline()
        await disk.write(0, b"last" * 128)
    self.print("let go")
    await self.kernel.block.gone("xvdb")
    self.print("gone")
    await self.kernel.never()
"""
SILENT = """
    disk = await self.disk("xvdb")
    self.kernel.bus._watches["frontend"]._callback = lambda path, token: None
    device = self.kernel.bus.devices["device/vbd/51728"]
    device.poke = lambda **what: None
    device.bus.devices["device/vif/0"].poke = lambda **what: None
    self.print("silent")
    await self.kernel.never()
"""


def one(host: Steered) -> list[DomainConfig]:
    host.image("b.img")
    return [host.guest("one", FOLLOW)]


async def test_a_disk_comes_and_goes(tmp_path: Path) -> None:
    async with steered(tmp_path, one) as host:
        await host.says("up")
        for _ in range(3):
            host.lines.clear()
            await host.ask("block-attach", domain="one", spec="b.img,,xvdb", cwd=str(tmp_path))
            await host.says("one | reads b'written!' 2048")
            assert "one | disk xvdb came\n" in host.lines
            back = "/local/domain/0/backend/vbd/1/51728"
            assert (host.store(f"{back}/state"), host.store(f"{back}/hotplug-status")) == ("4", "connected")
            assert host.store(f"{back}/sectors") == "2048"
            assert host.store("/libxl/1/device/vbd/51728/params") == str(tmp_path / "b.img")
            await host.ask("block-detach", domain="one", device="xvdb")
            await host.says("one | disk xvdb went")
            assert host.names("/local/domain/1/device") == ["suspend"]
            assert host.names("/local/domain/0/backend/vbd") == []
            assert host.names("/libxl/1/device") == []
    assert (tmp_path / "b.img").read_bytes()[512:520] == b"written!"
    assert host.result is not None
    assert host.result.domains[1].usage.blocks == 6


async def test_an_interface_comes_and_goes(tmp_path: Path) -> None:
    async with steered(tmp_path, one) as host:
        await host.says("up")
        await host.ask("network-attach", domain="one")
        await host.ask("network-attach", domain="one", spec="mac=00:16:3e:01:02:03,bridge=xenbr0")
        await host.says("one | interface eth1 came")
        macs = [row["mac"] for row in await host.ask("network-list", domain="one")]
        assert macs[1] == "00:16:3e:01:02:03"
        assert macs[0].startswith("00:16:3e:")
        await host.ask("network-detach", domain="one", device="0")
        await host.says("one | interface eth0 went")
        await host.ask("network-detach", domain="one", device="00:16:3E:01:02:03")
        await host.says("one | interface eth1 went")
        assert await host.ask("network-list", domain="one") == []


@pytest.mark.parametrize(
    ("verb", "args", "sentence"),
    [
        ("block-attach", {"spec": "gone.img,,xvdb"}, "the disk image '{}/gone.img' does not exist"),
        ("block-attach", {"spec": "b.img"}, "the disk has no vdev (its name in the guest, such as xvda)"),
        ("block-attach", {"spec": "b.img,,xvdb,w,backend=nobody"}, "the backend domain 'nobody' does not run"),
        (
            "block-attach",
            {"spec": "b.img,,xvdb,w,backend=one"},
            "the backend domain 'one' is no driver domain (driver_domain = 1)",
        ),
        ("block-detach", {"device": "xvdb"}, "one has no disk 'xvdb'"),
        ("block-detach", {"device": "51728"}, "one has no disk '51728'"),
        ("block-detach", {"device": "junk"}, "'junk' is no virtual disk name (such as xvda or xvdb1)"),
        ("network-attach", {"spec": "bridge=br9"}, "this host has no bridge 'br9'; there is xenbr0"),
        ("network-detach", {"device": "3"}, "one has no network interface '3'"),
        ("network-detach", {"device": "00:00:00:00:00:00"}, "one has no network interface '00:00:00:00:00:00'"),
    ],
)
async def test_mistakes(tmp_path: Path, verb: str, args: dict[str, str], sentence: str) -> None:
    async with steered(tmp_path, one) as host:
        await host.says("up")
        with pytest.raises(ControlError) as caught:
            await host.ask(verb, domain="one", cwd=str(tmp_path), **args)
        assert str(caught.value) == sentence.replace("{}", str(tmp_path))
        assert host.names("/libxl/1/device") == []


async def test_nothing_is_plugged_in_twice(tmp_path: Path) -> None:
    async with steered(tmp_path, one) as host:
        await host.says("up")
        host.image("c.img")
        await host.ask("block-attach", domain="one", spec="b.img,,xvdb", cwd=str(tmp_path))
        with pytest.raises(ControlError, match="one has a disk 'xvdb' already"):
            await host.ask("block-attach", domain="one", spec="c.img,,xvdb", cwd=str(tmp_path))
        with pytest.raises(ControlError, match="is used by 'one' already, and one of the two writes to it"):
            await host.ask("block-attach", domain="one", spec="b.img,,xvdc", cwd=str(tmp_path))
        await host.ask("network-attach", domain="one", spec="mac=00:16:3e:01:02:03")
        with pytest.raises(ControlError, match="the MAC address 00:16:3e:01:02:03 is already taken"):
            await host.ask("network-attach", domain="one", spec="mac=00:16:3e:01:02:03")
        with pytest.raises(ControlError, match="one has a network interface 0 already"):
            await host.ask("network-attach", domain="one", spec="devid=0")


async def test_a_disk_that_the_guest_holds_is_let_go_of_when_it_has_done(tmp_path: Path) -> None:
    async with steered(tmp_path, lambda host: [host.guest("one", HOLD)]) as host:
        host.image("b.img")
        await host.ask("block-attach", domain="one", spec="b.img,,xvdb", cwd=str(tmp_path))
        await host.says("one | holds")
        with pytest.raises(ControlError) as caught:
            await host.ask("block-detach", domain="one", device="xvdb")
        assert str(caught.value) == (
            "one has not let go of vbd 51728 within 10 s; the guest says: 16 Device in use; refusing to close"
        )
        # It is still there, and still served.
        assert host.store("/local/domain/1/device/vbd/51728/state") == "4"
        plug = host.outside.terminals["one"]
        plug.type(b"\n")  # type: ignore[attr-defined]
        await host.says("one | let go")
        await host.ask("block-detach", domain="one", device="xvdb")
        await host.says("one | gone")
        assert host.names("/local/domain/0/backend/vbd") == []
        assert host.names("/local/domain/1/error/device/vbd") == []
    assert (tmp_path / "b.img").read_bytes()[:8] == b"lastlast"


async def test_a_disk_that_the_guest_holds_goes_by_force(tmp_path: Path) -> None:
    body = HOLD.replace('await disk.write(0, b"last" * 128)', "pass")
    async with steered(tmp_path, lambda host: [host.guest("one", body)], time="real") as host:
        host.image("b.img")
        await host.ask("block-attach", domain="one", spec="b.img,,xvdb", cwd=str(tmp_path))
        await host.says("one | holds")
        with trio.fail_after(TIMEOUT_NS / 2e9):
            await host.ask("block-detach", domain="one", device="xvdb", force=True)
        assert host.names("/local/domain/0/backend/vbd") == []
        host.outside.terminals["one"].type(b"\n")  # type: ignore[attr-defined]
        await host.says("one | gone")


async def test_a_guest_that_does_not_answer(tmp_path: Path) -> None:
    """A disk is left to it unless force is used; an interface is taken away when it has had its time, as by libxl."""

    def silent(host: Steered) -> list[DomainConfig]:
        host.image("b.img")
        return [host.guest("one", SILENT, 'disk = ["b.img,,xvdb"]', 'vif = [""]')]

    async with steered(tmp_path, silent) as host:
        await host.says("silent")
        with pytest.raises(ControlError, match="one has not let go of vbd 51728 within 10 s"):
            await host.ask("block-detach", domain="one", device="xvdb")
        assert host.store("/local/domain/0/backend/vbd/1/51728/online") == "0"
        await host.ask("block-detach", domain="one", device="xvdb", force=True)
        before = host.host.hv.clock.now
        await host.ask("network-detach", domain="one", device="0")
        assert host.host.hv.clock.now - before >= TIMEOUT_NS
        assert host.names("/local/domain/0/backend/vif") == host.names("/local/domain/0/backend/vbd") == []
        await host.ask("destroy", domain="one")


async def test_what_a_guest_writes_is_not_obeyed_by_a_terminal(tmp_path: Path) -> None:
    body = """
        await self.disk("xvdb")
        xenbus = self.kernel.xenbus
        await xenbus.write("error/device/vbd/51728/error", "16 " + chr(27) + "[2Jcleared" + "x" * 1000)
        for key in ("mac", "state", "tx-ring-ref", "event-channel"):
            await xenbus.write("device/vif/0/" + key, chr(27) + "[2J")
    """

    def hostile(host: Steered) -> list[DomainConfig]:
        host.image("b.img")
        settings = ('disk = ["b.img,,xvdb"]', 'vif = ["mac=00:16:3e:01:02:03"]')
        return [host.guest("one", textwrap.dedent(body) + textwrap.dedent(SILENT), *settings)]

    async with steered(tmp_path, hostile) as host:
        await host.says("silent")
        (row,) = await host.ask("network-list", domain="one")
        assert row["mac"] == "00:16:3e:01:02:03"
        with pytest.raises(ControlError) as caught:
            await host.ask("block-detach", domain="one", device="xvdb")
        assert "the guest says: 16 \\x1b[2Jcleared" in str(caught.value)
        assert len(str(caught.value)) < 400
        await host.ask("destroy", domain="one")


async def test_what_was_attached_is_there_after_a_restart(tmp_path: Path) -> None:
    def two_disks(host: Steered) -> list[DomainConfig]:
        for name in ("a.img", "b.img"):
            host.image(name)
        show = "self.print(sorted(self.kernel.block.devices), sorted(self.kernel.net.interfaces))"
        body = f"await self.sleep(1)\n{show}\nawait self.kernel.never()"
        return [host.guest("one", body, 'disk = ["a.img,,xvda"]', 'vif = ["", ""]')]

    async with steered(tmp_path, two_disks) as host:
        await host.says("one | ['xvda'] ['eth0', 'eth1']")
        await host.ask("block-attach", domain="one", spec="b.img,,xvdb", cwd=str(tmp_path))
        await host.ask("block-detach", domain="one", device="xvda")
        await host.ask("network-detach", domain="one", device="0")
        before = await host.ask("network-list", domain="one")
        await host.ask("reboot", domain="one", wait=True)
        await host.says("one | ['xvdb'] ['eth1']")
        after = await host.ask("network-list", domain="one")
        assert [row["mac"] for row in after] == [row["mac"] for row in before]


GROW = """
    disk = await self.disk("xvda")
    self.print("has", disk.sectors)
    while True:
        sectors = await disk.resized()
        await disk.write(sectors - 1, b"the end!" * 64)
        self.print("has", sectors)
"""


@pytest.mark.parametrize("backend", ["0", "storage"])
async def test_a_disk_grows_while_it_is_used(tmp_path: Path, backend: str) -> None:
    def grow(host: Steered) -> list[DomainConfig]:
        host.image("a.img")
        host.image("ro.img")
        host.image("base.img")
        disks = [f"a.img,,xvda,w,backend={backend}", "ro.img,,xvdb,r", "over,overlay,xvdc,base=base.img"]
        disks.append("1M,memory,xvde")
        storage = host.guest("storage", "await self.kernel.never()", "driver_domain = 1")
        return [storage, host.guest("one", GROW, f"disk = {disks!r}")]

    async with steered(tmp_path, grow) as host:
        await host.says("one | has 2048")
        for size, sectors in (("2M", 4096), ("2097664", 4097), ("1g", 1 << 21)):
            await host.ask("block-resize", domain="one", device="xvda", size=size)
            await host.says(f"one | has {sectors}\n")
        domid = 0 if backend == "0" else 1
        assert host.store(f"/local/domain/{domid}/backend/vbd/2/51712/sectors") == str(1 << 21)
        assert host.store(f"/local/domain/{domid}/backend/vbd/2/51712/state") == "4"
        for device, size, message in (
            ("xvda", "1M", "xvda has 1073741824 bytes already; to make it smaller would cut off what is there"),
            ("xvda", "1073741825", "a disk has whole sectors of 512 bytes, so it cannot have 1073741825 bytes"),
            ("xvda", "big", "'big' is no size of a disk (such as 64M)"),
            ("xvdb", "2M", "xvdb is read-only, so its image cannot become larger"),
            ("xvdc", "2M", "xvdc is of the format 'overlay', so it keeps its size"),
            ("xvdd", "2M", "one has no disk 'xvdd'"),
            ("xvde", "999999T", f"xvde cannot have {999999 << 40} bytes: Cannot allocate memory"),
        ):
            with pytest.raises(ControlError) as caught:
                await host.ask("block-resize", domain="one", device=device, size=size)
            assert str(caught.value) == message
    image = tmp_path / "a.img"
    assert image.stat().st_size == 1 << 30
    with image.open("rb") as file:
        for sectors in (4096, 4097, 1 << 21):
            file.seek((sectors - 1) * 512)
            assert file.read(512) == b"the end!" * 64


async def test_a_driver_domain_serves_what_is_attached(tmp_path: Path) -> None:
    def driver(host: Steered) -> list[DomainConfig]:
        host.image("b.img")
        return [host.guest("storage", "await self.kernel.never()", "driver_domain = 1"), host.guest("one", FOLLOW)]

    async with steered(tmp_path, driver) as host:
        await host.says("one | up")
        for _ in range(2):
            host.lines.clear()
            await host.ask("block-attach", domain="one", spec="b.img,,xvdb,w,backend=storage", cwd=str(tmp_path))
            await host.says("one | reads b'written!' 2048")
            (row,) = await host.ask("block-list", domain="one")
            assert row["backend"] == "/local/domain/1/backend/vbd/2/51728"
            await host.ask("block-detach", domain="one", device="xvdb")
            await host.says("one | disk xvdb went")
            assert host.names("/local/domain/1/backend/vbd") == []


async def test_a_backend_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    """An image that may not be written, for a disk that is to be: the backend says so, and nothing stays plugged in."""
    async with steered(tmp_path, one) as host:
        await host.says("up")
        host.host.hardware.plug_disk = lambda owner, disk, connection: 77  # type: ignore[method-assign]
        host.host.hardware.unplug_disk = lambda unit, keep: None  # type: ignore[method-assign]
        with pytest.raises(ControlError, match=r"the backend of vbd 51728 failed: .*there is no disk on controller 77"):
            await host.ask("block-attach", domain="one", spec="b.img,,xvdb", cwd=str(tmp_path))
        assert host.names("/local/domain/1/device") == ["suspend"]
        assert host.names("/local/domain/0/backend/vbd") == host.names("/libxl/1/device") == []


LOOK_ON = """
    async with self.kernel.block.changes.follow() as changes:
        self.print("up")
        while True:
            change = await changes.get()
            self.print("disk", change.name, "came" if change.present else "went")
"""


async def test_many_at_once(tmp_path: Path) -> None:
    """The guest only looks on: what it wants to use may have gone again, or never have been connected."""
    async with steered(tmp_path, lambda host: [host.guest("one", LOOK_ON)]) as host:
        await host.says("up")
        names = [f"xvd{letter}" for letter in "bcdefghi"]
        for name in names:
            host.image(f"{name}.img")

        async def come_and_go(name: str) -> None:
            for _ in range(2):
                await host.ask("block-attach", domain="one", spec=f"{name}.img,,{name}", cwd=str(tmp_path))
                await host.ask("block-detach", domain="one", device=name)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(come_and_go, name)
        assert host.names("/local/domain/1/device") == ["suspend"]
        with trio.fail_after(30):
            for name in names:
                came, went = f"one | disk {name} came\n", f"one | disk {name} went\n"
                while host.lines.count(came) > host.lines.count(went):  # noqa: ASYNC110
                    await trio.sleep(0.001)
                seen = [line for line in host.lines if line in (came, went)]
                assert seen == [came, went] * (len(seen) // 2)


@pytest.mark.parametrize("how", ["destroy", "shutdown", "reboot"])
@pytest.mark.parametrize("moves", [0, 3, 8, 15, 25, 40])
async def test_a_domain_that_ends_while_something_is_attached(tmp_path: Path, how: str, moves: int) -> None:
    """Whoever is first: nothing of the device is left, and its image may be used by others."""

    def two(host: Steered) -> list[DomainConfig]:
        host.image("b.img")
        return [host.guest("one", FOLLOW), host.guest("other", FOLLOW)]

    async with steered(tmp_path, two) as host:
        await host.says("one | up")
        await host.says("other | up")
        outcome: list[str] = []

        async def attach(verb: str, spec: str) -> None:
            try:
                await host.ask(verb, domain="one", spec=spec, cwd=str(tmp_path))
            except ControlError as error:
                outcome.append(str(error))
            else:
                outcome.append("")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attach, "block-attach", "b.img,,xvdb")
            nursery.start_soon(attach, "network-attach", "")
            for _ in range(moves):
                await trio.lowlevel.checkpoint()
            await host.ask(how, domain="one")
        assert len(outcome) == 2
        if how == "reboot":
            return
        await until_gone(host, "one")
        for kind in ("vbd", "vif"):
            assert host.names(f"/local/domain/0/backend/{kind}") == []
        assert host.names("/libxl") == ["0", "2"]
        await host.ask("block-attach", domain="other", spec="b.img,,xvdb", cwd=str(tmp_path))
        await host.says("other | reads b'written!' 2048")


async def until_gone(host: Steered, name: str) -> None:
    with trio.fail_after(30):
        while any(row["name"] == name for row in await host.ask("list")):  # noqa: ASYNC110
            await trio.sleep(0.001)


async def test_a_domains_disks_may_be_used_by_others_when_it_has_gone(tmp_path: Path) -> None:
    def two(host: Steered) -> list[DomainConfig]:
        host.image("b.img")
        write = 'await (await self.disk("xvda")).write(1, bytes(512))\nself.print("wrote")\nawait self.kernel.never()'
        disks = 'disk = ["b.img,,xvda"]'
        return [host.guest("one", write, disks, 'vif = ["mac=00:16:3e:01:02:03"]'), host.guest("other", FOLLOW)]

    async with steered(tmp_path, two) as host:
        await host.says("one | wrote")
        await host.ask("destroy", domain="one")
        await until_gone(host, "one")
        await host.ask("network-attach", domain="other", spec="mac=00:16:3e:01:02:03")
        await host.ask("block-attach", domain="other", spec="b.img,,xvdb", cwd=str(tmp_path))
        await host.says("other | reads b'written!' 2048")
    assert host.result is not None
    assert [domain.usage.blocks for domain in host.result.domains[1:]] == [1, 2]


TICKS = """
    self.print("up")
    longest = 0
    while longest < 10**9:
        before = self.kernel.monotonic_ns()
        await self.sleep(0.005)
        longest = max(longest, self.kernel.monotonic_ns() - before)
"""
DRIVE = "disk = ['vdev=xvdc,devtype=cdrom']"


@pytest.mark.parametrize("verb", ["block-attach", "cd-insert"])
async def test_a_server_that_says_nothing_stops_nobody(tmp_path: Path, verb: str) -> None:
    """While the toolstack waits for it in real time, guests run and other people are served."""

    def guests(host: Steered) -> list[DomainConfig]:
        return [host.guest("one", TICKS, DRIVE)]

    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp_path / "silent"))
    silent.listen(4)
    with silent:
        async with steered(tmp_path, guests, time="real") as host:
            await host.says("up")
            what = {"spec": "format=raw,vdev=xvdb,target=nbd:unix:silent"}
            if verb == "cd-insert":
                what = {"device": "xvdc", "target": "nbd:unix:silent"}
            failures: list[str] = []

            async def attach() -> None:
                with pytest.raises(ControlError) as caught:
                    await host.ask(verb, domain="one", **what, cwd=str(tmp_path))
                failures.append(str(caught.value))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(attach)
                connection = await trio.to_thread.run_sync(lambda: silent.accept()[0])
                began = time.monotonic()
                await trio.sleep(0.3)
                assert len(await host.ask("list")) == 2
                assert time.monotonic() - began < 5
                assert failures == []
                connection.close()
            assert failures == [f"nbd:unix:{tmp_path}/silent: the server has closed the connection"]
            assert host.names("/local/domain/1/device/vbd") == ["51744"]


@contextmanager
def nbdkit(path: Path) -> Iterator[None]:
    """Serve a disk of 1 MiB in memory."""
    with subprocess.Popen(["nbdkit", "-f", "-U", path, "memory", "1M"]) as server:
        deadline = time.monotonic() + 20
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(path)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield
        server.terminate()


@pytest.mark.skipif(shutil.which("nbdkit") is None, reason="needs nbdkit, a real server")
@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_a_disk_at_a_server_is_attached(tmp_path: Path, clock: str) -> None:
    with nbdkit(tmp_path / "s"):
        async with steered(tmp_path, lambda host: [host.guest("one", FOLLOW)], time=clock) as host:
            await host.says("one | up")
            spec = "format=raw,vdev=xvdb,reconnect-delay=5,target=nbd:unix:s"
            await host.ask("block-attach", domain="one", spec=spec, cwd=str(tmp_path))
            await host.says("one | reads b'written!' 2048")
            await host.ask("block-detach", domain="one", device="xvdb")
            await host.says("one | disk xvdb went")


BUSY = """
    disk = await self.disk("xvdb")
    told = {}
    ends = []

    async def work(n):
        number = 0
        try:
            while True:
                number += 1
                await disk.write(8 * n, bytes([n, number % 251]) * 2048)
                told[n] = number
                assert await disk.read(8 * n, 8) == bytes([n, number % 251]) * 2048
        except OSError as error:
            ends.append(error.errno)

    threads = [self.kernel.spawn(work(n)) for n in range(24)]
    await self.sleep(0.002)
    self.print("busy")
    for thread in threads:
        await thread.join()
    self.print("ended", sorted(set(ends)), len(ends))
    self.print("told", " ".join(str(told.get(n, 0)) for n in range(24)))
    await self.kernel.never()
"""


@pytest.mark.parametrize("clock", ["virtual", "real"])
@pytest.mark.parametrize("force", [False, True])
async def test_a_disk_is_unplugged_while_it_is_busy(tmp_path: Path, force: bool, clock: str) -> None:
    """Each request that is under way ends; what was answered as written is in the image; nothing stays behind."""
    async with steered(tmp_path, lambda host: [host.guest("one", BUSY, "memory = 16")], time=clock) as host:
        image = host.image("b.img")
        await host.ask("block-attach", domain="one", spec="b.img,,xvdb", cwd=str(tmp_path))
        await host.says("one | busy")
        await host.ask("block-detach", domain="one", device="xvdb", force=force)
        await host.says("one | told")
        assert host.names("/local/domain/0/backend/vbd") == []
        # EIO for what the backend did not answer, ENXIO once the disk has gone.
        assert any(f"one | ended {ends} 24" in line for ends in ("[5]", "[6]", "[5, 6]") for line in host.lines)
        (line,) = [line for line in host.lines if "one | told" in line]
        for n, number in enumerate(map(int, line.split("told ")[1].split())):
            found = image.read_bytes()[4096 * n : 4096 * n + 4096]
            assert number > 0
            assert found in [bytes([n, newer % 251]) * 2048 for newer in (number, number + 1)]
