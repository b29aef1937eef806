"""Frames on their way through the backend, in pages of the backend's own domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backends.net import vlan
from guest_kernel.errors import OutOfMemory
from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net import checksum
from guest_kernel.net.gso import blank_checksum, examine, segments
from hypervisor.abi.io import netif

if TYPE_CHECKING:
    from guest_kernel.mm import MemoryManager, Page
    from guest_kernel.net.offload import Offload

MAC_MASK = 0xFFFF_FFFF_FFFF
TAGGED_HEADER = 18
KEPT_PAGES = 1024
"""Free pages that a pool keeps for the next frames; what a burst took beyond that goes back to the kernel."""


class Cutting(NamedTuple):
    """What segmentation of a frame needs."""

    offload: Offload
    header: int
    """Bytes of all headers, which each segment has."""

    def moved(self, more: int) -> Cutting:
        """Return the same for a header that is so many bytes longer."""
        return self._replace(header=self.header + more)


class Frame:
    """An Ethernet frame, packed into pages: byte n is in page n // 4096.

    `references` counts who holds it, the maker first; the pages go back to the pool with the last. `flags` are the
    NETTXF_ checksum flags it came with.
    """

    __slots__ = ("cutting", "flags", "pages", "pieces", "pool", "references", "size")

    def __init__(self, pool: FramePool, pages: list[Page], size: int, flags: int) -> None:
        self.pool = pool
        self.pages = pages
        self.size = size
        self.flags = flags
        self.references = 1
        self.cutting: Cutting | None = None
        """How a large TCP packet is to be cut; None for any other frame. Such a one has no checksum."""
        self.pieces: list[Frame] | None = None
        """The segments, once somebody has asked for them."""

    @property
    def destination(self) -> int:
        """Destination address as a number, first byte lowest (so that bit 0 says multicast)."""
        return self.pages[0].q[0] & MAC_MASK

    @property
    def source(self) -> int:
        """Source address as a number, first byte lowest."""
        page = self.pages[0]
        return page.q[0] >> 48 | page.i[2] << 16

    @property
    def tag(self) -> int | None:
        """The number in the frame's VLAN tag (0: it says a priority only); None without a tag."""
        view = self.pages[0].view
        if self.size < TAGGED_HEADER or view[12] << 8 | view[13] != vlan.TPID:
            return None
        return (view[14] & 15) << 8 | view[15]

    def with_tag(self, number: int) -> Frame:
        """Return a copy of the frame with this number in its VLAN tag, or without a tag for 0. Raises OutOfMemory.

        A priority stays as long as there is a tag to bear it. The copy has its checksum filled in.
        """
        data = self.tobytes() if self.cutting is None else self.raw()
        priority = 0
        if self.tag is not None:
            priority = data[14] & 0xF0
            del data[12:16]
        if number:
            data[12:12] = bytes((vlan.TPID >> 8, vlan.TPID & 0xFF, priority | number >> 8, number & 0xFF))
        copy = self.pool.frame(data)
        if self.cutting is not None:
            copy.flags = self.flags
            copy.cutting = self.cutting.moved(copy.size - self.size)
        else:
            # Whoever takes it need not look at the checksum again.
            copy.flags = netif.NETTXF_data_validated if self.flags else 0
        return copy

    def spread(self, room: int) -> Frame:
        """Return a copy with at most `room` bytes in each page, for a guest's buffers: nothing else of it is of use.

        Raises OutOfMemory.
        """
        data = self.raw()
        pages = self.pool.take(-(-self.size // room) * PAGE_SIZE)
        for number, page in enumerate(pages):
            piece = data[number * room : (number + 1) * room]
            page.view[: len(piece)] = piece
        return Frame(self.pool, pages, self.size, self.flags)

    @property
    def headers(self) -> memoryview:
        """The first bytes, up to a page: all headers that anybody looks at are there."""
        return self.pages[0].view[: min(self.size, PAGE_SIZE)]

    def begin_cutting(self, offload: Offload) -> bool:
        """Note that this frame is to be cut; False if it cannot be (see `guest_kernel.net.gso`)."""
        head = self.headers
        headers = examine(head, self.size, offload)
        if headers is None:
            return False
        if not self.flags & netif.NETTXF_csum_blank:
            # The segments' checksums are to be made: that of the whole has no meaning, whatever it is.
            at = headers.place.transport + 16
            self.pages[0].view[at : at + 2] = blank_checksum(head, headers.place)
        self.flags |= netif.NETTXF_csum_blank | netif.NETTXF_data_validated
        if headers.place.end - headers.data > offload.gso_size:
            self.cutting = Cutting(offload, headers.data)
        return True

    @property
    def longest(self) -> int:
        """Length of the longest frame that a wire gets from this."""
        return self.size if self.cutting is None else self.cutting.header + self.cutting.offload.gso_size

    def cut(self) -> list[Frame]:
        """Return the segments, which stay ours. Raises OutOfMemory; then none is made."""
        assert self.cutting is not None
        if self.pieces is None:
            pieces: list[Frame] = []
            try:
                for segment in segments(self.raw(), self.cutting.offload):
                    pieces.append(self.pool.frame(segment))
                    pieces[-1].flags = netif.NETTXF_data_validated
            except OutOfMemory:
                for piece in pieces:
                    piece.put()
                raise
            self.pieces = pieces
        return self.pieces

    def put(self) -> None:
        """Drop a reference."""
        self.references -= 1
        if self.references <= 0:
            self.pool.give(self.pages)
            if self.pieces is not None:
                for piece in self.pieces:
                    piece.put()

    def raw(self) -> bytearray:
        """Return the bytes as they are."""
        return bytearray().join(page.view[:PAGE_SIZE] for page in self.pages)[: self.size]

    def tobytes(self) -> bytearray:
        """Return the frame as it goes onto a real wire: with its checksum filled in."""
        data = self.raw()
        if self.flags & netif.NETTXF_csum_blank:
            checksum.complete(data)
        return data

    def fill_checksum(self) -> None:
        """Fill in the checksum that csum_blank has left out."""
        if self.flags & netif.NETTXF_csum_blank:
            self.pool.fill(self.pages, self.tobytes())
            self.flags = netif.NETTXF_data_validated


class FramePool:
    """Pages for frames; a page that has been used once is kept for the next frame."""

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._free: list[Page] = []
        self.out = 0
        """Pages that frames have at the moment."""

    def take(self, size: int) -> list[Page]:
        """Return pages for `size` bytes. Raises OutOfMemory; then none is taken."""
        count = -(-size // PAGE_SIZE) or 1
        free = self._free
        if len(free) < count:
            free += self._mm.alloc_pages(count - len(free))
        pages = free[-count:]
        del free[-count:]
        self.out += count
        return pages

    def give(self, pages: list[Page]) -> None:
        """Take pages back."""
        self.out -= len(pages)
        self._free += pages
        while len(self._free) > KEPT_PAGES:
            self._mm.free_page(self._free.pop())

    def frame(self, data: bytes | bytearray) -> Frame:
        """Return a frame with these bytes. Raises OutOfMemory."""
        pages = self.take(len(data))
        self.fill(pages, data)
        return Frame(self, pages, len(data), 0)

    def fill(self, pages: list[Page], data: bytes | bytearray) -> None:
        """Write the bytes of a frame into its pages."""
        for number, page in enumerate(pages):
            piece = data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
            page.view[: len(piece)] = piece

    def close(self) -> None:
        """Give the free pages back to the kernel."""
        self._mm.free_pages_of(self._free)
        self._free = []
