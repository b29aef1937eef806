"""Whole hosts: guests that behave, guests that do not, and nothing left behind by any of them."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from toolstack import host as host_module
from toolstack import lifecycle, pace
from toolstack.console_log import ConsoleLog
from toolstack.disk_spec import DiskSpec
from toolstack.errors import UsageError
from toolstack.host import Host
from toolstack.nodes import DeviceNodes
from toolstack.preparation import parse_nic
from toolstack.report import DomainResult, HostResult
from toolstack.xl_config import DomainConfig, load_config

FIRST = Path(__file__).resolve().parent.parent.parent / "examples" / "first-host"


class Bench:
    """A directory with guests, and hosts that run them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []

    def guest(self, name: str, body: str, *settings: str, head: str = "") -> DomainConfig:
        """Write a guest whose `main` is `body`, and its configuration."""
        code = f"{head}\nfrom guest_kernel.guest import Guest\n\nclass Main(Guest):\n    async def main(self):\n"
        (self.directory / f"{name}.py").write_text(code + textwrap.indent(textwrap.dedent(body), " " * 8))
        return self.config(name, f'kernel = "{name}.py"', *settings)

    def config(self, name: str, *settings: str) -> DomainConfig:
        file = self.directory / f"{name}.cfg"
        file.write_text("\n".join((f'name = "{name}"', "memory = 4", *settings)))
        return load_config(file)

    def image(self, name: str, size: int = 1 << 20) -> Path:
        path = self.directory / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def run(self, *configs: DomainConfig, leaks: Sequence[str] = (), **options: Any) -> HostResult:
        """Run a host; it must leave nothing behind."""
        self.host = Host(consoles=ConsoleLog(self.lines.append), **options)
        result = trio.run(self.host.run, configs)
        assert self.host.leaks() == list(leaks)
        return result

    def of(self, result: HostResult, name: str) -> DomainResult:
        return next(domain for domain in result.domains if domain.name == name)

    @property
    def text(self) -> str:
        return "".join(self.lines)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def first_host(bench: Bench) -> list[DomainConfig]:
    for file in FIRST.iterdir():
        if file.suffix in (".py", ".cfg"):
            (bench.directory / file.name).write_text(file.read_text())
    bench.image("guest1.img", 1 << 20)
    return [load_config(bench.directory / "guest1.cfg"), load_config(bench.directory / "guest2.cfg")]


def test_the_main_job(bench: Bench) -> None:
    result = bench.run(*first_host(bench))
    assert result.exit_code == 0
    assert "guest1 | xvda: 65536 bytes written, read back and verified\n" in bench.lines
    assert "guest1 | 10.0.0.2 answers: MESSAGE 4\n" in bench.lines
    one, two = bench.of(result, "guest1"), bench.of(result, "guest2")
    assert (one.reason, two.reason) == ("poweroff", "poweroff")
    assert (one.usage.blocks, one.usage.block_bytes) == (256, 131072)
    assert one.usage.packets == two.usage.packets > 10
    dom0 = bench.of(result, "Domain-0")
    assert dom0.usage.grants_mapped > 0
    assert dom0.usage.grants_copied > 0
    assert min(dom0.usage.hypercalls, one.usage.hypercalls, one.usage.events, one.usage.cpu_ns) > 0
    # The data went into the image file.
    assert any((bench.directory / "guest1.img").read_bytes()[:65536])


def test_more_pcpus_and_real_time(bench: Bench) -> None:
    result = bench.run(*first_host(bench), pcpus=3, time="real")
    assert result.exit_code == 0


@pytest.mark.parametrize("seed", range(5))
def test_other_schedules(bench: Bench, seed: int) -> None:
    assert bench.run(*first_host(bench), schedule=f"random:{seed}").exit_code == 0


def test_a_capture_of_the_bridge(bench: Bench) -> None:
    file = bench.directory / "wire.pcap"
    assert bench.run(*first_host(bench), nics=[parse_nic(f"xenbr0=pcap:{file}")]).exit_code == 0
    # The first broadcast (who has 10.0.0.2?) is flooded to all ports of the bridge.
    assert b"\xff" * 6 + bytes.fromhex("00163e000001") + b"\x08\x06" in file.read_bytes()


def test_a_guest_that_fails_does_not_hurt_the_others(bench: Bench) -> None:
    bad = bench.guest("bad", 'self.print("before")\nraise ValueError("no good")')
    good = bench.guest("good", 'await self.sleep(3)\nself.print("still here")')
    result = bench.run(bad, good)
    assert result.exit_code == 1
    assert [domain.name for domain in result.failures] == ["bad"]
    assert bench.of(result, "bad").reason == "crash"
    assert bench.of(result, "bad").sentence == "bad crashed: ValueError: no good (at bad.py:7)"
    assert "bad | before\n" in bench.lines
    assert "bad | ValueError: no good\n" in bench.lines
    assert "good | still here\n" in bench.lines
    assert result.virtual_ns >= 3_000_000_000


