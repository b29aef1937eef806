"""Messages between a client and a host: no I/O here.

A stream of msgpack objects in each direction, one question at a time:

    host    {"paravirt": 1}                                   who speaks, and the version of this protocol
    client  {"verb": "list", "args": {…}}
    host    {"result": …}  or  {"error": "one sentence"}

After a result that says {"attached": true} both directions carry bytes (msgpack's bin) until one side closes.
On the serial line between the socket and dom0 each message is [client, message], with the number of a client, and no
greeting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import msgpack

VERSION = 1
MAX_MESSAGE = 256 * 1024
"""Bytes of one message; a stream that holds a longer one is broken."""
GREETING = {"paravirt": VERSION}


class ProtocolError(Exception):
    """The other side does not speak this protocol; the text is one sentence."""


def pack(message: object) -> bytes:
    """Return a message as bytes."""
    data: bytes = msgpack.packb(message)
    return data


@final
class Messages:
    """The messages in a stream of bytes that comes in pieces."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_MESSAGE, strict_map_key=True)

    def feed(self, data: bytes | bytearray) -> Iterator[Any]:
        """Take bytes; yield the messages that are complete. Raises ProtocolError."""
        try:
            self._unpacker.feed(data)
            yield from self._unpacker
        except (ValueError, msgpack.exceptions.UnpackException, msgpack.exceptions.BufferFull, RecursionError) as error:
            raise ProtocolError(f"not a message of the control protocol: {error or type(error).__name__}") from None


def check_request(message: object) -> tuple[str, dict[str, Any]]:
    """Return verb and arguments of a request. Raises ProtocolError."""
    if not isinstance(message, dict) or message.keys() - {"verb", "args"}:
        raise ProtocolError("a request is a map of 'verb' and 'args'")
    verb, args = message.get("verb"), message.get("args", {})
    if not isinstance(verb, str) or not isinstance(args, dict):
        raise ProtocolError("a request is a map of 'verb', a text, and 'args', a map")
    return verb, args


def check_reply(message: object) -> Any:
    """Return the result in a reply. Raises `ControlError` with what the host says, ProtocolError."""
    if isinstance(message, dict):
        if isinstance(message.get("error"), str):
            raise ControlError(message["error"])
        if "result" in message:
            return message["result"]
    raise ProtocolError("a reply is a map of 'result' or 'error'")


class ControlError(Exception):
    """The host did not do what it was asked for; the text is one sentence."""
