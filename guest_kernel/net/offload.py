"""What a frame leaves for hardware to do: the checksum, cutting into segments (netif.h, flags and extra info).

On a wire a frame has its checksum, and is no longer than the MTU. Between two ends of the same machine both would be
work for nothing, so a frame may travel without, and says so.
"""

from __future__ import annotations

from functools import lru_cache

import attrs

from hypervisor.abi.io import netif


@attrs.frozen
class Offload:
    """The state of one frame; it goes with the frame wherever that is sent on."""

    blank: bool = False
    """The TCP or UDP checksum field has the sum over the pseudo header only; whoever puts it on a wire completes it."""
    validated: bool = False
    """Nobody need look at the checksum: it is known to be right, or there is none yet."""
    gso_size: int = 0
    """Above 0: a TCP packet of many segments, each of at most so many bytes of data. Its checksum is blank."""
    gso_type: int = netif.XEN_NETIF_GSO_TYPE_NONE
    """XEN_NETIF_GSO_TYPE_TCPV4 or _TCPV6."""
    hash: int | None = attrs.field(default=None, eq=False)
    """The hash of the frame's addresses and ports, if the backend was asked for it; of no account in transmission."""


NONE = Offload()
VALIDATED = Offload(validated=True)
BLANK = Offload(blank=True, validated=True)


@lru_cache(maxsize=256)
def gso(size: int, kind: int = netif.XEN_NETIF_GSO_TYPE_TCPV4) -> Offload:
    """Return the state of a frame to be cut into segments of `size` bytes of data."""
    return Offload(blank=True, validated=True, gso_size=size, gso_type=kind)
