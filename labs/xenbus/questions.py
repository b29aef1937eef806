"""The questions of lab 9."""

from __future__ import annotations

import random
import struct

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server
from guest_kernel.xenbus.wire import Message, encode, parse_all
from hypervisor.abi.io.xs_wire import (
    XS_READ,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from labs.kit.questions import Question
from toolstack.xenstore.service import NoXen


def _ask(server: Server, client: Connection, kind: int, payload: bytes, tx: int = 0) -> list[Message]:
    """Make a request; return all messages that the client gets then."""
    server.receive(client, encode(kind, 1, tx, payload))
    return list(parse_all(client.take(1 << 16)))


def _events(below: int, beside: int) -> int:
    """Return how many events a watch on /a/b hears, of so many writes below it and beside it."""
    server = Server(NoXen())
    watcher, writer = server.connect(), server.connect()
    heard = [*_ask(server, watcher, XS_WATCH, b"/a/b\0t\0")]
    for number in range(below):
        _ask(server, writer, XS_WRITE, f"/a/b/n{number}\0x".encode())
    for number in range(beside):
        _ask(server, writer, XS_WRITE, f"/a/n{number}\0x".encode())
    heard += parse_all(watcher.take(1 << 16))
    return sum(message.type == XS_WATCH_EVENT for message in heard)


def _end(touched: str) -> str:
    """Return how a transaction ends that has read /x and written /y, while somebody else wrote a node."""
    server = Server(NoXen())
    one, other = server.connect(), server.connect()
    for name in (b"/x", b"/y", b"/z"):
        _ask(server, other, XS_WRITE, name + b"\0" + b"1")
    (started,) = _ask(server, one, XS_TRANSACTION_START, b"\0")
    tx = int(started.payload.rstrip(b"\0"))
    _ask(server, one, XS_READ, b"/x\0", tx)
    _ask(server, one, XS_WRITE, b"/y\0" + b"2", tx)
    _ask(server, other, XS_WRITE, touched.encode() + b"\0" + b"3")
    (ended,) = _ask(server, one, XS_TRANSACTION_END, b"T\0", tx)
    return ended.payload.rstrip(b"\0").decode()


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    domid, value = rng.randrange(1, 300), str(rng.randrange(10**9))
    path = f"/local/domain/{domid}/device/vbd/{rng.choice([51712, 51728, 768])}/ring-ref"
    below, beside = rng.randrange(2, 20), rng.randrange(2, 20)
    touched = rng.choice(["/x", "/z"])
    other = "/z" if touched == "/x" else "/x"
    return [
        Question(
            f"How many bytes does a client send to write {value!r} to {path}?",
            lambda: struct.calcsize("<4I") + len(path) + 1 + len(value),
            "A header of 16, the path with its zero byte, and the value without one.",
        ),
        Question(
            f"A client watches /a/b. Then somebody writes {below} nodes below /a/b and {beside} other nodes below /a. "
            "How many events does the client get altogether?",
            lambda: _events(below, beside),
            "One for each node below, and one right away: a new watch fires, so that nothing is missed that is there.",
        ),
        Question(
            f"A transaction reads /x and writes /y. Meanwhile somebody else writes {touched}. What does the end of the "
            "transaction say?",
            lambda: _end(touched),
            "What has been read must still be so. Nodes that the transaction never looked at do not matter.",
        ),
        Question(
            f"And if he had written {other}?",
            lambda: _end(other),
            "Early versions of xenstored failed if anybody had written anything: busy toolstacks never got through.",
        ),
    ]
