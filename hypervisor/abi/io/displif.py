"""Displays (io/displif.h): buffers, framebuffers and page flips; one ring of requests, one page of events."""

from hypervisor.abi._names import names, ring_types
from hypervisor.abi.layout import Layout, Union

# io/displif.h: version of the protocol.
XENDISPL_PROTOCOL_VERSION = "2"
XENDISPL_PROTOCOL_VERSION_INT = 2

# Requests.
XENDISPL_OP_DBUF_CREATE = 0x10
XENDISPL_OP_DBUF_DESTROY = 0x11
XENDISPL_OP_FB_ATTACH = 0x12
XENDISPL_OP_FB_DETACH = 0x13
XENDISPL_OP_SET_CONFIG = 0x14
XENDISPL_OP_PG_FLIP = 0x15
XENDISPL_OP_GET_EDID = 0x16

# Events.
XENDISPL_EVT_PG_FLIP = 0x00

# Names in xenstore.
XENDISPL_DRIVER_NAME = "vdispl"
XENDISPL_LIST_SEPARATOR = ","
XENDISPL_RESOLUTION_SEPARATOR = "x"
XENDISPL_FIELD_BE_VERSIONS = "versions"
XENDISPL_FIELD_FE_VERSION = "version"
XENDISPL_FIELD_REQ_RING_REF = "req-ring-ref"
XENDISPL_FIELD_REQ_CHANNEL = "req-event-channel"
XENDISPL_FIELD_EVT_RING_REF = "evt-ring-ref"
XENDISPL_FIELD_EVT_CHANNEL = "evt-event-channel"
XENDISPL_FIELD_RESOLUTION = "resolution"
XENDISPL_FIELD_BE_ALLOC = "be-alloc"
XENDISPL_FIELD_UNIQUE_ID = "unique-id"

# Descriptions of monitors.
XENDISPL_EDID_BLOCK_SIZE = 128
XENDISPL_EDID_BLOCK_COUNT = 256
XENDISPL_EDID_MAX_SIZE = XENDISPL_EDID_BLOCK_SIZE * XENDISPL_EDID_BLOCK_COUNT

# Arguments of the requests. Flag: the backend makes the buffer.
XENDISPL_DBUF_FLG_REQ_ALLOC = 1 << 0

xendispl_dbuf_create_req = Layout(
    "xendispl_dbuf_create_req",
    ("uint64_t", "dbuf_cookie"),
    ("uint32_t", "width"),
    ("uint32_t", "height"),
    ("uint32_t", "bpp"),
    ("uint32_t", "buffer_sz"),
    ("uint32_t", "flags"),
    ("grant_ref_t", "gref_directory"),
    ("uint32_t", "data_ofs"),
)


# Grants of a buffer, a page of them at a time.
xendispl_page_directory = Layout(
    "xendispl_page_directory",
    ("grant_ref_t", "gref_dir_next_page"),
    ("grant_ref_t", "gref", 1),
)


xendispl_dbuf_destroy_req = Layout(
    "xendispl_dbuf_destroy_req",
    ("uint64_t", "dbuf_cookie"),
)


xendispl_fb_attach_req = Layout(
    "xendispl_fb_attach_req",
    ("uint64_t", "dbuf_cookie"),
    ("uint64_t", "fb_cookie"),
    ("uint32_t", "width"),
    ("uint32_t", "height"),
    ("uint32_t", "pixel_format"),
)


xendispl_fb_detach_req = Layout(
    "xendispl_fb_detach_req",
    ("uint64_t", "fb_cookie"),
)


xendispl_set_config_req = Layout(
    "xendispl_set_config_req",
    ("uint64_t", "fb_cookie"),
    ("uint32_t", "x"),
    ("uint32_t", "y"),
    ("uint32_t", "width"),
    ("uint32_t", "height"),
    ("uint32_t", "bpp"),
)


xendispl_page_flip_req = Layout(
    "xendispl_page_flip_req",
    ("uint64_t", "fb_cookie"),
)


xendispl_get_edid_req = Layout(
    "xendispl_get_edid_req",
    ("uint32_t", "buffer_sz"),
    ("grant_ref_t", "gref_directory"),
)


xendispl_get_edid_resp = Layout(
    "xendispl_get_edid_resp",
    ("uint32_t", "edid_sz"),
)


xendispl_pg_flip_evt = Layout(
    "xendispl_pg_flip_evt",
    ("uint64_t", "fb_cookie"),
)


# A request, a response, an event.
xendispl_req = Layout(
    "xendispl_req",
    ("uint16_t", "id"),
    ("uint8_t", "operation"),
    ("uint8_t", "reserved", 5),
    (
        Union(
            "op",
            (xendispl_dbuf_create_req, "dbuf_create"),
            (xendispl_dbuf_destroy_req, "dbuf_destroy"),
            (xendispl_fb_attach_req, "fb_attach"),
            (xendispl_fb_detach_req, "fb_detach"),
            (xendispl_set_config_req, "set_config"),
            (xendispl_page_flip_req, "pg_flip"),
            (xendispl_get_edid_req, "get_edid"),
            ("uint8_t", "reserved", 56),
        ),
        "op",
    ),
)


xendispl_resp = Layout(
    "xendispl_resp",
    ("uint16_t", "id"),
    ("uint8_t", "operation"),
    ("uint8_t", "reserved"),
    ("int32_t", "status"),
    (Union("op", (xendispl_get_edid_resp, "get_edid"), ("uint8_t", "reserved1", 56)), "op"),
)


xendispl_evt = Layout(
    "xendispl_evt",
    ("uint16_t", "id"),
    ("uint8_t", "type"),
    ("uint8_t", "reserved", 5),
    (Union("op", (xendispl_pg_flip_evt, "pg_flip"), ("uint8_t", "reserved", 56)), "op"),
)


# DEFINE_RING_TYPES(xen_displif, ...).
xen_displif_sring_entry, xen_displif_sring = ring_types("xen_displif", xendispl_req, xendispl_resp)

# The page of events: indices, then slots.
xendispl_event_page = Layout(
    "xendispl_event_page",
    ("uint32_t", "in_cons"),
    ("uint32_t", "in_prod"),
    ("uint8_t", "reserved", 56),
)

XENDISPL_EVENT_PAGE_SIZE = 4096
XENDISPL_IN_RING_OFFS = xendispl_event_page.size
XENDISPL_IN_RING_SIZE = XENDISPL_EVENT_PAGE_SIZE - XENDISPL_IN_RING_OFFS
XENDISPL_IN_RING_LEN = XENDISPL_IN_RING_SIZE // xendispl_evt.size

NAMES = names(globals(), r"XENDISPL_OP_\w+")
"""Requests by number."""
