"""A process's end of the wire, in Python: what tests say to the kit, sense and nonsense."""

from __future__ import annotations

import mmap
import socket
import struct
from pathlib import Path
from typing import Any

from conformance.wire import protocol as wire
from conformance.wire.protocol import Type


class HungUp(Exception):
    """The kit has closed the connection: the check is over."""


class Client:
    """One connection."""

    def __init__(self, path: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.serial = 0
        data, fds, _, _ = socket.recv_fds(self.socket, wire.HEADER.size, 1)
        kind, _, length, _ = wire.HEADER.unpack(data)
        assert kind == Type.hello
        self.hello = wire.HELLO.unpack(self._take(length))
        (self.fd,) = fds
        self.memory = memoryview(mmap.mmap(self.fd, self.hello[2] * 4096))

    def page(self, number: int) -> memoryview:
        return self.memory[number * 4096 : (number + 1) * 4096]

    def ask(self, kind: int, payload: bytes = b"") -> tuple[int, bytes]:
        self.serial += 1
        try:
            self.socket.sendall(wire.HEADER.pack(kind, self.serial, len(payload), 0) + payload)
        except OSError:
            raise HungUp from None
        answered, serial, length, status = wire.HEADER.unpack(self._take(wire.HEADER.size))
        assert (answered, serial) == (kind, self.serial)
        return status, self._take(length)

    def ok(self, kind: int, payload: bytes = b"") -> bytes:
        status, answer = self.ask(kind, payload)
        assert status == 0, (Type(kind), status)
        return answer

    def number(self, kind: int, *numbers: int) -> int:
        """Ask with 32-bit numbers; return the first one of the answer."""
        return int(struct.unpack_from("<I", self.ok(kind, struct.pack(f"<{len(numbers)}I", *numbers)))[0])

    def store(self, kind: int, *words: str, tail: str = "", tx_id: int = 0) -> tuple[int, bytes]:
        payload = "".join(f"{word}\0" for word in words) + tail
        return self.ask(Type.store, wire.STORE.pack(kind, tx_id) + payload.encode())

    def wait(self, ns: int = wire.FOREVER) -> list[tuple[int, Any]]:
        """Return news: (kind, port), (kind, (path, token)), (kind, (job's fields, data))."""
        data, found = self.ok(Type.wait, wire.WAIT.pack(ns)), []
        while data:
            kind, length = wire.NEWS.unpack_from(data)
            body, data = data[wire.NEWS.size : wire.NEWS.size + length], data[wire.NEWS.size + length :]
            if kind == wire.News.event:
                found.append((kind, wire.U32.unpack(body)[0]))
            elif kind == wire.News.watch:
                found.append((kind, tuple(body.decode().split("\0")[:2])))
            else:
                found.append((kind, (wire.JOB.unpack_from(body), body[wire.JOB.size :])))
        return found

    def close(self) -> None:
        self.socket.close()

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except OSError:
                more = b""
            if not more:
                raise HungUp
            data += more
        return data
