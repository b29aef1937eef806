"""The handshake of one client: bytes in, bytes out ("Fixed newstyle negotiation" of the protocol)."""

from __future__ import annotations

from typing import final

import attrs

from guest_kernel.nbd import wire

MAX_OPTION = 16 << 10
"""Bytes of an option's data: more than a name (4096 at most) and any list of information requests. A client that
announces more is hung up on."""
MAX_NAME = 4096


@attrs.frozen
class ExportInfo:
    """What clients are told of the disk."""

    name: str
    description: str
    size: int
    """Bytes."""
    flags: int
    """Transmission flags."""
    block_sizes: tuple[int, int, int]
    """Smallest, preferred, largest."""


@final
class Negotiation:
    """The state of one handshake. Feed it what comes; send what it returns.

    At the end `ready` or `over` is set. What has come behind the last option is left in `rest`.
    """

    def __init__(self, export: ExportInfo) -> None:
        self._export = export
        self.rest = bytearray()
        self._flags: int | None = None
        """The client's flags, once they are there."""
        self.ready = False
        """Requests follow."""
        self.over = False
        """The client is to be hung up on."""
        self.structured = False
        """The client takes structured replies."""
        self._options = {
            wire.OPT_ABORT: self._abort,
            wire.OPT_LIST: self._list,
            wire.OPT_INFO: self._info,
            wire.OPT_GO: self._go,
            wire.OPT_STRUCTURED_REPLY: self._structured_reply,
        }

    def greeting(self) -> bytes:
        """Return what a client hears first."""
        return wire.GREETING.pack(wire.NBDMAGIC, wire.IHAVEOPT, wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client; return the answer to them."""
        self.rest += data
        answer = bytearray()
        if self._flags is None:
            if len(self.rest) < wire.CLIENT_FLAGS.size:
                return b""
            (self._flags,) = wire.CLIENT_FLAGS.unpack(self._take(wire.CLIENT_FLAGS.size))
            # A client without fixed newstyle could not be told of an error.
            if not self._flags & wire.FLAG_FIXED_NEWSTYLE or self._flags & ~3:
                self.over = True
        while not (self.ready or self.over) and len(self.rest) >= wire.OPTION.size:
            magic, option, length = wire.OPTION.unpack_from(self.rest)
            if magic != wire.IHAVEOPT or length > MAX_OPTION:
                self.over = True
            elif len(self.rest) < wire.OPTION.size + length:
                break
            else:
                self._take(wire.OPTION.size)
                answer += self._answer(option, self._take(length))
        return bytes(answer)

    def _take(self, size: int) -> bytes:
        data = bytes(self.rest[:size])
        del self.rest[:size]
        return data

    def _answer(self, option: int, data: bytes) -> bytes:
        if option == wire.OPT_EXPORT_NAME:
            return self._export_name(data)
        handler = self._options.get(option)
        if handler is None:
            return _reply(option, wire.REP_ERR_UNSUP)
        return handler(option, data)

    def _knows(self, name: bytes) -> bool:
        return name in (b"", self._export.name.encode())

    def _export_name(self, data: bytes) -> bytes:
        """The one option whose failure can only be told by hanging up."""
        if not self._knows(data):
            self.over = True
            return b""
        self.ready = True
        assert self._flags is not None
        padding = b"" if self._flags & wire.FLAG_NO_ZEROES else bytes(124)
        return wire.EXPORT.pack(self._export.size, self._export.flags) + padding

    def _abort(self, option: int, _data: bytes) -> bytes:
        self.over = True
        return _reply(option, wire.REP_ACK)

    def _list(self, option: int, data: bytes) -> bytes:
        if data:
            return _reply(option, wire.REP_ERR_INVALID)
        name = self._export.name.encode()
        entry = len(name).to_bytes(4, "big") + name + self._export.description.encode()
        return _reply(option, wire.REP_SERVER, entry) + _reply(option, wire.REP_ACK)

    def _structured_reply(self, option: int, data: bytes) -> bytes:
        if data:
            return _reply(option, wire.REP_ERR_INVALID)
        self.structured = True
        return _reply(option, wire.REP_ACK)

    def _go(self, option: int, data: bytes) -> bytes:
        answer = self._info(option, data)
        self.ready = answer.endswith(_reply(option, wire.REP_ACK))
        return answer

    def _info(self, option: int, data: bytes) -> bytes:
        """Name length, name, number of requests, requests."""
        length = int.from_bytes(data[:4], "big")
        name, rest = data[4 : 4 + length], data[4 + length :]
        count = int.from_bytes(rest[:2], "big")
        if len(data) < 6 or length > MAX_NAME or len(rest) != 2 + 2 * count:
            return _reply(option, wire.REP_ERR_INVALID)
        if not self._knows(name):
            return _reply(option, wire.REP_ERR_UNKNOWN)
        wanted = {int.from_bytes(rest[at : at + 2], "big") for at in range(2, len(rest), 2)}
        export = self._export
        facts = {
            wire.INFO_EXPORT: export.size.to_bytes(8, "big") + export.flags.to_bytes(2, "big"),
            wire.INFO_NAME: export.name.encode(),
            wire.INFO_DESCRIPTION: export.description.encode(),
            wire.INFO_BLOCK_SIZE: b"".join(size.to_bytes(4, "big") for size in export.block_sizes),
        }
        # The first is sent in any case, and so is the last: whoever does not ask for it had better know it.
        always = (wire.INFO_EXPORT, wire.INFO_BLOCK_SIZE)
        return b"".join(
            _reply(option, wire.REP_INFO, kind.to_bytes(2, "big") + fact)
            for kind, fact in facts.items()
            if kind in always or kind in wanted
        ) + _reply(option, wire.REP_ACK)


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)) + data
