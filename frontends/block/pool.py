"""The pages that requests travel in, and who may see them.

Data is copied between the caller and these pages, so the backend never sees a page that holds anything else: they are
zeroed when they are allocated and hold nothing but what this disk's requests have put there (XSA-403). A caller that
has pages of its own for the purpose lends them (`BlockBuffer`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from frontends.block.slots import (
    MAX_INDIRECT_SEGMENTS,
    MOST_SEGMENTS,
    SECTORS_PER_PAGE,
    SEGMENTS_PER_TABLE,
    LentBuffer,
    LentShape,
    Shape,
    Slot,
    Tables,
)
from guest_kernel.errors import GrantError
from hypervisor.abi.grant_table import GTF_permit_access, GTF_readonly
from hypervisor.abi.io.blkif import BLKIF_MAX_SEGMENTS_PER_REQUEST

if TYPE_CHECKING:
    from guest_kernel.block import BlockBuffer
    from guest_kernel.kernel import Kernel
    from guest_kernel.mm import Page

MEMORY_SHARE = 8
"""The pages of all slots of a disk take this part of a guest's memory at most, 1/8: where there are more and larger
requests than that, they wait. (One is always under way, however large.)"""
LEAST_PAGES = 32 * BLKIF_MAX_SEGMENTS_PER_REQUEST
"""But a ring full of requests whose descriptors are in the ring may be under way in the smallest guest."""
_PAGES_OF_SLOT = (1, BLKIF_MAX_SEGMENTS_PER_REQUEST, MAX_INDIRECT_SEGMENTS, 256, 1024, MOST_SEGMENTS)
"""How many pages a slot has: the next of these numbers. Frames that are taken together tend to be neighbours."""

Withheld = tuple[int, "Page"]
"""A grant reference that could not be taken back, and its page."""


@final
class PagePool:
    """Gives slots their pages and grants them to the backend's domain, and takes both back."""

    def __init__(self, kernel: Kernel, domid: int) -> None:
        self._grants = kernel.grants
        self._mm = kernel.mm
        self._domid = domid
        self.max_segments = BLKIF_MAX_SEGMENTS_PER_REQUEST
        """Of the largest request: more than fit into the ring if the backend takes indirect ones."""
        self.shift = 0
        """The disk's sectors are so much larger than 512 bytes: 3 for 4096."""
        self.persistent = False
        """Whether the backend keeps pages mapped: then a page is granted once for all its requests."""
        self._budget = max(kernel.mm.nr_pages // MEMORY_SHARE, LEAST_PAGES)
        self._held = 0
        """How many pages the slots have."""
        self.slots: list[Slot] = []
        """All that there are, of all rings."""
        self._lent: dict[BlockBuffer, LentBuffer] = {}
        self.withheld: list[Withheld] = []
        """Pages that the backend still maps though it has no more business with them (XSA-396): nobody reuses these."""

    def connect(self, persistent: bool, max_segments: int, shift: int) -> None:
        """Know what the backend takes."""
        self.persistent = persistent
        self.max_segments = max_segments
        self.shift = shift

    def exhausted(self, slot: Slot, sectors: int) -> bool:
        """Whether `slot` needs more pages for so many sectors than all slots together should have."""
        segments, have = -(-sectors // SECTORS_PER_PAGE), len(slot.pages)
        return segments > have and self._held + self._pages_for(segments) - have > self._budget

    def gather(self, slot: Slot, sectors: int) -> None:
        """Let `slot` have the pages of others, while nothing is in flight: all together have no more than before."""
        segments = -(-sectors // SECTORS_PER_PAGE)
        for donor in sorted(self.slots, key=lambda donor: len(donor.pages), reverse=True):
            if len(slot.pages) >= segments:
                return
            if donor is not slot and donor.request is None:
                slot.take_over(donor)

    def _pages_for(self, segments: int) -> int:
        return min(next(pages for pages in _PAGES_OF_SLOT if pages >= segments), self.max_segments)

    def shape(self, slot: Slot, sectors: int) -> Shape:
        """Return how `slot` transfers `sectors`, from now on. Raises OutOfMemory or GrantError."""
        segments = -(-sectors // SECTORS_PER_PAGE)
        have = len(slot.pages)
        if segments > have:
            pages = self._mm.alloc_pages(self._pages_for(segments) - have)
            slot.pages += pages
            self._held += len(pages)
        while len(slot.refs) < segments:
            slot.refs.append(self._grants.take_ref())
            if self.persistent:
                self._grant(slot, len(slot.refs) - 1, GTF_permit_access)
        if segments > BLKIF_MAX_SEGMENTS_PER_REQUEST:
            self._extend(slot.tables, segments)
        shape = slot.shapes[sectors] = Shape(slot, sectors, self._mm, self.shift)
        return shape

    def _extend(self, tables: Tables, segments: int) -> None:
        """Make room for the descriptors of so many segments. Raises OutOfMemory or GrantError."""
        while len(tables.pages) * SEGMENTS_PER_TABLE < segments:
            page = self._mm.alloc_page()
            try:
                ref = self._grants.grant_access(self._domid, page, readonly=True)
            except GrantError:
                self._mm.free_page(page)
                raise
            tables.add(page, ref)

    def _end_tables(self, tables: Tables) -> None:
        for page, ref in zip(tables.pages, tables.refs, strict=True):
            if self._grants.end_access(ref):
                self._mm.free_page(page)
            else:
                self.withheld.append((ref, page))

    # -- pages of the caller's ------------------------------------------------------------------------------------

    def lend(self, buffer: BlockBuffer, first: int, sectors: int) -> LentShape:
        """Return how sectors are transferred to or from a buffer. Raises OutOfMemory or GrantError."""
        lent = self._lent.get(buffer)
        if lent is None:
            lent = self._lend(buffer)
        shape = lent.shapes.get((first, sectors))
        if shape is None:
            shape = LentShape(lent, first, sectors, self.shift)
            if shape.segments > BLKIF_MAX_SEGMENTS_PER_REQUEST:
                self._extend(shape.tables, shape.segments)
                shape.tables.write(shape.descriptors)
            lent.shapes[first, sectors] = shape
        if self.persistent and not first:
            buffer.ready[sectors] = shape
        return shape

    def _lend(self, buffer: BlockBuffer) -> LentBuffer:
        refs: list[int] = []
        try:
            for page in buffer.pages:
                refs.append(self._grants.take_ref())
                if self.persistent:
                    self._grants.grant_raw(refs[-1], self._domid, page.mfn, GTF_permit_access)
        except GrantError:
            self._grants.end_access_many(refs)
            raise
        lent = self._lent[buffer] = LentBuffer(buffer, refs)
        buffer.release = lambda: self.take_back(buffer)
        return lent

    def grant_lent(self, shape: LentShape, first: int, readonly: bool) -> None:
        """Without persistent grants: let the backend at the pages of a transfer."""
        lent = shape.buffered
        assert lent is not None
        flags = GTF_permit_access | GTF_readonly if readonly else GTF_permit_access
        for n in range(first, first + shape.segments):
            self._grants.grant_raw(lent.refs[n], self._domid, lent.buffer.pages[n].mfn, flags)

    def revoke_lent(self, lent: LentBuffer, first: int, segments: int) -> None:
        """Without persistent grants: take the pages of a transfer back; the buffer loses those still mapped."""
        for n in range(first, first + segments):
            if n not in lent.buffer.lost and not self._grants.revoke(lent.refs[n]):
                self._lose(lent, n)

    def _lose(self, lent: LentBuffer, n: int) -> None:
        self.withheld.append((lent.refs[n], lent.buffer.pages[n]))
        lent.buffer.lose(n)

    def take_back(self, buffer: BlockBuffer) -> None:
        """End all grants of a buffer's pages; it loses those that the backend still maps."""
        lent = self._lent.pop(buffer, None)
        if lent is None:
            return
        buffer.release = lambda: None
        buffer.ready.clear()
        for shape in lent.shapes.values():
            self._end_tables(shape.tables)
        for n, ref in enumerate(lent.refs):
            if n not in buffer.lost and not self._grants.end_access(ref):
                self._lose(lent, n)

    def release_buffers(self) -> None:
        """Take all buffers back."""
        for buffer in list(self._lent):
            self.take_back(buffer)

    # -- pages of the slots ---------------------------------------------------------------------------------------

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
            self._held -= len(kept)
            slot.shapes.clear()
            slot.pages = [page for n, page in enumerate(slot.pages) if n not in kept]
            slot.refs = [ref for n, ref in enumerate(slot.refs) if n not in kept]

    def release(self, slots: list[Slot]) -> None:
        """End all grants of slots and free their pages but those that the backend still maps."""
        for slot in slots:
            slot.shapes.clear()
            slot.shape = None
            tables, slot.tables = slot.tables, Tables()
            self._end_tables(tables)
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
