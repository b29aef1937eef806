"""HYPERVISOR_console_io (xen.h): the host's serial line, for the hardware domain."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.guest_access import copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_console_io
CHUNK = 127
"""Xen copies this many bytes of a guest's text at a time; what came before a fault is printed."""

INT_MAX = 0x7FFFFFFF
INPUT_SIZE = 128
"""Bytes that Xen keeps of what is typed until the hardware domain reads them; what comes when it is full is lost."""


class ConsoleIo:
    """Writes dom0's text to the host's console and hands it what a person types."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._input: deque[int] = deque()
        self.hypercalls = {HYPERCALL: self._console_io}

    def _console_io(self, vcpu: VCpu, cmd: int, count: int, buffer: int, _a4: int, _a5: int) -> int:
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        cmd &= 0xFFFFFFFF
        if cmd == xen.CONSOLEIO_write:
            return self._write(vcpu, count & 0xFFFFFFFF, buffer)
        if cmd == xen.CONSOLEIO_read:
            return self._read(vcpu, count & 0xFFFFFFFF, buffer)
        return -errno.ENOSYS

    def _write(self, vcpu: VCpu, count: int, buffer: int) -> int:
        while count:
            size = min(count, CHUNK)
            self.hv.console(copy_from_guest(vcpu, buffer, size))
            buffer += size
            count -= size
        return 0

    def _read(self, vcpu: VCpu, count: int, buffer: int) -> int:
        if count > INT_MAX:
            # The result could not be told from an error.
            return -errno.E2BIG
        data = bytes(self._input[i] for i in range(min(count, len(self._input))))
        if data:
            copy_to_guest(vcpu, buffer, data)
            for _ in data:
                self._input.popleft()
        return len(data)

    @property
    def room(self) -> int:
        """How many more bytes can be typed before some are lost."""
        return INPUT_SIZE - len(self._input)

    def feed(self, data: bytes) -> None:
        """Take typed bytes from the serial line and tell the hardware domain (VIRQ_CONSOLE)."""
        self._input.extend(data[: self.room])
        self.hv.events.send_global_virq(xen.VIRQ_CONSOLE)
