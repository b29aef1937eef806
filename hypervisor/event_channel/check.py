"""Is the account of event channels right? Looked at from all sides, for tests and for the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.errors import InvariantError
from hypervisor.event_channel.channel import FREE, INTERDOMAIN, IPI, PIRQ, PORTS_PER_BUCKET, UNBOUND, VIRQ, Channel
from hypervisor.event_channel.ops import is_global_virq

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor


def check_events(hv: Hypervisor) -> None:
    """Raise InvariantError unless ports, peers, VIRQ and PIRQ maps and pollers of all domains agree with each other."""
    for domain in hv.domains.values():
        _check_ports(domain)
        _check_maps(domain)
        pollers = sum(vcpu.poll_ports is not None for vcpu in domain.online_vcpus())
        _expect(pollers == domain.pollers, f"{domain} counts {domain.pollers} polling vCPUs and has {pollers}")
        if domain.is_dying:
            _expect(not domain.active_ports, f"{domain} is dying and still has {domain.active_ports} ports")
    for vcpu in hv.sched.run_queue:
        _expect(vcpu.queued and not vcpu.pause_flags, f"{vcpu} is on the run queue and may not run")
        _expect(hv.domains.get(vcpu.domain.domid) is vcpu.domain, f"{vcpu} is on the run queue and does not exist")
    _expect(len(set(hv.sched.run_queue)) == len(hv.sched.run_queue), "a vCPU is twice on the run queue")


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise InvariantError(otherwise)


def _check_ports(domain: Domain) -> None:
    ports = domain.ports
    _expect(len(ports) % PORTS_PER_BUCKET == 0, f"{domain} has a broken bucket of ports")
    if ports:
        _expect(ports[0].state == FREE, f"port 0 of {domain} is in use")
    used = 0
    for number, channel in enumerate(ports):
        _expect(channel.port == number and channel.domain is domain, f"{channel} is in the wrong place")
        _expect(channel.vcpu in domain.online_vcpus(), f"{channel} notifies no vCPU of its domain")
        if channel.state == FREE:
            _expect(channel.vcpu.vcpu_id == 0, f"{channel} is free and notifies {channel.vcpu}")
            _expect(channel.peer is None, f"{channel} is free and has a peer")
            continue
        used += 1
        _check_channel(channel)
    _expect(used == domain.active_ports, f"{domain} counts {domain.active_ports} ports in use and has {used}")
    free = [channel.port for channel in ports[1:] if channel.state == FREE]
    _expect(not free or domain.port_hint <= free[0], f"{domain} overlooks its free port {free[:1]}")


def _check_channel(channel: Channel) -> None:
    domain, peer, state = channel.domain, channel.peer, channel.state
    _expect((peer is not None) == (state == INTERDOMAIN), f"{channel} has a peer or has none, against its state")
    if peer is not None:
        _expect(peer.peer is channel and peer.state == INTERDOMAIN, f"{channel} and {peer} are not each other's peers")
        alive = domain.hv.domains.get(peer.domain.domid) is peer.domain
        _expect(alive and peer.domain.ports[peer.port] is peer, f"{channel} has a peer that does not exist")
    elif state == VIRQ:
        vcpu = domain.vcpus[0] if is_global_virq(channel.number) else channel.vcpu
        bound = vcpu is not None and vcpu.virq_to_port[channel.number] == channel.port
        _expect(bound, f"{channel} is not found as VIRQ {channel.number}")
    else:
        _expect(state in (UNBOUND, IPI, PIRQ), f"{channel} is in state {state}")


def _check_maps(domain: Domain) -> None:
    for vcpu in domain.online_vcpus():
        for virq, port in enumerate(vcpu.virq_to_port):
            if port:
                channel = domain.ports[port]
                _expect(channel.state == VIRQ and channel.number == virq, f"VIRQ {virq} of {vcpu} is not {channel}")
    for pirq, bound in domain.pirqs.items():
        _expect(bound is None or (bound.state == PIRQ and bound.number == pirq), f"PIRQ {pirq} is not {bound}")
