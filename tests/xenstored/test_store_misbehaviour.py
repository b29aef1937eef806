"""Clients on the socket that misbehave, in more than a hundred ways by name and in random ones.

Whatever comes, the daemon goes on for everybody else, keeps nothing of a client that is gone, and answers as Xen's own
daemon does where that is there to be asked.
"""

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from c_daemon import CDaemon, SocketClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_process import ThreadedStore

from guest_kernel.xenbus.wire import Message, Parser, encode
from hypervisor.abi.io import xs_wire as xs
from toolstack.xenstore import sockets as sockets_module
from toolstack.xenstore.client import StoreClient

GOOD = encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"5\0")
LAST = encode(xs.XS_GET_DOMAIN_PATH, 0x7FFF, 0, b"9\0")
KINDS = [kind for kind in range(23) if kind not in (15, 16, 19, 20)]
ONE_NAME = (xs.XS_DIRECTORY, xs.XS_READ, xs.XS_GET_PERMS, xs.XS_MKDIR, xs.XS_RM)


def header(kind: int, length: int, req: int = 2, tx: int = 0) -> bytes:
    return struct.pack("<4I", kind, req, tx, length)


def ways() -> dict[str, bytes]:
    """Name → what a client sends before it sends one good request more."""
    found: dict[str, bytes] = {}
    for size in (1, 4, 8, 12, 15):
        found[f"{size} bytes of a header and nothing more"] = GOOD[:size]
    found["a header and half of its payload"] = header(xs.XS_WRITE, 10) + b"/a\0va"
    for length in (4097, 65536, 2**31 - 1, 2**31, 2**32 - 1):
        found[f"a length of {length}"] = header(xs.XS_READ, length)
        found[f"a length of {length} behind two good requests"] = GOOD + GOOD + header(xs.XS_READ, length)
        found[f"a length of {length} and then good requests"] = header(xs.XS_READ, length) + GOOD * 3
    for kind in (15, 16, 19, 20, 27, 99, 127, 0xFFFF, 2**31, 2**32 - 1):
        found[f"type {kind}"] = encode(kind, 2, 0, b"")
        found[f"type {kind} with a payload"] = encode(kind, 2, 0, b"/tool\0")
    for kind in KINDS:
        name = xs.NAMES[kind]
        found[f"{name} with nothing"] = encode(kind, 2, 0, b"")
        found[f"{name} with a NUL"] = encode(kind, 2, 0, b"\0")
        found[f"{name} with NULs only"] = encode(kind, 2, 0, bytes(4096))
        found[f"{name} with bytes above 127"] = encode(kind, 2, 0, b"\xff" * 4095 + b"\0")
        found[f"{name} with 4096 letters and no NUL"] = encode(kind, 2, 0, b"a" * 4096)
        found[f"{name} in a transaction that is not there"] = encode(kind, 2, 0xFFFFFFFF, b"/tool\0")
        found[f"{name} on a path that cannot be"] = encode(kind, 2, 0, b"/a//b\0")
    return found


WAYS = ways()


