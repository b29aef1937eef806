"""Driver of the simulated machine's disk controllers (abi.device)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

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


class Pending(Protocol):
    """A command that its owner knows by an object of its own."""

    @property
    def done(self) -> Done:
        """Called when it is done, in upcall context, unless the owner's `finished` is."""
        ...


class Owner(Protocol):
    """Who submits many commands, and hears of their ends together."""

    def finished_one(self, command: Any, /) -> None:
        """A command is done, without an error; in upcall context."""
        ...

    def finished(self, commands: Sequence[Any], /) -> None:
        """The same of several."""
        ...


@final
class _Single:
    """A command that somebody waits for by itself (`Pending`)."""

    __slots__ = ("done",)

    def __init__(self, done: Done) -> None:
        self.done = done


COMMAND = sheet.disk_command.codec
SEGMENT = sheet.disk_segment.codec
U32 = 0xFFFFFFFF

_PACK = COMMAND.pack_into
_COMMAND_SIZE, _SEGMENT_SIZE = COMMAND.size, SEGMENT.size
_SLOT_MASK = sheet.DISK_QUEUE_LENGTH - 1
_FIRST_COMPLETION = sheet.DISK_COMPLETIONS_OFFSET // sheet.disk_completion.size
assert not sheet.DISK_QUEUE_LENGTH & _SLOT_MASK
_COMPLETION_SLOTS = sheet.DISK_COMPLETION_SLOTS
_COMPLETION_MASK = _COMPLETION_SLOTS - 1
assert not _COMPLETION_SLOTS & _COMPLETION_MASK
_END_OF_COMPLETIONS = _FIRST_COMPLETION + _COMPLETION_SLOTS
assert _SEGMENT_SIZE == 1 << 4
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

    __slots__ = (
        "_addresses",
        "_afterwards",
        "_base",
        "_changes",
        "_commands",
        "_completions",
        "_consumed",
        "_doorbell",
        "_free",
        "_kernel",
        "_line",
        "_on_change",
        "_outl",
        "_packed",
        "_port",
        "_produced",
        "_sole",
        "_tables",
        "_under_way",
        "_view",
        "_waiting",
        "_words",
        "discards",
        "discards_securely",
        "physical_sector_size",
        "readonly",
        "sector_size",
        "sectors",
        "unit",
    )

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
        self.discards_securely = False
        """Whether the disk takes SECURE_DISCARD."""
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
        self._under_way: list[Any] = []
        """What is `Pending` in each slot, or was there last."""
        self._sole: Owner | None = None
        """Whose commands are all that are under way; None if there are others, too."""
        self._waiting: deque[tuple[int, int, bytes, Pending, int]] = deque()
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
        self.discards_securely = bool(flags & sheet.DISK_FLAG_SECURE_DISCARD)

    def watch(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called, in upcall context, whenever the capacity (`sectors`) has changed; None: no more."""
        self._on_change = callback

    def submit(self, op: int, sector: int, segments: Sequence[Segment] | bytes, done: Done, sectors: int = 0) -> None:
        """Queue a command (READ, WRITE, FLUSH, a discard of `sectors`). `done` is called once, after a later `kick`.

        Who uses the same segments often gives them as what `pack_segments` makes of them.
        """
        packed = segments if isinstance(segments, bytes) else pack_segments(segments)
        self.submit_one(op, sector, packed, _Single(done), None, sectors)

    def submit_one(
        self, op: int, sector: int, segments: bytes, pending: Pending, owner: Owner | None, sectors: int = 0
    ) -> None:
        """Queue a command by what `pack_segments` made, and who is told of its end.

        `owner` is told instead, perhaps of several at once, if all commands under way are its and all went well.
        """
        free, packed = self._free, self._packed
        if self._sole is not owner:
            self._sole = owner if len(free) == len(packed) and not self._waiting else None
        if not free and not self._grow():
            self._waiting.append((op, sector, segments, pending, sectors))
            return
        slot = free.pop()
        if segments is not packed[slot]:
            self._tables[slot].view[: len(segments)] = segments
            packed[slot] = segments
        produced = self._produced
        offset = (produced & _SLOT_MASK) * _COMMAND_SIZE
        _PACK(self._view, offset, op, 0, len(segments) >> 4, slot, sector, self._addresses[slot], sectors)
        self._under_way[slot] = pending
        self._produced = produced + 1 & U32

    def submit_all(self, commands: Sequence[tuple[int, int, bytes, Pending]], owner: Owner) -> None:
        """`submit_one` for many: operation, sector, segments and who is told of each."""
        free, packed, addresses, under_way = self._free, self._packed, self._addresses, self._under_way
        if self._sole is not owner:
            self._sole = owner if len(free) == len(packed) and not self._waiting else None
        produced = self._produced
        view, pack = self._view, _PACK
        for op, sector, segments, pending in commands:
            if not free and not self._grow():
                self._waiting.append((op, sector, segments, pending, 0))
                continue
            slot = free.pop()
            if segments is not packed[slot]:
                self._tables[slot].view[: len(segments)] = segments
                packed[slot] = segments
            under_way[slot] = pending
            offset = (produced & _SLOT_MASK) * _COMMAND_SIZE
            pack(view, offset, op, 0, len(segments) >> 4, slot, sector, addresses[slot], 0)
            produced += 1
        self._produced = produced & U32

    def afterwards(self, callback: Callable[[], None]) -> None:
        """Have this called once, when all completions that are being handed out have been. For `done` callbacks."""
        self._afterwards.append(callback)

    def kick(self) -> None:
        """Ring the doorbell for all that has been submitted."""
        outl = self._outl
        outl(self._doorbell, self._produced)

    def _grow(self) -> bool:
        """Make room for one more command under way, unless the queue is as long as it gets."""
        if len(self._tables) >= sheet.DISK_QUEUE_LENGTH:
            return False
        page = self._kernel.mm.alloc_page()
        self._free.append(len(self._tables))
        self._tables.append(page)
        self._addresses.append(page.mfn << 12)
        self._packed.append(b"")
        self._under_way.append(None)
        return True

    def _interrupt(self) -> None:
        """Hand out the completions that are new."""
        words = self._words
        header = words[0]
        if header >> 32 != self._changes:
            self._changes = header >> 32
            self._identify()
            if self._on_change is not None:
                self._on_change()
        produced = header & U32
        consumed = self._consumed
        if consumed != produced:
            self._consumed = produced
            # The 64 bits of a `disk_completion`: id, and a status that is 0 or negative.
            at = _FIRST_COMPLETION + (consumed & _COMPLETION_MASK)
            owner = self._sole
            if produced - consumed == 1 and owner is not None and (ident := words[at]) <= U32:
                # It is one, and the same as below.
                self._free.append(ident)
                owner.finished_one(self._under_way[ident])
            else:
                end = at + (produced - consumed & U32)
                idents = words[at : min(end, _END_OF_COMPLETIONS)].tolist()
                if end > _END_OF_COMPLETIONS:
                    idents += words[_FIRST_COMPLETION : end - _COMPLETION_SLOTS].tolist()
                self._hand_out(idents, owner)
        if self._afterwards:
            callbacks, self._afterwards = self._afterwards, []
            for callback in callbacks:
                callback()
        if self._waiting:
            while self._waiting and self._free:
                op, sector, packed, pending, sectors = self._waiting.popleft()
                self.submit_one(op, sector, packed, pending, self._sole, sectors)
            self.kick()

    def _hand_out(self, idents: list[int], owner: Owner | None) -> None:
        """Commands are done: a `disk_completion` each, as one word. `owner` has submitted them all, if it is known."""
        under_way, free = self._under_way, self._free
        if owner is not None and max(idents) <= U32:
            free += idents
            owner.finished(list(map(under_way.__getitem__, idents)))
            return
        for ident in idents:
            slot = ident & U32
            free.append(slot)
            under_way[slot].done((ident >> 32) - (1 << 32) if ident > U32 else 0)

    def close(self) -> None:
        """Give back the interrupt and the memory."""
        self._outl(self._base + sheet.DISK_RESET, 0)
        free_irq(self._kernel, self._port)
        for page in (self._commands, self._completions, *self._tables):
            self._kernel.mm.free_page(page)
        self._tables, self._addresses, self._packed, self._free, self._under_way = [], [], [], [], []
