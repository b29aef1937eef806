"""Xen's own part of every guest's address space: L4 slots 256 to 271 (arch-x86/xen-x86_64.h).

Slot 256 leads to the M2P, which guest kernels may read; slot 258 is the root itself, a linear page table for Xen's own
use; slot 260 is the domain's own area (its descriptor tables, for a vCPU that executes machine code). The slots in
which a real Xen has its code, its frame table and its direct map stay empty: here those are not in machine memory.
"""

from __future__ import annotations

from hypervisor.errors import InvariantError
from hypervisor.mm.boot_memory import SUPERPAGE
from hypervisor.mm.frame_table import FrameTable
from hypervisor.mm.pte import ACCESSED, DIRTY, ENTRIES, FIRST_XEN_SLOT, NX, PRESENT, PSE, RW, USER

M2P_SLOT = FIRST_XEN_SLOT
LINEAR_SLOT = FIRST_XEN_SLOT + 2
PERDOMAIN_SLOT = FIRST_XEN_SLOT + 4
PERDOMAIN_START = 0xFFFF820000000000
"""PERDOMAIN_VIRT_START: where slot 260 begins."""
NR_SLOTS = 16
PAGES_PER_VCPU = 32
"""16 pages for the GDT, then 16 for the LDT (Xen: GDT_LDT_VCPU_VA_SHIFT)."""

GUEST_READS = PRESENT | USER | ACCESSED | NX
XEN_WRITES = PRESENT | RW | ACCESSED | DIRTY | NX
"""(__PAGE_HYPERVISOR_RO with the user bit, and __PAGE_HYPERVISOR_RW.) No code is ever executed there."""


class XenSlots:
    """The tables behind Xen's slots, shared by all guests, and the copy of the slots into a new root table."""

    __slots__ = ("_area", "_frames", "_m2p_l3", "_perdomain")

    def __init__(self, frames: FrameTable) -> None:
        self._frames = frames
        self._perdomain: dict[int, int] = {}
        self._area: dict[int, list[int]] = {}
        self._m2p_l3 = self._map_m2p()

    def _map_m2p(self) -> int:
        """Map the M2P read-only in superpages of 2 MiB; returns the frame of its L3 table."""
        frames = self._frames
        q = frames.memory.q
        superpages = frames.m2p_frames // SUPERPAGE
        nr_l2 = -(-superpages // ENTRIES)
        l3 = frames.alloc_xen()
        l2 = frames.alloc_xen(nr_l2)
        if l3 < 0 or l2 < 0:
            raise InvariantError("no memory for the tables of the M2P")
        for index in range(nr_l2):
            q[(l3 << 9) + index] = (l2 + index) << 12 | GUEST_READS
        for index in range(superpages):
            q[(l2 << 9) + index] = (frames.m2p_mfn + index * SUPERPAGE) << 12 | GUEST_READS | PSE
        return l3

    def init_domain(self, domid: int) -> bool:
        """Make the domain's own area; False when memory is short."""
        mfn = self._frames.alloc_xen()
        if mfn < 0:
            return False
        self._perdomain[domid] = mfn
        return True

    def free_domain(self, domid: int) -> None:
        """Give the domain's own area back."""
        for mfn in self._area.pop(domid, ()):
            self._frames.free_xen(mfn)
        self._frames.free_xen(self._perdomain.pop(domid))

    def map_area(self, domid: int, pages: int) -> list[int]:
        """Make page tables for the first pages of a domain's own area, at `PERDOMAIN_START`, still empty.

        Returns the frames of the L1 tables, or [] when memory is short (or for no pages). Asked again, it adds what is
        missing.
        """
        area = self._area.setdefault(domid, [])
        if not area and not self._add_l2(domid, area):
            return []
        q = self._frames.memory.q
        while len(area) - 1 < -(-pages // ENTRIES):
            mfn = self._frames.alloc_xen()
            if mfn < 0:
                return []
            q[(area[0] << 9) + len(area) - 1] = mfn << 12 | XEN_WRITES
            area.append(mfn)
        return area[1:]

    def _add_l2(self, domid: int, area: list[int]) -> bool:
        l2 = self._frames.alloc_xen()
        if l2 < 0:
            return False
        area.append(l2)
        self._frames.memory.q[self._perdomain[domid] << 9] = l2 << 12 | XEN_WRITES
        return True

    def fill(self, mfn: int, *, with_m2p: bool) -> None:
        """Write Xen's slots into a root table that was just validated."""
        q = self._frames.memory.q
        base = mfn << 9
        first = base + FIRST_XEN_SLOT
        q[first : first + NR_SLOTS] = _EMPTY
        if with_m2p:
            self.show_m2p(mfn)
        q[base + LINEAR_SLOT] = mfn << 12 | XEN_WRITES
        q[base + PERDOMAIN_SLOT] = self._perdomain[self._frames.owner(mfn)] << 12 | XEN_WRITES

    def show_m2p(self, mfn: int) -> None:
        """Let a root lead to the M2P."""
        self._frames.memory.q[(mfn << 9) + M2P_SLOT] = self._m2p_l3 << 12 | GUEST_READS

    def hide_m2p(self, mfn: int) -> None:
        """Let a root not lead to the M2P."""
        self._frames.memory.q[(mfn << 9) + M2P_SLOT] = 0


_EMPTY = memoryview(bytes(8 * NR_SLOTS)).cast("Q")
