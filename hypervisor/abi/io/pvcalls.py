"""Sockets of the other domain (io/pvcalls.h): a guest's socket calls carried out by its backend.

Commands travel on a ring; the bytes of a connection in a shared area of their own, with a ring for each direction.
"""

from hypervisor.abi._names import names, ring_types
from hypervisor.abi.layout import Layout, Union

# io/pvcalls.h: the first page of a connection: indices of both directions, then the grants of their pages.
pvcalls_data_intf = Layout(
    "pvcalls_data_intf",
    ("RING_IDX", "in_cons"),
    ("RING_IDX", "in_prod"),
    ("RING_IDX", "in_error"),
    ("uint8_t", "pad1", 52),
    ("RING_IDX", "out_cons"),
    ("RING_IDX", "out_prod"),
    ("RING_IDX", "out_error"),
    ("uint8_t", "pad2", 52),
    ("RING_IDX", "ring_order"),
    ("grant_ref_t", "ref", 0),
)


# Commands.
PVCALLS_SOCKET = 0
PVCALLS_CONNECT = 1
PVCALLS_RELEASE = 2
PVCALLS_BIND = 3
PVCALLS_LISTEN = 4
PVCALLS_ACCEPT = 5
PVCALLS_POLL = 6

# Arguments of each.
xen_pvcalls_socket = Layout(
    "xen_pvcalls_socket",
    ("uint64_t", "id"),
    ("uint32_t", "domain"),
    ("uint32_t", "type"),
    ("uint32_t", "protocol"),
    ("uint8_t", "pad", 4),
)


xen_pvcalls_connect = Layout(
    "xen_pvcalls_connect",
    ("uint64_t", "id"),
    ("uint8_t", "addr", 28),
    ("uint32_t", "len"),
    ("uint32_t", "flags"),
    ("grant_ref_t", "ref"),
    ("uint32_t", "evtchn"),
    ("uint8_t", "pad", 4),
)


xen_pvcalls_release = Layout(
    "xen_pvcalls_release",
    ("uint64_t", "id"),
    ("uint8_t", "reuse"),
    ("uint8_t", "pad", 7),
)


xen_pvcalls_bind = Layout(
    "xen_pvcalls_bind",
    ("uint64_t", "id"),
    ("uint8_t", "addr", 28),
    ("uint32_t", "len"),
)


xen_pvcalls_listen = Layout(
    "xen_pvcalls_listen",
    ("uint64_t", "id"),
    ("uint32_t", "backlog"),
    ("uint8_t", "pad", 4),
)


xen_pvcalls_accept = Layout(
    "xen_pvcalls_accept",
    ("uint64_t", "id"),
    ("uint64_t", "id_new"),
    ("grant_ref_t", "ref"),
    ("uint32_t", "evtchn"),
)


xen_pvcalls_poll = Layout(
    "xen_pvcalls_poll",
    ("uint64_t", "id"),
)


xen_pvcalls_dummy = Layout(
    "xen_pvcalls_dummy",
    ("uint8_t", "dummy", 56),
)


# A request.
xen_pvcalls_request = Layout(
    "xen_pvcalls_request",
    ("uint32_t", "req_id"),
    ("uint32_t", "cmd"),
    (
        Union(
            "u",
            (xen_pvcalls_socket, "socket"),
            (xen_pvcalls_connect, "connect"),
            (xen_pvcalls_release, "release"),
            (xen_pvcalls_bind, "bind"),
            (xen_pvcalls_listen, "listen"),
            (xen_pvcalls_accept, "accept"),
            (xen_pvcalls_poll, "poll"),
            (xen_pvcalls_dummy, "dummy"),
        ),
        "u",
    ),
)


# What an answer says besides its result: whose it is.
_xen_pvcalls_socket = Layout(
    "_xen_pvcalls_socket",
    ("uint64_t", "id"),
)


_xen_pvcalls_connect = Layout(
    "_xen_pvcalls_connect",
    ("uint64_t", "id"),
)


_xen_pvcalls_release = Layout(
    "_xen_pvcalls_release",
    ("uint64_t", "id"),
)


_xen_pvcalls_bind = Layout(
    "_xen_pvcalls_bind",
    ("uint64_t", "id"),
)


_xen_pvcalls_listen = Layout(
    "_xen_pvcalls_listen",
    ("uint64_t", "id"),
)


_xen_pvcalls_accept = Layout(
    "_xen_pvcalls_accept",
    ("uint64_t", "id"),
)


_xen_pvcalls_poll = Layout(
    "_xen_pvcalls_poll",
    ("uint64_t", "id"),
)


_xen_pvcalls_dummy = Layout(
    "_xen_pvcalls_dummy",
    ("uint8_t", "dummy", 8),
)


# A response; `ret` is 0 or a negative errno.
xen_pvcalls_response = Layout(
    "xen_pvcalls_response",
    ("uint32_t", "req_id"),
    ("uint32_t", "cmd"),
    ("int32_t", "ret"),
    ("uint32_t", "pad"),
    (
        Union(
            "u",
            (_xen_pvcalls_socket, "socket"),
            (_xen_pvcalls_connect, "connect"),
            (_xen_pvcalls_release, "release"),
            (_xen_pvcalls_bind, "bind"),
            (_xen_pvcalls_listen, "listen"),
            (_xen_pvcalls_accept, "accept"),
            (_xen_pvcalls_poll, "poll"),
            (_xen_pvcalls_dummy, "dummy"),
        ),
        "u",
    ),
)


# DEFINE_RING_TYPES(xen_pvcalls, ...).
xen_pvcalls_sring_entry, xen_pvcalls_sring = ring_types("xen_pvcalls", xen_pvcalls_request, xen_pvcalls_response)

NAMES = names(globals(), r"PVCALLS_\w+")
"""Commands by number."""
