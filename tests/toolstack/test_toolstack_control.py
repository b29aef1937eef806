"""The control socket: what the verbs do, what they refuse, and what a client may send without harm."""

import contextlib
import os
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from control_host import Steered, steered
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import read_trace
from toolstack.control.client import Control
from toolstack.control.endpoint import ControlEndpoint
from toolstack.control.protocol import (
    MAX_MESSAGE,
    ControlError,
    Messages,
    ProtocolError,
    check_reply,
    check_request,
    pack,
)
from toolstack.control.verbs import VERBS, state_letters
from toolstack.errors import SpecError, UsageError
from toolstack.host import Host
from toolstack.lifecycle import Lifecycle
from toolstack.memory_spec import parse_memory
from toolstack.outside import Outside
from toolstack.xl_config import DomainConfig

ROOT = str(Path(__file__).resolve().parents[2])
WAIT = 'self.print("up")\nawait self.kernel.never()'
TALK = """
    self.print("up")
    while True:
        self.print("got", repr(await self.kernel.console.readline()))
"""


def two(host: Steered) -> list[DomainConfig]:
    return [host.guest("one", WAIT), host.guest("two", TALK, "vcpus = 2")]


async def test_list_and_names(tmp_path: Path) -> None:
    async with steered(tmp_path, two) as host:
        await host.says("two | up")
        rows = await host.ask("list")
        assert [(row["name"], row["id"], row["mem"], row["vcpus"]) for row in rows] == [
            ("Domain-0", 0, 64, 1),
            ("one", 1, 4, 1),
            ("two", 2, 4, 2),
        ]
        assert [row["state"] for row in rows] == ["r-----", "-b----", "-b----"]
        assert all(row["time_ns"] > 0 for row in rows)
        assert [row["name"] for row in await host.ask("list", domain="2")] == ["two"]
        assert await host.ask("domid", domain="two") == 2
        assert await host.ask("domid", domain="Domain-0") == 0
        assert await host.ask("domname", domain="1") == "one"
        assert await host.ask("domname", domain="0") == "Domain-0"


@pytest.mark.parametrize(
    ("verb", "args", "sentence"),
    [
        ("domid", {"domain": "thre"}, "there is no domain 'thre'"),
        ("domid", {"domain": "onne"}, "there is no domain 'onne'; did you mean 'one'?"),
        ("list", {"domain": "9"}, "there is no domain '9'"),
        ("pause", {"domain": "0"}, "Domain-0 is the control domain: this can only be done to guests"),
        ("destroy", {"domain": "Domain-0"}, "Domain-0 is the control domain: this can only be done to guests"),
        ("unpause", {"domain": "one"}, "one is not paused"),
        ("pause", {}, "pause: the argument 'domain' is to be a text"),
        ("pause", {"domain": 1}, "pause: the argument 'domain' is to be a text"),
        ("shutdown", {"domain": "one", "wait": 1}, "shutdown: the argument 'wait' is to be true or false"),
        ("paus", {"domain": "one"}, "this host knows no verb 'paus'; did you mean 'pause'?"),
        ("mem-set", {"domain": "one", "kib": 8192}, "one cannot have more than its maximum of 4 MiB"),
        ("mem-set", {"domain": "one", "kib": 0}, "a domain without memory is none"),
        ("mem-set", {"domain": "one", "kib": "1"}, "mem-set: the argument 'kib' is to be a whole number"),
        ("vcpu-set", {"domain": "one", "count": 2}, "one has 1 vCPU: it cannot have 2"),
        ("vcpu-set", {"domain": "two", "count": 0}, "two has 2 vCPUs: it cannot have 0"),
        (
            "vcpu-set",
            {"domain": "two", "count": 2},
            "that would overcommit: 2 vCPUs on 1 physical CPU (--ignore-host does it)",
        ),
        ("sysrq", {"domain": "one", "letter": "ab"}, "a sysrq request is one letter, not 'ab'"),
        ("sysrq", {"domain": "one", "letter": "\n"}, "a sysrq request is one letter, not '\\n'"),
    ],
)
async def test_mistakes_are_one_sentence(tmp_path: Path, verb: str, args: dict[str, Any], sentence: str) -> None:
    async with steered(tmp_path, two) as host:
        with pytest.raises(ControlError) as caught:
            await host.ask(verb, **args)
        assert str(caught.value) == sentence


