"""The FIFO event ABI: event words, queues, control blocks, and changing from one ABI to the other."""

from types import SimpleNamespace

import pytest
from bare_guest import DATA_PAGES
from core_world import EVTCHN_OP, MS, SELF, World
from preemption import ALWAYS, Points, everywhere

from hypervisor.abi import errno, sched, xen
from hypervisor.abi import event_channel as ev
from hypervisor.event_channel.check import check_queues

ENOENT, EINVAL, EFAULT, ENOSPC = -errno.ENOENT, -errno.EINVAL, -errno.EFAULT, -errno.ENOSPC
EACCES, EOPNOTSUPP, ENOSYS = -errno.EACCES, -errno.EOPNOTSUPP, -errno.ENOSYS
PENDING, MASKED, LINKED, BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28
QUEUED = PENDING | LINKED
NOWHERE = 0x7FFF_0000_0000


@pytest.fixture
def fifo(world):
    """Domain 0, and domain 1 with the FIFO ABI, two vCPUs, and two ports whose other ends (`far`) are in domain 0."""
    dom0, domu = world.guest(), world.guest(vcpus=2)
    domu.use_fifo()
    ports, far = [], []
    for _ in range(4):
        port = domu.alloc(0)
        ports.append(port)
        far.append(dom0.bind(1, port))
    return SimpleNamespace(world=world, hv=world.hv, dom0=dom0, domu=domu, ports=ports, far=far)


@pytest.fixture
def domu(world):
    """Domain 1, in two-level mode, with two vCPUs."""
    world.guest()
    return world.guest(vcpus=2)


class TestControlBlock:
    def test_errors_come_in_order(self, domu):
        # The vCPU, the offset, the frame; a control block is given once.
        assert domu.init_control(2, gfn=0, offset=4096) == ENOENT
        for offset in (4, 4096 - 71, 4032, 4096, 0xFFFFFFF8):
            assert domu.init_control(0, offset=offset) == EINVAL
        for gfn in (domu.l4, 0, 1 << 40, (1 << 64) - 1):
            assert domu.init_control(0, gfn=gfn) == EINVAL
        assert domu.hypercall(EVTCHN_OP, ev.EVTCHNOP_init_control, NOWHERE) == EFAULT
        assert domu.domain.fifo is None
        assert domu.init_control(0, offset=4024) == 0
        assert domu.init_control(0, gfn=domu.pages[5]) == EINVAL
        assert domu.init_control(1, gfn=domu.pages[0]) == 0

    def test_another_domains_frame_is_refused(self, world):
        dom0, domu = world.guest(), world.guest()
        assert domu.init_control(0, gfn=dom0.pages[0]) == EINVAL
        assert dom0.init_control(0, gfn=domu.pages[0]) == EINVAL

    def test_a_refused_frame_leaves_two_levels(self, domu):
        # XSA-188: what was prepared for the switch is gone, and nothing points to it.
        assert domu.init_control(0, gfn=domu.l4) == EINVAL
        assert domu.expand_array() == EOPNOTSUPP
        port = domu.alloc(1)
        assert domu.set_priority(port, 3) == ENOSYS
        domu.bind(1, port)
        assert domu.pending(2)

    def test_pages_are_held_while_they_are_used(self, fifo):
        frames, domu = fifo.hv.frames, fifo.domu
        assert domu.pin_l1(domu.pages[0]) == EINVAL
        before = [frames.count[mfn] for mfn in domu.pages[:3]]
        assert domu.reset() == 0
        assert [frames.count[mfn] for mfn in domu.pages[:3]] == [count - 1 for count in before]

    def test_the_domain_may_die_with_it(self, fifo):
        fifo.hv.domain_ops.kill(fifo.domu.domain)
        assert 1 not in fifo.hv.domains


