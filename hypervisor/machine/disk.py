"""Disk controllers: commands from a queue in memory, DMA straight to and from machine frames (abi.device)."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import chain
from struct import Struct
from struct import error as struct_error
from typing import Any, final

from hypervisor.abi import device as sheet
from hypervisor.errors import DeviceError
from hypervisor.machine.backing import Backing, RemoteBacking
from hypervisor.machine.machine import Machine
from hypervisor.machine.memory import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from hypervisor.machine.remote_disk import Gathered, RemoteCommands
from hypervisor.machine.timers import Timer

U32 = 0xFFFFFFFF

COMMAND = sheet.disk_command.codec
SEGMENT = sheet.disk_segment.codec
TABLES = tuple(Struct(f"{count * SEGMENT.size}s") for count in range(sheet.DISK_MAX_SEGMENTS + 1))
"""By number of segments: how to take the bytes of a segment table out of memory."""

COMMAND_SIZE, SEGMENT_SIZE = COMMAND.size, SEGMENT.size
_UNPACK = COMMAND.unpack_from
COMPLETION_SHIFT = 3
FIRST_COMPLETION = sheet.DISK_COMPLETIONS_OFFSET >> COMPLETION_SHIFT
assert (sheet.disk_completion.size, sheet.disk_completion.offset("status")) == (1 << COMPLETION_SHIFT, 4)
COMPLETION_MASK = sheet.DISK_COMPLETION_SLOTS - 1
assert not sheet.DISK_COMPLETION_SLOTS & COMPLETION_MASK
QUEUE_LENGTH = sheet.DISK_QUEUE_LENGTH
SLOT_MASK = QUEUE_LENGTH - 1
assert not QUEUE_LENGTH & SLOT_MASK

MOST_SECTORS = sheet.DISK_MAX_BYTES >> 9
"""Of one command."""
MOST_VIEWS = 1024
"""Of one transfer of a backing: what Linux takes (IOV_MAX)."""
KNOWN_TABLES = 4096
"""Segment tables whose meaning is remembered."""


def put_completions(q: memoryview, first: int, produced: int, words: Sequence[int]) -> int:
    """Put completions into their queue, which begins at `q[first]`; returns the producer index after them."""
    begin = first + (produced & COMPLETION_MASK)
    end = begin + len(words)
    if end <= first + sheet.DISK_COMPLETION_SLOTS:
        q[begin:end] = array("Q", words)
    else:
        for at, word in enumerate(words, produced):
            q[first + (at & COMPLETION_MASK)] = word
    return produced + len(words) & U32


@final
class _Completion:
    """Commands that are reported as done together. A controller has as many as were ever under way at once."""

    __slots__ = ("come", "controller", "generation", "timer", "words")

    def __init__(self, controller: DiskController) -> None:
        self.controller = controller
        self.words: int | list[int] = []
        """A `disk_completion` each, as one word; of a single one that word itself."""
        self.generation = 0
        """That of the controller when they were taken."""
        self.come = self._come
        self.timer = Timer(self.come)

    def _come(self) -> None:
        """Put them where the driver finds them, and tell it; unless there was a reset or an unplug in between.

        (Made once, as `come`: it is for a timer.)
        """
        controller, words = self.controller, self.words
        controller.spare.append(self)
        if self.generation != controller.generation:
            return
        q, i, written, first, header, page, interrupts, line = controller.reporting
        produced = controller.produced
        if type(words) is int:
            q[first + (produced & COMPLETION_MASK)] = words
            controller.produced = i[header] = produced + 1 & U32
        else:
            assert not isinstance(words, int)
            controller.produced = i[header] = put_completions(q, first, produced, words)
        written[page] = 1
        handler = interrupts.handlers.get(line)
        if handler is not None:
            handler()
        else:
            interrupts.raise_line(line)


class DiskController:
    """One unit with one disk.

    `latency_ns` is what a command takes apart from the movement of its data, `ns_per_kib` the movement itself; both
    count in virtual time only (in real time the disk is as fast as it is, unless its backing has a delay of its own).
    `iommu(line)` is asked at each doorbell what the unit may access: None for everything, or a predicate on frames; a
    command that touches another frame fails with EFAULT and moves nothing. `guarded` holds the lines for which it can
    be anything but None.
    """

    __slots__ = (
        "_allowed",
        "_b",
        "_changes",
        "_command_base",
        "_completion_base",
        "_consumed",
        "_flat",
        "_guarded",
        "_i",
        "_joins",
        "_known",
        "_line",
        "_medium_latency_ns",
        "_moving",
        "_pieces",
        "_ports",
        "_prompt",
        "_q",
        "_queue",
        "_raise_line",
        "_rearm",
        "_size",
        "_written",
        "backing",
        "commands",
        "generation",
        "iommu",
        "latency_ns",
        "machine",
        "now",
        "ns_per_kib",
        "produced",
        "read_bytes",
        "remote",
        "reporting",
        "sector_size",
        "sectors",
        "spare",
        "unit",
        "written_bytes",
    )

    def __init__(
        self,
        machine: Machine,
        unit: int,
        backing: Backing,
        *,
        latency_ns: int = 20_000,
        ns_per_kib: int = 250,
        iommu: Callable[[int], Callable[[int], bool] | None] = lambda line: None,
        guarded: Container[int] | None = None,
    ) -> None:
        if not 0 <= unit < sheet.DISK_UNITS:
            raise DeviceError(f"the machine has room for {sheet.DISK_UNITS} disks, not for disk {unit}")
        self.machine = machine
        machine.interrupts.plug_in(sheet.disk_irq(unit))
        self.unit = unit
        self._medium_latency_ns = latency_ns
        self.ns_per_kib = ns_per_kib
        self.iommu = iommu
        self.now: Callable[[], int] = machine.clock.read
        self.read_bytes = self.written_bytes = self.commands = 0
        self._consumed = self.produced = self._changes = 0
        self.generation = 0
        """Counts how often there was no queue of completions any more, as after a reset: what was begun before that is
        not reported.
        """
        self._known: dict[bytes, Gathered] = {}
        self._pieces: dict[bytes, tuple[memoryview, int, Any, Any] | None] = {}
        """Of tables that mean whole sectors in one piece of memory: that, its bytes, and what marks its frames. None of
        others."""
        self._line = sheet.disk_irq(unit)
        self._guarded = (self._line,) if guarded is None else guarded
        self._allowed: Callable[[int], bool] | None = None
        memory = machine.memory
        self._b, self._i, self._q, self._written = memory.b, memory.i, memory.q, memory.written
        self._rearm, self._raise_line = machine.timers.rearm, machine.interrupts.raise_line
        self.spare: list[_Completion] = []
        """Those that are not under way."""
        self._ports = machine.ports.map(
            sheet.disk_port(unit), sheet.DISK_PORT_COUNT, self._read_register, self._write_register
        )
        self._forget_queues()
        self._use(backing)

    def _use(self, backing: Backing) -> None:
        self.backing = backing
        self.remote = RemoteCommands(self, backing) if isinstance(backing, RemoteBacking) else None
        """Who executes the commands where that is done somewhere else."""
        doorbell = self._doorbell if self.remote is None else self.remote.doorbell
        self.machine.ports.writers[self._ports.base + sheet.DISK_DOORBELL] = doorbell
        self._measure()

    def _measure(self) -> None:
        """See how large the medium is, and how fast."""
        backing = self.backing
        self.sector_size = backing.sector_size
        self.sectors = backing.size // self.sector_size
        self.latency_ns = self._medium_latency_ns + backing.delay_ns
        self._prompt = self.machine.clock.real and not backing.delay_ns
        self._joins = backing.joins
        self._flat = backing.flat
        self._size = self.sectors * self.sector_size
        last = sheet.DISK_READ if backing.readonly else sheet.DISK_WRITE
        # What each doorbell looks up; unpacking a tuple costs as much as one attribute. `last`: operations up to this
        # one move data of this medium.
        memory, moving = self.machine.memory, (last, self.sector_size, self._size, backing.readv, backing.writev)
        self._moving = (self._known, memory, memory.b, *moving, self._line, self._guarded)

    def exchange(self, backing: Backing) -> None:
        """Put another medium in the place of this one, with sectors of the same size.

        What is under way at a remote one fails; whoever is the driver sees another capacity.
        """
        self.backing.close()
        if self.remote is not None:
            self.remote.patience()
        self._use(backing)
        self._tell_change()

    def resize(self, sectors: int) -> int:
        """Give the medium another capacity and tell the driver; returns 0 or an errno of the backing."""
        status = self.backing.resize(sectors * self.sector_size)
        if not status:
            self._measure()
            self._tell_change()
        return status

    def _tell_change(self) -> None:
        """Count one more change of the medium where the driver sees it, if there is one."""
        base = self._completion_base
        if base:
            self._changes = self._changes + 1 & U32
            self._i[(base >> 2) + 1] = self._changes
            self._written[base >> PAGE_SHIFT] = 1
            self._raise_line(self._line)

    def unplug(self) -> None:
        """Take the disk out of the machine; commands under way are lost, as when a cable is pulled."""
        self.generation += 1
        self.machine.ports.unmap(self._ports)
        self.backing.close()

    # -- registers ------------------------------------------------------------------------------------------------

    def _read_register(self, port: int) -> int:
        registers = {
            sheet.DISK_ID: sheet.DISK_MAGIC,
            sheet.DISK_FLAGS: sheet.DISK_FLAG_READONLY * self.backing.readonly
            | sheet.DISK_FLAG_DISCARD * self.backing.discards
            | sheet.DISK_FLAG_SECURE_DISCARD * self.backing.discards_securely,
            sheet.DISK_SECTORS_LOW: self.sectors & U32,
            sheet.DISK_SECTORS_HIGH: self.sectors >> 32,
            sheet.DISK_SECTOR_SIZE: self.sector_size,
            sheet.DISK_PHYSICAL_SECTOR_SIZE: self.backing.physical_sector_size,
        }
        return registers.get(port - self._ports.base, 0)

    def _write_register(self, port: int, value: int) -> None:
        register = port - self._ports.base
        if register == sheet.DISK_COMMANDS:
            self._command_base = self._frame_base(value)
            self._queue = self._command_base if self._completion_base else 0
        elif register == sheet.DISK_COMPLETIONS:
            self._place_completions(self._frame_base(value))
        elif register == sheet.DISK_RESET:
            self._forget_queues()

    def _forget_queues(self) -> None:
        """Have no queues, as after a reset."""
        self._consumed = self.produced = self._changes = 0
        self._command_base = self._queue = 0
        self._place_completions(0)

    def _place_completions(self, base: int) -> None:
        """Let completions be put at a machine address; 0 for nowhere."""
        self._completion_base = base
        self._queue = self._command_base if base else 0
        if not base:
            self.generation += 1
        # What `_Completion` looks up.
        places = (base >> COMPLETION_SHIFT) + FIRST_COMPLETION, base >> 2, base >> PAGE_SHIFT
        self.reporting = (self._q, self._i, self._written, *places, self.machine.interrupts, self._line)

    def _frame_base(self, mfn: int) -> int:
        """Return the machine address of a queue's frame; 0 (no queue) if there is no such frame or no access to it."""
        allowed = self.iommu(sheet.disk_irq(self.unit))
        if mfn >= self.machine.memory.frames or (allowed is not None and not allowed(mfn)):
            return 0
        return mfn * PAGE_SIZE

    # -- commands -------------------------------------------------------------------------------------------------

    def _doorbell(self, _port: int, producer: int) -> None:
        """Execute the commands up to the driver's producer index; their completions come together, after a while.

        The usual case of `_execute_all` is written out: one command, which moves data by a table that is well known, of
        a unit that may access everything.
        """
        known, memory, b, last, sector_size, limit, readv, writev, line, guarded = self._moving
        base, consumed = self._queue, self._consumed
        if producer - consumed != 1 or not base or line in guarded:
            self._execute_all(producer)
            return
        at = base + (consumed & SLOT_MASK) * COMMAND_SIZE
        op, _, nr_segments, ident, sector, segments, _ = _UNPACK(b, at)
        if op > last or (segments & PAGE_MASK) + nr_segments * SEGMENT_SIZE > PAGE_SIZE:
            self._execute_all(producer)
            return
        try:
            gathered = known.get(TABLES[nr_segments].unpack_from(b, segments)[0])
        except (struct_error, OverflowError):
            gathered = None  # there is no such memory, as `_execute` will find
        if gathered is None:
            self._execute_all(producer)
            return
        views, _, marks, size = gathered
        offset = sector * sector_size
        if size % sector_size or offset + size > limit:
            self._execute_all(producer)
            return
        if op:
            status = writev(views, offset, size)
            self.written_bytes += size
        else:
            status = readv(views, offset, size)
            if memory.watched:
                for frames, ones in marks:
                    memory.written[frames] = ones
            self.read_bytes += size
        self._consumed = producer
        self.commands += 1
        # `_report_later`, written out.
        spare = self.spare
        completion = spare.pop() if spare else _Completion(self)
        completion.words = (-status & U32) << 32 | ident if status else ident
        completion.generation = self.generation
        if self._prompt:
            completion.come()
        else:
            now, rearm = self.now, self._rearm
            rearm(completion.timer, now() + self.latency_ns + (size * self.ns_per_kib >> 10), completion.come)

    def _report_later(self, words: list[int], moved: int) -> None:
        """Report commands as done once the medium has had its time for them and for moving so many bytes."""
        completion = self.spare.pop() if self.spare else _Completion(self)
        completion.words = words
        completion.generation = self.generation
        if self._prompt:
            completion.come()
        else:
            deadline = self.now() + self.latency_ns + (moved * self.ns_per_kib >> 10)
            self._rearm(completion.timer, deadline, completion.come)

    def _execute_all(self, producer: int) -> None:
        """Execute the commands up to a producer index, if there is a queue and the index is no nonsense."""
        first = self._consumed
        count = producer - first & U32
        if not self._queue or not 0 < count <= QUEUE_LENGTH:
            return
        known, memory, b, last, sector_size, limit, readv, writev, line, guarded = self._moving
        written = memory.written if memory.watched else None
        if line in guarded:
            self._allowed = self.iommu(line)
            if self._allowed is not None:
                last = -1
        else:
            self._allowed = None
        done: list[int] = []
        read = wrote = 0
        commands, moved = self._several(first, count, done) if count > 1 else (self._commands(first, 1), 0)
        for op, _, nr_segments, ident, sector, segments, sectors in commands:
            if op <= last and (segments & PAGE_MASK) + nr_segments * SEGMENT_SIZE <= PAGE_SIZE:
                # The usual case of `_execute`, written out: a transfer by a table that is well known, of a unit that
                # may access everything.
                try:
                    gathered = known.get(TABLES[nr_segments].unpack_from(b, segments)[0])
                except (struct_error, OverflowError):
                    gathered = None  # there is no such memory, as `_execute` will find
                if gathered is not None:
                    views, _, marks, size = gathered
                    offset = sector * sector_size
                    if not size % sector_size and offset + size <= limit:
                        if op:
                            status = writev(views, offset, size)
                            wrote += size
                        else:
                            status = readv(views, offset, size)
                            if written is not None:
                                for frames, ones in marks:
                                    written[frames] = ones
                            read += size
                        done.append((-status & U32) << 32 | ident if status else ident)
                        continue
            status, size = self._execute(op, nr_segments, sector, segments, sectors)
            done.append((-status & U32) << 32 | ident if status else ident)
            moved += size
        self._consumed = producer
        self.commands += count
        self.read_bytes += read
        self.written_bytes += wrote
        self._report_later(done, moved + read + wrote)

    def _several(self, first: int, count: int, done: list[int]) -> tuple[Iterable[tuple[int, ...]], int]:
        """Return several commands to be executed one by one, and how many bytes of others were moved at once."""
        commands = self._commands(first, count)
        if self._flat is not None:
            return (), self._execute_flat(commands, done, self._flat)
        if self._joins:
            commands = list(commands)
            # Whether there are neighbours is worth a look only if the first two can be.
            if 0 < commands[1][4] - commands[0][4] <= MOST_SECTORS and commands[0][0] == commands[1][0]:
                return (), self._execute_joined(commands, done)
        return commands, 0

    def _execute_flat(self, commands: Iterable[tuple[int, ...]], done: list[int], flat: memoryview) -> int:
        """The loop of `_doorbell` for a medium that is memory; returns bytes moved."""
        _, memory, b, last, sector_size, limit, _, _, _, _ = self._moving
        written = memory.written if memory.watched else None
        pieces = self._pieces
        if self._allowed is not None:
            last = -1
        memory_end = len(b)
        read = wrote = moved = 0
        for op, _, nr_segments, ident, sector, segments, sectors in commands:
            room = PAGE_SIZE - (segments & PAGE_MASK)
            if op <= last and segments < memory_end and nr_segments * SEGMENT_SIZE <= room:
                raw = TABLES[nr_segments].unpack_from(b, segments)[0]
                piece = pieces.get(raw)
                if piece is not None:
                    view, size, frames, ones = piece
                    offset = sector * sector_size
                    end = offset + size
                    if end <= limit:
                        if op:
                            flat[offset:end] = view
                            wrote += size
                        else:
                            view[:] = flat[offset:end]
                            if written is not None:
                                written[frames] = ones
                            read += size
                        done.append(ident)
                        continue
                elif raw not in pieces:
                    self._learn_piece(nr_segments, segments, raw)
            status, size = self._execute(op, nr_segments, sector, segments, sectors)
            done.append((-status & U32) << 32 | ident if status else ident)
            moved += size
        self.read_bytes += read
        self.written_bytes += wrote
        return moved + read + wrote

    def _learn_piece(self, nr_segments: int, segments: int, raw: bytes) -> None:
        """Remember of a segment table in memory, whose bytes are `raw`, whether it is whole sectors in one piece."""
        gathered = self.gather(nr_segments, segments)
        if gathered is not None:
            (view, *others), _, (mark, *_), size = gathered
            if len(self._pieces) >= KNOWN_TABLES:
                self._pieces.clear()
            self._pieces[raw] = None if others or size % self.sector_size else (view, size, *mark)

    def _execute_joined(self, commands: Iterable[tuple[int, ...]], done: list[int]) -> int:
        """The loop of `_doorbell` for a backing where transfers that are neighbours are better moved at once; returns
        bytes moved. The ends come in the order of the commands.
        """
        known, memory, b, last, sector_size, limit, _, _, _, _ = self._moving
        written = memory.written if memory.watched else None
        if self._allowed is not None:
            last = -1
        memory_end = len(b)
        moved = kind = start = 0
        end = -1
        views: list[memoryview] = []
        parts: list[tuple[int, list[memoryview], int]] = []
        for op, _, nr_segments, ident, sector, segments, sectors in commands:
            if (
                op <= last
                and segments < memory_end
                and (segments & PAGE_MASK) + nr_segments * SEGMENT_SIZE <= PAGE_SIZE
            ):
                gathered = known.get(TABLES[nr_segments].unpack_from(b, segments)[0])
                if gathered is not None:
                    part, _, marks, size = gathered
                    offset = sector * sector_size
                    if not size % sector_size and offset + size <= limit:
                        if offset == end and op == kind and len(views) + len(part) <= MOST_VIEWS:
                            views = views + part
                        else:
                            if parts:
                                moved += self._move(kind, start, views, parts, done)
                                parts.clear()
                            views, start, kind = part, offset, op
                        parts.append((ident, part, size))
                        end = offset + size
                        if not op and written is not None:
                            for frames, ones in marks:
                                written[frames] = ones
                        continue
            if parts:
                moved += self._move(kind, start, views, parts, done)
                parts.clear()
                end = -1
            status, size = self._execute(op, nr_segments, sector, segments, sectors)
            done.append((-status & U32) << 32 | ident if status else ident)
            moved += size
        if parts:
            moved += self._move(kind, start, views, parts, done)
        return moved

    def _move(
        self,
        op: int,
        offset: int,
        views: list[memoryview],
        parts: Sequence[tuple[int, list[memoryview], int]],
        done: list[int],
    ) -> int:
        """Move the data of commands that are neighbours, from a byte of the medium on; returns how many bytes.

        `parts`: id, views and bytes of each command. Should the whole fail, only those fail that are at fault.
        """
        backing = self.backing
        size = sum([size for _, _, size in parts])
        if op:
            self.written_bytes += size
            move = backing.writev
        else:
            self.read_bytes += size
            move = backing.readv
        status = move(views, offset, size)
        if not status:
            done += [ident for ident, _, _ in parts]
        elif len(parts) == 1:
            done.append((-status & U32) << 32 | parts[0][0])
        else:
            for ident, part, count in parts:
                status = move(part, offset, count)
                done.append((-status & U32) << 32 | ident)
                offset += count
        return size

    def _commands(self, first: int, count: int) -> Iterable[tuple[int, ...]]:
        """Read commands from the queue, each when it is wanted: the fields of a `disk_command`."""
        b, base, begin = self._b, self._command_base, first & SLOT_MASK
        low = base + begin * COMMAND_SIZE
        end = begin + count
        if end <= QUEUE_LENGTH:
            return COMMAND.iter_unpack(b[low : low + count * COMMAND_SIZE])
        around = COMMAND.iter_unpack(b[base : base + (end - QUEUE_LENGTH) * COMMAND_SIZE])
        return chain(COMMAND.iter_unpack(b[low : base + QUEUE_LENGTH * COMMAND_SIZE]), around)

    def _execute(self, op: int, nr_segments: int, sector: int, segments: int, sectors: int) -> tuple[int, int]:
        """Carry out one command; returns (errno or 0, bytes moved)."""
        if op:
            if op > sheet.DISK_WRITE:
                return self._execute_without_data(op, sector, sectors), 0
            if self.backing.readonly:
                return errno.EROFS, 0
        gathered = self.gather(nr_segments, segments)
        if gathered is None:
            return errno.EFAULT, 0
        views, _, marks, size = gathered
        sector_size = self.sector_size
        offset = sector * sector_size
        if size % sector_size or offset + size > self._size:
            return errno.EINVAL, 0
        if op:
            self.written_bytes += size
            return self.backing.writev(views, offset, size), size
        status = self.backing.readv(views, offset, size)
        written = self._written
        for frames, ones in marks:
            written[frames] = ones
        self.read_bytes += size
        return status, size

    def _execute_without_data(self, op: int, sector: int, sectors: int) -> int:
        """Carry out a command that moves nothing; returns 0 or an errno."""
        status = self.check_without_data(op, sector, sectors)
        if status:
            return status
        if op == sheet.DISK_FLUSH:
            return self.backing.flush()
        discard = self.backing.discard if op == sheet.DISK_DISCARD else self.backing.discard_securely
        return discard(*self.place(sector, sectors))

    # -- what commands have in common, wherever they are executed ---------------------------------------------------

    def take(self, producer: int) -> list[tuple[int, ...]]:
        """Take the commands up to the driver's producer index: the fields of each `disk_command`."""
        consumed, base = self._consumed, self._queue
        pending = producer - consumed & U32
        if not base or pending > QUEUE_LENGTH:
            return []
        self._allowed = self.iommu(self._line)
        self._consumed = producer & U32
        self.commands += pending
        return list(self._commands(consumed, pending))

    def report(self, statuses: Sequence[tuple[int, int]]) -> None:
        """Report commands as done, each by its id and 0 or an errno."""
        spare = self.spare
        completion = spare.pop() if spare else _Completion(self)
        completion.words = [(-status & U32) << 32 | ident if status else ident for ident, status in statuses]
        completion.generation = self.generation
        completion.come()

    def place(self, sector: int, sectors: int) -> tuple[int, int]:
        """Return where sectors are in the medium: offset and size in bytes."""
        return sector * self.sector_size, sectors * self.sector_size

    def check_transfer(self, sector: int, size: int) -> tuple[int, int]:
        """Return (errno or 0, offset in bytes) of a transfer."""
        offset = sector * self.sector_size
        return errno.EINVAL if size % self.sector_size or offset + size > self._size else 0, offset

    def check_without_data(self, op: int, sector: int, sectors: int) -> int:
        """Return what is wrong with a command that moves nothing: 0 or an errno."""
        if op == sheet.DISK_FLUSH:
            return 0
        backing = self.backing
        can = {sheet.DISK_DISCARD: backing.discards, sheet.DISK_SECURE_DISCARD: backing.discards_securely}
        if not can.get(op):
            return errno.EOPNOTSUPP
        return errno.EINVAL if not sectors or sector + sectors > self.sectors else 0

    def may_access(self, table: int, gathered: Gathered) -> bool:
        """Whether the unit may access, by now, a segment table and what it names."""
        allowed = self.iommu(self._line)
        return allowed is None or (allowed(table // PAGE_SIZE) and all(map(allowed, gathered[1])))

    def gather(self, count: int, table: int) -> Gathered | None:
        """Turn a segment table into views of memory; None if some address is not there or not allowed.

        The table is read once. What its bytes mean is remembered, for drivers use the same memory again and again;
        whether the unit may touch that memory is asked each time.
        """
        memory = self.machine.memory
        size = count * SEGMENT.size
        if (
            not 0 < count <= sheet.DISK_MAX_SEGMENTS
            or table >= memory.frames * PAGE_SIZE
            or size > PAGE_SIZE - (table & PAGE_MASK)
        ):
            return None
        raw = bytes(memory.b[table : table + size])
        gathered = self._known.get(raw)
        if gathered is None:
            gathered = self._parse(raw)
            if gathered is None:
                return None
            if len(self._known) >= KNOWN_TABLES:
                self._known.clear()
            self._known[raw] = gathered
        allowed = self._allowed
        if allowed is not None and not (allowed(table // PAGE_SIZE) and all(map(allowed, gathered[1]))):
            return None
        return gathered

    def _parse(self, raw: bytes) -> Gathered | None:
        """Return what a segment table means; None if some address is not there."""
        limit = self.machine.memory.frames * PAGE_SIZE
        runs: list[tuple[int, int]] = []
        frames: list[int] = []
        room = sheet.DISK_MAX_BYTES
        for maddr, length in SEGMENT.iter_unpack(raw):
            room -= length
            if not length or room < 0 or maddr + length > limit:
                return None
            frames.extend(range(maddr >> PAGE_SHIFT, (maddr + length - 1 >> PAGE_SHIFT) + 1))
            if runs and runs[-1][1] == maddr:
                runs[-1] = runs[-1][0], maddr + length
            else:
                runs.append((maddr, maddr + length))
        b = self.machine.memory.b
        views = [b[start:end] for start, end in runs]
        marks = [mark_of(start >> PAGE_SHIFT, end - 1 >> PAGE_SHIFT) for start, end in runs]
        return views, frames, marks, sum(end - start for start, end in runs)


def mark_of(first: int, last: int) -> tuple[Any, Any]:
    """Return the index and the value with which frames are marked in `Memory.written`."""
    return (first, 1) if first == last else (slice(first, last + 1), bytes([1]) * (last + 1 - first))
