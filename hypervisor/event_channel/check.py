"""Is the account of event channels right? Looked at from all sides, for tests and for the end of a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypervisor.abi.event_channel import EVTCHN_FIFO_LINK_MASK
from hypervisor.domain import DYING_DEAD
from hypervisor.errors import InvariantError
from hypervisor.event_channel import fifo
from hypervisor.event_channel.channel import (
    FREE,
    INTERDOMAIN,
    IPI,
    PIRQ,
    PORTS_PER_BUCKET,
    UNBOUND,
    VIRQ,
    Channel,
)
from hypervisor.event_channel.ops import is_global_virq

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor


def check_events(hv: Hypervisor) -> None:
    """Raise InvariantError unless ports, peers, VIRQ and PIRQ maps and pollers of all domains agree with each other."""
    polling = set()
    for domain in hv.domains.values():
        _check_ports(domain)
        _check_maps(domain)
        _check_fifo(domain)
        pollers = {vcpu for vcpu in domain.online_vcpus() if vcpu.poll_ports is not None}
        _expect(len(pollers) == domain.pollers, f"{domain} counts {domain.pollers} polling vCPUs: {pollers}")
        polling |= pollers
        if domain.is_dying == DYING_DEAD:
            _expect(not domain.active_ports, f"{domain} is dead and still has {domain.active_ports} ports")
    _expect(hv.sched.pollers == polling, f"these vCPUs poll: {polling}, and not {hv.sched.pollers}")
    for vcpu in hv.sched.run_queue:
        _expect(vcpu.queued and not vcpu.pause_flags, f"{vcpu} is on the run queue and may not run")
        _expect(hv.domains.get(vcpu.domain.domid) is vcpu.domain, f"{vcpu} is on the run queue and does not exist")
    _expect(len(set(hv.sched.run_queue)) == len(hv.sched.run_queue), "a vCPU is twice on the run queue")


def check_queues(hv: Hypervisor) -> None:
    """Raise InvariantError unless every queue of the FIFO ABI is a list from its head to its tail, as guests read it.

    For guests that keep to the rules and take whole queues at a time only: one that has taken half of a queue keeps its
    head to itself, and one that writes nonsense into event words has nonsense for queues.
    """
    words = hv.memory.i
    for domain in hv.domains.values():
        seen: set[int] = set()
        for vcpu in domain.online_vcpus():
            for queue in vcpu.event_queues:
                if not words[queue.ready_at] & queue.bit:
                    continue
                port = words[queue.head_at]
                while True:
                    _expect(0 < port < len(domain.ports), f"port {port} is on a queue of {vcpu} and does not exist")
                    channel = domain.ports[port]
                    word = words[channel.word_at]
                    _expect(bool(word & fifo.LINKED), f"{channel} is on a queue and is not linked")
                    _expect(port not in seen, f"{channel} is twice on a queue")
                    _expect(channel.queue is queue, f"{channel} is on another queue than it was put on")
                    seen.add(port)
                    if channel.word_at == queue.tail_at:
                        break
                    port = word & EVTCHN_FIFO_LINK_MASK


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


def _check_fifo(domain: Domain) -> None:
    """What Xen knows of event words and queues; what is in the words is the guest's affair."""
    own = domain.fifo
    _expect((domain.port_ops is own) == (own is not None), f"{domain} uses another event ABI than it has chosen")
    pages = [] if own is None else own.pages
    blocks = {} if own is None else own.control_blocks
    held = Counter(domain.hv.mm.held[domain.domid])
    missing = Counter([*pages, *blocks.values()]) - held
    _expect(not missing, f"{domain} uses event pages that it does not hold: {sorted(missing)}")
    for channel in domain.ports:
        page, word = divmod(channel.port, fifo.WORDS_PER_PAGE)
        at = (pages[page] << 10) + word if page < len(pages) else fifo.NO_WORD
        lane = channel.lane
        queue = None if lane is None else channel.vcpu.event_queues[channel.priority]
        right = queue is None or (channel.queue is queue and lane == fifo.make_lane(channel, queue))
        _expect(right, f"{channel} hurries to a queue that is not its own")
        hurries = channel.deliver is not domain.set_pending
        _expect(not hurries or lane is not None, f"{channel} hurries along a way that is closed")
        _expect(channel.word_at == at, f"the event word of {channel} is looked for in the wrong place")
    for vcpu in domain.online_vcpus():
        _expect(bool(vcpu.event_queues) == (vcpu in blocks), f"{vcpu} has queues or a control block, but not both")
        for queue in vcpu.event_queues:
            where = blocks[vcpu]
            _expect(queue.ready_at >> 10 == where == queue.head_at >> 10, f"a queue of {vcpu} is outside its block")
            last = [channel for channel in domain.ports if channel.queue is queue and channel.word_at == queue.tail_at]
            _expect(queue.tail_at < 0 or len(last) == 1, f"{vcpu} has a tail of another queue")


def _check_maps(domain: Domain) -> None:
    for vcpu in domain.online_vcpus():
        for virq, port in enumerate(vcpu.virq_to_port):
            if port:
                channel = domain.ports[port]
                _expect(channel.state == VIRQ and channel.number == virq, f"VIRQ {virq} of {vcpu} is not {channel}")
    for number, pirq in domain.pirqs.items():
        bound = pirq.channel
        alike = bound is None or (bound.state == PIRQ and bound.number == number and bound.domain is domain)
        _expect(pirq.number == number and alike, f"PIRQ {number} of {domain} is not {bound}")
