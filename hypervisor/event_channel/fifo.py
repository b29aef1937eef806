"""The FIFO event ABI (event_channel.h, "FIFO ABI"; docs/event-channels.md has a picture).

Each port has a 32-bit event word in an array of pages that the guest gives:

    31 PENDING   30 MASKED   29 LINKED   28 BUSY   ...   16..0 LINK, the next port on the queue, 0 = none

and each vCPU 16 queues, one a priority. A queue is a list of ports through their LINK fields. Xen appends, and keeps
the tail to itself; the guest takes from the front, and keeps its own idea of the head. They meet in the control block
of the vCPU: `head[priority]`, which Xen writes only when it finds the queue empty, and `ready`, a bit for each queue
that is not. A word is on a queue exactly while it is LINKED, and only the guest unlinks it; so the queue is empty when
the word of its tail is not LINKED any more.

The guest owns all these words and may write anything into them. Xen follows no link and reads no head: of the guest's
words only four bits ever decide anything here, so whatever they say, Xen writes only to words of bound ports, to heads
and to ready bits of pages that it holds references to. The worst that a hostile guest does is to lose its own events.

Xen changes a word by compare-and-swap, and sets BUSY to keep the guest from changing a word under its hands for ever.
Here a hypercall is atomic: the swap never fails and BUSY is only ever cleared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno
from hypervisor.abi.event_channel import (
    EVTCHN_2L_NR_CHANNELS,
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    EVTCHN_FIFO_PRIORITY_MIN,
    evtchn_fifo_control_block,
)
from hypervisor.abi.tracepoints import EVTCHN_PENDING
from hypervisor.errors import HypercallError
from hypervisor.event_channel.port_ops import check_pollers
from hypervisor.vcpu import VPF_BLOCKED

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.event_channel.channel import Channel
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

PENDING, MASKED = 1 << EVTCHN_FIFO_PENDING, 1 << EVTCHN_FIFO_MASKED
LINKED, BUSY = 1 << EVTCHN_FIFO_LINKED, 1 << EVTCHN_FIFO_BUSY
NOT_THE_LINK = 0xFFFF_FFFF & ~(BUSY | EVTCHN_FIFO_LINK_MASK)

WORDS_PER_PAGE = 1024
MAX_ARRAY_PAGES = EVTCHN_FIFO_NR_CHANNELS // WORDS_PER_PAGE
MAX_OFFSET = 4096 - evtchn_fifo_control_block.size
ALIGNMENT = 8
_HEAD = evtchn_fifo_control_block.offset("head") >> 2

NO_WORD = -1
"""`Channel.word_at` as long as the page with the port's event word has not been given."""


class Queue:
    """One priority of one vCPU, as Xen sees it."""

    __slots__ = ("bit", "head_at", "page", "ready_at", "tail_at")

    def __init__(self, control_block: int, priority: int) -> None:
        self.bit = 1 << priority
        self.page = control_block >> 10
        """The frame of the control block."""
        self.ready_at = control_block
        """Index of the control block's `ready` in the 32-bit words of memory."""
        self.head_at = control_block + _HEAD + priority
        self.tail_at = NO_WORD
        """Where the event word of the port is that was appended last; NO_WORD when the queue is known to be empty."""


def make_queues(control_block: int) -> tuple[Queue, ...]:
    """Return the queues of a vCPU whose control block is at this index of the 32-bit words of memory."""
    return tuple(Queue(control_block, priority) for priority in range(EVTCHN_FIFO_MAX_QUEUES))


Lane = tuple[Queue, "VCpu", int, int, int, int, int, int, int]
"""What raising an event looks up: the queue and its vCPU; the port, where its event word is, and the frame of that; of
the queue: where its head and its ready bits are, its bit, and the frame of these."""


def make_lane(channel: Channel, queue: Queue) -> Lane:
    """Return how events of a port come to a queue, which holds as long as neither its vCPU nor its priority changes."""
    where = channel.port, channel.word_at, channel.word_page
    return queue, channel.vcpu, *where, queue.head_at, queue.ready_at, queue.bit, queue.page


