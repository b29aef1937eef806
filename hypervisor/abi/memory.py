"""Memory reservations (memory.h): how domains get, give back, exchange and describe their memory.

A PV guest's pseudo-physical frames are backed by machine frames that need not be contiguous. XENMEM_* operations
change that backing, report it, and expose Xen's machine-to-physical table.
"""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union
from hypervisor.abi.physdev import physdev_pci_device

# memory.h: get, give back and populate extents of frames; flags of `mem_flags`.
XENMEM_increase_reservation = 0
XENMEM_decrease_reservation = 1
XENMEM_populate_physmap = 6

XENMEMF_populate_on_demand = 1 << 16
XENMEMF_exact_node_request = 1 << 17
XENMEMF_vnode = 1 << 18

xen_memory_reservation = Layout(
    "xen_memory_reservation",
    ("XEN_GUEST_HANDLE(xen_pfn_t)", "extent_start"),
    ("xen_ulong_t", "nr_extents"),
    ("unsigned int", "extent_order"),
    ("unsigned int", "mem_flags"),
    ("domid_t", "domid"),
)

# Exchange extents of one order for extents of another.
XENMEM_exchange = 11

xen_memory_exchange = Layout(
    "xen_memory_exchange",
    (xen_memory_reservation, "in"),
    (xen_memory_reservation, "out"),
    ("xen_ulong_t", "nr_exchanged"),
)

# Sizes: the host's highest frame, a domain's pages now and at most, its highest guest frame.
XENMEM_maximum_ram_page = 2

xen_memory_domain = Layout("xen_memory_domain", ("domid_t", "domid"))

XENMEM_current_reservation = 3
XENMEM_maximum_reservation = 4
XENMEM_maximum_gpfn = 14

# Where the machine-to-physical table is: its frames (for mapping it in another domain), its addresses.
XENMEM_machphys_mfn_list = 5

xen_machphys_mfn_list = Layout(
    "xen_machphys_mfn_list",
    ("unsigned int", "max_extents"),
    ("XEN_GUEST_HANDLE(xen_pfn_t)", "extent_start"),
    ("unsigned int", "nr_extents"),
)

XENMEM_machphys_compat_mfn_list = 25

XENMEM_machphys_mapping = 12

xen_machphys_mapping = Layout(
    "xen_machphys_mapping",
    ("xen_ulong_t", "v_start"),
    ("xen_ulong_t", "v_end"),
    ("xen_ulong_t", "max_mfn"),
)

# Sources of XENMEM_add_to_physmap, and modifiers of the index of grant frames.
XENMAPSPACE_shared_info = 0
XENMAPSPACE_grant_table = 1
XENMAPSPACE_gmfn = 2
XENMAPSPACE_gmfn_range = 3
XENMAPSPACE_gmfn_foreign = 4
XENMAPSPACE_dev_mmio = 5

# Put a page of one of these sources into a guest's physical address space (HVM and PVH).
XENMEM_add_to_physmap = 7

XENMAPIDX_grant_table_status = 0x80000000

xen_add_to_physmap = Layout(
    "xen_add_to_physmap",
    ("domid_t", "domid"),
    ("uint16_t", "size"),
    ("unsigned int", "space"),
    ("xen_ulong_t", "idx"),
    ("xen_pfn_t", "gpfn"),
)

# The same for many pages, possibly of another domain.
XENMEM_add_to_physmap_batch = 23

xen_add_to_physmap_batch_extra = Union(
    "xen_add_to_physmap_batch_extra",
    ("domid_t", "foreign_domid"),
    ("uint16_t", "res0"),
)

xen_add_to_physmap_batch = Layout(
    "xen_add_to_physmap_batch",
    ("domid_t", "domid"),
    ("uint16_t", "space"),
    ("uint16_t", "size"),
    (xen_add_to_physmap_batch_extra, "u"),
    ("XEN_GUEST_HANDLE(xen_ulong_t)", "idxs"),
    ("XEN_GUEST_HANDLE(xen_pfn_t)", "gpfns"),
    ("XEN_GUEST_HANDLE(int)", "errs"),
)

# Undo that.
XENMEM_remove_from_physmap = 15

xen_remove_from_physmap = Layout(
    "xen_remove_from_physmap",
    ("domid_t", "domid"),
    ("xen_pfn_t", "gpfn"),
)

# Memory maps in E820 form: the domain's, the host's; setting a domain's.
XENMEM_memory_map = 9

xen_memory_map = Layout(
    "xen_memory_map",
    ("unsigned int", "nr_entries"),
    ("XEN_GUEST_HANDLE(void)", "buffer"),
)

XENMEM_machine_memory_map = 10
XENMEM_set_memory_map = 13

xen_foreign_memory_map = Layout(
    "xen_foreign_memory_map",
    ("domid_t", "domid"),
    (xen_memory_map, "map"),
)

