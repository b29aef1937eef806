"""Files of the other domain (io/fsif.h): the old file system split driver, before 9pfs."""

from hypervisor.abi._names import names, ring_types
from hypervisor.abi.layout import Layout, Union

# io/fsif.h: requests.
REQ_FILE_OPEN = 1
REQ_FILE_CLOSE = 2
REQ_FILE_READ = 3
REQ_FILE_WRITE = 4
REQ_STAT = 5
REQ_FILE_TRUNCATE = 6
REQ_REMOVE = 7
REQ_RENAME = 8
REQ_CREATE = 9
REQ_DIR_LIST = 10
REQ_CHMOD = 11
REQ_FS_SPACE = 12
REQ_FILE_SYNC = 13

# Arguments of each. A name lies in a granted page, data in a list of them.
fsif_open_request = Layout(
    "fsif_open_request",
    ("grant_ref_t", "gref"),
)


fsif_close_request = Layout(
    "fsif_close_request",
    ("uint32_t", "fd"),
)


fsif_read_request = Layout(
    "fsif_read_request",
    ("uint32_t", "fd"),
    ("int32_t", "pad"),
    ("uint64_t", "len"),
    ("uint64_t", "offset"),
    ("grant_ref_t", "grefs", 1),
)


fsif_write_request = Layout(
    "fsif_write_request",
    ("uint32_t", "fd"),
    ("int32_t", "pad"),
    ("uint64_t", "len"),
    ("uint64_t", "offset"),
    ("grant_ref_t", "grefs", 1),
)


fsif_stat_request = Layout(
    "fsif_stat_request",
    ("uint32_t", "fd"),
)


fsif_stat_response = Layout(
    "fsif_stat_response",
    ("int32_t", "stat_mode"),
    ("uint32_t", "stat_uid"),
    ("uint32_t", "stat_gid"),
    ("int32_t", "stat_ret"),
    ("int64_t", "stat_size"),
    ("int64_t", "stat_atime"),
    ("int64_t", "stat_mtime"),
    ("int64_t", "stat_ctime"),
)


fsif_truncate_request = Layout(
    "fsif_truncate_request",
    ("uint32_t", "fd"),
    ("int32_t", "pad"),
    ("int64_t", "length"),
)


fsif_remove_request = Layout(
    "fsif_remove_request",
    ("grant_ref_t", "gref"),
)


fsif_rename_request = Layout(
    "fsif_rename_request",
    ("uint16_t", "old_name_offset"),
    ("uint16_t", "new_name_offset"),
    ("grant_ref_t", "gref"),
)


fsif_create_request = Layout(
    "fsif_create_request",
    ("int8_t", "directory"),
    ("int8_t", "pad"),
    ("int16_t", "pad2"),
    ("int32_t", "mode"),
    ("grant_ref_t", "gref"),
)


fsif_list_request = Layout(
    "fsif_list_request",
    ("uint32_t", "offset"),
    ("grant_ref_t", "gref"),
)


# What a directory listing returns, in one number.
NR_FILES_SHIFT = 0
NR_FILES_SIZE = 16
NR_FILES_MASK = ((1 << NR_FILES_SIZE) - 1) << NR_FILES_SHIFT
ERROR_SIZE = 32
ERROR_SHIFT = NR_FILES_SIZE + NR_FILES_SHIFT
ERROR_MASK = ((1 << ERROR_SIZE) - 1) << ERROR_SHIFT
HAS_MORE_SHIFT = ERROR_SHIFT + ERROR_SIZE
HAS_MORE_FLAG = 1 << HAS_MORE_SHIFT

fsif_chmod_request = Layout(
    "fsif_chmod_request",
    ("uint32_t", "fd"),
    ("int32_t", "mode"),
)


fsif_space_request = Layout(
    "fsif_space_request",
    ("grant_ref_t", "gref"),
)


fsif_sync_request = Layout(
    "fsif_sync_request",
    ("uint32_t", "fd"),
)


# A request and its response.
fsif_request = Layout(
    "fsif_request",
    ("uint8_t", "type"),
    ("uint8_t", "pad"),
    ("uint16_t", "id"),
    ("uint32_t", "pad2"),
    (
        Union(
            "u",
            (fsif_open_request, "fopen"),
            (fsif_close_request, "fclose"),
            (fsif_read_request, "fread"),
            (fsif_write_request, "fwrite"),
            (fsif_stat_request, "fstat"),
            (fsif_truncate_request, "ftruncate"),
            (fsif_remove_request, "fremove"),
            (fsif_rename_request, "frename"),
            (fsif_create_request, "fcreate"),
            (fsif_list_request, "flist"),
            (fsif_chmod_request, "fchmod"),
            (fsif_space_request, "fspace"),
            (fsif_sync_request, "fsync"),
        ),
        "u",
    ),
)


fsif_response = Layout(
    "fsif_response",
    ("uint16_t", "id"),
    ("uint16_t", "pad1"),
    ("uint32_t", "pad2"),
    (Union("u", ("uint64_t", "ret_val"), (fsif_stat_response, "fstat")), "u"),
)


# How many pages fit behind a request to read or write.
FSIF_RING_ENTRY_SIZE = 64
FSIF_NR_READ_GNTS = (FSIF_RING_ENTRY_SIZE - fsif_read_request.size) // 4 + 1
FSIF_NR_WRITE_GNTS = (FSIF_RING_ENTRY_SIZE - fsif_write_request.size) // 4 + 1

# DEFINE_RING_TYPES(fsif, ...).
fsif_sring_entry, fsif_sring = ring_types("fsif", fsif_request, fsif_response)

# States in xenstore; this protocol is older than xenbus.
STATE_INITIALISED = "init"
STATE_READY = "ready"
STATE_CLOSING = "closing"
STATE_CLOSED = "closed"

NAMES = names(globals(), r"REQ_\w+")
"""Requests by number."""
