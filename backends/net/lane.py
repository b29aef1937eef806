"""The straight way into a guest: frames put directly into buffers that it keeps mapped.

A lane lives for one batch. It has a private copy of the requests that wait in the guest's rx ring; whoever uses it
takes one off the end of `requests` for each frame and puts a response onto `answers`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.ring_words import RX_BASE, copy_block, read_words, write_block, write_words
from guest_kernel.net.spans import Kept, copy
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, BackRing

if TYPE_CHECKING:
    from guest_kernel.net.device import Counters
    from guest_kernel.net.offload import Offload
    from guest_kernel.net.page_rows import PageRows
    from guest_kernel.net.spans import Views

RX_FLAGS = (
    0,
    netif.NETRXF_csum_blank | netif.NETRXF_data_validated,
    netif.NETRXF_data_validated,
    netif.NETRXF_csum_blank | netif.NETRXF_data_validated,
)
"""Checksum flags of reception by those of transmission; the same two bits have changed places in netif.h."""

LARGE_FIRST = (
    (netif.NETRXF_csum_blank | netif.NETRXF_data_validated | netif.NETRXF_more_data | netif.NETRXF_extra_info) << 32
) | PAGE_SIZE << 48
LARGE_NEXT = netif.NETRXF_more_data << 32 | PAGE_SIZE << 48
"""Answers for the full pages of a large packet, but for their ids."""

Place = tuple["Views", list[int]]
"""Buffers, and the responses that say what is in them."""
PlaceKey = tuple[tuple[int, ...], int, int, int]
"""Requests, size of a packet, size and type of its segments."""
Places = Kept[PlaceKey, Place]
Span = Callable[[tuple[int, ...]], "Views | None"]


def no_span(refs: tuple[int, ...]) -> Views | None:
    """Know no pages at all."""
    return None


class Lane:
    """`writable`: the guest's mapped buffers by grant reference."""

    def __init__(
        self,
        ring: BackRing,
        words: memoryview,
        count: int,
        writable: dict[int, memoryview],
        counters: Counters,
        takes_blank: bool,
        rows: PageRows | None = None,
    ) -> None:
        self._ring = ring
        self._words = words
        self._counters = counters
        self.writable = writable
        self.rows = rows
        """The same as rows of arrays, if there is numpy."""
        self.takes_blank = takes_blank
        """The guest takes frames whose checksum is not filled in."""
        self.posted: Any = None
        """With numpy, the requests as an array, in order; `requests` has those that `take` has left."""
        if rows is not None:
            self.posted = copy_block(words, RX_BASE, 1, ring.size, ring.req_cons, count)
        else:
            self.requests = read_words(words, RX_BASE, 1, ring.size, ring.req_cons, count)
            self.requests.reverse()
        self._blocks: list[Any] = []
        """Answers that were given as arrays, before all others."""
        self.answers: list[int] = []
        self.continued = 0
        """Answers among these that begin no frame."""
        self.large: frozenset[int] = frozenset()
        """Kinds of large packets that may be put in whole (XEN_NETIF_GSO_TYPE_...)."""
        self.places: Places = Kept()
        """What has been found out about such packets."""
        self.span: Span = no_span
        """Views of buffers, by their grant references; None if one of them is not mapped."""

    @cached_property
    def requests(self) -> list[int]:
        """The requests, the next one last."""
        requests: list[int] = self.posted[::-1].tolist()
        return requests

    def take(self, count: int, answers: Any) -> None:
        """The first `count` of `posted` are used, and answered with an array. Only before `requests` is looked at."""
        self.posted = self.posted[count:]
        self._blocks.append(answers)

    def take_large(self, source: Views, head: bytes, size: int, offload: Offload) -> bool:
        """Bring a large packet of `size` bytes; False if there are no buffers for it.

        `source` is pages of its sender's, who may change them at any time; `head` has what was checked in them.
        """
        pages = -(-size // PAGE_SIZE)
        wanted = tuple(self.requests[: -pages - 2 : -1])
        if len(wanted) <= pages or offload.gso_type not in self.large:
            return False
        key = (wanted, size, offload.gso_size, offload.gso_type)
        place = self.places.get(key) or self._find_place(key)
        if place is None:
            return False
        del self.requests[-pages - 1 :]
        target, answers = place
        copy(source, target, size)
        target[0][: len(head)] = head
        self.answers += answers
        self.continued += pages
        return True

    def _find_place(self, key: PlaceKey) -> Place | None:
        """Return where a large packet goes that uses these requests, and how it is answered."""
        wanted, size, gso_size, gso_type = key
        # Extra info stands in a slot behind the first one, and uses up the request there.
        first, _, *others = wanted
        target = self.span((first >> 32, *[request >> 32 for request in others]))
        if target is None:
            return None
        last = others.pop()
        answers = [
            first & 0xFFFF | LARGE_FIRST,
            netif.XEN_NETIF_EXTRA_TYPE_GSO | gso_size << 16 | gso_type << 32,
            *[request & 0xFFFF | LARGE_NEXT for request in others],
            last & 0xFFFF | size - len(others) * PAGE_SIZE - PAGE_SIZE << 48,
        ]
        return self.places.keep(key, (target, answers))

    def packets(self) -> list[tuple[int, int]]:
        """Return of each frame that was brought its size, and how many slots hold it."""
        found: list[tuple[int, int]] = []
        size = slots = 0
        is_extra = False
        for answer in [answer for block in self._blocks for answer in block.tolist()] + self.answers:
            if is_extra:
                is_extra = False
                continue
            size, slots = size + (answer >> 48), slots + 1
            is_extra = bool(answer & netif.NETRXF_extra_info << 32)
            if not answer & netif.NETRXF_more_data << 32:
                found.append((size, slots))
                size = slots = 0
        return found

    def close(self) -> bool:
        """Write the answers into the ring, without showing them; whether there are any."""
        ring = self._ring
        before = ring.rsp_prod_pvt
        for block in self._blocks:
            write_block(self._words, RX_BASE, 1, ring.size, ring.rsp_prod_pvt, block)
            self._advance(len(block), int((block >> 48).sum()))
        if self.answers:
            write_words(self._words, RX_BASE, 1, ring.size, ring.rsp_prod_pvt, self.answers)
            self._advance(len(self.answers), sum(memoryview(array("Q", self.answers)).cast("B").cast("H")[3::4]))
        self._counters.tx_packets -= self.continued
        return ring.rsp_prod_pvt != before

    def _advance(self, count: int, size: int) -> None:
        ring, counters = self._ring, self._counters
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + count & MASK32
        ring.req_cons = ring.req_cons + count & MASK32
        counters.tx_packets += count
        counters.tx_bytes += size
