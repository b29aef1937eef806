"""The store behind a socket, beside Xen's own xenstored in the same run; and what nodes and watches cost.

python -m benchmarks.xenstore [--seconds S] [--nodes N] [--watches N] [--placement one|two|both]

Both servers always run on the same processor, and the clients on it too ("one": what a request costs in all) or on
another ("two": what the server alone can do, and how long two processors take to wake each other). Left to itself the
kernel chooses anew each time, and one row of one run would be this and the next that.

Where Xen's daemon (Debian: xen-utils-4.17) or a compiler is missing, the other end is a trio echo server with the same
framing: what a server could do at most if it had nothing to do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import trio

from guest_kernel.xenbus.wire import HEADER, HEADER_SIZE, encode
from hypervisor.abi.io import xs_wire as xs

TESTS = Path(__file__).parents[1] / "tests" / "xenstored"
ROUNDS = 7
PATH = b"/local/domain/0/backend/vbd/7/51712/state"
READ = encode(xs.XS_READ, 1, 0, PATH + b"\0")
WRITE = encode(xs.XS_WRITE, 1, 0, PATH + b"\x004")
IN_FLIGHT = 32

Load = Callable[[list[socket.socket], int], None]


# ---- loads: each does `count` requests


def receive_one(sock: socket.socket) -> bytes:
    """Read the only message that is coming. The C daemon sends headers and payloads one by one."""
    data = sock.recv(4096)
    while len(data) < HEADER_SIZE or len(data) < HEADER_SIZE + HEADER.unpack_from(data)[3]:
        data += sock.recv(4096)
    return data


def ping_pong(request: bytes) -> Load:
    """One request at a time."""

    def load(socks: list[socket.socket], count: int) -> None:
        sock = socks[0]
        for _ in range(count):
            sock.send(request)
            receive_one(sock)

    return load


def side_by_side(request: bytes) -> Load:
    """One request at a time for each of the clients, all of them at once."""

    def load(socks: list[socket.socket], count: int) -> None:
        for _ in range(count // len(socks)):
            for sock in socks:
                sock.send(request)
            for sock in socks:
                receive_one(sock)

    return load


def pipelined(request: bytes) -> Load:
    """32 requests in flight, always: for every reply that has come, one request more is sent."""

    def load(socks: list[socket.socket], count: int) -> None:
        sock = socks[0]
        sock.send(request)
        # The same request has the same reply, so bytes tell how many have come; looking at each would only make the
        # client the slower of the two.
        size = len(receive_one(sock))
        sent = min(IN_FLIGHT, count - 1)
        sock.sendall(request * sent)
        come, missing = 0, (count - 1) * size
        while missing:
            data = len(sock.recv(1 << 16))
            come += data
            missing -= data
            whole, come = divmod(come, size)
            more = min(whole, count - 1 - sent)
            if more:
                sent += more
                sock.sendall(request * more)

    return load


def transactions(socks: list[socket.socket], count: int) -> None:
    """START, READ, WRITE, END: four requests, one at a time."""
    sock = socks[0]
    start = encode(xs.XS_TRANSACTION_START, 1, 0, b"\0")
    for _ in range(count // 4):
        sock.send(start)
        number = int(receive_one(sock)[HEADER_SIZE:-1])
        for kind, payload in (
            (xs.XS_READ, PATH + b"\0"),
            (xs.XS_WRITE, PATH + b"\x004"),
            (xs.XS_TRANSACTION_END, b"T\0"),
        ):
            sock.send(encode(kind, 1, number, payload))
            receive_one(sock)


LOADS: dict[str, tuple[int, Load, float]] = {
    "READ, one client": (1, ping_pong(READ), 0.6),
    "WRITE, one client": (1, ping_pong(WRITE), 0.6),
    "READ, eight clients": (8, side_by_side(READ), 0.9),
    f"READ, {IN_FLIGHT} in flight": (1, pipelined(READ), 4.0),
    f"WRITE, {IN_FLIGHT} in flight": (1, pipelined(WRITE), 4.0),
    "transactions": (1, transactions, 0.8),
}
"""Name → (clients, load, the ratio that is wanted)."""


# ---- servers


class Running(NamedTuple):
    """A server: its socket and its process."""

    path: Path
    pid: int


def _serve_store(path: str, nodes: int, watches: int, report: multiprocessing.connection.Connection) -> None:
    from benchmarks.xenstore_core import fill
    from toolstack.xenstore.service import Service

    service = Service(Path(path))
    before = _resident()
    if nodes:
        fill(service.server, nodes, 0)
    between = _resident()
    if watches:
        fill(service.server, 0, watches)
    report.send(((between - before) / max(1, nodes), (_resident() - between) / max(1, watches)))
    service.run()


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@contextmanager
def our_store(directory: Path, nodes: int = 0, watches: int = 0) -> Iterator[tuple[Running, tuple[float, float]]]:
    """`paravirt xenstored` in a process of its own, with so much in it; and how many bytes a node and a watch take."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    path = directory / f"ours-{nodes}-{watches}"
    process = context.Process(target=_serve_store, args=(str(path), nodes, watches, theirs))
    process.start()
    try:
        costs = ours.recv()
        assert process.pid is not None
        yield Running(path, process.pid), costs
    finally:
        process.terminate()
        process.join()


