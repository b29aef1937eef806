"""Network interfaces (io/netif.h): a ring for each direction, and a control ring.

A packet is one or more slots, each naming a granted page; flags carry checksum state, and "extra info" slots carry
segmentation offload, multicast filters and hashes. Transmission and reception are named as the frontend sees them.
"""

from hypervisor.abi._names import const_ring_size, names
from hypervisor.abi.layout import Layout, Union

# io/netif.h: how many slots a backend accepts at least for one packet.
XEN_NETIF_NR_SLOTS_MIN = 18

# Hashing: over which headers, by which algorithm.
_XEN_NETIF_CTRL_HASH_TYPE_IPV4 = 0
XEN_NETIF_CTRL_HASH_TYPE_IPV4 = 1 << _XEN_NETIF_CTRL_HASH_TYPE_IPV4
_XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP = 1
XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP = 1 << _XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
_XEN_NETIF_CTRL_HASH_TYPE_IPV6 = 2
XEN_NETIF_CTRL_HASH_TYPE_IPV6 = 1 << _XEN_NETIF_CTRL_HASH_TYPE_IPV6
_XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP = 3
XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP = 1 << _XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP

XEN_NETIF_CTRL_HASH_ALGORITHM_NONE = 0
XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ = 1

# The control ring: requests.
XEN_NETIF_CTRL_TYPE_INVALID = 0
XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS = 1
XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS = 2
XEN_NETIF_CTRL_TYPE_SET_HASH_KEY = 3
XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE = 4
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE = 5
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING = 6
XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM = 7
XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE = 8
XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING = 9
XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING = 10

xen_netif_ctrl_request = Layout(
    "xen_netif_ctrl_request",
    ("uint16_t", "id"),
    ("uint16_t", "type"),
    ("uint32_t", "data", 3),
)

# The control ring: responses.
XEN_NETIF_CTRL_STATUS_SUCCESS = 0
XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED = 1
XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER = 2
XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW = 3

xen_netif_ctrl_response = Layout(
    "xen_netif_ctrl_response",
    ("uint16_t", "id"),
    ("uint16_t", "type"),
    ("uint32_t", "status"),
    ("uint32_t", "data"),
)

# Grants that the frontend registers to stay mapped.
_XEN_NETIF_CTRLF_GREF_readonly = 0
XEN_NETIF_CTRLF_GREF_readonly = 1 << _XEN_NETIF_CTRLF_GREF_readonly

xen_netif_gref = Layout(
    "xen_netif_gref",
    ("grant_ref_t", "ref"),
    ("uint16_t", "flags"),
    ("uint16_t", "status"),
)

# DEFINE_RING_TYPES(xen_netif_ctrl, ...): the shared page of the control ring.
xen_netif_ctrl_sring_entry = Union(
    "xen_netif_ctrl_sring_entry",
    (xen_netif_ctrl_request, "req"),
    (xen_netif_ctrl_response, "rsp"),
)

xen_netif_ctrl_sring = Layout(
    "xen_netif_ctrl_sring",
    ("RING_IDX", "req_prod"),
    ("RING_IDX", "req_event"),
    ("RING_IDX", "rsp_prod"),
    ("RING_IDX", "rsp_event"),
    (
        Union(
            "pvt",
            (Layout("netif", ("uint8_t", "smartpoll_active")), "netif"),
            (Layout("tapif_user", ("uint8_t", "msg")), "tapif_user"),
            ("uint8_t", "pvt_pad", 4),
        ),
        "pvt",
    ),
    ("uint8_t", "__pad", 44),
    (xen_netif_ctrl_sring_entry, "ring", 1),
)

# Transmission: flags of a slot.
_NETTXF_csum_blank = 0
NETTXF_csum_blank = 1 << _NETTXF_csum_blank
_NETTXF_data_validated = 1
NETTXF_data_validated = 1 << _NETTXF_data_validated
_NETTXF_more_data = 2
NETTXF_more_data = 1 << _NETTXF_more_data
_NETTXF_extra_info = 3
NETTXF_extra_info = 1 << _NETTXF_extra_info

# The longest packet in bytes; `size` of the first slot is that of the whole packet.
XEN_NETIF_MAX_TX_SIZE = 0xFFFF

netif_tx_request = Layout(
    "netif_tx_request",
    ("grant_ref_t", "gref"),
    ("uint16_t", "offset"),
    ("uint16_t", "flags"),
    ("uint16_t", "id"),
    ("uint16_t", "size"),
)

# "Extra info" slots between the first slot of a packet and the rest.
XEN_NETIF_EXTRA_TYPE_NONE = 0
XEN_NETIF_EXTRA_TYPE_GSO = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3
XEN_NETIF_EXTRA_TYPE_HASH = 4
XEN_NETIF_EXTRA_TYPE_MAX = 5
_XEN_NETIF_EXTRA_FLAG_MORE = 0
XEN_NETIF_EXTRA_FLAG_MORE = 1 << _XEN_NETIF_EXTRA_FLAG_MORE
XEN_NETIF_GSO_TYPE_NONE = 0
XEN_NETIF_GSO_TYPE_TCPV4 = 1
XEN_NETIF_GSO_TYPE_TCPV6 = 2

