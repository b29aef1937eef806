"""To which conversation a frame belongs: what its headers say that is the same in all of its packets."""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

from guest_kernel.net.packet import IPV4_HEADER, IPV6_HEADER, PROTOCOL_TCP, Bytes, locate, network_start


class Flow(NamedTuple):
    """Source and destination of an IP packet."""

    version: int
    """4 or 6."""
    addresses: bytes
    """Source and destination address: 8 or 32 bytes."""
    ports: bytes = b""
    """Source and destination port of a TCP packet, 4 bytes; of anything else, and of a fragment, none."""


def flow_of(frame: Bytes) -> Flow | None:
    """Return the flow of a frame of which the headers are given; None if it is no IP packet."""
    start = network_start(frame)
    kind = frame[start - 2 : start]
    if kind == b"\x08\x00" and len(frame) >= start + IPV4_HEADER and frame[start] >> 4 == 4:
        version, addresses = 4, bytes(frame[start + 12 : start + 20])
    elif kind == b"\x86\xdd" and len(frame) >= start + IPV6_HEADER and frame[start] >> 4 == 6:
        version, addresses = 6, bytes(frame[start + 8 : start + 40])
    else:
        return None
    place = locate(frame)
    if place is None or place.protocol != PROTOCOL_TCP or place.transport + 4 > len(frame):
        return Flow(version, addresses)
    return Flow(version, addresses, bytes(frame[place.transport : place.transport + 4]))


def spread(frame: Bytes, count: int) -> int:
    """Return which of `count` queues a frame goes to, if nobody has said how to choose: the same for a whole flow."""
    flow = flow_of(frame)
    return crc32(bytes(frame[:12]) if flow is None else flow.addresses + flow.ports) % count
