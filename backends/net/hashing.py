"""Which queue a frame goes to, as the guest has ordered it on the control ring (netif.h, "Hash types" and below).

A hash over addresses and ports (the algorithm is Toeplitz's, with a key of the guest's) is an index into a table of
queue numbers, the guest's too. The hash goes to the guest with the frame, so that it need not be worked out twice.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from guest_kernel.net.flow import Flow, flow_of
from guest_kernel.net.packet import Bytes
from hypervisor.abi.io import netif

NONE, TOEPLITZ = netif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE, netif.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ
SUCCESS = netif.XEN_NETIF_CTRL_STATUS_SUCCESS
NOT_SUPPORTED = netif.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED
INVALID = netif.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER
OVERFLOW = netif.XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW

LONGEST_KEY = 40
"""Bytes of a key: what the longest input (36 bytes) can make use of."""
LARGEST_MAPPING = 128
"""Entries of the table."""
TYPES = {
    (4, False): netif._XEN_NETIF_CTRL_HASH_TYPE_IPV4,
    (4, True): netif._XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP,
    (6, False): netif._XEN_NETIF_CTRL_HASH_TYPE_IPV6,
    (6, True): netif._XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP,
}
"""The number of each type's bit, by version of IP and whether the ports of TCP count."""
ALL_TYPES = sum(1 << number for number in TYPES.values())


@lru_cache(maxsize=16)
def _tables(key: bytes) -> tuple[tuple[int, ...], ...]:
    """Return for each place of the input what each value of the byte there adds to the hash."""
    number = int.from_bytes(key.ljust(LONGEST_KEY, b"\0"), "big")
    bits = LONGEST_KEY * 8
    tables = []
    for place in range(LONGEST_KEY - 4):
        # For each bit of the byte, the 32 bits of the key that begin with the bit at the same place.
        windows = [number >> bits - 32 - 8 * place - bit & 0xFFFF_FFFF for bit in range(8)]
        table = [0] * 256
        for value in range(1, 256):
            low = value & -value
            table[value] = table[value ^ low] ^ windows[8 - low.bit_length()]
        tables.append(tuple(table))
    return tuple(tables)


def toeplitz(key: bytes, data: bytes) -> int:
    """Return the Toeplitz hash of at most 36 bytes: for each set bit of them, 32 bits of the key, from that place on.

    A key shorter than 40 bytes has zeros behind it.
    """
    value = 0
    for table, byte in zip(_tables(key), data, strict=False):
        value ^= table[byte]
    return value


class Hash(NamedTuple):
    """The hash of one frame, and over what it is (a number of a bit, _XEN_NETIF_CTRL_HASH_TYPE_...)."""

    type: int
    value: int

    @property
    def extra(self) -> int:
        """What a slot of extra info says of it, above its first two bytes."""
        return self.type | TOEPLITZ << 8 | self.value << 16


class Hashing:
    """What a guest has ordered. The methods `set_...` return a status of netif.h."""

    def __init__(self, queues: int) -> None:
        self.queues = queues
        self.algorithm = NONE
        self.types = 0
        """Bits: over what there may be a hash."""
        self.key = b""
        self.mapping: list[int] = []
        """Queue numbers by hash; empty: the remainder of the hash is the queue."""

    @property
    def active(self) -> bool:
        """Whether frames are to be hashed."""
        return self.algorithm != NONE and self.types != 0

    def set_algorithm(self, algorithm: int) -> int:
        """Choose how to hash; NONE ends it."""
        if algorithm not in (NONE, TOEPLITZ):
            return INVALID
        self.algorithm = algorithm
        return SUCCESS

    def get_types(self) -> tuple[int, int]:
        """Return a status, and the types that there are with the algorithm that was chosen."""
        return (NOT_SUPPORTED, 0) if self.algorithm == NONE else (SUCCESS, ALL_TYPES)

    def set_types(self, types: int) -> int:
        """Choose over what; 0 ends it."""
        if types & ~ALL_TYPES or self.algorithm == NONE:
            return INVALID
        self.types = types
        return SUCCESS

    def set_key(self, key: bytes) -> int:
        """Have another key, of at most LONGEST_KEY bytes."""
        self.key = key
        return SUCCESS

    def set_mapping_size(self, size: int) -> int:
        """Have a new table, all of queue 0."""
        if size > LARGEST_MAPPING:
            return INVALID
        self.mapping = [0] * size
        return SUCCESS

    def set_mapping(self, offset: int, numbers: list[int]) -> int:
        """Change a part of the table; all of the part, or nothing if one of the numbers is no queue's."""
        if offset + len(numbers) > len(self.mapping) or any(number >= self.queues for number in numbers):
            return INVALID
        self.mapping[offset : offset + len(numbers)] = numbers
        return SUCCESS

    def hash(self, frame: Bytes) -> Hash | None:
        """Return the hash of a frame, over as much as the guest has chosen; None if it is of no such type."""
        flow = flow_of(frame)
        if flow is None:
            return None
        for with_ports in (True, False):
            number = TYPES[flow.version, with_ports]
            if self.types >> number & 1 and (flow.ports or not with_ports):
                return Hash(number, self._value(flow, with_ports))
        return None

    def _value(self, flow: Flow, with_ports: bool) -> int:
        return toeplitz(self.key, flow.addresses + flow.ports if with_ports else flow.addresses)

    def queue(self, found: Hash | None) -> int:
        """Return the queue of a frame with this hash; without one, that of the hash 0."""
        value = 0 if found is None else found.value
        return self.mapping[value % len(self.mapping)] if self.mapping else value % self.queues
