"""Event channels: what each port is bound to, its pending and mask bits, and the upcall flags of the vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from hypervisor.abi import tracepoints as tp
from hypervisor.event_channel.channel import FREE, INTERDOMAIN, MASK_Q, PENDING_Q, PIRQ, UNBOUND, VIRQ, Channel
from hypervisor.event_channel.fifo import MASKED, PENDING

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.trace import Emit

NOBODY = -1
_BITMAP = 512
"""Bytes of a bitmap in shared_info: 4096 ports."""

Binding = tuple[int, int, int, int, int]
"""State, the other domain, the other port or VIRQ or PIRQ, vCPU, priority."""


def binding(channel: Channel) -> Binding:
    """Return what a port is used for."""
    remote = number = NOBODY
    if channel.state == INTERDOMAIN and channel.peer is not None:
        remote, number = channel.peer.domain.domid, channel.peer.port
    elif channel.state == UNBOUND:
        remote = channel.remote_domid
    elif channel.state in (VIRQ, PIRQ):
        number = channel.number
    return channel.state, remote, number, channel.vcpu.vcpu_id, channel.priority


@final
class _DomainEvents:
    """What was last told of a domain."""

    __slots__ = ("bindings", "bits", "domain", "seen", "upcalls")

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.bindings: dict[int, Binding] = {}
        self.bits: dict[int, tuple[bool, bool]] = {}
        """Port → pending, masked."""
        self.seen = b""
        """The bytes that the bits were read from."""
        self.upcalls: dict[int, tuple[int, int, int]] = {}
        """vCPU → upcall pending, upcall masked, words or queues that have events."""


@final
class EventWatch:
    """Looks at the event channels of all domains."""

    def __init__(self, hv: Hypervisor, emit: Emit) -> None:
        self._hv = hv
        self._emit = emit
        self._domains: dict[int, _DomainEvents] = {}

    def _of(self, domain: Domain) -> _DomainEvents:
        known = self._domains.get(domain.domid)
        if known is None or known.domain is not domain:
            known = self._domains[domain.domid] = _DomainEvents(domain)
        return known

    def look(self) -> None:
        """Emit which bits have changed."""
        for domain in self._hv.domains.values():
            if not domain.shared_info_mfn:
                continue
            known = self._of(domain)
            bitmaps = self._bitmaps(domain)
            if bitmaps != known.seen:
                known.seen = bitmaps
                for port in known.bindings:
                    self._tell_bits(known, port)
            for vcpu in domain.online_vcpus():
                self._tell_upcall(known, vcpu.vcpu_id)

    def _bitmaps(self, domain: Domain) -> bytes:
        memory = self._hv.memory
        if domain.fifo is not None:
            return b"".join([memory.frame(mfn) for mfn in domain.fifo.pages])
        shared = domain.shared_info_mfn << 12
        pending, mask = shared + (PENDING_Q << 3), shared + (MASK_Q << 3)
        return b"".join((memory.b[pending : pending + _BITMAP], memory.b[mask : mask + _BITMAP]))

    def look_at_ports(self) -> None:
        """Emit which ports are used for something else."""
        for domain in self._hv.domains.values():
            known = self._of(domain)
            for channel in domain.ports:
                if channel.state == FREE:
                    if channel.port in known.bindings:
                        del known.bindings[channel.port]
                        known.bits.pop(channel.port, None)
                        self._emit(domain.domid, 0, tp.STATE_PORT, channel.port, FREE, NOBODY, NOBODY, 0, 0)
                    continue
                now = binding(channel)
                if known.bindings.get(channel.port) != now:
                    known.bindings[channel.port] = now
                    self._emit(domain.domid, now[3], tp.STATE_PORT, channel.port, *now)
                    self._tell_bits(known, channel.port)
        for domid in [domid for domid in self._domains if domid not in self._hv.domains]:
            known = self._domains.pop(domid)
            for port in known.bindings:
                self._emit(domid, 0, tp.STATE_PORT, port, FREE, NOBODY, NOBODY, 0, 0)

    def _tell_bits(self, known: _DomainEvents, port: int) -> None:
        channel = known.domain.ports[port]
        now = bits(self._hv, channel)
        if known.bits.get(port) != now:
            known.bits[port] = now
            self._emit(known.domain.domid, channel.vcpu.vcpu_id, tp.STATE_EVENT, port, *now)

    def _tell_upcall(self, known: _DomainEvents, vcpu_id: int) -> None:
        vcpu = known.domain.vcpus[vcpu_id]
        assert vcpu is not None
        if not vcpu.info:
            return
        b = self._hv.memory.b
        now = b[vcpu.info], b[vcpu.info + 1], vcpu.ready_bits()
        if known.upcalls.get(vcpu_id) != now:
            known.upcalls[vcpu_id] = now
            self._emit(known.domain.domid, vcpu_id, tp.STATE_UPCALL, *now)


def bits(hv: Hypervisor, channel: Channel) -> tuple[bool, bool]:
    """Return whether a port is pending, and masked, as the guest's memory says."""
    if channel.domain.fifo is not None:
        word = hv.memory.i[channel.word_at] if channel.word_at >= 0 else MASKED
        return bool(word & PENDING), bool(word & MASKED)
    if channel.word >= _BITMAP >> 3:
        return False, True
    q = hv.memory.q
    return bool(q[channel.pending_at] & channel.bit), bool(q[channel.mask_at] & channel.bit)