class Fifo:
    """The event array and the control blocks of a domain that has chosen this ABI (`PortOps`)."""

    max_ports = EVTCHN_FIFO_NR_CHANNELS

    def __init__(self, hv: Hypervisor, domain: Domain, set_pending: Callable[[Channel], None]) -> None:
        self._hv = hv
        self._domain = domain
        self.set_pending = set_pending
        self.pages: list[int] = []
        """The frames of the event array, each held."""
        self.control_blocks: dict[VCpu, int] = {}
        """Frame of each vCPU's control block, held."""

    # -- what the guest gives -------------------------------------------------------------------------------------

    def init_control(self, vcpu: VCpu, gfn: int, offset: int) -> None:
        """Register the control block of a vCPU. Raises HypercallError(EINVAL): it has one, or it is no good frame."""
        if vcpu in self.control_blocks:
            raise HypercallError(errno.EINVAL)
        mfn = self._hv.mm.get_writable_frame(self._domain, gfn)
        self.control_blocks[vcpu] = mfn
        vcpu.event_queues = make_queues((mfn << 12) + offset >> 2)

    def adopt_ports(self) -> None:
        """Take over the ports that are bound already: what is pending in the two-level bits is raised again later."""
        q = self._hv.memory.q
        for channel in self._domain.ports[1:EVTCHN_2L_NR_CHANNELS]:
            if q[channel.pending_at] & channel.bit:
                channel.pending = True
            channel.priority = EVTCHN_FIFO_PRIORITY_DEFAULT

    def expand_array(self, gfn: int) -> None:
        """Add a page of event words. Raises HypercallError: ENOSPC, EINVAL for a frame that is not the guest's RAM.

        What was raised while the page was missing is raised now. (Xen never forgets that it was: when a guest goes back
        to two levels and comes again, the port is raised once more.)
        """
        if len(self.pages) >= MAX_ARRAY_PAGES:
            raise HypercallError(errno.ENOSPC)
        mfn = self._hv.mm.get_writable_frame(self._domain, gfn)
        first = len(self.pages) * WORDS_PER_PAGE
        self.pages.append(mfn)
        for channel in self._domain.ports[first : first + WORDS_PER_PAGE]:
            self.place(channel)
            if channel.pending:
                self.set_pending(channel)

    def place(self, channel: Channel) -> None:
        """Find the event word of a port, if its page is there."""
        page, word = divmod(channel.port, WORDS_PER_PAGE)
        if page < len(self.pages):
            channel.word_page = self.pages[page]
            channel.word_at = (channel.word_page << 10) + word
        else:
            channel.word_at = NO_WORD

    def destroy(self) -> None:
        """Give all pages back."""
        put = self._hv.mm.put_writable_frame
        for vcpu, mfn in self.control_blocks.items():
            vcpu.event_queues = ()
            put(self._domain, mfn)
        for mfn in self.pages:
            put(self._domain, mfn)
        self.control_blocks.clear()
        self.pages.clear()
        for channel in self._domain.ports:
            channel.word_at = NO_WORD
            channel.queue = None
            channel.leave_lane()

    # -- ports ----------------------------------------------------------------------------------------------------

    def _word(self, channel: Channel) -> int:
        return self._hv.memory.i[channel.word_at] if channel.word_at >= 0 else MASKED

    def _clear(self, channel: Channel, bit: int) -> None:
        at = channel.word_at
        if at >= 0:
            self._hv.memory.i[at] &= ~bit & 0xFFFF_FFFF
            self._hv.memory.written[at >> 10] = 1

    def clear_pending(self, channel: Channel) -> None:
        """Clear PENDING. The port stays on its queue: the guest unlinks it, and ignores what is not pending."""
        self._clear(channel, PENDING)

    def unmask(self, channel: Channel) -> None:
        """Clear MASKED, and queue the port if it is pending."""
        self._clear(channel, MASKED)
        if self.is_pending(channel):
            self.set_pending(channel)

    def is_pending(self, channel: Channel) -> bool:
        """Whether PENDING is set."""
        return bool(self._word(channel) & PENDING)

    def is_masked(self, channel: Channel) -> bool:
        """Whether MASKED is set, or there is no word to hold it."""
        return bool(self._word(channel) & MASKED)

    def is_busy(self, channel: Channel) -> bool:
        """Whether the port is on a queue: a new owner would be told of it at the old priority."""
        return bool(self._word(channel) & LINKED)

    def init(self, channel: Channel) -> None:
        """A new port has the default priority."""
        channel.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        channel.leave_lane()

    def set_priority(self, channel: Channel, priority: int) -> int:
        """Choose the queue of coming events. One that is queued stays where it is."""
        if priority > EVTCHN_FIFO_PRIORITY_MIN:
            return -errno.EINVAL
        channel.priority = priority
        channel.leave_lane()
        return 0


