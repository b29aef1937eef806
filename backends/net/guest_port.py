"""What the rings of a vif must know of it: the pages that stay mapped, and what the guest has said of itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from backends.net.bridge import Port
from backends.net.lane import Span, no_span
from backends.net.multicast import MulticastFilter
from guest_kernel.net.device import Counters

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.net.credit import Credit
    from guest_kernel.kernel import Kernel
    from guest_kernel.net.page_rows import PageRows
    from guest_kernel.time import Timer


class GuestPort(Port):
    """A port of a bridge with a guest behind it."""

    def __init__(self, kernel: Kernel, name: str, domid: int) -> None:
        self.kernel = kernel
        self.name = name
        self.domid = domid
        self.counters = Counters()
        self.touched: Callable[[Any], None] = lambda queue: None
        """Told of a queue when a frame was put into it, so that the worker flushes it."""
        self.recheck: Callable[[Any], None] = lambda queue: None
        """Told of each queue when a guest that has used up its credit has some again."""
        self.mapped: dict[int, memoryview] = {}
        """Pages of the guest that stay mapped, by grant reference (see `control`)."""
        self.writable: dict[int, memoryview] = {}
        self.readable_span: Span = no_span
        self.writable_span: Span = no_span
        """Views of several of them at once, by their grant references (see `ControlRing`)."""
        self.rows: PageRows | None = None
        """The same pages as rows of arrays, if there is numpy."""
        self.scatter = False
        """The guest takes frames of several slots (feature-sg)."""
        self.mtu: int | None = None
        """Longest frame that goes to the guest, without Ethernet's header and a VLAN tag; None: any."""
        self.headroom = 0
        """Bytes that the guest wants to have before the data in each of its buffers (see `headroom`)."""
        self.credit: Credit | None = None
        """What the guest may send, if that has a limit."""
        self.pause: Timer | None = None
        """Runs while there is no credit left, and nobody looks at the tx rings."""
        self.multicast = MulticastFilter()
        self.takes_blank = True
        """The guest takes frames whose checksum is not filled in (no feature-no-csum-offload)."""
        self.takes_blank_ipv6 = False
        """The same for IPv6 (feature-ipv6-csum-offload)."""
        self.gso_types: frozenset[int] = frozenset()
        """Kinds of large packets that the guest takes (feature-gso-tcpv4, -tcpv6)."""
        self.gso_prefixed: frozenset[int] = frozenset()
        """Kinds that it takes behind a slot with the length of a segment (feature-gso-tcpv4-prefix, …): as frontends
        did that do not know of extra info. Who takes both gets extra info."""

    @abstractmethod
    def wait_for_credit(self) -> None:
        """Leave the tx rings alone until there is credit again: the guest's frames wait in its own pages."""
