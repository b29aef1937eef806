"""Indirect requests: their segment descriptors lie in a granted page and not in the ring, so there may be more of them.

Xen copies them here (GNTTABOP_copy), those of a whole wake-up with one hypercall. So each byte is read once, and the
frontend can no longer change what is being checked (XSA-155).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, final

from hypervisor.abi.grant_table import GNTCOPY_source_gref, GNTST_okay
from hypervisor.abi.io import blkif
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

MAX_SEGMENTS = 256
"""As many as a command of the disk has room for: 1 MiB. Their descriptors take half a page."""
SEGMENT_SIZE = blkif.blkif_request_segment.size
ROOM = MAX_SEGMENTS * SEGMENT_SIZE
PER_PAGE = 4096 // ROOM
REST = Struct("<H2xI")
"""What an indirect request has where others have their segments: handle, the first page of descriptors."""
assert REST.size == blkif.blkif_request_indirect.offset("indirect_grefs[1]") - blkif.blkif_request.offset("seg")


@final
class DescriptorCopier:
    """Fetches descriptors from the pages of one frontend."""

    def __init__(self, kernel: Kernel, domid: int) -> None:
        self._grants = kernel.grants
        self._mm = kernel.mm
        self._domid = domid
        self._pages: list[Page] = []

    def fetch(self, wanted: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Return the descriptors at the beginning of granted pages, given (reference, how many) of each.

        None where Xen cannot read the page. Raises OutOfMemory.
        """
        while len(self._pages) * PER_PAGE < len(wanted):
            self._pages.append(self._mm.alloc_page())
        places = [(self._pages[n // PER_PAGE], n % PER_PAGE * ROOM) for n in range(len(wanted))]
        statuses = self._grants.copy(
            [
                (ref, self._domid, 0, page.mfn, DOMID_SELF, offset, count * SEGMENT_SIZE, GNTCOPY_source_gref)
                for (ref, count), (page, offset) in zip(wanted, places, strict=True)
            ]
        )
        return [
            bytes(page.view[offset : offset + count * SEGMENT_SIZE]) if status == GNTST_okay else None
            for (_, count), (page, offset), status in zip(wanted, places, statuses, strict=True)
        ]

    def release(self) -> None:
        """Give the memory back."""
        self._mm.free_pages_of(self._pages)
        self._pages = []
