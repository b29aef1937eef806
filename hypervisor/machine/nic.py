"""Network cards: descriptors in memory, and a wire at the other side (abi.device)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import dpkt

from hypervisor.abi import device as sheet
from hypervisor.errors import DeviceError
from hypervisor.machine.machine import Machine
from hypervisor.machine.memory import PAGE_MASK, PAGE_SIZE

MTU = 1500
U32 = 0xFFFFFFFF
MAX_FRAME = 65536
RX_BACKLOG = 256
"""Frames that wait for the driver to give the card empty buffers; what comes on top of them is dropped."""

DESCRIPTOR = sheet.nic_descriptor.codec
DLT_EN10MB = 1


class Wire(ABC):
    """What a card is plugged into.

    `failure` is a sentence for a person once the wire has lost frames for a reason outside of the host.
    """

    failure = ""
    receive: Callable[[bytes], None] = staticmethod(lambda frame: None)
    """What takes a frame that comes over the wire: set by the card."""

    @abstractmethod
    def transmit(self, frame: bytes, now: int) -> None:
        """Take an Ethernet frame that the card sends at `now` (ns since 1970)."""

    def close(self) -> None:
        """Unplug the cable."""
        return


class NoWire(Wire):
    """Nothing at the other end."""

    def transmit(self, frame: bytes, now: int) -> None:
        """Lose the frame."""
        return


class PcapWire(Wire):
    """A capture file (libpcap, nanosecond time stamps) that gets every frame sent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise DeviceError(f"capture file {path}: {error.strerror}") from None
        self._writer = dpkt.pcap.Writer(self._file, snaplen=MAX_FRAME, linktype=DLT_EN10MB, nano=True)

    def transmit(self, frame: bytes, now: int) -> None:
        """Append the frame."""
        seconds, nanoseconds = divmod(now, 1_000_000_000)
        header = dpkt.pcap.LEPktHdr(tv_sec=seconds, tv_usec=nanoseconds, caplen=len(frame), len=len(frame))
        if not self.failure:
            try:
                self._file.write(bytes(header) + frame)
            except OSError as error:
                self._note(error)

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        """Remember why the capture is not complete; the network goes on without it."""
        self.failure = self.failure or f"capture file {self._path}: {error.strerror}; it is not complete"


