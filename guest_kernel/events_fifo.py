"""The FIFO event ABI from the guest's side: an event word for each port, and 16 queues for each vCPU.

Xen links the ports that have events into queues, one a priority; the vCPU's control block says which are ready, and
where each begins. An upcall takes the ready bits and follows each queue, most urgent first: it takes a port off by
clearing LINKED and the link in its word, and its event by clearing PENDING, before the handler runs. So an event that
comes meanwhile is not lost: the port is put on a queue again.

A word is written in one step. Nothing interrupts a Python vCPU between two yields, so no other can write to it between
reading and writing, and the compare-and-swap that a real kernel needs is not needed here.
"""

from __future__ import annotations

from collections.abc import Callable

from guest_kernel.errors import XenError
from guest_kernel.events_two_level import Handler
from guest_kernel.hypercalls import Hypercalls
from guest_kernel.mm import Page
from guest_kernel.threads import FAILURES, INTERRUPTS
from hypervisor.abi import errno
from hypervisor.abi.event_channel import (
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_unmask,
    evtchn_expand_array,
    evtchn_fifo_control_block,
    evtchn_init_control,
    evtchn_unmask,
)
from hypervisor.abi.xen import shared_info, vcpu_info

PENDING, MASKED, LINKED = 1 << EVTCHN_FIFO_PENDING, 1 << EVTCHN_FIFO_MASKED, 1 << EVTCHN_FIFO_LINKED
ALONE = PENDING | LINKED
"""The word of a port that is at the end of its queue, and not masked."""
NOT_LINKED = 0xFFFF_FFFF & ~(LINKED | EVTCHN_FIFO_LINK_MASK)
DEFAULT = 1 << EVTCHN_FIFO_PRIORITY_DEFAULT

WORDS_PER_PAGE = 1024
_HEAD = evtchn_fifo_control_block.offset("head") >> 2
_BLOCK = 128
"""Control blocks lie this far from each other, 32 on a page."""
_BLOCKS_PER_PAGE = 4096 // _BLOCK
_ALL_MASKED = MASKED.to_bytes(4, "little") * WORDS_PER_PAGE


Slot = tuple[memoryview, int, Handler]
"""Where the word of a bound port is: a page of words, and which of them; and who hears it. (A tuple and nothing derived
from it: such are taken apart in a sixth of the time.)"""


