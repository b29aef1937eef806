"""Xen's own xenstored as a process, with `xen_shim.c` for a hypervisor; and clients of it, on its socket and rings."""

import functools
import mmap
import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from real_xen import REQUIRED, program

from guest_kernel.xenbus.ring import ClientRing
from guest_kernel.xenbus.wire import Message, Parser, encode
from hypervisor.abi.io import xs_wire as xs

DOMAINS = 0x8000
VIRQ_PORT = 1
FIRST_PORT = 1000
PATIENCE = 60.0
EXISTS, SHUTDOWN, DYING = 1, 2, 4


@functools.cache
def shim() -> Path:
    """The compiled shim, for as long as this process lives."""
    source = Path(__file__).with_name("xen_shim.c")
    target = Path(tempfile.mkdtemp(prefix="xen-shim-")) / "xen_shim.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(target), str(source), "-ldl"]
    if shutil.which("gcc") is None or not Path("/usr/include/xengnttab.h").exists():
        sentence = "gcc or the headers of Xen's libraries are not installed (Debian: gcc, libxen-dev)"
        if REQUIRED:
            pytest.fail(sentence)
        pytest.skip(sentence)
    subprocess.run(command, check=True)
    return target


class BaseClient(ABC):
    """What clients on sockets and rings have in common: messages out, messages in."""

    def __init__(self) -> None:
        self.parser = Parser()
        self.received: list[Message] = []
        self.barriers = 0

    @abstractmethod
    def send_bytes(self, data: bytes) -> None:
        """Give bytes to the daemon."""

    @abstractmethod
    def receive_bytes(self) -> bytes | None:
        """What there is now; None: the other end has hung up."""

    def send(self, kind: int, payload: bytes, tx: int = 0, req: int = 1) -> None:
        self.send_bytes(encode(kind, req, tx, payload))

    def wait_for(self, req: int) -> list[Message] | None:
        """Everything up to the reply with this number; None if the other end hangs up before."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for at, message in enumerate(self.received):
                if message.req_id == req and message.type != xs.XS_WATCH_EVENT:
                    taken, self.received = self.received[: at + 1], self.received[at + 1 :]
                    return taken
            data = self.receive_bytes()
            if data is None:
                return None
            self.received += self.parser.receive(data)
            assert self.parser.broken is None
            assert time.monotonic() < deadline, f"no reply to request {req}, only {self.received}"

    def barrier(self) -> list[Message] | None:
        """Everything that has been sent to this client by now, by way of a request that changes nothing."""
        self.barriers += 1
        number = 0x7F000000 + self.barriers
        self.send(xs.XS_GET_DOMAIN_PATH, b"0\0", req=number)
        messages = self.wait_for(number)
        return None if messages is None else messages[:-1]


class SocketClient(BaseClient):
    """dom0, on the socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The daemon's backlog is one: connecting waits for the one before.
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.socket.settimeout(PATIENCE)

    def send_bytes(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except BrokenPipeError:
            return

    def receive_bytes(self) -> bytes | None:
        try:
            return self.socket.recv(1 << 16) or None
        except ConnectionResetError:
            return None

    def close(self) -> None:
        self.socket.close()


class RingClient(BaseClient):
    """A guest, on its ring."""

    def __init__(self, daemon: "CDaemon", domid: int) -> None:
        super().__init__()
        self.daemon = daemon
        self.domid = domid
        self.page = daemon.map_ring(domid)
        self.ring = ClientRing(memoryview(self.page))

    def send_bytes(self, data: bytes) -> None:
        at = 0
        deadline = time.monotonic() + PATIENCE
        while at < len(data):
            at += self.ring.write(data, at)
            self.daemon.kick(FIRST_PORT + self.domid)
            self._take()
            assert time.monotonic() < deadline, "the daemon does not read the ring"

    def _take(self) -> None:
        data = self.ring.read()
        if data:
            self.received += self.parser.receive(data)
            self.daemon.kick(FIRST_PORT + self.domid)

    def receive_bytes(self) -> bytes | None:
        data = self.ring.read()
        if data:
            self.daemon.kick(FIRST_PORT + self.domid)
            return data
        if self.ring.error:
            return None
        time.sleep(0.0002)
        return b""


class CDaemon:
    """One daemon; domains 0 to `domains - 1` exist, none but 0 is introduced."""

    def __init__(self, directory: Path, *options: str, domains: int = 6, program_name: str = "xenstored") -> None:
        command = program(program_name)
        library = shim()
        self.directory = directory
        states = bytearray(DOMAINS)
        states[:domains] = bytes([EXISTS]) * domains
        (directory / "domains").write_bytes(states)
        (directory / "port-0").write_text("5")
        os.mkfifo(directory / "events")
        self._events = os.open(directory / "events", os.O_RDWR)
        with (directory / "domains").open("r+b") as file:
            self._states = mmap.mmap(file.fileno(), DOMAINS)
        for domid in range(domains):
            (directory / f"ring-{domid}").write_bytes(bytes(4096))
        self.path = directory / "socket"
        self.process = subprocess.Popen(
            [command, "-N", "-F", str(directory / "pid"), *options],
            env={
                **os.environ,
                "XEN_SHIM": str(directory),
                "XENSTORED_RUNDIR": str(directory),
                "LD_PRELOAD": str(library),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.connect().close()
                return
            except OSError:
                assert self.process.poll() is None, "the daemon has ended at once"
                assert time.monotonic() < deadline, "the daemon does not listen"
                time.sleep(0.005)

    def connect(self) -> SocketClient:
        return SocketClient(self.path)

    def map_ring(self, domid: int) -> mmap.mmap:
        with (self.directory / f"ring-{domid}").open("r+b") as file:
            return mmap.mmap(file.fileno(), 4096)

    def kick(self, port: int) -> None:
        """Signal an event channel, unless plenty of signals wait already."""
        if select.select([], [self._events], [], 0)[1]:
            os.write(self._events, struct.pack("<I", port))

    def set_state(self, domid: int, state: int) -> None:
        """Say what Xen knows of a domain, and tell the daemon."""
        self._states[domid] = state
        self.kick(VIRQ_PORT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._events)
        self._states.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
