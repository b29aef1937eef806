"""Event channels: Xen's virtual interrupts (event_channel.h)."""

from hypervisor.event_channel.channel import Channel
from hypervisor.event_channel.ops import EventChannelOps

__all__ = ["Channel", "EventChannelOps"]
