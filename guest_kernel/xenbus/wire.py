"""The xenstore wire protocol (io/xs_wire.h) as data: bytes in, messages out; no I/O, no clock.

A message is a 16-byte header `type, req_id, tx_id, len` (little-endian uint32_t each) and `len` bytes of payload, at
most XENSTORE_PAYLOAD_MAX.  A reply carries the type, req_id and tx_id of its request; a failed request is answered
with type XS_ERROR and the errno's name as a NUL-terminated string.  Watch events (XS_WATCH_EVENT) are sent by the
server at any time between replies.

Both ends use this module: the client in the guest kernel and the server.
"""

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from hypervisor.abi.io.xs_wire import XENSTORE_PAYLOAD_MAX

HEADER: Final = struct.Struct("<4I")
"""struct xsd_sockmsg: type, req_id, tx_id, len."""
HEADER_SIZE: Final = HEADER.size


class Message(NamedTuple):
    """One message of either direction.  `payload` is at most XENSTORE_PAYLOAD_MAX bytes."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes


def encode(kind: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
    """Return header and payload of one message.

    Raises ValueError if the payload is longer than XENSTORE_PAYLOAD_MAX: the other end would close the connection.
    """
    size = len(payload)
    if size > XENSTORE_PAYLOAD_MAX:
        raise ValueError(f"xenstore payload of {size} bytes; the limit is {XENSTORE_PAYLOAD_MAX}")
    return HEADER.pack(kind, req_id, tx_id, size) + payload


def message_size(data: bytes) -> int:
    """Return how many bytes of `data` belong to its first message; all of them if that is not complete."""
    if len(data) < HEADER_SIZE:
        return len(data)
    length: int = HEADER.unpack_from(data)[3]
    return min(len(data), HEADER_SIZE + length)


def to_bytes(value: object) -> bytes:
    """Return the bytes that stand for `value` in a node: bytes as they are, booleans as 0 and 1, the rest as text.

    Text is UTF-8; bytes that are not UTF-8 survive `to_text` and `to_bytes` unchanged.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"1" if value else b"0"
    return str(value).encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    """Return a node's bytes as text; never fails, whatever the bytes."""
    return data.decode("utf-8", "surrogateescape")


def join(*strings: str | bytes) -> bytes:
    """Return the strings, each with its terminating NUL."""
    if len(strings) == 1:
        return to_bytes(strings[0]) + b"\0"
    return b"".join([to_bytes(string) + b"\0" for string in strings])


def split(payload: bytes) -> list[str]:
    """Return the NUL-terminated strings of a payload; a last one without its NUL counts too."""
    parts = to_text(payload).split("\0")
    if not parts[-1]:
        parts.pop()
    return parts


class Parser:
    """Bytes of one direction of a connection, cut anywhere, become messages.

    A header that announces more than XENSTORE_PAYLOAD_MAX bytes ends the stream: there is no way to find the next
    message.  `broken` then says why; messages before it have been returned, what follows is dropped.
    """

    __slots__ = ("_buffer", "broken")

    def __init__(self) -> None:
        self._buffer = b""
        self.broken: str | None = None

    @property
    def pending(self) -> int:
        """Number of bytes of a message that is not complete yet."""
        return len(self._buffer)

    def receive(self, data: bytes) -> list[Message]:
        """Take `data` and return the messages that are complete now, in order."""
        if self.broken is not None:
            return []
        buffer = self._buffer + data if self._buffer else data
        size = len(buffer)
        at = 0
        messages: list[Message] = []
        while size - at >= HEADER_SIZE:
            kind, req_id, tx_id, length = HEADER.unpack_from(buffer, at)
            if length > XENSTORE_PAYLOAD_MAX:
                self.broken = f"message of type {kind} announces {length} bytes; the limit is {XENSTORE_PAYLOAD_MAX}"
                self._buffer = b""
                return messages
            start = at + HEADER_SIZE
            end = start + length
            if end > size:
                break
            messages.append(Message(kind, req_id, tx_id, buffer[start:end]))
            at = end
        self._buffer = buffer[at:] if at else buffer
        return messages


def parse_all(data: bytes) -> Iterable[Message]:
    """Return the messages of a complete stream.  Raises ValueError if it is cut or broken."""
    parser = Parser()
    messages = parser.receive(data)
    if parser.broken or parser.pending:
        raise ValueError(parser.broken or f"{parser.pending} bytes of an incomplete message at the end")
    return messages