# Populate-on-demand (HVM).
XENMEM_set_pod_target = 16
XENMEM_get_pod_target = 17

xen_pod_target = Layout(
    "xen_pod_target",
    ("uint64_t", "target_pages"),
    ("uint64_t", "tot_pages"),
    ("uint64_t", "pod_cache_pages"),
    ("uint64_t", "pod_entries"),
    ("domid_t", "domid"),
)

# Memory sharing and paging (HVM): statistics and operations.
XENMEM_get_sharing_freed_pages = 18
XENMEM_get_sharing_shared_pages = 19
XENMEM_paging_op = 20
XENMEM_paging_op_nominate = 0
XENMEM_paging_op_evict = 1
XENMEM_paging_op_prep = 2

xen_mem_paging_op = Layout(
    "xen_mem_paging_op",
    ("uint8_t", "op"),
    ("domid_t", "domain"),
    ("XEN_GUEST_HANDLE(const_uint8)", "buffer"),
    ("uint64_aligned_t", "gfn"),
)

# Access restrictions for introspection (HVM).
XENMEM_access_op = 21
XENMEM_access_op_set_access = 0
XENMEM_access_op_get_access = 1
XENMEM_access_op_set_access_multi = 4

XENMEM_access_n = 0
XENMEM_access_r = 1
XENMEM_access_w = 2
XENMEM_access_rw = 3
XENMEM_access_x = 4
XENMEM_access_rx = 5
XENMEM_access_wx = 6
XENMEM_access_rwx = 7
XENMEM_access_rx2rw = 8
XENMEM_access_n2rwx = 9
XENMEM_access_default = 10

xen_mem_access_op = Layout(
    "xen_mem_access_op",
    ("uint8_t", "op"),
    ("uint8_t", "access"),
    ("domid_t", "domid"),
    ("uint32_t", "nr"),
    ("uint64_aligned_t", "pfn"),
    ("XEN_GUEST_HANDLE(const_uint64)", "pfn_list"),
    ("XEN_GUEST_HANDLE(const_uint8)", "access_list"),
)

# Sharing of identical pages and forks (HVM).
XENMEM_sharing_op = 22
XENMEM_sharing_op_nominate_gfn = 0
XENMEM_sharing_op_nominate_gref = 1
XENMEM_sharing_op_share = 2
XENMEM_sharing_op_debug_gfn = 3
XENMEM_sharing_op_debug_mfn = 4
XENMEM_sharing_op_debug_gref = 5
XENMEM_sharing_op_add_physmap = 6
XENMEM_sharing_op_audit = 7
XENMEM_sharing_op_range_share = 8
XENMEM_sharing_op_fork = 9
XENMEM_sharing_op_fork_reset = 10
XENMEM_SHARING_OP_S_HANDLE_INVALID = -10
XENMEM_SHARING_OP_C_HANDLE_INVALID = -9

# A field holds a grant reference when this bit is set.
XENMEM_SHARING_OP_FIELD_IS_GREF_FLAG = 1 << 62

mem_sharing_op_nominate = Layout(
    "mem_sharing_op_nominate",
    (
        Union(
            "u",
            ("uint64_aligned_t", "gfn"),
            ("uint32_t", "grant_ref"),
        ),
        "u",
    ),
    ("uint64_aligned_t", "handle"),
)

mem_sharing_op_share = Layout(
    "mem_sharing_op_share",
    ("uint64_aligned_t", "source_gfn"),
    ("uint64_aligned_t", "source_handle"),
    ("uint64_aligned_t", "client_gfn"),
    ("uint64_aligned_t", "client_handle"),
    ("domid_t", "client_domain"),
)

mem_sharing_op_range = Layout(
    "mem_sharing_op_range",
    ("uint64_aligned_t", "first_gfn"),
    ("uint64_aligned_t", "last_gfn"),
    ("uint64_aligned_t", "opaque"),
    ("domid_t", "client_domain"),
    ("uint16_t", "_pad", 3),
)

mem_sharing_op_debug = Layout(
    "mem_sharing_op_debug",
    (
        Union(
            "u",
            ("uint64_aligned_t", "gfn"),
            ("uint64_aligned_t", "mfn"),
            ("uint32_t", "gref"),
        ),
        "u",
    ),
)

XENMEM_FORK_WITH_IOMMU_ALLOWED = 1 << 0
XENMEM_FORK_BLOCK_INTERRUPTS = 1 << 1
XENMEM_FORK_RESET_STATE = 1 << 2
XENMEM_FORK_RESET_MEMORY = 1 << 3

mem_sharing_op_fork = Layout(
    "mem_sharing_op_fork",
    ("domid_t", "parent_domain"),
    ("uint16_t", "flags"),
    ("uint32_t", "pad"),
)

