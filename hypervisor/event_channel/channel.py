"""One end of an event channel, as Xen's `struct evtchn`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu import VCpu

FREE, RESERVED, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI = range(7)
"""What a port is used for (`ECS_*` inside Xen). EVTCHNOP_status shows it through `STATUS_OF`."""

PORTS_PER_BUCKET = 64
"""The port table grows by this many ports, so a port just past those in use may be valid and closed."""


class Channel:
    """A port of a domain.

    `word` and `bit` say where its pending and mask bits are: `word` is the index of the 64-bit word in the two-level
    bitmaps. `vcpu` is notified. `peer` is the other end of an interdomain channel.
    """

    __slots__ = ("bit", "consumer", "domain", "number", "peer", "port", "remote_domid", "state", "vcpu", "word")

    def __init__(self, domain: Domain, port: int, vcpu: VCpu) -> None:
        self.domain = domain
        self.port = port
        self.word = port >> 6
        self.bit = 1 << (port & 63)
        self.state = FREE
        self.vcpu = vcpu
        self.peer: Channel | None = None
        self.remote_domid = 0
        self.number = 0
        """VIRQ or PIRQ number."""
        self.consumer = False
        """Xen itself listens: a guest may neither close nor use this port."""

    def __repr__(self) -> str:
        return f"<d{self.domain.domid} port {self.port}>"
