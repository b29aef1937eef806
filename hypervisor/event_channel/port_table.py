"""Which ports of a domain exist, and which are free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import errno
from hypervisor.errors import HypercallError
from hypervisor.event_channel.channel import FREE, PORTS_PER_BUCKET, Channel

if TYPE_CHECKING:
    from hypervisor.domain import Domain


BUCKETS_PER_GROUP = 512
PORTS_PER_GROUP = BUCKETS_PER_GROUP * PORTS_PER_BUCKET


def grow(domain: Domain) -> None:
    """Add a bucket of ports, all free. Ports never go away again while the domain lives. Raises ENOMEM.

    A bucket is a page of Xen's, and so is the list of each 512 of them; the first one needs no list.
    """
    vcpu0 = domain.vcpus[0]
    assert vcpu0 is not None
    start = len(domain.ports)
    needs_list = start // PORTS_PER_BUCKET % BUCKETS_PER_GROUP == (1 if start < PORTS_PER_GROUP else 0)
    if not domain.hv.mm.xen_pages.take(domain.domid, 1 + (start > 0 and needs_list)):
        raise HypercallError(errno.ENOMEM)
    bucket = [Channel(domain, port, vcpu0) for port in range(start, start + PORTS_PER_BUCKET)]
    if domain.fifo is not None:
        for channel in bucket:
            domain.fifo.place(channel)
    domain.ports.extend(bucket)


def allocate(domain: Domain) -> Channel:
    """Return the lowest free port of a domain. Raises ENOSPC when it has used up what it may have."""
    if domain.is_dying or not domain.vcpus or domain.vcpus[0] is None:
        raise HypercallError(errno.EINVAL)
    port = _lowest_free(domain)
    if port > domain.max_evtchn_port or port >= domain.port_ops.max_ports:
        raise HypercallError(errno.ENOSPC)
    if port >= len(domain.ports):
        grow(domain)
    channel = domain.ports[port]
    domain.active_ports += 1
    if domain.port_hint == port:
        domain.port_hint = port + 1
    domain.port_ops.init(channel)
    return channel


def unallocate(channel: Channel) -> None:
    """Make a port free; whoever had it has been disconnected."""
    domain = channel.domain
    channel.state = FREE
    channel.peer = None
    channel.leave_lane()
    channel.vcpu = domain.ports[0].vcpu
    domain.active_ports -= 1
    domain.port_hint = min(domain.port_hint, channel.port)


def _lowest_free(domain: Domain) -> int:
    """Return the lowest port that is free and that the guest does not have on a queue any more."""
    ports = domain.ports
    domain.port_hint = next(
        (port for port in range(domain.port_hint, len(ports)) if ports[port].state == FREE), len(ports)
    )
    is_busy = domain.port_ops.is_busy
    for port in range(domain.port_hint, len(ports)):
        if ports[port].state == FREE and not is_busy(ports[port]):
            return port
    return max(len(ports), 1)


def lookup(domain: Domain, port: int) -> Channel:
    """Return a port of a domain that is in the table, used or not. Raises EINVAL."""
    if not 0 <= port < len(domain.ports):
        raise HypercallError(errno.EINVAL)
    return domain.ports[port]
