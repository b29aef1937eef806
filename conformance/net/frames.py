"""Frames that checks send: of any bytes, of UDP, of TCP."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from conformance.kit.check import Failure
from guest_kernel.net.checksum import checksum, partial, pseudo_header

BROADCAST: Final = b"\xff" * 6
GROUP: Final = bytes.fromhex("01005e010203")
"""The address of a multicast group."""
MACS: Final = (bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002"))
"""Of the two interfaces that a check has."""
STRANGER: Final = bytes.fromhex("00163e0000ff")
"""An address that nobody has."""
EXPERIMENTAL: Final = 0x88B5
"""A type of frames for local experiments (IEEE 802): no stack takes it for anything."""
IPV4, IPV6, TCP, UDP = 0x0800, 0x86DD, 6, 17
HEADERS: Final = 54
"""Bytes of Ethernet, IPv4 and TCP headers."""
HEADERS6: Final = 74
"""The same with IPv6."""


def frame(size: int, mark: int = 0, *, to: bytes = BROADCAST, source: bytes = MACS[0]) -> bytes:
    """Return a frame of `size` bytes (14 at least), whose data differs from place to place, and by `mark`."""
    data = bytes((place * 7 + (place >> 8) + mark * 31) & 0xFF for place in range(size - 14))
    return to + source + struct.pack(">H", EXPERIMENTAL) + data


def _ipv4(protocol: int, payload: bytes, source: bytes) -> bytes:
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 77, 0x4000, 64, protocol, 0, ADDRESS, ADDRESS2)
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return BROADCAST + source + struct.pack(">H", IPV4) + header + payload


ADDRESS, ADDRESS2 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
SIX, SIX2 = bytes((0xFE, 0x80, *[0] * 13, 1)), bytes((0xFE, 0x80, *[0] * 13, 2))


def udp(size: int, *, blank: bool, source: bytes = MACS[0], port: int = 4000) -> bytes:
    """Return a UDP packet with `size` bytes of data; `blank`: with the sum of the pseudo header for a checksum."""
    data = bytes(place * 5 & 0xFF for place in range(size))
    datagram = struct.pack(">HHHH", port, 7, 8 + size, 0) + data
    total = pseudo_header(ADDRESS, ADDRESS2, UDP, len(datagram))
    field = total if blank else checksum(total.to_bytes(2, "big") + datagram) or 0xFFFF
    return _ipv4(UDP, datagram[:6] + field.to_bytes(2, "big") + data, source)


def udp6(size: int, *, source: bytes = MACS[0]) -> bytes:
    """Return the same over IPv6, without its checksum."""
    data = bytes(place * 5 & 0xFF for place in range(size))
    total = pseudo_header(SIX, SIX2, UDP, 8 + size)
    header = struct.pack(">IHBB16s16s", 6 << 28, 8 + size, UDP, 64, SIX, SIX2)
    datagram = struct.pack(">HHHH", 4000, 7, 8 + size, total) + data
    return BROADCAST + source + struct.pack(">H", IPV6) + header + datagram


def tcp(size: int, *, source: bytes = MACS[0]) -> bytes:
    """Return a TCP packet with `size` bytes of data, without its checksum."""
    data = bytes((place * 3 + (place >> 8)) & 0xFF for place in range(size))
    total = pseudo_header(ADDRESS, ADDRESS2, TCP, 20 + size)
    header = struct.pack(">HHIIBBHHH", 4000, 7, 1_000_000, 1, 5 << 4, 0x10, 1024, total, 0)
    return _ipv4(TCP, header + data, source)


def tcp6(size: int, *, source: bytes = MACS[0]) -> bytes:
    """Return the same over IPv6."""
    data = bytes((place * 3 + (place >> 8)) & 0xFF for place in range(size))
    total = pseudo_header(SIX, SIX2, TCP, 20 + size)
    header = struct.pack(">IHBB16s16s", 6 << 28, 20 + size, TCP, 64, SIX, SIX2)
    segment = struct.pack(">HHIIBBHHH", 4000, 7, 1_000_000, 1, 5 << 4, 0x10, 1024, total, 0) + data
    return BROADCAST + source + struct.pack(">H", IPV6) + header + segment


def transport_sum(packet: bytes) -> int:
    """Return the sum over pseudo header and datagram of an IPv4 packet: 0xFFFF if its checksum is right."""
    length = int.from_bytes(packet[16:18], "big") - 20
    total = pseudo_header(packet[26:30], packet[30:34], packet[23], length)
    return partial(total.to_bytes(2, "big") + packet[34 : 34 + length])


def transport_field(packet: bytes) -> int:
    """Return the checksum field of a TCP or UDP packet of IPv4."""
    at = 34 + (16 if packet[23] == TCP else 6)
    return int.from_bytes(packet[at : at + 2], "big")


def blank_field(packet: bytes) -> int:
    """Return what that field holds while the checksum is not filled in."""
    length = int.from_bytes(packet[16:18], "big") - 20
    return pseudo_header(packet[26:30], packet[30:34], packet[23], length)


def expect_frames(found: Sequence[bytes], wanted: Sequence[bytes], what: str) -> None:
    """Raise Failure unless these are the frames; it says what is wrong with the first that differs."""
    for number, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one == other:
            continue
        if one in wanted or other in found:
            raise Failure(f"{what}: frame {number} is another one than it should be; {_lengths(found, wanted)}.")
        at = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
        raise Failure(f"{what}: frame {number} differs from byte {at} on; {_lengths(found, wanted)}.")
    if len(found) != len(wanted):
        raise Failure(f"{what}: {_lengths(found, wanted)}.")


def _lengths(found: Sequence[bytes], wanted: Sequence[bytes]) -> str:
    return f"the lengths are {list(map(len, found))}, and should be {list(map(len, wanted))}"
