"""The xenstore wire protocol (io/xs_wire.h): message header and types, the shared ring page, size limits."""

from hypervisor.abi._names import names
from hypervisor.abi.layout import Layout

# io/xs_wire.h, enum xsd_sockmsg_type: type of a request and of its answer. 20 (restrict) is retired.
XS_CONTROL = 0
XS_DIRECTORY = 1
XS_READ = 2
XS_GET_PERMS = 3
XS_WATCH = 4
XS_UNWATCH = 5
XS_TRANSACTION_START = 6
XS_TRANSACTION_END = 7
XS_INTRODUCE = 8
XS_RELEASE = 9
XS_GET_DOMAIN_PATH = 10
XS_WRITE = 11
XS_MKDIR = 12
XS_RM = 13
XS_SET_PERMS = 14
XS_WATCH_EVENT = 15
XS_ERROR = 16
XS_IS_DOMAIN_INTRODUCED = 17
XS_RESUME = 18
XS_SET_TARGET = 19
XS_RESET_WATCHES = 21
XS_DIRECTORY_PART = 22
XS_TYPE_COUNT = 23
XS_INVALID = 65535

# The old name of XS_CONTROL.
XS_DEBUG = XS_CONTROL

# Flags of an obsolete form of XS_WRITE.
XS_WRITE_NONE = "NONE"
XS_WRITE_CREATE = "CREATE"
XS_WRITE_CREATE_EXCL = "CREATE|EXCL"

# The header of every message; `len` bytes follow.
xsd_sockmsg = Layout(
    "xsd_sockmsg",
    ("uint32_t", "type"),
    ("uint32_t", "req_id"),
    ("uint32_t", "tx_id"),
    ("uint32_t", "len"),
)

# The strings in an XS_WATCH_EVENT.
XS_WATCH_PATH = 0
XS_WATCH_TOKEN = 1

# The shared page: two rings, free-running indices, and words for reconnection and errors.
XENSTORE_RING_SIZE = 1024

xenstore_domain_interface = Layout(
    "xenstore_domain_interface",
    ("char", "req", XENSTORE_RING_SIZE),
    ("char", "rsp", XENSTORE_RING_SIZE),
    ("XENSTORE_RING_IDX", "req_cons"),
    ("XENSTORE_RING_IDX", "req_prod"),
    ("XENSTORE_RING_IDX", "rsp_cons"),
    ("XENSTORE_RING_IDX", "rsp_prod"),
    ("uint32_t", "server_features"),
    ("uint32_t", "connection"),
    ("uint32_t", "error"),
)

# Limits of messages and paths.
XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048

# What the server can do (server_features).
XENSTORE_SERVER_FEATURE_RECONNECTION = 1
XENSTORE_SERVER_FEATURE_ERROR = 2

# State of the connection (connection).
XENSTORE_CONNECTED = 0
XENSTORE_RECONNECT = 1

# Why the server gave the connection up (error).
XENSTORE_ERROR_NONE = 0
XENSTORE_ERROR_COMM = 1
XENSTORE_ERROR_RINGIDX = 2
XENSTORE_ERROR_PROTO = 3

# enum xsd_sockmsg_type: names of message types, an old name for XS_CONTROL left out.
NAMES = names(
    globals(),
    r"XS_(?!DEBUG|TYPE_COUNT|WRITE_|WATCH_PATH|WATCH_TOKEN)\w+|XS_WATCH_EVENT",
)
"""Message types by number."""

XSD_ERRORS = (
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
)
"""The errors that an XS_ERROR message may name: on the wire an error is its name, not a number."""


def MASK_XENSTORE_IDX(index: int) -> int:
    """Return the position in a ring that a free-running index names."""
    return index & (XENSTORE_RING_SIZE - 1)
