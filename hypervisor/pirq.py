"""PIRQs: a domain's own numbers for interrupt lines of the machine, and who hears a line.

A line (Xen: an IRQ; all of this machine's are GSIs, edge triggered) is mapped to a PIRQ of one domain, then bound to an
event channel. Several domains may share a line if all bind it with BIND_PIRQ__WILL_SHARE.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING

import attrs

from hypervisor.abi import errno, physdev
from hypervisor.abi.tracepoints import IRQ
from hypervisor.errors import HypercallError
from hypervisor.machine.interrupts import NR_IRQS

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.event_channel.channel import Channel
    from hypervisor.hypervisor import Hypervisor

FIRST_FREE_GSI = 16
"""PHYSDEVOP_get_free_pirq leaves the numbers of the old ISA lines alone."""
DYNAMIC_VECTORS = 208
"""Vectors of a processor for devices (0x20 to 0xef): they bound how many lines a host can have."""
EXTRA_DOMU_IRQS = 32
MAX_SHARE = 32
"""Domains on a line (docs/misc/xen-command-line.pandoc, irq-max-guests)."""

ALLOCATED = 0
"""`Pirq.irq` of a number without a line, which PHYSDEVOP_get_free_pirq has reserved."""


@attrs.define(eq=False)
class Pirq:
    """One number of a domain. `irq` is its line; negative while a port is still bound to what was unmapped."""

    number: int
    irq: int = ALLOCATED
    channel: Channel | None = None


@attrs.define
class Line:
    """Who hears a line: ports of several domains only if it is shareable."""

    shareable: bool
    channels: list[Channel] = attrs.field(factory=list)


class Pirqs:
    """The PIRQs of all domains."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._lines: dict[int, Line] = {}

    # -- numbers --------------------------------------------------------------------------------------------------

    @property
    def nr_gsis(self) -> int:
        """How many interrupt lines the machine has (nr_irqs_gsi)."""
        return self._hv.machine.interrupts.nr_lines

    def nr_pirqs(self, domain: Domain) -> int:
        """PIRQ numbers of a domain are below this: a device may need others than lines (message-signalled ones)."""
        cpus = self._hv.machine.nr_pcpus
        nr_irqs = max(cpus * DYNAMIC_VECTORS, 8 * self.nr_gsis)
        if not domain.is_privileged:
            return min(self.nr_gsis + EXTRA_DOMU_IRQS, nr_irqs)
        return min(self.nr_gsis + min(cpus.bit_length(), domain.max_vcpus) * DYNAMIC_VECTORS, nr_irqs, NR_IRQS)

    def find_free(self, domain: Domain, kind: int) -> int:
        """Return a free number (get_free_pirq): the lowest for a line, the highest for other kinds. Raises ENOSPC."""
        gsis = range(FIRST_FREE_GSI, self.nr_gsis) if kind == physdev.MAP_PIRQ_TYPE_GSI else range(0)
        for number in chain(gsis, range(self.nr_pirqs(domain) - 1, self.nr_gsis - 1, -1)):
            if number not in domain.pirqs:
                return number
        raise HypercallError(errno.ENOSPC)

    def reserve(self, domain: Domain, kind: int) -> int:
        """Take a free number out of circulation. Raises ENOSPC."""
        number = self.find_free(domain, kind)
        domain.pirqs[number] = Pirq(number, ALLOCATED)
        return number

    @staticmethod
    def _of_line(domain: Domain, irq: int) -> Pirq | None:
        return next((pirq for pirq in domain.pirqs.values() if abs(pirq.irq) == irq), None)

    # -- mapping --------------------------------------------------------------------------------------------------

    def permitted(self, domain: Domain, irq: int) -> bool:
        """Whether a domain may use a line: dom0 all but those that were taken from it."""
        if domain.is_privileged:
            return 0 < irq < NR_IRQS and irq not in domain.denied_irqs
        return irq in domain.irqs

    def permit(self, domain: Domain, irq: int) -> None:
        """Let a domain use a line, and the device on it its memory."""
        domain.irqs.add(irq)
        domain.denied_irqs.discard(irq)
        if not domain.is_privileged:
            self._hv.iommu.assign(irq, domain)

    def deny(self, domain: Domain, irq: int) -> None:
        """Undo that."""
        domain.irqs.discard(irq)
        domain.denied_irqs.add(irq)
        self._hv.iommu.release(irq, domain)

    def map_gsi(self, caller: Domain, domain: Domain, index: int, number: int) -> int:
        """Give a domain a PIRQ for a line; returns its number. Raises EINVAL, EPERM, EEXIST, EBUSY, ENOSPC."""
        if not 0 <= index < self.nr_gsis:
            raise HypercallError(errno.EINVAL)
        own = caller.pirqs.get(index)
        if own is not None and own.irq > 0:
            irq = own.irq
        elif caller.is_privileged:
            irq = index
        else:
            raise HypercallError(errno.EINVAL)
        return self.map(caller, domain, irq, self._choose(domain, irq, number))

    def _choose(self, domain: Domain, irq: int, number: int) -> int:
        old = self._of_line(domain, irq)
        if number >= 0:
            if old is not None and (old.irq < 0 or old.number != number):
                raise HypercallError(errno.EEXIST)
            return number
        if old is None:
            return self.find_free(domain, physdev.MAP_PIRQ_TYPE_GSI)
        if old.irq < 0:
            raise HypercallError(errno.EBUSY)
        return old.number

    def map(self, caller: Domain, domain: Domain, irq: int, number: int) -> int:
        """Map a line that the caller may use to a number of a domain, which may use it then. Raises EPERM, EINVAL.

        Nothing happens, and nobody is told, if the number or the line is taken already.
        """
        if not self.permitted(caller, irq):
            raise HypercallError(errno.EPERM)
        if not 0 <= number < self.nr_pirqs(domain) or irq <= 0:
            raise HypercallError(errno.EINVAL)
        pirq = domain.pirqs.get(number)
        if (pirq is None or pirq.irq == ALLOCATED) and self._of_line(domain, irq) is None:
            domain.pirqs[number] = Pirq(number, irq)
            self.permit(domain, irq)
        return number

    def unmap(self, domain: Domain, number: int) -> None:
        """Take a PIRQ back, and the right to use its line. A port that is bound to it stays, and is dead."""
        pirq = domain.pirqs.get(number)
        if pirq is None or pirq.irq <= 0:
            raise HypercallError(errno.EINVAL)
        irq = pirq.irq
        if pirq.channel is not None:
            self._disconnect(pirq.channel, irq)
            pirq.irq = -irq
        else:
            del domain.pirqs[number]
        self.deny(domain, irq)

    # -- binding --------------------------------------------------------------------------------------------------

    def may_bind(self, domain: Domain, number: int) -> bool:
        """Whether a number stands for a line that the domain may use (pirq_access_permitted)."""
        pirq = domain.pirqs.get(number)
        return pirq is not None and pirq.irq > 0 and self.permitted(domain, pirq.irq)

    def bind(self, channel: Channel, number: int, *, share: bool) -> None:
        """Let a port hear a PIRQ. Raises EBUSY if others hear the line and one of them does not share it."""
        pirq = channel.domain.pirqs[number]
        line = self._lines.get(pirq.irq)
        if line is None:
            self._lines[pirq.irq] = Line(share, [channel])
            pirq.channel = channel
            self._hv.machine.interrupts.connect(pirq.irq, self._raiser(pirq.irq, self._lines[pirq.irq].channels))
            return
        if not (share and line.shareable) or len(line.channels) >= MAX_SHARE:
            raise HypercallError(errno.EBUSY)
        pirq.channel = channel
        line.channels.append(channel)
        self._reroute(pirq.irq)

    def unbind(self, channel: Channel) -> None:
        """A port that was bound to a PIRQ is closed."""
        domain = channel.domain
        pirq = domain.pirqs[channel.number]
        pirq.channel = None
        if pirq.irq > 0:
            self._disconnect(channel, pirq.irq)
        else:
            del domain.pirqs[channel.number]

    def is_shared(self, irq: int) -> bool:
        """Whether several domains hear a line."""
        line = self._lines.get(irq)
        return line is not None and len(line.channels) > 1

    def _disconnect(self, channel: Channel, irq: int) -> None:
        line = self._lines[irq]
        line.channels.remove(channel)
        if not line.channels:
            del self._lines[irq]
            self._hv.machine.interrupts.disconnect(irq)
        else:
            self._reroute(irq)

    def _reroute(self, irq: int) -> None:
        """Others hear a line than before."""
        interrupts = self._hv.machine.interrupts
        interrupts.disconnect(irq)
        interrupts.connect(irq, self._raiser(irq, self._lines[irq].channels))

    def _raiser(self, irq: int, channels: list[Channel]) -> Callable[[], None]:
        trace, words = self._hv.trace, None if self._hv.tape is None else self._hv.tape.words

        if len(channels) == 1 and trace is None:
            # As nearly always.
            (sole,) = channels

            def sole_raised() -> None:
                deliver = sole.deliver
                deliver(sole)

            return sole_raised

        def line_raised() -> None:
            for channel in channels:
                if words is not None:
                    words.extend((channel.vcpu.codes.irq, irq, channel.port))
                elif trace is not None:
                    trace(channel.domain.domid, channel.vcpu.vcpu_id, IRQ, irq, channel.port)
                deliver = channel.deliver
                deliver(channel)

        return line_raised

    def destroy_domain(self, domain: Domain) -> None:
        """Forget the PIRQs of a dying domain, whose ports are closed."""
        domain.pirqs.clear()
