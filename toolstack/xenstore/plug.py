"""The sockets of a running host's store: `paravirt run --xenstore-socket`.

The daemon is a thread of dom0, so what clients send goes to it through a line of the serial card, as everything from
outside does, and it takes its turn there with the guests' rings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import trio

from backends.xenstored.line import Pieces, piece
from hypervisor.machine.serial import Plug
from toolstack.xenstore import address
from toolstack.xenstore.sockets import SocketServer

if TYPE_CHECKING:
    from toolstack.host import Host
    from toolstack.outside import Outside

ROUNDS: Final = 8
"""Wake-ups that are served before the host has its turn again."""
INPUT_LIMIT: Final = 1 << 20
"""Bytes from all clients that wait for the daemon, above which nobody is listened to."""


@final
class Remote:
    """A client of the store at the other end of the line."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.error = 0
        self._output = bytearray()

    @property
    def queued(self) -> int:
        """Bytes that wait for the client."""
        return len(self._output)

    def put(self, data: bytes) -> None:
        """Keep bytes for the client."""
        self._output += data

    def take(self, room: int) -> bytes:
        """Return up to `room` of the waiting bytes."""
        data = bytes(self._output[:room])
        del self._output[:room]
        return data

    def parting(self) -> bytes:
        """Return the rest."""
        return self.take(len(self._output))


@final
class RemoteStore:
    """The daemon as the sockets see it: it answers later."""

    def __init__(self, pass_on: Callable[[bytes], None]) -> None:
        self._pass_on = pass_on
        self._number = 0
        self.clients: dict[int, Remote] = {}
        self.dirty: dict[Remote, None] = {}

    def connect(self, label: str) -> Remote:
        """Return a new client."""
        self._number += 1
        client = self.clients[self._number] = Remote(self._number)
        self._pass_on(piece(self._number, b""))
        return client

    def receive(self, connection: Remote, data: bytes) -> None:
        """Pass on what a client sent."""
        self._pass_on(piece(connection.number, data))

    def disconnect(self, connection: Remote) -> None:
        """Pass on that a client is gone, unless it was the daemon that hung up."""
        del self.clients[connection.number]
        self.dirty.pop(connection, None)
        if not connection.error:
            self._pass_on(piece(connection.number, b""))


@final
class StorePlug(Plug):
    """The outside's end of the line."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`. Raises `UsageError`."""
        self._path = path
        self._input = bytearray()
        self._room = trio.Event()
        self._pieces = Pieces()
        self.store = RemoteStore(self._pass_on)
        self.sockets = SocketServer(self.store, address.listen(path))
        self._identity = address.identity(path)

    def shut(self) -> None:
        """Hang up on all clients and remove the socket."""
        self.sockets.close()
        address.remove(self._path, self._identity)

    def send(self, data: bytes) -> int:
        """Take what the daemon has for its clients."""
        for number, part in self._pieces.receive(data):
            client = self.store.clients.get(number)
            if client is None:
                continue
            if part:
                client.put(part)
            else:
                client.error = 1
            self.store.dirty[client] = None
        self.sockets.flush()
        return len(data)

    def receive(self, limit: int) -> bytes:
        """Return what clients have sent."""
        data = bytes(self._input[:limit])
        del self._input[:limit]
        if len(self._input) < INPUT_LIMIT:
            self._room.set()
        return data

    def _pass_on(self, data: bytes) -> None:
        self._input += data
        self.news()

    async def serve(self, host: Host) -> None:
        """Serve the sockets for as long as the host runs."""
        while True:
            await trio.lowlevel.wait_readable(self.sockets)
            for _ in range(ROUNDS):
                if not self.sockets.poll():
                    break
            # What has come in is the host's to answer, now.
            await trio.lowlevel.checkpoint()
            while len(self._input) >= INPUT_LIMIT:
                self._room = trio.Event()
                await self._room.wait()


@contextmanager
def serving_store(outside: Outside, path: Path | None) -> Iterator[None]:
    """Have the host's store serve clients on a socket, if there is to be one. Raises `UsageError`."""
    if path is None:
        yield
        return
    plug = StorePlug(path)
    outside.store = plug
    outside.tasks.append(plug.serve)
    outside.listeners += 1
    try:
        yield
    finally:
        plug.shut()
