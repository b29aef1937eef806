"""A guest with the FIFO ABI, well-behaved at first and then hostile; an independent model says what must come of it.

The model is written from event_channel.h. It keeps event words, heads and ready bits as plain numbers, and whatever
happens, memory must say the same: so Xen wrote what it had to, and nothing anywhere else.
"""

from __future__ import annotations

from core_world import World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.abi import errno
from hypervisor.event_channel.check import check_queues

PENDING, MASKED, LINKED, BUSY, LINK = 1 << 31, 1 << 30, 1 << 29, 1 << 28, (1 << 17) - 1
NR_PORTS = 6
PORTS = st.integers(1, NR_PORTS)
VCPUS = st.integers(0, 1)
WORDS = st.builds(lambda flags, link: flags << 28 | link, st.integers(0, 15), st.integers(0, 8))
PRIORITIES = st.sampled_from([0, 7, 15])
EINVAL, EACCES = -errno.EINVAL, -errno.EACCES


class Model:
    """What Xen has to do, in the words of the header."""

    def __init__(self) -> None:
        self.word = dict.fromkeys(range(NR_PORTS + 1), 0)
        self.vcpu = dict.fromkeys(self.word, 0)
        self.priority = dict.fromkeys(self.word, 7)
        self.ready = [0, 0]
        self.head = [[0] * 16, [0] * 16]
        self.upcall = [0, 0]
        self.last: dict[tuple[int, int], int] = {}
        """The port that was put last on each queue of (vCPU, priority), as long as it is the last there."""
        self.closed: set[int] = set()

    def free(self) -> list[int]:
        """Closed ports that can be had, lowest first."""
        return [port for port in sorted(self.closed) if not self.word[port] & LINKED]

    def raise_(self, port: int) -> None:
        self.word[port] |= PENDING
        if self.word[port] & (MASKED | LINKED):
            return
        self.word[port] |= LINKED
        for where in [where for where, last in self.last.items() if last == port]:
            del self.last[where]
        where = vcpu, priority = self.vcpu[port], self.priority[port]
        last = self.last.get(where)
        self.last[where] = port
        if last is not None and self.word[last] & LINKED:
            self.word[last] = self.word[last] & ~(BUSY | LINK) | port
            return
        self.head[vcpu][priority] = port
        if not self.ready[vcpu] >> priority & 1:
            self.ready[vcpu] |= 1 << priority
            self.upcall[vcpu] = 1


