"""A small blocking client of a store behind a Unix socket."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, final

from guest_kernel.xenbus.wire import Message, Parser, encode, join, to_bytes, to_text
from hypervisor.abi.io import xs_wire as xs
from toolstack.errors import UsageError
from toolstack.xenstore.address import check_length

Text = str | bytes


class Refused(Exception):
    """The store has refused a request; `name` is the errno's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class ConnectionLost(UsageError):
    """The daemon has hung up, or what it sends is no xenstore protocol."""


@final
class StoreClient:
    """One connection. Paths and values are bytes, or text (UTF-8; bytes that are none survive).

    All operations raise `Refused`, and `ConnectionLost` when there is nobody any more. `tx`: a transaction's number.
    """

    def __init__(self, path: Path) -> None:
        """Connect. Raises `UsageError`."""
        check_length(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise UsageError(f"cannot reach a store at {str(path)!r}: {error.strerror}") from None
        self._parser = Parser()
        self._received: deque[Message] = deque()
        self._events: deque[tuple[bytes, bytes]] = deque()
        self._last_id = 0

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- messages

    def _next(self) -> Message:
        while not self._received:
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise ConnectionLost(f"the store is gone: {error.strerror}") from None
            if not data:
                raise ConnectionLost("the store has hung up")
            self._received += self._parser.receive(data)
            if self._parser.broken:
                raise ConnectionLost(f"what the store sends cannot be understood: {self._parser.broken}")
        return self._received.popleft()

    def request(self, kind: int, payload: bytes, tx: int = 0) -> bytes:
        """Send a request and return the payload of its reply. Events that come before it are kept."""
        if len(payload) > xs.XENSTORE_PAYLOAD_MAX:
            raise Refused("E2BIG")
        self._last_id = self._last_id % 0xFFFFFFFF + 1
        try:
            self._socket.sendall(encode(kind, self._last_id, tx, payload))
        except OSError as error:
            raise ConnectionLost(f"the store is gone: {error.strerror}") from None
        while True:
            message = self._next()
            if message.type == xs.XS_WATCH_EVENT:
                self._note(message)
            elif message.req_id == self._last_id:
                if message.type == xs.XS_ERROR:
                    raise Refused(to_text(message.payload.rstrip(b"\0")))
                return message.payload

    def _note(self, message: Message) -> None:
        path, _, token = message.payload.partition(b"\0")
        self._events.append((path, token.rstrip(b"\0")))

    def next_event(self) -> tuple[bytes, bytes]:
        """Wait for an event: path and token."""
        while not self._events:
            message = self._next()
            if message.type == xs.XS_WATCH_EVENT:
                self._note(message)
        return self._events.popleft()

    # ---- operations

    def read(self, path: Text, tx: int = 0) -> bytes:
        """Return a node's value."""
        return self.request(xs.XS_READ, join(path), tx)

    def write(self, path: Text, value: Text, tx: int = 0) -> None:
        """Give a node a value; make it and what is missing above it."""
        self.request(xs.XS_WRITE, join(path) + to_bytes(value), tx)

    def mkdir(self, path: Text, tx: int = 0) -> None:
        """Make a node without a value, unless it is there."""
        self.request(xs.XS_MKDIR, join(path), tx)

    def rm(self, path: Text, tx: int = 0) -> None:
        """Remove a node and all below it."""
        self.request(xs.XS_RM, join(path), tx)

    def directory(self, path: Text, tx: int = 0) -> list[bytes]:
        """Return the names of a node's children, also if they do not fit into one message."""
        try:
            return self.request(xs.XS_DIRECTORY, join(path), tx).split(b"\0")[:-1]
        except Refused as error:
            if error.name != "E2BIG":
                raise
        return self._large_directory(path, tx)

    def _large_directory(self, path: Text, tx: int) -> list[bytes]:
        names = generation = b""
        while True:
            reply = self.request(xs.XS_DIRECTORY_PART, join(path, str(len(names))), tx)
            current, _, part = reply.partition(b"\0")
            if names and current != generation:
                # It has changed meanwhile.
                names = b""
                continue
            generation = current
            if part.endswith(b"\0\0") or part in (b"", b"\0"):
                return (names + part[:-1]).split(b"\0")[:-1]
            names += part

    def permissions(self, path: Text, tx: int = 0) -> list[str]:
        """Return a node's permissions: `n0`, `r5`, ..."""
        return to_text(self.request(xs.XS_GET_PERMS, join(path), tx)).split("\0")[:-1]

    def set_permissions(self, path: Text, permissions: list[str], tx: int = 0) -> None:
        """Give a node other permissions; the first names its owner."""
        self.request(xs.XS_SET_PERMS, join(path, *permissions), tx)

    def watch(self, path: Text, token: Text) -> None:
        """Be told of changes of a node and of everything below it."""
        self.request(xs.XS_WATCH, join(path, token))

    def unwatch(self, path: Text, token: Text) -> None:
        """Take a watch back."""
        self.request(xs.XS_UNWATCH, join(path, token))

    def control(self, *words: Text) -> bytes:
        """Give the daemon a command; return its answer."""
        return self.request(xs.XS_CONTROL, join(*words)).rstrip(b"\0")

    def start(self) -> int:
        """Begin a transaction; return its number."""
        return int(self.request(xs.XS_TRANSACTION_START, b"\0").rstrip(b"\0"))

    def end(self, tx: int, commit: bool) -> None:
        """End a transaction. Raises `Refused` EAGAIN if somebody else's change came in between."""
        self.request(xs.XS_TRANSACTION_END, b"T\0" if commit else b"F\0", tx)

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """Run the body in a transaction; what it raises ends the transaction without a change."""
        tx = self.start()
        try:
            yield tx
        except BaseException:
            self.end(tx, commit=False)
            raise
        self.end(tx, commit=True)
