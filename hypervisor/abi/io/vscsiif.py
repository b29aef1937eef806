"""SCSI devices (io/vscsiif.h): command blocks, data segments and sense data through a ring."""

from hypervisor.abi._names import names, ring_types
from hypervisor.abi.layout import Layout

# io/vscsiif.h: what a request is.
VSCSIIF_ACT_SCSI_CDB = 1
VSCSIIF_ACT_SCSI_ABORT = 2
VSCSIIF_ACT_SCSI_RESET = 3
VSCSIIF_ACT_SCSI_SG_PRESET = 4

# Limits.
VSCSIIF_SG_TABLESIZE = 26
VSCSIIF_MAX_COMMAND_SIZE = 16
VSCSIIF_SENSE_BUFFERSIZE = 96
VSCSIIF_PAGE_SIZE = 4096

# A piece of a granted page.
scsiif_request_segment = Layout(
    "scsiif_request_segment",
    ("grant_ref_t", "gref"),
    ("uint16_t", "offset"),
    ("uint16_t", "length"),
)

VSCSIIF_SG_PER_PAGE = VSCSIIF_PAGE_SIZE // scsiif_request_segment.size

# In `nr_segments`: the segments lie in granted pages themselves.
VSCSIIF_SG_GRANT = 0x80

vscsiif_request = Layout(
    "vscsiif_request",
    ("uint16_t", "rqid"),
    ("uint8_t", "act"),
    ("uint8_t", "cmd_len"),
    ("uint8_t", "cmnd", VSCSIIF_MAX_COMMAND_SIZE),
    ("uint16_t", "timeout_per_command"),
    ("uint16_t", "channel"),
    ("uint16_t", "id"),
    ("uint16_t", "lun"),
    ("uint16_t", "ref_rqid"),
    ("uint8_t", "sc_data_direction"),
    ("uint8_t", "nr_segments"),
    (scsiif_request_segment, "seg", VSCSIIF_SG_TABLESIZE),
    ("uint32_t", "reserved", 3),
)

VSCSIIF_SG_LIST_SIZE = (vscsiif_request.size - 4) // scsiif_request_segment.size

# Segments that a later request uses (VSCSIIF_ACT_SCSI_SG_PRESET).
vscsiif_sg_list = Layout(
    "vscsiif_sg_list",
    ("uint16_t", "rqid"),
    ("uint8_t", "act"),
    ("uint8_t", "nr_segments"),
    (scsiif_request_segment, "seg", VSCSIIF_SG_LIST_SIZE),
)


# A response: result as the SCSI layer of Linux has it, status below, host byte above.
vscsiif_response = Layout(
    "vscsiif_response",
    ("uint16_t", "rqid"),
    ("uint8_t", "act"),
    ("uint8_t", "sense_len"),
    ("uint8_t", "sense_buffer", VSCSIIF_SENSE_BUFFERSIZE),
    ("int32_t", "rslt"),
    ("uint32_t", "residual_len"),
    ("uint32_t", "reserved", 36),
)


# Host bytes.
XEN_VSCSIIF_RSLT_HOST_OK = 0
XEN_VSCSIIF_RSLT_HOST_NO_CONNECT = 1
XEN_VSCSIIF_RSLT_HOST_BUS_BUSY = 2
XEN_VSCSIIF_RSLT_HOST_TIME_OUT = 3
XEN_VSCSIIF_RSLT_HOST_BAD_TARGET = 4
XEN_VSCSIIF_RSLT_HOST_ABORT = 5
XEN_VSCSIIF_RSLT_HOST_PARITY = 6
XEN_VSCSIIF_RSLT_HOST_ERROR = 7
XEN_VSCSIIF_RSLT_HOST_RESET = 8
XEN_VSCSIIF_RSLT_HOST_BAD_INTR = 9
XEN_VSCSIIF_RSLT_HOST_PASSTHROUGH = 10
XEN_VSCSIIF_RSLT_HOST_SOFT_ERROR = 11
XEN_VSCSIIF_RSLT_HOST_IMM_RETRY = 12
XEN_VSCSIIF_RSLT_HOST_REQUEUE = 13
XEN_VSCSIIF_RSLT_HOST_TRANSPORT_DISRUPTED = 14
XEN_VSCSIIF_RSLT_HOST_TRANSPORT_FAILFAST = 15
XEN_VSCSIIF_RSLT_HOST_TARGET_FAILURE = 16
XEN_VSCSIIF_RSLT_HOST_NEXUS_FAILURE = 17
XEN_VSCSIIF_RSLT_HOST_ALLOC_FAILURE = 18
XEN_VSCSIIF_RSLT_HOST_MEDIUM_ERROR = 19
XEN_VSCSIIF_RSLT_HOST_TRANSPORT_MARGINAL = 20

# Results of a reset.
XEN_VSCSIIF_RSLT_RESET_SUCCESS = 0x2002
XEN_VSCSIIF_RSLT_RESET_FAILED = 0x2003

# DEFINE_RING_TYPES(vscsiif, ...).
vscsiif_sring_entry, vscsiif_sring = ring_types("vscsiif", vscsiif_request, vscsiif_response)


def XEN_VSCSIIF_RSLT_STATUS(result: int) -> int:
    """Return the SCSI status in a response's result."""
    return result & 0xFF


def XEN_VSCSIIF_RSLT_HOST(result: int) -> int:
    """Return the host byte in a response's result."""
    return (result & 0xFF0000) >> 16


NAMES = names(globals(), r"VSCSIIF_ACT_\w+")
"""Requests by number."""

HOST_NAMES = names(globals(), r"XEN_VSCSIIF_RSLT_HOST_\w+")
"""Host bytes by number."""
