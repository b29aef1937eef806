"""The straight way into a guest: frames put directly into buffers that it keeps mapped.

A lane lives for one batch. It has a private copy of the requests that wait in the guest's rx ring; whoever uses it
takes one off the end of `requests` for each frame and puts a response onto `answers`, or has many frames that are alike
brought at once (`land`). Each queue of a vif has its own; `Lanes` are those of one vif.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from guest_kernel import vectors
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.page_rows import leading
from guest_kernel.net.ring_words import RX_BASE, RX_SLOT, copy_bytes, put_slots
from guest_kernel.net.spans import Kept, copy, trim
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, BackRing

if TYPE_CHECKING:
    from guest_kernel.net.device import Counters
    from guest_kernel.net.page_rows import PageRows, Place
    from guest_kernel.net.spans import Views

RX_FLAGS = (
    0,
    netif.NETRXF_csum_blank | netif.NETRXF_data_validated,
    netif.NETRXF_data_validated,
    netif.NETRXF_csum_blank | netif.NETRXF_data_validated,
)
"""Checksum flags of reception by those of transmission; the same two bits have changed places in netif.h."""
EXTRA = netif.NETRXF_extra_info << 32
EXTRA_MORE = netif.XEN_NETIF_EXTRA_FLAG_MORE << 8

LARGE_FIRST = (
    (netif.NETRXF_csum_blank | netif.NETRXF_data_validated | netif.NETRXF_more_data | netif.NETRXF_extra_info) << 32
) | PAGE_SIZE << 48
LARGE_NEXT = netif.NETRXF_more_data << 32 | PAGE_SIZE << 48
"""Answers for the full pages of a large packet, but for their ids."""

MOST_LANDINGS = 64
"""Batches of buffers that are remembered for a queue."""

LargePlace = tuple["Views", bytes]
"""Buffers, and the responses that say what is in them."""
LargeKey = tuple[bytes, int, tuple[int, ...]]
"""Requests, size of a packet, its slots of extra info as words."""
Span = Callable[[tuple[int, ...]], "Views | None"]


class LaneQueue(Protocol):
    """The end of an rx ring that has a lane."""

    def open_lane(self) -> Lane | None:
        """Return a lane if the guest keeps buffers mapped, some are free, and no frame waits for them."""

    def end_lane(self, lane: Lane) -> None:
        """Show the guest what a lane has brought."""


class Landing(NamedTuple):
    """Buffers that a batch of frames goes to: the first of those that were posted, as far as they are mapped."""

    place: Place
    idents: Any
    """Their ids: an array."""


class Known:
    """What a queue remembers of its guest's buffers from lane to lane, each thing by all that it depends on."""

    def __init__(self) -> None:
        self.places: Kept[LargeKey, LargePlace] = Kept()
        """Of large packets."""
        self.landings: Kept[tuple[bytes, int], Landing] = Kept(MOST_LANDINGS)
        """Of batches, by the requests and how many of them a frame takes."""

    def clear(self) -> None:
        """Let go of all pages: some are unmapped."""
        self.places.clear()
        self.landings.clear()


def no_span(refs: tuple[int, ...]) -> Views | None:
    """Know no pages at all."""
    return None


class Guest(Protocol):
    """What a lane must know of the guest that it goes into: its mapped pages, see `Vif`."""

    counters: Counters
    writable: dict[int, memoryview]
    writable_span: Span
    rows: PageRows | None


