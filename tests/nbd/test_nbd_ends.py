"""An exported disk that comes, goes and changes; and what a person can say wrong."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from nbd_scene import Scene
from raw_client import RawClient

from frontends.block import BlockFront
from guest_kernel.nbd import wire
from guest_kernel.xenbus.driver import XenbusDevice
from toolstack.cli import main
from toolstack.control.client import Control
from toolstack.control.endpoint import ControlEndpoint
from toolstack.errors import UsageError
from toolstack.nbd_export import ExportSpec, parse_export
from toolstack.outside import Outside

MIB = 1 << 20


def test_unplugging_the_disk_ends_its_clients_and_plugging_in_another_one_serves_new_ones(scene: Scene) -> None:
    outside = Outside()
    endpoint = ControlEndpoint(scene.directory / "control", outside)
    endpoint.open()

    def client() -> None:
        with RawClient(scene.path) as raw, Control(endpoint.path) as host:
            raw.hello()
            assert raw.ask(wire.CMD_WRITE, 0, 512, data=b"1" * 512) == 0
            host.ask("block-detach", domain="guest", device="xvda", force=False)
            assert raw.is_hung_up_on()
            host.ask("block-attach", domain="guest", spec=f"{scene.image},,xvda,w", cwd=os.fspath(scene.directory))
            with RawClient(scene.path) as other:
                other.hello()
                other.request(wire.CMD_READ, 0, 512)
                assert other.reply(512) == (0, b"1" * 512)

    try:
        scene.serve(client, outside=outside)
    finally:
        endpoint.close()


def test_a_disk_that_its_driver_gives_up_is_no_end_of_the_guest(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend may fail, or say what no backend says; who has connected waits until there is a disk."""
    outside = Outside()
    endpoint = ControlEndpoint(scene.directory / "control", outside)
    endpoint.open()
    connect = BlockFront.connect

    async def fails_once(self: BlockFront, device: XenbusDevice) -> None:
        monkeypatch.setattr(BlockFront, "connect", connect)
        raise ValueError("no backend says that")

    monkeypatch.setattr(BlockFront, "connect", fails_once)

    def client() -> None:
        with RawClient(scene.path) as raw, Control(endpoint.path) as host:
            host.ask("block-detach", domain="guest", device="xvda", force=False)
            host.ask("block-attach", domain="guest", spec=f"{scene.image},,xvda,w", cwd=os.fspath(scene.directory))
            raw.hello()
            assert raw.ask(wire.CMD_WRITE, 0, 512, data=b"1" * 512) == 0

    try:
        result = scene.serve(client, scene.guest("await self.kernel.never()"), outside=outside)
    finally:
        endpoint.close()
    assert result.exit_code == 0, scene.text
    assert "nbd: xvda: its backend did not connect: no such device or address; clients wait" in scene.text
    assert scene.image.read_bytes()[:512] == b"1" * 512


def test_a_larger_disk_is_larger_for_who_comes_next(scene: Scene) -> None:
    outside = Outside()
    endpoint = ControlEndpoint(scene.directory / "control", outside)
    endpoint.open()

    def size(raw: RawClient) -> int:
        raw.greet()
        raw.option(wire.OPT_EXPORT_NAME, b"")
        return int(wire.EXPORT.unpack(raw.read(wire.EXPORT.size))[0])

    def client() -> None:
        with RawClient(scene.path) as first, Control(endpoint.path) as host:
            assert size(first) == 16 * MIB
            host.ask("block-resize", domain="guest", device="xvda", size="20M")
            found = 0
            while found != 20 * MIB:  # the guest hears of it a little later
                with RawClient(scene.path) as second:
                    found = size(second)
            assert first.ask(wire.CMD_FLUSH) == 0

    try:
        scene.serve(client, outside=outside)
    finally:
        endpoint.close()


