"""Faults of the wires between event channels: events that are lost, late, doubled, or never sent by anybody.

Only events between two domains are meant. A real hypervisor neither loses nor invents one; a guest whose event was lost
shows what its driver relies on, and a spurious one must never hurt.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, final

from hypervisor.event_channel.channel import INTERDOMAIN
from toolstack.faults.fault import Fault

if TYPE_CHECKING:
    from hypervisor.event_channel.channel import Channel


class _EventFault(Fault):
    """What takes events of the victim's channels from the wire."""

    def concerns(self, channel: Channel) -> bool:
        """Whether the victim is at one of the ends."""
        return self.is_victim(channel.domain.domid) or self.is_victim(channel.remote_domid)

    def raise_again(self, channel: Channel) -> None:
        """Raise an event at a port, if it is still what it was."""
        domain = channel.domain
        if self.world.hv.domains.get(domain.domid) is domain and not domain.is_dying and channel.state == INTERDOMAIN:
            domain.port_ops.set_pending(channel)

    def later(self, channel: Channel) -> None:
        """Raise the event after `by`."""
        self.world.later(self.spec.by, partial(self.raise_again, channel))


@final
class EventDrop(_EventFault):
    """Events are lost."""

    def takes_event(self, channel: Channel) -> bool:
        """Lose it."""
        if not self.concerns(channel) or not self.strikes():
            return False
        self.note(f"An event for port {channel.port} is lost.", channel.domain.domid)
        return True


@final
class EventDelay(_EventFault):
    """Events come late."""

    def takes_event(self, channel: Channel) -> bool:
        """Keep it a while."""
        if not self.concerns(channel) or not self.strikes():
            return False
        self.note(f"An event for port {channel.port} comes {self.spec.by} ns late.", channel.domain.domid)
        self.later(channel)
        return True


@final
class EventDuplicate(_EventFault):
    """Events come once more."""

    def takes_event(self, channel: Channel) -> bool:
        """Let it pass, and send another one after it."""
        if self.concerns(channel) and self.strikes():
            self.note(f"An event for port {channel.port} will come again.", channel.domain.domid)
            self.later(channel)
        return False


@final
class EventStorm(_EventFault):
    """Events that nobody has sent arrive at all ports of the victim, again and again."""

    def begin(self) -> None:
        """Start the storm."""
        super().begin()
        self._blow()

    def _blow(self) -> None:
        if not self.active or (self.spec.count is not None and self.struck >= self.spec.count):
            return
        victim = self.world.domain(self.spec.domain)
        if victim is not None and not victim.is_dying:
            channels = [channel for channel in victim.ports if channel.state == INTERDOMAIN]
            for channel in channels:
                victim.port_ops.set_pending(channel)
            self.note(f"Events that nobody has sent arrive at {len(channels)} ports.")
        elif self.struck:
            return  # it does not come back under this number; its next life has peace
        self.world.later(self.spec.by, self._blow)
