"""The tape is a quicker way to the same records: whatever happens on a host, it says what the emitter says."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from core_world import MS, SCHED_OP, World
from hypothesis import given
from hypothesis import strategies as st
from test_hv_scheduler import host, make_world

from hypervisor.abi import event_channel as ev
from hypervisor.abi import sched, xen
from hypervisor.abi.tracepoints import FLAG, GUEST_NOTE, HYPERCALL, NET_PACKET, RING_PUSH, SIGNED, UPCALL, WAKE, WORD
from hypervisor.sched.costs import OFF, Costs
from hypervisor.sched.policy import Fifo, Policy, Random
from hypervisor.tape import FIRST, FULL, LOOK, OTHER, TIME, Tape
from hypervisor.trace import TraceError, TraceWriter, read_records

VERSION = xen.HYPERVISOR_xen_version
U64 = (1 << 64) - 1
Play = Callable[[TraceWriter, bool], None]


def told(path: Path, taped: bool, play: Play) -> list[list[Any]]:
    """Play a scene with a tape or without; returns the records."""
    with TraceWriter(path.open("wb"), seed=0) as writer:
        play(writer, taped)
    return list(read_records(path))


def both(directory: Path, play: Play) -> list[list[Any]]:
    """Play a scene with a tape and without: the records are the same. Returns them."""
    plain, taped = told(directory / "plain", False, play), told(directory / "taped", True, play)
    for number, (a, b) in enumerate(zip(plain, taped, strict=False)):
        assert a == b, f"record {number}"
        assert [type(field) for field in a] == [type(field) for field in b]
    assert len(plain) == len(taped)
    return taped


@pytest.mark.parametrize("pcpus", [1, 3])
@pytest.mark.parametrize("policy", [Fifo, lambda: Random(7)], ids=["fifo", "random"])
@pytest.mark.parametrize("costs", [Costs(), OFF, Costs(hypercalls={32: 500})], ids=["usual", "off", "extra"])
@pytest.mark.parametrize("step", [1, 1000])
def test_guests_that_do_all_sorts_of_things(
    tmp_path: Path, pcpus: int, policy: Callable[[], Policy], costs: Costs, step: int
) -> None:
    def play(writer: TraceWriter, taped: bool) -> None:
        world = host(pcpus=pcpus, policy=policy(), trace=writer, taped=taped, costs=costs)
        for _ in range(100_000):
            if world.hv.stopped:
                break
            world.hv.sched.drain(step)
        assert world.hv.stopped

    records = both(tmp_path, play)
    assert len(records) > 400


def restless(guest: Any, dice: random.Random, ports: list[int]) -> Any:
    """Return a program that sends events, waits, computes, yields and asks for what there is not."""

    def wait(cpu: Any) -> Any:
        cpu.hypercall(xen.HYPERVISOR_set_timer_op, cpu.rdtsc() + dice.randrange(1, 90_000))
        cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
        yield 0

    def compute(_cpu: Any) -> Any:
        yield dice.randrange(20_000)

    def give_way(cpu: Any) -> Any:
        cpu.hypercall(SCHED_OP, sched.SCHEDOP_yield, 0)
        yield 0

    def talk(cpu: Any) -> Any:
        cpu.hypercall(dice.choice((VERSION, 77, -3, 1 << 70)), dice.choice((0, -1, 1 << 66)), 0, 5)
        yield from ()

    def send(_cpu: Any) -> Any:
        guest.send(dice.choice(ports))
        yield from ()

    def program(cpu: Any) -> Any:
        cpu.trace(GUEST_NOTE, "begins")
        for _ in range(60):
            yield from dice.choice((send, send, send, wait, compute, give_way, talk))(cpu)
        while True:
            cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
            yield 0

    return program


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fifo", [False, True], ids=["two-level", "fifo"])
def test_events_that_cross(tmp_path: Path, seed: int, fifo: bool) -> None:
    """Guests with handlers that send events to each other, block, poll, compute, mask, and one that is killed."""

    def play(writer: TraceWriter, taped: bool) -> None:
        dice = random.Random(seed)
        world = make_world(writer, taped, pcpus=1 + seed % 2)
        guests = [world.guest() for _ in range(3)]
        if fifo:
            for guest in guests:
                guest.use_fifo()
        ports: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for one, other in ((0, 1), (1, 2), (2, 0)):
            remote = guests[one].alloc(other)
            ports[one].append(remote)
            ports[other].append(guests[other].bind(one, remote))
        timers = [guest.virq(xen.VIRQ_TIMER) for guest in guests]
        assert min(timers) > 0

        for guest in guests:
            guest.runs(restless(guest, dice, ports[guest.domid]), handler=guest.acknowledge)
        world.hv.timers.add(2 * MS, lambda: world.hv.domain_ops.kill(guests[2].domain))
        world.run(until=3 * MS, steps=20_000)
        # From outside of any guest, too.
        guests[1].domain.set_pending(guests[1].domain.ports[ports[1][0]])
        world.hv.sched.drain(50)

    records = both(tmp_path, play)
    kinds = {record[3] for record in records}
    assert {HYPERCALL, UPCALL, WAKE, GUEST_NOTE} <= kinds


def test_a_hypercall_of_somebody_who_does_not_run_takes_no_time(tmp_path: Path) -> None:
    """A long hypercall is preempted, and meanwhile another guest makes one, from nowhere."""

    def play(writer: TraceWriter, taped: bool) -> None:
        world = make_world(writer, taped)
        one, other = world.guest(), world.guest()
        remote = one.alloc(other.domid)
        port = other.bind(one.domid, remote)
        answers: list[bool] = []
        world.hv.preempt.forced = lambda: len(answers) < 2

        def between(_vcpu: Any) -> None:
            answers.append(True)
            other.send(port)

        world.hv.preempt.between = between

        def program(cpu: Any) -> Any:
            one.poke(one.args, xen.multicall_entry.pack(op=VERSION, args=(0,) * 6) * 4)
            cpu.hypercall(xen.HYPERVISOR_multicall, one.args, 4)
            one.send(remote)
            world.hv.domain_ops.kill(other.domain)
            one.reset()
            one.shutdown(0)
            yield 0

        one.runs(program)
        world.run()
        assert len(answers) == 2

    both(tmp_path, play)


@given(st.data())
def test_what_goes_in_comes_out(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Records by code, by probe and as a whole, in any order and number, with ticks and times in between."""
    path = tmp_path_factory.mktemp("tape") / "t"
    now = 0
    expected: list[list[Any]] = []
    with TraceWriter(path.open("wb"), seed=0) as writer:
        writer.now = lambda: now
        tape, words = writer.tape, writer.tape.words
        steps = data.draw(st.lists(st.sampled_from(["code", "probe", "other", "tick", "time", "many"]), max_size=30))
        for step in steps:
            domid = data.draw(st.integers(0, 3))
            if step == "code":
                value = data.draw(st.integers(0, U64))
                words.extend((tape.code(domid, 0, UPCALL, WORD), value))
                expected.append([now, domid, 0, UPCALL, value])
            elif step == "probe":
                signed, flag = data.draw(st.integers(-(1 << 63), (1 << 63) - 1)), data.draw(st.booleans())
                tape.probe(domid, 1, RING_PUSH, "xvda", SIGNED, True, FLAG, 1)(signed, flag)
                expected.append([now, domid, 1, RING_PUSH, "xvda", signed, True, flag, 1])
            elif step == "other":
                writer.emit(domid, 2, GUEST_NOTE, "text", b"bytes", -5)
                expected.append([now, domid, 2, GUEST_NOTE, "text", b"bytes", -5])
            elif step == "tick":
                words.append(tape.tick(7))
                now += 7
            elif step == "time":
                now = data.draw(st.integers(0, U64 >> 1))
                words.extend((TIME, now))
            else:
                for _ in range(300):
                    writer.emit(domid, 3, WAKE)
                    expected.append([now, domid, 3, WAKE])
            if data.draw(st.booleans()):
                tape.keep()
    assert list(read_records(path)) == expected
    assert [type(r[7]) for r in read_records(path) if r[3] == RING_PUSH] == [bool] * steps.count("probe")