def talk(path: Path, data: bytes) -> tuple[list[Message], int]:
    """What a client gets for `data` and a good request more, or until it is hung up on: messages, bytes of another."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        while True:
            try:
                sock.connect(str(path))
                break
            except BlockingIOError:
                time.sleep(0.001)
        parser, messages = Parser(), []
        try:
            sock.sendall(data + LAST)
            while not messages or messages[-1].req_id != 0x7FFF:
                part = sock.recv(1 << 16)
                if not part:
                    break
                messages += parser.receive(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
    return messages, parser.pending


def is_cut_short(data: bytes) -> bool:
    """Whether the last request is not complete, so that the good one behind it becomes its end."""
    parser = Parser()
    parser.receive(data)
    return parser.pending > 0


def is_left_over(data: bytes) -> bool:
    """See `test_store_against_c.is_left_over`."""
    kind = struct.unpack_from("<I", data)[0] if len(data) >= 4 else -1
    payload = data[16:]
    return (kind in ONE_NAME and payload.find(b"\0") != len(payload) - 1) or (kind in ONE_NAME and not payload)


def comparable() -> list[str]:
    return [name for name, data in WAYS.items() if not is_cut_short(data) and not is_left_over(data)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedStore]:
    store = ThreadedStore(tmp_path_factory.mktemp("store") / "socket")
    yield store
    store.stop()


@pytest.fixture(scope="module")
def c_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CDaemon]:
    with CDaemon(tmp_path_factory.mktemp("c")) as daemon:
        yield daemon


def test_there_are_many_ways() -> None:
    assert len(WAYS) > 150


@pytest.mark.parametrize("name", [name for name, data in WAYS.items() if not is_cut_short(data)])
def test_is_answered_and_hurts_nobody(shared: ThreadedStore, name: str) -> None:
    messages = talk(shared.path, WAYS[name])
    assert messages
    with StoreClient(shared.path) as other:
        assert other.read("/tool") == b""
    wait_until_gone(shared)


@pytest.mark.parametrize("name", comparable())
def test_is_answered_as_by_xens_daemon(shared: ThreadedStore, c_daemon: CDaemon, name: str) -> None:
    assert talk(shared.path, WAYS[name]) == talk(c_daemon.path, WAYS[name])


@pytest.mark.parametrize("name", [name for name, data in WAYS.items() if is_cut_short(data)])
def test_a_request_without_an_end_waits_and_goes_with_its_client(shared: ThreadedStore, name: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(shared.path))
        sock.sendall(WAYS[name])
        with StoreClient(shared.path) as other:
            assert other.read("/tool") == b""
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    wait_until_gone(shared)


def wait_until_gone(store: ThreadedStore) -> None:
    deadline = time.monotonic() + 20
    while store.sockets.clients or any(not connection.domain.domid for connection in list(store.server.connections)):
        assert time.monotonic() < deadline, "the daemon keeps clients that are gone"
        time.sleep(0.001)


pieces = st.one_of(
    st.sampled_from(list(WAYS.values())),
    st.binary(max_size=40),
    st.builds(
        encode,
        st.integers(0, 40),
        st.integers(0, 2**32 - 1),
        st.sampled_from([0, 0, 0, 1, 2, 2**32 - 1]),
        st.binary(max_size=60) | st.sampled_from([b"/a\0", b"/a\0t\0", b"\0", b"T\0", b"/a\0value"]),
    ),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(pieces, max_size=12), cuts=st.lists(st.integers(1, 3000), max_size=6), reads=st.booleans())
def test_random_bytes_in_random_cuts(shared: ThreadedStore, parts: list[bytes], cuts: list[int], reads: bool) -> None:
    data = b"".join(parts)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(str(shared.path))
        try:
            for cut in [*cuts, len(data)]:
                sock.sendall(data[:cut])
                data = data[cut:]
            sock.shutdown(socket.SHUT_WR)
            while reads and sock.recv(1 << 16):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
    with StoreClient(shared.path) as other:
        assert other.control("check") == b"OK"
    wait_until_gone(shared)


# ---- clients that do not read


def test_requests_of_a_client_that_never_reads_are_left_alone(
    store: ThreadedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets_module, "INPUT_STOP", 1 << 20)
    with StoreClient(store.path) as other:
        other.write("/big", b"v" * 4000)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(store.path))
            sock.setblocking(False)
            request = encode(xs.XS_READ, 1, 0, b"/big\0") * 100
            quiet = time.monotonic() + 0.3
            sent = 0
            while time.monotonic() < quiet:
                try:
                    sent += sock.send(request)
                    quiet = time.monotonic() + 0.3
                except BlockingIOError:
                    time.sleep(0.005)
            assert other.read("/big") == b"v" * 4000
            waiting = max(client.connection.queued for client in store.sockets.clients.values())
            # A wake-up's worth of requests more than the limit: 64 KiB of them bring 11 MB.
            assert waiting < 16 << 20
            # It has only to read, and all is well.
            sock.settimeout(20)
            parser, count = Parser(), 0
            while count < sent // (len(request) // 100):
                count += len(parser.receive(sock.recv(1 << 20)))
        wait_until(lambda: len(store.sockets.clients) == 1)


def test_a_client_that_lets_events_pile_up_is_dropped(store: ThreadedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets_module, "OUTPUT_LIMIT", 1 << 20)
    with StoreClient(store.path) as deaf, StoreClient(store.path) as other:
        deaf.watch("/w", "t" * 3000)
        for number in range(1000):
            other.write(f"/w/{number}", "")
            if len(store.sockets.clients) == 1:
                break
        assert len(store.sockets.clients) == 1
        assert other.read("/tool") == b""
        assert len(store.server.watches) == 0


def test_an_event_that_waits_already_is_not_queued_again(store: ThreadedStore) -> None:
    with StoreClient(store.path) as deaf, StoreClient(store.path) as other:
        deaf.watch("/w", "t" * 3000)
        for _ in range(2000):
            other.write("/w", "")
        assert sum(client.connection.queued for client in store.sockets.clients.values()) < 300_000
        assert len(store.sockets.clients) == 2


def test_descriptors_run_out_and_come_back(store: ThreadedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener is left alone while there are no descriptors, and taken up again when a client goes."""
    with StoreClient(store.path) as first:
        first.read("/tool")
        listener = store.sockets.listener
        assert listener is not None

        class Full:
            calls = 0

            def accept(self) -> tuple[socket.socket, object]:
                self.calls += 1
                raise OSError(24, "Too many open files")

            def fileno(self) -> int:
                return listener.fileno()

            def close(self) -> None:
                listener.close()

        full = Full()
        store.sockets.listener = full  # type: ignore[assignment]
        waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        waiting.connect(str(store.path))
        wait_until(lambda: full.calls > 0)
        time.sleep(0.1)
        assert full.calls == 1
        assert first.read("/tool") == b""
        store.sockets.listener = listener
    with waiting:
        waiting.settimeout(20)
        waiting.sendall(GOOD)
        assert waiting.recv(100)


def test_a_thousand_clients(store: ThreadedStore) -> None:
    clients = [StoreClient(store.path) for _ in range(300)]
    for number, client in enumerate(clients):
        client.write(f"/c/{number}", str(number))
    for client in clients:
        client.watch("/all", "t")
    clients[0].write("/all", "1")
    for client in clients:
        assert client.next_event() == (b"/all", b"t")
        assert client.next_event() == (b"/all", b"t")
        client.close()
    wait_until(lambda: not store.sockets.clients)


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_helper_hears_the_same_from_both(c_daemon: CDaemon) -> None:
    client = SocketClient(c_daemon.path)
    client.send(xs.XS_GET_DOMAIN_PATH, b"5\0", req=3)
    messages = client.wait_for(3)
    assert messages is not None
    assert messages[0].payload == b"/local/domain/5\0"
    client.close()
