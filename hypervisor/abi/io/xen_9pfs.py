"""9pfs (io/9pfs.h): a shared filesystem's transport, 9P messages in a pair of rings."""

from hypervisor.abi.layout import Layout

# DEFINE_XEN_FLEX_RING_AND_INTF(xen_9pfs) (io/ring.h): the first shared page, and the pages of the rings (as pointers
# in C).
xen_9pfs_data_intf = Layout(
    "xen_9pfs_data_intf",
    ("RING_IDX", "in_cons"),
    ("RING_IDX", "in_prod"),
    ("uint8_t", "pad1", 56),
    ("RING_IDX", "out_cons"),
    ("RING_IDX", "out_prod"),
    ("uint8_t", "pad2", 56),
    ("RING_IDX", "ring_order"),
    ("grant_ref_t", "ref", 0),
)

xen_9pfs_data = Layout(
    "xen_9pfs_data",
    ("unsigned char *", "in"),
    ("unsigned char *", "out"),
)
