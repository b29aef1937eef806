"""Argo (argo.h): interdomain messages that Xen copies into rings in the receiver's memory."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout
from hypervisor.abi.xen import DOMID_INVALID

# argo.h: any partner; greatest ring, longest list of buffers.
XEN_ARGO_DOMID_ANY = DOMID_INVALID
XEN_ARGO_MAX_RING_SIZE = 0x1000000
XEN_ARGO_MAXIOV = 8

# A buffer to send from.
xen_argo_iov = Layout(
    "xen_argo_iov",
    ("XEN_GUEST_HANDLE(uint8)", "iov_hnd"),
    ("uint32_t", "iov_len"),
    ("uint32_t", "pad"),
)

# Addresses: a domain and a port.
xen_argo_addr = Layout(
    "xen_argo_addr",
    ("xen_argo_port_t", "aport"),
    ("domid_t", "domain_id"),
    ("uint16_t", "pad"),
)

xen_argo_send_addr = Layout(
    "xen_argo_send_addr",
    (xen_argo_addr, "src"),
    (xen_argo_addr, "dst"),
)

# A ring in the receiver's memory. Xen advances tx_ptr, the receiver rx_ptr.
xen_argo_ring = Layout(
    "xen_argo_ring",
    ("uint32_t", "rx_ptr"),
    ("uint32_t", "tx_ptr"),
    ("uint8_t", "reserved", 56),
    ("uint8_t", "ring", 0),
)

# Arguments of operations.
xen_argo_register_ring = Layout(
    "xen_argo_register_ring",
    ("xen_argo_port_t", "aport"),
    ("domid_t", "partner_id"),
    ("uint16_t", "pad"),
    ("uint32_t", "len"),
)

xen_argo_unregister_ring = Layout(
    "xen_argo_unregister_ring",
    ("xen_argo_port_t", "aport"),
    ("domid_t", "partner_id"),
    ("uint16_t", "pad"),
)

# Messages are aligned to this.
XEN_ARGO_MSG_SLOT_SIZE = 0x10

# XEN_ARGO_OP_notify: what the caller asks and learns about rings.
XEN_ARGO_RING_EXISTS = 1 << 0
XEN_ARGO_RING_SHARED = 1 << 1
XEN_ARGO_RING_EMPTY = 1 << 2
XEN_ARGO_RING_SUFFICIENT = 1 << 3
XEN_ARGO_RING_EMSGSIZE = 1 << 4
XEN_ARGO_RING_EBUSY = 1 << 5

xen_argo_ring_data_ent = Layout(
    "xen_argo_ring_data_ent",
    (xen_argo_addr, "ring"),
    ("uint16_t", "flags"),
    ("uint16_t", "pad"),
    ("uint32_t", "space_required"),
    ("uint32_t", "max_message_size"),
)

xen_argo_ring_data = Layout(
    "xen_argo_ring_data",
    ("uint32_t", "nent"),
    ("uint32_t", "pad"),
    (xen_argo_ring_data_ent, "data", 0),
)

# What precedes each message.
xen_argo_ring_message_header = Layout(
    "xen_argo_ring_message_header",
    ("uint32_t", "len"),
    (xen_argo_addr, "source"),
    ("uint32_t", "message_type"),
    ("uint8_t", "data", 0),
)

# Operations.
XEN_ARGO_OP_register_ring = 1
XEN_ARGO_REGISTER_FLAG_FAIL_EXIST = 0x1
XEN_ARGO_OP_unregister_ring = 2
XEN_ARGO_OP_sendv = 3
XEN_ARGO_OP_notify = 4

NAMES = names(globals(), r"XEN_ARGO_OP_\w+")
"""Operations by number."""
