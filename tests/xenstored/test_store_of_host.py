"""The store of a running host, used from outside through a socket: Xen's tools beside guests' rings."""

import os
import signal
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from real_xen import program
from store_process import PARAVIRT, connect, receive

from guest_kernel.xenbus.wire import encode
from hypervisor.abi.io import xs_wire as xs
from toolstack.console_log import ConsoleLog
from toolstack.host import Host
from toolstack.outside import Outside
from toolstack.xenstore.client import Refused, StoreClient
from toolstack.xenstore.plug import serving_store
from toolstack.xl_config import DomainConfig, load_config

PATIENCE = 60.0

WAITER = """
from guest_kernel.guest import Guest

class Main(Guest):
    async def main(self):
        store = self.kernel.xenbus
        await store.write("data/ready", "1")
        watch = await store.watch("data/go")
        while not await store.exists("data/go"):
            await watch.get()
        self.print("told:", await store.read("data/go"))
"""


def guest(directory: Path, body: str, name: str = "waiter") -> DomainConfig:
    (directory / f"{name}.py").write_text(textwrap.dedent(body))
    file = directory / f"{name}.cfg"
    file.write_text(f'name = "{name}"\nmemory = 4\nkernel = "{name}.py"\n')
    return load_config(file)


class Visit:
    """What a test does from outside while a host runs."""

    def __init__(self, host: Host, path: Path, act: Callable[[Path], None]) -> None:
        self._host = host
        self.failure: BaseException | None = None
        self._path = path
        self._act = act
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._act(self._path)
        except BaseException as error:
            self.failure = error
            # The host would wait for ever.
            self._host.interrupt()
            self._host.interrupt()

    @contextmanager
    def begun(self) -> Iterator[None]:
        self._thread.start()
        yield
        self._thread.join(PATIENCE)
        if self.failure is not None:
            raise self.failure


def run(config: DomainConfig, path: Path, act: Callable[[Path], None], **options: object) -> tuple[Host, list[str]]:
    """Run a host with one guest, while `act(path)` visits its store in a thread."""
    lines: list[str] = []
    outside = Outside()
    host = Host(consoles=ConsoleLog(lines.append), outside=outside, **options)  # type: ignore[arg-type]
    visit = Visit(host, path, act)
    with serving_store(outside, path), visit.begun():
        trio.run(host.run, [config])
    assert host.leaks() == []
    assert not path.exists()
    return host, lines


