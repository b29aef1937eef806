"""Processes as subjects: the socket on which they come, one connection for each check."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, final

import attrs

from conformance.kit.check import Failure
from conformance.kit.runner import World
from conformance.subjects import SubjectError
from conformance.wire import protocol as wire
from conformance.wire.agent import Seat
from conformance.wire.connection import Connection
from conformance.wire.window import Window

VARIABLE: Final = "PARAVIRT_SOCKET"
"""The environment variable in which a command finds the path."""
GRACE: Final = 1.0
"""Seconds that a process has to end, once its check is over."""


@attrs.frozen
class Patience:
    """How long a process may take, in seconds of real time."""

    silence: float = 5.0
    """Between two messages, when it does not wait for anything."""
    check: float = 60.0
    """For a whole check."""
    connect: float = 10.0
    """To come (again)."""


@final
class WireSubject:
    """A listening socket, and the command that is started for each check, if there is one.

    To be used in a `with`. Raises SubjectError if the socket cannot be made.
    """

    def __init__(self, path: Path, command: Sequence[str] = (), patience: Patience | None = None) -> None:
        self.path = path
        self.command = list(command)
        self.patience = patience or Patience()
        self._came = False
        """Whether a process has connected before: for the first one there is all the time of the world."""
        self._listener = _listen(path)

    def __enter__(self) -> WireSubject:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def world(self, role: str, suite: str, scene: Callable[[Seat], AbstractContextManager[Any]]) -> World:
        """Return what makes the world of each check, with `scene` around the process in its seat."""

        @contextmanager
        def make() -> Iterator[Any]:
            with self.seated(role, suite) as seat, scene(seat) as made:
                yield made

        return make

    @contextmanager
    def seated(self, role: str, suite: str) -> Iterator[Seat]:
        """Let a process take its seat for one check. Raises Failure if none comes."""
        with self._process() as process, self._accepted(process) as stream:
            connection = Connection(stream, self.patience.silence, self.patience.check)
            if process is not None:
                connection.obituary = lambda: _obituary(process)
            window = Window()
            try:
                greeting = wire.HELLO.pack(wire.MAGIC, wire.VERSION, window.pages, wire.ROLES[role], suite.encode())
                connection.greet(greeting, window.fd)
                yield Seat(connection, window, hears_jobs=role == "frontend")
            finally:
                window.close()

    @contextmanager
    def _process(self) -> Iterator[subprocess.Popen[bytes] | None]:
        """Start the command, if there is one, and see it end."""
        if not self.command:
            yield None
            return
        environment = os.environ | {VARIABLE: str(self.path)}
        try:
            # What it prints is for the person who wrote it, and no part of the report.
            process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=2, env=environment)
        except OSError as error:
            raise SubjectError(f"cannot run {self.command[0]!r}: {os.strerror(error.errno or 0)}") from None
        try:
            yield process
            # It has been told: its connection is closed.
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def _accepted(self, process: subprocess.Popen[bytes] | None) -> Iterator[socket.socket]:
        stream = self._accept(process)
        self._came = True
        with stream:
            yield stream

    def _accept(self, process: subprocess.Popen[bytes] | None) -> socket.socket:
        limit = self.patience.connect
        if process is None:
            self._listener.settimeout(limit if self._came else None)
            try:
                return self._listener.accept()[0]
            except TimeoutError:
                raise Failure(f"No process comes back within {limit:g} seconds: it should connect again.") from None
        self._listener.settimeout(0.05)
        for _ in range(round(limit / 0.05)):
            with suppress(TimeoutError):
                return self._listener.accept()[0]
            if process.poll() is not None:
                raise Failure(_obituary(process, "it has connected"))
        raise Failure(f"The process does not connect to ${VARIABLE} within {limit:g} seconds.")


def _obituary(process: subprocess.Popen[bytes], before: str = "the check is over") -> str:
    """Say how a process has ended; the empty string if it lives."""
    with suppress(subprocess.TimeoutExpired):
        code = process.wait(GRACE)
        if code >= 0:
            return f"The process ends with exit code {code} before {before}."
        return f"The process is killed by {signal.Signals(-code).name} before {before}."
    return ""


def _listen(path: Path) -> socket.socket:
    """Listen on a path. Raises SubjectError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _is_answered(path):
            # Somebody was killed who listened here.
            path.unlink()
        mask = os.umask(0o077)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen()
    except OSError as error:
        listener.close()
        raise SubjectError(f"cannot listen on {str(path)!r}: {error.strerror or error}") from None
    return listener


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
