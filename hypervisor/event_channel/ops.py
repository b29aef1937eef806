"""HYPERVISOR_event_channel_op (event_channel.h), and the events that Xen itself sends: VIRQs and PIRQs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi import event_channel as abi
from hypervisor.abi.tracepoints import TIMER
from hypervisor.errors import HypercallError
from hypervisor.event_channel import fifo, port_table
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
from hypervisor.event_channel.port_table import allocate, lookup, unallocate
from hypervisor.event_channel.two_level import TwoLevel
from hypervisor.guest_access import copy_from_guest, copy_to_guest, read_u32
from hypervisor.preempt import Continuation
from hypervisor.vcpu import NR_VIRQS

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.event_channel.port_ops import PortOps
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_event_channel_op
COMPAT_HYPERCALL = xen.__HYPERVISOR_event_channel_op_compat
EVTCHNOP_reset_cont = 14
"""Xen's own (the header hides it from guests): the rest of a reset that was preempted."""
COMPAT_ARGUMENT = abi.evtchn_op.offset("u")
COMPAT_OPS = frozenset(range(abi.EVTCHNOP_bind_interdomain, abi.EVTCHNOP_unmask + 1))
"""What the hypercall of Xen 3.0.2 had; its argument is the structure with the number of the operation in front."""

PER_VCPU_VIRQS = frozenset({xen.VIRQ_TIMER, xen.VIRQ_DEBUG, xen.VIRQ_XENOPROF, xen.VIRQ_XENPMU})
"""The VIRQs that every vCPU may bind; the others are bound on vCPU 0 only (`virq_is_global` in Xen)."""

STATUS_OF = {
    FREE: abi.EVTCHNSTAT_closed,
    UNBOUND: abi.EVTCHNSTAT_unbound,
    INTERDOMAIN: abi.EVTCHNSTAT_interdomain,
    PIRQ: abi.EVTCHNSTAT_pirq,
    VIRQ: abi.EVTCHNSTAT_virq,
    IPI: abi.EVTCHNSTAT_ipi,
}


def is_global_virq(virq: int) -> bool:
    """Whether a VIRQ belongs to the whole domain, so that it is bound on vCPU 0 and may be moved."""
    return virq not in PER_VCPU_VIRQS


Raise = Callable[["Channel"], None]
"""What raises an event at a port: a domain's `set_pending`."""


def _put(raw: bytearray, path: str, value: int) -> None:
    """Write one member of an evtchn_status."""
    member = abi.evtchn_status.member(path)
    raw[member.offset : member.offset + member.size] = value.to_bytes(member.size, "little")


