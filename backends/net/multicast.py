"""Which multicast frames a guest wants (netif.h, feature-multicast-control).

Addresses are numbers, first byte lowest, so that bit 0 says that it is a group's.
"""

from __future__ import annotations

from hypervisor.abi.io import netif

BROADCAST = 0xFFFF_FFFF_FFFF
GROUP = 1
CAPACITY = 64
"""Addresses that a guest may have on its list: as many as with Linux's backend."""


class MulticastFilter:
    """The list of one vif; it counts only while the guest has asked for that (`active`)."""

    def __init__(self) -> None:
        self.active = False
        self.addresses: set[int] = set()

    def passes(self, destination: int) -> bool:
        """Whether a frame for this address is for the guest."""
        return not self.active or not destination & GROUP or destination == BROADCAST or destination in self.addresses

    def amend(self, kind: int, address: int) -> bool:
        """Do what an extra info slot says; False if the list is full, or the address is no group's."""
        if kind == netif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL:
            self.addresses.discard(address)
            return True
        if not address & GROUP:
            return False
        if len(self.addresses) >= CAPACITY and address not in self.addresses:
            return False
        self.addresses.add(address)
        return True
