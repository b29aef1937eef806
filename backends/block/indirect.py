"""Indirect requests: their segment descriptors lie in granted pages and not in the ring, so there may be more of them.

Xen copies them here (GNTTABOP_copy), those of a whole wake-up with one hypercall. So each byte is read once, and the
frontend can no longer change what is being checked (XSA-155).

With persistent grants a page of descriptors that comes again stays mapped, too. Mostly it still holds what it held the
last time: then one copy of its bytes and one comparison lead to the plan of the request (`KnownTables`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, final

from guest_kernel.errors import OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from hypervisor.abi.grant_table import GNTCOPY_source_gref, GNTST_okay
from hypervisor.abi.io import blkif
from hypervisor.abi.xen import DOMID_SELF

if TYPE_CHECKING:
    from backends.block.mapping import GrantMapper, Plan
    from guest_kernel.grants import CopyOp, MappedGrant
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
FIRST_REF = slice(4, 8)
"""Where the first of these pages is named in it."""
MAX_TABLES = 64
"""Pages of descriptors of one ring that stay mapped."""
MAX_COPIES = 32
"""Pages that they are copied to at a time. What a ring of 16 pages can name at once would be many times as much, of
this domain's memory, which is there for all frontends."""


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
        pieces = [
            (ref, min(count * SEGMENT_SIZE - n * PAGE_SIZE, PAGE_SIZE))
            for refs, count in wanted
            for n, ref in enumerate(refs[: -(-count // SEGMENTS_PER_PAGE)])
        ]
        found: list[bytes | None] = []
        while len(found) < len(pieces):
            found += self._copy(pieces[len(found) :])
        copied = iter(found)
        return [self._join(islice(copied, -(-count // SEGMENTS_PER_PAGE))) for _, count in wanted]

    def _copy(self, pieces: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Copy what lies at the beginning of granted pages, so many bytes each; of as many as there is room for."""
        places: list[tuple[Page, int, int]] = []
        operations: list[CopyOp] = []
        number = at = 0
        for ref, length in pieces:
            if at + length > PAGE_SIZE:
                number += 1
                at = 0
                if number == MAX_COPIES:
                    break
            page = self._page(number)
            places.append((page, at, length))
            operations.append((ref, self._domid, 0, page.mfn, DOMID_SELF, at, length, GNTCOPY_source_gref))
            at += length
        return [
            bytes(page.view[at : at + length]) if status == GNTST_okay else None
            for (page, at, length), status in zip(places, self._grants.copy(operations), strict=True)
        ]

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


@final
class _Table:
    """A mapped page of descriptors, what it held when it was looked at last, and what that meant."""

    __slots__ = ("count", "grant", "held", "plan", "view")

    def __init__(self, grant: MappedGrant) -> None:
        self.grant = grant
        self.count = -1
        """How many descriptors were looked at."""
        self.view = grant.view[:0]
        """These."""
        self.held = b""
        self.plan: Plan | None = None


@final
class KnownTables:
    """The pages of descriptors of one ring that come again and again; at most `MAX_TABLES` of them stay mapped.

    A request is known by them if its descriptors are all in one page. Each look copies them, and only the copy counts
    (XSA-155).
    """

    def __init__(self, kernel: Kernel, domid: int, max_segments: int, mapper: GrantMapper) -> None:
        self._grants = kernel.grants
        self._domid = domid
        self._most = min(max_segments, SEGMENTS_PER_PAGE)
        self._mapper = mapper
        self._tables: dict[bytes, _Table] = {}
        """By the reference, as it is in the ring."""
        self._seen: set[bytes] = set()
        """References that have come and are not mapped."""

    def __len__(self) -> int:
        """How many pages stay mapped."""
        return len(self._tables)

    def recall(self, count: int, rest: bytes) -> Plan | None:
        """Return the plan of an indirect request, if it is known. `count`: how many segments; `rest`: see `REST`."""
        table = self._tables.get(rest[FIRST_REF]) or self._notice(rest[FIRST_REF])
        if table is None:
            return None
        if count != table.count:
            if not 0 < count <= self._most:
                return None
            table.count = count
            table.view = table.grant.view[: count * SEGMENT_SIZE]
        held = table.view.tobytes()
        plan = table.plan
        if plan is None or not plan.valid or held != table.held:
            table.held = held
            table.plan = plan = self._mapper.plans.get(held)
        return plan

    def _notice(self, ref: bytes) -> _Table | None:
        """Map a page that comes for the second time; where there are too many of them, begin anew now and then."""
        seen = self._seen
        if ref not in seen:
            if len(seen) >= MAX_TABLES:
                seen.clear()
                if len(self._tables) >= MAX_TABLES:
                    self.release()
            seen.add(ref)
            return None
        if len(self._tables) >= MAX_TABLES:
            return None
        seen.discard(ref)
        try:
            (grant,) = self._grants.map_refs(self._domid, [int.from_bytes(ref, "little")], writable=False)
        except OutOfMemory:
            return None  # it is copied, as before
        if grant.status != GNTST_okay:
            return None
        table = self._tables[ref] = _Table(grant)
        return table

    def release(self) -> None:
        """Unmap all."""
        tables, self._tables = self._tables, {}
        self._grants.unmap([table.grant for table in tables.values()])
