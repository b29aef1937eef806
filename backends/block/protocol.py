"""What a request looks like on the ring, for each layout that a frontend may use, and what is wrong with a bad one.

Everything here works on a private copy of a slot: the frontend can no longer change what is being checked (XSA-155).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import final

from hypervisor.abi.io import blkif
from hypervisor.abi.io.protocols import XEN_IO_PROTO_ABI_NATIVE, XEN_IO_PROTO_ABI_X86_32, XEN_IO_PROTO_ABI_X86_64
from hypervisor.abi.layout import Layout

PAGE_SIZE = 4096
_SEGMENT: Struct = blkif.blkif_request_segment.codec


@final
class Protocol:
    """One layout of requests and responses.

    `request` unpacks operation, nr_segments, handle, id, sector_number and the bytes of all eleven segment descriptors,
    each byte of the ring once. `response` packs id, operation and status, with the padding zero: nothing of the
    backend's memory leaves with it (XSA-216).
    """

    __slots__ = ("entry_size", "layout", "name", "request", "response")

    def __init__(self, name: str, request: Layout, response: Layout) -> None:
        self.name = name
        self.layout = request.name.removesuffix("_request")
        """What a trace calls it."""
        self.entry_size = max(request.size, response.size)
        pad = request.offset("id") - 4
        segments = blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST * _SEGMENT.size
        self.request = Struct(f"<BBH{pad}xQQ{segments}s")
        assert self.request.size == request.size
        self.response: Struct = response.codec


NATIVE = Protocol(XEN_IO_PROTO_ABI_X86_64, blkif.blkif_request, blkif.blkif_response)
PROTOCOLS: Mapping[str, Protocol] = {
    XEN_IO_PROTO_ABI_X86_64: NATIVE,
    XEN_IO_PROTO_ABI_X86_32: Protocol(XEN_IO_PROTO_ABI_X86_32, blkif.blkif_x86_32_request, blkif.blkif_x86_32_response),
}
"""By the frontend's `protocol` node; without one it is `XEN_IO_PROTO_ABI_NATIVE`."""
assert PROTOCOLS[XEN_IO_PROTO_ABI_NATIVE] is NATIVE

Segment = tuple[int, int, int]
"""Grant reference, first byte in the frame, number of bytes."""


def parse_segments(descriptors: bytes, sector_size: int) -> list[Segment] | None:
    """Check segment descriptors; return what each one covers, or None if one is not inside of its frame."""
    segments = []
    per_page = PAGE_SIZE // sector_size
    for ref, first, last in _SEGMENT.iter_unpack(descriptors):
        if last >= per_page or first > last:
            return None
        segments.append((ref, first * sector_size, (last - first + 1) * sector_size))
    return segments
