"""Grant tables (grant_table.h): how a domain lets another one at single pages of its memory.

The granter writes entries into its grant table, which it shares with Xen; the grantee maps them or has Xen copy
through them, naming the entry by its index, the grant reference. While an entry is in use Xen holds GTF_reading and
GTF_writing in it, and the granter must not take it back.
"""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout, Union

# Version 1 of an entry. Flags are written last, with a barrier before, and taken back with compare-and-swap.
grant_entry_v1 = Layout(
    "grant_entry_v1",
    ("uint16_t", "flags"),
    ("domid_t", "domid"),
    ("uint32_t", "frame"),
)

# The first entries are the toolstack's: it grants the console and xenstore pages to their daemons before the guest
# runs.
GNTTAB_NR_RESERVED_ENTRIES = 8
GNTTAB_RESERVED_CONSOLE = 0
GNTTAB_RESERVED_XENSTORE = 1

# The type of an entry, in the low two bits of its flags.
GTF_invalid = 0 << 0
GTF_permit_access = 1 << 0
GTF_accept_transfer = 2 << 0
GTF_transitive = 3 << 0
GTF_type_mask = 3 << 0

# GTF_permit_access: flags; Xen sets reading and writing while the grant is in use.
_GTF_readonly = 2
GTF_readonly = 1 << _GTF_readonly
_GTF_reading = 3
GTF_reading = 1 << _GTF_reading
_GTF_writing = 4
GTF_writing = 1 << _GTF_writing
_GTF_PWT = 5
GTF_PWT = 1 << _GTF_PWT
_GTF_PCD = 6
GTF_PCD = 1 << _GTF_PCD
_GTF_PAT = 7
GTF_PAT = 1 << _GTF_PAT
_GTF_sub_page = 8
GTF_sub_page = 1 << _GTF_sub_page

# GTF_accept_transfer: Xen is moving a page in, has moved it.
_GTF_transfer_committed = 2
GTF_transfer_committed = 1 << _GTF_transfer_committed
_GTF_transfer_completed = 3
GTF_transfer_completed = 1 << _GTF_transfer_completed

# Version 2 of an entry: 16 bytes, full page, part of a page, or a grant handed on. Status bits are in a table apart.
grant_entry_header = Layout(
    "grant_entry_header",
    ("uint16_t", "flags"),
    ("domid_t", "domid"),
)

grant_entry_v2 = Union(
    "grant_entry_v2",
    (grant_entry_header, "hdr"),
    (
        Layout(
            "full_page",
            (grant_entry_header, "hdr"),
            ("uint32_t", "pad0"),
            ("uint64_t", "frame"),
        ),
        "full_page",
    ),
    (
        Layout(
            "sub_page",
            (grant_entry_header, "hdr"),
            ("uint16_t", "page_off"),
            ("uint16_t", "length"),
            ("uint64_t", "frame"),
        ),
        "sub_page",
    ),
    (
        Layout(
            "transitive",
            (grant_entry_header, "hdr"),
            ("domid_t", "trans_domid"),
            ("uint16_t", "pad0"),
            ("grant_ref_t", "gref"),
        ),
        "transitive",
    ),
    ("uint32_t", "__spacer", 4),
)

# grant_table.h, "grant_table_op": operations, each on an array of the structure of its name.
GNTTABOP_map_grant_ref = 0
GNTTABOP_unmap_grant_ref = 1
GNTTABOP_setup_table = 2
GNTTABOP_dump_table = 3
GNTTABOP_transfer = 4
GNTTABOP_copy = 5
GNTTABOP_query_size = 6
GNTTABOP_unmap_and_replace = 7
GNTTABOP_set_version = 8
GNTTABOP_get_status_frames = 9
GNTTABOP_get_version = 10
GNTTABOP_swap_grant_ref = 11
GNTTABOP_cache_flush = 12

# Map another domain's page at an address (or into a page table entry) and for DMA.
gnttab_map_grant_ref = Layout(
    "gnttab_map_grant_ref",
    ("uint64_t", "host_addr"),
    ("uint32_t", "flags"),
    ("grant_ref_t", "ref"),
    ("domid_t", "dom"),
    ("int16_t", "status"),
    ("grant_handle_t", "handle"),
    ("uint64_t", "dev_bus_addr"),
)

# Undo a mapping, by handle.
gnttab_unmap_grant_ref = Layout(
    "gnttab_unmap_grant_ref",
    ("uint64_t", "host_addr"),
    ("uint64_t", "dev_bus_addr"),
    ("grant_handle_t", "handle"),
    ("int16_t", "status"),
)

# Make the table that many frames long and list them.
gnttab_setup_table = Layout(
    "gnttab_setup_table",
    ("domid_t", "dom"),
    ("uint32_t", "nr_frames"),
    ("int16_t", "status"),
    ("XEN_GUEST_HANDLE(xen_pfn_t)", "frame_list"),
)

# Write the table to Xen's console.
gnttab_dump_table = Layout(
    "gnttab_dump_table",
    ("domid_t", "dom"),
    ("int16_t", "status"),
)

