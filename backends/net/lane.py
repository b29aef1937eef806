"""The straight way into a guest: frames put directly into buffers that it keeps mapped.

A lane lives for one batch. It has a private copy of the requests that wait in the guest's rx ring; whoever uses it
takes one off the end of `requests` for each frame and puts a response onto `answers`.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from guest_kernel.net.ring_words import RX_BASE, read_words, write_words
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32, BackRing

if TYPE_CHECKING:
    from guest_kernel.net.device import Counters

RX_FLAGS = (
    0,
    netif.NETRXF_csum_blank | netif.NETRXF_data_validated,
    netif.NETRXF_data_validated,
    netif.NETRXF_csum_blank | netif.NETRXF_data_validated,
)
"""Checksum flags of reception by those of transmission; the same two bits have changed places in netif.h."""


class Lane:
    """`writable`: the guest's mapped buffers by grant reference."""

    __slots__ = ("_counters", "_ring", "_words", "answers", "requests", "takes_blank", "writable")

    def __init__(
        self,
        ring: BackRing,
        words: memoryview,
        count: int,
        writable: dict[int, memoryview],
        counters: Counters,
        takes_blank: bool,
    ) -> None:
        self._ring = ring
        self._words = words
        self._counters = counters
        self.writable = writable
        self.takes_blank = takes_blank
        """The guest takes frames whose checksum is not filled in."""
        self.requests = read_words(words, RX_BASE, 1, ring.size, ring.req_cons, count)
        self.requests.reverse()
        self.answers: list[int] = []

    def close(self) -> bool:
        """Write the answers into the ring, without showing them; whether there are any."""
        count = len(self.answers)
        if not count:
            return False
        ring = self._ring
        write_words(self._words, RX_BASE, 1, ring.size, ring.rsp_prod_pvt, self.answers)
        ring.rsp_prod_pvt = ring.rsp_prod_pvt + count & MASK32
        ring.req_cons = ring.req_cons + count & MASK32
        self._counters.tx_packets += count
        self._counters.tx_bytes += sum(memoryview(array("Q", self.answers)).cast("B").cast("H")[3::4])
        return True
