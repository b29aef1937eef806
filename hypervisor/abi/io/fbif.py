"""The PV framebuffer (io/fbif.h): updates and resizes in a shared page, the picture in pages that it lists."""

from hypervisor.abi.layout import Layout, Union

# io/fbif.h: events from the frontend: a rectangle changed, the picture has a new shape.
XENFB_TYPE_UPDATE = 2

xenfb_update = Layout(
    "xenfb_update",
    ("uint8_t", "type"),
    ("int32_t", "x"),
    ("int32_t", "y"),
    ("int32_t", "width"),
    ("int32_t", "height"),
)

XENFB_TYPE_RESIZE = 3

xenfb_resize = Layout(
    "xenfb_resize",
    ("uint8_t", "type"),
    ("int32_t", "width"),
    ("int32_t", "height"),
    ("int32_t", "stride"),
    ("int32_t", "depth"),
    ("int32_t", "offset"),
)

XENFB_OUT_EVENT_SIZE = 40

xenfb_out_event = Union(
    "xenfb_out_event",
    ("uint8_t", "type"),
    (xenfb_update, "update"),
    (xenfb_resize, "resize"),
    ("char", "pad", XENFB_OUT_EVENT_SIZE),
)

# Events from the backend: how often it looks.
XENFB_TYPE_REFRESH_PERIOD = 1
XENFB_NO_REFRESH = 0

xenfb_refresh_period = Layout(
    "xenfb_refresh_period",
    ("uint8_t", "type"),
    ("uint32_t", "period"),
)

XENFB_IN_EVENT_SIZE = 40

xenfb_in_event = Union(
    "xenfb_in_event",
    ("uint8_t", "type"),
    (xenfb_refresh_period, "refresh_period"),
    ("char", "pad", XENFB_OUT_EVENT_SIZE),
)

# The shared page: indices, rings, and the directory of the framebuffer's pages.
XENFB_IN_RING_SIZE = 1024
XENFB_IN_RING_LEN = XENFB_IN_RING_SIZE // XENFB_IN_EVENT_SIZE
XENFB_IN_RING_OFFS = 1024
XENFB_OUT_RING_SIZE = 2048
XENFB_OUT_RING_LEN = XENFB_OUT_RING_SIZE // XENFB_OUT_EVENT_SIZE
XENFB_OUT_RING_OFFS = XENFB_IN_RING_OFFS + XENFB_IN_RING_SIZE

xenfb_page = Layout(
    "xenfb_page",
    ("uint32_t", "in_cons"),
    ("uint32_t", "in_prod"),
    ("uint32_t", "out_cons"),
    ("uint32_t", "out_prod"),
    ("int32_t", "width"),
    ("int32_t", "height"),
    ("uint32_t", "line_length"),
    ("uint32_t", "mem_length"),
    ("uint8_t", "depth"),
    ("unsigned long", "pd", 256),
)