# Give a page of the caller's away, to a domain that offers a place for it (GTF_accept_transfer).
gnttab_transfer = Layout(
    "gnttab_transfer",
    ("xen_pfn_t", "mfn"),
    ("domid_t", "domid"),
    ("grant_ref_t", "ref"),
    ("int16_t", "status"),
)

# Copy within a page to within a page, each side named by grant reference or by frame.
_GNTCOPY_source_gref = 0
GNTCOPY_source_gref = 1 << _GNTCOPY_source_gref
_GNTCOPY_dest_gref = 1
GNTCOPY_dest_gref = 1 << _GNTCOPY_dest_gref

gnttab_copy_ptr = Layout(
    "gnttab_copy_ptr",
    (
        Union(
            "u",
            ("grant_ref_t", "ref"),
            ("xen_pfn_t", "gmfn"),
        ),
        "u",
    ),
    ("domid_t", "domid"),
    ("uint16_t", "offset"),
)

gnttab_copy_ptr = Layout(
    "gnttab_copy_ptr",
    (
        Union(
            "u",
            ("grant_ref_t", "ref"),
            ("xen_pfn_t", "gmfn"),
        ),
        "u",
    ),
    ("domid_t", "domid"),
    ("uint16_t", "offset"),
)

gnttab_copy = Layout(
    "gnttab_copy",
    (gnttab_copy_ptr, "source"),
    (gnttab_copy_ptr, "dest"),
    ("uint16_t", "len"),
    ("uint16_t", "flags"),
    ("int16_t", "status"),
)

# Current and greatest size of the table, in frames.
gnttab_query_size = Layout(
    "gnttab_query_size",
    ("domid_t", "dom"),
    ("uint32_t", "nr_frames"),
    ("uint32_t", "max_nr_frames"),
    ("int16_t", "status"),
)

# Unmap and put the mapping at another address in its place, in one step.
gnttab_unmap_and_replace = Layout(
    "gnttab_unmap_and_replace",
    ("uint64_t", "host_addr"),
    ("uint64_t", "new_addr"),
    ("grant_handle_t", "handle"),
    ("int16_t", "status"),
)

# Choose between versions 1 and 2 of the entries.
gnttab_set_version = Layout("gnttab_set_version", ("uint32_t", "version"))

# Version 2: the frames of the status table.
gnttab_get_status_frames = Layout(
    "gnttab_get_status_frames",
    ("uint32_t", "nr_frames"),
    ("domid_t", "dom"),
    ("int16_t", "status"),
    ("XEN_GUEST_HANDLE(uint64_t)", "frame_list"),
)

# Which version a domain's table has.
gnttab_get_version = Layout(
    "gnttab_get_version",
    ("domid_t", "dom"),
    ("uint16_t", "pad"),
    ("uint32_t", "version"),
)

# Exchange the contents of two entries.
gnttab_swap_grant_ref = Layout(
    "gnttab_swap_grant_ref",
    ("grant_ref_t", "ref_a"),
    ("grant_ref_t", "ref_b"),
    ("int16_t", "status"),
)

# Clean or invalidate data caches for a granted range (ARM).
GNTTAB_CACHE_CLEAN = 1 << 0
GNTTAB_CACHE_INVAL = 1 << 1
GNTTAB_CACHE_SOURCE_GREF = 1 << 31

gnttab_cache_flush = Layout(
    "gnttab_cache_flush",
    (
        Union(
            "a",
            ("uint64_t", "dev_bus_addr"),
            ("grant_ref_t", "ref"),
        ),
        "a",
    ),
    ("uint16_t", "offset"),
    ("uint16_t", "length"),
    ("uint32_t", "op"),
)

# Flags of a mapping: for devices, for the processor, read-only, for user mode, by page table entry; the high half is
# the guest's.
_GNTMAP_device_map = 0
GNTMAP_device_map = 1 << _GNTMAP_device_map
_GNTMAP_host_map = 1
GNTMAP_host_map = 1 << _GNTMAP_host_map
_GNTMAP_readonly = 2
GNTMAP_readonly = 1 << _GNTMAP_readonly
_GNTMAP_application_map = 3
GNTMAP_application_map = 1 << _GNTMAP_application_map
_GNTMAP_contains_pte = 4
GNTMAP_contains_pte = 1 << _GNTMAP_contains_pte
_GNTMAP_guest_avail0 = 16
GNTMAP_guest_avail_mask = 0xFFFF0000

# Statuses, in the `status` members; negative, but not errno values.
GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_bad_handle = -4
GNTST_bad_virt_addr = -5
GNTST_bad_dev_addr = -6
GNTST_no_device_space = -7
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_bad_copy_arg = -10
GNTST_address_too_big = -11
GNTST_eagain = -12
GNTST_no_space = -13

NAMES = names(globals(), r"GNTTABOP_\w+")
"""Operations by number."""

STATUS_NAMES = names(globals(), r"GNTST_\w+")
"""Statuses by (negative) number."""
