"""Block devices (io/blkif.h): one ring of requests, each reading or writing up to 11 segments of granted pages.

Frontend and backend negotiate in xenstore, among other things the layout (`protocol`): a request from a 32-bit x86
frontend aligns its 64-bit members to 4 bytes. The layouts of both are here; the native one carries the header's names.
"""

from hypervisor.abi._names import const_ring_size, names
from hypervisor.abi.layout import Layout, Union

# io/blkif.h, "request types". BLKIF_OP_RESERVED_1 stays free for a packet command that old frontends sent.
BLKIF_OP_READ = 0
BLKIF_OP_WRITE = 1
BLKIF_OP_WRITE_BARRIER = 2
BLKIF_OP_FLUSH_DISKCACHE = 3
BLKIF_OP_RESERVED_1 = 4
BLKIF_OP_DISCARD = 5
BLKIF_OP_INDIRECT = 6

# How many segments a request has room for, and pages of segments an indirect one.
BLKIF_MAX_SEGMENTS_PER_REQUEST = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8

# A part of a granted page, in 512-byte sectors, the last one included.
blkif_request_segment = Layout(
    "blkif_request_segment",
    ("grant_ref_t", "gref"),
    ("uint8_t", "first_sect"),
    ("uint8_t", "last_sect"),
)

# A read, write, barrier or flush.
blkif_request = Layout(
    "blkif_request",
    ("uint8_t", "operation"),
    ("uint8_t", "nr_segments"),
    ("uint16_t", "handle"),
    ("uint64_t", "id"),
    ("uint64_t", "sector_number"),
    (blkif_request_segment, "seg", BLKIF_MAX_SEGMENTS_PER_REQUEST),
)

# A discard.
BLKIF_DISCARD_SECURE = 1 << 0

blkif_request_discard = Layout(
    "blkif_request_discard",
    ("uint8_t", "operation"),
    ("uint8_t", "flag"),
    ("uint16_t", "handle"),
    ("uint64_t", "id"),
    ("uint64_t", "sector_number"),
    ("uint64_t", "nr_sectors"),
)

# A request whose segments lie in granted pages.
blkif_request_indirect = Layout(
    "blkif_request_indirect",
    ("uint8_t", "operation"),
    ("uint8_t", "indirect_op"),
    ("uint16_t", "nr_segments"),
    ("uint64_t", "id"),
    ("uint64_t", "sector_number"),
    ("uint16_t", "handle"),
    ("grant_ref_t", "indirect_grefs", BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST),
)

# The answer: `id` and `operation` as they came, and a status.
blkif_response = Layout(
    "blkif_response",
    ("uint64_t", "id"),
    ("uint8_t", "operation"),
    ("int16_t", "status"),
)

# Statuses.
BLKIF_RSP_EOPNOTSUPP = -2
BLKIF_RSP_ERROR = -1
BLKIF_RSP_OKAY = 0

# DEFINE_RING_TYPES(blkif, ...): a slot holds a request or a response; the shared page.
blkif_sring_entry = Union(
    "blkif_sring_entry",
    (blkif_request, "req"),
    (blkif_response, "rsp"),
)

blkif_sring = Layout(
    "blkif_sring",
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
    (blkif_sring_entry, "ring", 1),
)

# The backend's `info` node.
VDISK_CDROM = 0x1
VDISK_REMOVABLE = 0x2
VDISK_READONLY = 0x4

NAMES = names(globals(), r"BLKIF_OP_(?!RESERVED)\w+")
"""Operations by number."""

STATUS_NAMES = names(globals(), r"BLKIF_RSP_\w+")
"""Statuses of responses by number."""

# What a 32-bit x86 frontend (`protocol` = "x86_32-abi") puts in the ring: 64-bit members aligned to 4 bytes. The
# native layouts above are "x86_64-abi"; segments are the same in both.
blkif_x86_32_request = Layout(
    "blkif_x86_32_request",
    ("uint8_t", "operation"),
    ("uint8_t", "nr_segments"),
    ("uint16_t", "handle"),
    ("uint64_t", "id"),
    ("uint64_t", "sector_number"),
    (blkif_request_segment, "seg", BLKIF_MAX_SEGMENTS_PER_REQUEST),
    max_align=4,
)
blkif_x86_32_request_discard = Layout(
    "blkif_x86_32_request_discard",
    ("uint8_t", "operation"),
    ("uint8_t", "flag"),
    ("uint16_t", "handle"),
    ("uint64_t", "id"),
    ("uint64_t", "sector_number"),
    ("uint64_t", "nr_sectors"),
    max_align=4,
)
blkif_x86_32_request_indirect = Layout(
    "blkif_x86_32_request_indirect",
    ("uint8_t", "operation"),
    ("uint8_t", "indirect_op"),
    ("uint16_t", "nr_segments"),
    ("uint64_t", "id"),
    ("uint64_t", "sector_number"),
    ("uint16_t", "handle"),
    ("grant_ref_t", "indirect_grefs", BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST),
    max_align=4,
)
blkif_x86_32_response = Layout(
    "blkif_x86_32_response",
    ("uint64_t", "id"),
    ("uint8_t", "operation"),
    ("int16_t", "status"),
    max_align=4,
)
blkif_x86_32_sring_entry = Union(
    "blkif_x86_32_sring_entry",
    (blkif_x86_32_request, "req"),
    (blkif_x86_32_response, "rsp"),
    max_align=4,
)
blkif_x86_32_sring = Layout(
    "blkif_x86_32_sring",
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
    (blkif_x86_32_sring_entry, "ring", 1),
    max_align=4,
)

# Requests that fit into a one-page ring: __CONST_RING_SIZE(blkif, 4096).
BLKIF_RING_SIZE = const_ring_size(blkif_sring)
BLKIF_X86_32_RING_SIZE = const_ring_size(blkif_x86_32_sring)
