"""A disk whose sectors are at an NBD server: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.

The client speaks the fixed newstyle handshake with `NBD_OPT_GO`, and simple replies; one request at a time. Like a read
of an image file, a request takes the host's time until the server has answered, at most `TIMEOUT` seconds. A server
that is gone, late or wrong makes a dead disk: this request and all later ones fail with EIO.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from struct import Struct

import attrs

from hypervisor.errors import DeviceError
from hypervisor.machine.backing import Backing

PREFIX = "nbd:"
DEFAULT_PORT = 10809
TIMEOUT = 30.0
MOST = 32 << 20
"""Bytes that every server takes in one request ("Size constraints")."""
LONGEST_OPTION = 64 << 10

NBDMAGIC, IHAVEOPT = 0x4E42444D41474943, 0x49484156454F5054
OPTION_REPLY, REQUEST_MAGIC, REPLY_MAGIC = 0x0003E889045565A9, 0x25609513, 0x67446698
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPT_GO, REP_ACK, REP_INFO, REP_ERROR, INFO_EXPORT = 7, 1, 3, 1 << 31, 0
FLAG_READ_ONLY, FLAG_SEND_FLUSH, FLAG_SEND_WRITE_ZEROES = 2, 4, 64
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 0, 1, 2, 3, 6

_GREETING = Struct(">QQH")
_OPTION = Struct(">QII")
_OPTION_ANSWER = Struct(">QIII")
_EXPORT = Struct(">HQH")
_REQUEST = Struct(">IHHQQI")
_REPLY = Struct(">IIQ")
_KNOWN_ERRORS = {errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOPNOTSUPP}


class _Broken(Exception):
    """The server says what no server says; the text tells what."""


@attrs.frozen
class NbdAddress:
    """Where an export is: at a Unix socket (`path`) or a TCP port, and its name there."""

    path: str = ""
    host: str = ""
    port: int = DEFAULT_PORT
    export: str = ""

    def connect(self) -> socket.socket:
        """Return a connection. Raises OSError."""
        if not self.path:
            connection = socket.create_connection((self.host, self.port), TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(TIMEOUT)
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection

    def __str__(self) -> str:
        place = f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"
        return PREFIX + place + (f":exportname={self.export}" if self.export else "")


def parse_nbd(text: str) -> NbdAddress:
    """Parse `nbd:unix:PATH` or `nbd:HOST[:PORT]`, each with `:exportname=NAME` behind it if need be (QEMU's way).

    Raises ValueError with one sentence.
    """
    place, _, export = text.removeprefix(PREFIX).partition(":exportname=")
    if place.startswith("unix:"):
        path = place.removeprefix("unix:")
        if path:
            return NbdAddress(path=path, export=export)
    else:
        host, colon, port = place.partition(":")
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1 if colon else DEFAULT_PORT
        if host and 0 < number < 1 << 16:
            return NbdAddress(host=host, port=number, export=export)
    raise ValueError(f"{text!r} is not of the form nbd:unix:PATH or nbd:HOST:PORT, with or without :exportname=NAME")


class NbdDisk(Backing):
    """An export of an NBD server."""

    def __init__(self, address: NbdAddress, *, readonly: bool) -> None:
        """Connect. Raises DeviceError."""
        self.address = address
        self._cookie = 0
        self._dead = False
        try:
            self._socket = address.connect()
        except OSError as error:
            raise DeviceError(f"{address}: {error.strerror or error}") from None
        try:
            self.size, flags = self._negotiate()
            if not readonly and flags & FLAG_READ_ONLY:
                raise _Broken("the export is read-only, and the disk is to be written")
        except (OSError, _Broken) as error:
            self._socket.close()
            raise DeviceError(f"{address}: {error}") from None
        self.readonly = readonly
        self.discards = not readonly and bool(flags & FLAG_SEND_WRITE_ZEROES)
        self._flushes = bool(flags & FLAG_SEND_FLUSH)

    # -- the handshake --------------------------------------------------------------------------------------------

    def _negotiate(self) -> tuple[int, int]:
        """Return the size of the export and its transmission flags."""
        magic, style, flags = _GREETING.unpack(self._take(_GREETING.size))
        if (magic, style) != (NBDMAGIC, IHAVEOPT) or not flags & FIXED_NEWSTYLE:
            raise _Broken("that is no NBD server, or too old a one")
        name = self.address.export.encode()
        data = len(name).to_bytes(4, "big") + name + bytes(2)
        self._socket.sendall((flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_bytes(4, "big"))
        self._socket.sendall(_OPTION.pack(IHAVEOPT, OPT_GO, len(data)) + data)
        export: tuple[int, int] | None = None
        while True:
            kind, answer = self._option_answer()
            if kind == REP_ACK:
                break
            if kind & REP_ERROR:
                said = "".join(char if char.isprintable() else "?" for char in answer.decode(errors="replace"))
                raise _Broken(f"the server refuses the export {self.address.export!r}: {said or f'error {kind:#x}'}")
            if kind == REP_INFO and len(answer) == _EXPORT.size and not int.from_bytes(answer[:2], "big"):
                export = _EXPORT.unpack(answer)[1:]
        if export is None or not 512 <= export[0] < 1 << 63:
            raise _Broken("the server does not say how large the export is, or it has no whole sector")
        return export

    def _option_answer(self) -> tuple[int, bytes]:
        magic, option, kind, length = _OPTION_ANSWER.unpack(self._take(_OPTION_ANSWER.size))
        if magic != OPTION_REPLY or option != OPT_GO or length > LONGEST_OPTION:
            raise _Broken("the server breaks the protocol in the handshake")
        return kind, self._take(length)

    def _take(self, size: int) -> bytes:
        data = bytearray(size)
        self._fill([memoryview(data)])
        return bytes(data)

    # -- requests -------------------------------------------------------------------------------------------------

    def readv(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Have the server fill the views."""
        return self._request(READ, offset, size, into=views)

    def writev(self, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Send the views to the server."""
        return self._request(WRITE, offset, size, data=views)

    def flush(self) -> int:
        """Have the server flush, if it keeps anything back."""
        return self._request(FLUSH, 0, 0) if self._flushes else 0

    def discard(self, offset: int, size: int) -> int:
        """Have the server write zeroes, which it may do by making a hole."""
        end = offset + size
        for start in range(offset, end, MOST):
            status = self._request(WRITE_ZEROES, start, min(MOST, end - start))
            if status:
                return status
        return 0

    def close(self) -> None:
        """Say goodbye."""
        if not self._dead:
            try:
                self._socket.sendall(_REQUEST.pack(REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
            except OSError:
                self._dead = True
        self._socket.close()

    def _request(
        self, op: int, offset: int, size: int, *, data: Sequence[memoryview] = (), into: Sequence[memoryview] = ()
    ) -> int:
        """Send one request and take the reply; returns 0 or an errno."""
        if self._dead:
            return errno.EIO
        self._cookie += 1
        try:
            self._send([memoryview(_REQUEST.pack(REQUEST_MAGIC, 0, op, self._cookie, offset, size)), *data])
            magic, error, cookie = _REPLY.unpack(self._take(_REPLY.size))
            if (magic, cookie) != (REPLY_MAGIC, self._cookie):
                raise _Broken("the reply belongs to no request")
            if error:
                return error if error in _KNOWN_ERRORS else errno.EIO
            self._fill(into)
        except (OSError, _Broken):
            # What comes next on the connection could be anything.
            self._dead = True
            self._socket.close()
            return errno.EIO
        return 0

    def _send(self, views: Sequence[memoryview]) -> None:
        left = list(views)
        while left:
            _skip(left, self._socket.sendmsg(left))

    def _fill(self, views: Sequence[memoryview]) -> None:
        left = [view for view in views if view]
        while left:
            count = self._socket.recvmsg_into(left)[0]
            if not count:
                raise _Broken("the server has closed the connection")
            _skip(left, count)


def _skip(views: list[memoryview], count: int) -> None:
    """Take `count` bytes off the front of the views."""
    while views and count >= len(views[0]):
        count -= len(views.pop(0))
    if count:
        views[0] = views[0][count:]
