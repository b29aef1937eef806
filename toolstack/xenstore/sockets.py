"""Clients of the store on a Unix socket.

    client ──send──▶ recv(64 KiB) ──▶ Store.receive ──▶ Endpoint ──▶ one send

One epoll object watches the listener and all clients, so a wake-up serves everybody who is ready, and whoever drives
this (`fileno`, `poll`) waits for one file descriptor, whatever the number of clients. A client gets its whole backlog
of requests answered in one go and the answers with one `send`, or two if it is long; only when its socket is full are
they kept, and it is listened to again once it has read.

Whoever can open the socket is dom0. The C daemon keeps for such a client whatever it does not read; here a client with
`INPUT_STOP` bytes waiting is not listened to, and one that lets events pile up to `OUTPUT_LIMIT` is dropped.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar, final

READ_SIZE: Final = 1 << 16
SEND_SIZE: Final = 60_000
"""Bytes that are taken from a connection at a time: the state of a live update has 16 bits for what is left of them."""
BACKLOG: Final = 1024
EARLY: Final = 512
"""Of a backlog of so many bytes of requests, the first so many are answered at once: the client wakes up and sends more
while the rest is worked on. On two processors that hides what it takes them to wake each other."""
INPUT_STOP: Final = 8 << 20
"""Bytes that wait for a client, above which its requests are left alone."""
OUTPUT_LIMIT: Final = 64 << 20
"""Bytes that wait for a client, above which it is dropped: it will never read."""

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_TABLE_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Endpoint(Protocol):
    """A client as the store sees it, `backends.xenstored.connection.Connection` for one."""

    queued: int
    """Bytes that wait for the client."""
    error: int
    """Not 0: hang up."""

    def take(self, room: int) -> bytes:
        """Return up to so many of the waiting bytes, which are then the caller's to deliver."""
        ...

    def parting(self) -> bytes:
        """Return what a client that is hung up on still gets."""
        ...


E = TypeVar("E")


class Store(Protocol[E]):
    """What sockets need of a store."""

    dirty: dict[E, None]
    """Who has got something since this was emptied."""

    def connect(self, label: str) -> E:
        """Return a new client that is dom0."""
        ...

    def receive(self, connection: E, data: bytes) -> None:
        """Take bytes that a client sent."""
        ...

    def disconnect(self, connection: E) -> None:
        """Forget a client."""
        ...


@final
class SocketClient:
    """One client: its socket, its end of the store, and what the socket would not take."""

    __slots__ = ("connection", "events", "pending", "recv", "send", "socket")

    def __init__(self, sock: socket.socket, connection: Any) -> None:
        self.socket = sock
        #: The socket's own methods: they are called for every request.
        self.recv = sock.recv
        self.send = sock.send
        self.connection = connection
        #: What epoll is asked for.
        self.events = _IN
        #: Bytes taken from the connection that the socket had no room for.
        self.pending = b""


