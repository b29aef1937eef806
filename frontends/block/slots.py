"""The pages that requests travel in: each slot of the table of requests in flight owns up to eleven.

Data is copied between the caller and these pages, so the backend never sees a page that holds anything else: they are
zeroed when they are allocated and hold nothing but what this disk's requests have put there (XSA-403). With persistent
grants they stay granted, and since a slot always uses its pages in the same order, so do the segment descriptors: they
are made once for each transfer size and copied into the ring as they are.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, final

from hypervisor.abi.grant_table import GTF_permit_access, GTF_readonly
from hypervisor.abi.io.blkif import BLKIF_MAX_SEGMENTS_PER_REQUEST, blkif_request, blkif_request_segment

if TYPE_CHECKING:
    from guest_kernel.block import BlockRequest
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

SECTOR_SHIFT = 9
SECTORS_PER_PAGE = 8
MAX_SECTORS = BLKIF_MAX_SEGMENTS_PER_REQUEST * SECTORS_PER_PAGE

Withheld = tuple[int, "Page"]
"""A grant reference that could not be taken back, and its page."""

REQUESTS = tuple(Struct(f"<BBHxxxxQQ{8 * n}s") for n in range(BLKIF_MAX_SEGMENTS_PER_REQUEST + 1))
"""By number of segments: operation, nr_segments, handle, id, sector_number, and the segments as bytes."""
assert REQUESTS[0].size == blkif_request.offset("seg")
assert REQUESTS[-1].size == blkif_request.size
_SEGMENT: Struct = blkif_request_segment.codec


@final
class Shape:
    """How one slot transfers a number of sectors: segment descriptors, and views of the bytes they cover, in order.

    `pack_into(view, offset, operation, segments, handle, id, sector_number, descriptors)` writes such a request.
    """

    __slots__ = ("descriptors", "pack_into", "parts", "segments", "view")

    def __init__(self, pages: list[Page], refs: list[int], sectors: int) -> None:
        self.segments = -(-sectors // SECTORS_PER_PAGE)
        last = [SECTORS_PER_PAGE - 1] * (self.segments - 1) + [(sectors - 1) % SECTORS_PER_PAGE]
        self.descriptors = b"".join(_SEGMENT.pack(refs[n], 0, last[n]) for n in range(self.segments))
        self.parts = tuple(pages[n].view[: (last[n] + 1) << SECTOR_SHIFT] for n in range(self.segments))
        self.view = self.parts[0]
        self.pack_into = REQUESTS[self.segments].pack_into


@final
class Slot:
    """An entry of the table of requests in flight. `index` is the request's id on the ring."""

    __slots__ = ("index", "op", "pages", "refs", "request", "serial", "shape", "shapes")

    def __init__(self, index: int) -> None:
        self.index = index
        self.request: BlockRequest | None = None
        """What is in flight in this slot."""
        self.op = 0
        """Its operation on the wire: the response must name the same."""
        self.serial = 0
        """Its ring index: the order of issue."""
        self.shape: Shape | None = None
        self.shapes: dict[int, Shape] = {}
        """By number of sectors."""
        self.pages: list[Page] = []
        self.refs: list[int] = []


@final
class PagePool:
    """Gives slots their pages and grants them to the backend's domain, and takes both back."""

    def __init__(self, kernel: Kernel, domid: int) -> None:
        self._grants = kernel.grants
        self._mm = kernel.mm
        self._domid = domid
        self.persistent = False
        """Whether the backend keeps pages mapped: then a page is granted once for all its requests."""
        self.withheld: list[Withheld] = []
        """Pages that the backend still maps though it has no more business with them (XSA-396): nobody reuses these."""

    def shape(self, slot: Slot, sectors: int) -> Shape:
        """Return how `slot` transfers `sectors`, from now on. Raises OutOfMemory or GrantError."""
        segments = -(-sectors // SECTORS_PER_PAGE)
        have = len(slot.pages)
        if segments > have:
            # All that a request can ever need at once: frames taken together tend to be neighbours.
            wanted = 1 if segments == 1 else BLKIF_MAX_SEGMENTS_PER_REQUEST
            slot.pages += self._mm.alloc_pages(wanted - have)
        while len(slot.refs) < segments:
            slot.refs.append(self._grants.take_ref())
            if self.persistent:
                self._grant(slot, len(slot.refs) - 1, GTF_permit_access)
        shape = slot.shapes[sectors] = Shape(slot.pages, slot.refs, sectors)
        return shape

    def _grant(self, slot: Slot, n: int, flags: int) -> None:
        self._grants.grant_raw(slot.refs[n], self._domid, slot.pages[n].mfn, flags)

    def grant(self, slot: Slot, segments: int, readonly: bool) -> None:
        """Without persistent grants: let the backend at the first pages of a slot, for one request."""
        flags = GTF_permit_access | GTF_readonly if readonly else GTF_permit_access
        for n in range(segments):
            self._grant(slot, n, flags)

    def revoke(self, slot: Slot, segments: int) -> None:
        """Without persistent grants: take a request's pages back; withhold those that the backend still maps."""
        revoke = self._grants.revoke
        kept = [n for n in range(segments) if not revoke(slot.refs[n])]
        if kept:
            self.withheld += [(slot.refs[n], slot.pages[n]) for n in kept]
            slot.shapes.clear()
            slot.pages = [page for n, page in enumerate(slot.pages) if n not in kept]
            slot.refs = [ref for n, ref in enumerate(slot.refs) if n not in kept]

    def release(self, slots: list[Slot]) -> None:
        """End all grants and free all pages but those that the backend still maps."""
        for slot in slots:
            slot.shapes.clear()
            slot.shape = None
            refs, slot.refs = slot.refs, []
            pages, slot.pages = slot.pages, []
            for page, ref in zip(pages, refs, strict=False):
                if self._grants.end_access(ref):
                    self._mm.free_page(page)
                else:
                    self.withheld.append((ref, page))
            self._mm.free_pages_of(pages[len(refs) :])


def retry_withheld(kernel: Kernel, withheld: list[Withheld]) -> None:
    """Try once more to end grants that a backend still used; free what has come back and take it off the list."""
    still: list[Withheld] = []
    for ref, page in withheld:
        if kernel.grants.end_access(ref):
            kernel.mm.free_page(page)
        else:
            still.append((ref, page))
    withheld[:] = still
