"""The Internet checksum (RFC 1071) and what checksum offload leaves of it (netif.h, csum_blank)."""

from __future__ import annotations

import struct

from guest_kernel.net.packet import PROTOCOL_TCP, PROTOCOL_UDP, Bytes, Place, addresses, locate

CHECKSUM_OFFSET = {PROTOCOL_TCP: 16, PROTOCOL_UDP: 6}


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
    """Return the sum over the pseudo header of IPv4 or IPv6: what a csum_blank packet carries in its checksum field.

    (Both have the same words, in another order, as long as the length is below 65536.)
    """
    return partial(source + destination + struct.pack(">BBH", 0, protocol, length))


def transport_place(frame: Bytes) -> tuple[Place, int] | None:
    """Return where the TCP/UDP header of an IP frame is, and its checksum; None for anything else."""
    place = locate(frame)
    if place is None or place.protocol not in CHECKSUM_OFFSET:
        return None
    offset = place.transport + CHECKSUM_OFFSET[place.protocol]
    return (place, offset) if offset + 2 <= len(frame) else None


def complete(frame: bytearray) -> None:
    """Fill in the checksum that csum_blank left for whoever puts the frame on a real wire. Not IP: left alone."""
    found = transport_place(frame)
    if found is None:
        return
    place, offset = found
    end = min(len(frame), place.end)
    if end < offset + 2:
        return
    value = checksum(memoryview(frame)[place.transport : end])
    # A computed zero is sent as all ones for UDP, where zero says that there is no checksum.
    if not value and place.protocol == PROTOCOL_UDP:
        value = 0xFFFF
    frame[offset : offset + 2] = value.to_bytes(2, "big")


def verify(frame: Bytes) -> bool:
    """Whether the transport checksum of an IP frame of TCP or UDP is right; True for anything else."""
    found = transport_place(frame)
    if found is None:
        return True
    place, offset = found
    if place.version == 4 and place.protocol == PROTOCOL_UDP and not frame[offset] and not frame[offset + 1]:
        return True
    start, end = place.transport, place.end
    if end > len(frame) or end < start:
        return False
    header = pseudo_header(*addresses(frame, place), place.protocol, end - start)
    return fold(header + partial(frame[start:end])) == 0xFFFF
