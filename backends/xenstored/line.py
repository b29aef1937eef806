"""Clients from outside of the host, all on one line of the serial card.

Both directions carry pieces: `client, size` (32 bits each), then `size` bytes of that client's stream. A client comes
with a piece of no bytes and goes with another one; from the daemon one of no bytes means that it hangs up, and then
nothing more is said of that client. What a client's bytes mean is the store's business: here they are cut anywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, Protocol, final

from backends.xenstored.connection import Connection
from backends.xenstored.server import Server
from backends.xenstored.state import Place

PIECE: Final = struct.Struct("<II")
LARGEST_PIECE: Final = 1 << 16
TURN: Final = 1 << 16
"""Bytes that are taken from the line before rings have their turn."""


class Line(Protocol):
    """A serial line (`guest_kernel.hw.serial.SerialLine`)."""

    on_news: Callable[[], None]

    def send(self, data: bytes) -> int:
        """Send; return how many bytes were taken."""
        ...

    def receive(self, limit: int) -> bytes:
        """Return at most so many bytes of input."""
        ...


@final
class Pieces:
    """Bytes of a line, cut anywhere, become pieces."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def receive(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield client and bytes of each piece that is complete now."""
        buffer = self._buffer + data
        at = 0
        while len(buffer) - at >= PIECE.size:
            client, size = PIECE.unpack_from(buffer, at)
            end = at + PIECE.size + size
            if end > len(buffer):
                break
            yield client, buffer[at + PIECE.size : end]
            at = end
        self._buffer = buffer[at:]


def piece(client: int, data: bytes) -> bytes:
    """Return one piece."""
    return PIECE.pack(client, len(data)) + data


@final
class LineClients:
    """The daemon's end: clients that are dom0, and speak through a line."""

    def __init__(self, server: Server, line: Line, wake: Callable[[], None]) -> None:
        """`wake` is called in upcall context when `serve` has something to do."""
        self._server = server
        self._line = line
        self._pieces = Pieces()
        self._clients: dict[int, Connection] = {}
        self._numbers: dict[Connection, int] = {}
        #: What the line had no room for.
        self._pending = b""
        self.has_news = False

        def on_news() -> None:
            self.has_news = True
            wake()

        line.on_news = on_news

    def serve(self) -> None:
        """Take what has come, and have it answered; at most TURN bytes, then `has_news` is still set."""
        self.has_news = False
        self._send(b"")
        taken = 0
        while data := self._line.receive(4096):
            for number, part in self._pieces.receive(data):
                self._take(number, part)
            taken += len(data)
            if taken >= TURN:
                self.has_news = True
                return

    def _take(self, number: int, data: bytes) -> None:
        connection = self._clients.get(number)
        if data:
            # Of a client that has been hung up on there may still be something under way.
            if connection is not None:
                self._server.receive(connection, data)
        elif connection is not None:
            self._forget(connection)
        else:
            connection = self._clients[number] = self._server.connect(f"socket {number}")
            self._numbers[connection] = number

    def _forget(self, connection: Connection) -> None:
        del self._clients[self._numbers.pop(connection)]
        self._server.disconnect(connection)

    def place_of(self, connection: Connection) -> Place | None:
        """Return where one of these is, for a live update: its number stands for a file descriptor."""
        number = self._numbers.get(connection)
        return None if number is None else Place(fd=number)

    def readmit(self, server: Server, number: int) -> Connection | None:
        """Connect a client to the server that comes after a live update."""
        old = self._clients.get(number)
        if old is None:
            return None
        self._server = server
        del self._numbers[old]
        connection = self._clients[number] = server.connect(old.label)
        self._numbers[connection] = number
        return connection

    def deliver(self, connection: Connection) -> None:
        """Send what one connection has got, if it is one of these."""
        number = self._numbers.get(connection)
        if number is None:
            return
        if connection.error:
            if parting := connection.parting():
                self._send(piece(number, parting))
            self._send(piece(number, b""))
            self._forget(connection)
            return
        while data := connection.take(LARGEST_PIECE):
            self._send(piece(number, data))

    def _send(self, data: bytes) -> None:
        # The outside bounds what waits for each client, and takes everything; but a line need not.
        data = self._pending + data
        if data:
            self._pending = data[self._line.send(data) :]
