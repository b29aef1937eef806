"""What a disk controller does with commands whose answers come from somewhere else, later.

At the doorbell all commands are asked for at once: what is to be written is taken out of memory then. What was read is
put into memory when the command is reported as done, and only if the unit may still access it. Between the two the
machine does other things.

In virtual time a group of commands is done when it would be on any other disk, so the same run has the same trace. If
an answer has not come by then, the host's time stands still until it is there: no guest sees a slow server, only the
people outside do. In real time each command is done when its answer is there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, final

from hypervisor.abi import device as sheet
from hypervisor.machine.backing import Pending, RemoteBacking, scatter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypervisor.machine.machine import Machine


Gathered = tuple[list[memoryview], list[int], list[tuple[Any, Any]], int]
"""Views of the segments, those that are neighbours in memory as one; their frames; what marks these in
`Memory.written`, as (index, 1) or (range of indices, ones); bytes altogether."""


class Controller(Protocol):
    """What executes no commands itself: see `DiskController`."""

    machine: Machine
    now: Callable[[], int]
    generation: int
    latency_ns: int
    ns_per_kib: int
    read_bytes: int
    written_bytes: int

    def take(self, producer: int) -> Iterable[tuple[int, ...]]:
        """Take the commands up to the driver's producer index."""
        ...

    def report(self, statuses: Sequence[tuple[int, int]]) -> None:
        """Report commands as done, each by its id and 0 or an errno."""
        ...

    def place(self, sector: int, sectors: int) -> tuple[int, int]:
        """Return where sectors are in the medium: offset and size in bytes."""
        ...

    def check_transfer(self, sector: int, size: int) -> tuple[int, int]:
        """Return (errno or 0, offset in bytes) of a transfer."""
        ...

    def check_without_data(self, op: int, sector: int, sectors: int) -> int:
        """Return what is wrong with a command that moves nothing: 0 or an errno."""
        ...

    def gather(self, count: int, table: int) -> Gathered | None:
        """Turn a segment table into views of memory."""
        ...

    def may_access(self, table: int, gathered: Gathered) -> bool:
        """Whether the unit may access, by now, a segment table and what it names."""
        ...


@final
class _Command:
    """A command of the driver's."""

    __slots__ = ("gathered", "generation", "ident", "pending", "status", "table")

    def __init__(self, ident: int, generation: int) -> None:
        self.ident = ident
        self.generation = generation
        """That of the controller at the doorbell."""
        self.status = 0
        """An errno if it could not even be asked for."""
        self.pending: Pending | None = None
        self.gathered: Gathered | None = None
        """Where to put what is read."""
        self.table = 0
        """Machine address of the segment table."""

    @property
    def done(self) -> bool:
        """Whether its answer is there."""
        return self.pending is None or not self.pending.left


@final
class RemoteCommands:
    """The commands of one controller whose medium is remote."""

    def __init__(self, disk: Controller, backing: RemoteBacking) -> None:
        self._disk = disk
        self.backing = backing
        self._under_way: list[_Command] = []
        """In real time: what has not been reported, in order."""
        self._open = 0
        """How many commands have been asked for and not concluded."""

    # -- for the host, in real time (`QuickEar`) --------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether answers are expected."""
        return self.backing.busy

    def fileno(self) -> int:
        """Return what is readable when `poll` has something to do."""
        return self.backing.fileno()

    def poll(self) -> bool:
        """Take the answers that are there, and report the commands that are done with them."""
        heard = self.backing.poll()
        if heard:
            self._report_done()
        return heard

    def catch_up(self) -> bool:
        """Nothing is left for later."""
        return False

    def patience(self) -> float:
        """Give a server up that has said nothing for too long; return in how many seconds to ask again."""
        left = self.backing.check_patience()
        self._report_done()
        return left

    # -- commands -------------------------------------------------------------------------------------------------

    def doorbell(self, _port: int, producer: int) -> None:
        """Ask for the commands up to the driver's producer index."""
        disk = self._disk
        commands: list[_Command] = []
        moved = 0
        for op, _, nr_segments, ident, sector, table, sectors in disk.take(producer):
            command = _Command(ident, disk.generation)
            command.table = table
            command.status, size = self._ask(command, op, nr_segments, sector, sectors)
            commands.append(command)
            self._open += command.pending is not None
            moved += size
        if not commands:
            return
        if not disk.machine.clock.real:
            deadline = disk.now() + disk.latency_ns + (moved * disk.ns_per_kib >> 10)
            disk.machine.timers.add(deadline, partial(self._come_due, commands))
            return
        self._under_way += commands
        self._report_done()

    def _ask(self, command: _Command, op: int, nr_segments: int, sector: int, sectors: int) -> tuple[int, int]:
        """Send one command to the medium; returns (errno or 0, bytes to be moved)."""
        backing, disk = self.backing, self._disk
        if self._open >= sheet.DISK_QUEUE_LENGTH:
            return errno.EBUSY, 0
        if op > sheet.DISK_WRITE:
            status = disk.check_without_data(op, sector, sectors)
            if not status and op == sheet.DISK_FLUSH:
                command.pending = backing.start(backing.FLUSH, 0, 0)
            elif not status:
                command.pending = backing.start(backing.DISCARD, *disk.place(sector, sectors))
            return status, 0
        if op and backing.readonly:
            return errno.EROFS, 0
        gathered = disk.gather(nr_segments, command.table)
        if gathered is None:
            return errno.EFAULT, 0
        views, _, _, size = gathered
        status, offset = disk.check_transfer(sector, size)
        if status:
            return status, 0
        if op:
            disk.written_bytes += size
            command.pending = backing.start(backing.WRITE, offset, size, b"".join(views))
        else:
            disk.read_bytes += size
            command.pending = backing.start(backing.READ, offset, size)
            command.gathered = gathered
        return 0, size

    def _come_due(self, commands: list[_Command]) -> None:
        """In virtual time: report commands as done, as soon as they are."""
        self.backing.wait([command.pending for command in commands if command.pending is not None])
        self._report(commands)

    def _report_done(self) -> None:
        """In real time: report what is done, in the order in which it was asked for."""
        done = [command for command in self._under_way if command.done]
        if done:
            self._under_way = [command for command in self._under_way if not command.done]
            self._report(done)

    def _report(self, commands: list[_Command]) -> None:
        """Report commands, but for those that were asked for before a reset: they are nobody's any more."""
        self._open -= sum(command.pending is not None for command in commands)
        generation = self._disk.generation
        statuses = [self._conclude(command) for command in commands if command.generation == generation]
        if statuses:
            self._disk.report(statuses)

    def _conclude(self, command: _Command) -> tuple[int, int]:
        """Put into memory what was read; returns id and errno of a command."""
        pending, gathered = command.pending, command.gathered
        status = command.status or (0 if pending is None else pending.status)
        if gathered is None or status or pending is None:
            return command.ident, status
        if not self._disk.may_access(command.table, gathered):
            return command.ident, errno.EFAULT
        scatter(pending, gathered[0])
        written = self._disk.machine.memory.written
        for frames, ones in gathered[2]:
            written[frames] = ones
        return command.ident, 0