def test_one_and_true_are_different_codes() -> None:
    tape = Tape([], lambda: None)
    assert tape.code(1, 0, RING_PUSH, 1) != tape.code(1, 0, RING_PUSH, True)
    assert tape.code(1, 0, RING_PUSH, 1) == tape.code(1, 0, RING_PUSH, 1) == FIRST


def test_a_probe_wants_as_many_values_as_there_are_blanks() -> None:
    tape = Tape([], lambda: None)
    with pytest.raises(TypeError, match="this record has 1 blanks, not 2"):
        tape.probe(1, 0, RING_PUSH, "xvda", WORD)(1, 2)
    assert tape.words == [2]


class Odd:
    """What a guest may pass as a register, and what a trace cannot hold."""

    def __index__(self) -> int:
        raise RuntimeError("no number")


def test_what_guests_make_up_harms_nobody(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with TraceWriter(path.open("wb"), seed=0) as writer:
        world = make_world(writer, True)
        guest = world.guest()
        cpu = guest.vcpus[0].cpu
        # (The arguments that a hypercall does not have may be anything.)
        assert cpu.hypercall(VERSION, 0, 0, Odd(), 2.5, "x") > 0
        assert cpu.hypercall("no number") == -38
        cpu.trace(GUEST_NOTE, Odd())
        cpu.hypercall(VERSION, 0)
        assert writer.failure is None
    records = list(read_records(path))[-4:]
    assert [record[3] for record in records] == [HYPERCALL, HYPERCALL, GUEST_NOTE, HYPERCALL]
    assert records[0][4:10] == [VERSION, 0, 0, 0, 0, 0]
    assert records[0][10] == records[3][10] > 0
    assert records[1][4:] == [0, 0, 0, 0, 0, 0, -38]
    assert records[2][4:] == [None]


@pytest.mark.parametrize(
    "field", [Odd(), None, 1 << 70, "\udc80", [Odd()]], ids=["odd", "none", "huge", "half", "list"]
)
def test_a_guest_cannot_bind_what_a_file_cannot_hold(tmp_path: Path, field: object) -> None:
    path = tmp_path / "t"
    with TraceWriter(path.open("wb"), seed=0) as writer:
        probe = make_world(writer, True).guest().vcpus[0].cpu.trace
        for bind in (probe.bind, probe.bind_each):
            with pytest.raises(TypeError):
                bind(RING_PUSH, field, WORD)
        probe.bind(RING_PUSH, "xvda", WORD)(7)
    assert list(read_records(path))[-1][3:] == [RING_PUSH, "xvda", 7]


def test_a_guest_that_never_stops_fills_no_memory(tmp_path: Path) -> None:
    with TraceWriter((tmp_path / "t").open("wb"), seed=0) as writer:
        world = make_world(writer, True)
        cpu = world.guest().vcpus[0].cpu
        for _ in range(5000):
            cpu.hypercall(VERSION, 0)
            assert len(writer.tape.words) <= FULL + 16 * (LOOK + 1)


def test_a_record_that_was_not_written_to_its_end_is_dropped(tmp_path: Path) -> None:
    """Ctrl-C may come between any two words."""
    path = tmp_path / "t"
    writer = TraceWriter(path.open("wb"), seed=0)
    tape = writer.tape
    code = tape.code(1, 0, HYPERCALL, *[WORD] * 7)
    tape.words.extend((TIME, 5, code, 1, 2, 3, 4, 5, 6, 7, code, 1, 2))
    writer._others.append((5, 1, 0, WAKE))
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert list(read_records(path)) == [[5, 1, 0, HYPERCALL, 1, 2, 3, 4, 5, 6, 7]]


def test_the_tape_is_for_hosts_whose_time_it_can_follow() -> None:
    writer = TraceWriter(io.BytesIO(), seed=0)
    assert World(trace=writer.emit, tape=writer.tape).hv.tape is writer.tape
    assert World(trace=writer.emit, tape=writer.tape, costs=Costs(fault=1)).hv.tape is None
    assert World(tape=writer.tape).hv.tape is None


DEFINITION = [FIRST, 0, 1, 0, UPCALL, [None], "Q"]


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        ([b"", [[1, 2, 3]]], "there is something else between its records"),
        ([b"", 5], "there is something else between its records"),
        (["", []], "there is something else between its records"),
        ([5, 0, 1, 2], "there is something else between its records"),
        ([b"1234567", []], "a batch ends in the middle of a number"),
        ([b"", [["now", 1, 0, WAKE]]], "a record has no time"),
        ([b"\1" + bytes(7), []], "a batch ends in the middle of a record"),
        ([bytes(8), []], "a batch ends in the middle of a record"),
        ([b"\3" + bytes(7), []], "a record has a code that is not defined"),
        ([b"\2" + bytes(7) + b"\3" + bytes(7), [DEFINITION]], "a batch ends in the middle of a record"),
        ([b"\2" + bytes(7), [[7, *DEFINITION[1:]]]], "it defines a code wrongly"),
        ([b"\2" + bytes(7), [[*DEFINITION[:6], "QQ"]]], "it defines a code wrongly"),
        ([b"\2" + bytes(7), [[*DEFINITION[:6], "x"]]], "it defines a code wrongly"),
        ([b"\1" + bytes(15), [[1, 2, 3, 4]]], "a batch has more than it says"),
    ],
)
def test_damaged_batches(tmp_path: Path, batch: Any, why: str) -> None:
    path = tmp_path / "t"
    TraceWriter(path.open("wb"), seed=0).close()
    with path.open("ab") as file:
        file.write(msgpack.packb(batch))
    with pytest.raises(TraceError, match=f"^{path} is damaged: {why}$"):
        list(read_records(path))


