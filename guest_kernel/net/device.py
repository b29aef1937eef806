"""What a network driver offers to the stack above it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import attrs

from guest_kernel.net import checksum
from guest_kernel.net.gso import segments
from guest_kernel.net.offload import NONE, Offload
from guest_kernel.net.packet import Bytes

Received = Callable[[bytes, bool], None]
"""`received(frame, validated)`: an Ethernet frame as it would be on a wire; `validated`: its checksums need no look."""


ReceivedMany = Callable[[list[bytes], list[bool]], None]
"""The same for frames that came together."""

ReceivedRaw = Callable[[bytes, Offload], object]
"""`received_raw(frame, offload)`: a frame as it came, with what has been left undone in it."""


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
    """An Ethernet device: `name`, six bytes of `mac`, `mtu` without the Ethernet header.

    Whoever sets one of the three callbacks gets the frames: `received_many` if there is one, else `received_raw` if
    there is one, else `received`. Setting `received` ends `received_raw`.
    """

    def __init__(self, name: str, mac: bytes, mtu: int = 1500) -> None:
        self.name = name
        self.mac = mac
        self.mtu = mtu
        self.counters = Counters()
        self._received: Received = lambda frame, validated: None
        self.received_raw: ReceivedRaw | None = None
        """Takes frames as they came. Sent on with the same `Offload`, they are as good as before."""
        self.received_many: ReceivedMany | None = None
        """If there is one, a driver that has several frames at once calls this instead."""
        self.carrier = True
        """The link is up: there is a cable, so to speak. Without it nothing is sent, and `wait_for_room` waits."""
        self.carrier_changed: Callable[[bool], None] = lambda is_up: None
        """Told when that changes."""
        self.checksum_offload = False
        """The device takes frames whose TCP/UDP checksum is only the pseudo header's (csum_blank)."""

    @property
    def received(self) -> Received:
        """Takes frames that have their checksum, and no more bytes than a wire carries: to be sent on as they are."""
        return self._received

    @received.setter
    def received(self, function: Received) -> None:
        self._received = function
        self.received_raw = None

    def hand_over(self, frames: Sequence[bytes], offloads: Sequence[Offload]) -> None:
        """Hand frames that came to whoever is there for them."""
        if self.received_many is None and self.received_raw is not None:
            for frame, offload in zip(frames, offloads, strict=True):
                self.received_raw(frame, offload)
            return
        whole: list[bytes] = []
        validated: list[bool] = []
        for frame, offload in zip(frames, offloads, strict=True):
            pieces = self._as_on_a_wire(frame, offload)
            whole += pieces
            validated += [offload.validated] * len(pieces)
        if self.received_many is not None:
            if whole:
                self.received_many(whole, validated)
            return
        for frame, good in zip(whole, validated, strict=True):
            self.received(frame, good)

    def _as_on_a_wire(self, frame: bytes, offload: Offload) -> list[bytes]:
        """Return the frames that a wire would have brought. A packet that cannot be cut is dropped, and counted."""
        if offload.gso_size:
            pieces = [bytes(segment) for segment in segments(frame, offload)]
            self.counters.rx_dropped += not pieces
            return pieces
        return [completed(frame)] if offload.blank else [frame]

    @abstractmethod
    def transmit(self, frame: Bytes, offload: Offload = NONE) -> bool:
        """Send a frame; False (and counted as dropped) if the device has no room or no connection."""

    async def wait_for_room(self, slots: int = 1) -> None:
        """Wait until a frame can be sent, or never will be (the device has gone).

        `slots`: of how many; a large one has a slot for each page, and one more if it is to be cut.
        """
        return


def completed(frame: Bytes) -> bytes:
    """Return a frame with the checksum that it was sent without."""
    data = bytearray(frame)
    checksum.complete(data)
    return bytes(data)
