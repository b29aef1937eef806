"""Host mappings: the page table entries that Xen writes into a mapper's tables on behalf of a grant.

A guest may not name a foreign frame in its page tables. For a frame that it was granted Xen writes the entry, after
checking the place only: it must lie in a validated level-1 table of the caller. The entry holds the references to the
frame from then on, like any other entry: whoever replaces it drops them, be it Xen at unmapping or the guest itself
(which then cannot unmap until it puts the entry back, reference 31 of the rules in docs/grant-tables.md).

TLB: only the unmapped address is forgotten, when the page tables above it are used at one place only. A table that
hangs in two places makes a second address for the same frame, and then everything is forgotten (a stale alias would
let the mapper reach a frame that the granter has long given away).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi.grant_table import GNTMAP_application_map, GNTMAP_contains_pte, GNTMAP_readonly
from hypervisor.guest_access import XEN_VIRT_END, flush_all, flush_va
from hypervisor.mm.frame_table import PINNED, PGT_l1_page_table
from hypervisor.mm.pte import ACCESSED, DIRTY, FRAME_MASK, NX, PRESENT, PSE, RW, USER, adjust_l1

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

AVAIL_SHIFT, AVAIL_MASK, PTE_AVAIL_SHIFT = 16, 7, 9
"""GNTMAP_guest_avail bits 16-18 become the three bits that page table entries leave to software."""

KIND_MASK = GNTMAP_readonly | GNTMAP_application_map


def _base_entry(flags: int) -> int:
    entry = PRESENT | ACCESSED | DIRTY | NX
    if flags & GNTMAP_application_map:
        entry |= USER
    if not flags & GNTMAP_readonly:
        entry |= RW
    return adjust_l1(entry)


ENTRY_BITS = tuple(_base_entry(flags) for flags in range(KIND_MASK + 1))
"""Bits of a grant's page table entry, by `flags & KIND_MASK`: what the guest reads back there."""


def avail_bits(flags: int) -> int:
    """Return the software bits of a page table entry that the mapper asked for (GNTMAP_guest_avail)."""
    return (flags >> AVAIL_SHIFT & AVAIL_MASK) << PTE_AVAIL_SHIFT


def is_guest_address(va: int) -> bool:
    """Whether the guest may have a mapping there (__addr_ok): canonical, and not in Xen's range."""
    return va < 0x0000800000000000 or va >= XEN_VIRT_END


class HostMappings:
    """Finds, writes and checks the entries."""

    __slots__ = ("_frames", "_hv", "_q", "_written")

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self._q = hv.memory.q
        self._written = hv.memory.written
        self._frames = hv.frames

    # -- finding entries ----------------------------------------------------------------------------------------------

    def l1_table(self, vcpu: VCpu, va: int) -> tuple[int, bool] | None:
        """Find the level-1 table that translates `va` in the current address space.

        Returns the index of its first entry in `memory.q`, and whether each table on the way is used in one place only;
        None when there is no such table or it is not the caller's.
        """
        if not is_guest_address(va):
            return None
        frames, q = self._frames, self._q
        table = vcpu.kernel_cr3
        single = True
        for shift in (39, 30, 21):
            entry = q[(table << 9) + (va >> shift & 511)]
            if not entry & PRESENT or (shift == 21 and entry & PSE):
                return None
            table = (entry & FRAME_MASK) >> 12
            if not frames.is_ram(table):
                return None
            uses = frames.type_count[table] - (1 if frames.flags[table] & PINNED else 0)
            single = single and uses == 1
        if not self._is_l1(table, vcpu.domain):
            return None
        domain = vcpu.domain
        for other in domain.vcpus:
            if other is not None and other.kernel_cr3 not in (0, vcpu.kernel_cr3):
                single = False
        return table << 9, single

    def _is_l1(self, mfn: int, domain: Domain) -> bool:
        frames = self._frames
        return bool(
            frames.is_ram(mfn)
            and frames.owner_tag[mfn] == domain.domid + 1
            and frames.type[mfn] == PGT_l1_page_table
            and frames.type_count[mfn] > 0
        )

    def _locate(self, vcpu: VCpu, address: int, flags: int) -> tuple[int, bool] | None:
        """Find the entry that `host_addr` means: by machine address (GNTMAP_contains_pte), or by virtual address."""
        if flags & GNTMAP_contains_pte:
            if address & 7 or not self._is_l1(address >> 12, vcpu.domain):
                return None
            return address >> 3, False
        found = self.l1_table(vcpu, address)
        if found is None:
            return None
        table, single = found
        return table + (address >> 12 & 511), single

    # -- changing entries ---------------------------------------------------------------------------------------------

    def create(self, vcpu: VCpu, address: int, mfn: int, flags: int) -> bool:
        """Write the entry for a mapping of `mfn`. What was there before loses its references, and a grant its handle's
        way back. False when the address is no place for it.

        The granter's GTF_PWT, GTF_PCD and GTF_PAT are for frames that are no RAM; here they change nothing.
        """
        found = self._locate(vcpu, address, flags)
        if found is None:
            return False
        index, single = found
        entry = mfn << 12 | ENTRY_BITS[flags & KIND_MASK] | avail_bits(flags)
        old = self._q[index]
        self._q[index] = entry
        self._written[index >> 9] = 1
        if old & PRESENT:
            self._forget(vcpu, address, single)
            self._hv.mm.put_page_from_l1e(old)
        return True

    def replace(self, vcpu: VCpu, address: int, mfn: int, new_address: int, flags: int) -> bool:
        """Take the mapping of `mfn` out of the entry at `address`; False when it does not hold exactly that mapping.

        The references of the old entry pass to the caller. With `new_address` the entry of that address moves there and
        leaves nothing behind (GNTTABOP_unmap_and_replace); it is lost if the replacement fails.
        """
        entry = 0
        if new_address:
            stolen = self._steal(vcpu, new_address, flags)
            if stolen is None:
                return False
            entry = stolen
        found = self._locate(vcpu, address, flags)
        if found is not None:
            index, single = found
            if matches(self._q[index], mfn, flags):
                self._q[index] = entry
                self._written[index >> 9] = 1
                self._forget(vcpu, address, single)
                return True
        if entry & PRESENT:
            self._hv.mm.put_page_from_l1e(entry)
        return False

    def _steal(self, vcpu: VCpu, address: int, flags: int) -> int | None:
        if flags & GNTMAP_contains_pte:
            return None
        found = self._locate(vcpu, address, 0)
        if found is None:
            return None
        index, single = found
        entry = self._q[index]
        self._q[index] = 0
        self._written[index >> 9] = 1
        if entry & PRESENT:
            self._forget(vcpu, address, single)
        return entry

    def _forget(self, vcpu: VCpu, address: int, single: bool) -> None:
        if single:
            flush_va(vcpu.domain, address)
        else:
            flush_all(vcpu.domain)


def matches(entry: int, mfn: int, flags: int) -> bool:
    """Whether a page table entry is the one that a mapping with these flags wrote.

    Frame, presence and writability count: a mapping that the guest made read-only meanwhile holds a different reference
    from the one that would be dropped (XSA-234). Accessed, dirty, cache and software bits do not.
    """
    wanted: int = mfn << 12 | PRESENT | (0 if flags & GNTMAP_readonly else RW)
    return not (entry ^ wanted) & (FRAME_MASK | PRESENT | RW)
