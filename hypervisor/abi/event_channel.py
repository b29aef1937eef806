"""Event channels (event_channel.h): the interrupts of a paravirtualized machine.

A port is bound to another domain's port, a virtual IRQ, a physical IRQ or another vCPU of the same domain; sending
sets a pending bit and, unless masked, upcalls the vCPU that the port is bound to. Two ABIs share the operations: the
2-level one with bitmaps in `shared_info`, and the FIFO one with event words and per-vCPU priority queues.
"""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# event_channel.h, "event_channel_op": operations; each takes the structure of its name.
EVTCHNOP_bind_interdomain = 0
EVTCHNOP_bind_virq = 1
EVTCHNOP_bind_pirq = 2
EVTCHNOP_close = 3
EVTCHNOP_send = 4
EVTCHNOP_status = 5
EVTCHNOP_alloc_unbound = 6
EVTCHNOP_bind_ipi = 7
EVTCHNOP_bind_vcpu = 8
EVTCHNOP_unmask = 9
EVTCHNOP_reset = 10
EVTCHNOP_init_control = 11
EVTCHNOP_expand_array = 12
EVTCHNOP_set_priority = 13

# Get a free port of `dom` that `remote_dom` may bind to.
evtchn_alloc_unbound = Layout(
    "evtchn_alloc_unbound",
    ("domid_t", "dom"),
    ("domid_t", "remote_dom"),
    ("evtchn_port_t", "port"),
)

# Bind a new port to an unbound one of another domain. The new port is pending at once: a notification may have been
# lost before.
evtchn_bind_interdomain = Layout(
    "evtchn_bind_interdomain",
    ("domid_t", "remote_dom"),
    ("evtchn_port_t", "remote_port"),
    ("evtchn_port_t", "local_port"),
)

# Bind a virtual interrupt of a vCPU; per-host ones bind to vCPU 0 first and may then be moved.
evtchn_bind_virq = Layout(
    "evtchn_bind_virq",
    ("uint32_t", "virq"),
    ("uint32_t", "vcpu"),
    ("evtchn_port_t", "port"),
)

# Bind a physical interrupt line.
BIND_PIRQ__WILL_SHARE = 1

evtchn_bind_pirq = Layout(
    "evtchn_bind_pirq",
    ("uint32_t", "pirq"),
    ("uint32_t", "flags"),
    ("evtchn_port_t", "port"),
)

# Get a port that interrupts a vCPU of the caller's own domain.
evtchn_bind_ipi = Layout(
    "evtchn_bind_ipi",
    ("uint32_t", "vcpu"),
    ("evtchn_port_t", "port"),
)

# Close a port; a port at the other end becomes unbound.
evtchn_close = Layout("evtchn_close", ("evtchn_port_t", "port"))

# Notify the other end.
evtchn_send = Layout("evtchn_send", ("evtchn_port_t", "port"))

# What a port is bound to.
EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_pirq = 3
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5

evtchn_status = Layout(
    "evtchn_status",
    ("domid_t", "dom"),
    ("evtchn_port_t", "port"),
    ("uint32_t", "status"),
    ("uint32_t", "vcpu"),
    (
        Union(
            "u",
            (Layout("unbound", ("domid_t", "dom")), "unbound"),
            (
                Layout(
                    "interdomain",
                    ("domid_t", "dom"),
                    ("evtchn_port_t", "port"),
                ),
                "interdomain",
            ),
            ("uint32_t", "pirq"),
            ("uint32_t", "virq"),
        ),
        "u",
    ),
)

# Choose the vCPU that a port upcalls.
evtchn_bind_vcpu = Layout(
    "evtchn_bind_vcpu",
    ("evtchn_port_t", "port"),
    ("uint32_t", "vcpu"),
)

# Clear a mask bit and upcall if the port is pending.
evtchn_unmask = Layout("evtchn_unmask", ("evtchn_port_t", "port"))

# Close all ports of a domain, and leave the FIFO ABI.
evtchn_reset = Layout("evtchn_reset", ("domid_t", "dom"))

# FIFO ABI: register the control block of a vCPU, the first call switches the domain over.
evtchn_init_control = Layout(
    "evtchn_init_control",
    ("uint64_t", "control_gfn"),
    ("uint32_t", "offset"),
    ("uint32_t", "vcpu"),
    ("uint8_t", "link_bits"),
    ("uint8_t", "_pad", 7),
)

# FIFO ABI: add a page of event words.
evtchn_expand_array = Layout("evtchn_expand_array", ("uint64_t", "array_gfn"))

# FIFO ABI: queue a port's events at a priority, 0 the most urgent.
evtchn_set_priority = Layout(
    "evtchn_set_priority",
    ("evtchn_port_t", "port"),
    ("uint32_t", "priority"),
)

# The argument of the old hypercall (event_channel_op_compat).
evtchn_op = Layout(
    "evtchn_op",
    ("uint32_t", "cmd"),
    (
        Union(
            "u",
            (evtchn_alloc_unbound, "alloc_unbound"),
            (evtchn_bind_interdomain, "bind_interdomain"),
            (evtchn_bind_virq, "bind_virq"),
            (evtchn_bind_pirq, "bind_pirq"),
            (evtchn_bind_ipi, "bind_ipi"),
            (evtchn_close, "close"),
            (evtchn_send, "send"),
            (evtchn_status, "status"),
            (evtchn_bind_vcpu, "bind_vcpu"),
            (evtchn_unmask, "unmask"),
        ),
        "u",
    ),
)

# 2-level ABI: 64 selector bits times 64 pending bits.
EVTCHN_2L_NR_CHANNELS = 4096

# FIFO ABI, "event channel priorities" and "event word": bits of an event word above the 17-bit link to the next.
EVTCHN_FIFO_PRIORITY_MAX = 0
EVTCHN_FIFO_PRIORITY_DEFAULT = 7
EVTCHN_FIFO_PRIORITY_MIN = 15
EVTCHN_FIFO_MAX_QUEUES = EVTCHN_FIFO_PRIORITY_MIN + 1
EVTCHN_FIFO_PENDING = 31
EVTCHN_FIFO_MASKED = 30
EVTCHN_FIFO_LINKED = 29
EVTCHN_FIFO_BUSY = 28
EVTCHN_FIFO_LINK_BITS = 17
EVTCHN_FIFO_LINK_MASK = (1 << EVTCHN_FIFO_LINK_BITS) - 1
EVTCHN_FIFO_NR_CHANNELS = 1 << EVTCHN_FIFO_LINK_BITS

# Per vCPU: which queues are not empty, and the head of each.
evtchn_fifo_control_block = Layout(
    "evtchn_fifo_control_block",
    ("uint32_t", "ready"),
    ("uint32_t", "_rsvd"),
    ("uint32_t", "head", EVTCHN_FIFO_MAX_QUEUES),
)

NAMES = names(globals(), r"EVTCHNOP_\w+")
"""Operations by number."""

STATUS_NAMES = names(globals(), r"EVTCHNSTAT_\w+")
"""What a port is, by the `status` of `evtchn_status`."""
