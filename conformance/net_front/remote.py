"""The interface of a guest that is no Python program: a check's wishes are errands that somebody there does."""

from __future__ import annotations

from typing import Final, final

import attrs

from conformance.kit.hands import Hands
from conformance.wire import protocol as wire
from guest_kernel.net.offload import NONE, Offload

TCP, UDP = 6, 17
CHECKSUM_AT: Final = {TCP: 16, UDP: 6}
"""Where the checksum lies in a transport header."""
VIRTIO_GSO_TCPV4, VIRTIO_GSO_TCPV6 = 1, 4


@final
@attrs.frozen
class NetErrand:
    """What to do with the interface: `send` a frame, `listen`, or `nothing`."""

    what: str
    frame: bytes = b""
    offload: Offload = NONE

    @property
    def header(self) -> tuple[int, int, int, int]:
        """What `struct virtio_net_hdr` says of a frame: csum_start, csum_offset, gso_size, gso_type."""
        start, at = checksum_place(self.frame) if self.offload.blank else (0, 0)
        kind = VIRTIO_GSO_TCPV6 if self.offload.gso_type == 2 else VIRTIO_GSO_TCPV4
        return start, at, self.offload.gso_size, kind if self.offload.gso_size else 0

    def typed(self) -> tuple[object, ...]:
        """Return it as words on a console."""
        return (self.what, *self.header, self.frame.hex()) if self.what == "send" else (self.what,)

    def packed(self, number: int) -> bytes:
        """Return it as news on the wire."""
        job = wire.JOB.pack(number, wire.Job[self.what], 0, 0, 0)
        return job + wire.SEND.pack(*self.header) + self.frame if self.what == "send" else job


@final
class RemoteInterface:
    """What a check's guest can do with its interface. `heard` takes the frames that it tells of."""

    def __init__(self, hands: Hands, heard: list[bytes]) -> None:
        self._hands = hands
        hands.told = lambda what, data: heard.append(data) if what == "frame" else None

    async def transmit(self, frame: bytes, offload: Offload) -> bool:
        """Send a frame; whether the guest's kernel has taken it."""
        return await self._do(NetErrand("send", frame, offload))

    async def transmit_all(self, frames: list[bytes]) -> int:
        """Send frames, one after the other; return how many were taken."""
        numbers = [await self._hands.begin(NetErrand("send", frame)) for frame in frames]
        return sum([(await self._hands.end(number))[0] for number in numbers])

    async def listen(self) -> None:
        """Have the guest tell of what it receives, as of a wire."""
        await self._do(NetErrand("listen"))

    async def nothing(self) -> None:
        """Show a sign of life."""
        await self._do(NetErrand("nothing"))

    async def _do(self, errand: NetErrand) -> bool:
        good, _ = await self._hands.do(errand)
        return good


def checksum_place(frame: bytes) -> tuple[int, int]:
    """Return where the transport header of an IP packet begins, and where in it the checksum lies."""
    network = 14
    if frame[network] >> 4 == 6:
        return network + 40, CHECKSUM_AT[frame[network + 6]]
    return network + (frame[network] & 15) * 4, CHECKSUM_AT[frame[network + 9]]
