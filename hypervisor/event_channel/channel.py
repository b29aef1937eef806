"""One end of an event channel, as Xen's `struct evtchn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import xen

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.event_channel.fifo import Lane, Queue
    from hypervisor.vcpu import VCpu

FREE, RESERVED, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI = range(7)
"""What a port is used for (`ECS_*` inside Xen). EVTCHNOP_status shows it through `STATUS_OF`."""

PENDING_Q = xen.shared_info.offset("evtchn_pending") >> 3
MASK_Q = xen.shared_info.offset("evtchn_mask") >> 3

PORTS_PER_BUCKET = 64
"""The port table grows by this many ports, so a port just past those in use may be valid and closed."""


class Channel:
    """A port of a domain.

    `word` and `bit` say where its pending and mask bits are: `word` is the index of the 64-bit word in the two-level
    bitmaps, `pending_at` and `mask_at` the places of those words in machine memory (as 64-bit indices). shared_info is
    a frame of Xen's own and never moves, so writes to it are not marked in `Memory.written`. Ports from 4096 on have no
    such bits: they exist under the FIFO ABI only.
    """

    __slots__ = (
        "bit",
        "consumer",
        "deliver",
        "domain",
        "lane",
        "mask_at",
        "number",
        "peer",
        "pending",
        "pending_at",
        "port",
        "priority",
        "queue",
        "remote_domid",
        "selector",
        "state",
        "vcpu",
        "word",
        "word_at",
        "word_page",
    )

    def __init__(self, domain: Domain, port: int, vcpu: VCpu) -> None:
        self.domain = domain
        self.port = port
        self.word = port >> 6
        self.bit = 1 << (port & 63)
        self.selector = 1 << self.word
        """The bit of `word` in the vCPU's selector."""
        shared = domain.shared_info_mfn << 9
        self.pending_at = shared + PENDING_Q + self.word
        self.mask_at = shared + MASK_Q + self.word
        self.state = FREE
        self.vcpu = vcpu
        self.peer: Channel | None = None
        self.remote_domid = 0
        self.number = 0
        """VIRQ or PIRQ number."""
        self.word_at = -1
        """FIFO ABI: where the event word is, as a 32-bit index into machine memory; negative while there is none."""
        self.word_page = -1
        """FIFO ABI: the frame that the event word is in."""
        self.priority = 0
        self.queue: Queue | None = None
        """FIFO ABI: the queue that the port was put on last."""
        self.lane: Lane | None = None
        """FIFO ABI: the way there, as long as the next event goes there too; None when it may not."""
        self.deliver: Callable[[Channel], None] = domain.set_pending
        """What raises an event here: the domain's `set_pending`, or what hurries along its `lane`."""
        self.pending = False
        """FIFO ABI: was raised while there was no event word to show it."""
        self.consumer = False
        """Xen itself listens: a guest may neither close nor use this port."""

    def leave_lane(self) -> None:
        """The next event may have to go another way than the last one."""
        self.lane = None
        self.deliver = self.domain.set_pending

    def __repr__(self) -> str:
        return f"<d{self.domain.domid} port {self.port}>"
