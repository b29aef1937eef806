"""Helpers with which the modules of the public interface compute their derived tables and numbers."""

import re
from collections.abc import Mapping

from hypervisor.abi.layout import Layout, Union


def names(namespace: Mapping[str, object], pattern: str, first: str = "") -> dict[int, str]:
    """Return {value: name} of the integer constants in `namespace` whose whole name matches `pattern`.

    If the pattern has a group, the group is the name in the table. `first` leaves out what is defined before it, for
    headers that use one prefix for several number spaces. Raises ValueError if two constants of one value match: a
    table must be unambiguous.
    """
    table: dict[int, str] = {}
    expression = re.compile(pattern)
    defined = list(namespace)
    for name in defined[defined.index(first) if first else 0 :]:
        value = namespace[name]
        match = expression.fullmatch(name)
        if match is None or not isinstance(value, int):
            continue
        if value in table:
            raise ValueError(f"{name} has the same value as {table[value]}")
        table[value] = match.group(expression.groups)
    return table


def const_ring_size(sring: Layout, page_size: int = 4096) -> int:
    """Return how many slots a shared ring of `page_size` bytes has (io/ring.h: __CONST_RING_SIZE).

    The number of entries that fit behind the ring's header, rounded down to a power of two.
    """
    room = (page_size - sring.offset("ring")) // sring.member("ring[0]").size
    return 1 << (room.bit_length() - 1)


def ring_types(name: str, request: Layout, response: Layout) -> tuple[Union, Layout]:
    """Return what `DEFINE_RING_TYPES(name, request, response)` of io/ring.h makes: a slot, and the shared page."""
    entry = Union(f"{name}_sring_entry", (request, "req"), (response, "rsp"))
    private = Union(
        "pvt",
        (Layout("netif", ("uint8_t", "smartpoll_active")), "netif"),
        (Layout("tapif_user", ("uint8_t", "msg")), "tapif_user"),
        ("uint8_t", "pvt_pad", 4),
    )
    indices = (("RING_IDX", index) for index in ("req_prod", "req_event", "rsp_prod", "rsp_event"))
    shared = Layout(f"{name}_sring", *indices, (private, "pvt"), ("uint8_t", "__pad", 44), (entry, "ring", 1))
    return entry, shared