def make_set_pending(hv: Hypervisor) -> Callable[[Channel], None]:  # noqa: C901 - it is several functions
    """Return `set_pending(channel)` of all domains with this ABI, on local names.

    What happens most is that the guest has taken the event before, and whatever was the last on the queue, and neither
    the port's vCPU nor its priority has changed. Then the queue begins anew with the port. A port that has been raised
    once gets a function that does this (`Channel.deliver`) and leaves all the rest to `set_pending`.
    """
    memory = hv.memory
    b, words, written = memory.b, memory.i, memory.written
    kick, plain, trace = hv.sched.kick, hv.sched.plain, hv.trace
    tape = None if hv.tape is None else hv.tape.words
    clock, run_queue, pollers = hv.clock, hv.sched.run_queue.append, hv.sched.pollers
    fresh = PENDING | LINKED
    asleep = VPF_BLOCKED if plain else -1

    def make_deliver(lane: Lane) -> Callable[[Channel], None]:  # noqa: C901 - see above
        queue, vcpu, port, at, page, head_at, ready_at, bit, block = lane

        def deliver(channel: Channel) -> None:  # noqa: C901 - every event passes here, so it is in one piece
            if words[at]:
                set_pending(channel)
                return
            tail_at = queue.tail_at
            if tail_at != at:
                # Ports of one vCPU take turns: a disk's interrupt and its frontend, say.
                if tail_at < 0 or words[tail_at]:
                    set_pending(channel)
                    return
                queue.tail_at = at
            if trace is not None:
                if tape is not None:
                    tape.append(vcpu.codes.pending)
                    tape.append(port)
                else:
                    trace(channel.domain.domid, vcpu.vcpu_id, EVTCHN_PENDING, port)
            if memory.watched:
                written[page] = written[block] = 1
                if vcpu.info_registered:
                    written[vcpu.info >> 12] = 1
            words[at] = fresh
            words[head_at] = port
            if words[ready_at]:
                make_ready(vcpu, queue)
            else:
                # The same, written out.
                words[ready_at] = bit
                info = vcpu.info
                if not b[info]:
                    b[info] = 1
                    if vcpu.pause_flags == asleep and not vcpu.queued:
                        # `Scheduler.wake`, as in the two-level ABI.
                        vcpu.pause_flags = 0
                        vcpu.queued = True
                        vcpu.ready_at = clock.now
                        run_queue(vcpu)
                        if tape is not None:
                            tape.append(vcpu.codes.wake)
                    else:
                        woken(vcpu)
            if pollers and channel.domain.pollers:
                check_pollers(channel)

        return deliver

    def make_ready(vcpu: VCpu, queue: Queue) -> None:
        """Tell a vCPU that a queue is not empty any more."""
        at = queue.ready_at
        written[at >> 10] = 1
        ready = words[at]
        if ready & queue.bit:
            return
        words[at] = ready | queue.bit if ready else queue.bit
        if not b[vcpu.info]:
            b[vcpu.info] = 1
            woken(vcpu)

    def woken(vcpu: VCpu) -> None:
        """The upcall flag of a vCPU has been set."""
        if vcpu.info_registered:
            written[vcpu.info >> 12] = 1
        if not plain or vcpu.pause_flags & VPF_BLOCKED:
            kick(vcpu)

    def set_pending(channel: Channel) -> None:
        """Raise an event, in all cases."""
        at, vcpu = channel.word_at, channel.vcpu
        if at < 0:
            channel.pending = True
            return
        if not vcpu.event_queues:
            # The vCPU has no control block: the event is lost (XSA-107), as real Xen loses it.
            return
        word = words[at]
        written[at >> 10] = 1
        if trace is not None and not word & PENDING:
            trace(channel.domain.domid, vcpu.vcpu_id, EVTCHN_PENDING, channel.port)
        words[at] = word | PENDING
        if not word & (MASKED | LINKED):
            words[at] = word | fresh
            queue = vcpu.event_queues[channel.priority]
            last, channel.queue = channel.queue, queue
            if last is not queue or channel.lane is None:
                channel.lane = lane = make_lane(channel, queue)
                # (Not where something stands between the events and the ports of the domain.)
                if channel.domain.set_pending is set_pending:
                    channel.deliver = make_deliver(lane)
            if last is not None and last.tail_at == at:
                # It was the last of a queue that the guest has emptied. Nothing may be appended to it there any more.
                last.tail_at = NO_WORD
            if not append(channel, queue):
                make_ready(vcpu, queue)
        if channel.domain.pollers and not word & PENDING:
            check_pollers(channel)

    def append(channel: Channel, queue: Queue) -> bool:
        """Put a port at the end of a queue; False if that was empty, and it begins anew."""
        tail_at = queue.tail_at
        queue.tail_at = channel.word_at
        if tail_at >= 0:
            word = words[tail_at]
            if word & LINKED:
                words[tail_at] = word & NOT_THE_LINK | channel.port
                written[tail_at >> 10] = 1
                return True
        # Nobody was waiting, or the guest has taken the last one off.
        words[queue.head_at] = channel.port
        return False

    return set_pending
