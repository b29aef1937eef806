"""Where things are in a frame: the headers of IPv4 and IPv6, and of TCP or UDP behind them, with or without a VLAN tag.

Frames come from anybody: no length in them is trusted, and one header is looked at at a time.
"""

from __future__ import annotations

from typing import NamedTuple

Bytes = bytes | bytearray | memoryview

ETHERNET, TAG = 14, 4
IPV4_HEADER, IPV6_HEADER, LONGEST_IPV6_HEADER = 20, 40, 256
"""The last one: an IPv6 header with its extension headers; a longer one is not followed (nor is it by Linux)."""
PROTOCOL_TCP, PROTOCOL_UDP = 6, 17
SIMPLE_EXTENSIONS = (0, 60)
"""Hop-by-hop options, destination options. What is behind any other extension header is not looked for: a fragment has
no whole packet, and a routing header changes the addresses that the checksum counts."""


class Place(NamedTuple):
    """Offsets into a frame. The frame may be shorter than `end`, which is the packet's own word."""

    version: int
    """4 or 6."""
    network: int
    """Where the IP header begins."""
    transport: int
    """Where the header behind it begins."""
    end: int
    """Where the packet ends by its IP header."""
    protocol: int
    """What that header is (IP protocol number)."""


def network_start(frame: Bytes) -> int:
    """Return where the Ethernet header ends, with a VLAN tag if there is one."""
    return ETHERNET + TAG if frame[12:14] == b"\x81\x00" else ETHERNET


def is_ipv6(frame: Bytes) -> bool:
    """Whether a frame says that it is IPv6."""
    start = network_start(frame)
    return frame[start - 2 : start] == b"\x86\xdd"


def locate(frame: Bytes) -> Place | None:
    """Return where the headers are; None for anything but a whole IPv4 or IPv6 packet (fragments are not whole)."""
    start = network_start(frame)
    kind = frame[start - 2 : start]
    if kind == b"\x08\x00":
        return _locate_ipv4(frame, start)
    if kind == b"\x86\xdd":
        return _locate_ipv6(frame, start)
    return None


def _locate_ipv4(frame: Bytes, start: int) -> Place | None:
    if len(frame) < start + IPV4_HEADER or frame[start] >> 4 != 4:
        return None
    size = (frame[start] & 15) * 4
    # More fragments, or not the first one.
    if size < IPV4_HEADER or frame[start + 6] & 0x3F or frame[start + 7]:
        return None
    end = start + (frame[start + 2] << 8 | frame[start + 3])
    return Place(4, start, start + size, end, frame[start + 9])


def _locate_ipv6(frame: Bytes, start: int) -> Place | None:
    if len(frame) < start + IPV6_HEADER or frame[start] >> 4 != 6:
        return None
    end = start + IPV6_HEADER + (frame[start + 4] << 8 | frame[start + 5])
    protocol, place = frame[start + 6], start + IPV6_HEADER
    while protocol in SIMPLE_EXTENSIONS:
        if place + 2 > min(len(frame), start + LONGEST_IPV6_HEADER):
            return None
        protocol, place = frame[place], place + (frame[place + 1] + 1) * 8
    return Place(6, start, place, end, protocol) if place <= start + LONGEST_IPV6_HEADER else None


def addresses(frame: Bytes, place: Place) -> tuple[bytes, bytes]:
    """Return source and destination address of a located packet."""
    if place.version == 4:
        at, size = place.network + 12, 4
    else:
        at, size = place.network + 8, 16
    return bytes(frame[at : at + size]), bytes(frame[at + size : at + 2 * size])