netif_extra_info = Layout(
    "netif_extra_info",
    ("uint8_t", "type"),
    ("uint8_t", "flags"),
    (
        Union(
            "u",
            (
                Layout(
                    "gso",
                    ("uint16_t", "size"),
                    ("uint8_t", "type"),
                    ("uint8_t", "pad"),
                    ("uint16_t", "features"),
                ),
                "gso",
            ),
            (Layout("mcast", ("uint8_t", "addr", 6)), "mcast"),
            (
                Layout(
                    "hash",
                    ("uint8_t", "type"),
                    ("uint8_t", "algorithm"),
                    ("uint8_t", "value", 4),
                ),
                "hash",
            ),
            ("uint16_t", "pad", 3),
        ),
        "u",
    ),
)

# The answer to each slot.
netif_tx_response = Layout(
    "netif_tx_response",
    ("uint16_t", "id"),
    ("int16_t", "status"),
)

# Reception: a page to fill.
netif_rx_request = Layout(
    "netif_rx_request",
    ("uint16_t", "id"),
    ("uint16_t", "pad"),
    ("grant_ref_t", "gref"),
)

# Reception: flags of a slot.
_NETRXF_data_validated = 0
NETRXF_data_validated = 1 << _NETRXF_data_validated
_NETRXF_csum_blank = 1
NETRXF_csum_blank = 1 << _NETRXF_csum_blank
_NETRXF_more_data = 2
NETRXF_more_data = 1 << _NETRXF_more_data
_NETRXF_extra_info = 3
NETRXF_extra_info = 1 << _NETRXF_extra_info
_NETRXF_gso_prefix = 4
NETRXF_gso_prefix = 1 << _NETRXF_gso_prefix

# `status` is the number of bytes, or an error.
netif_rx_response = Layout(
    "netif_rx_response",
    ("uint16_t", "id"),
    ("uint16_t", "offset"),
    ("uint16_t", "flags"),
    ("int16_t", "status"),
)

# DEFINE_RING_TYPES(netif_tx, ...) and (netif_rx, ...): the shared pages.
netif_tx_sring_entry = Union(
    "netif_tx_sring_entry",
    (netif_tx_request, "req"),
    (netif_tx_response, "rsp"),
)

netif_tx_sring = Layout(
    "netif_tx_sring",
    ("RING_IDX", "req_prod"),
    ("RING_IDX", "req_event"),
    ("RING_IDX", "rsp_prod"),
    ("RING_IDX", "rsp_event"),
    (
        Union(
            "pvt",
            (Layout("netif", ("uint8_t", "smartpoll_active")), "netif"),
            (Layout("tapif_user", ("uint8_t", "msg")), "tapif_user"),
            ("uint8_t", "pvt_pad", 4),
        ),
        "pvt",
    ),
    ("uint8_t", "__pad", 44),
    (netif_tx_sring_entry, "ring", 1),
)

netif_rx_sring_entry = Union(
    "netif_rx_sring_entry",
    (netif_rx_request, "req"),
    (netif_rx_response, "rsp"),
)

netif_rx_sring = Layout(
    "netif_rx_sring",
    ("RING_IDX", "req_prod"),
    ("RING_IDX", "req_event"),
    ("RING_IDX", "rsp_prod"),
    ("RING_IDX", "rsp_event"),
    (
        Union(
            "pvt",
            (Layout("netif", ("uint8_t", "smartpoll_active")), "netif"),
            (Layout("tapif_user", ("uint8_t", "msg")), "tapif_user"),
            ("uint8_t", "pvt_pad", 4),
        ),
        "pvt",
    ),
    ("uint8_t", "__pad", 44),
    (netif_rx_sring_entry, "ring", 1),
)

# Statuses; NETIF_RSP_NULL answers the slots of extra info.
NETIF_RSP_DROPPED = -2
NETIF_RSP_ERROR = -1
NETIF_RSP_OKAY = 0
NETIF_RSP_NULL = 1

# Requests that fit into a one-page ring: __CONST_RING_SIZE(netif_tx, 4096) and so on.
NETIF_TX_RING_SIZE = const_ring_size(netif_tx_sring)
NETIF_RX_RING_SIZE = const_ring_size(netif_rx_sring)
XEN_NETIF_CTRL_RING_SIZE = const_ring_size(xen_netif_ctrl_sring)

RSP_NAMES = names(globals(), r"NETIF_RSP_\w+")
"""Statuses of responses by number; a received packet's status is its length when it is not negative."""

EXTRA_NAMES = names(globals(), r"XEN_NETIF_EXTRA_TYPE_(?!MAX)\w+")
"""Kinds of "extra info" slots by number."""

CTRL_NAMES = names(globals(), r"XEN_NETIF_CTRL_TYPE_\w+")
"""Requests of the control ring by number."""
