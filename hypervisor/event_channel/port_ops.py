"""What the two event ABIs have in common: the interface that the operations on ports use, and waking who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hypervisor.event_channel.channel import Channel
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu


class PortOps(Protocol):
    """How one event ABI keeps pending and masked ports in memory that the guest shares (Xen's `evtchn_port_ops`).

    A domain has one of these at a time, and `Domain.set_pending` is its `set_pending`.
    """

    max_ports: int
    """Ports are below this number."""

    def set_pending(self, channel: Channel) -> None:
        """Raise an event: mark the port pending and, unless it is masked, tell the vCPU that it notifies."""

    def clear_pending(self, channel: Channel) -> None:
        """Forget an event of a port that is being closed. Its mask stays as the guest left it."""

    def unmask(self, channel: Channel) -> None:
        """Clear the mask on behalf of the guest, and raise the event if one is pending."""

    def is_pending(self, channel: Channel) -> bool:
        """Whether the port is pending, masked or not."""

    def is_masked(self, channel: Channel) -> bool:
        """Whether the guest would not be told of an event now."""

    def is_busy(self, channel: Channel) -> bool:
        """Whether a closed port cannot be given out yet, because the guest still has it on a queue."""

    def init(self, channel: Channel) -> None:
        """Prepare a port that has just been bound."""

    def set_priority(self, channel: Channel, priority: int) -> int:
        """Choose the queue of coming events; returns 0 or a negative errno."""


def mark_pending(hv: Hypervisor, vcpu: VCpu) -> None:
    """Set the upcall flag of a vCPU and wake it (vcpu_mark_events_pending)."""
    info = vcpu.info
    if not hv.memory.b[info]:
        hv.memory.b[info] = 1
        hv.memory.written[info >> 12] = 1
        hv.sched.kick(vcpu)


def check_pollers(channel: Channel) -> None:
    """Wake the vCPUs that a port which has become pending ends the poll of.

    A poll of one port waits for that port; Xen does not remember several, so any event of the domain ends such a poll,
    and one of no ports at all.
    """
    for vcpu in channel.domain.online_vcpus():
        ports = vcpu.poll_ports
        if ports is not None and (len(ports) != 1 or ports[0] == channel.port):
            channel.domain.hv.sched.wake(vcpu)