class Lane:
    """`count` requests wait in the ring, whose slots are `words`."""

    def __init__(self, ring: BackRing, words: memoryview, count: int, guest: Guest, known: Known) -> None:
        self._ring = ring
        self._words = words
        self._counters = guest.counters
        self._known = known
        self._rows = guest.rows
        self._span = guest.writable_span
        self.writable = guest.writable
        """The guest's buffers by grant reference."""
        self._posted = copy_bytes(words, RX_BASE, 1, ring.size, ring.req_cons, count)
        """The requests, in order."""
        self._at = 0
        """Where those begin of which `land` and `take_large` have made no use."""
        self._blocks: list[bytes] = []
        """What these have answered, before all others."""
        self._frames = self._bytes = 0
        """What these have brought."""
        self.answers: list[int] = []
        self._others = self._no_bytes = 0
        """Answers among these that begin no frame, and what their upper bits would add to the bytes."""

    @cached_property
    def requests(self) -> list[int]:
        """The requests, the next one last. From here on `land` and `take_large` bring nothing."""
        requests = memoryview(self._posted)[self._at :].cast("Q").tolist()
        requests.reverse()
        return requests

    # -- frames that are alike ------------------------------------------------------------------------------------

    def land(self, source: Place, length: int, flags: int, extra: int) -> int:
        """Bring the first frames of this length that are at `source`, as many as there are buffers; returns how many.

        `flags`: NETRXF_... of all of them. `extra`: a slot of extra info that goes with each, or 0. Only with numpy.
        """
        if self._rows is None or "requests" in self.__dict__:
            return 0
        slots = 2 if extra else 1
        count = min(source.count, (len(self._posted) - self._at) // (RX_SLOT * slots))
        key = (self._posted[self._at : self._at + count * slots * RX_SLOT], slots)
        place, idents = self._known.landings.get(key) or self._find_landing(key)
        count = place.count
        if not count:
            return 0
        place.copy_from(source if count == source.count else source.first(count), length)
        answers = idents | (flags << 32 | length << 48)
        if extra:
            answers = vectors.numpy().stack((answers | EXTRA, vectors.numpy().full_like(answers, extra)), 1).ravel()
        self._blocks.append(answers.tobytes())
        self._at += count * slots * RX_SLOT
        self._frames += count
        self._bytes += count * length
        return count

    def _find_landing(self, key: tuple[bytes, int]) -> Landing:
        """Find the buffers of these requests."""
        assert self._rows is not None
        np = vectors.numpy()
        # Extra info stands in a slot behind the first one, and uses up the request there.
        requests = np.frombuffer(key[0], np.uint64)[:: key[1]]
        rows = self._rows.find_writable(requests >> 32)
        count = leading(rows >= 0)
        return self._known.landings.keep(key, Landing(self._rows.place(rows[:count]), requests[:count] & 0xFFFF))

    # -- one by one -----------------------------------------------------------------------------------------------

    def add_extra(self, word: int) -> None:
        """Put a slot of extra info behind the answer that was given last; there must be a request for it."""
        self.requests.pop()
        self.answers.append(word)
        self._others += 1
        self._no_bytes += word >> 48

    def take_large(self, source: Views, head: bytes, size: int, extras: tuple[int, ...]) -> bool:
        """Bring a large packet of `size` bytes; False if there are no buffers for it.

        `source` is pages of its sender's, who may change them at any time; `head` has what was checked in them.
        `extras`: slots of extra info that go with it.
        """
        end = self._at + (-(-size // PAGE_SIZE) + len(extras)) * RX_SLOT
        if end > len(self._posted) or "requests" in self.__dict__:
            return False
        key = (self._posted[self._at : end], size, extras)
        place = self._known.places.get(key) or self._find_place(key)
        if place is None:
            return False
        self._at = end
        target, answers = place
        copy(source, target)
        target[0][: len(head)] = head
        self._blocks.append(answers)
        self._frames += 1
        self._bytes += size
        return True

    def _find_place(self, key: LargeKey) -> LargePlace | None:
        """Return where a large packet goes that uses these requests, and how it is answered."""
        requests, size, extras = key
        wanted = memoryview(requests).cast("Q").tolist()
        # Extra info stands in slots behind the first one, and uses up the requests there.
        first, others = wanted[0], wanted[1 + len(extras) :]
        target = self._span((first >> 32, *[request >> 32 for request in others]))
        if target is None:
            return None
        last = others.pop()
        answers = [
            first & 0xFFFF | LARGE_FIRST,
            *extras,
            *[request & 0xFFFF | LARGE_NEXT for request in others],
            last & 0xFFFF | size - len(others) * PAGE_SIZE - PAGE_SIZE << 48,
        ]
        return self._known.places.keep(key, (trim(target, size), array("Q", answers).tobytes()))

    # -- the end --------------------------------------------------------------------------------------------------

    def packets(self) -> list[tuple[int, list[int]]]:
        """Return the sizes of the frames that were brought, in order, together where as many slots hold each."""
        answers = memoryview(b"".join(self._blocks)).cast("Q").tolist() + self.answers
        if not reduce(or_, answers, 0) & (EXTRA | netif.NETRXF_more_data << 32):
            return [(1, [answer >> 48 for answer in answers])]
        found: list[tuple[int, list[int]]] = []
        size = slots = 0
        is_extra = False
        for answer in answers:
            if is_extra:
                is_extra = bool(answer & EXTRA_MORE)
                continue
            size, slots = size + (answer >> 48), slots + 1
            is_extra = bool(answer & EXTRA)
            if not answer & netif.NETRXF_more_data << 32:
                if not found or found[-1][0] != slots:
                    found.append((slots, []))
                found[-1][1].append(size)
                size = slots = 0
        return found

    def close(self) -> bool:
        """Write the answers into the ring, without showing them; whether there are any."""
        ring, counters = self._ring, self._counters
        if self.answers:
            others = array("Q", self.answers).tobytes()
            self._blocks.append(others)
            self._bytes += sum(memoryview(others).cast("H")[3::4]) - self._no_bytes
            self._frames += len(self.answers) - self._others
            self.answers = []
        answers = memoryview(b"".join(self._blocks)).cast("Q")
        put_slots(self._words, RX_BASE, 1, ring.size, ring.rsp_prod_pvt, answers)
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + len(answers) & MASK32
        ring.req_cons = ring.req_cons + len(answers) & MASK32
        counters.tx_packets += self._frames
        counters.tx_bytes += self._bytes
        return len(answers) > 0


class Way(NamedTuple):
    """How a frame gets into a guest."""

    lane: Lane
    extra: int
    """A slot of extra info that goes with it, as a word; 0 for none."""


class Lanes:
    """Those of one vif, opened when they are needed.

    `queue` is its only one. If there are several, `choose` tells from a frame's head which one it goes to, and a slot
    of extra info that goes with it, or 0.
    """

    def __init__(self, queue: LaneQueue, choose: Callable[[bytes], tuple[LaneQueue, int]] | None = None) -> None:
        self._queue = queue
        self._choose = choose
        self._opened: dict[LaneQueue, Lane] = {}
        self.is_one = choose is None
        """Nobody need look at a frame's head."""
        self.takes_blank = False
        """The guest takes frames whose checksum is not filled in."""
        self.longest = netif.XEN_NETIF_MAX_TX_SIZE
        """Bytes of the longest frame; of large packets, of their segments."""
        self.large: frozenset[int] = frozenset()
        """Kinds of large packets that may be put in whole (XEN_NETIF_GSO_TYPE_...)."""

    def find(self, head: bytes) -> Way | None:
        """Return the way of a frame with these headers (512 bytes are more than enough); None if there is none now."""
        queue, extra = (self._queue, 0) if self._choose is None else self._choose(head)
        lane = self._opened.get(queue)
        if lane is None:
            lane = queue.open_lane()
            if lane is None:
                return None
            self._opened[queue] = lane
        return Way(lane, extra)

    def end(self) -> None:
        """Show the guest what came."""
        for queue, lane in self._opened.items():
            queue.end_lane(lane)