class TestArray:
    def test_errors(self, domu):
        assert domu.expand_array() == EOPNOTSUPP
        assert domu.hypercall(EVTCHN_OP, ev.EVTCHNOP_expand_array, NOWHERE) == EFAULT
        assert domu.init_control() == 0
        for gfn in (domu.l4, 1 << 40):
            assert domu.expand_array(gfn) == EINVAL
        # The same page may be given again: the guest confuses itself only.
        for _ in range(128):
            assert domu.expand_array() == 0
        assert domu.expand_array() == ENOSPC

    def test_two_level_events_move_over(self, world):
        dom0, domu = world.guest(), world.guest()
        quiet, masked, loud = (domu.alloc(0) for _ in range(3))
        far = [dom0.bind(1, port) for port in (quiet, masked, loud)]
        domu.mask(masked)
        assert [dom0.send(port) for port in far[1:]] == [0, 0]
        domu.acknowledge()
        domu.set_bit(0x800, loud, True)
        assert domu.init_control() == 0
        assert domu.status(loud).u.interdomain.port == far[2]
        # No array yet: what comes is remembered, and shown when the page with the words arrives.
        assert dom0.send(far[0]) == 0
        domu.set_word(loud, 0x1234)
        domu.set_word(masked, MASKED)
        domu.set_upcall_pending(0)
        assert domu.expand_array() == 0
        # (What was in the link stays there: nobody follows the link of the last.)
        assert domu.word(quiet) == QUEUED | loud
        assert domu.word(masked) == MASKED | PENDING
        assert domu.word(loud) == QUEUED | 0x1234
        assert (domu.ready(), domu.head(), domu.upcall_pending()) == (1 << 7, quiet, 1)
        # The two-level bits are left as they were.
        assert domu.pending(loud)

    def test_masked_until_there_is_a_word(self, domu):
        assert domu.init_control() == 0
        port = domu.ipi()
        assert domu.unmask(port) == 0
        assert domu.send(port) == 0
        assert domu.poll([port], 1) == 0, "not pending: the time is over"
        assert domu.expand_array() == 0
        assert domu.word(port) == QUEUED

    def test_ports_beyond_the_pages(self, domu):
        domu.use_fifo()
        domu.domain.max_evtchn_port = 5000
        ports = [domu.ipi() for _ in range(1100)]
        assert ports == list(range(1, 1101))
        assert domu.send(1100) == 0
        assert domu.expand_array(domu.pages[10]) == 0
        assert domu.hv.memory.i[(domu.pages[10] << 10) + 76] == QUEUED
        assert domu.head() == 1100

    def test_new_ports_find_their_words(self, domu):
        domu.use_fifo()
        assert domu.expand_array(domu.pages[10]) == 0
        ports = [domu.ipi() for _ in range(1030)]
        assert domu.send(ports[-1]) == 0
        assert domu.hv.memory.i[(domu.pages[10] << 10) + 6] == QUEUED

    def test_limits(self, domu):
        domu.use_fifo()
        domu.domain.max_evtchn_port = 1 << 30
        for _ in range(131071):
            assert domu.ipi() > 0
        assert domu.ipi() == ENOSPC
        assert domu.status(131071).status == ev.EVTCHNSTAT_ipi
        assert domu.status(131072) == EINVAL
        # Back with two levels the high ports still exist, closed, and cannot be had.
        assert domu.reset() == 0
        assert domu.status(131071).status == ev.EVTCHNSTAT_closed
        assert domu.send(131071) == EINVAL
        assert domu.poll([131071], 1) == EINVAL
        assert domu.unmask(131071) == 0
        while (port := domu.ipi()) > 0:
            last = port
        assert (last, port) == (4095, ENOSPC)

    def test_two_level_limit_is_seen_at_use(self, domu):
        # XSA-317, XSA-342: the table ends with an error, exactly at the limit; all can be freed, and had again.
        domu.domain.max_evtchn_port = 1 << 30
        for number in range(1, 4096):
            assert domu.ipi() == number
        assert domu.ipi() == ENOSPC
        assert domu.bind(1, 99999) == ENOSPC, "full wins over a bad remote port"
        assert domu.virq(xen.VIRQ_DEBUG) == ENOSPC
        for number in range(1, 4096):
            assert domu.close(number) == 0
        assert domu.ipi() == 1