class NetworkCard:
    """One card on one wire.

    `iommu(line)` is asked each time what the card may access: None for everything, or a predicate on frames.
    """

    def __init__(
        self,
        machine: Machine,
        unit: int,
        wire: Wire,
        mac: bytes,
        iommu: Callable[[int], Callable[[int], bool] | None] = lambda line: None,
    ) -> None:
        if not 0 <= unit < sheet.NIC_UNITS:
            raise DeviceError(f"the machine has room for {sheet.NIC_UNITS} network cards, not for card {unit}")
        self.machine = machine
        machine.interrupts.plug_in(sheet.nic_irq(unit))
        self.unit = unit
        self.wire = wire
        wire.receive = self.receive
        self.mac = mac
        self._iommu = iommu
        self._line = sheet.nic_irq(unit)
        self.now: Callable[[], int] = machine.clock.read
        self.tx_frames = self.rx_frames = self.rx_dropped = 0
        self._tx_base = self._rx_base = 0
        self._tx_used = self._rx_used = self._rx_produced = 0
        self._backlog: deque[bytes] = deque()
        self._ports = machine.ports.map(
            sheet.nic_port(unit), sheet.NIC_PORT_COUNT, self._read_register, self._write_register
        )

    def reset(self) -> None:
        """Forget the driver: its rings, and what came for it."""
        self._tx_base = self._rx_base = 0
        self._tx_used = self._rx_used = self._rx_produced = 0
        self._backlog.clear()

    def unplug(self) -> None:
        """Take the card out of the machine."""
        self.machine.ports.unmap(self._ports)
        self.wire.close()

    def _read_register(self, port: int) -> int:
        registers = {
            sheet.NIC_ID: sheet.NIC_MAGIC,
            sheet.NIC_MAC_LOW: int.from_bytes(self.mac[:4], "little"),
            sheet.NIC_MAC_HIGH: int.from_bytes(self.mac[4:], "little"),
            sheet.NIC_MTU: MTU,
            sheet.NIC_TX_USED: self._tx_used,
            sheet.NIC_RX_USED: self._rx_used,
        }
        return registers.get(port - self._ports.base, 0)

    def _write_register(self, port: int, value: int) -> None:
        register = port - self._ports.base
        if register == sheet.NIC_TX_DOORBELL:
            self._transmit(value)
        elif register == sheet.NIC_RX_DOORBELL:
            if value - self._rx_used & U32 <= sheet.NIC_RING_LENGTH:
                self._rx_produced = value
                self._deliver()
        elif register == sheet.NIC_TX_RING and self._reaches(value):
            self._tx_base, self._tx_used = value * PAGE_SIZE, 0
        elif register == sheet.NIC_RX_RING and self._reaches(value):
            self._rx_base, self._rx_used, self._rx_produced = value * PAGE_SIZE, 0, 0

    def _reaches(self, mfn: int) -> bool:
        """Whether there is such a frame, and the card may access it now."""
        allowed = self._iommu(self._line)
        return mfn < self.machine.memory.frames and (allowed is None or allowed(mfn))

    def _descriptor(self, base: int, index: int) -> tuple[int, int, int]:
        """Return (machine address, length, flags) of a descriptor; length 0 if it points to what must not be accessed.

        The ring must be accessible.
        """
        memory = self.machine.memory
        offset = base + index % sheet.NIC_RING_LENGTH * DESCRIPTOR.size
        maddr, length, flags = DESCRIPTOR.unpack_from(memory.b, offset)
        if length > PAGE_SIZE - (maddr & PAGE_MASK) or not self._reaches(maddr // PAGE_SIZE):
            return 0, 0, flags
        return maddr, length, flags

    def _transmit(self, producer: int) -> None:
        """Send the frames up to the driver's producer index."""
        pending = producer - self._tx_used & U32
        if not self._tx_base or pending > sheet.NIC_RING_LENGTH or not self._reaches(self._tx_base // PAGE_SIZE):
            return
        memory = self.machine.memory
        wallclock = self.machine.clock.wallclock_base + self.now()
        pieces: list[bytes] = []
        for _ in range(pending):
            maddr, length, flags = self._descriptor(self._tx_base, self._tx_used)
            self._tx_used = self._tx_used + 1 & U32
            pieces.append(bytes(memory.b[maddr : maddr + length]))
            if not flags & sheet.NIC_FLAG_MORE:
                if any(pieces):
                    self.wire.transmit(b"".join(pieces), wallclock)
                self.tx_frames += 1
                pieces = []
        if pending:
            self.machine.interrupts.raise_line(self._line)

    def receive(self, frame: bytes) -> None:
        """Take a frame from the wire."""
        if len(self._backlog) >= RX_BACKLOG:
            self.rx_dropped += 1
            return
        self._backlog.append(frame)
        self._deliver()

    def _deliver(self) -> None:
        memory = self.machine.memory
        delivered = False
        if not self._rx_base or not self._reaches(self._rx_base // PAGE_SIZE):
            return
        while self._backlog and self._rx_used != self._rx_produced:
            frame = self._backlog.popleft()
            maddr, room, _ = self._descriptor(self._rx_base, self._rx_used)
            size = len(frame) if len(frame) <= room else 0
            if size:
                memory.write(maddr, frame[:size])
            offset = self._rx_base + self._rx_used % sheet.NIC_RING_LENGTH * DESCRIPTOR.size
            DESCRIPTOR.pack_into(memory.b, offset, maddr, size, 0)
            memory.mark(offset // PAGE_SIZE)
            self._rx_used = self._rx_used + 1 & U32
            self.rx_frames += 1
            delivered = True
        if delivered:
            self.machine.interrupts.raise_line(self._line)
