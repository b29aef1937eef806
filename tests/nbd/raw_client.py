"""An NBD client that says whatever a test wants it to."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from guest_kernel.nbd import wire

PATIENCE = 10.0


class RawClient:
    """A connection. `hello` shakes hands; `request` sends a request and `reply` reads a simple reply."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, size: int) -> bytes:
        """Read exactly so much; less at the end of what the server sends."""
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                break
            data += part
        return data

    def is_hung_up_on(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def greet(self, flags: int = 3) -> int:
        magic, option, server_flags = wire.GREETING.unpack(self.read(wire.GREETING.size))
        assert (magic, option) == (wire.NBDMAGIC, wire.IHAVEOPT)
        self.send(wire.CLIENT_FLAGS.pack(flags))
        return int(server_flags)

    def option(self, option: int, data: bytes = b"") -> None:
        self.send(wire.OPTION.pack(wire.IHAVEOPT, option, len(data)) + data)

    def option_replies(self) -> list[tuple[int, bytes]]:
        """Read replies up to the one that ends them."""
        replies = []
        while True:
            header = self.read(wire.OPTION_REPLY.size)
            magic, _, kind, length = wire.OPTION_REPLY.unpack(header)
            assert magic == wire.OPTION_REPLY_MAGIC
            replies.append((kind, self.read(length)))
            if kind not in (wire.REP_SERVER, wire.REP_INFO):
                return replies

    def hello(self, *, structured: bool = False) -> None:
        self.greet()
        if structured:
            self.option(wire.OPT_STRUCTURED_REPLY)
            assert self.option_replies() == [(wire.REP_ACK, b"")]
        self.option(wire.OPT_GO, info_data("xvda"))
        assert self.option_replies()[-1] == (wire.REP_ACK, b"")

    def request(
        self, kind: int, offset: int = 0, length: int = 0, *, cookie: int = 7, flags: int = 0, data: bytes = b""
    ) -> None:
        self.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, flags, kind, cookie.to_bytes(8), offset, length) + data)

    def reply(self, size: int = 0, cookie: int = 7) -> tuple[int, bytes]:
        """Read a simple reply, with so much data if it is no error; returns error and data."""
        magic, error, got = wire.SIMPLE_REPLY.unpack(self.read(wire.SIMPLE_REPLY.size))
        assert (magic, int.from_bytes(got)) == (wire.SIMPLE_REPLY_MAGIC, cookie)
        return error, b"" if error else self.read(size)

    def ask(self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b"") -> int:
        """Send a request that is answered without data; returns the error."""
        self.request(kind, offset, length, flags=flags, data=data)
        return self.reply()[0]

    def chunk(self) -> tuple[int, int, bytes]:
        """Read a chunk of a structured reply: flags, type, payload."""
        magic, flags, kind, _, length = wire.CHUNK.unpack(self.read(wire.CHUNK.size))
        assert magic == wire.STRUCTURED_REPLY_MAGIC
        return flags, kind, self.read(length)


def info_data(name: str, wanted: Sequence[int] = ()) -> bytes:
    text = name.encode()
    return struct.pack(">I", len(text)) + text + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)
