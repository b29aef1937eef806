"""I/O ports as a guest's IN and OUT reach them, once the guest's own privilege has been checked.

A domain reaches the devices at the ports that it was given (XEN_DOMCTL_ioport_permission; dom0: nearly all). Elsewhere
reads give ones and writes are lost. The configuration address of PCI (0xcf8) is each domain's own: Xen stores it, and
there is no PCI bus behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor

PCI_ADDRESS = 0xCF8
PCI_DATA = range(0xCFC, 0xD00)
CMOS = range(0x70, 0x72)


class PortIo:
    """Reads and writes of 1, 2 or 4 bytes."""

    def __init__(self, hv: Hypervisor) -> None:
        self._ports = hv.machine.ports

    @staticmethod
    def _reaches_device(domain: Domain, port: int, width: int) -> bool:
        """Whether the whole access may go to the hardware (`admin_io_okay` of Xen)."""
        if (port == PCI_ADDRESS and width == 4) or any(at in CMOS for at in range(port, port + width)):
            return False
        return all(domain.may_use_port(at) for at in range(port, port + width))

    def is_absent(self, domain: Domain, port: int, width: int) -> bool:
        """Whether there is nothing at a port as far as a domain can tell: it reads ones."""
        if port == PCI_ADDRESS and width == 4:
            return False
        return port in PCI_DATA or not self._ports.is_claimed(port) or not self._reaches_device(domain, port, width)

    def read(self, domain: Domain, port: int, width: int) -> int:
        """Return what a domain reads from a port."""
        mask = (1 << 8 * width) - 1
        if port == PCI_ADDRESS and width == 4:
            return domain.pci_address
        if self.is_absent(domain, port, width):
            return mask
        return self._ports.inl(port) & mask

    def write(self, domain: Domain, port: int, width: int, value: int) -> None:
        """Carry out a domain's write to a port."""
        if port == PCI_ADDRESS and width == 4:
            domain.pci_address = value
        elif port not in PCI_DATA and self._reaches_device(domain, port, width):
            self._ports.outl(port, value)