class FifoPorts:
    """Handlers and words of the ports. `start` makes one, if Xen has this ABI."""

    def __init__(
        self,
        hypercalls: Hypercalls,
        shared: memoryview,
        alloc_page: Callable[[], Page],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._hypercalls = hypercalls
        self._bytes = shared
        self._alloc_page = alloc_page
        self._on_failure = on_failure
        self._blocks: dict[int, Page] = {}
        """The pages of control blocks, by the first vCPU on each."""
        self._array: list[memoryview] = []
        """The pages of event words."""
        self._slots: dict[int, Slot] = {}
        """Bound ports."""
        self._live: dict[int, Slot] = {}
        """Those that are not masked."""

    @classmethod
    def start(
        cls,
        hypercalls: Hypercalls,
        shared: memoryview,
        alloc_page: Callable[[], Page],
        on_failure: Callable[[BaseException], None],
    ) -> FifoPorts | None:
        """Ask Xen for the FIFO ABI, with a control block for vCPU 0; None if it has none. Raises XenError."""
        ports = cls(hypercalls, shared, alloc_page, on_failure)
        try:
            ports._init_control(0)
        except XenError as error:
            if error.errno != errno.ENOSYS:
                raise
            return None
        return ports

    def _init_control(self, vcpu_id: int) -> memoryview:
        """Give Xen the control block of a vCPU; returns the page that it is on, in 32-bit words."""
        first = vcpu_id - vcpu_id % _BLOCKS_PER_PAGE
        page = self._blocks.get(first)
        if page is None:
            page = self._blocks[first] = self._alloc_page()
            page.view[:] = bytes(4096)
        self._hypercalls.event_channel(
            EVTCHNOP_init_control,
            evtchn_init_control,
            "EVTCHNOP_init_control",
            control_gfn=page.mfn,
            offset=(vcpu_id - first) * _BLOCK,
            vcpu=vcpu_id,
        )
        return page.i

    def make_upcall(self, vcpu_id: int) -> Handler:
        """Return the code that Xen is to enter on vCPU `vcpu_id`, which executes this. Raises XenError."""
        words = self._blocks[0].i if vcpu_id == 0 else self._init_control(vcpu_id)
        flag = shared_info.offset(f"vcpu_info[{vcpu_id}]") + vcpu_info.offset("evtchn_upcall_pending")
        ready_at = vcpu_id % _BLOCKS_PER_PAGE * (_BLOCK >> 2)
        head_at = ready_at + _HEAD + EVTCHN_FIFO_PRIORITY_DEFAULT
        shared_bytes, on_failure, find = self._bytes, self._on_failure, self._live.get
        drain = self._drain

        def upcall() -> None:
            shared_bytes[flag] = 0
            ready = words[ready_at]
            words[ready_at] = 0
            try:
                if ready == DEFAULT:
                    slot = find(words[head_at])
                    if slot is not None:
                        array, index, handler = slot
                        if array[index] == ALONE:
                            # Nearly always one port is on one queue.
                            array[index] = 0
                            handler()
                            return
                drain(words, ready_at, ready)
            except INTERRUPTS:
                raise
            except FAILURES as failure:
                on_failure(failure)

        return upcall

    def _drain(self, control: memoryview, ready_at: int, ready: int) -> None:
        """Take the events of all queues that are ready, one after the other, the most urgent first at any time."""
        heads: dict[int, int] = {}
        while ready:
            bit = ready & -ready
            priority = bit.bit_length() - 1
            port = heads.get(bit) or control[ready_at + _HEAD + priority]
            handler, heads[bit] = self._take(port)
            if not heads[bit]:
                ready &= ~bit
            if handler is not None:
                handler()
                # What came meanwhile may be more urgent than the rest.
                ready |= control[ready_at]
                control[ready_at] = 0

    def _take(self, port: int) -> tuple[Handler | None, int]:
        """Take a port off its queue; returns the handler, if there is an event for one, and the next port (0: none)."""
        page = port >> 10
        if page >= len(self._array):
            return None, 0  # a head that Xen has never written: the queue was made ready by somebody else
        words, index = self._array[page], port & WORDS_PER_PAGE - 1
        word = words[index]
        if word & MASKED or not word & PENDING:
            words[index] = word & NOT_LINKED
            return None, word & EVTCHN_FIFO_LINK_MASK
        words[index] = word & NOT_LINKED & ~PENDING
        slot = self._live.get(port)
        return slot[2] if slot is not None else None, word & EVTCHN_FIFO_LINK_MASK

    # -- ports ----------------------------------------------------------------------------------------------------

    def set_handler(self, port: int, handler: Handler) -> None:
        """Put another handler on a bound port, or the first on one that is masked. Raises XenError."""
        while port >> 10 >= len(self._array):
            self._expand()
        slot = self._slots[port] = (self._array[port >> 10], port & WORDS_PER_PAGE - 1, handler)
        if port in self._live:
            self._live[port] = slot

    def _expand(self) -> None:
        """Give Xen another page of event words. Every port begins masked; binding one unmasks it."""
        page = self._alloc_page()
        page.view[:] = _ALL_MASKED
        self._hypercalls.event_channel(
            EVTCHNOP_expand_array, evtchn_expand_array, "EVTCHNOP_expand_array", array_gfn=page.mfn
        )
        self._array.append(page.i)

    def remove_handler(self, port: int) -> None:
        """Forget the handler of a port that has been closed and is masked."""
        self._slots.pop(port, None)

    def mask(self, port: int) -> None:
        """Hold the events of a port back; one that comes is remembered."""
        slot = self._slots.get(port)
        if slot is not None:
            words, at, _ = slot
            words[at] |= MASKED
            self._live.pop(port, None)

    def unmask(self, port: int) -> None:
        """Let the events of a port through; one that is pending comes at the next yield."""
        slot = self._slots[port]
        self._live[port] = slot
        words, at, _ = slot
        word = words[at]
        if word & PENDING:
            # Xen has to link it: it is on no queue if it was masked when the event came.
            self._hypercalls.event_channel(EVTCHNOP_unmask, evtchn_unmask, "EVTCHNOP_unmask", port=port)
        else:
            words[at] = word & ~MASKED

    def bound(self) -> list[int]:
        """Return the ports that have a handler."""
        return list(self._slots)

    def is_pending(self, port: int) -> bool:
        """Return whether an event waits on a port (a masked one, or one whose upcall has not come yet)."""
        words, at, _ = self._slots[port]
        return bool(words[at] & PENDING)
