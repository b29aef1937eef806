"""Driver of the simulated machine's socket cards (abi.device)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, final

from guest_kernel.hw.errors import NoDeviceError
from guest_kernel.hw.irq import free_irq, request_irq
from guest_kernel.mm import PAGE_SHIFT, PAGE_SIZE
from hypervisor.abi import device as sheet
from hypervisor.abi.cpu import GeneralProtectionFault

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

ACCEPT, RECEIVE, SEND, CLOSE = sheet.SOCKET_ACCEPT, sheet.SOCKET_RECEIVE, sheet.SOCKET_SEND, sheet.SOCKET_CLOSE
LISTENER = sheet.SOCKET_LISTENER
MAX_SEGMENTS = sheet.SOCKET_MAX_SEGMENTS

Done = Callable[[int], None]
"""Called with the command's status (a number, or a negative errno), in upcall context or inside of `kick`."""

SEGMENT = sheet.socket_segment.codec
SEGMENT_SIZE = SEGMENT.size
U32 = 0xFFFFFFFF

_PACK = sheet.socket_command.codec.pack_into
_COMMAND_SIZE = sheet.socket_command.size
_SLOT_MASK = sheet.SOCKET_QUEUE_LENGTH - 1
_FIRST_COMPLETION = sheet.SOCKET_COMPLETIONS_OFFSET // sheet.socket_completion.size
_COMPLETION_MASK = sheet.SOCKET_COMPLETION_SLOTS - 1
_HUSH = sheet.SOCKET_HUSH_OFFSET // 4
_PRODUCER = sheet.SOCKET_PRODUCER_OFFSET // 4
assert (sheet.socket_completion.size, sheet.socket_completion.offset("status")) == (8, 4)


Run = tuple[int, int, int]
"""Of frames that are neighbours: their first byte among those of all pages, their machine address, their bytes."""


def runs_of(pages: Sequence[Page]) -> list[Run]:
    """Return where the bytes of some pages are in machine memory."""
    runs: list[Run] = []
    for index, page in enumerate(pages):
        maddr = page.mfn << PAGE_SHIFT
        if runs and runs[-1][1] + runs[-1][2] == maddr:
            start, first, length = runs[-1]
            runs[-1] = start, first, length + PAGE_SIZE
        else:
            runs.append((index << PAGE_SHIFT, maddr, PAGE_SIZE))
    return runs


def pack_runs(runs: Sequence[Run], start: int, end: int) -> bytes:
    """Return the bytes `start` to `end` of what lies there as segments."""
    packed = b""
    for first, maddr, length in runs:
        low, high = max(start - first, 0), min(end - first, length)
        if low < high:
            packed += SEGMENT.pack(maddr + low, high - low)
    return packed


@final
class PhysicalSocketCard:
    """One card. `submit` queues commands and `kick` starts them; those that find the queue full wait in the driver.

    To receive what may come at any time is no reason to ring the doorbell: that begins with the next one that is rung,
    or when the card finds it by itself.
    """

    def __init__(self, kernel: Kernel, unit: int) -> None:
        self._kernel = kernel
        self._outl = kernel.cpu.outl
        self._base = base = sheet.socket_port(unit)
        try:
            identity = kernel.cpu.inl(base + sheet.SOCKET_ID)
        except GeneralProtectionFault:
            raise NoDeviceError(f"this domain may not use socket card {unit}") from None
        if identity != sheet.SOCKET_MAGIC:
            raise NoDeviceError(f"there is no socket card {unit}")
        self._commands = kernel.mm.alloc_page()
        self._completions = kernel.mm.alloc_page()
        self._view = self._commands.view
        self._words = self._completions.q
        self._flags = self._completions.i
        self._doorbell = base + sheet.SOCKET_DOORBELL
        self._tables: list[Page] = []
        """Where the segments of each command under way are, by its id."""
        self._packed: list[bytes] = []
        self._free: list[int] = []
        self._done: list[Done | None] = []
        self._waiting: deque[tuple[int, int, bytes, int, Done]] = deque()
        self._produced = self._consumed = 0
        self._hurry = False
        """Whether something has been queued that the doorbell is to be rung for."""
        self._outl(base + sheet.SOCKET_RESET, 0)
        self._outl(base + sheet.SOCKET_COMMANDS, self._commands.mfn)
        self._outl(base + sheet.SOCKET_COMPLETIONS, self._completions.mfn)
        self._port = request_irq(kernel, sheet.socket_irq(unit), self._reap)

    def submit(self, op: int, connection: int, segments: bytes, done: Done, minimum: int = 1) -> None:
        """Queue a command (ACCEPT, RECEIVE, SEND, CLOSE). `done` is called once, inside of a `kick` or after it."""
        free = self._free
        if not free and not self._grow():
            self._waiting.append((op, connection, segments, minimum, done))
            return
        slot = free.pop()
        table = self._tables[slot]
        if segments is not self._packed[slot]:
            table.view[: len(segments)] = segments
            self._packed[slot] = segments
        _PACK(
            self._view,
            (self._produced & _SLOT_MASK) * _COMMAND_SIZE,
            op,
            0,
            len(segments) // SEGMENT_SIZE,
            slot,
            connection,
            minimum,
            table.mfn << PAGE_SHIFT,
            0,
        )
        self._done[slot] = done
        self._produced = self._produced + 1 & U32
        if op != RECEIVE or not minimum:
            self._hurry = True

    def kick(self) -> None:
        """Start all that has been submitted. What the card answers at once is handed out before this returns."""
        flags = self._flags
        while self._hurry:
            self._hurry = False
            flags[_HUSH] = 1
            self._outl(self._doorbell, self._produced)
            # In this order: what is answered after the look has its interrupt.
            flags[_HUSH] = 0
            self._reap()
        flags[_PRODUCER] = self._produced

    def _grow(self) -> bool:
        """Make room for one more command under way, unless the queue is as long as it gets."""
        if len(self._tables) >= sheet.SOCKET_QUEUE_LENGTH:
            return False
        page = self._kernel.mm.alloc_page()
        self._free.append(len(self._tables))
        self._tables.append(page)
        self._packed.append(b"")
        self._done.append(None)
        return True

    def _reap(self) -> None:
        """Hand out the completions that are new."""
        words, handlers, free = self._words, self._done, self._free
        # A handler may ring the doorbell, and so come here again: nothing is remembered from one round to the next.
        while self._consumed != words[0] & U32:
            word = words[_FIRST_COMPLETION + (self._consumed & _COMPLETION_MASK)]
            self._consumed = self._consumed + 1 & U32
            slot, status = word & U32, word >> 32
            done, handlers[slot] = handlers[slot], None
            free.append(slot)
            if done is not None:
                done(status - (1 << 32) if status >> 31 else status)
        if self._waiting:
            while self._waiting and free:
                op, connection, segments, minimum, done = self._waiting.popleft()
                self.submit(op, connection, segments, done, minimum)
            self.kick()

    def close(self) -> None:
        """Hang up on everybody; give back the interrupt and the memory."""
        self._outl(self._base + sheet.SOCKET_RESET, 0)
        free_irq(self._kernel, self._port)
        self._kernel.mm.free_pages_of((self._commands, self._completions, *self._tables))
        self._tables.clear()
