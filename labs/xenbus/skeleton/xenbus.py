"""Lab 9: xenstore and xenbus. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

XS_DIRECTORY, XS_READ, XS_WATCH, XS_TRANSACTION_START, XS_TRANSACTION_END, XS_WRITE = 1, 2, 4, 6, 7, 11
XS_WATCH_EVENT, XS_ERROR = 15, 16
HEADER = struct.Struct("<4I")
"""type, req_id, tx_id, len"""

RING = 1024
REQ, REQ_CONS, REQ_PROD = 0, 2048, 2052
RSP, RSP_CONS, RSP_PROD = 1024, 2056, 2060
"""Offsets in the shared page: requests go to xenstored, responses come from it."""

INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = 1, 2, 3, 4, 5, 6

Message = tuple[int, int, int, bytes]
"""type, req_id, tx_id, payload"""


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
    raise NotImplementedError("as for the console in lab 2, with other offsets")


def ring_take(page: memoryview) -> bytes:
    """Take the bytes of responses out of the ring. Raises ValueError if the indices cannot be: more than RING apart."""
    raise NotImplementedError("from rsp_cons up to rsp_prod; then advance rsp_cons")


class Decoder:
    """Makes messages of bytes that come in pieces."""

    def feed(self, data: bytes) -> list[Message]:
        """Take some bytes; return the messages that are complete now."""
        raise NotImplementedError("keep what is not complete yet")


class Client:
    """A client of xenstored."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.decoder = Decoder()
        self.events: list[tuple[str, str]] = []
        """Watch events that have come, in order: path, token."""

    def request(self, kind: int, payload: bytes, tx: int = 0) -> bytes:
        """Send a request; return the payload of its reply. Raises StoreError. Events that come meanwhile are kept."""
        raise NotImplementedError("a req_id of its own; receive until the reply with that is there")

    def read(self, path: str, tx: int = 0) -> str:
        """Return a node's value. Raises StoreError."""
        raise NotImplementedError("XS_READ")

    def write(self, path: str, value: str, tx: int = 0) -> None:
        """Write a node. Raises StoreError."""
        raise NotImplementedError("XS_WRITE; the value has no zero byte behind it")

    def directory(self, path: str, tx: int = 0) -> list[str]:
        """Return the names of a node's children. Raises StoreError."""
        raise NotImplementedError("XS_DIRECTORY; no children are an empty list")

    def watch(self, path: str, token: str) -> None:
        """Watch a node and what is below it. Raises StoreError."""
        raise NotImplementedError("XS_WATCH")

    def transaction(self, work: Callable[[int], T]) -> T:
        """Call `work(tx)` in a transaction and commit; again and again, while xenstored says EAGAIN.

        Returns what the last `work` returned. If `work` raises, the transaction is aborted.
        """
        raise NotImplementedError("start, work, end")


class Frontend:
    """The frontend's half of the handshake, of a device whose directory is `path`."""

    def __init__(self, client: Client, path: str) -> None:
        self.client = client
        self.path = path
        self.state = INITIALISING
        self.backend = ""
        self.size = 0
        self.closes = 0
        """How often what this end holds has been given back."""

    def start(self) -> None:
        """Find the backend (node `backend`), and watch its state with the token "backend"."""
        raise NotImplementedError("the watch fires at once")

    def step(self) -> None:
        """Something may have changed: look at the backend's state, do what the table says. Raises no StoreError."""
        raise NotImplementedError("a state that is missing or no number is none of 1 to 6; missing means gone")

    def publish(self) -> None:
        """Write ring-ref "8", event-channel "5" and the state Initialised, in one transaction."""
        raise NotImplementedError("self.client.transaction")

    def connect(self) -> None:
        """Read the backend's `sectors` into `size`; write the state Connected. A size that is no number: close."""
        raise NotImplementedError("what the other end writes may be anything")

    def close(self) -> None:
        """Count in `closes`; write the state Closed."""
        raise NotImplementedError("once")
