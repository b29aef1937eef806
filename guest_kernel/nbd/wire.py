"""What stands on the wire, big-endian: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md."""

from __future__ import annotations

import errno
from struct import Struct

NBDMAGIC, IHAVEOPT = 0x4E42444D41474943, 0x49484156454F5054
OPTION_REPLY_MAGIC, REQUEST_MAGIC = 0x0003E889045565A9, 0x25609513
SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC = 0x67446698, 0x668E33EF

# Handshake flags: the server's and, the same bits, the client's.
FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES = 1, 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY = 1, 2, 3, 5, 6, 7, 8

REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
REP_ERR_UNSUP, REP_ERR_POLICY, REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_ERR_TOO_BIG = (
    1 << 31 | code for code in (1, 2, 3, 6, 9)
)

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

# Transmission flags.
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN = (
    1 << bit for bit in (0, 1, 2, 3, 5, 6, 7, 8)
)
SEND_FAST_ZERO = 1 << 11

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES = 0, 1, 2, 3, 4, 6
CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO = 1, 2, 4, 16

CHUNK_DONE = 1
CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_ERROR = 0, 1, 1 << 15 | 1

NBD_EPERM, NBD_EIO, NBD_ENOMEM, NBD_EINVAL, NBD_ENOSPC, NBD_EOVERFLOW, NBD_ENOTSUP, NBD_ESHUTDOWN = (
    1, 5, 12, 22, 28, 75, 95, 108
)  # fmt: skip

ERRORS = {
    errno.EPERM: NBD_EPERM,
    errno.EROFS: NBD_EPERM,
    errno.ENOMEM: NBD_ENOMEM,
    errno.EINVAL: NBD_EINVAL,
    errno.ENOSPC: NBD_ENOSPC,
    errno.EOPNOTSUPP: NBD_ENOTSUP,
    errno.ENXIO: NBD_ESHUTDOWN,
}
"""What a client is told for an errno of the block layer; for all others NBD_EIO."""

GREETING = Struct(">QQH")
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")
OPTION_REPLY = Struct(">QIII")
EXPORT = Struct(">QH")
BLOCK_SIZE = Struct(">HIII")
REQUEST = Struct(">IHH8sQI")
"""magic, flags, type, cookie, offset, length. A cookie is eight bytes that mean something to the client only."""
REQUEST_HEAD = Struct(">Q8sQI")
"""The same with magic, flags and type as one number: one of the next two, where there are no flags."""
READ_HEAD, WRITE_HEAD = (REQUEST_MAGIC << 32 | kind for kind in (CMD_READ, CMD_WRITE))
assert REQUEST_HEAD.size == REQUEST.size
SIMPLE_REPLY = Struct(">II8s")
"""magic, error, cookie; the data of a read follows."""
WELL_DONE = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, b"")[:8]
"""Magic and error where there is no error: with a cookie behind it that is a reply."""
CHUNK = Struct(">IHH8sI")
"""magic, flags, type, cookie, length of what follows."""
DATA_CHUNK = Struct(">IHH8sIQ")
"""The same with the offset of the data, which follows."""
WHOLE_CHUNK_HEAD = Struct(">Q8sIQ")
"""The same with magic, flags and type as one number: the next one for the only chunk of an answer."""
WHOLE_CHUNK = STRUCTURED_REPLY_MAGIC << 32 | CHUNK_DONE << 16 | CHUNK_OFFSET_DATA
assert WHOLE_CHUNK_HEAD.size == DATA_CHUNK.size
ERROR_CHUNK = Struct(">IHH8sIIH")
"""The same with the error and the length of a message."""

MAX_PAYLOAD = 32 << 20
"""Bytes that a client may read or write at once, which every server should take ("Size constraints")."""

HEADER_ROOM = 32
"""At least the size of every header of an answer."""
assert max(layout.size for layout in (SIMPLE_REPLY, CHUNK, DATA_CHUNK, WHOLE_CHUNK_HEAD, ERROR_CHUNK)) <= HEADER_ROOM