async def test_pause_stops_a_guest(tmp_path: Path) -> None:
    def tick(host: Steered) -> list[DomainConfig]:
        return [
            host.guest("tick", "while True:\n    await self.sleep(0.01)\n    self.print(self.kernel.monotonic_ns())")
        ]

    async with steered(tmp_path, tick, time="real") as host:
        await host.says("tick | ")
        await host.ask("pause", domain="tick")
        (row,) = await host.ask("list", domain="tick")
        assert row["state"][2] == "p"
        await trio.sleep(0.2)  # for xenconsoled to show what was in the ring
        seen = len(host.lines)
        await trio.sleep(0.2)
        assert len(host.lines) == seen
        await host.ask("unpause", domain="tick")
        with trio.fail_after(30):
            while len(host.lines) < seen + 3:  # noqa: ASYNC110
                await trio.sleep(0.001)


async def test_shutdown_and_wait(tmp_path: Path) -> None:
    async with steered(tmp_path, two, end=False) as host:
        await host.ask("shutdown", domain="one", wait=True)
        assert "one | control/shutdown: poweroff\n" in host.lines
        # The last guest takes the host with it, and still there is an answer.
        await host.ask("shutdown", domain="two", wait=True)
    assert host.result is not None
    assert host.result.exit_code == 0


async def test_a_guest_that_cannot_is_not_asked(tmp_path: Path) -> None:
    body = 'await self.sleep(1)\nawait self.kernel.xenbus.write("control/feature-poweroff", "0")\n' + WAIT
    async with steered(tmp_path, lambda host: [host.guest("deaf", body)]) as host:
        await host.says("up")
        with pytest.raises(ControlError, match=r"deaf says that it cannot poweroff \(control/feature-poweroff is 0\)"):
            await host.ask("shutdown", domain="deaf")


async def test_reboot_gives_a_guest_another_life(tmp_path: Path) -> None:
    async with steered(tmp_path, lambda host: [host.guest("again", WAIT)]) as host:
        await host.says("up")
        await host.ask("reboot", domain="again", wait=True)
        with trio.fail_after(30):
            while host.lines.count("again | up\n") < 2:  # noqa: ASYNC110
                await trio.sleep(0.001)
        assert await host.ask("domid", domain="again") == 2


async def test_destroy(tmp_path: Path) -> None:
    async with steered(tmp_path, two) as host:
        await host.ask("destroy", domain="one")
        assert [row["name"] for row in await host.ask("list")] == ["Domain-0", "two"]
    assert host.result is not None
    assert [(domain.name, domain.reason) for domain in host.result.domains[1:]] == [
        ("one", "destroyed"),
        ("two", "poweroff"),
    ]


async def test_a_preserved_domain_can_be_destroyed(tmp_path: Path) -> None:
    def kept(host: Steered) -> list[DomainConfig]:
        return [host.guest("kept", "pass", 'on_poweroff = "preserve"'), host.guest("two", WAIT)]

    async with steered(tmp_path, kept) as host:
        await host.says("two | up")
        (row,) = await host.ask("list", domain="kept")
        assert row["state"] == "---s--"
        with pytest.raises(ControlError, match="kept has ended already"):
            await host.ask("pause", domain="kept")
        await host.ask("destroy", domain="kept")
        assert [row["name"] for row in await host.ask("list")] == ["Domain-0", "two"]


async def test_sysrq_is_answered_on_the_console(tmp_path: Path) -> None:
    async with steered(tmp_path, two) as host:
        await host.says("one | up")
        await host.ask("sysrq", domain="one", letter="m")
        await host.says("one | sysrq: show-memory-usage")