def test_a_batch_of_whole_records_alone_has_no_words(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with TraceWriter(path.open("wb"), seed=0) as writer:
        writer.emit(1, 0, WAKE)
    with path.open("rb") as file:
        _, batch = msgpack.Unpacker(file, strict_map_key=False)
    assert batch == [b"", [[0, 1, 0, WAKE]]]
    assert OTHER == 0


def test_an_event_that_is_sent_in_a_hypercall_is_later_than_its_stretch(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with TraceWriter(path.open("wb"), seed=0) as writer:
        world = make_world(writer, True)
        guest = world.guest()
        port = guest.alloc()
        own = guest.bind(guest.domid, port)

        def program(cpu: Any) -> Any:
            cpu.hypercall(VERSION, 0)
            guest.send(own)
            guest.shutdown(0)
            yield 0

        guest.runs(program)
        world.run()
    calls = [record for record in read_records(path) if record[3] == HYPERCALL]
    sent = next(r for r in calls if r[4:6] == [xen.HYPERVISOR_event_channel_op, ev.EVTCHNOP_send])
    before = next(r for r in calls if r[4] == VERSION)
    assert sent[0] - before[0] == Costs().hypercall


def test_a_bound_probe_says_what_the_probe_says(tmp_path: Path) -> None:
    def play(writer: TraceWriter, taped: bool) -> None:
        world = make_world(writer, taped)
        guest = world.guest(vcpus=2)
        for vcpu in guest.vcpus:
            probe = vcpu.cpu.trace
            push = probe.bind(RING_PUSH, "xvda", "req", WORD, FLAG, SIGNED)
            push(4, True, -1)
            probe(RING_PUSH, "xvda", "rsp", 4, False, 4)
            push(5, False, 4)

    records = [record[2:] for record in both(tmp_path, play) if record[3] == RING_PUSH]
    assert records[3:] == [
        [1, RING_PUSH, "xvda", "req", 4, True, -1],
        [1, RING_PUSH, "xvda", "rsp", 4, False, 4],
        [1, RING_PUSH, "xvda", "req", 5, False, 4],
    ]
    assert [record[1:] for record in records[:3]] == [record[1:] for record in records[3:]]


def test_many_records_at_once(tmp_path: Path) -> None:
    def play(writer: TraceWriter, taped: bool) -> None:
        probe = make_world(writer, taped).guest().vcpus[0].cpu.trace
        each = probe.bind_each(NET_PACKET, "vif1.0", "rx", WORD, 1)
        each([60, 1500])
        each([])
        each(range(10_000))

        with pytest.raises(TypeError, match="if they have one blank"):
            probe.bind_each(NET_PACKET, "vif1.0", "rx", WORD, WORD)
        with pytest.raises(TypeError, match="this record has 2 blanks, not 1"):
            probe.bind(NET_PACKET, "vif1.0", "rx", WORD, WORD)(1)

    records = [record[4:] for record in both(tmp_path, play) if record[3] == NET_PACKET]
    assert records == [["vif1.0", "rx", size, 1] for size in (60, 1500, *range(10_000))]