def test_a_trace_with_an_export_and_real_time_and_tcp(scene: Scene) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = random.Random(1).randbytes(2 * MIB)
    unix = ExportSpec("unix", "guest", "xvda", path=scene.path)
    tcp = ExportSpec("tcp", "guest", "xvda", host="127.0.0.1", port=port)

    def client() -> None:
        with RawClient(scene.path) as raw:
            raw.hello()
            assert raw.ask(wire.CMD_WRITE, 0, len(data), data=data) == 0
            raw.socket.close()
            raw.socket = socket.create_connection(("127.0.0.1", port), 10)
            raw.hello()
            raw.request(wire.CMD_READ, 0, len(data))
            assert raw.reply(len(data)) == (0, data)

    scene.serve(client, exports=[unix, tcp], time="real", trace_file=scene.directory / "host.trace")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("guest", "is not of the form"),
        ("guest:xvda", "is not of the form"),
        ("guest=unix:s", "is not of the form"),
        ("guest:xvda=file:s", "is not of the form"),
        ("guest:xvda=unix:", "is not of the form"),
        ("guest:xvda=tcp:host", "HOST:PORT"),
        ("guest:xvda=tcp:host:0", "HOST:PORT"),
        ("guest:xvda=tcp:host:70000", "HOST:PORT"),
    ],
)
def test_what_cannot_be_understood_is_said_in_one_sentence(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        parse_export(text)


def test_places_of_exports() -> None:
    assert parse_export("a:xvda=unix:/s").path == Path("/s")
    assert (parse_export("a:b:xvda=unix:s").guest, parse_export("a:b:xvda=unix:s").vdev) == ("a:b", "xvda")
    spec = parse_export("a:xvda=tcp:[::1]:10809")
    assert (spec.host, spec.port) == ("::1", 10809)


@pytest.mark.parametrize(
    ("export", "sentence"),
    [
        ("gest:xvda=unix:s", "there is no guest 'gest'"),
        ("guest:xvdb=unix:s", "'guest' has no disk 'xvdb' (it has xvda)"),
        ("guest:xvda=unix:taken", "there is something else that is no socket"),
        ("guest:xvda=unix:no/where/s", "cannot listen"),
        ("guest:xvda=tcp:no.such.host.invalid:1", "--export-nbd"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    scene: Scene, export: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.guest()
    monkeypatch.chdir(scene.directory)
    Path("taken").write_text("")
    done = CliRunner().invoke(main, ["run", "--export-nbd", export, "guest.cfg"])
    assert done.exit_code == 2
    assert sentence in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_two_exports_at_one_place(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.guest()
    monkeypatch.chdir(scene.directory)
    both = ["--export-nbd", "guest:xvda=unix:s", "--export-nbd", "guest:xvda=unix:s"]
    done = CliRunner().invoke(main, ["run", *both, "guest.cfg"])
    assert (done.exit_code, "at the same place" in done.output) == (2, True)


@pytest.mark.parametrize("length", [4096, MIB, 3 * MIB])
@pytest.mark.parametrize("pause", [False, True])
def test_who_goes_in_the_middle_of_a_write_leaves_nothing_behind(scene: Scene, length: int, pause: bool) -> None:
    """What has been asked for before is answered, and then the server hangs up."""

    def client() -> None:
        for _ in range(3):
            with RawClient(scene.path) as raw:
                raw.hello()
                raw.request(wire.CMD_WRITE, 0, 512, data=b"1" * 512)
                if pause:
                    assert raw.reply() == (0, b"")
                raw.request(wire.CMD_WRITE, 0, length, data=b"2" * (length // 2))
                raw.socket.shutdown(socket.SHUT_WR)
                if not pause:
                    assert raw.reply() == (0, b"")
                assert raw.is_hung_up_on()

    scene.serve(client)


def test_unplugging_the_disk_ends_a_client_in_the_middle_of_a_write(scene: Scene) -> None:
    outside = Outside()
    endpoint = ControlEndpoint(scene.directory / "control", outside)
    endpoint.open()

    def client() -> None:
        with RawClient(scene.path) as raw, Control(endpoint.path) as host:
            raw.hello()
            raw.request(wire.CMD_WRITE, 0, MIB, data=b"2" * (MIB // 2))
            host.ask("block-detach", domain="guest", device="xvda", force=False)
            assert raw.is_hung_up_on()

    try:
        scene.serve(client, outside=outside)
    finally:
        endpoint.close()


def test_clients_that_come_and_go_leave_the_memory_as_it_was(scene: Scene) -> None:
    """The backend keeps the pages of buffers mapped: they serve the next client, and the one after that."""
    data = random.Random(1).randbytes(1 << 20)
    served = []

    def client() -> None:
        for number in range(40):
            with RawClient(scene.path) as raw:
                raw.hello()
                for kind, size in ((wire.CMD_WRITE, 1 << 20), (wire.CMD_WRITE, 40960), (wire.CMD_WRITE, 4096)):
                    assert raw.ask(kind, 0, size, data=data[:size]) == 0
                assert raw.ask(wire.CMD_WRITE_ZEROES, 2 << 20, 1 << 20) == 0
                raw.request(wire.CMD_READ, 0, 1 << 20)
                assert raw.reply(1 << 20) == (0, data)
            served.append(number)

    scene.serve(client)
    assert len(served) == 40