class TestQueues:
    def test_send_links_and_makes_ready(self, fifo):
        domu, (first, second, *_) = fifo.domu, fifo.ports
        domu.set_upcall_pending(0)
        assert fifo.dom0.send(fifo.far[0]) == 0
        assert (domu.word(first), domu.head(), domu.ready(), domu.upcall_pending()) == (QUEUED, first, 0x80, 1)
        assert fifo.dom0.send(fifo.far[1]) == 0
        assert domu.word(first) == QUEUED | second
        assert domu.word(second) == QUEUED
        check_queues(fifo.hv)
        assert domu.selector() == 0
        assert not domu.pending(first)

    def test_a_pending_port_is_not_queued_twice(self, fifo):
        domu, port = fifo.domu, fifo.ports[0]
        for _ in range(3):
            fifo.dom0.send(fifo.far[0])
        assert (domu.word(port), domu.head()) == (QUEUED, port)
        domu.set_ready(0)
        domu.set_upcall_pending(0)
        fifo.dom0.send(fifo.far[0])
        assert (domu.ready(), domu.upcall_pending()) == (0, 0)

    def test_masked(self, fifo):
        domu, port = fifo.domu, fifo.ports[0]
        domu.set_word(port, MASKED)
        fifo.dom0.send(fifo.far[0])
        assert (domu.word(port), domu.ready()) == (PENDING | MASKED, 0)
        assert domu.unmask(port) == 0
        assert (domu.word(port), domu.ready(), domu.head()) == (QUEUED, 0x80, port)

    def test_unmask_links_what_the_guest_unmasked_itself(self, fifo):
        # Unlike in two-level mode the edge of the mask does not matter: pending and not linked is enough.
        domu, port = fifo.domu, fifo.ports[0]
        domu.set_word(port, PENDING)
        assert domu.unmask(port) == 0
        assert domu.word(port) == QUEUED
        domu.set_word(port, 0)
        assert domu.unmask(port) == 0
        assert domu.word(port) == 0

    def test_guest_that_unlinks_the_tail_gets_a_new_head(self, fifo):
        domu, (first, second, *_) = fifo.domu, fifo.ports
        fifo.dom0.send(fifo.far[0])
        domu.set_word(first, 0)
        fifo.dom0.send(fifo.far[1])
        assert (domu.word(first), domu.word(second), domu.head()) == (0, QUEUED, second)
        # The ready bit was still set, so there was no new upcall to make.
        assert domu.ready() == 0x80

    def test_linking_clears_busy_and_old_links(self, fifo):
        domu, (first, second, *_) = fifo.domu, fifo.ports
        fifo.dom0.send(fifo.far[0])
        domu.set_word(first, LINKED | BUSY | MASKED | 0x1FFFF | 0xFFE0000)
        fifo.dom0.send(fifo.far[1])
        assert domu.word(first) == LINKED | MASKED | 0xFFE0000 | second

    def test_events_stay_in_order(self, fifo):
        domu = fifo.domu
        for far in (2, 0, 3, 1):
            fifo.dom0.send(fifo.far[far])
        assert consume(domu) == [fifo.ports[index] for index in (2, 0, 3, 1)]
        assert all(domu.word(port) == 0 for port in fifo.ports)
        fifo.dom0.send(fifo.far[3])
        assert consume(domu) == [fifo.ports[3]]

    def test_closing_leaves_the_port_queued_and_busy(self, fifo):
        domu, (first, second, *_) = fifo.domu, fifo.ports
        fifo.dom0.send(fifo.far[0])
        fifo.dom0.send(fifo.far[1])
        assert domu.close(first) == 0
        assert domu.word(first) == LINKED | second
        # Not free as long as it is on the queue, then it is the lowest again.
        assert domu.ipi() == fifo.ports[-1] + 1
        assert consume(domu) == [second], "what is not pending is unlinked and ignored"
        assert domu.ipi() == first

    def test_polling(self, fifo):
        domu, port = fifo.domu, fifo.ports[0]
        domu.set_word(port, MASKED)
        seen = []

        def program(cpu):
            seen.append(domu.poll([port]))
            yield 0
            seen.append(domu.word(port))
            domu.shutdown(0)
            yield 0

        domu.set_upcall_pending(0)
        domu.runs(program)
        fifo.hv.timers.add(5 * MS, lambda: fifo.dom0.send(fifo.far[0]))
        fifo.world.run()
        assert seen == [0, PENDING | MASKED]
        assert domu.domain.shutdown_code == sched.SHUTDOWN_poweroff


