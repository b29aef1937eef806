"""The two-level event ABI: pending and mask bits in shared_info, a selector word per vCPU (xen.h, event_channel.h).

The chain is pending bit → selector bit → upcall flag, and each link is only pulled when the one before it changes from
0 to 1. A guest that clears a later link but not an earlier one gets no new upcall: that is Xen's behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno
from hypervisor.abi.event_channel import EVTCHN_2L_NR_CHANNELS
from hypervisor.abi.tracepoints import EVTCHN_PENDING
from hypervisor.event_channel.port_ops import check_pollers, mark_pending
from hypervisor.vcpu import VPF_BLOCKED

if TYPE_CHECKING:
    from hypervisor.event_channel.channel import Channel
    from hypervisor.hypervisor import Hypervisor

U64 = 0xFFFF_FFFF_FFFF_FFFF


class TwoLevel:
    """The ABI that every domain starts with (`PortOps`): one object serves all domains."""

    max_ports = EVTCHN_2L_NR_CHANNELS

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self.set_pending = _make_set_pending(hv)

    def clear_pending(self, channel: Channel) -> None:
        """Clear the pending bit; the mask bit stays as the guest left it, for whoever gets the port next."""
        self._hv.memory.q[channel.pending_at] &= ~channel.bit & U64

    def unmask(self, channel: Channel) -> None:
        """Clear the mask bit; raise the event if the port was masked and is pending."""
        hv = self._hv
        q = hv.memory.q
        word = q[channel.mask_at]
        if not word & channel.bit:
            return
        q[channel.mask_at] = word & ~channel.bit
        if q[channel.pending_at] & channel.bit:
            selector = channel.vcpu.selector_at
            if not q[selector] & channel.selector:
                q[selector] |= channel.selector
                hv.memory.written[channel.vcpu.info >> 12] = 1
                mark_pending(hv, channel.vcpu)

    def is_pending(self, channel: Channel) -> bool:
        """Whether the port's pending bit is set, masked or not."""
        return bool(self._hv.memory.q[channel.pending_at] & channel.bit)

    def is_masked(self, channel: Channel) -> bool:
        """Whether the port's mask bit is set."""
        return bool(self._hv.memory.q[channel.mask_at] & channel.bit)

    def is_busy(self, _channel: Channel) -> bool:
        """A closed port is free at once."""
        return False

    def init(self, channel: Channel) -> None:
        """Nothing to prepare: the bits of a port are valid from the first."""

    def set_priority(self, _channel: Channel, _priority: int) -> int:
        """There is only one priority."""
        return -errno.ENOSYS


def _make_set_pending(hv: Hypervisor) -> Callable[[Channel], None]:  # noqa: C901 - see below
    """Return `set_pending(channel)`: the hottest function of the simulator, on local names."""
    b, q, written = hv.memory.b, hv.memory.q, hv.memory.written
    kick, plain = hv.sched.kick, hv.sched.plain
    clock, queue, pollers = hv.clock, hv.sched.run_queue.append, hv.sched.pollers
    trace, words = hv.trace, None if hv.tape is None else hv.tape.words

    def set_pending(channel: Channel) -> None:  # noqa: C901 - every event passes here, so it is in one piece
        # (Where a word is 0, as most are, the arithmetic is spared: it costs as much as the access.)
        index, bit = channel.pending_at, channel.bit
        word = q[index]
        if not word:
            q[index] = bit
        elif word & bit:
            return
        else:
            q[index] = word | bit
        if trace is not None:
            if words is not None:
                words.append(channel.vcpu.codes.pending)
                words.append(channel.port)
            else:
                trace(channel.domain.domid, channel.vcpu.vcpu_id, EVTCHN_PENDING, channel.port)
        if not q[channel.mask_at] & bit:
            vcpu = channel.vcpu
            index, bit = vcpu.selector_at, channel.selector
            word = q[index]
            if not word & bit:
                q[index] = word | bit if word else bit
                info = vcpu.info
                if vcpu.info_registered:
                    written[info >> 12] = 1
                if not b[info]:
                    b[info] = 1
                    if plain and vcpu.pause_flags == VPF_BLOCKED and not vcpu.queued:
                        # `Scheduler.wake`, written out: it is a twentieth of a notification.
                        vcpu.pause_flags = 0
                        vcpu.queued = True
                        vcpu.ready_at = clock.now
                        queue(vcpu)
                        if words is not None:
                            words.append(vcpu.codes.wake)
                    elif not plain or vcpu.pause_flags & VPF_BLOCKED:
                        kick(vcpu)
        if pollers and channel.domain.pollers:
            check_pollers(channel)

    return set_pending
