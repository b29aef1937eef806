"""The pCPU loop and its policies."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from core_world import MS, SCHED_OP, World

from hypervisor.abi import sched, vcpu, xen
from hypervisor.abi.tracepoints import DESCHEDULE, HYPERCALL, KINDS, SCHEDULE, UPCALL, WAKE
from hypervisor.errors import ReplayError
from hypervisor.machine.timers import Timers
from hypervisor.sched.policy import Fifo, Random, Replay, parse_policy
from hypervisor.trace import TraceError, TraceWriter, read_records

VERSION = xen.HYPERVISOR_xen_version


def make_world(trace=None, taped=True, **options):
    """A host, with a trace if there is to be one."""
    if trace is None:
        return World(**options)
    world = World(trace=trace.emit, tape=trace.tape if taped else None, **options)
    trace.now = world.hv.now
    return world


def host(guests=3, *, policy=None, **options):
    """A host with some domains that notify the next one, compute, poll and block; it ends itself after a while."""
    world = make_world(policy=policy or Fifo(), **options)
    domains = [world.guest() for _ in range(guests)]
    ring = []
    for index, guest in enumerate(domains):
        after = domains[(index + 1) % guests]
        remote = after.alloc(guest.domid)
        ring.append(guest.bind(after.domid, remote))
        guest.acknowledge()

    def program_of(index, guest):
        def program(cpu):
            for round_ in range(40):
                cpu.hypercall(VERSION, 0)
                guest.send(ring[index])
                yield (index + 1) * 1000 * (round_ % 3)
                if round_ % 4 == index % 4:
                    guest.poll([], timeout=world.hv.now() + 50_000)
                    yield 0
                if round_ % 5 == 2:
                    cpu.hypercall(SCHED_OP, sched.SCHEDOP_yield, 0)
                    yield 0
            if index:
                guest.shutdown(0)
                yield 0
            while not all(other.domain.shutting_down for other in domains[1:]):
                guest.poll([], timeout=world.hv.now() + 100_000)
                yield 0
            for other in domains[1:]:
                world.hv.domain_ops.kill(other.domain)
            guest.reset()
            guest.shutdown(0)
            yield 0

        return program

    for index, guest in enumerate(domains):
        guest.runs(program_of(index, guest), handler=guest.acknowledge)
    return world


def traced(path: Path, **options) -> list[list]:
    """Run such a host with a trace; returns its records."""
    policy = options.get("policy") or Fifo()
    with TraceWriter(path.open("wb"), seed=0, about={"preempts": policy.preempts}) as writer:
        world = host(trace=writer, **options)
        world.run(steps=100_000)
        world.check()
    return list(read_records(path))


def order(records) -> list[tuple]:
    return [(record[0], record[1], record[2]) for record in records if record[3] == SCHEDULE]


class TestLoop:
    @pytest.mark.parametrize("pcpus", [1, 2, 3])
    def test_everybody_gets_to_the_end(self, pcpus):
        world = host(5, pcpus=pcpus)
        world.run(steps=100_000)
        assert world.hv.stopped

    def test_more_pcpus_are_faster(self):
        ends = []
        for pcpus in (1, 3):
            world = World(pcpus=pcpus)
            guests = [world.guest() for _ in range(3)]

            def program(cpu):
                yield 10 * MS
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                yield 0

            for guest in guests:
                guest.runs(program)
            world.run()
            ends.append(max(pcpu.now for pcpu in world.hv.sched.pcpus))
        assert ends[0] > 30 * MS
        assert ends[1] < 11 * MS

    def test_a_vcpu_is_on_one_pcpu_at_a_time(self, tmp_path):
        running: dict[tuple[int, int], int] = {}
        for record in traced(tmp_path / "t", pcpus=3):
            who = record[1], record[2]
            if record[3] == SCHEDULE:
                assert who not in running
                running[who] = record[4]
            elif record[3] == DESCHEDULE:
                assert running.pop(who) == record[4]

    def test_a_vcpu_never_runs_before_it_was_woken(self, tmp_path):
        for policy in (Fifo(), Random(3)):
            woken: dict[tuple[int, int], int] = {}
            for record in traced(tmp_path / "t", pcpus=3, policy=policy):
                who = record[1], record[2]
                if record[3] == WAKE:
                    woken[who] = record[0]
                elif record[3] == SCHEDULE:
                    assert record[0] >= woken.get(who, 0)

    def test_computing_vcpus_share_a_pcpu(self, world):
        shares = []
        guests = [world.guest() for _ in range(2)]

        def program(cpu):
            while True:
                yield 50 * MS

        for guest in guests:
            guest.runs(program)
        world.run(until=100 * MS)
        shares = [guest.vcpus[0].time_running for guest in guests]
        assert sum(shares) <= 101 * MS
        assert min(shares) > 40 * MS

    def test_yielding_lets_the_others_go_first(self, world):
        turns = []
        guests = [world.guest() for _ in range(2)]

        def program(cpu):
            for _ in range(3):
                turns.append(cpu._vcpu.domain.domid)
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_yield, 0)
                yield 0
            while True:
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                yield 0

        for guest in guests:
            guest.runs(program)
        world.run()
        assert turns == [0, 1, 0, 1, 0, 1]

    def test_nobody_runs_after_the_host_was_stopped(self, world):
        """Not even who waits already, when it was somebody else than dom0 that has shut dom0 down."""
        ran = []
        guests = [world.guest() for _ in range(4)]

        def program_of(guest):
            def program(cpu):
                guest.vcpu_op(vcpu.VCPUOP_stop_periodic_timer, 0)
                while True:
                    cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                    yield 0
                    ran.append(guest.domid)
                    if guest.domid == 1 and len(ran) > 8:
                        fields = {"domain_id": 0, "reason": sched.SHUTDOWN_reboot}
                        guest.sched(sched.SCHEDOP_remote_shutdown, sched.sched_remote_shutdown, **fields)

            return program

        guests[1].domain.target = guests[0].domain
        for guest in guests:
            guest.ipi()
            guest.runs(program_of(guest), handler=guest.acknowledge)
        for _ in range(3):
            world.hv.sched.drain(1000)
            for guest in guests:
                guest.domain.set_pending(guest.domain.ports[1])
        timer = world.hv.timers.add(world.hv.now() + MS, lambda: ran.append("timer"))
        assert world.hv.sched.drain(1000) == Timers.NEVER
        assert ran == [*[0, 1, 2, 3] * 2, 0, 1]
        timer.cancel()

    def test_a_vcpu_is_served_as_soon_as_something_is_to_be_done(self, world):
        """The loop knows how long it need not ask; whoever gives it something to do before that is heard."""
        guest = world.guest()
        ticks = []

        def program(cpu):
            guest.set_upcall_mask(0)
            guest.vcpu_op(vcpu.VCPUOP_stop_periodic_timer, 0)
            for _ in range(3):
                guest.poll([], timeout=world.hv.now() + 1000)
                yield 0
            assert guest.vcpus[0].quick_until > 9 * MS
            fields = {"period_ns": MS}
            guest.vcpu_op(vcpu.VCPUOP_set_periodic_timer, 0, vcpu.vcpu_set_periodic_timer, **fields)
            while True:
                guest.poll([], timeout=world.hv.now() + 100_000)
                yield 0

        def tick():
            ticks.append(world.hv.now())
            guest.acknowledge()

        guest.virq(xen.VIRQ_TIMER)
        guest.acknowledge()
        guest.runs(program, handler=tick)
        world.run(until=8 * MS)
        assert 7 <= len(ticks) <= 8

    @pytest.mark.parametrize("count", [1, 2])
    def test_yielding_while_nobody_works_lets_time_pass(self, world, count):
        """Kernels wait like this for a moment in the future: it should not take thousands of turns."""
        turns = [0] * count
        guests = [world.guest() for _ in range(count)]

        def program(cpu):
            while cpu.rdtsc() < 20 * MS:
                turns[cpu._vcpu.domain.domid] += 1
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_yield, 0)
                yield 0
            cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
            yield 0

        for guest in guests:
            guest.runs(program)
        fired = []
        world.hv.timers.add(7 * MS + 11, lambda: fired.append(world.hv.clock.now))
        world.run()
        assert all(20 * MS // 50_000 // count - 20 < number < 450 for number in turns)
        assert fired == [7 * MS + 11], "timers come at their time all the same"

    def test_yielding_to_somebody_with_work_takes_no_time(self, world):
        turns = 0
        waiting, working = world.guest(), world.guest()

        def waits(cpu):
            nonlocal turns
            while working.vcpus[0].time_running < 2 * MS:
                turns += 1
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_yield, 0)
                yield 0
            working.hv.domain_ops.shutdown(working.domain, 0)
            cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
            yield 0

        def works(cpu):
            while True:
                yield 1 * MS

        waiting.runs(waits)
        working.runs(works)
        world.run()
        assert turns < 5
        assert waiting.vcpus[0].time_running < MS

    def test_yielding_while_another_pcpu_works_takes_no_time(self):
        """A vCPU that spins for a lock gets it as soon as the one on the other pCPU gives it back."""
        world = World(pcpus=2)
        guest = world.guest(vcpus=2)
        times = []
        turns = 0

        def spins(cpu):
            nonlocal turns
            while len(times) < 1:
                turns += 1
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_yield, 0)
                yield 0
            times.append(cpu.rdtsc())
            guest.shutdown(0)
            yield 0

        def works(cpu):
            yield 1 * MS
            times.append(cpu.rdtsc())
            while True:
                yield MS

        guest.runs(spins, works)
        world.run()
        assert times[1] - times[0] < 5_000
        assert turns < 10

    def test_waking_oneself_while_going_to_sleep(self, world):
        """The event comes between the block and the end of the stretch: the vCPU must be neither lost nor doubled."""
        guest = world.guest(vcpus=1)
        rounds = []

        def program(cpu):
            port = guest.ipi()
            for number in range(5):
                cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                guest.send(port)
                if number % 2:
                    guest.acknowledge()
                    cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
                    guest.hv.timers.add(guest.hv.now() + 1000, lambda: guest.send(port))
                world_check()
                yield 0
                rounds.append(number)
            guest.shutdown(0)
            yield 0

        def world_check():
            queue = guest.hv.sched.run_queue
            assert len(set(queue)) == len(queue)

        guest.runs(program, handler=guest.acknowledge)
        world.run()
        assert rounds == list(range(5))

    def test_costs(self, world):
        guest = world.guest()
        costs = world.hv.sched.costs

        def program(cpu):
            for _ in range(10):
                cpu.hypercall(VERSION, 0)
            yield 5000
            cpu.hypercall(SCHED_OP, sched.SCHEDOP_block, 0)
            yield 0

        guest.runs(program)
        world.run()
        assert world.hv.sched.pcpus[0].now == costs.switch + 2 * costs.run + 11 * costs.hypercall + 5000
        assert guest.vcpus[0].time_running == world.hv.sched.pcpus[0].now

    def test_nothing_to_do_is_for_ever(self, world):
        assert world.hv.sched.drain(10) == 1 << 63


class TestPolicies:
    def test_names(self, tmp_path):
        assert isinstance(parse_policy("fifo"), Fifo)
        assert isinstance(parse_policy("random:0x10"), Random)
        for text in ("", "fifo:1", "random", "random:x", "replay:", "lifo"):
            with pytest.raises(ValueError, match=r"schedule '.*'"):
                parse_policy(text)
        with pytest.raises(OSError, match="nothing"):
            parse_policy(f"replay:{tmp_path / 'nothing'}")

    @pytest.mark.parametrize("pcpus", [1, 3])
    def test_random_is_repeatable_and_explores(self, tmp_path, pcpus):
        first, again, other = (traced(tmp_path / "t", pcpus=pcpus, policy=Random(seed)) for seed in (1, 1, 2))
        assert first == again
        assert order(first) != order(other)

    @pytest.mark.parametrize("pcpus", [1, 3])
    @pytest.mark.parametrize("policy", [Fifo, lambda: Random(7)], ids=["fifo", "random"])
    def test_replay_of_any_policy(self, tmp_path, policy, pcpus):
        recorded = traced(tmp_path / "recorded", pcpus=pcpus, policy=policy())
        replayed = traced(tmp_path / "replayed", pcpus=pcpus, policy=Replay(tmp_path / "recorded"))
        assert replayed == recorded
        again = traced(tmp_path / "again", pcpus=pcpus, policy=Replay(tmp_path / "replayed"))
        assert again == recorded

    @pytest.mark.leaves_live_host("the run is given up halfway")
    def test_replay_of_another_run_is_one_sentence(self, tmp_path):
        traced(tmp_path / "recorded", guests=4, policy=Random(7))
        world = host(3, policy=Replay(tmp_path / "recorded"))
        with pytest.raises(ReplayError, match=r"^this run is not the one that .*recorded: there d\dv0 ran at \d+ ns"):
            world.run(steps=100_000)
        world.hv.switch_off()

    def test_replay_goes_on_behind_the_end_of_a_trace(self, tmp_path):
        records = traced(tmp_path / "recorded", policy=Random(7))
        with TraceWriter((tmp_path / "recorded").open("wb"), seed=0, about={"preempts": True}) as writer:
            for _, domid, vcpu_id, *rest in records[: len(records) // 2]:
                writer.emit(domid, vcpu_id, *rest)
        world = host(policy=Replay(tmp_path / "recorded"))
        world.run(steps=100_000)
        assert world.hv.stopped

    def test_replay_of_a_damaged_trace(self, tmp_path):
        (tmp_path / "junk").write_bytes(b"\xff" * 100)
        with pytest.raises(TraceError, match="is not a trace"):
            Replay(tmp_path / "junk")
        traced(tmp_path / "recorded")
        with (tmp_path / "recorded").open("ab") as file:
            file.write(b"\xc1\xc1\xc1\x07\x07")
        with pytest.raises(TraceError, match="is damaged"):
            Replay(tmp_path / "recorded")


class TestTrace:
    def test_counts_and_times(self, tmp_path):
        records = traced(tmp_path / "t")
        count = Counter(record[3] for record in records)
        assert count[SCHEDULE] == count[DESCHEDULE] > 50
        assert count[HYPERCALL] > 300
        assert count[UPCALL] == 0  # nobody unmasks
        for who in range(3):
            own = [record[0] for record in records if record[1] == who and record[3] != WAKE]
            assert own == sorted(own)
        assert all(len(record) == 4 + len(KINDS[record[3]][1]) for record in records)

    def test_the_calls_of_a_multicall_are_there(self):
        file = io.BytesIO()
        writer = TraceWriter(file, seed=0)
        emitted = []
        world = World(trace=lambda *fields: emitted.append(fields))
        guest = world.guest()
        writer.flush()
        guest.poke(guest.args, xen.multicall_entry.pack(op=VERSION, args=(0,) * 6))
        guest.hypercall(xen.HYPERVISOR_multicall, guest.args, 1)
        calls = [fields[3] for fields in emitted if fields[2] == HYPERCALL]
        assert calls == [VERSION, xen.HYPERVISOR_multicall]

    def test_numbers_of_any_size(self, tmp_path):
        path = tmp_path / "t"
        with TraceWriter(path.open("wb"), seed=0) as writer:
            world = World(trace=writer.emit)
            world.guest().hypercall(1 << 70, -1, 1 << 64)
        record = next(record for record in read_records(path) if record[3] == HYPERCALL)
        assert record[4:7] == [0, (1 << 64) - 1, 0]

    def test_a_dead_guest_leaves_no_records(self):
        emitted = []
        world = World(trace=lambda *fields: emitted.append(fields))
        guest = world.guest()
        cpu = guest.vcpus[0].cpu
        world.hv.domain_ops.kill(guest.domain)
        emitted.clear()
        cpu.hypercall(VERSION, 0)
        assert emitted == []

    @pytest.mark.parametrize("guests", [2, 5])
    @pytest.mark.parametrize("pcpus", [1, 2])
    def test_changes_nothing(self, tmp_path, guests, pcpus):
        """With and without a trace the loop takes different paths; what happens, and when, is the same."""
        books = []
        with TraceWriter((tmp_path / "t").open("wb"), seed=0) as writer:
            for trace in (None, writer):
                world = host(guests, pcpus=pcpus, trace=trace)
                accounts = []
                for step in range(1, 400):
                    world.run(until=step * 10_000)
                    if world.hv.stopped:
                        break
                    vcpus = [guest.vcpus[0] for guest in world.guests]
                    accounts.append([(v.time_running, v.time_runnable, v.hypercalls, v.pause_flags) for v in vcpus])
                assert world.hv.stopped
                books.append((accounts, world.hv.clock.now, [pcpu.now for pcpu in world.hv.sched.pcpus]))
        assert books[0] == books[1]
