"""One host, three attackers, some hundred random hypercalls, and what must hold at all times."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from io import BytesIO
from random import Random
from typing import Any

from fuzz_grammar import Call, Speaker
from fuzz_world import Attacker, World

from hypervisor.abi import grant_table as gnt
from hypervisor.abi import xen
from hypervisor.abi.cpu import PageFault
from hypervisor.errors import InvariantError
from hypervisor.trace import TraceWriter
from hypervisor.vcpu import VPF_DOWN, VPF_PAUSED, VCpu

ROUND = 600
"""Calls on one host: later on, guests have ruined most of what they had."""
CHECK_EVERY = 50
REMEMBERED = 20
RUN_EVERY = 25
MAX_STEPS = 20
TRACED = 0.2
PREEMPTED = 0.4
"""How many hosts give long hypercalls up at random points."""
INTERRUPTING = 0.3
"""How often somebody else makes a call meanwhile."""
RUNNING = 0.3
"""How many domains run on their vCPUs from the start; the others make their calls while they stand still."""


class FuzzFailure(AssertionError):
    """A hypercall did what none may do. Says which round, and what led to it."""


class Round:
    """One host and its attackers, to the end."""

    def __init__(self, seed: str, check_every: int = CHECK_EVERY) -> None:
        self.seed = seed
        self.check_every = check_every
        self.random = Random(seed)
        self.world = World(self._speak, pcpus=self.random.choice((1, 1, 2)), **self._trace())
        self.speakers = [Speaker(self.random, self.world, guest) for guest in self.world.guests]
        for guest in self.world.guests:
            if self.random.random() < RUNNING:
                guest.start()
        self.recent: deque[list[str]] = deque(maxlen=REMEMBERED)
        """The last calls: words, and the result as soon as there is one."""
        self.results: Counter[tuple[int, int]] = Counter()
        """How often (hypercall number, 0 for success or the errno)."""
        self.calls = 0
        self.escaped: Exception | None = None
        """What a hypercall raised that a running vCPU made."""
        if self.random.random() < PREEMPTED:
            self._preempt()

    def run(self, calls: int) -> int:
        """Make calls until there are enough, or nobody is left; returns how many it were. Raises FuzzFailure."""
        looked = 0
        try:
            while self.calls < calls and self._step():
                if self.calls >= looked + self.check_every:
                    looked = self.calls
                    self.world.check()
                if self.random.randrange(RUN_EVERY) == 0:
                    self._let_run()
            self.world.check()
            self.world.close()
        except (Exception, InvariantError) as error:
            raise FuzzFailure(self._story(error)) from error
        return self.calls

    def _trace(self) -> dict[str, Any]:
        """A trace, in some rounds, with or without a tape: it has to take whatever guests say. It leads nowhere."""
        if self.random.random() < TRACED:
            writer = TraceWriter(BytesIO(), seed=0)
            return {"trace": writer.emit, "tape": self.random.choice((None, writer.tape))}
        return {}

    def _preempt(self) -> None:
        """Have long hypercalls stop at random points, and at some of those let another domain say something."""
        preempt, random = self.world.hv.preempt, self.random

        def forced() -> bool:
            return random.random() < 0.5

        def between(_vcpu: VCpu) -> None:
            if random.random() < INTERRUPTING:
                preempt.between = None
                try:
                    self._step()
                finally:
                    preempt.between = between

        preempt.forced, preempt.between = forced, between

    def _story(self, error: Exception) -> str:
        lines = "\n  ".join(map("".join, self.recent))
        where = "".join(traceback.format_tb(error.__traceback__)[-3:]).rstrip()
        head = f"round {self.seed}, call {self.calls}: {type(error).__name__}: {error}"
        return f"{head}\n{where}\nthe last calls were\n  {lines}"

    def _step(self) -> bool:
        """Make one call on a vCPU that does not run; False if no domain is there to make it."""
        alive = [speaker for speaker in self.speakers if speaker.guest.alive]
        if not any(speaker.guest.domid for speaker in alive):
            return False
        speaker = self.random.choice(alive)
        vcpu_id = 0 if self.random.random() < 0.9 else 1
        if speaker.guest.vcpus[vcpu_id].pause_flags & (VPF_PAUSED | VPF_DOWN):
            self._one(speaker, vcpu_id)
        else:
            # It may run: then it speaks for itself.
            self.calls += 1
            self._let_run()
        return True

    def _speak(self, guest: Attacker, vcpu_id: int) -> int:
        """Make some calls on a vCPU that runs."""
        speaker = next(speaker for speaker in self.speakers if speaker.guest is guest)
        try:
            for _ in range(self.random.randrange(6)):
                if guest.alive:
                    self._one(speaker, vcpu_id)
        except Exception as error:
            # The hypervisor would take it for a mistake of the guest's own.
            self.escaped = error
        return self.random.choice((0, 0, 1, 1000, 20_000_000))

    def _one(self, speaker: Speaker, vcpu_id: int) -> None:
        guest, call = speaker.guest, speaker.call()
        for address, data in call.scribbles:
            self.world.hv.memory.b[address : address + len(data)] = data
        for address, data in call.stores:
            if not guest.put(address, data):
                # It has lost its page for arguments; what it says from now on is noise.
                break
        self.calls += 1
        number, *registers = call.registers
        said = [f"d{guest.domid}v{vcpu_id} {call.words} {number}({', '.join(map(hex, registers))})"]
        self.recent.append(said)
        result = guest.hypercall(number, *registers, vcpu=vcpu_id)
        said.append(f" = {result}")
        self._judge(guest, call, result)

    def _judge(self, guest: Attacker, call: Call, result: int) -> None:
        if type(result) is not int or not -(1 << 63) <= result < 1 << 63:
            raise AssertionError(f"the result is {result!r}")
        number = call.registers[0]
        self.results[number, -result if result < 0 else 0] += 1
        if number == xen.HYPERVISOR_grant_table_op and result == 0 and guest.alive:
            self._remember_mapping(guest, call)

    @staticmethod
    def _remember_mapping(guest: Attacker, call: Call) -> None:
        """Note the handle of a new mapping, for the guest to unmap one day."""
        _, cmd, where, *_ = call.registers
        if cmd != gnt.GNTTABOP_map_grant_ref:
            return
        try:
            op = gnt.gnttab_map_grant_ref.unpack_from(guest.peek(where, gnt.gnttab_map_grant_ref.size))
        except PageFault:
            return
        if op.status == 0:
            guest.handles = [*guest.handles[-20:], (op.handle, op.host_addr)]

    def _let_run(self) -> None:
        """Let timers fire and those vCPUs run that somebody has started."""
        for _ in range(self.random.randrange(MAX_STEPS)):
            if self.world.hv.stopped:
                return
            self.world.hv.sched.drain(1)
            if self.escaped is not None:
                raise self.escaped


def fuzz(calls: int, seed: str, *, per_round: int = ROUND) -> tuple[int, Counter[tuple[int, int]]]:
    """Make about so many calls; returns their number and their results. Raises FuzzFailure."""
    done, index = 0, 0
    results: Counter[tuple[int, int]] = Counter()
    while done < calls:
        one = Round(seed if index == 0 else f"{seed}.{index}")
        done += max(1, one.run(min(per_round, max(calls - done, 1))))
        results += one.results
        index += 1
    return done, results
