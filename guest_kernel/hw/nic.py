"""Driver of the simulated machine's network cards (abi.device)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from guest_kernel.hw.errors import NoDeviceError
from guest_kernel.hw.irq import free_irq, request_irq
from guest_kernel.mm import PAGE_SIZE
from hypervisor.abi import device as sheet
from hypervisor.abi.cpu import GeneralProtectionFault

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

DESCRIPTOR = sheet.nic_descriptor.codec
U32 = 0xFFFFFFFF
RX_BUFFERS = 64


class PhysicalNic:
    """One card: `mac`, `mtu`; frames out with `transmit`, frames in through the callback of `on_receive`."""

    def __init__(self, kernel: Kernel, unit: int) -> None:
        self._kernel = kernel
        cpu = kernel.cpu
        self._outl, self._inl = cpu.outl, cpu.inl
        self._base = base = sheet.nic_port(unit)
        self._line = sheet.nic_irq(unit)
        self.unit = unit
        try:
            identity = cpu.inl(base + sheet.NIC_ID)
        except GeneralProtectionFault:
            raise NoDeviceError(f"this domain may not use network card {unit}") from None
        if identity != sheet.NIC_MAGIC:
            raise NoDeviceError(f"there is no network card {unit}")
        low, high = cpu.inl(base + sheet.NIC_MAC_LOW), cpu.inl(base + sheet.NIC_MAC_HIGH)
        self.mac = (low | high << 32).to_bytes(6, "little")
        self.mtu = cpu.inl(base + sheet.NIC_MTU)
        self.dropped = 0
        self._received: Callable[[bytes], None] = lambda frame: None

        self._tx_ring, self._rx_ring = kernel.mm.alloc_page(), kernel.mm.alloc_page()
        self._tx_pages: dict[int, Page] = {}
        self._spare: list[Page] = []
        self._tx_produced = self._tx_done = 0
        self._rx_pages: list[Page] = kernel.mm.alloc_pages(RX_BUFFERS)
        self._rx_produced = self._rx_done = 0
        self._outl(base + sheet.NIC_TX_RING, self._tx_ring.mfn)
        self._outl(base + sheet.NIC_RX_RING, self._rx_ring.mfn)
        self._port = request_irq(kernel, self._line, self._interrupt)
        for page in self._rx_pages:
            self._post(page)
        self._outl(base + sheet.NIC_RX_DOORBELL, self._rx_produced)

    def on_receive(self, callback: Callable[[bytes], None]) -> None:
        """Have `callback(frame)` called, in upcall context, for each frame that comes in."""
        self._received = callback

    def transmit(self, frame: bytes) -> None:
        """Send an Ethernet frame. A frame that finds the ring full is dropped and counted, as on any card."""
        pieces = [frame[at : at + PAGE_SIZE] for at in range(0, len(frame), PAGE_SIZE)]
        if (self._tx_produced - self._tx_done & U32) + len(pieces) > sheet.NIC_RING_LENGTH:
            self.dropped += 1
            return
        for number, piece in enumerate(pieces):
            page = self._spare.pop() if self._spare else self._kernel.mm.alloc_page()
            page.view[: len(piece)] = piece
            slot = self._tx_produced % sheet.NIC_RING_LENGTH
            flags = sheet.NIC_FLAG_MORE if number + 1 < len(pieces) else 0
            DESCRIPTOR.pack_into(self._tx_ring.view, slot * DESCRIPTOR.size, page.mfn << 12, len(piece), flags)
            self._tx_pages[slot] = page
            self._tx_produced = self._tx_produced + 1 & U32
        self._outl(self._base + sheet.NIC_TX_DOORBELL, self._tx_produced)

    def _post(self, page: Page) -> None:
        slot = self._rx_produced % sheet.NIC_RING_LENGTH
        DESCRIPTOR.pack_into(self._rx_ring.view, slot * DESCRIPTOR.size, page.mfn << 12, PAGE_SIZE, 0)
        self._rx_produced = self._rx_produced + 1 & U32

    def _interrupt(self) -> None:
        used = self._inl(self._base + sheet.NIC_TX_USED)
        while self._tx_done != used:
            self._spare.append(self._tx_pages.pop(self._tx_done % sheet.NIC_RING_LENGTH))
            self._tx_done = self._tx_done + 1 & U32
        used = self._inl(self._base + sheet.NIC_RX_USED)
        if self._rx_done == used:
            return
        while self._rx_done != used:
            page = self._rx_pages[self._rx_done % RX_BUFFERS]
            slot = self._rx_done % sheet.NIC_RING_LENGTH
            _, length, _ = DESCRIPTOR.unpack_from(self._rx_ring.view, slot * DESCRIPTOR.size)
            self._rx_done = self._rx_done + 1 & U32
            frame = bytes(page.view[:length])
            self._post(page)
            if frame:
                self._received(frame)
        self._outl(self._base + sheet.NIC_RX_DOORBELL, self._rx_produced)

    def close(self) -> None:
        """Give back the interrupt and the memory."""
        self._outl(self._base + sheet.NIC_TX_RING, 0)
        self._outl(self._base + sheet.NIC_RX_RING, 0)
        free_irq(self._kernel, self._port)
        pages = (self._tx_ring, self._rx_ring, *self._rx_pages, *self._spare, *self._tx_pages.values())
        for page in pages:
            self._kernel.mm.free_page(page)
        self._tx_pages, self._spare, self._rx_pages = {}, [], []
