"""Room before the data of received frames, for frontends that put something in front of a frame (XDP programs).

The key is Linux's (drivers/net/xen-netback, since 5.9), not netif.h's: a frontend that reads `feature-xdp-headroom` = 1
writes the number of bytes into its own `xdp-headroom`, and may change it between Reconfiguring and Connected. Each of
its frames then says so in a slot of extra info, and has its data that far behind the beginning of every page.
"""

from __future__ import annotations

from guest_kernel.mm import PAGE_SIZE
from hypervisor.abi.io import netif

FEATURE, KEY = "feature-xdp-headroom", "xdp-headroom"
EXTRA_TYPE = 5
"""XEN_NETIF_EXTRA_TYPE_XDP of Linux's netif.h: behind type and flags there are two bytes with the room."""
MOST_SLOTS = netif.XEN_NETIF_NR_SLOTS_MIN
"""Slots of data that a frame may have at most; one that would take more does not go to the guest."""


def parse_headroom(text: str | None) -> int:
    """Return how much room a frontend wants. What is no number means none, as in Linux; a page is the most."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 10:
        return 0
    return min(int(text), PAGE_SIZE)


def slots_needed(size: int, headroom: int) -> int:
    """Return how many slots of data a frame takes with so much room in each; more than MOST_SLOTS if it cannot go."""
    room = PAGE_SIZE - headroom
    return -(-size // room) if room else MOST_SLOTS + 1


def extra(headroom: int) -> int:
    """Return the slot of extra info, as a word."""
    return EXTRA_TYPE | headroom << 16
