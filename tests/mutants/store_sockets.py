"""Faulty stores: ours, with one fault each in how it deals with its clients' sockets."""

from __future__ import annotations

import socket
from typing import Any

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server
from guest_kernel.xenbus.wire import HEADER
from tests.mutants.stores import Patch, method
from toolstack.xenstore.sockets import SocketClient, SocketServer


def _peek(client: SocketClient, size: int) -> bytes:
    """Return up to so many bytes that a client has sent, and leave them where they are."""
    try:
        return client.recv(size, socket.MSG_PEEK)
    except OSError:
        return b""


def _one_at_a_time(old: Any) -> Any:
    """Take what is read for one request."""

    def read(self: SocketServer, client: SocketClient) -> None:
        waiting = _peek(client, HEADER.size)
        if len(waiting) == HEADER.size:
            *_, length = HEADER.unpack(waiting)
            size = HEADER.size + length
            if len(_peek(client, size + 1)) > size:
                self.drop(client)
                return
        old(self, client)

    return read


def _whole_headers(old: Any) -> Any:
    """Take less than a header for the end."""

    def read(self: SocketServer, client: SocketClient) -> None:
        if len(_peek(client, HEADER.size)) < HEADER.size:
            self.drop(client)
            return
        old(self, client)

    return read


def _half_is_done(old: Any) -> Any:
    """Carry out what has come of a request when its client hangs up."""

    def disconnect(self: Server, connection: Connection) -> None:
        buffer = connection.input
        if len(buffer) > HEADER.size:
            kind, number, transaction, _ = HEADER.unpack_from(buffer)
            self._serve(connection, kind, number, transaction, buffer[HEADER.size :])
        old(self, connection)

    return disconnect


def _all_go(self: SocketServer) -> None:
    """End, as far as clients see."""
    for client in list(self.clients.values()):
        self.drop(client)


def _ends_with_a_client(old: Any) -> Any:
    """End when a client hangs up in the middle of a request."""

    def drop(self: SocketServer, client: SocketClient) -> None:
        half = bool(client.connection.input)
        old(self, client)
        if half:
            _all_go(self)

    return drop


def _ends_with_much_unread(old: Any) -> Any:
    """End when too much waits for a client."""

    def ask_for_room(self: SocketServer, client: SocketClient) -> None:
        old(self, client)
        if client.connection.queued > 1 << 16:
            _all_go(self)

    return ask_for_room


def _few_clients(old: Any) -> Any:
    """Have room for 64 clients; the next one finds out when it asks for something."""

    def read(self: SocketServer, client: SocketClient) -> None:
        if client in list(self.clients.values())[:64]:
            old(self, client)
        else:
            self.drop(client)

    return read


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "one-at-a-time": (
        "it takes what it reads for one request, and hangs up if there is more",
        "XENSTORE-003",
        method(SocketServer, "_read", _one_at_a_time),
    ),
    "whole-headers": (
        "a client that has sent half a header is hung up on",
        "XENSTORE-004",
        method(SocketServer, "_read", _whole_headers),
    ),
    "ends-with-a-client": (
        "it ends when a client goes in the middle of a request",
        "XENSTORE-008",
        method(SocketServer, "drop", _ends_with_a_client),
    ),
    "half-is-done": (
        "a request that was cut off is carried out as far as it has come",
        "XENSTORE-008",
        method(Server, "disconnect", _half_is_done),
    ),
    "ends-with-much-unread": (
        "it ends when a client does not read",
        "XENSTORE-090",
        method(SocketServer, "_ask_for", _ends_with_much_unread),
    ),
    "few-clients": (
        "a client that comes when there are 64 is hung up on",
        "XENSTORE-093",
        method(SocketServer, "_read", _few_clients),
    ),
}
"""Name → the fault, the check meant for it, what makes it."""
