"""Cameras (io/cameraif.h): formats, buffers, controls, and events for each picture."""

from hypervisor.abi._names import names, ring_types
from hypervisor.abi.layout import Layout, Union

# io/cameraif.h: version of the protocol.
XENCAMERA_PROTOCOL_VERSION = "1"

# Requests.
XENCAMERA_OP_CONFIG_SET = 0x00
XENCAMERA_OP_CONFIG_GET = 0x01
XENCAMERA_OP_CONFIG_VALIDATE = 0x02
XENCAMERA_OP_FRAME_RATE_SET = 0x03
XENCAMERA_OP_BUF_GET_LAYOUT = 0x04
XENCAMERA_OP_BUF_REQUEST = 0x05
XENCAMERA_OP_BUF_CREATE = 0x06
XENCAMERA_OP_BUF_DESTROY = 0x07
XENCAMERA_OP_BUF_QUEUE = 0x08
XENCAMERA_OP_BUF_DEQUEUE = 0x09
XENCAMERA_OP_CTRL_ENUM = 0x0A
XENCAMERA_OP_CTRL_SET = 0x0B
XENCAMERA_OP_CTRL_GET = 0x0C
XENCAMERA_OP_STREAM_START = 0x0D
XENCAMERA_OP_STREAM_STOP = 0x0E

# Controls, and what can be done with one.
XENCAMERA_CTRL_BRIGHTNESS = 0
XENCAMERA_CTRL_CONTRAST = 1
XENCAMERA_CTRL_SATURATION = 2
XENCAMERA_CTRL_HUE = 3
XENCAMERA_MAX_CTRL = 4
XENCAMERA_CTRL_FLG_RO = 1 << 0
XENCAMERA_CTRL_FLG_WO = 1 << 1
XENCAMERA_CTRL_FLG_VOLATILE = 1 << 2

# What the numbers of a picture mean.
XENCAMERA_COLORSPACE_DEFAULT = 0
XENCAMERA_COLORSPACE_SMPTE170M = 1
XENCAMERA_COLORSPACE_REC709 = 2
XENCAMERA_COLORSPACE_SRGB = 3
XENCAMERA_COLORSPACE_OPRGB = 4
XENCAMERA_COLORSPACE_BT2020 = 5
XENCAMERA_COLORSPACE_DCI_P3 = 6
XENCAMERA_XFER_FUNC_DEFAULT = 0
XENCAMERA_XFER_FUNC_709 = 1
XENCAMERA_XFER_FUNC_SRGB = 2
XENCAMERA_XFER_FUNC_OPRGB = 3
XENCAMERA_XFER_FUNC_NONE = 4
XENCAMERA_XFER_FUNC_DCI_P3 = 5
XENCAMERA_XFER_FUNC_SMPTE2084 = 6
XENCAMERA_YCBCR_ENC_IGNORE = 0
XENCAMERA_YCBCR_ENC_601 = 1
XENCAMERA_YCBCR_ENC_709 = 2
XENCAMERA_YCBCR_ENC_XV601 = 3
XENCAMERA_YCBCR_ENC_XV709 = 4
XENCAMERA_YCBCR_ENC_BT2020 = 5
XENCAMERA_YCBCR_ENC_BT2020_CONST_LUM = 6
XENCAMERA_QUANTIZATION_DEFAULT = 0
XENCAMERA_QUANTIZATION_FULL_RANGE = 1
XENCAMERA_QUANTIZATION_LIM_RANGE = 2

# Events.
XENCAMERA_EVT_FRAME_AVAIL = 0x00
XENCAMERA_EVT_CTRL_CHANGE = 0x01

# Names in xenstore.
XENCAMERA_DRIVER_NAME = "vcamera"
XENCAMERA_LIST_SEPARATOR = ","
XENCAMERA_RESOLUTION_SEPARATOR = "x"
XENCAMERA_FRACTION_SEPARATOR = "/"
XENCAMERA_FIELD_BE_VERSIONS = "versions"
XENCAMERA_FIELD_FE_VERSION = "version"
XENCAMERA_FIELD_REQ_RING_REF = "req-ring-ref"
XENCAMERA_FIELD_REQ_CHANNEL = "req-event-channel"
XENCAMERA_FIELD_EVT_RING_REF = "evt-ring-ref"
XENCAMERA_FIELD_EVT_CHANNEL = "evt-event-channel"
XENCAMERA_FIELD_MAX_BUFFERS = "max-buffers"
XENCAMERA_FIELD_CONTROLS = "controls"
XENCAMERA_FIELD_FORMATS = "formats"
XENCAMERA_FIELD_FRAME_RATES = "frame-rates"
XENCAMERA_FIELD_BE_ALLOC = "be-alloc"
XENCAMERA_FIELD_UNIQUE_ID = "unique-id"
XENCAMERA_CTRL_BRIGHTNESS_STR = "brightness"
XENCAMERA_CTRL_CONTRAST_STR = "contrast"
XENCAMERA_CTRL_SATURATION_STR = "saturation"
XENCAMERA_CTRL_HUE_STR = "hue"
XENCAMERA_FOURCC_BIGENDIAN_STR = "-BE"

# Most planes of a picture.
XENCAMERA_MAX_PLANE = 4

# Arguments of the requests.
xencamera_config_req = Layout(
    "xencamera_config_req",
    ("uint32_t", "pixel_format"),
    ("uint32_t", "width"),
    ("uint32_t", "height"),
)