COUNT_LIVES = """
import pathlib
file = pathlib.Path(__file__).with_suffix(".lives")
lives = int(file.read_text()) + 1 if file.exists() else 1
file.write_text(str(lives))
"""


def test_on_crash_restart(bench: Bench) -> None:
    guest = bench.guest(
        "phoenix", 'if lives < 3:\n    raise ValueError("again")', 'on_crash = "restart"', head=COUNT_LIVES
    )
    (bench.directory / "phoenix.lives").write_text("-1")  # the file is loaded once when it is checked
    result = bench.run(guest)
    assert result.exit_code == 0
    assert (bench.of(result, "phoenix").lives, bench.of(result, "phoenix").reason) == (3, "poweroff")


def test_a_guest_that_always_reboots_at_once_is_given_up(bench: Bench) -> None:
    result = bench.run(bench.guest("loop", "await self.kernel.power.reboot()"))
    assert bench.of(result, "loop").lives == 5
    assert "it is not restarted" in bench.of(result, "loop").sentence


def test_a_slow_reboot_is_a_restart(bench: Bench) -> None:
    guest = bench.guest(
        "cycle", "await self.sleep(2)\nif lives < 8:\n    await self.kernel.power.reboot()", head=COUNT_LIVES
    )
    result = bench.run(guest)
    assert (result.exit_code, bench.of(result, "cycle").reason) == (0, "poweroff")
    assert bench.of(result, "cycle").lives > 5


@pytest.mark.leaves_live_host("the guest is to be preserved after its end, for somebody to look at")
def test_on_poweroff_preserve_keeps_the_domain(bench: Bench) -> None:
    guest = bench.guest("kept", "pass", 'on_poweroff = "preserve"')
    host_leaks = ["domain 1 still exists", "xenstored still serves domain 1"]
    bench.host = Host(consoles=ConsoleLog(bench.lines.append))
    result = trio.run(bench.host.run, [guest])
    assert result.exit_code == 0
    assert set(host_leaks) <= set(bench.host.leaks())
    assert bench.host.hv.domains[1].shutting_down


@pytest.mark.leaves_live_host("the old guest is to be preserved after its end, for somebody to look at")
def test_rename_restart_keeps_the_old_one_under_another_name(bench: Bench) -> None:
    guest = bench.guest(
        "old", "if lives == 1:\n    await self.kernel.power.reboot()", 'on_reboot = "rename-restart"', head=COUNT_LIVES
    )
    (bench.directory / "old.lives").write_text("-1")
    bench.host = Host()
    result = trio.run(bench.host.run, [guest])
    assert (result.exit_code, bench.of(result, "old").lives) == (0, 2)
    domains = bench.host.hv.domains
    assert sorted(domains) == [0, 1]
    tree = bench.host.xenstored.server.store.tree
    old = str(UUID(bytes=domains[1].handle)).encode()
    values = {path: node.value for path, node in tree.walk(b"/") if path.endswith((b"/name", b"/vm"))}
    assert values[b"/local/domain/1/name"] == b"old-1"
    assert values[b"/local/domain/1/vm"] == b"/vm/" + old
    assert values[b"/vm/" + old + b"/name"] == b"old-1"


@pytest.mark.leaves_live_host("the old guests are to be preserved after their ends, for somebody to look at")
def test_rename_restart_has_room_for_many_lives(bench: Bench) -> None:
    body = "await self.sleep(2)\nif lives < 10:\n    await self.kernel.power.reboot()"
    guest = bench.guest("many", body, 'on_reboot = "rename-restart"', head=COUNT_LIVES)
    (bench.directory / "many.lives").write_text("-1")
    bench.host = Host()
    result = trio.run(bench.host.run, [guest])
    assert (result.exit_code, bench.of(result, "many").lives) == (0, 10)
    assert sorted(bench.host.hv.domains) == list(range(10))


