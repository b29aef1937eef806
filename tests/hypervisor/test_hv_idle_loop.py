"""`yield ready`: the idle loop of a guest in Python is an instruction, and looks from outside like the loop."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from core_world import MS, SCHED_OP, Guest, World
from test_hv_scheduler import make_world

from hypervisor.abi import sched, xen
from hypervisor.abi.tracepoints import DESCHEDULE, HYPERCALL
from hypervisor.sched.costs import OFF, Costs
from hypervisor.trace import TraceWriter, read_records
from hypervisor.vcpu import AWAKE, VPF_BLOCKED

VERSION = xen.HYPERVISOR_xen_version
Idle = Callable[[Any, deque[int]], Any]


def as_instruction(_cpu: Any, ready: deque[int]) -> Any:
    """Wait for something to do."""
    while not ready:
        yield ready


def as_loop(cpu: Any, ready: deque[int]) -> Any:
    """The same, written out as the documentation of `Run` says."""
    while not ready:
        cpu.hypercall(SCHED_OP, sched.SCHEDOP_block)
        yield 0


class Restless:
    """A guest whose handler finds work for its kernel now and then, or does this and that by itself."""

    def __init__(self, guest: Guest, dice: random.Random, idle: Idle, *, fifo: bool) -> None:
        self.guest, self.dice, self.idle, self.fifo = guest, dice, idle, fifo
        self.ports: list[int] = []
        self.ready: deque[int] = deque(range(20))

    def take_events(self) -> None:
        if not self.fifo:
            self.guest.acknowledge()
            return
        self.guest.set_upcall_pending(0)
        words = self.guest.hv.memory.i
        words[self.guest.vcpus[0].event_queues[0].ready_at] = 0
        for channel in self.guest.domain.ports:
            words[channel.word_at] = 0

    def handler(self) -> None:
        self.take_events()
        for weight, act in (
            (3, lambda: self.ready.append(self.dice.randrange(4))),
            (2, self.send),
            # An upcall may be pending when it returns, in Xen's way or another, under a mask or not.
            (1, lambda: self.guest.set_upcall_pending(self.dice.choice((1, 7)))),
            (1, lambda: self.guest.set_upcall_mask(self.dice.choice((0, 1, 3)))),
            (1, self.guest.block),
        ):
            if self.dice.randrange(8) < weight:
                act()
                return

    def send(self) -> None:
        self.guest.send(self.dice.choice(self.ports))

    def program(self, cpu: Any) -> Any:
        dice = self.dice
        while True:
            yield from self.idle(cpu, self.ready)
            what = self.ready.popleft() % 4
            if what == 0:
                self.send()
            elif what == 1:
                yield dice.randrange(30_000)
            elif what == 2:
                cpu.hypercall(xen.HYPERVISOR_set_timer_op, cpu.rdtsc() + dice.randrange(1, 90_000))
            else:
                self.guest.set_upcall_pending(1)
            if dice.random() < 0.2:
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_yield, 0)
                yield 0
            elif dice.random() < 0.2:
                self.guest.poll([], timeout=cpu.rdtsc() + 5_000)
                yield 0


def scene(world: World, seed: int, fifo: bool, idle: Idle, step: int) -> list[tuple[int, ...]]:
    """Let three such guests live for 4 ms, but for one that is killed; returns the accounts of their vCPUs."""
    dice = random.Random(seed)
    guests = [world.guest() for _ in range(3)]
    restless = [Restless(guest, dice, idle, fifo=fifo) for guest in guests]
    for guest in guests:
        if fifo:
            guest.use_fifo()
    for one, other in ((0, 1), (1, 2), (2, 0)):
        remote = guests[one].alloc(other)
        restless[one].ports.append(remote)
        restless[other].ports.append(guests[other].bind(one, remote))
    for guest, life in zip(guests, restless, strict=True):
        guest.virq(xen.VIRQ_TIMER)
        guest.runs(life.program, handler=life.handler)
    world.hv.timers.add(2 * MS, lambda: world.hv.domain_ops.kill(guests[2].domain))

    def disturb(number: int) -> Callable[[], None]:
        domain = guests[number % 2].domain
        return lambda: domain.set_pending(domain.ports[1])

    for number in range(40):
        world.hv.timers.add((number + 1) * MS // 10, disturb(number))
    for _ in range(20_000 // step):
        if world.hv.now() > 4 * MS:
            break
        world.hv.sched.drain(step)
    vcpus = [guest.vcpus[0] for guest in guests]
    return [(v.hypercalls, v.time_running, v.time_runnable, v.time_offline, v.pause_flags) for v in vcpus]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fifo", [False, True], ids=["two-level", "fifo"])
@pytest.mark.parametrize("pcpus", [1, 2])
@pytest.mark.parametrize("costs", [Costs(), OFF, Costs(hypercalls={29: 500})], ids=["usual", "off", "extra"])
@pytest.mark.parametrize("step", [1, 1000])
def test_it_looks_like_the_loop(tmp_path: Path, seed: int, fifo: bool, pcpus: int, costs: Costs, step: int) -> None:
    """Traces and accounts are those of the loop, with a tape, without one, and without a trace."""
    accounts, told = set(), []
    for idle in (as_loop, as_instruction):
        for taped in (True, False):
            path = tmp_path / "trace"
            with TraceWriter(path.open("wb"), seed=0) as writer:
                world = make_world(writer, taped, pcpus=pcpus, costs=costs)
                accounts.add(tuple(scene(world, seed, fifo, idle, step)))
            told.append(list(read_records(path)))
        accounts.add(tuple(scene(make_world(pcpus=pcpus, costs=costs), seed, fifo, idle, step)))
    assert len(accounts) == 1
    assert all(records == told[0] for records in told[1:])
    blocks = [record for record in told[0] if record[3] == HYPERCALL and record[4:6] == [29, sched.SCHEDOP_block]]
    assert len(blocks) > 30
    assert len([record for record in told[0] if record[3] == DESCHEDULE]) > 30


def test_a_kernel_is_not_entered_while_there_is_nothing_to_do(world: World) -> None:
    world.guest()
    guest = world.guest()
    ready: deque[int] = deque()
    turns, upcalls = [], []

    def handler() -> None:
        guest.acknowledge()
        upcalls.append(world.hv.now())
        if len(upcalls) == 5:
            ready.append(1)

    def program(_cpu: Any) -> Any:
        while True:
            turns.append(world.hv.now())
            yield ready
            ready.clear()

    guest.set_upcall_mask(0)
    port = guest.ipi()
    guest.runs(program, handler=handler)
    for n in range(9):
        world.hv.timers.add((n + 1) * 100_000, lambda: guest.domain.set_pending(guest.domain.ports[port]))
    world.run(until=MS)
    assert len(upcalls) == 9
    assert len(turns) == 2
    assert upcalls[4] <= turns[1] < upcalls[5]
    assert guest.vcpus[0].pause_flags == VPF_BLOCKED


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("form", ["killed", "shut down", "reset"])
def test_a_domain_that_ends_in_its_own_stretch_idles_no_more(form: str, step: int) -> None:
    """It yields `ready` after it has gone: it is neither blocked nor entered again."""
    world = make_world()
    dom0, guest = world.guest(), world.guest()
    turns = []

    def program(cpu: Any) -> Any:
        ready: deque[int] = deque()
        turns.append(1)
        if form == "killed":
            world.hv.domain_ops.kill(guest.domain)
        elif form == "shut down":
            guest.shutdown(sched.SHUTDOWN_poweroff)
        else:
            cpu.hypercall(VERSION, 0)
        yield ready
        turns.append(2)

    guest.runs(program)
    for _ in range(2000):
        world.hv.sched.drain(step)
        if world.hv.now() > MS:
            break
    vcpu = guest.vcpus[0]
    if form == "reset":
        assert vcpu.pause_flags == VPF_BLOCKED
        assert vcpu.hypercalls == 2
        vcpu.halt()
    if form != "shut down":
        assert vcpu.idle is AWAKE
    assert turns == [1]
    assert not dom0.domain.shutting_down


def test_marks_of_written_frames_are_complete_once_somebody_looks(world: World) -> None:
    """Event words and control blocks are marked in `Memory.written` from the moment an emulator watches memory."""
    one, other = world.guest(), world.guest()
    for guest in (one, other):
        guest.use_fifo()
    port = one.alloc(other.domid)
    near = other.bind(one.domid, port)
    memory, channel = world.hv.memory, one.domain.ports[port]

    def raised() -> tuple[bool, bool]:
        """Raise an event along the quick way and take it; whether both frames were marked."""
        at, queue = channel.word_at, channel.queue
        assert queue is not None
        memory.i[at] = 0
        memory.i[queue.ready_at] = 0
        memory.b[one.vcpus[0].info] = 0
        memory.written[at >> 10] = memory.written[queue.page] = 0
        other.send(near)
        assert memory.i[at]
        assert channel.lane is not None
        return memory.written[at >> 10] == 1, memory.written[queue.page] == 1

    other.send(near)
    raised()
    assert channel.deliver is not one.domain.set_pending
    memory.address()
    assert memory.watched
    assert raised() == (True, True)
