"""Driver of the simulated machine's disk controllers (abi.device)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from guest_kernel.hw.errors import NoDeviceError
from guest_kernel.hw.irq import free_irq, request_irq
from hypervisor.abi import device as sheet
from hypervisor.abi.cpu import GeneralProtectionFault

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

READ, WRITE, FLUSH = sheet.DISK_READ, sheet.DISK_WRITE, sheet.DISK_FLUSH

Segment = tuple[int, int]
"""Machine address and length in bytes, within one page."""
Done = Callable[[int], None]
"""Called with 0 or a negative errno, in upcall context."""

COMMAND = sheet.disk_command.codec
COMPLETION = sheet.disk_completion.codec
SEGMENT = sheet.disk_segment.codec
U32 = 0xFFFFFFFF


def pack_segments(segments: Sequence[Segment]) -> bytes:
    """Return segments as the controller reads them (`disk_segment`), for `PhysicalDisk.submit`."""
    return b"".join(SEGMENT.pack(maddr, length) for maddr, length in segments)


class PhysicalDisk:
    """One disk: `sectors` sectors of `sector_size` bytes.

    `submit` queues commands and `kick` starts what was queued. Commands that find the queue full wait inside of the
    driver, in order.
    """

    def __init__(self, kernel: Kernel, unit: int) -> None:
        self._kernel = kernel
        self._outl = kernel.cpu.outl
        self._base = base = sheet.disk_port(unit)
        self._line = sheet.disk_irq(unit)
        self.unit = unit
        try:
            identity = kernel.cpu.inl(base + sheet.DISK_ID)
        except GeneralProtectionFault:
            raise NoDeviceError(f"this domain may not use disk controller {unit}") from None
        if identity != sheet.DISK_MAGIC:
            raise NoDeviceError(f"there is no disk on controller {unit}")
        inl = kernel.cpu.inl
        self.sectors = inl(base + sheet.DISK_SECTORS_LOW) | inl(base + sheet.DISK_SECTORS_HIGH) << 32
        self.sector_size = inl(base + sheet.DISK_SECTOR_SIZE)
        self.readonly = bool(inl(base + sheet.DISK_FLAGS) & sheet.DISK_FLAG_READONLY)

        self._commands = kernel.mm.alloc_page()
        self._completions = kernel.mm.alloc_page()
        self._tables: list[Page] = []
        self._free: list[int] = []
        self._done: list[Done | None] = []
        self._waiting: deque[tuple[int, int, Sequence[Segment] | bytes, Done]] = deque()
        self._produced = self._consumed = 0
        self._outl(base + sheet.DISK_RESET, 0)
        self._outl(base + sheet.DISK_COMMANDS, self._commands.mfn)
        self._outl(base + sheet.DISK_COMPLETIONS, self._completions.mfn)
        self._port = request_irq(kernel, self._line, self._interrupt)

    def submit(self, op: int, sector: int, segments: Sequence[Segment] | bytes, done: Done) -> None:
        """Queue a command (READ, WRITE, FLUSH). `done` is called once, after a later `kick`.

        Who uses the same segments often gives them as what `pack_segments` makes of them.
        """
        if not self._free and not self._grow():
            self._waiting.append((op, sector, segments, done))
            return
        slot = self._free.pop()
        packed = segments if isinstance(segments, bytes) else pack_segments(segments)
        table = self._tables[slot]
        table.view[: len(packed)] = packed
        offset = self._produced % sheet.DISK_QUEUE_LENGTH * COMMAND.size
        count = len(packed) // SEGMENT.size
        COMMAND.pack_into(self._commands.view, offset, op, 0, count, slot, sector, table.mfn << 12, 0)
        self._done[slot] = done
        self._produced = self._produced + 1 & U32

    def kick(self) -> None:
        """Ring the doorbell for all that has been submitted."""
        self._outl(self._base + sheet.DISK_DOORBELL, self._produced)

    def _grow(self) -> bool:
        """Make room for one more command under way, unless the queue is as long as it gets."""
        if len(self._tables) >= sheet.DISK_QUEUE_LENGTH:
            return False
        self._free.append(len(self._tables))
        self._tables.append(self._kernel.mm.alloc_page())
        self._done.append(None)
        return True

    def _interrupt(self) -> None:
        """Hand out the completions that are new."""
        page = self._completions
        produced = page.i[0]
        while self._consumed != produced:
            slot = self._consumed % sheet.DISK_COMPLETION_SLOTS
            self._consumed = self._consumed + 1 & U32
            ident, status = COMPLETION.unpack_from(page.view, sheet.DISK_COMPLETIONS_OFFSET + slot * COMPLETION.size)
            done = self._done[ident]
            self._done[ident] = None
            self._free.append(ident)
            if done is not None:
                done(status)
        if self._waiting:
            while self._waiting and self._free:
                self.submit(*self._waiting.popleft())
            self.kick()

    def close(self) -> None:
        """Give back the interrupt and the memory."""
        self._outl(self._base + sheet.DISK_RESET, 0)
        free_irq(self._kernel, self._port, self._line)
        for page in (self._commands, self._completions, *self._tables):
            self._kernel.mm.free_page(page)
        self._tables, self._free, self._done = [], [], []
