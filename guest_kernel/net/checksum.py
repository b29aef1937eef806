"""The Internet checksum (RFC 1071) and what checksum offload leaves of it (netif.h, csum_blank)."""

from __future__ import annotations

import struct

Bytes = bytes | bytearray | memoryview

ETHERNET, IP_PROTOCOL_TCP, IP_PROTOCOL_UDP = 14, 6, 17
CHECKSUM_OFFSET = {IP_PROTOCOL_TCP: 16, IP_PROTOCOL_UDP: 6}


def fold(total: int) -> int:
    """Add the carries of a one's complement sum back in."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def partial(data: Bytes) -> int:
    """Return the one's complement sum of big-endian 16-bit words; an odd last byte counts as the high one."""
    # A number taken modulo 2^16 - 1 is the folded sum of its 16-bit digits.
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    if not number:
        return 0
    return number % 0xFFFF or 0xFFFF


def checksum(data: Bytes) -> int:
    """Return the Internet checksum."""
    return ~partial(data) & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Return the sum over the IPv4 pseudo header: what a csum_blank packet carries in its checksum field."""
    return partial(source + destination + struct.pack(">BBH", 0, protocol, length))


def transport_place(frame: Bytes) -> tuple[int, int] | None:
    """Return (start of the TCP/UDP header, offset of its checksum) in an IPv4 frame; None for anything else.

    The frame bears no VLAN tag.
    """
    if len(frame) < ETHERNET + 20 or frame[12] != 8 or frame[13] != 0 or frame[14] >> 4 != 4:
        return None
    start = ETHERNET + (frame[14] & 15) * 4
    place = CHECKSUM_OFFSET.get(frame[23])
    if place is None or start < ETHERNET + 20 or start + place + 2 > len(frame):
        return None
    return start, start + place


def complete(frame: bytearray) -> None:
    """Fill in the checksum that csum_blank left for whoever puts the frame on a real wire. Not IPv4: left alone."""
    place = transport_place(frame)
    if place is None:
        return
    start, offset = place
    end = min(len(frame), ETHERNET + int.from_bytes(frame[16:18], "big"))
    value = checksum(memoryview(frame)[start:end])
    # A computed zero is sent as all ones for UDP, where zero says that there is no checksum.
    if not value and frame[23] == IP_PROTOCOL_UDP:
        value = 0xFFFF
    frame[offset : offset + 2] = value.to_bytes(2, "big")


def verify(frame: Bytes) -> bool:
    """Whether the transport checksum of an IPv4 TCP/UDP frame is right; True for anything else."""
    place = transport_place(frame)
    if place is None:
        return True
    start, offset = place
    if frame[23] == IP_PROTOCOL_UDP and not frame[offset] and not frame[offset + 1]:
        return True
    end = ETHERNET + int.from_bytes(frame[16:18], "big")
    if end > len(frame) or end < start:
        return False
    header = pseudo_header(bytes(frame[26:30]), bytes(frame[30:34]), frame[23], end - start)
    return fold(header + partial(frame[start:end])) == 0xFFFF
