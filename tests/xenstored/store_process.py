"""Stores behind real sockets: one in a thread of this process, and the command as a process of its own."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.xenstored.control import inconsistencies
from backends.xenstored.quota import Quotas
from backends.xenstored.server import Server
from guest_kernel.xenbus.wire import Message, Parser
from toolstack.xenstore import address
from toolstack.xenstore.service import NoXen
from toolstack.xenstore.sockets import SocketServer

PATIENCE = 60.0
PARAVIRT = [sys.executable, "-c", "from toolstack.cli import main; main()"]


class ThreadedStore:
    """A store that a thread of this process serves. Look at `server` only while no client is active."""

    def __init__(self, path: Path, quotas: Quotas | None = None) -> None:
        self.path = path
        self.server = Server(NoXen(), quotas)
        self.sockets = SocketServer(self.server, address.listen(path))
        self._stop = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while not self._stop:
                self.sockets.poll(0.02)
        except BaseException as error:
            self.failure = error
            raise

    def stop(self) -> None:
        self._stop = True
        self._thread.join()
        assert self.failure is None
        self.sockets.close()
        assert all(connection.domain.domid for connection in self.server.connections)
        assert not len(self.server.watches)
        assert self.server.open_transactions == 0
        assert inconsistencies(self.server) == []

    def environment(self) -> dict[str, str]:
        return {**os.environ, "XENSTORED_PATH": str(self.path)}

    def connect(self) -> socket.socket:
        return connect(self.path)


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


def receive(sock: socket.socket, count: int) -> list[Message]:
    """The next `count` messages; fewer if the other end hangs up before."""
    parser = Parser()
    messages: list[Message] = []
    while len(messages) < count:
        try:
            data = sock.recv(1 << 16)
        except ConnectionResetError:
            break
        if not data:
            break
        messages += parser.receive(data)
    return messages


@contextmanager
def service(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`paravirt xenstored` as a process, once it listens."""
    with subprocess.Popen(
        [*PARAVIRT, "xenstored", "--socket", str(path), *options], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while process.poll() is None and not _listens(path):
                assert time.monotonic() < deadline, "the daemon does not listen"
                time.sleep(0.02)
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def paravirt(*words: str, path: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command with these words, against a store."""
    return subprocess.run(
        [*PARAVIRT, *words],
        env={**os.environ, "XENSTORED_PATH": str(path)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
