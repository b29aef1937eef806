"""Log-dirty: which pages of a domain have changed since somebody last asked, for migration and checkpoints.

A real Xen maps the domain's pages read-only, in shadows of its page tables, and takes a fault at the first store to
each. Here the pages are compared with a copy of them, whenever somebody asks: so it does not matter who writes (a
guest's own code, the hypervisor, a backend through a grant, a device), and nobody is slowed down by it. What differs: a
store of what is there already is not seen, and the copy takes as much memory again as the domain has that is not zero.

As in Xen the bitmap is by page number (what the M2P says), and in leaves of 32,768 pages, which are cleared as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypervisor.mm.frame_table import FrameTable, Owner

PAGE_SIZE, PAGE_SHIFT = 4096, 12
LEAF_BITS = PAGE_SIZE * 8
"""Pages of a leaf of the bitmap."""
NR_LEAVES = 1 << 27
"""Leaves of a bitmap, there or not: three levels of 512 entries."""
INVALID_PFN = 1 << 63
"""A page number with this bit is none (VALID_M2P)."""
_ZEROS = bytes(PAGE_SIZE)


class LogDirty:
    """The pages of one domain as they were when they were last looked at, and those that have changed."""

    __slots__ = ("_copies", "_domain", "_frames", "dirty_count", "leaves")

    def __init__(self, frames: FrameTable, domain: Owner) -> None:
        self._frames = frames
        self._domain = domain
        self._copies: dict[int, tuple[int, bytes]] = {}
        """By page number: its frame, and what was in it."""
        self.leaves: dict[int, bytearray] = {}
        """The bitmap, as far as there has been something in it."""
        self.dirty_count = 0
        """Pages that have become dirty since the bitmap was last cleared."""
        self._look()

    def update(self) -> None:
        """Note in the bitmap what has changed up to now."""
        for pfn in self._look():
            leaf = self.leaves.setdefault(pfn // LEAF_BITS, bytearray(PAGE_SIZE))
            at, bit = pfn % LEAF_BITS >> 3, 1 << (pfn & 7)
            if not leaf[at] & bit:
                leaf[at] |= bit
                self.dirty_count += 1

    def _look(self) -> list[int]:
        """Copy what has changed or is new; returns the page numbers of that."""
        frames, before = self._frames, self._copies
        b, m2p = frames.memory.b, frames.m2p
        changed: list[int] = []
        copies: dict[int, tuple[int, bytes]] = {}
        for mfn in frames.pages(frames.page_list(self._domain)):
            pfn = m2p[mfn]
            if pfn & INVALID_PFN:
                continue
            base = mfn << PAGE_SHIFT
            contents = bytes(b[base : base + PAGE_SIZE])
            known = before.get(pfn)
            if known is not None and known == (mfn, contents):
                copies[pfn] = known
                continue
            changed.append(pfn)
            copies[pfn] = mfn, _ZEROS if contents == _ZEROS else contents
        self._copies = copies
        return changed

    def leaf(self, index: int) -> bytes | bytearray:
        """Return a leaf of the bitmap."""
        return self.leaves.get(index, _ZEROS)

    def clear(self, index: int) -> None:
        """Clear a leaf."""
        self.leaves.pop(index, None)

    def clear_below(self, pfn: int) -> None:
        """Clear the leaves that have pages below a number."""
        for index in [index for index in self.leaves if index * LEAF_BITS < pfn]:
            del self.leaves[index]

    def cleared(self) -> None:
        """Begin counting anew."""
        self.dirty_count = 0
