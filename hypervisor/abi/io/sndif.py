"""Sound (io/sndif.h): streams of samples, their parameters and positions."""

from hypervisor.abi._names import names, ring_types
from hypervisor.abi.layout import Layout, Union

# io/sndif.h: version of the protocol.
XENSND_PROTOCOL_VERSION = 2

# Formats of samples.
XENSND_PCM_FORMAT_S8 = 0
XENSND_PCM_FORMAT_U8 = 1
XENSND_PCM_FORMAT_S16_LE = 2
XENSND_PCM_FORMAT_S16_BE = 3
XENSND_PCM_FORMAT_U16_LE = 4
XENSND_PCM_FORMAT_U16_BE = 5
XENSND_PCM_FORMAT_S24_LE = 6
XENSND_PCM_FORMAT_S24_BE = 7
XENSND_PCM_FORMAT_U24_LE = 8
XENSND_PCM_FORMAT_U24_BE = 9
XENSND_PCM_FORMAT_S32_LE = 10
XENSND_PCM_FORMAT_S32_BE = 11
XENSND_PCM_FORMAT_U32_LE = 12
XENSND_PCM_FORMAT_U32_BE = 13
XENSND_PCM_FORMAT_F32_LE = 14
XENSND_PCM_FORMAT_F32_BE = 15
XENSND_PCM_FORMAT_F64_LE = 16
XENSND_PCM_FORMAT_F64_BE = 17
XENSND_PCM_FORMAT_IEC958_SUBFRAME_LE = 18
XENSND_PCM_FORMAT_IEC958_SUBFRAME_BE = 19
XENSND_PCM_FORMAT_MU_LAW = 20
XENSND_PCM_FORMAT_A_LAW = 21
XENSND_PCM_FORMAT_IMA_ADPCM = 22
XENSND_PCM_FORMAT_MPEG = 23
XENSND_PCM_FORMAT_GSM = 24

# Requests.
XENSND_OP_OPEN = 0
XENSND_OP_CLOSE = 1
XENSND_OP_READ = 2
XENSND_OP_WRITE = 3
XENSND_OP_SET_VOLUME = 4
XENSND_OP_GET_VOLUME = 5
XENSND_OP_MUTE = 6
XENSND_OP_UNMUTE = 7
XENSND_OP_TRIGGER = 8
XENSND_OP_HW_PARAM_QUERY = 9

# What XENSND_OP_TRIGGER does.
XENSND_OP_TRIGGER_START = 0
XENSND_OP_TRIGGER_PAUSE = 1
XENSND_OP_TRIGGER_STOP = 2
XENSND_OP_TRIGGER_RESUME = 3

# Events.
XENSND_EVT_CUR_POS = 0

# Names in xenstore.
XENSND_DRIVER_NAME = "vsnd"
XENSND_LIST_SEPARATOR = ","
XENSND_FIELD_BE_VERSIONS = "versions"
XENSND_FIELD_FE_VERSION = "version"
XENSND_FIELD_VCARD_SHORT_NAME = "short-name"
XENSND_FIELD_VCARD_LONG_NAME = "long-name"
XENSND_FIELD_RING_REF = "ring-ref"
XENSND_FIELD_EVT_CHNL = "event-channel"
XENSND_FIELD_EVT_RING_REF = "evt-ring-ref"
XENSND_FIELD_EVT_EVT_CHNL = "evt-event-channel"
XENSND_FIELD_DEVICE_NAME = "name"
XENSND_FIELD_TYPE = "type"
XENSND_FIELD_STREAM_UNIQUE_ID = "unique-id"
XENSND_FIELD_CHANNELS_MIN = "channels-min"
XENSND_FIELD_CHANNELS_MAX = "channels-max"
XENSND_FIELD_SAMPLE_RATES = "sample-rates"
XENSND_FIELD_SAMPLE_FORMATS = "sample-formats"
XENSND_FIELD_BUFFER_SIZE = "buffer-size"
XENSND_STREAM_TYPE_PLAYBACK = "p"
XENSND_STREAM_TYPE_CAPTURE = "c"
XENSND_SAMPLE_RATE_MAX_LEN = 11
XENSND_SAMPLE_FORMAT_MAX_LEN = 24