def wait_until(client: StoreClient, path: str) -> bytes:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return client.read(path)
        except Refused:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def home(client: StoreClient) -> str:
    """The home of the only guest, once its kernel is up."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            names = [name for name in client.directory("/local/domain") if name != b"0"]
            if names:
                path = f"/local/domain/{names[0].decode()}"
                if client.read(f"{path}/data/ready") == b"1":
                    return path
        except Refused:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_a_write_from_outside_reaches_a_guest(tmp_path: Path, clock: str) -> None:
    def act(path: Path) -> None:
        with StoreClient(path) as client:
            where = home(client)
            assert client.read(f"{where}/name") == b"waiter"
            # The host has nothing to do any more, and waits.
            time.sleep(0.1)
            client.write(f"{where}/data/go", "now")

    _, lines = run(guest(tmp_path, WAITER), tmp_path / "socket", act, time=clock)
    assert any("told: now" in line for line in lines)


def test_xens_tools_look_at_a_running_host(tmp_path: Path) -> None:
    def act(path: Path) -> None:
        environment = {**os.environ, "XENSTORED_PATH": str(path)}

        def tool(*words: str) -> str:
            return subprocess.run(
                [program(words[0]), *words[1:]], env=environment, capture_output=True, text=True, check=True, timeout=20
            ).stdout

        with StoreClient(path) as client:
            where = home(client)
        tree = tool("xenstore-ls", "-fp")
        assert f'{where}/name = "waiter"   (n0,r' in tree
        assert "/local/domain/0/name" in tree
        assert tool("xenstore-list", "/local/domain").split() == ["0", where.rpartition("/")[2]]
        tool("xenstore-write", f"{where}/data/go", "tools")

    _, lines = run(guest(tmp_path, WAITER), tmp_path / "socket", act)
    assert any("told: tools" in line for line in lines)


def test_a_watch_from_outside_sees_what_guests_do(tmp_path: Path) -> None:
    events: list[bytes] = []

    def act(path: Path) -> None:
        with StoreClient(path) as client:
            client.watch("@releaseDomain", "end")
            where = home(client)
            client.watch(f"{where}/data", "data")
            client.write(f"{where}/data/go", "x")
            while True:
                changed, _ = client.next_event()
                events.append(changed)
                if changed == b"@releaseDomain" and events.count(changed) >= 2:
                    return

    run(guest(tmp_path, WAITER), tmp_path / "socket", act)
    assert any(event.endswith(b"/data/go") for event in events)


def test_a_transaction_conflicts_with_a_guest(tmp_path: Path) -> None:
    body = """
    from guest_kernel.guest import Guest

    class Main(Guest):
        async def main(self):
            store = self.kernel.xenbus
            await store.write("data/ready", "1")
            watch = await store.watch("data/step")
            while not await store.exists("data/step"):
                await watch.get()
            await store.write("data/shared", "guest")
            await store.write("data/done", "1")
            watch = await store.watch("data/go")
            while not await store.exists("data/go"):
                await watch.get()
    """

    def act(path: Path) -> None:
        with StoreClient(path) as client:
            where = home(client)
            client.write(f"{where}/data/shared", "before")
            tx = client.start()
            assert client.read(f"{where}/data/shared", tx) == b"before"
            client.write(f"{where}/data/step", "1")
            wait_until(client, f"{where}/data/done")
            client.write(f"{where}/data/shared", "outside", tx)
            with pytest.raises(Refused, match="EAGAIN"):
                client.end(tx, commit=True)
            assert client.read(f"{where}/data/shared") == b"guest"
            client.write(f"{where}/data/go", "1")

    run(guest(tmp_path, body), tmp_path / "socket", act)


def test_a_client_that_breaks_the_protocol_or_never_reads_hurts_nobody(tmp_path: Path) -> None:
    def act(path: Path) -> None:
        with StoreClient(path) as client:
            where = home(client)
            with connect(path) as bad:
                # A header that announces too much: of what was asked before it, less than half is answered.
                bad.sendall(encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"5\0") * 5 + b"\2\0\0\0" * 3 + b"\xff\xff\0\0")
                assert [message.req_id for message in receive(bad, 5)] == [1, 1]
            with connect(path) as deaf:
                deaf.setblocking(False)
                sent = 0
                request = encode(xs.XS_DIRECTORY, 1, 0, where.encode() + b"\0")
                while sent < 3000:
                    try:
                        sent += deaf.send(request) > 0
                    except BlockingIOError:
                        break
                assert client.read(f"{where}/name") == b"waiter"
            client.write(f"{where}/data/go", "x")

    run(guest(tmp_path, WAITER), tmp_path / "socket", act)


def test_large_replies_and_pipelined_requests(tmp_path: Path) -> None:
    def act(path: Path) -> None:
        with StoreClient(path) as client:
            where = home(client)
            client.write("/big", b"v" * 4000)
            with connect(path) as sock:
                sock.sendall(encode(xs.XS_READ, 5, 0, b"/big\0") * 500)
                messages = receive(sock, 500)
            assert [len(message.payload) for message in messages] == [4000] * 500
            client.rm("/big")
            client.write(f"{where}/data/go", "x")

    run(guest(tmp_path, WAITER), tmp_path / "socket", act)


def test_without_clients_the_trace_is_the_same(tmp_path: Path) -> None:
    config = guest(
        tmp_path,
        """
        from guest_kernel.guest import Guest

        class Main(Guest):
            async def main(self):
                await self.kernel.xenbus.write("data/x", "1")
        """,
    )
    traces = []
    for path in (None, tmp_path / "socket"):
        outside = Outside()
        trace = tmp_path / f"{path is None}.trace"
        with serving_store(outside, path):
            trio.run(Host(outside=outside, trace_file=trace).run, [config])
        traces.append(trace.read_bytes())
    assert traces[0] == traces[1]


def test_the_command(tmp_path: Path) -> None:
    guest(tmp_path, WAITER)
    path = tmp_path / "socket"
    with subprocess.Popen(
        [*PARAVIRT, "run", "--xenstore-socket", str(path), str(tmp_path / "waiter.cfg")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not path.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with StoreClient(path) as client:
            client.write(f"{home(client)}/data/go", "command")
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert "told: command" in out
    assert not path.exists()


def test_a_host_that_waits_for_clients_hears_a_person(tmp_path: Path) -> None:
    guest(tmp_path, WAITER)
    path = tmp_path / "socket"
    with subprocess.Popen(
        [*PARAVIRT, "run", "--xenstore-socket", str(path), str(tmp_path / "waiter.cfg")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not path.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with StoreClient(path) as client:
            home(client)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "shutting down" in err
