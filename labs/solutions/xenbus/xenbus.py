"""Lab 9, solved."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

XS_DIRECTORY, XS_READ, XS_WATCH, XS_TRANSACTION_START, XS_TRANSACTION_END, XS_WRITE = 1, 2, 4, 6, 7, 11
XS_WATCH_EVENT, XS_ERROR = 15, 16
HEADER = struct.Struct("<4I")

RING = 1024
REQ, REQ_CONS, REQ_PROD = 0, 2048, 2052
RSP, RSP_CONS, RSP_PROD = 1024, 2056, 2060

INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = 1, 2, 3, 4, 5, 6
GONE = 0

Message = tuple[int, int, int, bytes]


class StoreError(Exception):
    """xenstored has refused a request; `name` says why ("ENOENT")."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Pipe(Protocol):
    """A connection to xenstored."""

    def send(self, data: bytes) -> None:
        """Send bytes."""

    def receive(self) -> bytes:
        """Return the bytes that have come, at least one: waits for them."""


def ring_put(page: memoryview, data: bytes) -> int:
    """Put bytes of requests into the ring, as many as there is room for; return how many those were."""
    cons, prod = struct.unpack_from("<II", page, REQ_CONS)
    data = data[: RING - ((prod - cons) & 0xFFFFFFFF)]
    for number, byte in enumerate(data):
        page[REQ + (prod + number) % RING] = byte
    struct.pack_into("<I", page, REQ_PROD, (prod + len(data)) & 0xFFFFFFFF)
    return len(data)


def ring_take(page: memoryview) -> bytes:
    """Take the bytes of responses out of the ring."""
    cons, prod = struct.unpack_from("<II", page, RSP_CONS)
    count = (prod - cons) & 0xFFFFFFFF
    if count > RING:
        raise ValueError(f"{count} bytes in a ring of {RING}")
    data = bytes(page[RSP + (cons + number) % RING] for number in range(count))
    struct.pack_into("<I", page, RSP_CONS, prod)
    return data


class Decoder:
    """Makes messages of bytes that come in pieces."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Take some bytes; return the messages that are complete now."""
        self.rest += data
        messages = []
        while len(self.rest) >= HEADER.size:
            kind, req_id, tx_id, length = HEADER.unpack_from(self.rest)
            if len(self.rest) < HEADER.size + length:
                break
            messages.append((kind, req_id, tx_id, self.rest[HEADER.size : HEADER.size + length]))
            self.rest = self.rest[HEADER.size + length :]
        return messages


class Client:
    """A client of xenstored."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.decoder = Decoder()
        self.events: list[tuple[str, str]] = []
        self.last_id = 0

    def request(self, kind: int, payload: bytes, tx: int = 0) -> bytes:
        """Send a request; return the payload of its reply."""
        self.last_id += 1
        self.pipe.send(HEADER.pack(kind, self.last_id, tx, len(payload)) + payload)
        answer = None
        while answer is None:
            for message in self.decoder.feed(self.pipe.receive()):
                if message[0] == XS_WATCH_EVENT:
                    path, token = message[3].decode().split("\0")[:2]
                    self.events.append((path, token))
                elif message[1] == self.last_id:
                    answer = message
        if answer[0] == XS_ERROR:
            raise StoreError(answer[3].rstrip(b"\0").decode())
        return answer[3]

    def read(self, path: str, tx: int = 0) -> str:
        """Return a node's value."""
        return self.request(XS_READ, path.encode() + b"\0", tx).decode()

    def write(self, path: str, value: str, tx: int = 0) -> None:
        """Write a node."""
        self.request(XS_WRITE, path.encode() + b"\0" + value.encode(), tx)

    def directory(self, path: str, tx: int = 0) -> list[str]:
        """Return the names of a node's children."""
        return self.request(XS_DIRECTORY, path.encode() + b"\0", tx).decode().split("\0")[:-1]

    def watch(self, path: str, token: str) -> None:
        """Watch a node and what is below it."""
        self.request(XS_WATCH, f"{path}\0{token}\0".encode())

    def transaction(self, work: Callable[[int], T]) -> T:
        """Call `work(tx)` in a transaction and commit; again and again, while xenstored says EAGAIN."""
        while True:
            tx = int(self.request(XS_TRANSACTION_START, b"\0").rstrip(b"\0"))
            try:
                result = work(tx)
            except BaseException:
                self.request(XS_TRANSACTION_END, b"F\0", tx)
                raise
            try:
                self.request(XS_TRANSACTION_END, b"T\0", tx)
            except StoreError as error:
                if error.name == "EAGAIN":
                    continue
                raise
            return result


class Frontend:
    """The frontend's half of the handshake, of a device whose directory is `path`."""

    def __init__(self, client: Client, path: str) -> None:
        self.client = client
        self.path = path
        self.state = INITIALISING
        self.backend = ""
        self.size = 0
        self.closes = 0

    def start(self) -> None:
        """Find the backend, and watch its state."""
        self.backend = self.client.read(f"{self.path}/backend")
        self.client.watch(f"{self.backend}/state", "backend")

    def look(self) -> int:
        """Return the backend's state; GONE if there is none, -1 for nonsense."""
        try:
            text = self.client.read(f"{self.backend}/state")
        except StoreError:
            return GONE
        return int(text) if text.isascii() and text.isdigit() and 1 <= int(text) <= 6 else -1

    def step(self) -> None:
        """Something may have changed: look at the backend's state, and do what the table says."""
        there = self.look()
        if there in (CLOSING, CLOSED, GONE):
            self.close()
        elif there == INIT_WAIT and self.state == INITIALISING:
            self.publish()
        elif there == CONNECTED and self.state == INITIALISED:
            self.connect()

    def publish(self) -> None:
        """Write ring-ref, event-channel and the state Initialised, in one transaction."""

        def work(tx: int) -> None:
            self.client.write(f"{self.path}/ring-ref", "8", tx)
            self.client.write(f"{self.path}/event-channel", "5", tx)
            self.client.write(f"{self.path}/state", str(INITIALISED), tx)

        self.client.transaction(work)
        self.state = INITIALISED

    def connect(self) -> None:
        """Read the backend's `sectors`; write the state Connected."""
        try:
            text = self.client.read(f"{self.backend}/sectors")
        except StoreError:
            text = ""
        if not (text.isascii() and text.isdigit()):
            self.close()
            return
        self.size = int(text)
        self.say(CONNECTED)

    def close(self) -> None:
        """Give everything back, once."""
        if self.state != CLOSED:
            self.closes += 1
            self.say(CLOSED)

    def say(self, state: int) -> None:
        """Write the own state."""
        self.state = state
        self.client.write(f"{self.path}/state", str(state))