async def test_memory_is_set_in_xen_and_told_to_the_guest(tmp_path: Path) -> None:
    async with steered(tmp_path, two) as host:
        await host.says("one | up")
        await host.ask("mem-set", domain="one", kib=3072)
        assert host.store("/local/domain/1/memory/target") == "3072"
        domain = host.host.hv.domains[1]
        assert domain.max_pages == (3072 + 1024) // 4, "libxl leaves a guest 1 MiB more"
        assert host.store("/local/domain/1/memory/static-max") == "4096"


async def test_vcpus_are_set_by_their_nodes(tmp_path: Path) -> None:
    async with steered(tmp_path, two) as host:
        await host.says("two | up")
        for count, second in ((1, "offline"), (2, "online")):
            await host.ask("vcpu-set", domain="two", count=count, ignore_host=True)
            assert host.store("/local/domain/2/cpu/0/availability") == "online"
            assert host.store("/local/domain/2/cpu/1/availability") == second


@pytest.mark.parametrize(
    ("text", "kib"),
    [("256", 262144), ("256m", 262144), ("1G", 1 << 20), ("2t", 2 << 30), ("512k", 512), ("2048b", 2)],
)
def test_amounts_of_memory(text: str, kib: int) -> None:
    assert parse_memory(text) == kib


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5g", "0", "1023b", "1p", "99999999999t", "\uff11"])
def test_no_amounts_of_memory(text: str) -> None:
    with pytest.raises(SpecError, match="is no amount of memory"):
        parse_memory(text)


# -- consoles -----------------------------------------------------------------------------------------------------


async def console(host: Steered, domain: str, typed: bytes, wanted: bytes) -> bytes:
    """Attach, type, and return what is shown until it contains `wanted`."""

    def attach() -> bytes:
        shown = b""
        with Control(host.endpoint.path) as control:
            assert control.ask("console", domain=domain)["attached"]
            control._socket.sendall(pack(typed))
            while wanted not in shown:
                data = next(control._replies, None)
                if data is None:
                    data = control._receive()
                shown += data
        return shown

    with trio.fail_after(30):
        return await trio.to_thread.run_sync(attach)


async def test_a_console_over_the_socket(tmp_path: Path) -> None:
    async with steered(tmp_path, two) as host:
        await host.says("two | up")
        assert (await console(host, "two", b"hello\n", b"got 'hello'\n")).startswith(b"up\n")
        # Who comes later gets what comes later.
        assert await console(host, "2", b"again\n", b"got 'again'\n") == b"again\ngot 'again'\n"


async def test_a_console_that_is_a_pseudo_terminal(tmp_path: Path) -> None:
    async with steered(tmp_path, two, ptys=True) as host:
        await host.says("two | up")
        place = await host.ask("console", domain="two")
        assert place == {"tty": host.store("/local/domain/2/console/tty")}
        assert await trio.Path(place["tty"]).exists()


async def test_the_console_goes_with_its_domain(tmp_path: Path) -> None:
    async with steered(tmp_path, two) as host:
        await host.says("one | up")

        def watch() -> bytes:
            with Control(host.endpoint.path) as control:
                control.ask("console", domain="one")
                shown = b""
                while data := control._socket.recv(4096):
                    shown += data
                return shown

        async with trio.open_nursery() as nursery:
            results: list[bytes] = []

            async def run() -> None:
                results.append(await trio.to_thread.run_sync(watch))

            nursery.start_soon(run)
            await trio.sleep(0.05)
            await host.ask("destroy", domain="one")
        assert results[0].startswith(pack(b"up\n")) or results == [b""]


