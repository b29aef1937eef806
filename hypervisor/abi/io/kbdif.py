"""Keyboard, pointer and multi-touch (io/kbdif.h): events in a shared page, xenstore names."""

from hypervisor.abi.layout import Layout, Union

# io/kbdif.h: events from the backend.
XENKBD_TYPE_MOTION = 1
XENKBD_TYPE_RESERVED = 2
XENKBD_TYPE_KEY = 3
XENKBD_TYPE_POS = 4
XENKBD_TYPE_MTOUCH = 5

# Phases of a multi-touch contact.
XENKBD_MT_EV_DOWN = 0
XENKBD_MT_EV_UP = 1
XENKBD_MT_EV_MOTION = 2
XENKBD_MT_EV_SYN = 3
XENKBD_MT_EV_SHAPE = 4
XENKBD_MT_EV_ORIENT = 5

# Names in xenstore: the driver, features, requests, the ring, sizes.
XENKBD_DRIVER_NAME = "vkbd"
XENKBD_FIELD_FEAT_DSBL_KEYBRD = "feature-disable-keyboard"
XENKBD_FIELD_FEAT_DSBL_POINTER = "feature-disable-pointer"
XENKBD_FIELD_FEAT_ABS_POINTER = "feature-abs-pointer"
XENKBD_FIELD_FEAT_RAW_POINTER = "feature-raw-pointer"
XENKBD_FIELD_FEAT_MTOUCH = "feature-multi-touch"
XENKBD_FIELD_REQ_ABS_POINTER = "request-abs-pointer"
XENKBD_FIELD_REQ_RAW_POINTER = "request-raw-pointer"
XENKBD_FIELD_REQ_MTOUCH = "request-multi-touch"
XENKBD_FIELD_RING_GREF = "page-gref"
XENKBD_FIELD_EVT_CHANNEL = "event-channel"
XENKBD_FIELD_WIDTH = "width"
XENKBD_FIELD_HEIGHT = "height"
XENKBD_FIELD_MT_WIDTH = "multi-touch-width"
XENKBD_FIELD_MT_HEIGHT = "multi-touch-height"
XENKBD_FIELD_MT_NUM_CONTACTS = "multi-touch-num-contacts"
XENKBD_FIELD_UNIQUE_ID = "unique-id"
XENKBD_FIELD_RING_REF = "page-ref"

# Events: relative motion, a key or button, absolute position, a touch.
xenkbd_motion = Layout(
    "xenkbd_motion",
    ("uint8_t", "type"),
    ("int32_t", "rel_x"),
    ("int32_t", "rel_y"),
    ("int32_t", "rel_z"),
)

xenkbd_key = Layout(
    "xenkbd_key",
    ("uint8_t", "type"),
    ("uint8_t", "pressed"),
    ("uint32_t", "keycode"),
)

xenkbd_position = Layout(
    "xenkbd_position",
    ("uint8_t", "type"),
    ("int32_t", "abs_x"),
    ("int32_t", "abs_y"),
    ("int32_t", "rel_z"),
)

xenkbd_mtouch = Layout(
    "xenkbd_mtouch",
    ("uint8_t", "type"),
    ("uint8_t", "event_type"),
    ("uint8_t", "contact_id"),
    ("uint8_t", "reserved", 5),
    (
        Union(
            "u",
            (
                Layout(
                    "pos",
                    ("int32_t", "abs_x"),
                    ("int32_t", "abs_y"),
                ),
                "pos",
            ),
            (
                Layout(
                    "shape",
                    ("uint32_t", "major"),
                    ("uint32_t", "minor"),
                ),
                "shape",
            ),
            ("int16_t", "orientation"),
        ),
        "u",
    ),
)

# Every event occupies as much, whatever its type.
XENKBD_IN_EVENT_SIZE = 40

xenkbd_in_event = Union(
    "xenkbd_in_event",
    ("uint8_t", "type"),
    (xenkbd_motion, "motion"),
    (xenkbd_key, "key"),
    (xenkbd_position, "pos"),
    (xenkbd_mtouch, "mtouch"),
    ("char", "pad", XENKBD_IN_EVENT_SIZE),
)

XENKBD_OUT_EVENT_SIZE = 40

xenkbd_out_event = Union(
    "xenkbd_out_event",
    ("uint8_t", "type"),
    ("char", "pad", XENKBD_IN_EVENT_SIZE),
)

# The shared page: indices, then a ring for each direction.
XENKBD_IN_RING_SIZE = 2048
XENKBD_IN_RING_LEN = XENKBD_IN_RING_SIZE // XENKBD_IN_EVENT_SIZE
XENKBD_IN_RING_OFFS = 1024
XENKBD_OUT_RING_SIZE = 1024
XENKBD_OUT_RING_LEN = XENKBD_OUT_RING_SIZE // XENKBD_OUT_EVENT_SIZE
XENKBD_OUT_RING_OFFS = XENKBD_IN_RING_OFFS + XENKBD_IN_RING_SIZE

xenkbd_page = Layout(
    "xenkbd_page",
    ("uint32_t", "in_cons"),
    ("uint32_t", "in_prod"),
    ("uint32_t", "out_cons"),
    ("uint32_t", "out_prod"),
)