class TestPriorities:
    def test_answers(self, fifo):
        domu, port = fifo.domu, fifo.ports[0]
        assert [domu.set_priority(port, priority) for priority in (0, 3, 15)] == [0, 0, 0]
        assert domu.set_priority(port, 16) == EINVAL
        assert domu.set_priority(port, 0xFFFFFFFF) == EINVAL
        assert domu.set_priority(0, 0) == EACCES
        assert domu.set_priority(60, 16) == EACCES, "a port that is not in use, before a bad priority"
        assert domu.set_priority(5000, 0) == EINVAL

    def test_each_has_a_queue(self, fifo):
        domu = fifo.domu
        for port, priority in zip(fifo.ports, (3, 15, 0, 7), strict=True):
            domu.set_priority(port, priority)
        for far in fifo.far:
            fifo.dom0.send(far)
        assert domu.ready() == 1 << 3 | 1 << 15 | 1 << 0 | 1 << 7
        assert [domu.head(priority) for priority in (3, 15, 0, 7)] == fifo.ports
        assert consume(domu) == [fifo.ports[index] for index in (2, 0, 3, 1)]

    def test_a_queued_port_stays_on_its_queue(self, fifo):
        domu, port = fifo.domu, fifo.ports[0]
        fifo.dom0.send(fifo.far[0])
        assert domu.set_priority(port, 0) == 0
        fifo.dom0.send(fifo.far[0])
        assert (domu.ready(), domu.head(0)) == (0x80, 0)
        assert consume(domu) == [port]
        fifo.dom0.send(fifo.far[0])
        assert (domu.ready(), domu.head(0)) == (1, port)

    def test_moving_the_tail_ends_its_old_queue(self, fifo):
        # The port was the tail of queue 7. On queue 3 now, it is LINKED again, but no longer on queue 7: whoever is
        # appended there must not be hung behind it.
        domu, (moved, other, *_) = fifo.domu, fifo.ports
        fifo.dom0.send(fifo.far[0])
        assert consume(domu) == [moved]
        domu.set_priority(moved, 3)
        fifo.dom0.send(fifo.far[0])
        fifo.dom0.send(fifo.far[1])
        assert (domu.word(moved), domu.word(other)) == (QUEUED, QUEUED)
        assert (domu.head(3), domu.head(7)) == (moved, other)
        check_queues(fifo.hv)

    def test_new_ports_have_the_default(self, fifo):
        domu, port = fifo.domu, fifo.ports[0]
        domu.set_priority(port, 0)
        assert domu.close(port) == 0
        assert domu.ipi() == port
        domu.send(port)
        assert domu.ready() == 0x80


class TestVcpus:
    def test_moving_between_vcpus(self, fifo):
        domu, (port, other, *_) = fifo.domu, fifo.ports
        fifo.dom0.send(fifo.far[0])
        assert domu.bind_vcpu(port, 1) == 0
        assert domu.ready(1) == 0, "what is queued is not moved"
        assert consume(domu, 0) == [port]
        fifo.dom0.send(fifo.far[0])
        assert (domu.ready(1), domu.head(7, vcpu=1)) == (0x80, port)
        fifo.dom0.send(fifo.far[1])
        assert (domu.head(7), domu.word(port)) == (other, QUEUED)
        assert (consume(domu, 1), consume(domu, 0)) == ([port], [other])
        check_queues(fifo.hv)

    def test_a_vcpu_without_control_block(self, domu):
        # XSA-107. Real Xen drops the event, and says so on its console; the host lives, and later events arrive.
        port = domu.ipi(1)
        assert domu.init_control(0) == 0
        assert domu.expand_array() == 0
        assert domu.send(port) == 0
        assert domu.word(port) == 0
        assert domu.init_control(1) == 0
        assert domu.send(port) == 0
        assert (domu.word(port), domu.ready(1), domu.upcall_pending(1)) == (QUEUED, 0x80, 1)


