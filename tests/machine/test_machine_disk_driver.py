"""The guest kernel's driver of a disk on the real controller: who is told of the end of which command, and how."""

import errno
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from guest_kernel.hw.disk import READ, WRITE, PhysicalDisk, pack_segments
from hypervisor.abi import device as sheet
from hypervisor.machine.backing import MemoryDisk
from hypervisor.machine.disk import DiskController
from hypervisor.machine.machine import Machine
from hypervisor.machine.memory import PAGE_SHIFT

SECTORS = 4096
PAGES = 200
Ends = list[tuple[Any, int]]


class Kernel:
    """What the driver needs of a kernel: ports, pages, an interrupt."""

    is_initial_domain = False

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cpu = SimpleNamespace(outl=machine.ports.outl, inl=machine.ports.inl)
        self.mm = self.events = self
        self.pages = 0

    def alloc_page(self) -> Any:
        self.pages += 1
        view = self.machine.memory.frame(self.pages)
        return SimpleNamespace(mfn=self.pages, view=view, q=view.cast("Q"))

    def bind_pirq(self, line: int, handler: Callable[[], None], *, share: bool = True) -> int:
        self.machine.interrupts.connect(line, handler)
        return line

    def free_page(self, page: Any) -> None:
        self.pages -= 1

    def unbind(self, port: int) -> None:
        self.machine.interrupts.disconnect(port)

    def settle(self) -> None:
        """Let all that is under way be done."""
        while (timer := self.machine.timers.pop_due(1 << 62)) is not None:
            assert timer.function is not None
            timer.function()


class Command:
    """A command of an owner."""

    def __init__(self, owner: "Owner", op: int, sector: int, page: Any) -> None:
        self.owner = owner
        self.op = op
        self.sector = sector
        self.page = page
        self.segments = pack_segments([(page.mfn << PAGE_SHIFT, 4096)])

    def done(self, status: int) -> None:
        self.owner.ends.append((self, status))


class Owner:
    """Somebody with many commands."""

    def __init__(self) -> None:
        self.ends: Ends = []
        self.batches: list[int] = []

    def finished_one(self, command: Command) -> None:
        self.finished([command])

    def finished(self, commands: Sequence[Command]) -> None:
        assert all(command.owner is self for command in commands)
        self.batches.append(len(commands))
        self.ends += [(command, 0) for command in commands]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(Machine(memory_mib=4))


def plug(kernel: Kernel) -> tuple[MemoryDisk, PhysicalDisk]:
    backing = MemoryDisk(SECTORS * 512)
    DiskController(kernel.machine, 0, backing)
    return backing, PhysicalDisk(kernel, 0)  # type: ignore[arg-type]


def test_an_owner_that_is_alone_hears_of_batches(kernel: Kernel) -> None:
    _, disk = plug(kernel)
    owner, page = Owner(), kernel.alloc_page()
    for count in (1, 5, 2 * sheet.DISK_QUEUE_LENGTH + 7):
        commands = [Command(owner, READ, 8 * number % 4000, page) for number in range(count)]
        disk.submit_all([(c.op, c.sector, c.segments, c) for c in commands], owner)
        disk.kick()
        kernel.settle()
        assert [command for command, _ in owner.ends] == commands
        owner.ends.clear()
    assert owner.batches == [1, 5, 128, 128, 7]


def test_an_error_is_told_alone(kernel: Kernel) -> None:
    _, disk = plug(kernel)
    owner, page = Owner(), kernel.alloc_page()
    commands = [Command(owner, READ, sector, page) for sector in (0, SECTORS, 8)]
    disk.submit_all([(c.op, c.sector, c.segments, c) for c in commands], owner)
    disk.kick()
    kernel.settle()
    assert owner.ends == [(commands[0], 0), (commands[1], -errno.EINVAL), (commands[2], 0)]
    assert not owner.batches


@pytest.mark.parametrize("seed", range(12))
def test_every_command_ends_once_and_with_its_owner(kernel: Kernel, seed: int) -> None:
    backing, disk = plug(kernel)
    rng = random.Random(seed)
    owners, single = [Owner(), Owner()], Owner()
    pages = [kernel.alloc_page() for _ in range(PAGES)]
    free = list(range(PAGES))
    expected: Ends = []
    model = bytearray(SECTORS * 512)
    places: dict[int, int] = {}
    for turn in range(60):
        batch = []
        owner = rng.choice([*owners, single])
        for _ in range(min(rng.choice([1, 1, 3, 40, 90]), len(free))):
            number = free.pop()
            sector = 8 * number if rng.random() < 0.97 else SECTORS - 4
            command = Command(owner, rng.choice([READ, WRITE]), sector, pages[number])
            places[id(command)] = number
            data = rng.randbytes(4096)
            pages[number].view[:] = data
            good = sector != SECTORS - 4
            if good and command.op == WRITE:
                model[sector * 512 : sector * 512 + 4096] = data
            expected.append((command, 0 if good else -errno.EINVAL))
            batch.append(command)
        if owner is single:
            for command in batch:
                disk.submit(command.op, command.sector, command.segments, command.done)
        elif len(batch) == 1:
            disk.submit_one(batch[0].op, batch[0].sector, batch[0].segments, batch[0], owner)
        else:
            disk.submit_all([(c.op, c.sector, c.segments, c) for c in batch], owner)
        if rng.random() < 0.6:
            disk.kick()
        if rng.random() < 0.3 or turn == 59:
            disk.kick()
            kernel.settle()
            ends = [end for one in (*owners, single) for end in one.ends]
            key = {id(command): number for number, (command, _) in enumerate(expected)}
            assert sorted(ends, key=lambda end: key[id(end[0])]) == expected
            for command, status in expected:
                if command.op == READ and not status:
                    at = command.sector * 512
                    assert command.page.view == model[at : at + 4096]
                free.append(places[id(command)])
            for one in (*owners, single):
                one.ends.clear()
            expected.clear()
    assert not expected
    assert bytes(backing._bytes) == model
    assert any(owner.batches for owner in owners)
