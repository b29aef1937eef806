"""Clients of a store on a Unix socket, and a directory that each check has for itself."""

from __future__ import annotations

import fcntl
import itertools
import socket
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import final

from conformance.kit.check import Failure
from conformance.kit.runner import World
from conformance.kit.telling import note
from conformance.subjects import socket_path
from guest_kernel.xenbus.wire import HEADER, Message, Parser, encode, join
from hypervisor.abi.io import xs_wire as xs

PATIENCE = 5.0
"""Seconds after which an answer counts as missing."""
SILENCE = 0.1
"""Seconds of waiting for what should not come."""
HOME = "/conformance"


class HungUp(Failure):
    """The store has closed the connection."""


@final
class Client:
    """One connection."""

    def __init__(self, path: Path, number: int = 0) -> None:
        self.number = number
        """For those who are told of what it says."""
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            # (With a time limit a full queue of the listener would be an error; a store may have room for one.)
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.socket.settimeout(PATIENCE)
        self._parser = Parser()
        self._come: deque[Message] = deque()
        self._ids = itertools.count(1)
        self.events: deque[tuple[str, str]] = deque()
        """Watch events that have come: path, token."""
        self.order: list[str] = []
        """What has come since this was emptied: "event" or "reply"."""

    def close(self) -> None:
        """Hang up, as at the end of a check."""
        self.socket.close()

    def hang_up(self) -> None:
        """Hang up, as a part of a check."""
        note(f"client {self.number} hangs up")
        self.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises HungUp."""
        self._tell("->", data)
        try:
            self.socket.sendall(data)
        except ConnectionError:
            raise HungUp("The store hangs up.") from None

    def send_alone(self, data: bytes) -> None:
        """Send bytes, and wait until the store has read them, if it does so before there are more."""
        self.send(data)
        deadline = time.monotonic() + SILENCE
        while self._unread() and time.monotonic() < deadline:
            time.sleep(0.001)

    def _unread(self) -> int:
        """Return how much of what was sent the store has not read (unix(7), SIOCOUTQ)."""
        return int.from_bytes(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def _tell(self, way: str, data: bytes) -> None:
        """Tell of a message, or of bytes that are none."""
        if len(data) < HEADER.size:
            note(f"client {self.number} {way} {data!r}")
            return
        kind, _, tx, length = HEADER.unpack(data[: HEADER.size])
        name = xs.NAMES.get(kind, f"type {kind}").removeprefix("XS_")
        where = f" in transaction {tx}" if tx else ""
        payload = data[HEADER.size :]
        shown = repr(payload[:60])[1:] + (f" and {len(payload) - 60} bytes more" if len(payload) > 60 else "")
        wrong = f" of {length} bytes" if length != len(payload) else ""
        note(f"client {self.number} {way} {name}{where} {shown}{wrong}")

    def message(self, patience: float = PATIENCE) -> Message:
        """Return the next message, event or reply. Raises Failure if there is none, HungUp."""
        self.socket.settimeout(patience)
        while not self._come:
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                raise Failure(f"There is no answer within {patience} s.") from None
            except ConnectionError:
                data = b""
            if not data:
                raise HungUp("The store hangs up.")
            self._come.extend(self._parser.receive(data))
        message = self._come.popleft()
        self._tell(
            "<-", HEADER.pack(message.type, message.req_id, message.tx_id, len(message.payload)) + message.payload
        )
        return message

    def reply(self) -> Message:
        """Return the next reply; events before it are kept."""
        while True:
            message = self.message()
            if message.type != xs.XS_WATCH_EVENT:
                self.order.append("reply")
                return message
            self._note(message)

    def _note(self, message: Message) -> None:
        self.order.append("event")
        if (message.req_id, message.tx_id) != (0, 0):
            raise Failure(f"An event has req_id {message.req_id} and tx_id {message.tx_id}; both should be 0.")
        parts = message.payload.split(b"\0")
        if len(parts) != 3 or parts[2]:
            raise Failure(f"An event says {message.payload!r}; it should be a path and a token, each with its NUL.")
        self.events.append((parts[0].decode(), parts[1].decode()))

    def call(self, kind: int, payload: bytes, tx: int = 0) -> Message:
        """Send a request and return its reply, which must carry the request's numbers."""
        number = next(self._ids)
        self.send(HEADER.pack(kind, number, tx, len(payload)) + payload)
        reply = self.reply()
        if (reply.req_id, reply.tx_id) != (number, tx):
            raise Failure(f"The reply to request {number} of transaction {tx} says {reply.req_id} and {reply.tx_id}.")
        return reply

    def ask(self, kind: int, *words: str | bytes, tx: int = 0) -> bytes:
        """Send words, each with its NUL; return the payload of the reply. Raises Failure for an error."""
        reply = self.call(kind, join(*words) if words else b"", tx)
        name = xs.NAMES.get(kind, str(kind)).removeprefix("XS_")
        if reply.type == xs.XS_ERROR:
            raise Failure(f"{name} {words!r} is refused with {reply.payload!r}.")
        if reply.type != kind:
            raise Failure(f"The reply to {name} has type {reply.type}, not {kind}.")
        return reply.payload

    def refused(self, kind: int, payload: bytes, error: str, tx: int = 0) -> None:
        """Send a request that must be refused with this error."""
        reply = self.call(kind, payload, tx)
        name = xs.NAMES.get(kind, str(kind)).removeprefix("XS_")
        if reply.type != xs.XS_ERROR:
            raise Failure(
                f"{name} {payload[:60]!r} is granted ({reply.payload[:60]!r}); it should be refused: {error}."
            )
        if reply.payload != error.encode() + b"\0":
            raise Failure(f"{name} {payload[:60]!r} is refused with {reply.payload!r}; it should be {error}.")

    # -- what is needed most ------------------------------------------------------------------------------------------

    def write(self, path: str, value: str | bytes = b"", tx: int = 0) -> None:
        """Write a node."""
        raw = value if isinstance(value, bytes) else value.encode()
        reply = self.call(xs.XS_WRITE, path.encode() + b"\0" + raw, tx)
        if reply.payload != b"OK\0":
            raise Failure(f"The reply to WRITE {path} is {reply.payload!r}, not 'OK' with a NUL.")

    def read(self, path: str, tx: int = 0) -> bytes:
        """Read a node."""
        return self.ask(xs.XS_READ, path, tx=tx)

    def list(self, path: str, tx: int = 0) -> list[str]:
        """Return the names of a node's children."""
        return self.ask(xs.XS_DIRECTORY, path, tx=tx).decode().split("\0")[:-1]

    def watch(self, path: str, token: str) -> None:
        """Watch a path, and take the first event of it."""
        self.ask(xs.XS_WATCH, path, token)
        self.expect_events((path, token))

    def start(self) -> int:
        """Start a transaction and return its number."""
        text = self.ask(xs.XS_TRANSACTION_START, "")
        if not text[:-1].isdigit() or text[-1:] != b"\0":
            raise Failure(f"TRANSACTION_START returns {text!r}, which is no number with a NUL.")
        return int(text[:-1])

    def commit(self, tx: int) -> None:
        """Commit a transaction, which must succeed."""
        self.ask(xs.XS_TRANSACTION_END, "T", tx=tx)

    def sync(self) -> None:
        """Have all come that is on its way: what the store does for a client it does in order."""
        self.call(xs.XS_GET_DOMAIN_PATH, b"0\0")

    def expect_events(self, *wanted: tuple[str, str]) -> None:
        """Take the events that have come; they must be these, in this order."""
        self.sync()
        found = list(self.events)
        self.events.clear()
        if found != list(wanted):
            raise Failure(f"The events are {found}; they should be {list(wanted)}.")


@final
class Store:
    """What a check gets: as many clients as it wants, and a directory of its own, `home`."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack
        self.home = HOME
        self._clients = 0
        self.one = self.client()

    def client(self) -> Client:
        """Connect."""
        self._clients += 1
        client = Client(self.path, self._clients)
        self._stack.callback(client.close)
        return client


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    path = socket_path(text)
    return lambda: store(path)


@contextmanager
def store(path: Path) -> Iterator[Store]:
    """Connect, with an empty directory; remove it afterwards."""
    with ExitStack() as stack:
        made = Store(path, stack)
        _clean(path)
        yield made
    _clean(path)


def _clean(path: Path) -> None:
    client = Client(path)
    client.send(encode(xs.XS_RM, 1, 0, HOME.encode() + b"\0"))
    client.message()
    client.close()
