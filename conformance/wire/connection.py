"""The host's end of the socket: messages in, messages out, and the patience of a judge."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import final

from conformance.kit.check import Failure
from conformance.wire.protocol import HEADER, MAX_PAYLOAD, Message, Type


@final
class Connection:
    """A connected process, for one check.

    `silence` is after how many seconds without a message it counts as hanging, `limit` how long the whole check may
    take. Everything that is wrong with the process is a Failure.
    """

    def __init__(self, stream: socket.socket, silence: float, limit: float) -> None:
        self._socket = stream
        self.silence = silence
        self._limit = limit
        self._deadline = time.monotonic() + limit
        self._received = bytearray()
        self.messages = 0
        self.obituary: Callable[[], str] = lambda: ""
        """Says how the process has ended, if that is known."""

    def receive(self) -> Message:
        """Return the next message. Raises Failure: it is dead, silent, or makes no sense."""
        self._check_deadline()
        type_, serial, length, _ = HEADER.unpack(self._take(HEADER.size))
        if length > MAX_PAYLOAD:
            raise Failure(f"The process sends a message of {length} bytes; there are none above {MAX_PAYLOAD}.")
        self.messages += 1
        return Message(type_, serial, self._take(length))

    def reply(self, message: Message, status: int, payload: bytes = b"") -> None:
        """Answer a message. Raises Failure."""
        self._put(HEADER.pack(message.type, message.serial, len(payload), status) + payload)

    def greet(self, payload: bytes, fd: int) -> None:
        """Send the first message, with the memory. Raises Failure."""
        data = HEADER.pack(Type.hello, 0, len(payload), 0) + payload
        try:
            socket.send_fds(self._socket, [data], [fd])
        except OSError as error:
            raise self._gone(f": {os.strerror(error.errno or 0)}") from None

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _take(self, size: int) -> bytes:
        received = self._received
        silent_since = time.monotonic()
        while len(received) < size:
            data = self._read(silent_since)
            if not data:
                raise self._gone("")
            received += data
        data, self._received = bytes(received[:size]), received[size:]
        return data

    def _check_deadline(self) -> None:
        if time.monotonic() >= self._deadline:
            raise Failure(f"The process keeps the check busy for more than {self._limit:g} seconds.")

    def _read(self, silent_since: float) -> bytes:
        self._check_deadline()
        now = time.monotonic()
        self._socket.settimeout(max(min(silent_since + self.silence, self._deadline) - now, 0.001))
        try:
            return self._socket.recv(MAX_PAYLOAD)
        except TimeoutError:
            if time.monotonic() < self._deadline:
                raise Failure(
                    f"The process does nothing for {self.silence:g} seconds, and does not wait either."
                ) from None
            return self._read(silent_since)
        except OSError as error:
            raise self._gone(f": {os.strerror(error.errno or 0)}") from None

    def _put(self, data: bytes) -> None:
        self._socket.settimeout(self.silence)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise Failure(f"The process takes no answer for {self.silence:g} seconds.") from None
        except OSError as error:
            raise self._gone(f": {os.strerror(error.errno or 0)}") from None

    def _gone(self, why: str) -> Failure:
        known = self.obituary()
        return Failure(known or f"The process hangs up before the check is over{why}.")
