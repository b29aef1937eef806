"""USB host controllers (io/usbif.h): transfers on one ring, plugging and unplugging on another.

A pipe is one number: port, direction, device, endpoint, type of transfer, and whether a transfer is taken back.
"""

from hypervisor.abi._names import const_ring_size, ring_types
from hypervisor.abi.layout import Layout, Union

# io/usbif.h: version of the bus.
USB_VER_UNKNOWN = 0
USB_VER_USB11 = 1
USB_VER_USB20 = 2
USB_VER_USB30 = 3

# Parts of a pipe.
USBIF_PIPE_PORT_MASK = 0x0000001F
USBIF_PIPE_UNLINK = 0x00000020
USBIF_PIPE_DIR = 0x00000080
USBIF_PIPE_DEV_MASK = 0x0000007F
USBIF_PIPE_DEV_SHIFT = 8
USBIF_PIPE_EP_MASK = 0x0000000F
USBIF_PIPE_EP_SHIFT = 15
USBIF_PIPE_TYPE_MASK = 0x00000003
USBIF_PIPE_TYPE_SHIFT = 30

# Types of transfer.
USBIF_PIPE_TYPE_ISOC = 0
USBIF_PIPE_TYPE_INT = 1
USBIF_PIPE_TYPE_CTRL = 2
USBIF_PIPE_TYPE_BULK = 3

# Limits.
USBIF_MAX_SEGMENTS_PER_REQUEST = 16
USBIF_MAX_PORTNR = 31
USBIF_RING_SIZE = 4096

# A piece of a granted page.
usbif_request_segment = Layout(
    "usbif_request_segment",
    ("grant_ref_t", "gref"),
    ("uint16_t", "offset"),
    ("uint16_t", "length"),
)


# A transfer. Flag: less than was asked for is an error.
USBIF_SHORT_NOT_OK = 0x0001

usbif_urb_request = Layout(
    "usbif_urb_request",
    ("uint16_t", "id"),
    ("uint16_t", "nr_buffer_segs"),
    ("uint32_t", "pipe"),
    ("uint16_t", "transfer_flags"),
    ("uint16_t", "buffer_length"),
    (
        Union(
            "u",
            ("uint8_t", "ctrl", 8),
            (
                Layout(
                    "isoc",
                    ("uint16_t", "interval"),
                    ("uint16_t", "start_frame"),
                    ("uint16_t", "number_of_packets"),
                    ("uint16_t", "nr_frame_desc_segs"),
                ),
                "isoc",
            ),
            (Layout("intr", ("uint16_t", "interval"), ("uint16_t", "pad", 3)), "intr"),
            (Layout("unlink", ("uint16_t", "unlink_id"), ("uint16_t", "pad", 3)), "unlink"),
        ),
        "u",
    ),
    (usbif_request_segment, "seg", USBIF_MAX_SEGMENTS_PER_REQUEST),
)


# How it ended: 0, or an errno of Linux.
USBIF_STATUS_OK = 0
USBIF_STATUS_NODEV = -19
USBIF_STATUS_INVAL = -22
USBIF_STATUS_STALL = -32
USBIF_STATUS_IOERROR = -71
USBIF_STATUS_BABBLE = -75
USBIF_STATUS_SHUTDOWN = -108

usbif_urb_response = Layout(
    "usbif_urb_response",
    ("uint16_t", "id"),
    ("uint16_t", "start_frame"),
    ("int32_t", "status"),
    ("int32_t", "actual_length"),
    ("int32_t", "error_count"),
)


# DEFINE_RING_TYPES(usbif_urb, ...).
usbif_urb_sring_entry, usbif_urb_sring = ring_types("usbif_urb", usbif_urb_request, usbif_urb_response)
USB_URB_RING_SIZE = const_ring_size(usbif_urb_sring, USBIF_RING_SIZE)

# A port: something was plugged in or out, and how fast it is.
usbif_conn_request = Layout(
    "usbif_conn_request",
    ("uint16_t", "id"),
)

USBIF_SPEED_NONE = 0
USBIF_SPEED_LOW = 1
USBIF_SPEED_FULL = 2
USBIF_SPEED_HIGH = 3

usbif_conn_response = Layout(
    "usbif_conn_response",
    ("uint16_t", "id"),
    ("uint8_t", "portnum"),
    ("uint8_t", "speed"),
)


# DEFINE_RING_TYPES(usbif_conn, ...).
usbif_conn_sring_entry, usbif_conn_sring = ring_types("usbif_conn", usbif_conn_request, usbif_conn_response)
USB_CONN_RING_SIZE = const_ring_size(usbif_conn_sring, USBIF_RING_SIZE)


def usbif_pipeportnum(pipe: int) -> int:
    """Return the port of a pipe."""
    return pipe & USBIF_PIPE_PORT_MASK


def usbif_setportnum_pipe(pipe: int, portnum: int) -> int:
    """Return a pipe without a port with one."""
    return pipe | portnum


def usbif_pipeunlink(pipe: int) -> int:
    """Return other than 0 for a transfer that is taken back."""
    return pipe & USBIF_PIPE_UNLINK


def usbif_pipesubmit(pipe: int) -> bool:
    """Return whether a transfer is to be performed."""
    return not usbif_pipeunlink(pipe)


def usbif_setunlink_pipe(pipe: int) -> int:
    """Return a pipe as it takes a transfer back."""
    return pipe | USBIF_PIPE_UNLINK


def usbif_pipein(pipe: int) -> int:
    """Return other than 0 for a transfer from the device."""
    return pipe & USBIF_PIPE_DIR


def usbif_pipeout(pipe: int) -> bool:
    """Return whether a transfer goes to the device."""
    return not usbif_pipein(pipe)


def usbif_pipedevice(pipe: int) -> int:
    """Return the address of the device."""
    return pipe >> USBIF_PIPE_DEV_SHIFT & USBIF_PIPE_DEV_MASK


def usbif_pipeendpoint(pipe: int) -> int:
    """Return the endpoint in the device."""
    return pipe >> USBIF_PIPE_EP_SHIFT & USBIF_PIPE_EP_MASK


def usbif_pipetype(pipe: int) -> int:
    """Return the type of transfer (USBIF_PIPE_TYPE_)."""
    return pipe >> USBIF_PIPE_TYPE_SHIFT & USBIF_PIPE_TYPE_MASK


def usbif_pipeisoc(pipe: int) -> bool:
    """Return whether a pipe is isochronous."""
    return usbif_pipetype(pipe) == USBIF_PIPE_TYPE_ISOC


def usbif_pipeint(pipe: int) -> bool:
    """Return whether a pipe is one of interrupts."""
    return usbif_pipetype(pipe) == USBIF_PIPE_TYPE_INT


def usbif_pipectrl(pipe: int) -> bool:
    """Return whether a pipe is one of control transfers."""
    return usbif_pipetype(pipe) == USBIF_PIPE_TYPE_CTRL


def usbif_pipebulk(pipe: int) -> bool:
    """Return whether a pipe is one of bulk transfers."""
    return usbif_pipetype(pipe) == USBIF_PIPE_TYPE_BULK