# Formats by their names in xenstore.
XENSND_PCM_FORMAT_S8_STR = "s8"
XENSND_PCM_FORMAT_U8_STR = "u8"
XENSND_PCM_FORMAT_S16_LE_STR = "s16_le"
XENSND_PCM_FORMAT_S16_BE_STR = "s16_be"
XENSND_PCM_FORMAT_U16_LE_STR = "u16_le"
XENSND_PCM_FORMAT_U16_BE_STR = "u16_be"
XENSND_PCM_FORMAT_S24_LE_STR = "s24_le"
XENSND_PCM_FORMAT_S24_BE_STR = "s24_be"
XENSND_PCM_FORMAT_U24_LE_STR = "u24_le"
XENSND_PCM_FORMAT_U24_BE_STR = "u24_be"
XENSND_PCM_FORMAT_S32_LE_STR = "s32_le"
XENSND_PCM_FORMAT_S32_BE_STR = "s32_be"
XENSND_PCM_FORMAT_U32_LE_STR = "u32_le"
XENSND_PCM_FORMAT_U32_BE_STR = "u32_be"
XENSND_PCM_FORMAT_F32_LE_STR = "float_le"
XENSND_PCM_FORMAT_F32_BE_STR = "float_be"
XENSND_PCM_FORMAT_F64_LE_STR = "float64_le"
XENSND_PCM_FORMAT_F64_BE_STR = "float64_be"
XENSND_PCM_FORMAT_IEC958_SUBFRAME_LE_STR = "iec958_subframe_le"
XENSND_PCM_FORMAT_IEC958_SUBFRAME_BE_STR = "iec958_subframe_be"
XENSND_PCM_FORMAT_MU_LAW_STR = "mu_law"
XENSND_PCM_FORMAT_A_LAW_STR = "a_law"
XENSND_PCM_FORMAT_IMA_ADPCM_STR = "ima_adpcm"
XENSND_PCM_FORMAT_MPEG_STR = "mpeg"
XENSND_PCM_FORMAT_GSM_STR = "gsm"

# Arguments of the requests.
xensnd_open_req = Layout(
    "xensnd_open_req",
    ("uint32_t", "pcm_rate"),
    ("uint8_t", "pcm_format"),
    ("uint8_t", "pcm_channels"),
    ("uint16_t", "reserved"),
    ("uint32_t", "buffer_sz"),
    ("grant_ref_t", "gref_directory"),
    ("uint32_t", "period_sz"),
)


# Grants of a buffer, a page of them at a time.
xensnd_page_directory = Layout(
    "xensnd_page_directory",
    ("grant_ref_t", "gref_dir_next_page"),
    ("grant_ref_t", "gref", 1),
)


xensnd_rw_req = Layout(
    "xensnd_rw_req",
    ("uint32_t", "offset"),
    ("uint32_t", "length"),
)


xensnd_trigger_req = Layout(
    "xensnd_trigger_req",
    ("uint8_t", "type"),
)


xensnd_query_hw_param = Layout(
    "xensnd_query_hw_param",
    ("uint64_t", "formats"),
    (Layout("rates", ("uint32_t", "min"), ("uint32_t", "max")), "rates"),
    (Layout("channels", ("uint32_t", "min"), ("uint32_t", "max")), "channels"),
    (Layout("buffer", ("uint32_t", "min"), ("uint32_t", "max")), "buffer"),
    (Layout("period", ("uint32_t", "min"), ("uint32_t", "max")), "period"),
)


xensnd_cur_pos_evt = Layout(
    "xensnd_cur_pos_evt",
    ("uint64_t", "position"),
)


# A request, a response, an event.
xensnd_req = Layout(
    "xensnd_req",
    ("uint16_t", "id"),
    ("uint8_t", "operation"),
    ("uint8_t", "reserved", 5),
    (
        Union(
            "op",
            (xensnd_open_req, "open"),
            (xensnd_rw_req, "rw"),
            (xensnd_trigger_req, "trigger"),
            (xensnd_query_hw_param, "hw_param"),
            ("uint8_t", "reserved", 56),
        ),
        "op",
    ),
)


xensnd_resp = Layout(
    "xensnd_resp",
    ("uint16_t", "id"),
    ("uint8_t", "operation"),
    ("uint8_t", "reserved"),
    ("int32_t", "status"),
    (Union("resp", (xensnd_query_hw_param, "hw_param"), ("uint8_t", "reserved1", 56)), "resp"),
)


xensnd_evt = Layout(
    "xensnd_evt",
    ("uint16_t", "id"),
    ("uint8_t", "type"),
    ("uint8_t", "reserved", 5),
    (Union("op", (xensnd_cur_pos_evt, "cur_pos"), ("uint8_t", "reserved", 56)), "op"),
)


# DEFINE_RING_TYPES(xen_sndif, ...).
xen_sndif_sring_entry, xen_sndif_sring = ring_types("xen_sndif", xensnd_req, xensnd_resp)

# The page of events: indices, then slots.
xensnd_event_page = Layout(
    "xensnd_event_page",
    ("uint32_t", "in_cons"),
    ("uint32_t", "in_prod"),
    ("uint8_t", "reserved", 56),
)

XENSND_EVENT_PAGE_SIZE = 4096
XENSND_IN_RING_OFFS = xensnd_event_page.size
XENSND_IN_RING_SIZE = XENSND_EVENT_PAGE_SIZE - XENSND_IN_RING_OFFS
XENSND_IN_RING_LEN = XENSND_IN_RING_SIZE // xensnd_evt.size

NAMES = names(globals(), r"XENSND_OP_(?!TRIGGER_)\w+")
"""Requests by number."""