class TestBackToTwoLevels:
    def test_reset(self, fifo):
        domu = fifo.domu
        fifo.dom0.send(fifo.far[0])
        assert domu.reset() == 0
        assert all(domu.status(port).status == ev.EVTCHNSTAT_closed for port in fifo.ports)
        assert domu.word(fifo.ports[0]) == LINKED, "closing has cleared what was pending, and nothing more"
        assert domu.set_priority(1, 1) == ENOSYS
        port = domu.ipi()
        assert (port, domu.send(port)) == (1, 0)
        assert domu.pending(port)
        # And there again.
        domu.use_fifo()

    def test_what_was_pending_once_is_raised_at_each_return(self, domu):
        # Xen never takes back that a port was raised without an event word.
        assert domu.init_control() == 0
        port = domu.ipi()
        domu.send(port)
        assert domu.expand_array() == 0
        assert domu.word(port) == QUEUED
        assert domu.reset() == 0
        domu.set_word(port, 0)
        domu.set_ready(0)
        assert domu.init_control() == 0
        assert domu.expand_array() == 0
        assert domu.word(port) == QUEUED, "though the port is closed"
        assert domu.ipi() == port + 1, "and it is busy until the guest takes it off the queue"

    def test_dom0_resets_a_paused_domain(self, fifo):
        assert fifo.dom0.reset(1) == 0, "created paused"
        assert fifo.domu.domain.fifo is None


class TestPreemptedReset:
    """XSA-343, XSA-344: a reset of many ports makes room for others, who see it half done."""

    @staticmethod
    def guests(points, *, fifo=True):
        world = World()
        dom0, domu = world.guest(), world.guest()
        if fifo:
            domu.use_fifo()
        for _ in range(200):
            dom0.bind(1, domu.alloc(0))
        points.on(world.hv)
        # What is called meanwhile has its arguments elsewhere: those of the reset are read again when it goes on.
        domu.reset_at = domu.args
        domu.poke(domu.args, ev.evtchn_reset.pack(dom=SELF))
        domu.args = domu.va(DATA_PAGES - 1)
        return world, dom0, domu

    @staticmethod
    def reset(domu, op=ev.EVTCHNOP_reset):
        return domu.hypercall(EVTCHN_OP, op, domu.reset_at)

    @pytest.mark.parametrize("fifo", [False, True])
    def test_the_outcome_is_the_same(self, fifo):
        def work(points):
            world, dom0, domu = self.guests(points, fifo=fifo)
            assert self.reset(domu) == 0
            points.off()
            world.check()
            states = [dom0.status(port).status for port in range(1, 201)]
            return states, domu.domain.active_ports, domu.domain.fifo, domu.ipi()

        states, *rest = everywhere(work, least=3)
        assert states == [ev.EVTCHNSTAT_unbound] * 200
        assert rest == [0, None, 1]

    def test_dom0_resets_another(self):
        def work(points):
            _, dom0, domu = self.guests(points)
            return dom0.reset(1), domu.domain.active_ports

        assert everywhere(work, least=3) == (0, 0)

    def test_the_old_operation_cannot_be_started_twice(self):
        answers = []

        def others(_):
            answers.append((domu.reset(), domu.send(150), domu.send(10), domu.domain.fifo is not None))

        points = Points(1)
        points.others = others
        _, _, domu = self.guests(points)
        assert self.reset(domu) == 0
        assert answers == [(-errno.EBUSY, 0, EINVAL, True)]

    def test_who_binds_meanwhile_is_seen(self):
        points = Points(ALWAYS)
        points.others = lambda _: domu.ipi()
        _, _, domu = self.guests(points)
        assert self.reset(domu) == -errno.EAGAIN
        assert domu.domain.fifo is not None
        assert domu.domain.active_ports == points.stops
        points.off()
        assert self.reset(domu) == 0

    def test_a_guest_may_go_on_with_it_itself(self):
        points = Points(1)
        points.others = lambda _: self.reset(domu, 14)
        _, _, domu = self.guests(points)
        assert self.reset(domu) == -errno.EBUSY, "nothing is left to go on with"
        assert domu.domain.active_ports == 0
        assert self.reset(domu, 14) == -errno.EBUSY

    def test_array_pages_meanwhile(self):
        # XSA-505: the page is taken, and given back with the others when the reset is over.
        points = Points(1)
        points.others = lambda _: domu.expand_array(domu.pages[9])
        world, _, domu = self.guests(points)
        assert self.reset(domu) == 0
        assert domu.pin_l1(domu.pages[9]) == EINVAL, "still mapped writable, but that is all"
        world.check()

    def test_the_domain_dies_meanwhile(self):
        points = Points(1)
        points.others = lambda _: world.hv.domain_ops.kill(domu.domain)
        world, _, domu = self.guests(points)
        assert self.reset(domu) == 0
        assert list(world.hv.domains) == [0]
        world.check()


