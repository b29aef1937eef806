"""Clients of the store on a Unix socket.

    client ──send──▶ recv(64 KiB) ──▶ feed ──▶ Server ──▶ Connection ──▶ one send

One epoll object watches the listener and all clients, so a wake-up serves everybody who is ready, and whoever drives
this (`fileno`, `poll`) waits for one file descriptor, whatever the number of clients. A client gets its whole backlog
of requests answered in one go and the answers with one `send`; only when its socket is full are they kept, and it is
listened to again once it has read.

Whoever can open the socket is dom0. The C daemon keeps for such a client whatever it does not read; here a client with
`INPUT_STOP` bytes waiting is not listened to, and one that lets events pile up to `OUTPUT_LIMIT` is dropped.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, final

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server

READ_SIZE: Final = 1 << 16
SEND_SIZE: Final = 1 << 18
INPUT_STOP: Final = 8 << 20
"""Bytes that wait for a client, above which its requests are left alone."""
OUTPUT_LIMIT: Final = 64 << 20
"""Bytes that wait for a client, above which it is dropped: it will never read."""

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_TABLE_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@final
class SocketClient:
    """One client: its socket, and what that would not take."""

    __slots__ = ("connection", "events", "pending", "socket")

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self.socket = sock
        self.connection = connection
        #: What epoll is asked for.
        self.events = _IN
        #: Bytes taken from the connection that the socket had no room for.
        self.pending = b""


Feed = Callable[[Connection, bytes], None]
"""feed(connection, bytes): what a client sent; no bytes at all: it is gone."""


@final
class SocketServer:
    """The sockets of one store."""

    def __init__(self, server: Server, listener: socket.socket | None, feed: Feed | None = None) -> None:
        """`feed` takes what clients send, and need not answer at once; without it `server` is asked here and now."""
        self.server = server
        self.listener = listener
        self.clients: dict[int, SocketClient] = {}
        self.by_connection: dict[Connection, SocketClient] = {}
        self.feed = feed
        self._receive = server.receive if feed is None else feed
        self._number = 0
        self._listening = False
        self._epoll = select.epoll()
        self._listen()

    def fileno(self) -> int:
        """Return the descriptor that is readable when `poll` has something to do."""
        return self._epoll.fileno()

    def poll(self, timeout: float = 0) -> bool:
        """Serve everybody who is ready; wait at most `timeout` seconds for somebody. Tells whether there was one."""
        ready = self._epoll.poll(timeout)
        clients = self.clients
        for number, events in ready:
            client = clients.get(number)
            if client is None:
                self._accept()
                continue
            if events & _OUT:
                self._send(client)
                if client.socket.fileno() < 0:
                    continue
            if events & ~_OUT and client.events & _IN:
                self._read(client)
            elif events & ~(_IN | _OUT) and number in clients:
                # It has gone while it was not listened to.
                self.drop(client)
        return bool(ready)

    def _read(self, client: SocketClient) -> None:
        try:
            data = client.socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(client)
            return
        self._receive(client.connection, data)
        if self.feed is None:
            self.flush()

    # ---- answers

    def flush(self) -> None:
        """Send what the connections named in `server.dirty` have got; those that are no socket's are left out."""
        dirty = self.server.dirty
        while dirty:
            connection, _ = dirty.popitem()
            self.deliver(connection)

    def deliver(self, connection: Connection) -> None:
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

    def _hang_up(self, client: SocketClient) -> None:
        """Drop a client that broke the protocol, with what the C daemon would have sent until then.

        That takes one request and sends one message a turn, the first message in the turn after; it hangs up as soon as
        it reads the bad header. So of the answers to a batch of requests before it the last is always lost.
        """
        connection = client.connection
        if not client.pending:
            client.pending = connection.take_messages(connection.replies - 1)
        if client.pending:
            with suppress(OSError):
                client.socket.send(client.pending)
        self.drop(client)

    def _send(self, client: SocketClient) -> None:
        connection = client.connection
        data = client.pending or connection.take(SEND_SIZE)
        while data:
            try:
                count = client.socket.send(data)
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
        self.adopt(sock, self.server.connect(f"socket {self._number}"))

    def adopt(self, sock: socket.socket, connection: Connection, pending: bytes = b"") -> SocketClient:
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
        if self.feed is None:
            self.server.disconnect(client.connection)
        else:
            self.feed(client.connection, b"")
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
