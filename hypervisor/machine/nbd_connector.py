"""Connecting to an NBD server: at once and waiting for it, or by and by while the host does other things."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import final

import attrs

from hypervisor.errors import DeviceError
from hypervisor.machine.backing import LARGEST_SECTOR
from hypervisor.machine.nbd_address import PATIENCE, NbdAddress
from hypervisor.machine.nbd_handshake import FLAG_READ_ONLY, BrokenServer, Export, negotiate


@attrs.frozen
class NbdConnection:
    """A connection on which an export has been opened."""

    socket: socket.socket
    export: Export


def connect(address: NbdAddress, *, readonly: bool) -> NbdConnection:
    """Open an export; that takes `PATIENCE` seconds at most. Raises DeviceError with one sentence."""
    deadline = time.monotonic() + PATIENCE
    try:
        connection = address.connect(PATIENCE)
    except OSError as error:
        raise DeviceError(f"{address}: {error.strerror or error}") from None
    try:
        export = negotiate(connection, address.export, deadline)
        _check(export, readonly=readonly)
    except OSError as error:
        connection.close()
        raise DeviceError(f"{address}: {error.strerror or error}") from None
    except BrokenServer as error:
        connection.close()
        raise DeviceError(f"{address}: {error}") from None
    connection.setblocking(False)
    return NbdConnection(connection, export)


def _check(export: Export, *, readonly: bool) -> None:
    if not readonly and export.flags & FLAG_READ_ONLY:
        raise BrokenServer("the export is read-only, and the disk is to be written")
    if export.block > LARGEST_SECTOR:
        raise BrokenServer(f"the server wants whole blocks of {export.block} bytes, more than a sector can have")


@final
class Connector:
    """One attempt to connect, in a thread of its own: names cannot be looked up in any other way without waiting.

    The thread touches nothing but what is here. Whoever loses interest says `abandon`; a thread that is just looking up
    a name then comes to its end by itself.
    """

    def __init__(self, address: NbdAddress, *, readonly: bool) -> None:
        """Begin."""
        self._address = address
        self._readonly = readonly
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._abandoned = False
        self._connection: NbdConnection | None = None
        self._failure = ""
        self._done = False
        threading.Thread(target=self._run, name=f"connects to {address}", daemon=True).start()

    def _run(self) -> None:
        connection, failure = None, ""
        try:
            connection = connect(self._address, readonly=self._readonly)
        except DeviceError as error:
            failure = str(error)
        except Exception as error:
            # Whoever waits must hear of it: nobody looks at what ends a thread.
            failure = f"{self._address}: {error!r}"
        with self._lock:
            if self._abandoned:
                if connection is not None:
                    connection.socket.close()
                return
            self._connection, self._failure, self._done = connection, failure, True
            os.eventfd_write(self._event, 1)

    @property
    def done(self) -> bool:
        """Whether `take` has something to say."""
        return self._done

    def fileno(self) -> int:
        """Return what is readable as soon as it is done."""
        return self._event

    def take(self) -> NbdConnection:
        """Return the connection, once; it is the caller's now. Raises DeviceError."""
        assert self._done
        connection, self._connection = self._connection, None
        self.abandon()
        if connection is None:
            raise DeviceError(self._failure)
        return connection

    def abandon(self) -> None:
        """Want it no more."""
        with self._lock:
            if self._abandoned:
                return
            self._abandoned = True
            os.close(self._event)
            if self._connection is not None:
                self._connection.socket.close()
                self._connection = None
