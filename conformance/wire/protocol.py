"""The wire as tables: what messages there are, and how they are laid out (docs/conformance-wire.md).

All numbers are little endian. A message is a header and `length` bytes behind it; whoever is asked answers with the
same type and serial, and a status.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final

import attrs

MAGIC: Final = b"PVWIRE\0\0"
VERSION: Final = 1
HEADER: Final = Struct("<IIIi")
"""type, serial, length of the payload, status (0 in requests)."""
MAX_PAYLOAD: Final = 1 << 18
HELLO: Final = Struct("<8sIII32s")
"""magic, version, pages of the window, role, suite."""
ROLES: Final = {"backend": 1, "frontend": 2}
FOREVER: Final = (1 << 64) - 1


class Type(enum.IntEnum):
    """What a message is about."""

    hello = 0
    """The first message, from the host; the window's memfd comes with it."""
    wait = 1
    """Wait until something happens, or time is over."""
    store = 2
    """A request to xenstore."""
    map = 3
    unmap = 4
    copy = 5
    alloc = 6
    free = 7
    grant = 8
    end_access = 9
    alloc_unbound = 10
    bind_interdomain = 11
    close = 12
    send = 13
    time = 14
    log = 15
    done = 16
    """A job of a frontend is done."""
    frame = 17
    """A network frontend's guest has received a frame."""


class News(enum.IntEnum):
    """What the answer to `wait` tells of."""

    event = 1
    """u32: a port that an event has come on."""
    watch = 2
    """A watch fires: path NUL token NUL."""
    job = 3
    """A frontend's guest wants something of its device."""


class Job(enum.IntEnum):
    """What a job may be."""

    read = 1
    write = 2
    flush = 3
    size = 4
    """How many sectors there are: the answer's data is a u64."""
    nothing = 5
    send = 6
    """Send a frame, which follows SEND."""
    listen = 7
    """Tell of frames (`Type.frame`) from now on."""


WAIT: Final = Struct("<Q")
"""Nanoseconds, or FOREVER."""
STORE: Final = Struct("<II")
"""Type of xs_wire.h, transaction; its payload follows."""
MAP: Final = Struct("<HHI")
"""Domain, flags, number of references; these follow, u32 each."""
MAP_READONLY: Final = 1
MAPPED: Final = Struct("<iII")
"""GNTST_ status, handle, page of the window."""
COPY: Final = Struct("<IIHHHHHHI")
"""Source, destination (a reference or a page), their domains, their offsets, length, flags, 0."""
COPY_SOURCE_GREF: Final = 1
COPY_DEST_GREF: Final = 2
GRANT: Final = Struct("<HHI")
"""Domain, flags, page."""
GRANT_READONLY: Final = 1
BIND: Final = Struct("<II")
"""Domain, its port."""
U32: Final = Struct("<I")
U64: Final = Struct("<Q")
STATUS: Final = Struct("<i")
NEWS: Final = Struct("<II")
"""Kind, length of what follows."""
JOB: Final = Struct("<IIQII")
"""Number of the job, what it is, first sector, number of sectors, 0; the data of a write follows."""
SEND: Final = Struct("<HHHH")
"""Of a frame to be sent: csum_start, csum_offset, gso_size, gso_type, as in `struct virtio_net_hdr`."""
MAX_FRAME: Final = 0xFFFF
"""Bytes of a frame that has been received."""
DONE: Final = Struct("<Ii")
"""Number of the job, 0 or an errno, negative; the data of a read, or a size, follows."""


@attrs.frozen
class Message:
    """A message as it came."""

    type: int
    serial: int
    payload: bytes


class Malformed(Exception):
    """A payload is not what its type says."""


def numbers(payload: bytes) -> list[int]:
    """Return the 32-bit numbers of a payload. Raises Malformed."""
    if len(payload) % 4:
        raise Malformed
    return [number for (number,) in U32.iter_unpack(payload)]


def unpack(layout: Struct, payload: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return what a payload begins with, and the rest. Raises Malformed."""
    if len(payload) < layout.size:
        raise Malformed
    return layout.unpack_from(payload), payload[layout.size :]


def exactly(layout: Struct, payload: bytes) -> tuple[int, ...]:
    """Return what a payload consists of. Raises Malformed."""
    found, rest = unpack(layout, payload)
    if rest:
        raise Malformed
    return found
