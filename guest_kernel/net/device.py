"""What a network driver offers to the stack above it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import attrs

Received = Callable[[bytes, bool], None]
"""`received(frame, validated)`: an Ethernet frame; `validated` says that its checksums need no look."""


ReceivedMany = Callable[[list[bytes], list[bool]], None]
"""The same for frames that came together."""


@attrs.define
class Counters:
    """Frames and bytes that went through a device, and what was lost."""

    tx_packets: int = 0
    tx_bytes: int = 0
    tx_dropped: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    rx_dropped: int = 0


SMALLEST_MTU, LARGEST_MTU = 68, 65535


def parse_mtu(text: str | None) -> int | None:
    """Return the value of a vif's `mtu` node; None without one. Raises ValueError."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and SMALLEST_MTU <= int(text) <= LARGEST_MTU):
        raise ValueError(f"the mtu {text!r} is no number from {SMALLEST_MTU} to {LARGEST_MTU}")
    return int(text)


class NetDevice(ABC):
    """An Ethernet device: `name`, six bytes of `mac`, `mtu` without the Ethernet header."""

    def __init__(self, name: str, mac: bytes, mtu: int = 1500) -> None:
        self.name = name
        self.mac = mac
        self.mtu = mtu
        self.counters = Counters()
        self.received: Received = lambda frame, validated: None
        self.received_many: ReceivedMany | None = None
        """If there is one, a driver that has several frames at once calls this instead."""
        self.checksum_offload = False
        """The device takes frames whose TCP/UDP checksum is only the pseudo header's (csum_blank)."""

    @abstractmethod
    def transmit(self, frame: bytes | memoryview, csum_blank: bool = False) -> bool:
        """Send a frame; False (and counted as dropped) if the device has no room or no connection."""

    async def wait_for_room(self) -> None:
        """Wait until a frame can be sent, or never will be (the device has gone)."""
        return
