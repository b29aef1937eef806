"""The straight way into a guest: frames put directly into buffers that it keeps mapped.

A lane lives for one batch. It has a private copy of the requests that wait in the guest's rx ring; whoever uses it
takes one off the end of `requests` for each frame and puts a response onto `answers`.
"""

from __future__ import annotations

from array import array
from functools import cached_property
from typing import TYPE_CHECKING, Any

from guest_kernel.net.ring_words import RX_BASE, copy_block, read_words, write_block, write_words
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, BackRing

if TYPE_CHECKING:
    from guest_kernel.net.device import Counters
    from guest_kernel.net.page_rows import PageRows

RX_FLAGS = (
    0,
    netif.NETRXF_csum_blank | netif.NETRXF_data_validated,
    netif.NETRXF_data_validated,
    netif.NETRXF_csum_blank | netif.NETRXF_data_validated,
)
"""Checksum flags of reception by those of transmission; the same two bits have changed places in netif.h."""


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

    @cached_property
    def requests(self) -> list[int]:
        """The requests, the next one last."""
        requests: list[int] = self.posted[::-1].tolist()
        return requests

    def take(self, count: int, answers: Any) -> None:
        """The first `count` of `posted` are used, and answered with an array. Only before `requests` is looked at."""
        self.posted = self.posted[count:]
        self._blocks.append(answers)

    def sizes(self) -> list[int]:
        """Return the length of each frame that was brought."""
        answers = [answer for block in self._blocks for answer in block.tolist()]
        return [answer >> 48 for answer in answers + self.answers]

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
        return ring.rsp_prod_pvt != before

    def _advance(self, count: int, size: int) -> None:
        ring, counters = self._ring, self._counters
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + count & MASK32
        ring.req_cons = ring.req_cons + count & MASK32
        counters.tx_packets += count
        counters.tx_bytes += size
