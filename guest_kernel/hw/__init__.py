"""Drivers of the machine's physical devices, for dom0 and for driver domains.

A unit is found by asking its ID register; a domain without permission for the unit's I/O ports (domctl
ioport_permission) gets a fault, which `Hardware` reports as a missing device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest_kernel.hw.disk import PhysicalDisk
from guest_kernel.hw.errors import NoDeviceError
from guest_kernel.hw.nic import PhysicalNic
from guest_kernel.hw.serial import PhysicalSerial, SerialLine
from guest_kernel.hw.socket_card import PhysicalSocketCard

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

__all__ = [
    "Hardware",
    "NoDeviceError",
    "PhysicalDisk",
    "PhysicalNic",
    "PhysicalSerial",
    "PhysicalSocketCard",
    "SerialLine",
]


class Hardware:
    """The physical devices that this domain drives, each set up when it is first asked for."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._disks: dict[int, PhysicalDisk] = {}
        self._nics: dict[int, PhysicalNic] = {}
        self._serial: PhysicalSerial | None = None
        self._socket_cards: dict[int, PhysicalSocketCard] = {}

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

    @property
    def serial(self) -> PhysicalSerial:
        """The serial card. Raises NoDeviceError."""
        if self._serial is None:
            self._serial = PhysicalSerial(self._kernel)
        return self._serial

    def socket_card(self, unit: int) -> PhysicalSocketCard:
        """Return socket card `unit`. Raises NoDeviceError."""
        if unit not in self._socket_cards:
            self._socket_cards[unit] = PhysicalSocketCard(self._kernel, unit)
        return self._socket_cards[unit]

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
        for card in self._socket_cards.values():
            card.close()
        self._socket_cards.clear()
        if self._serial is not None:
            self._serial.close()
            self._serial = None