async def test_a_client_that_never_reads_its_console_hurts_nobody(tmp_path: Path) -> None:
    def flood(host: Steered) -> list[DomainConfig]:
        body = (
            "while True:\n    self.print('x' * 500)\n    await self.kernel.console.drain()\n    await self.sleep(0.001)"
        )
        return [host.guest("flood", body), host.guest("two", TALK)]

    async with steered(tmp_path, flood) as host:
        await host.says("two | up")
        with await trio.to_thread.run_sync(Control, host.endpoint.path) as lazy:
            await trio.to_thread.run_sync(lambda: lazy.ask("console", domain="flood"))
            for _ in range(3):
                await console(host, "two", b"hello\n", b"got 'hello'\n")


# -- the protocol -------------------------------------------------------------------------------------------------


async def test_any_bytes_are_survived(tmp_path: Path) -> None:
    junk = [
        b"\xc1",
        b"\xff" * 100,
        pack(5),
        pack([]),
        pack({"verb": 5}),
        pack({"verb": "list", "args": 3}),
        pack({"verb": "list", "more": 1}),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"GET / HTTP/1.0\r\n\r\n",
        pack({"verb": "x" * 1000, "args": {}}),
        b"\xc6\x7f\xff\xff\xff" + bytes(1000),
    ]
    async with steered(tmp_path, two) as host:
        for data in junk:
            stream = await trio.open_unix_socket(host.endpoint.path)
            async with stream:
                await stream.send_all(data)
                await stream.send_eof()
                with trio.fail_after(10):
                    got = b"".join([bytes(part) async for part in stream])
            replies = list(Messages().feed(got))
            assert replies[0] == {"paravirt": 1}
            assert all("error" in reply or "result" in reply for reply in replies[1:])
        assert len(await host.ask("list")) == 3


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_messages_are_parsed_or_refused(data: bytes, cuts: list[int]) -> None:
    messages = Messages()
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    try:
        for start, end in pairwise(places):
            for message in messages.feed(data[start:end]):
                try:
                    check_request(message)
                except ProtocolError:
                    continue
    except ProtocolError:
        return


def test_long_messages_are_refused() -> None:
    with pytest.raises(ProtocolError):
        list(Messages().feed(msgpack.packb(b"x" * MAX_MESSAGE)))
    assert list(Messages().feed(msgpack.packb(b"x" * (MAX_MESSAGE - 10)))) == [b"x" * (MAX_MESSAGE - 10)]


@pytest.mark.parametrize("reply", [None, [], {}, {"error": 5}, "text"])
def test_replies_are_checked(reply: object) -> None:
    with pytest.raises(ProtocolError):
        check_reply(reply)


@pytest.mark.parametrize(
    ("flags", "letters"),
    [
        (1 << 5, "r-----"),
        (1 << 4, "-b----"),
        (1 << 3 | 1 << 4, "-bp---"),
        (1 << 2, "---s--"),
        (1 << 2 | 3 << 16, "---sc-"),
        (1 << 0, "-----d"),
    ],
)
def test_letters_of_the_state(flags: int, letters: str) -> None:
    assert state_letters(flags) == letters


# -- the socket ---------------------------------------------------------------------------------------------------


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    old = socket.socket(socket.AF_UNIX)
    old.bind(str(path))
    old.listen()
    with pytest.raises(UsageError, match="another host listens there"):
        ControlEndpoint(path, Outside()).open()
    old.close()
    endpoint = ControlEndpoint(path, Outside())
    endpoint.open()
    endpoint.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(UsageError, match="there is something else in this place"):
        ControlEndpoint(path, Outside()).open()
    assert path.read_text() == "precious"
    with pytest.raises(UsageError, match="No such file or directory"):
        ControlEndpoint(tmp_path / "no" / "sock", Outside()).open()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"no host listens at .*: No such file or directory"):
        Control(tmp_path / "sock")


def test_without_a_client_nothing_changes_in_the_trace(tmp_path: Path) -> None:
    traces = []
    for control in (False, True):
        outside = Outside()
        endpoint = ControlEndpoint(tmp_path / "sock", outside) if control else None
        if endpoint is not None:
            endpoint.open()
        host = Steered(tmp_path)
        config = host.guest("print", 'for n in range(100):\n    self.print("line", n)')
        file = tmp_path / f"{control}.trace"
        trio.run(Host(outside=outside, trace_file=file).run, [config])
        if endpoint is not None:
            endpoint.close()
        traces.append(list(read_trace(file)[1]))
    assert traces[0] == traces[1]