xencamera_frame_rate_req = Layout(
    "xencamera_frame_rate_req",
    ("uint32_t", "frame_rate_numer"),
    ("uint32_t", "frame_rate_denom"),
)


xencamera_buf_request = Layout(
    "xencamera_buf_request",
    ("uint8_t", "num_bufs"),
)


xencamera_buf_create_req = Layout(
    "xencamera_buf_create_req",
    ("uint8_t", "index"),
    ("uint8_t", "reserved", 3),
    ("uint32_t", "plane_offset", XENCAMERA_MAX_PLANE),
    ("grant_ref_t", "gref_directory"),
)


# Grants of a buffer, a page of them at a time.
xencamera_page_directory = Layout(
    "xencamera_page_directory",
    ("grant_ref_t", "gref_dir_next_page"),
    ("grant_ref_t", "gref", 1),
)


xencamera_index = Layout(
    "xencamera_index",
    ("uint8_t", "index"),
)


xencamera_ctrl_value = Layout(
    "xencamera_ctrl_value",
    ("uint8_t", "type"),
    ("uint8_t", "reserved", 7),
    ("int64_t", "value"),
)


xencamera_get_ctrl_req = Layout(
    "xencamera_get_ctrl_req",
    ("uint8_t", "type"),
)


# What responses and events say.
xencamera_config_resp = Layout(
    "xencamera_config_resp",
    ("uint32_t", "pixel_format"),
    ("uint32_t", "width"),
    ("uint32_t", "height"),
    ("uint32_t", "colorspace"),
    ("uint32_t", "xfer_func"),
    ("uint32_t", "ycbcr_enc"),
    ("uint32_t", "quantization"),
    ("uint32_t", "displ_asp_ratio_numer"),
    ("uint32_t", "displ_asp_ratio_denom"),
    ("uint32_t", "frame_rate_numer"),
    ("uint32_t", "frame_rate_denom"),
)


xencamera_buf_get_layout_resp = Layout(
    "xencamera_buf_get_layout_resp",
    ("uint8_t", "num_planes"),
    ("uint8_t", "reserved", 3),
    ("uint32_t", "size"),
    ("uint32_t", "plane_size", XENCAMERA_MAX_PLANE),
    ("uint32_t", "plane_stride", XENCAMERA_MAX_PLANE),
)


xencamera_ctrl_enum_resp = Layout(
    "xencamera_ctrl_enum_resp",
    ("uint8_t", "index"),
    ("uint8_t", "type"),
    ("uint8_t", "reserved", 2),
    ("uint32_t", "flags"),
    ("int64_t", "min"),
    ("int64_t", "max"),
    ("int64_t", "step"),
    ("int64_t", "def_val"),
)


xencamera_frame_avail_evt = Layout(
    "xencamera_frame_avail_evt",
    ("uint8_t", "index"),
    ("uint8_t", "reserved", 3),
    ("uint32_t", "used_sz"),
    ("uint32_t", "seq_num"),
)


# A request, a response, an event.
xencamera_req = Layout(
    "xencamera_req",
    ("uint16_t", "id"),
    ("uint8_t", "operation"),
    ("uint8_t", "reserved", 5),
    (
        Union(
            "req",
            (xencamera_config_req, "config"),
            (xencamera_frame_rate_req, "frame_rate"),
            (xencamera_buf_request, "buf_request"),
            (xencamera_buf_create_req, "buf_create"),
            (xencamera_index, "index"),
            (xencamera_ctrl_value, "ctrl_value"),
            (xencamera_get_ctrl_req, "get_ctrl"),
            ("uint8_t", "reserved", 56),
        ),
        "req",
    ),
)


xencamera_resp = Layout(
    "xencamera_resp",
    ("uint16_t", "id"),
    ("uint8_t", "operation"),
    ("uint8_t", "reserved"),
    ("int32_t", "status"),
    (
        Union(
            "resp",
            (xencamera_config_resp, "config"),
            (xencamera_buf_get_layout_resp, "buf_layout"),
            (xencamera_buf_request, "buf_request"),
            (xencamera_ctrl_enum_resp, "ctrl_enum"),
            (xencamera_ctrl_value, "ctrl_value"),
            ("uint8_t", "reserved1", 56),
        ),
        "resp",
    ),
)


xencamera_evt = Layout(
    "xencamera_evt",
    ("uint16_t", "id"),
    ("uint8_t", "type"),
    ("uint8_t", "reserved", 5),
    (
        Union(
            "evt",
            (xencamera_frame_avail_evt, "frame_avail"),
            (xencamera_ctrl_value, "ctrl_value"),
            ("uint8_t", "reserved", 56),
        ),
        "evt",
    ),
)


# DEFINE_RING_TYPES(xen_cameraif, ...).
xen_cameraif_sring_entry, xen_cameraif_sring = ring_types("xen_cameraif", xencamera_req, xencamera_resp)

# The page of events: indices, then slots.
xencamera_event_page = Layout(
    "xencamera_event_page",
    ("uint32_t", "in_cons"),
    ("uint32_t", "in_prod"),
    ("uint8_t", "reserved", 56),
)

XENCAMERA_EVENT_PAGE_SIZE = 4096
XENCAMERA_IN_RING_OFFS = xencamera_event_page.size
XENCAMERA_IN_RING_SIZE = XENCAMERA_EVENT_PAGE_SIZE - XENCAMERA_IN_RING_OFFS
XENCAMERA_IN_RING_LEN = XENCAMERA_IN_RING_SIZE // xencamera_evt.size

NAMES = names(globals(), r"XENCAMERA_OP_\w+")
"""Requests by number."""