@contextmanager
def xens_store(directory: Path) -> Iterator[Running | None]:
    """Xen's own daemon; None where there is none."""
    sys.path.insert(0, str(TESTS))
    try:
        import pytest
        from c_daemon import CDaemon
    except ImportError:
        yield None
        return
    place = directory / "xen"
    place.mkdir()
    try:
        daemon = CDaemon(place)
    except pytest.skip.Exception as why:
        print(f"no comparison with Xen's daemon: {why}")
        yield None
        return
    with daemon:
        yield Running(daemon.path, daemon.process.pid)


async def _echo(listener: socket.socket) -> None:
    """Answer each message with itself; one recv and one send a wake-up."""

    async def serve(sock: socket.socket) -> None:
        buffer = b""
        while True:
            await trio.lowlevel.wait_readable(sock)
            data = sock.recv(1 << 16)
            if not data:
                return
            buffer += data
            answers = []
            while len(buffer) >= HEADER_SIZE:
                end = HEADER_SIZE + HEADER.unpack_from(buffer)[3]
                if len(buffer) < end:
                    break
                answers.append(buffer[:end])
                buffer = buffer[end:]
            sock.sendall(b"".join(answers))

    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listener)
            sock, _ = listener.accept()
            nursery.start_soon(serve, sock)


def _serve_echo(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    trio.run(_echo, listener)


@contextmanager
def echo_server(directory: Path) -> Iterator[Running]:
    """A trio server that does nothing but framing."""
    path = directory / "echo"
    process = multiprocessing.get_context("spawn").Process(target=_serve_echo, args=(str(path),))
    process.start()
    try:
        assert process.pid is not None
        yield Running(path, process.pid)
    finally:
        process.terminate()
        process.join()


# ---- measuring


def connect(path: Path) -> socket.socket:
    """Return a connection, once somebody listens."""
    deadline = time.monotonic() + 20
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def rate(path: Path, clients: int, load: Load, seconds: float) -> float:
    """Return requests per second, over about so long."""
    socks = [connect(path) for _ in range(clients)]
    try:
        count = 256
        while True:
            began = time.perf_counter()
            load(socks, count)
            took = time.perf_counter() - began
            if took >= seconds:
                return count / took
            count = int(count * max(2, min(10, seconds / took * 1.2))) // 256 * 256
    finally:
        for sock in socks:
            sock.close()


@contextmanager
def pinned(servers: list[Running], placement: str) -> Iterator[None]:
    """Have the servers on one processor and this process on it too, or on another."""
    allowed = os.sched_getaffinity(0)
    for server in servers:
        os.sched_setaffinity(server.pid, {max(allowed)})
    os.sched_setaffinity(0, {max(allowed) if placement == "one" else min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def placements(wanted: str) -> list[str]:
    """Return the placements to measure, of those that there are processors for."""
    names = ["one", "two"] if wanted == "both" else [wanted]
    if len(os.sched_getaffinity(0)) < 2 and "two" in names:
        print("clients and servers share the only processor there is")
        names = ["one"]
    return names


def compare(ours: Path, theirs: Path, seconds: float, name: str) -> None:
    """Print the rates of both, one after the other so that the machine's moods hit both, and the ratio."""
    for path in (ours, theirs):
        with connect(path) as sock:
            sock.send(WRITE)
            receive_one(sock)
    print(f"{'requests per second':26} {'ours':>9} {name:>9} {'ratio':>7} {'wanted':>7}")
    for what, (clients, load, wanted) in LOADS.items():
        pairs = [(rate(ours, clients, load, seconds), rate(theirs, clients, load, seconds)) for _ in range(ROUNDS)]
        mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{what:26} {mine:9.0f} {other:9.0f} {ratio:7.2f} {wanted:7.1f}")


def scale(directory: Path, nodes: int, watches: int, seconds: float) -> None:
    """Print what much in the store costs: memory, and time."""
    for some, many in ((1000, 100), (nodes, watches)):
        with our_store(directory, some, many) as (store, (node, watch)):
            path = store.path
            with connect(path) as sock:
                sock.send(WRITE)
                receive_one(sock)
            read, write = (rate(path, 1, pipelined(request), seconds) for request in (READ, WRITE))
            print(
                f"{some:7} nodes, {many:6} watches: {node:5.0f} bytes a node, {watch:5.0f} a watch; "
                f"READ {read:8.0f}/s, WRITE {write:8.0f}/s"
            )


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--seconds", type=float, default=0.5, help="how long each measurement takes")
    arguments.add_argument("--nodes", type=int, default=100_000)
    arguments.add_argument("--watches", type=int, default=10_000)
    arguments.add_argument("--placement", choices=["one", "two", "both"], default="both", help="processors")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (
            our_store(directory) as (ours, _),
            xens_store(directory) as theirs,
            nullcontext(theirs) if theirs is not None else echo_server(directory) as other,
        ):
            for placement in placements(options.placement):
                print(f"servers on one processor, clients on {'it too' if placement == 'one' else 'another'}:")
                with pinned([ours, other], placement):
                    compare(ours.path, other.path, options.seconds, "C daemon" if theirs else "trio echo")
        scale(directory, options.nodes, options.watches, options.seconds)


if __name__ == "__main__":
    main()
