"""Where an export of an NBD server is, and how a person says that."""

from __future__ import annotations

import os
import socket

import attrs

PREFIX = "nbd:"
DEFAULT_PORT = 10809
PATIENCE = 10.0
"""Seconds that a server may take until the export is open."""


@attrs.frozen
class NbdAddress:
    """Where an export is: at a Unix socket (`path`) or a TCP port, and its name there."""

    path: str = ""
    host: str = ""
    port: int = DEFAULT_PORT
    export: str = ""

    def connect(self, seconds: float) -> socket.socket:
        """Return a connection; it waits for so many seconds at most, for this and for other things. Raises OSError."""
        if not self.path:
            connection = socket.create_connection((self.host, self.port), seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(seconds)
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
    address = None
    if place.startswith("unix:"):
        path = place.removeprefix("unix:")
        address = NbdAddress(path=path, export=export) if path else None
    else:
        host, colon, port = place.partition(":")
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1 if colon else DEFAULT_PORT
        if host and 0 < number < 1 << 16:
            address = NbdAddress(host=host, port=number, export=export)
    if address is not None and _can_be_said(address):
        return address
    raise ValueError(f"{text!r} is not of the form nbd:unix:PATH or nbd:HOST:PORT, with or without :exportname=NAME")


def _can_be_said(address: NbdAddress) -> bool:
    """Whether host, path and export are names that can be passed on: there are texts that have no bytes."""
    try:
        address.host.encode("idna")
        os.fsencode(address.path)
        address.export.encode()
    except UnicodeError:
        return False
    return True
