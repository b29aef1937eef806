"""The sockets' side of the store: what is answered when, and what is left of a client that goes."""

import socket
from collections.abc import Iterator

import pytest

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server
from guest_kernel.xenbus.wire import encode, parse_all
from hypervisor.abi.io import xs_wire as xs
from toolstack.xenstore.service import NoXen
from toolstack.xenstore.sockets import BACKLOG, EARLY, SocketServer


class Recording:
    """A store that notes what its clients could read whenever it was asked something."""

    def __init__(self) -> None:
        self.server = Server(NoXen())
        self.dirty = self.server.dirty
        self.client: socket.socket | None = None
        self.answered: list[int] = []

    def connect(self, label: str) -> Connection:
        return self.server.connect(label)

    def receive(self, connection: Connection, data: bytes) -> None:
        if self.client is not None:
            try:
                self.answered.append(len(self.client.recv(1 << 16, socket.MSG_PEEK | socket.MSG_DONTWAIT)))
            except BlockingIOError:
                self.answered.append(0)
        self.server.receive(connection, data)

    def disconnect(self, connection: Connection) -> None:
        self.server.disconnect(connection)


@pytest.fixture
def served() -> Iterator[tuple[Recording, SocketServer, socket.socket]]:
    store = Recording()
    sockets = SocketServer(store, None)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    sockets.adopt(ours, store.connect("test"))
    with theirs:
        yield store, sockets, theirs
        sockets.close()


def test_the_first_of_a_long_backlog_are_answered_before_the_rest(
    served: tuple[Recording, SocketServer, socket.socket],
) -> None:
    store, sockets, client = served
    store.client = client
    requests = [encode(xs.XS_GET_DOMAIN_PATH, number, 0, b"%d\0" % number) for number in range(100)]
    client.sendall(b"".join(requests))
    assert sockets.poll()
    assert store.answered[0] == 0
    assert store.answered[1] > 0
    replies = list(parse_all(client.recv(1 << 16)))
    assert [reply.req_id for reply in replies] == list(range(100))


def test_a_short_backlog_is_answered_with_one_send(served: tuple[Recording, SocketServer, socket.socket]) -> None:
    store, sockets, client = served
    store.client = client
    client.sendall(encode(xs.XS_GET_DOMAIN_PATH, 1, 0, b"1\0") * 20)
    assert sockets.poll()
    assert store.answered == [0]


def test_nothing_is_done_for_a_client_that_has_gone_before_its_backlog_was_answered(
    served: tuple[Recording, SocketServer, socket.socket],
) -> None:
    store, sockets, client = served
    # What is answered early ends where a request does, so that the rest would make sense.
    requests = b"".join(encode(xs.XS_WATCH, 1, 0, b"/a\0token%07d\0" % number) for number in range(100))
    assert len(requests) > BACKLOG
    assert EARLY % (len(requests) // 100) == 0
    client.sendall(requests)
    client.close()
    sockets.poll()
    sockets.poll()
    assert len(store.server.watches) == 0
    assert not sockets.clients
    assert not store.server.connections
    assert not store.server.dirty
