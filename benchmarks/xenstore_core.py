"""How long the core of xenstored takes for a request: bytes in to bytes out, in one process, without ring or socket.

python -m benchmarks.xenstore_core [--nodes N] [--watches N]
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server
from guest_kernel.xenbus.wire import encode
from hypervisor.abi.io import xs_wire as xs


class NoWorld:
    """A transport for a store with no rings."""

    def exists(self, domid: int) -> bool:
        return True

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        return None

    def rebind(self, connection: Connection, port: int) -> None:
        return None

    def detach(self, connection: Connection) -> None:
        return None


def device_path(index: int) -> bytes:
    """Return a path as deep as those of devices."""
    return b"/local/domain/%d/device/vbd/51712/key%d" % (index // 100, index % 100)


def fill(server: Server, nodes: int, watches: int) -> Connection:
    """Make a store with so many nodes and watches."""
    client = server.connect("fill")
    for index in range(nodes):
        server.receive(client, encode(xs.XS_WRITE, 1, 0, device_path(index) + b"\0value"))
        client.take(1 << 20)
    watcher = server.connect("watcher")
    for index in range(watches):
        server.receive(watcher, encode(xs.XS_WATCH, 1, 0, b"/other/%d/state\0token%d\0" % (index % 5000, index)))
        watcher.take(1 << 20)
    return client


def measure(run: Callable[[], None], requests: int) -> float:
    """Return microseconds per request, the best of five rounds."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter_ns()
        run()
        best = min(best, (time.perf_counter_ns() - start) / requests / 1000)
    return best


def main() -> None:
    """Print a table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--nodes", type=int, default=10_000)
    arguments.add_argument("--watches", type=int, default=10_000)
    options = arguments.parse_args()

    tracemalloc.start()
    server = Server(NoWorld())
    client = fill(server, options.nodes, 0)
    node_bytes = tracemalloc.get_traced_memory()[0] / options.nodes
    before = tracemalloc.get_traced_memory()[0]
    fill(server, 0, options.watches)
    watch_bytes = (tracemalloc.get_traced_memory()[0] - before) / max(1, options.watches)
    tracemalloc.stop()

    server.introduce(7, 1, 1)
    guest = server.domains.by_id[7].connection
    assert guest is not None
    server.receive(client, encode(xs.XS_SET_PERMS, 1, 0, device_path(700) + b"\0n7\0"))
    client.take(1 << 20)

    count = 2000
    path = device_path(min(700, options.nodes - 1))

    def one_by_one(connection: Connection, request: bytes) -> Callable[[], None]:
        def run() -> None:
            receive, take = server.receive, connection.take
            for _ in range(count):
                receive(connection, request)
                take(4096)

        return run

    def pipelined(connection: Connection, request: bytes) -> Callable[[], None]:
        batch = request * 32

        def run() -> None:
            for _ in range(count // 32):
                server.receive(connection, batch)
                connection.take(1 << 20)

        return run

    read = encode(xs.XS_READ, 1, 0, path + b"\0")
    write = encode(xs.XS_WRITE, 1, 0, path + b"\0value")
    cycle = encode(xs.XS_MKDIR, 1, 0, b"/local/domain/7/new\0") + encode(xs.XS_RM, 1, 0, b"/local/domain/7/new\0")
    number = client.next_transaction

    def transactions() -> None:
        nonlocal number
        for _ in range(count // 4):
            server.receive(client, encode(xs.XS_TRANSACTION_START, 1, 0, b"\0"))
            server.receive(client, encode(xs.XS_READ, 1, number, path + b"\0"))
            server.receive(client, encode(xs.XS_WRITE, 1, number, path + b"\0v"))
            server.receive(client, encode(xs.XS_TRANSACTION_END, 1, number, b"T\0"))
            client.take(1 << 20)
            number += 1

    print(
        f"{len(server.store.tree)} nodes, {len(server.watches)} watches; {node_bytes:.0f} bytes a node, "
        f"{watch_bytes:.0f} a watch"
    )
    rows = {
        "READ, dom0": measure(one_by_one(client, read), count),
        "READ, guest": measure(one_by_one(guest, read), count),
        "READ, 32 in flight": measure(pipelined(client, read), count // 32 * 32),
        "WRITE, dom0": measure(one_by_one(client, write), count),
        "WRITE, guest": measure(one_by_one(guest, write), count),
        "MKDIR and RM": measure(one_by_one(client, cycle), count * 2),
        "request in a transaction": measure(transactions, count // 4 * 4),
    }
    server.receive(client, encode(xs.XS_WATCH, 1, 0, path[: path.rindex(b"/")] + b"\0token\0"))
    client.take(1 << 20)
    rows["WRITE that fires a watch"] = measure(one_by_one(client, write), count)
    for name, microseconds in rows.items():
        print(f"{name:26} {microseconds:6.2f} us")


if __name__ == "__main__":
    main()