xen_mem_sharing_op = Layout(
    "xen_mem_sharing_op",
    ("uint8_t", "op"),
    ("domid_t", "domain"),
    (
        Union(
            "u",
            (mem_sharing_op_nominate, "nominate"),
            (mem_sharing_op_share, "share"),
            (mem_sharing_op_range, "range"),
            (mem_sharing_op_debug, "debug"),
            (mem_sharing_op_fork, "fork"),
        ),
        "u",
    ),
)

# Stake a claim to memory ahead of building a domain.
XENMEM_claim_pages = 24

# Memory that firmware reserves for devices.
XENMEM_reserved_device_memory_map = 27

xen_reserved_device_memory = Layout(
    "xen_reserved_device_memory",
    ("xen_pfn_t", "start_pfn"),
    ("xen_ulong_t", "nr_pages"),
)

XENMEM_RDM_ALL = 1

xen_reserved_device_memory_map = Layout(
    "xen_reserved_device_memory_map",
    ("uint32_t", "flags"),
    ("unsigned int", "nr_entries"),
    ("XEN_GUEST_HANDLE(xen_reserved_device_memory_t)", "buffer"),
    (Union("dev", (physdev_pci_device, "pci")), "dev"),
)

# Map memory that belongs to a domain but lies outside of its address space: grant tables, ioreq pages.
XENMEM_acquire_resource = 28
XENMEM_resource_ioreq_server = 0
XENMEM_resource_grant_table = 1
XENMEM_resource_vmtrace_buf = 2
XENMEM_resource_grant_table_id_shared = 0
XENMEM_resource_grant_table_id_status = 1
XENMEM_resource_ioreq_server_frame_bufioreq = 0

xen_mem_acquire_resource = Layout(
    "xen_mem_acquire_resource",
    ("domid_t", "domid"),
    ("uint16_t", "type"),
    ("uint32_t", "id"),
    ("uint32_t", "nr_frames"),
    ("uint32_t", "pad"),
    ("uint64_t", "frame"),
    ("XEN_GUEST_HANDLE(xen_pfn_t)", "frame_list"),
)

# Virtual NUMA topology.
XENMEM_get_vnumainfo = 26

xen_vmemrange = Layout(
    "xen_vmemrange",
    ("uint64_t", "start"),
    ("uint64_t", "end"),
    ("unsigned int", "flags"),
    ("unsigned int", "nid"),
)

xen_vnuma_topology_info = Layout(
    "xen_vnuma_topology_info",
    ("domid_t", "domid"),
    ("uint16_t", "pad"),
    ("unsigned int", "nr_vnodes"),
    ("unsigned int", "nr_vcpus"),
    ("unsigned int", "nr_vmemranges"),
    (
        Union(
            "vdistance",
            ("XEN_GUEST_HANDLE(uint)", "h"),
            ("uint64_t", "pad"),
        ),
        "vdistance",
    ),
    (
        Union(
            "vcpu_to_vnode",
            ("XEN_GUEST_HANDLE(uint)", "h"),
            ("uint64_t", "pad"),
        ),
        "vcpu_to_vnode",
    ),
    (
        Union(
            "vmemrange",
            ("XEN_GUEST_HANDLE(xen_vmemrange_t)", "h"),
            ("uint64_t", "pad"),
        ),
        "vmemrange",
    ),
)

NAMES = names(
    globals(),
    r"XENMEM_(?!(?:paging|access|sharing)_op_|access_|resource_|SHARING|FORK|RDM)\w+|XENMEM_access_op",
)
"""Operations by number."""


def XENMEMF_address_bits(bits: int) -> int:
    """Return the part of `mem_flags` that limits the width of the machine addresses."""
    return bits


def XENMEMF_get_address_bits(flags: int) -> int:
    """Return the width of machine addresses that `mem_flags` asks for, 0 if any will do."""
    return flags & 0xFF


def XENMEMF_node(node: int) -> int:
    """Return the part of `mem_flags` that asks for memory of a NUMA node."""
    return (node + 1) << 8


def XENMEMF_get_node(flags: int) -> int:
    """Return the NUMA node that `mem_flags` asks for, 0xFF if any will do."""
    return ((flags >> 8) - 1) & 0xFF


def XENMEMF_exact_node(node: int) -> int:
    """Return the part of `mem_flags` that insists on a NUMA node."""
    return XENMEMF_node(node) | XENMEMF_exact_node_request


def XENMEM_SHARING_OP_FIELD_IS_GREF(field: int) -> int:
    """Return non-zero if `field` holds a grant reference and not a frame."""
    return field & XENMEM_SHARING_OP_FIELD_IS_GREF_FLAG


def XENMEM_SHARING_OP_FIELD_GET_GREF(field: int) -> int:
    """Return the grant reference in `field`."""
    return field & ~XENMEM_SHARING_OP_FIELD_IS_GREF_FLAG


def XENMEM_resource_ioreq_server_frame_ioreq(index: int) -> int:
    """Return the frame index of the n-th synchronous ioreq page of an ioreq server."""
    return 1 + index
