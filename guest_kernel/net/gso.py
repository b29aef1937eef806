"""Segmentation offload: one large TCP packet stands for many, and is cut where it leaves the machine (netif.h, GSO).

The headers of the large packet are those of all segments, but for lengths, sequence numbers, IPv4's identification, a
few flags, and checksums. Whoever cuts must work these out; so the headers are checked before anybody relies on them.
"""

from __future__ import annotations

from typing import NamedTuple

from guest_kernel.net import checksum
from guest_kernel.net.offload import Offload
from guest_kernel.net.packet import PROTOCOL_TCP, Bytes, Place, addresses, locate
from hypervisor.abi.io import netif

VERSIONS = {netif.XEN_NETIF_GSO_TYPE_TCPV4: 4, netif.XEN_NETIF_GSO_TYPE_TCPV6: 6}
"""The version of IP that each type of netif.h stands for."""
GSO_FEATURES = {
    "feature-gso-tcpv4": netif.XEN_NETIF_GSO_TYPE_TCPV4,
    "feature-gso-tcpv6": netif.XEN_NETIF_GSO_TYPE_TCPV6,
}
"""The nodes by which either end says which types it takes."""
GSO_PREFIX_FEATURES = {f"{key}-prefix": kind for key, kind in GSO_FEATURES.items()}
"""The nodes by which a frontend of the old kind says which types it takes: each behind a slot with the length of a
segment (NETRXF_gso_prefix), and not with extra info."""
TCP_HEADER = 20
FIN, PSH, CWR = 0x01, 0x08, 0x80
SMALLEST_SEGMENT = 48
"""Linux sends no smaller ones than this, whatever the other end asks for."""
MOST_SEGMENTS = netif.XEN_NETIF_MAX_TX_SIZE // SMALLEST_SEGMENT
"""One frame that becomes sixty thousand is an attack on whoever cuts it."""


class Headers(NamedTuple):
    """Where things are in a packet that can be cut."""

    place: Place
    data: int
    """Where the TCP header ends."""


def examine(frame: Bytes, size: int, offload: Offload) -> Headers | None:
    """Return where the headers are in a frame of `size` bytes of which these are the first; None if it cannot be cut.

    The headers must be whole in what is given, and of the kind that the offload says.
    """
    place = locate(frame)
    if place is None or place.protocol != PROTOCOL_TCP or place.version != VERSIONS.get(offload.gso_type):
        return None
    if place.transport + TCP_HEADER > len(frame):
        return None
    data = place.transport + (frame[place.transport + 12] >> 4) * 4
    if not place.transport + TCP_HEADER <= data <= min(len(frame), place.end) or place.end > size:
        return None
    if offload.gso_size <= 0 or place.end - data > offload.gso_size * MOST_SEGMENTS:
        return None
    return Headers(place, data)


def blank_checksum(frame: Bytes, place: Place) -> bytes:
    """Return what the TCP checksum field has while the checksum is blank: the sum over the pseudo header."""
    total = checksum.pseudo_header(*addresses(frame, place), place.protocol, place.end - place.transport)
    return total.to_bytes(2, "big")


def segments(frame: Bytes, offload: Offload) -> list[bytearray]:
    """Return the segments of a frame, each as it goes onto a wire; none if it cannot be cut.

    What follows the packet by its IP header's word is left out.
    """
    headers = examine(frame, len(frame), offload)
    if headers is None:
        return []
    place, data = headers
    size = offload.gso_size
    pieces = []
    # A packet without data is one segment.
    for number, start in enumerate(range(data, place.end, size) or [data]):
        end = min(start + size, place.end)
        segment = bytearray(frame[:data])
        segment += frame[start:end]
        _number(segment, place, number, start - data)
        _flag(segment, place, first=start == data, last=end == place.end)
        _sum_up(segment, place)
        pieces.append(segment)
    return pieces


def _number(segment: bytearray, place: Place, number: int, before: int) -> None:
    """Set lengths, and what counts up: TCP's sequence by bytes, IPv4's identification by packets."""
    ip, tcp = place.network, place.transport
    if place.version == 4:
        segment[ip + 2 : ip + 4] = (len(segment) - ip).to_bytes(2, "big")
        ident = int.from_bytes(segment[ip + 4 : ip + 6], "big") + number & 0xFFFF
        segment[ip + 4 : ip + 6] = ident.to_bytes(2, "big")
    else:
        segment[ip + 4 : ip + 6] = (len(segment) - ip - 40).to_bytes(2, "big")
    sequence = int.from_bytes(segment[tcp + 4 : tcp + 8], "big") + before & 0xFFFF_FFFF
    segment[tcp + 4 : tcp + 8] = sequence.to_bytes(4, "big")


def _flag(segment: bytearray, place: Place, *, first: bool, last: bool) -> None:
    """Leave flags where they belong: what ends something to the last segment, "window reduced" to the first."""
    at = place.transport + 13
    if not last:
        segment[at] &= ~(FIN | PSH) & 0xFF
    if not first:
        segment[at] &= ~CWR & 0xFF


def _sum_up(segment: bytearray, place: Place) -> None:
    """Fill in the checksums of IPv4 and TCP."""
    ip, tcp = place.network, place.transport
    if place.version == 4:
        segment[ip + 10 : ip + 12] = b"\0\0"
        segment[ip + 10 : ip + 12] = checksum.checksum(segment[ip:tcp]).to_bytes(2, "big")
    segment[tcp + 16 : tcp + 18] = blank_checksum(segment, place._replace(end=len(segment)))
    segment[tcp + 16 : tcp + 18] = checksum.checksum(memoryview(segment)[tcp:]).to_bytes(2, "big")