def test_a_device_that_its_backend_refuses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk controller that the nodes name is not there."""
    bench.image("d.img")
    make = lifecycle.disk_nodes

    def name_another(domid: int, back: int, disk: DiskSpec, unit: int, *, late: bool) -> DeviceNodes:
        return make(domid, back, disk, unit + 9, late=late)

    monkeypatch.setattr(lifecycle, "disk_nodes", name_another)
    lost = bench.guest("lost", 'self.print("ran")', 'disk = ["d.img,,xvda"]')
    good = bench.guest("good", "pass")
    result = bench.run(lost, good)
    assert [domain.name for domain in result.failures] == ["lost"]
    assert "lost: the backend of vbd 51712 failed: " in bench.of(result, "lost").sentence
    assert "9" in bench.of(result, "lost").sentence
    assert "ran" not in bench.text


def test_a_guest_that_waits_for_ever(bench: Bench) -> None:
    result = bench.run(bench.guest("stuck", "await self.kernel.never()"))
    assert bench.of(result, "stuck").message == (
        "stuck: everything in this guest waits for something that cannot happen any more"
    )
    assert (result.exit_code, bench.of(result, "stuck").reason) == (1, "poweroff")


def test_a_guest_that_waits_for_a_device_that_it_does_not_have(bench: Bench) -> None:
    bench.image("d.img")
    disk = bench.guest("disk", 'await self.disk("xvdb")', 'disk = ["d.img,raw,xvda,rw"]')
    net = bench.guest("net", 'await self.net.interface("eth0")')
    result = bench.run(disk, net)
    assert bench.of(result, "disk").message == (
        "disk: it waits for the disk 'xvdb', which it does not have (it has xvda)"
    )
    assert bench.of(result, "net").message == (
        "net: it waits for the interface 'eth0', which it does not have (it has none)"
    )


def test_a_guest_that_awaits_trio(bench: Bench) -> None:
    result = bench.run(bench.guest("lost", "await trio.sleep(1)", head="import trio"))
    assert result.exit_code == 1
    assert "lost.py:6" in bench.text
    assert "awaits" in bench.text


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n    pass",
        "while True:\n    try:\n        list(range(100))\n    except Exception:\n        pass",
        "while True:\n    self.kernel.cpu.hypercall(17, 0)",
        "import time\ntime.sleep(60)",
    ],
)
def test_a_guest_that_never_yields(bench: Bench, body: str) -> None:
    hog = bench.guest("hog", body)
    good = bench.guest("good", 'await self.sleep(1)\nself.print("survived")')
    result = bench.run(hog, good, hang_limit=0.3)
    assert bench.of(result, "hog").reason == "crash"
    assert bench.of(result, "hog").message.startswith("hog has not yielded for 0.3 s of wall-clock time, at hog.py:")
    assert "good | survived\n" in bench.lines


def test_a_hog_in_an_event_handler_is_found_too(bench: Bench) -> None:
    body = """
        def handler():
            while True:
                pass

        self.kernel.events.notify(self.kernel.events.bind_ipi(0, handler))
        await self.sleep(1)
    """
    result = bench.run(bench.guest("hog", body), bench.guest("good", "await self.sleep(1)"), hang_limit=0.3)
    assert bench.of(result, "hog").reason == "crash"
    assert "hog.py:" in bench.of(result, "hog").message
    assert bench.of(result, "good").reason == "poweroff"


def interrupted_run(bench: Bench, guest: DomainConfig, times: int) -> HostResult:
    """Run a host that is interrupted when its guest first prints something."""

    def write(line: str) -> None:
        if not bench.lines:
            for _ in range(times):
                host.interrupt()
        bench.lines.append(line)

    host = Host(consoles=ConsoleLog(write))
    result = trio.run(host.run, [guest])
    assert result.interrupted
    assert host.leaks() == []
    return result


@pytest.mark.parametrize(("times", "reason"), [(1, "poweroff"), (2, "destroyed")])
def test_interrupt(bench: Bench, times: int, reason: str) -> None:
    guest = bench.guest("busy", 'self.print("up")\nwhile True:\n    await self.sleep(0.001)')
    busy = bench.of(interrupted_run(bench, guest, times), "busy")
    assert (busy.reason, busy.lives) == (reason, 1)


def test_a_guest_that_is_asked_to_end_is_stopped_before_its_devices(bench: Bench) -> None:
    """Its program is cancelled where it waits, so that it neither works on closing devices nor panics over them."""
    bench.image("d.img")
    body = """
        disk = await self.disk("xvda")

        async def writer():
            while True:
                await disk.write(0, bytes(512))
                await self.net.ping("10.0.0.9", timeout_ns=1000)

        self.kernel.spawn(self.kernel.never())
        self.print("up")
        try:
            while True:
                await disk.write(0, bytes(512))
        finally:
            self.kernel.spawn(writer(), "late")
            self.print("stopped")
    """
    guest = bench.guest("asked", body, 'disk = ["d.img,raw,xvda,rw"]')
    asked = bench.of(interrupted_run(bench, guest, 1), "asked")
    assert asked.reason == "poweroff"
    assert "asked | stopped\n" in bench.lines
    assert "thread late failed" in bench.text


def test_a_guest_that_ignores_the_request_is_destroyed(bench: Bench) -> None:
    body = """
        self.kernel.power._shutdown = lambda reason: self.kernel.never()
        self.print("up")
        while True:
            await self.sleep(1)
    """
    result = interrupted_run(bench, bench.guest("deaf", body), 1)
    assert bench.of(result, "deaf").reason == "destroyed"
    assert "has not shut down in time" in bench.text


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("moment", [1, 15, 30, 45, 60, 80, 110, 150, 200])
def test_an_interrupt_at_any_moment_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, moment: int, times: int
) -> None:
    """`moment` counts stretches of guest code: dom0 boots, makes the guests, they connect, they work."""
    bench.image("d.img")
    server = bench.guest("server", "await self.kernel.never()", "driver_domain = 1")
    body = 'disk = await self.disk("xvda")\nfor n in range(50):\n    await disk.write(n, bytes(512))'
    client = bench.guest("client", body, 'disk = ["d.img,raw,xvda,rw,backend=server"]', 'vif = [""]')
    monkeypatch.setattr(pace, "MAX_STEPS", 1)
    monkeypatch.setattr(pace, "ALONE_NS", 0)
    count = 0
    checkpoint = trio.lowlevel.checkpoint

    async def interrupting() -> None:
        nonlocal count
        count += 1
        if count == moment:
            for _ in range(times):
                bench.host.interrupt()
        await checkpoint()

    monkeypatch.setattr(trio.lowlevel, "checkpoint", interrupting)
    assert bench.run(client, server).interrupted
    assert bench.host.hv.shutdown_reason == 0


def test_a_driver_domain(bench: Bench) -> None:
    bench.image("d.img")
    server = bench.guest("server", "await self.kernel.never()", "driver_domain = 1")
    body = """
        disk = await self.disk("xvda")
        await disk.write(8, b"x" * 4096)
        assert await disk.read(8, 8) == b"x" * 4096
        self.print("backend", await self.kernel.xenbus.read("device/vbd/51712/backend-id"))
    """
    client = bench.guest("client", body, 'disk = ["d.img,raw,xvda,rw,backend=server"]')
    result = bench.run(client, server)
    assert result.exit_code == 0
    assert "client | backend 1\n" in bench.lines
    assert bench.of(result, "server").usage.grants_mapped > 0
    assert (bench.directory / "d.img").read_bytes()[4096:8192] == b"x" * 4096


def test_several_vcpus(bench: Bench) -> None:
    body = """
        threads = [self.kernel.spawn(self.kernel.cpu_burn(10_000_000)) for _ in range(4)]
        for thread in threads:
            await thread.join()
    """
    result = bench.run(bench.guest("smp", body, "vcpus = 4"), pcpus=4)
    assert result.exit_code == 0
    assert bench.of(result, "smp").usage.cpu_ns >= 40_000_000
    assert result.virtual_ns < 40_000_000


def test_a_read_only_disk(bench: Bench) -> None:
    bench.image("ro.img")
    body = """
        disk = await self.disk("xvdb")
        try:
            await disk.write(0, bytes(512))
        except OSError as error:
            self.print("errno", error.errno)
    """
    one = bench.guest("one", body, 'disk = ["ro.img,raw,xvdb,ro"]')
    two = bench.guest("two", body, 'disk = ["ro.img,raw,xvdb,ro"]')
    assert bench.run(one, two).exit_code == 0
    assert "one | errno 30\n" in bench.lines
    assert "two | errno 30\n" in bench.lines


def test_a_killed_guest_leaves_nothing(bench: Bench) -> None:
    """The guest crashes while its disk and its interface are connected and busy."""
    bench.image("k.img")
    body = """
        disk = await self.disk("xvda")
        eth0 = await self.net.interface("eth0")
        eth0.configure("10.0.0.1/24")
        self.kernel.spawn(disk.write(0, bytes(65536)), "writer")
        await self.kernel.yield_()
        raise RuntimeError("the end")
    """
    guest = bench.guest("k", body, 'disk = ["k.img,raw,xvda,rw"]', 'vif = [""]')
    assert bench.of(bench.run(guest), "k").reason == "crash"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (['disk = ["none.img,raw,xvda"]'], r"g\.cfg:4: the disk image '.*none\.img' does not exist"),
        (['disk = [".,raw,xvda"]'], r"g\.cfg:4: the disk image '.*' is a directory"),
        (['disk = ["short.img,raw,xvda"]'], r"g\.cfg:4: the disk image '.*' is too short: 100 bytes"),
        (['disk = ["d.img,,xvda", "d.img,,xvdb"]'], r"g\.cfg:4: the disk image '.*' is used by 'g' already"),
        (['disk = ["d.img,,xvda,rw,backend=store"]'], r"g\.cfg:4: there is no backend domain 'store'"),
        (['vif = ["bridge=xenbr1"]'], r"g\.cfg:4: this host has no bridge 'xenbr1'; did you mean 'xenbr0'\?"),
        (['kernel = "none.py"'], r"g\.cfg:4: the guest file '.*none\.py' does not exist"),
        (['kernel = "syntax.py"'], r"g\.cfg:4: .*syntax\.py:2: syntax error in the guest file"),
        (['kernel = "empty.py"'], r"g\.cfg:4: .*empty\.py defines no guest"),
        (['kernel = "mainless.py"'], r"g\.cfg:4: .*mainless\.py: the guest class 'Idle' has no main"),
        (['kernel = "mainless.py:Idle"'], r"g\.cfg:4: .*mainless\.py: the guest class 'Idle' has no main"),
        (['kernel = "two.py"'], r'g\.cfg:4: .*two\.py defines several guests; name one, as in kernel = "two\.py:A"'),
        (['kernel = "two.py:C"'], r"g\.cfg:4: .*two\.py has no guest class 'C' \(there is A, B\)"),
        (['kernel = "fails.py"'], r"g\.cfg:4: .*fails\.py:2: the guest file cannot be loaded: ZeroDivisionError"),
        (['kernel = "elf"'], r"g\.cfg:4: the kernel '.*elf' is cut short: 4 bytes"),
        (['cpus = "1-2"'], r"g\.cfg:4: none of these CPUs is there: the host has 1, and the first is number 0"),
        (["cap = 101"], r"g\.cfg:4: 1 vCPUs can use 100 % of a CPU at most, not 101"),
        (['ramdisk = "d.img"'], r"g\.cfg:4: a guest written in Python has no use for a ramdisk"),
    ],
)
def test_what_is_wrong_before_the_start(bench: Bench, settings: list[str], message: str) -> None:
    bench.image("d.img")
    bench.image("short.img", 100)
    for name, text in {
        "syntax.py": "x = 1\ndef f(:\n",
        "empty.py": "x = 1\n",
        "mainless.py": "from guest_kernel.guest import Guest\nclass Idle(Guest): pass\n",
        "two.py": "from guest_kernel.guest import Guest\nclass A(Guest): pass\nclass B(Guest): pass\n",
        "fails.py": "x = 0\n1 / x\n",
        "elf": "\x7fELF",
    }.items():
        (bench.directory / name).write_text(text)
    bench.guest("g", "pass")
    config = bench.config("g", 'kernel = "g.py"', *settings)
    with pytest.raises(UsageError, match=message):
        trio.run(Host().run, [config])


def test_too_little_memory(bench: Bench) -> None:
    guest = bench.guest("g", "pass")
    with pytest.raises(UsageError, match="too little memory: the host has 40 MiB"):
        trio.run(Host(memory_mib=40).run, [guest])


def test_memory_runs_out_in_the_middle(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is checked before anything starts; should it be wrong, the guest that does not fit is named."""
    monkeypatch.setattr(host_module, "XEN_MEMORY_MIB", 0)
    monkeypatch.setattr(host_module, "OVERHEAD_KIB_PER_DOMAIN", 0)
    guests = [bench.guest(f"g{number}", "await self.sleep(1)") for number in range(4)]
    result = bench.run(*guests, memory_mib=64 + 4 * 4)
    assert [domain.name for domain in result.failures] == ["g3"]
    assert re.search(r"g3\.cfg:2: domain 'g3' wants 4 MiB, [0-3] MiB are free", result.failures[0].sentence)
    assert result.failures[0].reason == "not started"


def test_bad_options() -> None:
    with pytest.raises(UsageError, match="is none of fifo"):
        Host(schedule="lifo")
    with pytest.raises(UsageError, match="schedule"):
        Host(schedule="replay:/nonexistent")
    for nic in ("", "x", "x=", "=none", "x=pcap:", "x=tap", "x.1=none", "x:1=none"):
        with pytest.raises(UsageError, match="--nic"):
            parse_nic(nic)


def test_many_guests(bench: Bench) -> None:
    guests = [bench.guest(f"g{number}", "await self.sleep(0.5)", 'vif = [""]') for number in range(30)]
    result = bench.run(*guests)
    assert result.exit_code == 0
    assert len(result.domains) == 31