class TestHostileGuests:
    def test_words_of_all_ones(self, fifo):
        domu = fifo.domu
        for index in range(1024):
            domu.set_word(index, 0xFFFFFFFF)
        for far in fifo.far:
            assert fifo.dom0.send(far) == 0
        for port in fifo.ports:
            assert domu.unmask(port) == 0
            assert domu.close(port) == 0
        # Each port that exists is busy for ever; the first of a bucket that has to be made is not looked at.
        assert [domu.ipi(), domu.ipi()] == [64, 128]
        assert domu.reset() == 0

    def test_one_page_for_everything(self, world):
        # Control blocks and array all in one frame: Xen writes into that frame and nowhere else.
        dom0, domu = world.guest(), world.guest()
        port = domu.alloc(0)
        far = dom0.bind(1, port)
        assert domu.init_control(gfn=domu.pages[3]) == 0
        for _ in range(3):
            assert domu.expand_array(domu.pages[3]) == 0
        for _ in range(70):
            assert domu.ipi() > 0
        others = bytes(world.hv.memory.b[domu.pages[4] << 12 : (domu.pages[4] << 12) + 4096])
        for number in range(1, 70):
            domu.send(number)
            dom0.send(far)
            world.hv.memory.i[(domu.pages[3] << 10) + number] ^= 0xFFFFFFFF
        assert bytes(world.hv.memory.b[domu.pages[4] << 12 : (domu.pages[4] << 12) + 4096]) == others


def consume(guest, vcpu: int = 0) -> list[int]:
    """What an upcall handler does with the FIFO ABI: returns the ports whose events it took, most urgent first."""
    words, found = guest.hv.memory.i, []
    guest.set_upcall_pending(0, vcpu)
    while ready := guest.ready(vcpu):
        priority = (ready & -ready).bit_length() - 1
        guest.set_ready(ready & (ready - 1), vcpu)
        port = guest.head(priority, vcpu)
        while port:
            at = guest.word_at(port)
            word = words[at]
            words[at] = word & ~(LINKED | 0x1FFFF) & ~(0 if word & MASKED else PENDING)
            if word & PENDING and not word & MASKED:
                found.append(port)
            port = word & 0x1FFFF
    return found


def test_set_pending_without_upcall_mask_wakes(fifo):
    domu, seen = fifo.domu, []

    def program(cpu):
        domu.set_upcall_pending(0)
        domu.set_upcall_mask(0)
        domu.block()
        yield 0
        seen.append("woken")
        domu.shutdown(0)
        yield 0

    domu.runs(program, handler=lambda: seen.append(consume(domu)))
    consume(domu)
    fifo.hv.timers.add(MS, lambda: fifo.dom0.send(fifo.far[2]))
    fifo.world.run()
    assert seen == [[fifo.ports[2]], "woken"]


def test_what_an_upcall_says(fifo):
    """A trace shows with each upcall the queues that are ready, or the words of the bitmap."""
    fifo.domu.set_priority(fifo.ports[1], 2)
    for far in fifo.far[:2]:
        fifo.dom0.send(far)
    assert fifo.domu.vcpus[0].ready_bits() == 1 << 7 | 1 << 2
    fifo.domu.reset()
    port = fifo.domu.ipi()
    fifo.domu.send(port)
    assert fifo.domu.vcpus[0].ready_bits() == 1


def test_reset_of_self_by_number(fifo):
    assert fifo.domu.reset(1) == 0
    assert fifo.domu.reset(SELF) == 0
