"""The two-level event ABI: pending and mask bits in shared_info, a selector word per vCPU (xen.h, event_channel.h).

The chain is pending bit → selector bit → upcall flag, and each link is only pulled when the one before it changes from
0 to 1. A guest that clears a later link but not an earlier one gets no new upcall: that is Xen's behaviour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.abi.tracepoints import EVTCHN_PENDING
from hypervisor.vcpu import VPF_BLOCKED

if TYPE_CHECKING:
    from hypervisor.event_channel.channel import Channel
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

MAX_PORTS = 4096
PENDING_Q = xen.shared_info.offset("evtchn_pending") >> 3
MASK_Q = xen.shared_info.offset("evtchn_mask") >> 3
SELECTOR_Q = xen.vcpu_info.offset("evtchn_pending_sel") >> 3


def make_set_pending(hv: Hypervisor) -> Callable[[Channel], None]:
    """Return `set_pending(channel)`: mark the port pending and tell its vCPU, unless it is masked."""
    b, q, written = hv.memory.b, hv.memory.q, hv.memory.written
    wake = hv.sched.wake
    trace = hv.trace

    def set_pending(channel: Channel) -> None:
        domain = channel.domain
        mfn = domain.shared_info_mfn
        index = (mfn << 9) + PENDING_Q + channel.word
        word, bit = q[index], channel.bit
        if word & bit:
            return
        q[index] = word | bit
        written[mfn] = 1
        if trace is not None:
            trace(domain.domid, channel.vcpu.vcpu_id, EVTCHN_PENDING, channel.port)
        if not q[index + MASK_Q - PENDING_Q] & bit:
            vcpu = channel.vcpu
            info = vcpu.info
            index = (info >> 3) + SELECTOR_Q
            word, bit = q[index], 1 << channel.word
            if not word & bit:
                q[index] = word | bit
                written[info >> 12] = 1
                if not b[info]:
                    b[info] = 1
                    if vcpu.pause_flags & VPF_BLOCKED:
                        wake(vcpu)
        if domain.pollers:
            check_pollers(channel)

    return set_pending


def mark_pending(hv: Hypervisor, vcpu: VCpu) -> None:
    """Set the upcall flag of a vCPU and wake it (vcpu_mark_events_pending)."""
    info = vcpu.info
    if not hv.memory.b[info]:
        hv.memory.b[info] = 1
        hv.memory.written[info >> 12] = 1
        if vcpu.pause_flags & VPF_BLOCKED:
            hv.sched.wake(vcpu)


def is_pending(channel: Channel) -> bool:
    """Whether the port's pending bit is set, masked or not."""
    index = (channel.domain.shared_info_mfn << 9) + PENDING_Q + channel.word
    return bool(channel.domain.hv.memory.q[index] & channel.bit)


def is_masked(channel: Channel) -> bool:
    """Whether the port's mask bit is set."""
    index = (channel.domain.shared_info_mfn << 9) + MASK_Q + channel.word
    return bool(channel.domain.hv.memory.q[index] & channel.bit)


def clear_pending(channel: Channel) -> None:
    """Clear the pending bit; the mask bit stays as the guest left it, for whoever gets the port next."""
    memory = channel.domain.hv.memory
    mfn = channel.domain.shared_info_mfn
    memory.q[(mfn << 9) + PENDING_Q + channel.word] &= ~channel.bit & 0xFFFF_FFFF_FFFF_FFFF
    memory.written[mfn] = 1


def unmask(channel: Channel) -> None:
    """Clear the mask bit; raise the event if the port was masked and is pending."""
    hv = channel.domain.hv
    memory = hv.memory
    mfn = channel.domain.shared_info_mfn
    index = (mfn << 9) + MASK_Q + channel.word
    word = memory.q[index]
    if not word & channel.bit:
        return
    memory.q[index] = word & ~channel.bit
    memory.written[mfn] = 1
    if memory.q[index + PENDING_Q - MASK_Q] & channel.bit:
        selector = (channel.vcpu.info >> 3) + SELECTOR_Q
        if not memory.q[selector] >> channel.word & 1:
            memory.q[selector] |= 1 << channel.word
            memory.written[channel.vcpu.info >> 12] = 1
            mark_pending(hv, channel.vcpu)


def check_pollers(channel: Channel) -> None:
    """Wake the vCPUs that poll a port which has become pending."""
    for vcpu in channel.domain.online_vcpus():
        if vcpu.poll_ports and channel.port in vcpu.poll_ports:
            channel.domain.hv.sched.wake(vcpu)
