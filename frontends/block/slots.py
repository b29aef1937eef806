"""The entries of the table of requests in flight, and what a request looks like on the ring.

A slot owns pages, and data is copied between the caller and these. With persistent grants they stay granted, and since
a slot always uses its pages in the same order, the segment descriptors stay the same, too: they are made once for each
transfer size (`Shape`) and copied into the ring as they are. The pages themselves come from the `PagePool`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import TYPE_CHECKING, final

from guest_kernel.mm import PAGE_SHIFT
from hypervisor.abi.io.blkif import (
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_INDIRECT,
    blkif_request,
    blkif_request_indirect,
    blkif_request_segment,
)

if TYPE_CHECKING:
    from guest_kernel.block import BlockBuffer, BlockRequest
    from guest_kernel.mm import MemoryManager, Page

SECTOR_SHIFT = 9
SECTORS_PER_PAGE = 8
MAX_SECTORS = BLKIF_MAX_SEGMENTS_PER_REQUEST * SECTORS_PER_PAGE
"""What a request carries whose descriptors are in the ring."""
MAX_INDIRECT_SEGMENTS = 32
"""What one carries whose descriptors are in a page of their own: 128 KiB. More would cost memory, and save little."""
MAX_LENT_SEGMENTS = 256
"""What one carries whose pages are the caller's: 1 MiB."""
SEGMENTS_PER_TABLE = 512
"""Descriptors in a page of them."""
MOST_SEGMENTS = BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * SEGMENTS_PER_TABLE
"""What an indirect request can carry at all: 16 MiB."""
REQUESTS = tuple(Struct(f"<BBHxxxxQQ{8 * n}s") for n in range(BLKIF_MAX_SEGMENTS_PER_REQUEST + 1))
"""By number of segments: operation, nr_segments, handle, id, sector_number, and the segments as bytes."""
assert REQUESTS[0].size == blkif_request.offset("seg")
assert REQUESTS[-1].size == blkif_request.size
_TABLES = Struct(f"<{BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST}I")
"""References of the pages of descriptors; what is not needed is 0."""
INDIRECT = Struct(f"<BBHxxxxQQHxx{_TABLES.size}s")
"""operation (BLKIF_OP_INDIRECT), operation proper, nr_segments, id, sector_number, handle, pages of descriptors."""
assert INDIRECT.size == blkif_request_indirect.offset("indirect_grefs[7]") + 4
_SEGMENT: Struct = blkif_request_segment.codec


@final
class Tables:
    """Pages of segment descriptors; the backend may read them as long as the connection lasts."""

    __slots__ = ("packed", "pages", "refs")

    def __init__(self) -> None:
        self.pages: list[Page] = []
        self.refs: list[int] = []
        self.packed = b""
        """The references as they are in a request."""

    def add(self, page: Page, ref: int) -> None:
        """Have one more page."""
        self.pages.append(page)
        self.refs.append(ref)
        self.packed = _TABLES.pack(*self.refs, *[0] * (BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST - len(self.refs)))

    def write(self, descriptors: bytes) -> None:
        """Put descriptors into the pages, from the beginning on."""
        for n, page in enumerate(self.pages):
            part = descriptors[n << PAGE_SHIFT : (n + 1) << PAGE_SHIFT]
            page.view[: len(part)] = part


def _descriptors(refs: Sequence[int], sectors: int, shift: int) -> bytes:
    """Return segment descriptors for sectors from the beginning of the first page on.

    The disk counts in sectors that are 2**`shift` of ours.
    """
    whole, rest = divmod(sectors, SECTORS_PER_PAGE)
    last = [SECTORS_PER_PAGE - 1 >> shift] * whole + ([rest - 1 >> shift] if rest else [])
    return b"".join([_SEGMENT.pack(refs[n], 0, end) for n, end in enumerate(last)])


class Shape:
    """How one slot transfers a number of sectors: segment descriptors, and views of the bytes they cover, in order.

    `pack_into(view, offset, operation, segments, handle, id, sector_number, descriptors)` writes such a request.
    """

    __slots__ = ("buffered", "descriptors", "pack_into", "parts", "segments", "view")

    pack_into: Callable[..., None]
    buffered: LentBuffer | None

    def __init__(self, slot: Slot, sectors: int, mm: MemoryManager, shift: int) -> None:
        self.segments = -(-sectors // SECTORS_PER_PAGE)
        self.descriptors = _descriptors(slot.refs, sectors, shift)
        self.parts = mm.runs(slot.pages, sectors << SECTOR_SHIFT)
        self.view = self.parts[0] if len(self.parts) == 1 else None
        """All of it, if it is in one piece."""
        self.buffered = None
        if self.segments <= BLKIF_MAX_SEGMENTS_PER_REQUEST:
            self.pack_into = REQUESTS[self.segments].pack_into
        else:
            self.pack_into = slot.pack_indirect_into


@final
class Slot:
    """An entry of the table of requests in flight. `index` is the request's id on the ring."""

    __slots__ = (
        "index",
        "op",
        "pages",
        "refs",
        "request",
        "serial",
        "shape",
        "shapes",
        "table_holds",
        "tables",
    )

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
        self.tables = Tables()
        """Where the descriptors of indirect requests are."""
        self.table_holds = b""

    def take_over(self, donor: Slot) -> None:
        """Have the pages of another slot as well; those that are granted stay so, and come first."""
        granted, donated = len(self.refs), len(donor.refs)
        self.pages[granted:] = donor.pages[:donated] + self.pages[granted:] + donor.pages[donated:]
        self.refs += donor.refs
        donor.pages, donor.refs = [], []
        donor.shapes.clear()

    def pack_indirect_into(
        self,
        view: memoryview,
        offset: int,
        op: int,
        segments: int,
        handle: int,
        index: int,
        sector: int,
        descriptors: bytes,
    ) -> None:
        """Write an indirect request into the ring, and its descriptors into their pages if others are there."""
        if self.table_holds is not descriptors:
            self.tables.write(descriptors)
            self.table_holds = descriptors
        INDIRECT.pack_into(view, offset, BLKIF_OP_INDIRECT, op, segments, index, sector, handle, self.tables.packed)


@final
class LentShape(Shape):
    """How a number of sectors is transferred to or from the pages of a `BlockBuffer`, in whatever slot."""

    __slots__ = ("tables",)

    def __init__(self, lent: LentBuffer, first: int, sectors: int, shift: int) -> None:
        self.segments = -(-sectors // SECTORS_PER_PAGE)
        self.descriptors = _descriptors(lent.refs[first : first + self.segments], sectors, shift)
        self.parts = ()
        self.view = None
        self.buffered = lent
        self.tables = Tables()
        self.pack_into = (
            REQUESTS[self.segments].pack_into
            if self.segments <= BLKIF_MAX_SEGMENTS_PER_REQUEST
            else self.pack_indirect_into
        )

    def pack_indirect_into(
        self,
        view: memoryview,
        offset: int,
        op: int,
        segments: int,
        handle: int,
        index: int,
        sector: int,
        _descriptors: bytes,
    ) -> None:
        """Write an indirect request into the ring; its descriptors are in their pages."""
        INDIRECT.pack_into(view, offset, BLKIF_OP_INDIRECT, op, segments, index, sector, handle, self.tables.packed)


@final
class LentBuffer:
    """A `BlockBuffer` as it is granted on one connection."""

    __slots__ = ("buffer", "refs", "shapes")

    def __init__(self, buffer: BlockBuffer, refs: list[int]) -> None:
        self.buffer = buffer
        self.refs = refs
        self.shapes: dict[tuple[int, int], LentShape] = {}
        """By first page and number of sectors."""
