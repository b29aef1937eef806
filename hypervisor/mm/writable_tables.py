"""Writable page tables: a guest kernel's own store into an L1 table, emulated.

A page table is mapped read-only, so such a store faults. If the domain has the assist VMASST_TYPE_writable_pagetables,
and for the hardware domain always, Xen then does what the instruction would have done: it checks the new entry as
mmu_update would, stores it, and lets the guest go on behind the instruction. Tables of the other levels are never
written that way, and an entry that may not be stored leaves the guest with its page fault.

Whoever executes the guest's instruction tells what it would store: see `WritableTables`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.guest_access import access_ok, flush_entry
from hypervisor.mm.frame_table import VALIDATED, PGT_l1_page_table
from hypervisor.mm.pte import FRAME_MASK, PRESENT, PSE, RW, adjust_l1, moves_code

if TYPE_CHECKING:
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

_WORD = 8
_LOW_PART = 0xFFF


class WritableTables:
    """The hypervisor's side. In kernel mode, at a write fault on a present page:

    if tables.covers(vcpu, va):
        # decode the instruction: it stores `size` bytes at `address`
        if tables.store(vcpu, va, address, size, value):
            ...                     # done: go on behind the instruction
    ...                             # else the guest gets its page fault
    """

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._frames = mm.frames
        self._q = mm.hv.memory.q

    def covers(self, vcpu: VCpu, va: int) -> bool:
        """Whether a store to this address that faulted may be emulated."""
        domain = vcpu.domain
        assisted = domain.vm_assist >> xen.VMASST_TYPE_writable_pagetables & 1 or domain.domid == 0
        return bool(assisted) and self._table(vcpu, va) >= 0

    def store(self, vcpu: VCpu, faulted: int, address: int, size: int, value: int) -> bool:
        """Store `size` bytes at `address`, after a fault at the address `faulted`; False if that is not to be.

        Only naturally aligned stores of 1 to 8 bytes in the page of the fault are. A smaller one changes a part of the
        entry, which is then checked as a whole.
        """
        return self._update(vcpu, faulted, address, size, value) is not None

    def compare_and_store(
        self, vcpu: VCpu, faulted: int, address: int, size: int, expected: int, value: int
    ) -> int | None:
        """As `store`, if `expected` is there now (cmpxchg). Returns what was there, or None if it is not to be.

        The new entry is checked before the comparison, and must be right even if that fails.
        """
        return self._update(vcpu, faulted, address, size, value, expected)

    def _update(
        self, vcpu: VCpu, faulted: int, address: int, size: int, value: int, expected: int | None = None
    ) -> int | None:
        table = self._table(vcpu, faulted)
        if table < 0 or size not in (1, 2, 4, 8) or (address ^ faulted) & ~_LOW_PART or address & (size - 1):
            return None
        q = self._q
        index = (table << 9) + ((address & _LOW_PART) >> 3)
        shift = (address & (_WORD - 1)) * 8
        mask = (1 << size * 8) - 1
        old = q[index]
        found = old >> shift & mask
        new = old & ~(mask << shift) | (value & mask) << shift
        types, domain = self._mm.types, vcpu.domain
        if new & PRESENT:
            new = types.take_l1(new, domain, domain)
            if new < 0:
                return None
            new = adjust_l1(new)
        if expected is not None and found != expected & mask:
            types.put_l1(new)
            return found
        q[index] = new
        self._mm.hv.memory.written[table] = 1
        if old & PRESENT:
            types.put_l1(old)
            flush_entry(domain, old, code=moves_code(old, new))
        return found

    def _table(self, vcpu: VCpu, va: int) -> int:
        """Return the L1 table that is mapped read-only at an address, or -1."""
        entry = self._entry(vcpu, va)
        if entry & (PRESENT | RW) != PRESENT:
            return -1
        frames = self._frames
        mfn = (entry & FRAME_MASK) >> 12
        if (
            mfn < frames.frames
            and frames.owner_tag[mfn] == vcpu.domain.domid + 1
            and frames.type[mfn] == PGT_l1_page_table
            and frames.type_count[mfn]
            and frames.flags[mfn] & VALIDATED
        ):
            return mfn
        return -1

    def _entry(self, vcpu: VCpu, va: int) -> int:
        """Return the L1 entry for an address in the kernel's address space, 0 if there is none."""
        table = vcpu.kernel_cr3
        if not table or not access_ok(va):
            return 0
        q, end = self._q, self._frames.frames << 12
        entry = table << 12 | PRESENT
        for shift in (39, 30, 21, 12):
            table = entry & FRAME_MASK
            if not entry & PRESENT or entry & PSE or table >= end:
                return 0
            entry = q[(table >> 3) + (va >> shift & 511)]
        return entry