class FifoEvents(RuleBasedStateMachine):
    """Domain 0 sends; domain 1, with two vCPUs that never run, has six ports of the FIFO ABI."""

    @initialize(hostile=st.booleans())
    def boot(self, hostile: bool) -> None:
        self.world = World()
        self.dom0, self.domu = self.world.guest(), self.world.guest(vcpus=2)
        self.domu.use_fifo()
        self.far = {}
        for number in range(1, NR_PORTS + 1):
            assert self.domu.alloc(0) == number
            self.far[number] = self.dom0.bind(1, number)
        self.model = Model()
        self.hostile = hostile
        """Has the guest ever broken the rules?"""
        self.elsewhere = self.memory_elsewhere()

    def memory_elsewhere(self) -> bytes:
        """All of the guest's data pages that Xen has no business in."""
        memory = self.world.hv.memory.b
        return b"".join(bytes(memory[mfn << 12 : (mfn + 1) << 12]) for mfn in self.domu.pages[3:])

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.hv.domain_ops.kill(self.domu.domain)
            self.world.hv.domain_ops.kill(self.dom0.domain)
            self.world.check()
            assert self.world.hv.domains == {}

    # -- hypercalls ---------------------------------------------------------------------------------------------------

    @rule(port=PORTS)
    def send(self, port: int) -> None:
        assert self.dom0.send(self.far[port]) == 0
        if port not in self.model.closed:
            self.model.raise_(port)

    @rule(port=PORTS)
    def unmask(self, port: int) -> None:
        assert self.domu.unmask(port) == 0
        if port not in self.model.closed:
            self.model.word[port] &= ~MASKED
            if self.model.word[port] & PENDING:
                self.model.raise_(port)

    @rule(port=PORTS, priority=PRIORITIES)
    def set_priority(self, port: int, priority: int) -> None:
        if port in self.model.closed:
            assert self.domu.set_priority(port, priority) == EACCES
        else:
            assert self.domu.set_priority(port, priority) == 0
            self.model.priority[port] = priority

    @rule(port=PORTS, vcpu=VCPUS)
    def bind_vcpu(self, port: int, vcpu: int) -> None:
        if port in self.model.closed:
            assert self.domu.bind_vcpu(port, vcpu) == EINVAL
        else:
            assert self.domu.bind_vcpu(port, vcpu) == 0
            self.model.vcpu[port] = vcpu

    @rule(port=PORTS)
    def close(self, port: int) -> None:
        if port in self.model.closed:
            assert self.domu.close(port) == EINVAL
        else:
            assert self.domu.close(port) == 0
            self.model.closed.add(port)
            self.model.word[port] &= ~PENDING

    @precondition(lambda self: self.model.free())
    @rule()
    def bind_again(self) -> None:
        """The lowest closed port that is on no queue is to be had; it is raised at once, with the default priority."""
        port = self.model.free()[0]
        assert self.domu.bind(0, self.far[port]) == port
        self.model.closed.remove(port)
        self.model.vcpu[port], self.model.priority[port] = 0, 7
        self.model.raise_(port)

    # -- what a well-behaved guest does -------------------------------------------------------------------------------

    @rule(port=PORTS)
    def mask(self, port: int) -> None:
        self.write_word(port, self.model.word[port] | MASKED)

    @rule(vcpu=VCPUS)
    def upcall(self, vcpu: int) -> None:
        """Take all queues that are ready, most urgent first; the rest of the queue is always there."""
        self.domu.set_upcall_pending(0, vcpu)
        self.model.upcall[vcpu] = 0
        for priority in range(16):
            if not self.domu.ready(vcpu) >> priority & 1:
                continue
            self.domu.set_ready(self.domu.ready(vcpu) & ~(1 << priority), vcpu)
            self.model.ready[vcpu] &= ~(1 << priority)
            port, steps = self.domu.head(priority, vcpu), 0
            while 0 < port <= NR_PORTS and steps < 10:
                steps += 1
                word = self.domu.word(port)
                self.write_word(port, word & ~(LINKED | LINK) & ~(0 if word & MASKED else PENDING))
                port = word & LINK
            assert self.hostile or port == 0

    # -- what a hostile one does --------------------------------------------------------------------------------------

    def write_word(self, port: int, value: int) -> None:
        self.domu.set_word(port, value)
        self.model.word[port] = value

    @precondition(lambda self: self.hostile)
    @rule(port=PORTS, value=WORDS)
    def any_word(self, port: int, value: int) -> None:
        self.write_word(port, value)

    @precondition(lambda self: self.hostile)
    @rule(vcpu=VCPUS, ready=st.integers(0, 0xFFFFFFFF), priority=PRIORITIES, head=st.integers(0, 0xFFFFFFFF))
    def any_control_block(self, vcpu: int, ready: int, priority: int, head: int) -> None:
        self.domu.set_ready(ready, vcpu)
        self.world.hv.memory.i[(self.domu.pages[vcpu] << 10) + 2 + priority] = head
        self.model.ready[vcpu] = ready
        self.model.head[vcpu][priority] = head

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.check()
        if not self.hostile:
            check_queues(self.world.hv)
        assert {port: self.domu.word(port) for port in self.far} == {port: self.model.word[port] for port in self.far}
        for vcpu in (0, 1):
            assert self.domu.ready(vcpu) == self.model.ready[vcpu]
            assert [self.domu.head(priority, vcpu) for priority in range(16)] == self.model.head[vcpu]
            assert self.domu.upcall_pending(vcpu) == self.model.upcall[vcpu]
        assert self.memory_elsewhere() == self.elsewhere


FifoEvents.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestFifoEvents = FifoEvents.TestCase
