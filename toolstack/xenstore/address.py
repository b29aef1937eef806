"""Where a store listens: the path of its Unix socket, as Xen's tools find it, and taking it into possession."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from toolstack.errors import UsageError

DEFAULT_RUNDIR = "/var/run/xenstored"
SOCKET_MODE = 0o600
"""Whoever may open the socket is dom0, so nobody but the owner may."""
BACKLOG = 128
SUN_PATH = 108
"""Bytes of `sun_path` in struct sockaddr_un, with the NUL."""


def socket_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where libxenstore would look: $XENSTORED_PATH, else `socket` in $XENSTORED_RUNDIR or its default."""
    path = environment.get("XENSTORED_PATH")
    if path:
        return Path(path)
    return Path(environment.get("XENSTORED_RUNDIR") or DEFAULT_RUNDIR) / "socket"


def check_length(path: Path) -> None:
    """Raise `UsageError` if a socket cannot have this path."""
    size = len(os.fsencode(path))
    if size >= SUN_PATH:
        raise UsageError(f"the path of a socket has at most {SUN_PATH - 1} bytes, and {str(path)!r} has {size}")


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`; a stale one of a daemon that is gone is replaced.

    Raises `UsageError` if somebody listens there, if there is something that is no socket, or if it cannot be made.
    """
    check_length(path)
    _make_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    # Who waits for the file to appear may connect at once: it gets its name when somebody listens there.
    early = _early_name(path)
    # Between bind and chmod the socket would be open to others.
    mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        early.unlink(missing_ok=True)
        listener.bind(os.fspath(early))
        os.chmod(early, SOCKET_MODE)
        listener.listen(BACKLOG)
        if early != path:
            # (Unlike a rename, a link does not take the name away from a daemon that was faster.)
            os.link(early, path)
            early.unlink()
    except OSError as error:
        listener.close()
        with suppress(OSError):
            early.unlink()
        raise UsageError(f"cannot listen at {str(path)!r}: {error.strerror}") from None
    finally:
        os.umask(mask)
    return listener


def _early_name(path: Path) -> Path:
    """Return the name beside `path` that a socket has until it listens: `path` where there is no room for one."""
    early = path.with_name(f".{os.getpid()}.{path.name}"[:32])
    return early if len(os.fsencode(early)) < SUN_PATH else path


def _make_way(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot listen at {str(path)!r}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"cannot listen at {str(path)!r}: there is something else that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        number = probe.connect_ex(os.fspath(path))
    if number != errno.ECONNREFUSED:
        raise UsageError(f"another daemon listens at {str(path)!r}")
    try:
        path.unlink()
    except OSError as error:
        raise UsageError(f"cannot replace the stale socket {str(path)!r}: {error.strerror}") from None


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells this file from another one that is put in its place; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def remove(path: Path, mine: tuple[int, int] | None) -> None:
    """Remove the socket's file at the end, unless somebody has put another one there."""
    if mine is not None and identity(path) == mine:
        path.unlink(missing_ok=True)