# -- the commands -------------------------------------------------------------------------------------------------


async def test_commands_print_as_xl_does(tmp_path: Path) -> None:
    def command(*arguments: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", "from toolstack.cli import main; main()", *arguments],
            cwd=tmp_path,
            input=typed,
            capture_output=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": ROOT, "PARAVIRT_CONTROL": str(tmp_path / "sock")},
            check=False,
        )

    async def run(*arguments: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return await trio.to_thread.run_sync(lambda: command(*arguments, typed=typed))

    def with_devices(host: Steered) -> list[DomainConfig]:
        host.image("a.img")
        return [
            host.guest("one", WAIT, 'disk = ["a.img,,xvda"]', 'vif = ["mac=00:16:3e:00:00:01"]'),
            host.guest("two", TALK),
        ]

    async with steered(tmp_path, with_devices) as host:
        host.image("b.img")
        await host.says("two | up")
        listed = (await run("list")).stdout.decode().splitlines()
        assert listed[0] == "Name                                        ID   Mem VCPUs\tState\tTime(s)"
        assert listed[2] == "one                                          1     4     1     -b----       0.0"
        done = await run("block-attach", "one", "b.img,,xvdb")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        disks = (await run("block-list", "one")).stdout.decode().splitlines()
        assert disks[0] == "Vdev  BE  handle state evt-ch ring-ref BE-path                       "
        assert [line.split()[:4] for line in disks[1:]] == [["51712", "0", "0", "4"], ["51728", "0", "0", "4"]]
        vifs = (await run("network-list", "one")).stdout.decode().splitlines()
        assert vifs[0].split() == [
            "Idx",
            "BE",
            "Mac",
            "Addr.",
            "handle",
            "state",
            "evt-ch",
            "tx-/rx-ring-ref",
            "BE-path",
        ]
        assert vifs[1].split()[:5] == ["0", "0", "00:16:3e:00:00:01", "0", "4"]
        done = await run("block-detach", "one", "xvdq")
        assert (done.returncode, done.stderr) == (1, b"paravirt: one has no disk 'xvdq'\n")
        done = await run("block-attach", "one", "b.img,,xvdb,w,oops")
        assert done.returncode == 2
        assert done.stderr.endswith(b"and 'oops' is the fifth\n")
        done = await run("console", "two", typed=b"typed\n\x1d")
        assert (done.returncode, done.stderr) == (0, b"")
        await host.says("two | got 'typed'")
    done = command("list")
    assert (done.returncode, done.stderr.startswith(b"paravirt: no host listens at ")) == (1, True)


def test_every_verb_has_a_command() -> None:
    from toolstack.cli import MODULES

    assert VERBS.keys() <= {verb for verbs in MODULES.values() for verb in verbs}


@pytest.mark.parametrize("moment", ["destroy", "_build", "_backends_ready"])
async def test_the_end_comes_while_a_guest_reboots(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two lives, too, a guest is told: the host does not run on for ever."""
    with trio.fail_after(60):
        async with steered(tmp_path, lambda host: [host.guest("one", "await self.kernel.never()")], end=False) as host:
            real = getattr(Lifecycle, moment)

            async def interrupt(self: Lifecycle, *args: object) -> object:
                if not host.host.interrupts:
                    host.host.interrupt()
                    # (It is heeded between two stretches of guest code.)
                    await self.kernel.sleep(1000)
                return await real(self, *args)

            monkeypatch.setattr(Lifecycle, moment, interrupt)
            # (It may be gone before it has answered.)
            with contextlib.suppress(ControlError):
                await host.ask("reboot", domain="one")
    assert host.result is not None
    assert host.result.unfinished == []
    assert host.host.interrupts == 1
