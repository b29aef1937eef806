"""A wire to a real network: a TAP interface of Linux (Documentation/networking/tuntap.rst).

What the simulated card sends comes out of the interface, and what Linux sends into the interface is on the wire. The
frames are plain Ethernet (IFF_NO_PI, no virtio header): all checksums are filled in and no frame is longer than the
interface's MTU.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

import trio

from hypervisor.machine.nic import MAX_FRAME, Wire
from toolstack.errors import UsageError

if TYPE_CHECKING:
    from toolstack.host import Host

DEVICE = "/dev/net/tun"
# linux/if_tun.h, linux/if.h, linux/sockios.h
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 0x0001
IFREQ = struct.Struct("16sH22x")
MAX_NAME = 15
BATCH = 64
"""Frames that come in at one go, before guests get their turn."""
LOSSES = (errno.EAGAIN, errno.ENOBUFS, errno.EIO)
"""A frame is lost, as on any wire, when the interface is down or too much waits there."""


class TapWire(Wire):
    """One TAP interface, made if there is none with this name; `lost` counts frames that it has not taken."""

    def __init__(self, name: str) -> None:
        """Attach to the interface. Raises `UsageError`."""
        self.name = name
        self.lost = 0
        try:
            self._file = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{DEVICE}: {error.strerror}") from None
        try:
            fcntl.ioctl(self._file, TUNSETIFF, IFREQ.pack(name.encode(), IFF_TAP | IFF_NO_PI))
        except OSError as error:
            os.close(self._file)
            raise UsageError(f"the TAP interface {name!r} cannot be used: {_why(error, name)}") from None
        _set_up(name)

    def transmit(self, frame: bytes, now: int) -> None:
        """Send the frame into Linux's network."""
        try:
            os.write(self._file, frame)
        except OSError as error:
            self.lost += 1
            if error.errno not in LOSSES:
                self._note(error)

    async def follow(self, host: Host) -> None:
        """Bring what Linux sends to the card, for as long as the host runs."""
        while not self.failure:
            await trio.lowlevel.wait_readable(self._file)
            try:
                for _ in range(BATCH):
                    self.receive(os.read(self._file, MAX_FRAME))
            except BlockingIOError:
                pass
            except OSError as error:
                self._note(error)
            host.wake()
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Let go of the interface; one that was made here goes away."""
        os.close(self._file)

    def _note(self, error: OSError) -> None:
        self.failure = self.failure or f"the TAP interface {self.name!r} is not there any more: {error.strerror}"


def _why(error: OSError, name: str) -> str:
    if error.errno == errno.EPERM:
        return f"only root may make it (ip tuntap add {name} mode tap user $USER, as root, makes one for you)"
    if error.errno == errno.EINVAL:
        return "an interface of this name is no TAP, or has several queues"
    return error.strerror or str(error)


def _set_up(name: str) -> None:
    """Switch the interface on. Whoever may not do that has been given one, and somebody else looks after it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            answer = fcntl.ioctl(control, SIOCGIFFLAGS, IFREQ.pack(name.encode(), 0))
            _, flags = IFREQ.unpack(answer)
            fcntl.ioctl(control, SIOCSIFFLAGS, IFREQ.pack(name.encode(), flags | IFF_UP))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES):
                raise UsageError(f"the TAP interface {name!r} cannot be switched on: {error.strerror}") from None