@final
class SocketServer:
    """The sockets of one store.

    `store` answers at once (`backends.xenstored.server.Server`) or later, and then has `flush` called.
    """

    def __init__(self, store: Store[Any], listener: socket.socket | None) -> None:
        self.store = store
        self.listener = listener
        self.clients: dict[int, SocketClient] = {}
        self.by_connection: dict[Any, SocketClient] = {}
        self._receive = store.receive
        self._number = 0
        self._listening = False
        self._epoll = select.epoll()
        #: Whom to call for a descriptor that is no client's.
        self._others: dict[int, Callable[[], None]] = {}
        if listener is not None:
            self._others[listener.fileno()] = self._accept
        self._listen()

    def attend(self, number: int, call: Callable[[], None]) -> None:
        """Have `poll` call somebody whenever this descriptor is readable."""
        self._others[number] = call
        self._epoll.register(number, _IN)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `poll` has something to do."""
        return self._epoll.fileno()

    def poll(self, timeout: float | None = 0) -> bool:
        """Serve everybody who is ready; wait at most `timeout` seconds for somebody (None: as long as it takes).

        Tells whether there was one.
        """
        ready = self._epoll.poll(timeout)
        clients = self.clients
        for number, events in ready:
            client = clients.get(number)
            if client is None:
                self._call(number)
            elif events == _IN:
                self._read(client)
            else:
                self._attend_to(client, events)
        return bool(ready)

    def _call(self, number: int) -> None:
        """See to a descriptor that is no client's; one that was, until a moment ago, is nobody's."""
        call = self._others.get(number)
        if call is not None:
            call()

    def _attend_to(self, client: SocketClient, events: int) -> None:
        if events & _OUT:
            self._send(client)
            if client.socket.fileno() < 0:
                return
        if events & ~_OUT and client.events & _IN:
            self._read(client)
        elif events & ~(_IN | _OUT) and client.socket.fileno() >= 0:
            # It has gone while it was not listened to.
            self.drop(client)

    def _read(self, client: SocketClient) -> None:
        try:
            data = client.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(client)
            return
        connection = client.connection
        if len(data) >= BACKLOG:
            self._receive(connection, data[:EARLY])
            self.flush()
            if client.socket.fileno() < 0:
                return
            data = data[EARLY:]
        self._receive(connection, data)
        dirty = self.store.dirty
        if len(dirty) == 1 and connection in dirty and not connection.error and not client.pending:
            # Most requests concern nobody else.
            dirty.clear()
            self._send(client)
        else:
            self.flush()

    # ---- answers

    def flush(self) -> None:
        """Send what the connections named in `store.dirty` have got; those that are no socket's are left out."""
        dirty = self.store.dirty
        while dirty:
            connection, _ = dirty.popitem()
            self.deliver(connection)

    def deliver(self, connection: Endpoint) -> None:
        """Send what one connection has got, if it is a socket's."""
        client = self.by_connection.get(connection)
        if client is None:
            return
        if connection.error:
            self._hang_up(client)
        elif not client.pending:
            self._send(client)
        elif connection.queued > OUTPUT_LIMIT:
            self.drop(client)
        else:
            self._ask_for(client)

    def _hang_up(self, client: SocketClient) -> None:
        """Drop a client that broke the protocol."""
        client.pending = client.pending or client.connection.parting()
        if client.pending:
            with suppress(OSError):
                client.socket.send(client.pending)
        self.drop(client)

    def _send(self, client: SocketClient) -> None:
        connection = client.connection
        data = client.pending or connection.take(SEND_SIZE)
        while data:
            try:
                count = client.send(data)
            except BlockingIOError:
                count = 0
            except OSError:
                self.drop(client)
                return
            if count < len(data):
                client.pending = data[count:]
                break
            client.pending = b""
            if not connection.queued:
                break
            data = connection.take(SEND_SIZE)
        if client.pending or client.events != _IN:
            self._ask_for(client)

    def _ask_for(self, client: SocketClient) -> None:
        """Tell epoll what is waited for: room while something is pending, requests unless too much is."""
        events = _IN
        if client.pending:
            events = _OUT if client.connection.queued > INPUT_STOP else _IN | _OUT
        if events != client.events:
            client.events = events
            self._epoll.modify(client.socket, events)

    # ---- comings and goings

    def _listen(self) -> None:
        if self.listener is not None and not self._listening:
            self._epoll.register(self.listener, _IN)
            self._listening = True

    def stop_listening(self) -> None:
        """Take no new clients for now: the process has no descriptors left, or it is about to end."""
        if self.listener is not None and self._listening:
            self._epoll.unregister(self.listener)
            self._listening = False

    def _accept(self) -> None:
        assert self.listener is not None, "nobody listens"
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _TABLE_FULL and self.clients:
                # It would be tried again and again. When a client goes there is a descriptor.
                self.stop_listening()
            return
        sock.setblocking(False)
        self._number += 1
        self.adopt(sock, self.store.connect(f"socket {self._number}"))

    def adopt(self, sock: socket.socket, connection: Endpoint, pending: bytes = b"") -> SocketClient:
        """Serve a connected socket from now on."""
        client = SocketClient(sock, connection)
        client.pending = pending
        self.clients[sock.fileno()] = client
        self.by_connection[connection] = client
        self._epoll.register(sock, _IN)
        if pending:
            self._ask_for(client)
        return client

    def drop(self, client: SocketClient) -> None:
        """Hang up on a client."""
        number = client.socket.fileno()
        if number < 0:
            return
        self._epoll.unregister(number)
        del self.clients[number]
        del self.by_connection[client.connection]
        client.socket.close()
        self.store.disconnect(client.connection)
        self._listen()

    def close(self) -> None:
        """Hang up on everybody."""
        self.stop_listening()
        for client in list(self.clients.values()):
            self.drop(client)
        self.stop_listening()
        if self.listener is not None:
            self.listener.close()
        self._epoll.close()
