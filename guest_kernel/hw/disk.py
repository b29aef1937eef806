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

READ, WRITE, FLUSH, DISCARD = sheet.DISK_READ, sheet.DISK_WRITE, sheet.DISK_FLUSH, sheet.DISK_DISCARD

Segment = tuple[int, int]
"""Machine address and length in bytes."""
Done = Callable[[int], None]
"""Called with 0 or a negative errno, in upcall context."""

COMMAND = sheet.disk_command.codec
SEGMENT = sheet.disk_segment.codec
U32 = 0xFFFFFFFF

_PACK = COMMAND.pack_into
_COMMAND_SIZE, _SEGMENT_SIZE = COMMAND.size, SEGMENT.size
_SLOT_MASK = sheet.DISK_QUEUE_LENGTH - 1
_FIRST_COMPLETION = sheet.DISK_COMPLETIONS_OFFSET // sheet.disk_completion.size
assert not sheet.DISK_QUEUE_LENGTH & _SLOT_MASK
_COMPLETION_MASK = sheet.DISK_COMPLETION_SLOTS - 1
assert not sheet.DISK_COMPLETION_SLOTS & _COMPLETION_MASK
assert (sheet.disk_completion.size, sheet.disk_completion.offset("status")) == (8, 4)


def pack_segments(segments: Sequence[Segment]) -> bytes:
    """Return segments as the controller reads them (`disk_segment`), for `PhysicalDisk.submit`.

    What follows in memory what is before it in the transfer is one segment with it.
    """
    runs: list[tuple[int, int]] = []
    for maddr, length in segments:
        if runs and sum(runs[-1]) == maddr:
            runs[-1] = runs[-1][0], runs[-1][1] + length
        else:
            runs.append((maddr, length))
    return b"".join(SEGMENT.pack(maddr, length) for maddr, length in runs)


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
        self.sectors = 0
        self.sector_size = self.physical_sector_size = 0
        self.readonly = False
        self.discards = False
        """Whether the disk takes DISCARD."""
        self._identify()
        self._changes = 0
        self._on_change: Callable[[], None] | None = None
        self._afterwards: list[Callable[[], None]] = []

        self._commands = kernel.mm.alloc_page()
        self._completions = kernel.mm.alloc_page()
        self._view = self._commands.view
        self._words = self._completions.q
        self._doorbell = base + sheet.DISK_DOORBELL
        self._tables: list[Page] = []
        """Where the segments of each command under way are, by its id."""
        self._addresses: list[int] = []
        self._packed: list[bytes] = []
        """What each of these pages holds: nobody else writes there, so the same need not be written again."""
        self._free: list[int] = []
        self._done: list[Done | None] = []
        self._waiting: deque[tuple[int, int, Sequence[Segment] | bytes, Done, int]] = deque()
        self._produced = self._consumed = 0
        self._outl(base + sheet.DISK_RESET, 0)
        self._outl(base + sheet.DISK_COMMANDS, self._commands.mfn)
        self._outl(base + sheet.DISK_COMPLETIONS, self._completions.mfn)
        self._port = request_irq(kernel, self._line, self._interrupt)

    def _identify(self) -> None:
        inl, base = self._kernel.cpu.inl, self._base
        self.sectors = inl(base + sheet.DISK_SECTORS_LOW) | inl(base + sheet.DISK_SECTORS_HIGH) << 32
        flags = inl(base + sheet.DISK_FLAGS)
        self.sector_size = inl(base + sheet.DISK_SECTOR_SIZE)
        self.physical_sector_size = inl(base + sheet.DISK_PHYSICAL_SECTOR_SIZE)
        self.readonly = bool(flags & sheet.DISK_FLAG_READONLY)
        self.discards = bool(flags & sheet.DISK_FLAG_DISCARD)

    def watch(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called, in upcall context, whenever the capacity (`sectors`) has changed; None: no more."""
        self._on_change = callback

    def submit(self, op: int, sector: int, segments: Sequence[Segment] | bytes, done: Done, sectors: int = 0) -> None:
        """Queue a command (READ, WRITE, FLUSH, DISCARD of `sectors`). `done` is called once, after a later `kick`.

        Who uses the same segments often gives them as what `pack_segments` makes of them.
        """
        free = self._free
        if not free and not self._grow():
            self._waiting.append((op, sector, segments, done, sectors))
            return
        slot = free.pop()
        packed = segments if type(segments) is bytes else pack_segments(segments)  # type: ignore[arg-type]
        if packed is not self._packed[slot]:
            self._tables[slot].view[: len(packed)] = packed
            self._packed[slot] = packed
        produced = self._produced
        offset = (produced & _SLOT_MASK) * _COMMAND_SIZE
        _PACK(self._view, offset, op, 0, len(packed) // _SEGMENT_SIZE, slot, sector, self._addresses[slot], sectors)
        self._done[slot] = done
        self._produced = produced + 1 & U32

    def afterwards(self, callback: Callable[[], None]) -> None:
        """Have this called once, when all completions that are being handed out have been. For `done` callbacks."""
        self._afterwards.append(callback)

    def kick(self) -> None:
        """Ring the doorbell for all that has been submitted."""
        self._outl(self._doorbell, self._produced)

    def _grow(self) -> bool:
        """Make room for one more command under way, unless the queue is as long as it gets."""
        if len(self._tables) >= sheet.DISK_QUEUE_LENGTH:
            return False
        page = self._kernel.mm.alloc_page()
        self._free.append(len(self._tables))
        self._tables.append(page)
        self._addresses.append(page.mfn << 12)
        self._packed.append(b"")
        self._done.append(None)
        return True

    def _interrupt(self) -> None:
        """Hand out the completions that are new."""
        words, handlers, free = self._words, self._done, self._free
        header = words[0]
        if header >> 32 != self._changes:
            self._changes = header >> 32
            self._identify()
            if self._on_change is not None:
                self._on_change()
        produced = header & U32
        consumed = self._consumed
        while consumed != produced:
            # The 64 bits of a `disk_completion`: id, and a status that is 0 or negative.
            ident = words[_FIRST_COMPLETION + (consumed & _COMPLETION_MASK)]
            status = 0
            if ident > U32:
                status = (ident >> 32) - (1 << 32)
                ident &= U32
            self._consumed = consumed = consumed + 1 & U32
            done = handlers[ident]
            handlers[ident] = None
            free.append(ident)
            if done is not None:
                done(status)
        if self._afterwards:
            callbacks, self._afterwards = self._afterwards, []
            for callback in callbacks:
                callback()
        if self._waiting:
            while self._waiting and self._free:
                self.submit(*self._waiting.popleft())
            self.kick()

    def close(self) -> None:
        """Give back the interrupt and the memory."""
        self._outl(self._base + sheet.DISK_RESET, 0)
        free_irq(self._kernel, self._port)
        for page in (self._commands, self._completions, *self._tables):
            self._kernel.mm.free_page(page)
        self._tables, self._addresses, self._packed, self._free, self._done = [], [], [], [], []
