"""The shared producer-consumer ring of the split drivers (`xen/io/ring.h`), as index arithmetic and nothing else.

A ring is one page (or several, contiguous) that two domains share. It begins with four 32-bit indices, which only
ever grow and wrap at 2**32, and holds from byte 64 on a power-of-two number of slots. The front end puts requests
into slots and moves `req_prod`; the back end overwrites a consumed slot with its response and moves `rsp_prod`.
`req_event` and `rsp_event` say from which index on the consumer wants to be notified.

    byte 0   req_prod    written by the front end
    byte 4   req_event   written by the back end: "tell me when req_prod passes this"
    byte 8   rsp_prod    written by the back end
    byte 12  rsp_event   written by the front end
    byte 64  slot 0, slot 1, ... each as large as the larger of request and response

What each end believes it has done (`req_prod_pvt`, `rsp_cons`; `rsp_prod_pvt`, `req_cons`) is private, since the
peer may write anything into the page at any time. The classes here read a shared index exactly once per call and
never trust it: the number of slots that a caller may touch is always derived from private indices, or is offered
for a check (`overflow`). There is no I/O, no clock and no memory of their own: bytes and calls in, numbers out.

Names are those of the header. Hot code may index `shared` (a 'I' view; `REQ_PROD` .. `RSP_EVENT`) and the private
indices itself instead of calling; the tests compare these methods with Xen's macros compiled by a C compiler.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from struct import Struct
from typing import Any, Self, final

REQ_PROD = 0
"""Position in the 'I' view of the index that the front end moves when it has put requests."""
REQ_EVENT = 1
"""Position of the index at which the back end wants to be notified of requests."""
RSP_PROD = 2
"""Position of the index that the back end moves when it has put responses."""
RSP_EVENT = 3
"""Position of the index at which the front end wants to be notified of responses."""

HEADER_SIZE = 64
"""Bytes before the first slot (`offsetof(struct NAME_sring, ring)`)."""
MASK32 = 0xFFFFFFFF
PAGE_SIZE = 4096
PAGE_MASK = PAGE_SIZE - 1


def ring_size(entry_size: int, nr_bytes: int) -> int:
    """Return how many slots of `entry_size` bytes a shared area of `nr_bytes` holds: `__RING_SIZE`.

    As many as fit behind the header, rounded down to a power of two. Raises `ValueError` if not even one fits.
    """
    fitting = (nr_bytes - HEADER_SIZE) // entry_size if entry_size > 0 else 0
    if fitting < 1:
        raise ValueError(f"no ring entry of {entry_size} bytes fits into {nr_bytes} bytes")
    return 1 << (fitting.bit_length() - 1)


def shared_ring_init(view: memoryview) -> None:
    """Give a shared page its first contents: `SHARED_RING_INIT`. Slots are left as they are (clear them before)."""
    view[:HEADER_SIZE] = bytes(HEADER_SIZE)
    indices = view.cast("I")
    indices[REQ_EVENT] = indices[RSP_EVENT] = 1


class _Ring:
    """What both ends have: the view, its size, the place of each slot."""

    __slots__ = ("entry_size", "mask", "offsets", "pages", "shared", "size", "view")

    def __init__(self, view: memoryview, entry_size: int) -> None:
        self.view = view
        self.shared = view.cast("I")
        self.pages: tuple[memoryview, ...] = ()
        """The shared pages of a ring of several that lie anywhere: then `view` is a private copy, and slots pass
        between the two by `fetch` and `show`. Empty for a ring whose memory is in one piece."""
        self.entry_size = entry_size
        self.size = ring_size(entry_size, len(view))
        self.mask = self.size - 1
        self.offsets = tuple(HEADER_SIZE + slot * entry_size for slot in range(self.size))

    def _spread(self, pages: Sequence[memoryview]) -> None:
        """Put the ring's memory into pages that need not be neighbours: a slot may straddle two of them."""
        self.shared.release()
        self.shared = pages[0].cast("I")
        self.pages = tuple(pages)

    def _pieces(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return where the slots from one free-running index up to another lie: byte ranges, none across a page."""
        count = (last - first) & MASK32
        begin = first & self.mask
        runs = [(begin, min(begin + count, self.size)), (0, begin + count - self.size)]
        pieces = []
        for slot, end in runs:
            low, stop = HEADER_SIZE + slot * self.entry_size, HEADER_SIZE + end * self.entry_size
            while low < stop:
                high = min(stop, (low | PAGE_MASK) + 1)
                pieces.append((low, high))
                low = high
        return pieces

    def fetch(self, first: int, last: int) -> None:
        """Copy what the peer has put into these slots (at most a ring full), of a ring in several pages."""
        for low, high in self._pieces(first, last):
            start = low & PAGE_MASK
            self.view[low:high] = self.pages[low // PAGE_SIZE][start : start + high - low]

    def show(self, first: int, last: int) -> None:
        """Copy what was put into these slots to where the peer sees it, before the index that says so is moved."""
        for low, high in self._pieces(first, last):
            start = low & PAGE_MASK
            self.pages[low // PAGE_SIZE][start : start + high - low] = self.view[low:high]

    def offset(self, index: int) -> int:
        """Return the byte offset of the slot of a free-running index: `RING_GET_REQUEST`, `RING_GET_RESPONSE`.

        Hot loops use `offsets[index & mask]`.
        """
        return self.offsets[index & self.mask]

    def slots(self, codec: Struct, first: int, last: int) -> Iterable[tuple[Any, ...]]:
        """Read the slots from one free-running index up to another (at most a ring full), each once, when it is wanted.

        Each comes as what `codec` makes of it, which is as large as a slot.
        """
        view, offsets = self.view, self.offsets
        begin = first & self.mask
        end = begin + (last - first & MASK32)
        if end <= self.size:
            low = offsets[begin]
            return codec.iter_unpack(view[low : low + (end - begin) * self.entry_size])
        around = codec.iter_unpack(view[HEADER_SIZE : offsets[end - self.size]])
        return chain(codec.iter_unpack(view[offsets[begin] : offsets[-1] + self.entry_size]), around)

    def copy(self, index: int) -> bytes:
        """Return a private copy of a slot: `RING_COPY_REQUEST`. The peer cannot change what was checked (XSA-155)."""
        offset = self.offsets[index & self.mask]
        return bytes(self.view[offset : offset + self.entry_size])

    def release(self) -> None:
        """Let go of the views, so that the page can be unmapped. The ring is unusable afterwards."""
        self.shared.release()
        self.view = self.shared = memoryview(b"")
        self.pages = ()


@final
class FrontRing(_Ring):
    """The end that puts requests and takes responses (`struct NAME_front_ring`)."""

    __slots__ = ("req_prod_pvt", "rsp_cons")

    def __init__(self, view: memoryview, entry_size: int, index: int = 0) -> None:
        """Attach to a shared area that already holds a ring, all of whose slots are free: `FRONT_RING_ATTACH`."""
        super().__init__(view, entry_size)
        self.req_prod_pvt = index & MASK32
        self.rsp_cons = index & MASK32

    @classmethod
    def initialise(cls, view: memoryview, entry_size: int) -> Self:
        """Make a new ring in a shared area: `XEN_FRONT_RING_INIT`."""
        shared_ring_init(view)
        return cls(view, entry_size)

    @classmethod
    def initialise_pages(cls, pages: Sequence[memoryview], entry_size: int) -> Self:
        """The same in several pages that need not be neighbours; with one page it is `initialise`."""
        if len(pages) == 1:
            return cls.initialise(pages[0], entry_size)
        shared_ring_init(pages[0])
        ring = cls(memoryview(bytearray(len(pages) * PAGE_SIZE)), entry_size)
        ring._spread(pages)
        return ring

    def free_requests(self) -> int:
        """Return how many requests may still be put: `RING_FREE_REQUESTS`."""
        return (self.size - (self.req_prod_pvt - self.rsp_cons)) & MASK32

    def full(self) -> bool:
        """Say whether every slot is taken by a request without a consumed response: `RING_FULL`."""
        return self.free_requests() == 0

    def unconsumed_responses(self) -> int:
        """Return how many responses the back end says are ready: `XEN_RING_NR_UNCONSUMED_RESPONSES`. Not checked."""
        return (self.shared[RSP_PROD] - self.rsp_cons) & MASK32

    def response_overflow(self, rsp_prod: int) -> bool:
        """Say whether this `rsp_prod` is more than a ring ahead, the mark of an ill-behaved back end.

        `RING_RESPONSE_PROD_OVERFLOW`. A stricter end compares with `req_prod_pvt - rsp_cons`: see `outstanding`.
        """
        return (rsp_prod - self.rsp_cons) & MASK32 > self.size

    def outstanding(self) -> int:
        """Return how many requests were put and not answered: no honest back end has more responses than that."""
        return (self.req_prod_pvt - self.rsp_cons) & MASK32

    def push_requests(self) -> None:
        """Show the requests up to `req_prod_pvt` to the back end: `RING_PUSH_REQUESTS`."""
        self.shared[REQ_PROD] = self.req_prod_pvt

    def push_requests_and_check_notify(self) -> bool:
        """Show the requests and say whether the back end asked to be told: `RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`."""
        shared = self.shared
        new = self.req_prod_pvt
        old = shared[REQ_PROD]
        shared[REQ_PROD] = new
        return (new - shared[REQ_EVENT]) & MASK32 < (new - old) & MASK32

    def final_check_for_responses(self) -> int:
        """Look once more before sleeping; ask to be told of the next response: `RING_FINAL_CHECK_FOR_RESPONSES`.

        Returns how many responses are ready (then go on consuming) or 0 (sleep).
        """
        ready = self.unconsumed_responses()
        if ready:
            return ready
        self.shared[RSP_EVENT] = (self.rsp_cons + 1) & MASK32
        return self.unconsumed_responses()

    def summary(self) -> str:
        """Return the indices as one line for people."""
        return f"front of {self.size}: req_prod_pvt={self.req_prod_pvt} rsp_cons={self.rsp_cons} {_shared(self.shared)}"


@final
class BackRing(_Ring):
    """The end that takes requests and puts responses (`struct NAME_back_ring`)."""

    __slots__ = ("req_cons", "rsp_prod_pvt")

    def __init__(self, view: memoryview, entry_size: int, index: int = 0) -> None:
        """Attach to a shared area, at `index` in both directions: `BACK_RING_ATTACH`.

        A fresh ring is attached at 0 (`BACK_RING_INIT`). One that was in use, whose back end has gone and had answered
        all that it took, is attached at its `rsp_prod`.
        """
        super().__init__(view, entry_size)
        self.rsp_prod_pvt = index & MASK32
        self.req_cons = index & MASK32

    @classmethod
    def attach_pages(cls, pages: Sequence[memoryview], entry_size: int) -> Self:
        """Attach to a fresh ring in several pages that need not be neighbours; one page is attached to as it is."""
        if len(pages) == 1:
            return cls(pages[0], entry_size)
        ring = cls(memoryview(bytearray(len(pages) * PAGE_SIZE)), entry_size)
        ring._spread(pages)
        return ring

    def unconsumed_requests(self) -> int:
        """Return how many requests may be taken: `XEN_RING_NR_UNCONSUMED_REQUESTS`.

        Never more than there are slots without an unanswered request, whatever the front end wrote.
        """
        ready = (self.shared[REQ_PROD] - self.req_cons) & MASK32
        room = (self.size - (self.req_cons - self.rsp_prod_pvt)) & MASK32
        return ready if ready < room else room

    def request_cons_overflow(self, req_cons: int) -> bool:
        """Say whether taking the request at `req_cons` would overrun unanswered ones: `RING_REQUEST_CONS_OVERFLOW`."""
        return (req_cons - self.rsp_prod_pvt) & MASK32 >= self.size

    def request_overflow(self, req_prod: int) -> bool:
        """Say whether this `req_prod` is more than a ring ahead, the mark of an ill-behaved front end (XSA-39).

        `RING_REQUEST_PROD_OVERFLOW`.
        """
        return (req_prod - self.rsp_prod_pvt) & MASK32 > self.size

    def push_responses(self) -> None:
        """Show the responses up to `rsp_prod_pvt` to the front end: `RING_PUSH_RESPONSES`."""
        self.shared[RSP_PROD] = self.rsp_prod_pvt

    def push_responses_and_check_notify(self) -> bool:
        """Show the responses and say whether the front end asked to be told: `RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`."""
        shared = self.shared
        new = self.rsp_prod_pvt
        old = shared[RSP_PROD]
        shared[RSP_PROD] = new
        return (new - shared[RSP_EVENT]) & MASK32 < (new - old) & MASK32

    def final_check_for_requests(self) -> int:
        """Look once more before sleeping; ask to be told of the next request: `RING_FINAL_CHECK_FOR_REQUESTS`.

        Returns how many requests may be taken (then go on consuming) or 0 (sleep).
        """
        ready = self.unconsumed_requests()
        if ready:
            return ready
        self.shared[REQ_EVENT] = (self.req_cons + 1) & MASK32
        return self.unconsumed_requests()

    def summary(self) -> str:
        """Return the indices as one line for people."""
        return f"back of {self.size}: rsp_prod_pvt={self.rsp_prod_pvt} req_cons={self.req_cons} {_shared(self.shared)}"


def _shared(indices: memoryview) -> str:
    return (
        f"[req_prod={indices[REQ_PROD]} req_event={indices[REQ_EVENT]} "
        f"rsp_prod={indices[RSP_PROD]} rsp_event={indices[RSP_EVENT]}]"
    )