class EventChannelOps:
    """Ports of all domains: their states, the operations that guests have on them, and the sending of events."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._two_level = TwoLevel(hv)
        self._fifo_set_pending = fifo.make_set_pending(hv)
        self._virq_handlers: dict[int, Domain] = {}
        """Who gets a host-wide VIRQ in dom0's stead."""
        self.wire: Callable[[Raise], Raise] | None = None
        """What stands between a sent event and its port, if something does: to be set before there are domains."""
        self._handlers: dict[int, Callable[[VCpu, int], int]] = {
            abi.EVTCHNOP_bind_interdomain: self._bind_interdomain,
            abi.EVTCHNOP_bind_virq: self._bind_virq,
            abi.EVTCHNOP_bind_pirq: self._bind_pirq,
            abi.EVTCHNOP_close: self._close,
            abi.EVTCHNOP_status: self._status,
            abi.EVTCHNOP_alloc_unbound: self._alloc_unbound,
            abi.EVTCHNOP_bind_ipi: self._bind_ipi,
            abi.EVTCHNOP_bind_vcpu: self._bind_vcpu,
            abi.EVTCHNOP_unmask: self._unmask,
            abi.EVTCHNOP_reset: self._reset,
            EVTCHNOP_reset_cont: self._reset_cont,
            abi.EVTCHNOP_init_control: self._init_control,
            abi.EVTCHNOP_expand_array: self._expand_array,
            abi.EVTCHNOP_set_priority: self._set_priority,
        }
        do_event_channel_op = self._make_op()
        self._handlers[abi.EVTCHNOP_send] = lambda vcpu, arg: do_event_channel_op(vcpu, abi.EVTCHNOP_send, arg, 0, 0, 0)
        self.hypercalls = {HYPERCALL: do_event_channel_op, COMPAT_HYPERCALL: self._compat_op}

    def _make_op(self) -> Callable[[VCpu, int, int, int, int, int], int]:
        """Build the hypercall: `send`, the one that matters for speed, is decided before anything else."""
        handlers = self._handlers
        send_op = abi.EVTCHNOP_send
        words = self.hv.memory.i

        def do_event_channel_op(vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
            if cmd == send_op:
                if arg == vcpu.sent_arg:
                    # Kernels keep the argument at one place: it need not be found again until the TLB is flushed.
                    port = words[vcpu.sent_at]
                else:
                    port = read_u32(vcpu, arg)
                    base = vcpu.tlb_r.get(arg >> 12)
                    if base is not None and not arg & 3:
                        vcpu.sent_arg, vcpu.sent_at = arg, (base + (arg & 0xFFF)) >> 2
                domain = vcpu.domain
                try:
                    channel = domain.ports[port]
                except IndexError:
                    return -errno.EINVAL
                peer = channel.peer
                if peer is None:
                    return send_other(channel, channel.state)
                domain.events_sent += 1
                deliver = peer.deliver
                deliver(peer)
                return 0
            handler = handlers.get(cmd & 0xFFFFFFFF)
            return handler(vcpu, arg) if handler is not None else -errno.ENOSYS

        def send_other(channel: Channel, state: int) -> int:
            if channel.consumer:
                return -errno.EINVAL
            if state == IPI:
                channel.domain.events_sent += 1
                channel.domain.set_pending(channel)
                return 0
            return 0 if state == UNBOUND else -errno.EINVAL

        return do_event_channel_op

    def _compat_op(self, vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Run the old form of the hypercall, which kernels from before Xen 3.0.3 make."""
        op = abi.evtchn_op.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_op.size))
        if op.cmd not in COMPAT_OPS:
            return -errno.ENOSYS
        return self._handlers[op.cmd](vcpu, arg + COMPAT_ARGUMENT)

    # -- the life of a domain -------------------------------------------------------------------------------------

    def init_domain(self, domain: Domain) -> None:
        """Give a new domain its (two-level) event ABI. Port 0 exists and is never valid."""
        self._use(domain, self._two_level)
        domain.ports = []

    def init_ports(self, domain: Domain) -> None:
        """Make the first bucket of ports, once vCPU 0 exists to be notified."""
        if not domain.ports:
            port_table.grow(domain)

    def destroy_domain(self, domain: Domain) -> Iterator[bool]:
        """Close every port of a dying domain, a bucket at each step, and give its event pages back."""
        for channel in reversed(domain.ports):
            if channel.state != FREE:
                self.close_channel(channel)
            if channel.port % PORTS_PER_BUCKET == 0 and channel.port:
                yield False
        self.hv.pirqs.destroy_domain(domain)
        self._leave_fifo(domain)
        self._virq_handlers = {virq: other for virq, other in self._virq_handlers.items() if other is not domain}

    def _use(self, domain: Domain, port_ops: PortOps) -> None:
        domain.port_ops = port_ops
        domain.set_pending = port_ops.set_pending if self.wire is None else self.wire(port_ops.set_pending)
        for channel in domain.ports:
            channel.leave_lane()

    def _leave_fifo(self, domain: Domain) -> None:
        if domain.fifo is not None:
            domain.fifo.destroy()
            domain.fifo = None
            self._use(domain, self._two_level)

    def _check_control(self, vcpu: VCpu, domain: Domain) -> None:
        if not self.hv.may_control(vcpu.domain, domain):
            raise HypercallError(errno.EPERM)

    # -- operations -----------------------------------------------------------------------------------------------

    def _alloc_unbound(self, vcpu: VCpu, arg: int) -> int:
        op = abi.evtchn_alloc_unbound.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_alloc_unbound.size))
        domain = self.hv.resolve(vcpu, op.dom)
        # Privilege is looked at last: who asks for a port of a dying or full domain hears of that.
        channel = allocate(domain)
        if not self.hv.may_control(vcpu.domain, domain):
            unallocate(channel)
            return -errno.EPERM
        channel.state = UNBOUND
        channel.remote_domid = vcpu.domain.domid if op.remote_dom == xen.DOMID_SELF else op.remote_dom
        op.port = channel.port
        copy_to_guest(vcpu, arg, abi.evtchn_alloc_unbound.pack(op))
        return 0

    def _bind_interdomain(self, vcpu: VCpu, arg: int) -> int:
        raw = copy_from_guest(vcpu, arg, abi.evtchn_bind_interdomain.size)
        op = abi.evtchn_bind_interdomain.unpack_from(raw)
        local = vcpu.domain
        remote_domid = local.domid if op.remote_dom == xen.DOMID_SELF else op.remote_dom
        remote = self.hv.domains.get(remote_domid)
        if remote is None:
            raise HypercallError(errno.ESRCH)
        channel = allocate(local)
        peer = remote.ports[op.remote_port] if op.remote_port < len(remote.ports) else None
        if peer is None or peer.state != UNBOUND or peer.remote_domid != local.domid:
            unallocate(channel)
            raise HypercallError(errno.EINVAL)
        channel.state = peer.state = INTERDOMAIN
        channel.peer, peer.peer = peer, channel
        # Whatever was sent before the binding would be lost: the new end starts out pending.
        channel.domain.set_pending(channel)
        op.local_port = channel.port
        copy_to_guest(vcpu, arg, abi.evtchn_bind_interdomain.pack_over(raw, op))
        return 0

    def _bind_virq(self, vcpu: VCpu, arg: int) -> int:
        op = abi.evtchn_bind_virq.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_bind_virq.size))
        if op.virq >= NR_VIRQS:
            raise HypercallError(errno.EINVAL)
        if is_global_virq(op.virq) and op.vcpu != 0:
            raise HypercallError(errno.EINVAL)
        target = vcpu.domain.vcpu(op.vcpu)
        if target is None:
            raise HypercallError(errno.ENOENT)
        if target.virq_to_port[op.virq]:
            raise HypercallError(errno.EEXIST)
        channel = allocate(vcpu.domain)
        channel.state = VIRQ
        channel.number = op.virq
        channel.vcpu = target
        target.virq_to_port[op.virq] = channel.port
        op.port = channel.port
        copy_to_guest(vcpu, arg, abi.evtchn_bind_virq.pack(op))
        return 0

    def _bind_ipi(self, vcpu: VCpu, arg: int) -> int:
        op = abi.evtchn_bind_ipi.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_bind_ipi.size))
        target = vcpu.domain.vcpu(op.vcpu)
        if target is None:
            raise HypercallError(errno.ENOENT)
        channel = allocate(vcpu.domain)
        channel.state = IPI
        channel.vcpu = target
        op.port = channel.port
        copy_to_guest(vcpu, arg, abi.evtchn_bind_ipi.pack(op))
        return 0

    def _bind_pirq(self, vcpu: VCpu, arg: int) -> int:
        op = abi.evtchn_bind_pirq.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_bind_pirq.size))
        domain, pirqs = vcpu.domain, self.hv.pirqs
        if op.pirq >= pirqs.nr_pirqs(domain):
            raise HypercallError(errno.EINVAL)
        if not pirqs.may_bind(domain, op.pirq):
            raise HypercallError(errno.EPERM)
        if domain.pirqs[op.pirq].channel is not None:
            raise HypercallError(errno.EEXIST)
        channel = allocate(domain)
        channel.state = PIRQ
        channel.number = op.pirq
        try:
            pirqs.bind(channel, op.pirq, share=bool(op.flags & abi.BIND_PIRQ__WILL_SHARE))
        except HypercallError:
            unallocate(channel)
            raise
        op.port = channel.port
        copy_to_guest(vcpu, arg, abi.evtchn_bind_pirq.pack(op))
        return 0

    def _close(self, vcpu: VCpu, arg: int) -> int:
        op = abi.evtchn_close.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_close.size))
        channel = lookup(vcpu.domain, op.port)
        if channel.state == FREE or channel.consumer:
            raise HypercallError(errno.EINVAL)
        self.close_channel(channel)
        return 0

    def close_channel(self, channel: Channel) -> None:
        """Free a port. The peer goes back to unbound, for the same remote domain; the mask bit stays as it is."""
        if channel.state == INTERDOMAIN:
            peer = channel.peer
            assert peer is not None
            peer.state = UNBOUND
            peer.peer = None
            peer.remote_domid = channel.domain.domid
        elif channel.state == VIRQ:
            for vcpu in channel.domain.online_vcpus():
                if vcpu.virq_to_port[channel.number] == channel.port:
                    vcpu.virq_to_port[channel.number] = 0
        elif channel.state == PIRQ:
            self.hv.pirqs.unbind(channel)
        if not channel.consumer:
            channel.domain.port_ops.clear_pending(channel)
        unallocate(channel)

    def _status(self, vcpu: VCpu, arg: int) -> int:
        raw = copy_from_guest(vcpu, arg, abi.evtchn_status.size)
        op = abi.evtchn_status.unpack_from(raw)
        domain = self.hv.resolve(vcpu, op.dom)
        channel = lookup(domain, op.port)
        if channel.consumer:
            return -errno.EACCES
        self._check_control(vcpu, domain)
        told = bytearray(raw)
        _put(told, "status", STATUS_OF[channel.state])
        _put(told, "vcpu", channel.vcpu.vcpu_id)
        # (Of the union only the members of this kind of port are written; the rest is what the guest has put there.)
        if channel.state == UNBOUND:
            _put(told, "u.unbound.dom", channel.remote_domid)
        elif channel.state == INTERDOMAIN:
            assert channel.peer is not None
            _put(told, "u.interdomain.dom", channel.peer.domain.domid)
            _put(told, "u.interdomain.port", channel.peer.port)
        elif channel.state == PIRQ:
            _put(told, "u.pirq", channel.number)
        elif channel.state == VIRQ:
            _put(told, "u.virq", channel.number)
        copy_to_guest(vcpu, arg, told)
        return 0

    def _bind_vcpu(self, vcpu: VCpu, arg: int) -> int:
        op = abi.evtchn_bind_vcpu.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_bind_vcpu.size))
        target = vcpu.domain.vcpu(op.vcpu)
        if target is None:
            raise HypercallError(errno.ENOENT)
        channel = lookup(vcpu.domain, op.port)
        movable = channel.state in (UNBOUND, INTERDOMAIN, PIRQ) or (
            channel.state == VIRQ and is_global_virq(channel.number)
        )
        if not movable or channel.consumer:
            raise HypercallError(errno.EINVAL)
        channel.vcpu = target
        channel.leave_lane()
        return 0

    def _unmask(self, vcpu: VCpu, arg: int) -> int:
        op = abi.evtchn_unmask.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_unmask.size))
        channel = lookup(vcpu.domain, op.port)
        if channel.state != FREE and not channel.consumer:
            channel.domain.port_ops.unmask(channel)
        return 0

    def _reset_target(self, vcpu: VCpu, arg: int) -> Domain:
        op = abi.evtchn_reset.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_reset.size))
        domain = self.hv.resolve(vcpu, op.dom)
        self._check_control(vcpu, domain)
        if domain is not vcpu.domain and not domain.pause_count:
            raise HypercallError(errno.EINVAL)
        return domain

    def _reset(self, vcpu: VCpu, arg: int) -> int:
        """Close all ports of the caller, or of a domain that is paused, and go back to the two-level ABI."""
        domain = self._reset_target(vcpu, arg)
        if domain.next_evtchn:
            return -errno.EBUSY
        domain.next_evtchn = 1
        return self._close_all(domain, arg)

    def _reset_cont(self, vcpu: VCpu, arg: int) -> int:
        """Go on with a reset that was preempted: Xen's own operation, which a guest has no use for."""
        domain = self._reset_target(vcpu, arg)
        return self._close_all(domain, arg) if domain.next_evtchn else -errno.EBUSY

    def _close_all(self, domain: Domain, arg: int) -> int:
        """Close ports from `next_evtchn` on. While that is preempted others may bind some: then EAGAIN in the end."""
        port = start = domain.next_evtchn
        while port < len(domain.ports) and domain.active_ports:
            channel = domain.ports[port]
            if channel.state != FREE and not channel.consumer:
                self.close_channel(channel)
            if port % PORTS_PER_BUCKET == 0 and port != start and self.hv.preempt.check():
                domain.next_evtchn = port
                raise Continuation(HYPERCALL, EVTCHNOP_reset_cont, arg)
            port += 1
        domain.next_evtchn = 0
        if domain.active_ports:
            return -errno.EAGAIN
        self._leave_fifo(domain)
        return 0

    def _init_control(self, vcpu: VCpu, arg: int) -> int:
        """Register the control block of a vCPU; the first one of a domain turns it to the FIFO ABI."""
        op = abi.evtchn_init_control.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_init_control.size))
        domain = vcpu.domain
        target = domain.vcpu(op.vcpu)
        if target is None:
            return -errno.ENOENT
        if op.offset > fifo.MAX_OFFSET or op.offset % fifo.ALIGNMENT:
            return -errno.EINVAL
        if domain.fifo is not None:
            domain.fifo.init_control(target, op.control_gfn, op.offset)
        else:
            chosen = fifo.Fifo(self.hv, domain, self._fifo_set_pending)
            chosen.init_control(target, op.control_gfn, op.offset)
            chosen.adopt_ports()
            domain.fifo = chosen
            self._use(domain, chosen)
        copy_to_guest(vcpu, arg, abi.evtchn_init_control.pack(op, link_bits=abi.EVTCHN_FIFO_LINK_BITS))
        return 0

    def _expand_array(self, vcpu: VCpu, arg: int) -> int:
        """Take another page of event words, of a domain that uses the FIFO ABI."""
        op = abi.evtchn_expand_array.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_expand_array.size))
        if vcpu.domain.fifo is None:
            return -errno.EOPNOTSUPP
        vcpu.domain.fifo.expand_array(op.array_gfn)
        return 0

    def _set_priority(self, vcpu: VCpu, arg: int) -> int:
        """Choose the priority of a port. The two-level ABI has none, and says so before it looks at the port."""
        op = abi.evtchn_set_priority.unpack_from(copy_from_guest(vcpu, arg, abi.evtchn_set_priority.size))
        domain = vcpu.domain
        channel = lookup(domain, op.port)
        if domain.fifo is not None and (channel.state == FREE or channel.consumer):
            return -errno.EACCES
        return domain.port_ops.set_priority(channel, op.priority)

    # -- events that Xen sends ------------------------------------------------------------------------------------

    def send_virq(self, vcpu: VCpu, virq: int) -> None:
        """Raise a VIRQ on one vCPU; nothing happens if it has not bound it."""
        port = vcpu.virq_to_port[virq]
        if port:
            trace = self.hv.trace
            if trace is not None:
                trace(vcpu.domain.domid, vcpu.vcpu_id, TIMER, virq)
            vcpu.domain.set_pending(vcpu.domain.ports[port])

    def send_global_virq(self, virq: int) -> None:
        """Raise a host-wide VIRQ (VIRQ_DOM_EXC, VIRQ_CONSOLE, …) in its handler: dom0, or another domain."""
        domain = self._virq_handlers.get(virq)
        if domain is None or domain.is_dying:
            domain = self.hv.domains.get(0)
        vcpu0 = domain.vcpus[0] if domain is not None else None
        if vcpu0 is not None:
            self.send_virq(vcpu0, virq)

    def set_global_virq_handler(self, domain: Domain, virq: int) -> None:
        """Let a domain have a host-wide VIRQ (XEN_DOMCTL_set_virq_handler). Raises HypercallError(EINVAL)."""
        if virq >= NR_VIRQS or not is_global_virq(virq):
            raise HypercallError(errno.EINVAL)
        self._virq_handlers[virq] = domain

    def notify(self, domain: Domain, port: int) -> None:
        """Send on a domain's port on its behalf; nothing happens where the domain could not send itself."""
        channel = domain.ports[port] if port < len(domain.ports) else None
        if channel is None:
            return
        peer = channel.peer
        if peer is not None:
            peer.domain.set_pending(peer)
        elif channel.state == IPI:
            domain.set_pending(channel)
