"""Indirect requests: their segment descriptors lie in granted pages and not in the ring, so there may be more of them.

Xen copies them here (GNTTABOP_copy), those of a whole wake-up with one hypercall. So each byte is read once, and the
frontend can no longer change what is being checked (XSA-155).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, final

from guest_kernel.mm import PAGE_SIZE
from hypervisor.abi.grant_table import GNTCOPY_source_gref, GNTST_okay
from hypervisor.abi.io import blkif
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from guest_kernel.grants import CopyOp
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

MAX_SEGMENTS = 256
"""What is offered unless asked otherwise, as many as a command of the disk has room for: 1 MiB."""
SEGMENT_SIZE = blkif.blkif_request_segment.size
SEGMENTS_PER_PAGE = PAGE_SIZE // SEGMENT_SIZE
MAX_PAGES = blkif.BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST
REST = Struct(f"<H2x{MAX_PAGES}I")
"""What an indirect request has where others have their segments: handle, the pages of descriptors."""
assert REST.size == blkif.blkif_request_indirect.offset("indirect_grefs[7]") + 4 - blkif.blkif_request.offset("seg")


@final
class DescriptorCopier:
    """Fetches descriptors from the pages of one frontend. `max_segments`: how many a request may have."""

    def __init__(self, kernel: Kernel, domid: int, max_segments: int) -> None:
        self._grants = kernel.grants
        self._mm = kernel.mm
        self._domid = domid
        self.max_segments = max_segments
        self._pages: list[Page] = []

    def fetch(self, wanted: Sequence[tuple[Sequence[int], int]]) -> list[bytes | None]:
        """Return the descriptors in granted pages, given the references and the number of descriptors of each request.

        Each page but the last is full; references beyond that are not looked at. None where Xen cannot read a page.
        Raises OutOfMemory.
        """
        places: list[tuple[Page, int, int]] = []
        operations: list[CopyOp] = []
        number = at = 0
        for refs, count in wanted:
            left = count * SEGMENT_SIZE
            for ref in refs[: -(-count // SEGMENTS_PER_PAGE)]:
                length = min(left, PAGE_SIZE)
                left -= length
                if at + length > PAGE_SIZE:
                    number += 1
                    at = 0
                page = self._page(number)
                places.append((page, at, length))
                operations.append((ref, self._domid, 0, page.mfn, DOMID_SELF, at, length, GNTCOPY_source_gref))
                at += length
        copied = iter(
            bytes(page.view[at : at + length]) if status == GNTST_okay else None
            for (page, at, length), status in zip(places, self._grants.copy(operations), strict=True)
        )
        return [self._join(islice(copied, -(-count // SEGMENTS_PER_PAGE))) for _, count in wanted]

    @staticmethod
    def _join(pages: Iterable[bytes | None]) -> bytes | None:
        found = list(pages)
        whole = [page for page in found if page is not None]
        return b"".join(whole) if len(whole) == len(found) else None

    def _page(self, number: int) -> Page:
        if number == len(self._pages):
            self._pages.append(self._mm.alloc_page())
        return self._pages[number]

    def release(self) -> None:
        """Give the memory back."""
        self._mm.free_pages_of(self._pages)
        self._pages = []
