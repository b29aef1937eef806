"""Disks for clients outside, as a guest sees them: `paravirt run --export-nbd GUEST:VDEV=WHERE`.

The server runs in the guest (`guest_kernel.nbd`). Here is what it needs of the world: the listening socket that its
socket card is plugged into, and the task that tells the card when somebody wants something.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import attrs

from hypervisor.abi.device import SOCKET_UNITS
from toolstack.errors import UsageError, did_you_mean
from toolstack.machine_code import MachineCode
from toolstack.xenstore import address
from toolstack.xl_config import DomainConfig

FORM = "GUEST:VDEV=unix:PATH or GUEST:VDEV=tcp:HOST:PORT"
BACKLOG = 128
MAX_PORT = 65535


@attrs.frozen
class ExportSpec:
    """Which disk of which guest is served where: at a Unix socket (`path`) or a TCP port."""

    text: str
    guest: str
    vdev: str
    path: Path | None = None
    host: str = ""
    port: int = 0

    @property
    def where(self) -> str:
        """The place, in words of the command line."""
        return f"unix:{self.path}" if self.path is not None else f"tcp:{self.host}:{self.port}"


def parse_export(text: str) -> ExportSpec:
    """Parse `GUEST:VDEV=unix:PATH` or `GUEST:VDEV=tcp:HOST:PORT`. Raises `UsageError`."""
    disk, _, where = text.partition("=")
    guest, _, vdev = disk.rpartition(":")
    kind, _, place = where.partition(":")
    if not guest or not vdev or kind not in ("unix", "tcp") or not place:
        raise UsageError(f"--export-nbd {text!r} is not of the form {FORM}")
    if kind == "unix":
        return ExportSpec(text, guest, vdev, path=Path(place))
    host, colon, port = place.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= MAX_PORT:
        raise UsageError(f"--export-nbd {text!r}: after tcp: there is HOST:PORT, with a port from 1 to {MAX_PORT}")
    return ExportSpec(text, guest, vdev, host=host.strip("[]") or "localhost", port=int(port))


def check_exports(
    exports: Sequence[ExportSpec], configs: Sequence[DomainConfig], kernels: Callable[[DomainConfig], object]
) -> None:
    """See whether there are such guests and disks. Raises `UsageError`."""
    if len(exports) > SOCKET_UNITS:
        raise UsageError(f"the machine has room for {SOCKET_UNITS} socket cards, so for as many --export-nbd")
    by_name = {config.name: config for config in configs}
    places = [export.where for export in exports]
    for export in exports:
        config = by_name.get(export.guest)
        if config is None:
            hint = did_you_mean(export.guest, by_name)
            raise UsageError(f"--export-nbd {export.text!r}: there is no guest {export.guest!r}{hint}")
        if isinstance(kernels(config), MachineCode):
            raise UsageError(
                f"--export-nbd {export.text!r}: the server runs on a kernel in Python, and {export.guest!r} has another"
            )
        disks = [disk.vdev for disk in config.disks]
        if export.vdev not in disks:
            has = ", ".join(disks) or "none"
            raise UsageError(
                f"--export-nbd {export.text!r}: {export.guest!r} has no disk {export.vdev!r} (it has {has})"
            )
        if places.count(export.where) > 1:
            raise UsageError(f"--export-nbd {export.text!r}: two exports cannot be at the same place")


@final
class ExportDoor:
    """The outside's end of an export: a socket that listens from the start of the run to the end of the guest."""

    def __init__(self, spec: ExportSpec) -> None:
        """Listen. Raises `UsageError`."""
        self.spec = spec
        self._identity: tuple[int, int] | None = None
        if spec.path is not None:
            self.listener = address.listen(spec.path)
            self._identity = address.identity(spec.path)
        else:
            self.listener = _listen_tcp(spec)

    def close(self) -> None:
        """Stop listening; the socket's file is removed."""
        self.listener.close()
        if self.spec.path is not None:
            address.remove(self.spec.path, self._identity)
            self._identity = None


def _listen_tcp(spec: ExportSpec) -> socket.socket:
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            spec.host, spec.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise UsageError(f"--export-nbd {spec.text!r}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"--export-nbd {spec.text!r}: {error.strerror}") from None
    return listener
