"""Drivers of the machine's physical devices, for dom0 and for driver domains.

A unit is found by asking its ID register; a domain without permission for the unit's I/O ports (domctl
ioport_permission) gets a fault, which `Hardware` reports as a missing device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest_kernel.hw.disk import PhysicalDisk
from guest_kernel.hw.errors import NoDeviceError
from guest_kernel.hw.nic import PhysicalNic

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

__all__ = ["Hardware", "NoDeviceError", "PhysicalDisk", "PhysicalNic"]


class Hardware:
    """The physical devices that this domain drives, each set up when it is first asked for."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._disks: dict[int, PhysicalDisk] = {}
        self._nics: dict[int, PhysicalNic] = {}

    def disk(self, unit: int) -> PhysicalDisk:
        """Return the disk on controller `unit`. Raises NoDeviceError."""
        if unit not in self._disks:
            self._disks[unit] = PhysicalDisk(self._kernel, unit)
        return self._disks[unit]

    def nic(self, unit: int) -> PhysicalNic:
        """Return network card `unit`. Raises NoDeviceError."""
        if unit not in self._nics:
            self._nics[unit] = PhysicalNic(self._kernel, unit)
        return self._nics[unit]

    def release_disk(self, unit: int) -> None:
        """Let go of a disk that is being unplugged: its pages, its interrupt. Nothing may be under way."""
        disk = self._disks.pop(unit, None)
        if disk is not None:
            disk.close()

    def close(self) -> None:
        """Let go of everything."""
        for unit in list(self._disks):
            self.release_disk(unit)
        for nic in self._nics.values():
            nic.close()
        self._nics.clear()
