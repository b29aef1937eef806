"""Headers of packets that came from outside: dpkt's, without what lies behind them.

dpkt takes a packet apart to the innermost layer that it knows. A few thousand IP headers one inside the other fit into
one large frame, and would end in a RecursionError; so only the header is parsed, and the stack decides what follows.
"""

from __future__ import annotations

import dpkt


class IpHeader(dpkt.ip.IP):  # type: ignore[misc]
    """An IPv4 header without its options. Raises dpkt.UnpackError if the bytes are too few."""

    def unpack(self, buf: bytes) -> None:
        """Take the fixed part of the header."""
        dpkt.Packet.unpack(self, buf)


class IcmpHeader(dpkt.icmp.ICMP):  # type: ignore[misc]
    """Type, code and checksum of an ICMP message."""

    def unpack(self, buf: bytes) -> None:
        """Take the fixed part of the header."""
        dpkt.Packet.unpack(self, buf)
