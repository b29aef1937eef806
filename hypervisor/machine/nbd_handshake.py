"""The beginning of a conversation with an NBD server: fixed newstyle, `NBD_OPT_GO` (doc/proto.md of the project)."""

from __future__ import annotations

import socket
import time
from struct import Struct
from typing import final

import attrs

LONGEST_OPTION = 64 << 10
MOST = 32 << 20
"""Bytes that a server takes in one request if it says nothing else ("Block size constraints")."""

NBDMAGIC, IHAVEOPT, OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPT_GO, REP_ACK, REP_INFO, REP_ERROR = 7, 1, 3, 1 << 31
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
FLAG_READ_ONLY, FLAG_SEND_FLUSH, FLAG_SEND_WRITE_ZEROES = 2, 4, 64

_GREETING = Struct(">QQH")
_OPTION = Struct(">QII")
_OPTION_ANSWER = Struct(">QIII")
_EXPORT = Struct(">HQH")
_BLOCK_SIZES = Struct(">HIII")


class BrokenServer(Exception):
    """The server says what no server says, or refuses; the text tells what."""


@attrs.frozen
class Export:
    """What the server tells of an export: bytes, transmission flags, and what every request must keep to."""

    size: int
    flags: int
    block: int = 1
    """Offsets and lengths are multiples of it."""
    most: int = MOST
    """No request is longer."""


@final
class _Talk:
    """What is said to a server and heard from it, until a moment of `time.monotonic` when it must be over.

    Methods raise OSError, for one thing if that moment has come (TimeoutError): a server that says a word now and then,
    and never the last one, is waited for no longer than one that is silent.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def _hurry(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)

    def say(self, data: bytes) -> None:
        """Send something."""
        self._hurry()
        self._connection.sendall(data)

    def take(self, size: int) -> bytes:
        """Receive so many bytes. Raises BrokenServer, too."""
        data = bytearray(size)
        left = memoryview(data)
        while left:
            self._hurry()
            count = self._connection.recv_into(left)
            if not count:
                raise BrokenServer("the server has closed the connection")
            left = left[count:]
        return bytes(data)


def negotiate(connection: socket.socket, name: str, deadline: float) -> Export:
    """Open the export `name`, by a moment of `time.monotonic`. Raises OSError, BrokenServer."""
    talk = _Talk(connection, deadline)
    magic, style, flags = _GREETING.unpack(talk.take(_GREETING.size))
    if (magic, style) != (NBDMAGIC, IHAVEOPT) or not flags & FIXED_NEWSTYLE:
        raise BrokenServer("that is no NBD server, or too old a one")
    wanted = name.encode()
    data = len(wanted).to_bytes(4, "big") + wanted + (1).to_bytes(2, "big") + INFO_BLOCK_SIZE.to_bytes(2, "big")
    talk.say((flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_bytes(4, "big"))
    talk.say(_OPTION.pack(IHAVEOPT, OPT_GO, len(data)) + data)
    size = flags = 0
    block, most = 1, MOST
    while True:
        kind, answer = _option_answer(talk)
        if kind == REP_ACK:
            break
        if kind & REP_ERROR:
            said = "".join(char if char.isprintable() else "?" for char in answer.decode(errors="replace"))
            raise BrokenServer(f"the server refuses the export {name!r}: {said or f'error {kind:#x}'}")
        what = int.from_bytes(answer[:2], "big") if kind == REP_INFO else -1
        if what == INFO_EXPORT and len(answer) == _EXPORT.size:
            _, size, flags = _EXPORT.unpack(answer)
        elif what == INFO_BLOCK_SIZE and len(answer) == _BLOCK_SIZES.size:
            _, block, _, most = _BLOCK_SIZES.unpack(answer)
    if not 512 <= size < 1 << 63:
        raise BrokenServer("the server does not say how large the export is, or it has no whole sector")
    if not 0 < block <= 1 << 16 or block & block - 1 or most < block:
        raise BrokenServer(f"the server wants requests of {block} to {most} bytes, which cannot be")
    return Export(size, flags, block, min(most, MOST) // block * block)


def _option_answer(talk: _Talk) -> tuple[int, bytes]:
    magic, option, kind, length = _OPTION_ANSWER.unpack(talk.take(_OPTION_ANSWER.size))
    if magic != OPTION_REPLY or option != OPT_GO or length > LONGEST_OPTION:
        raise BrokenServer("the server breaks the protocol in the handshake")
    return kind, talk.take(length)
