"""The store alone, as a process: `paravirt xenstored`.

There is no Xen below it, so nothing can be asked about domains. All ids that a domain can have count as existing
domains, unless it is told which ones do. INTRODUCE and RELEASE do all that they do to the store (nodes, permissions,
`@introduceDomain`, `@releaseDomain`), but there is no ring to be served.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final, final

from backends.xenstored.connection import Connection
from backends.xenstored.domains import LARGEST_DOMID
from backends.xenstored.errors import EINVAL
from backends.xenstored.quota import Quotas
from backends.xenstored.server import Server, Update
from backends.xenstored.state import Fds, Loader, Place, StateError, save
from hypervisor.trace import TraceWriter
from toolstack.errors import UsageError, did_you_mean
from toolstack.xenstore.address import identity, listen, remove
from toolstack.xenstore.sockets import SocketServer

LOOKS: Final = 16
"""How often the daemon looks for a request before it goes to sleep: about 10 µs."""
MOST_PORTS: Final = 1 << 17
"""Event channels that a domain can have (event_channel.h, EVTCHN_FIFO_NR_CHANNELS)."""


@final
class NoXen:
    """A transport for a store without rings. `existing`: the domains that exist; None: all that can."""

    def __init__(self, existing: Collection[int] | None = None) -> None:
        self.existing = None if existing is None else frozenset(existing)

    def exists(self, domid: int) -> bool:
        """Tell whether there is such a domain."""
        return 0 <= domid <= LARGEST_DOMID if self.existing is None else domid in self.existing

    def attach(self, connection: Connection, mfn: int, port: int) -> bytes | None:
        """Accept a domain that exists, without a ring."""
        return None if self.exists(connection.id) and port < MOST_PORTS else EINVAL

    def rebind(self, connection: Connection, port: int) -> None:
        """Begin anew: there is nothing to be done."""

    def detach(self, connection: Connection) -> None:
        """Stop serving a domain: there is nothing to be done."""


def parse_quotas(texts: Collection[str], quotas: Quotas | None = None) -> Quotas:
    """Return the limits that `NAME=VALUE` texts say. Raises `UsageError`."""
    quotas = quotas or Quotas()
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not value.isascii() or not value.isdigit():
            raise UsageError(f"quota {text!r} is not NAME=NUMBER")
        try:
            quotas[name] = int(value)
        except KeyError:
            raise UsageError(f"there is no quota {name!r}{did_you_mean(name, Quotas.names())}") from None
    return quotas


@final
class Service:
    """One store on one socket, until SIGTERM or Ctrl-C, or until another program takes over (live update)."""

    def __init__(
        self,
        path: Path,
        *,
        quotas: Quotas | None = None,
        trace_file: Path | None = None,
        transport: NoXen | None = None,
        live_update: bool = False,
        arguments: Sequence[str] = (),
    ) -> None:
        """`live_update`: go on where another daemon has stopped; `arguments`: what this program was called with."""
        self.path = path
        self.server = Server(transport or NoXen(), quotas, log=_tell)
        self.server.can_update = True
        self.log = Log(trace_file, again=live_update)
        self.server.files = self.log
        self.live_update = live_update
        self.arguments = list(arguments)
        self.sockets: SocketServer

    def run(self) -> None:
        """Serve. Raises `UsageError` if the socket, the state or the trace cannot be had.

        Nothing else goes on in this process, so it waits in the sockets' own epoll: an event loop above it would
        have as much to do for a request as the store itself.
        """
        with ExitStack() as stack:
            self.log.open(self.server)
            stack.callback(self.log.close)
            self.sockets = self._take_over() if self.live_update else SocketServer(self.server, listen(self.path))
            stack.callback(remove, self.path, identity(self.path))
            stack.callback(self.sockets.close)
            caught = stack.enter_context(_signals(self.sockets))
            self._serve(caught)
        self.log.check()

    def _serve(self, caught: set[int]) -> None:
        poll, server, give_way = self.sockets.poll, self.server, os.sched_yield
        while True:
            # Who has just got an answer mostly asks again. To sleep, and be woken from another processor, takes longer
            # than that; on the same processor giving way lets it ask.
            for _ in range(LOOKS):
                if poll(0):
                    break
                give_way()
            else:
                poll(None)
            if server.update is not None and server.update.started:
                self._give_way(server.update)
            if caught:
                if caught - {signal.SIGHUP}:
                    return
                caught.discard(signal.SIGHUP)
                # Whoever rotates logs says so; the C daemon opens its own anew.
                self.log.reopen()

    # ---- live update

    @property
    def _state_file(self) -> Path:
        return self.path.parent / "state_dump"

    def _give_way(self, update: Update) -> None:
        """Write the state down and become another program. Comes back only if that fails."""
        sockets = self.sockets
        assert sockets.listener is not None
        if not update.keeps_transactions:
            for connection in self.server.connections:
                self.server.forget_transactions(connection)
        state = save(
            self.server,
            self._place_of,
            Fds(listener=sockets.listener.fileno()),
            update.connection,
            update.reply(b"OK"),
            # dom0 has no ring here, but the C daemon needs to hear of it.
            rings=[Place(domid=0)],
        )
        try:
            with open(self._state_file, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(state)
        except OSError:
            self._refuse("Dump state open error")
            return
        words = self.arguments if update.arguments is None else update.arguments.split()
        descriptors = [sockets.listener.fileno(), *sockets.clients]
        for number in descriptors:
            os.set_inheritable(number, True)
        self.log.flush()
        try:
            os.execv(update.program, [update.program, *words, *([] if "-U" in words else ["-U"])])
        except (OSError, ValueError):
            for number in descriptors:
                os.set_inheritable(number, False)
            self._state_file.unlink(missing_ok=True)
            self._refuse("Error activating new binary.")

    def _refuse(self, why: str) -> None:
        self.server.refuse_update(why)
        self.sockets.flush()

    def _place_of(self, connection: Connection) -> Place:
        client = self.sockets.by_connection.get(connection)
        if client is not None:
            return Place(fd=client.socket.fileno(), pending=client.pending)
        return Place(domid=connection.id, port=connection.domain.port)

    def _take_over(self) -> SocketServer:
        """Go on with the state and the sockets that the program before has left. Raises `UsageError`."""
        try:
            state = self._state_file.read_bytes()
            self._state_file.unlink()
        except OSError as error:
            raise UsageError(f"cannot read the state {str(self._state_file)!r}: {error.strerror}") from None
        clients: list[tuple[socket.socket, Connection]] = []

        def connect(server: Server, place: Place) -> Connection | None:
            if place.fd is None:
                return server.readmit(place.domid, place.port) if place.domid else None
            clients.append((_inherited(place.fd), server.connect(f"socket {len(clients) + 1}")))
            return clients[-1][1]

        loader = Loader(self.server, connect)
        try:
            loader.load(state)
            listener = _inherited(loader.fds.listener)
        except StateError as error:
            raise UsageError(f"cannot go on with the state {str(self._state_file)!r}: {error}") from None
        sockets = SocketServer(self.server, listener)
        for sock, connection in clients:
            sockets.adopt(sock, connection)
        self.server.go_on()
        sockets.flush()
        return sockets


@contextmanager
def _signals(sockets: SocketServer) -> Iterator[set[int]]:
    """Have signals that are caught collected in a set, and `sockets.poll` come back for them."""
    caught: set[int] = set()
    reader, writer = socket.socketpair()
    with reader, writer, ExitStack() as stack:
        reader.setblocking(False)
        writer.setblocking(False)

        def drain() -> None:
            with suppress(BlockingIOError):
                reader.recv(4096)

        sockets.attend(reader.fileno(), drain)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            old = signal.signal(number, lambda number, frame: caught.add(number))
            stack.callback(signal.signal, number, old)
        yield caught


def _tell(sentence: str) -> None:
    """Say what CONTROL print and check have to say."""
    print(sentence, file=sys.stderr, flush=True)


def _inherited(number: int) -> socket.socket:
    """Return the socket behind a file descriptor that another program has opened. Raises StateError."""
    try:
        os.set_inheritable(number, False)
        sock = socket.socket(fileno=number)
    except OSError as error:
        raise StateError(f"file descriptor {number} is no socket: {error.strerror}") from None
    sock.setblocking(False)
    return sock


@final
class Log:
    """The trace of a daemon without a host: records are dom0's, times are those of the clock."""

    def __init__(self, path: Path | None, again: bool = False) -> None:
        """`again`: there is a trace already that is to be left alone."""
        self._path = path if path is None or not again else _free_name(path)
        self._writer: TraceWriter | None = None
        self._server: Server | None = None
        self._failure: str | None = None
        self._began = time.monotonic_ns()

    def open(self, server: Server) -> None:
        """Begin, if there is a file to write to. Raises `UsageError`."""
        self._server = server
        if self._path is not None:
            try:
                self._start(self._path)
            except OSError as error:
                raise UsageError(f"cannot write the trace {str(self._path)!r}: {error.strerror}") from None

    def _start(self, path: Path) -> None:
        file: BinaryIO = path.open("wb")
        about = {"pcpus": 1, "time": "real", "schedule": "fifo", "preempts": False}
        self._writer = TraceWriter(file, seed=0, about=about)
        self._writer.now = lambda: time.monotonic_ns() - self._began
        self.log(True)

    def _emit(self, kind: int, *fields: object) -> None:
        assert self._writer is not None
        self._writer.emit(0, 0, kind, *fields)

    def flush(self) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.flush()

    def reopen(self) -> None:
        """Begin a new file under the same name, if there is a log: the old one has been moved away, perhaps."""
        if self._writer is not None and self._path is not None:
            self.log_to(str(self._path))

    def close(self) -> None:
        """Write what is buffered and close the file."""
        writer, self._writer = self._writer, None
        self.log(False)
        if writer is not None:
            writer.close()
            if writer.failure is not None:
                self._failure = f"cannot write the trace {str(self._path)!r} to its end: {writer.failure.strerror}"

    def check(self) -> None:
        """Raise `UsageError` if the trace is not complete."""
        if self._failure is not None:
            raise UsageError(self._failure)

    # ---- what clients ask for (`backends.xenstored.server.Files`)

    def log(self, on: bool) -> None:
        """Write the log, or stop it."""
        if self._server is not None:
            self._server.trace = self._emit if on and self._writer is not None else None

    def log_to(self, name: str) -> None:
        """Write the log to another file from now on; one that cannot be opened gets none."""
        self.close()
        self._path = Path(name)
        with suppress(OSError):
            self._start(self._path)

    def report(self, name: str | None, text: str) -> bool:
        """Append text to a file; the log has no place for it."""
        if name is None:
            return False
        try:
            with open(name, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            return False
        return True

    def is_mine(self, name: str) -> bool:
        """Tell whether a file is the program that is running."""
        try:
            return os.path.samefile(name, sys.argv[0])
        except (OSError, ValueError):
            return False

    def is_program(self, name: str) -> str | None:
        """Return what is wrong with a file that is to be executed, in the C daemon's words."""
        try:
            mode = os.stat(name).st_mode
        except (OSError, ValueError):
            return "File not accessible."
        return None if mode & 0o111 else "File not executable."


def _free_name(path: Path) -> Path:
    """Return FILE.1, or the first such name that is free."""
    return next(name for number in count(1) if not (name := path.with_name(f"{path.name}.{number}")).exists())
