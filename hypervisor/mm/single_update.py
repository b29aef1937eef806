"""mmu_update as guest kernels mostly make it: one L1 entry of their own, for an ordinary frame of their own.

Linux changes its page tables in that way, sixty thousand times while it boots, so what `mmu_update`, `page_types` and
`frame_table` do for it is written out here, in one function on local names. Whatever is not the usual goes to the
general form, before anything has been changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.guest_access import walk_read
from hypervisor.mm.frame_table import DOMID_IO, MAX_COUNT, VALIDATED, PGT_l1_page_table, PGT_writable_page
from hypervisor.mm.pte import (
    CACHE_ATTRIBUTES,
    FRAME_MASK,
    GLOBAL,
    GUEST_KERNEL,
    HARMLESS,
    NX,
    PRESENT,
    RW,
    USER,
)

if TYPE_CHECKING:
    from hypervisor.hypervisor import Handler
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

_IO_TAG = DOMID_IO + 1
_LAST_IN_PAGE = 4096 - 16
_CHANGES = ((1 << 64) - 1) & ~HARMLESS
"""Bits that cannot change in a present entry without its being validated again."""
_MOVES = FRAME_MASK | PRESENT


def make_single_update(mm: MemoryManager, general: Handler) -> Handler:  # noqa: C901 - see above
    """Return the handler of mmu_update: `general`, with a short cut."""
    frames, words, written = mm.frames, mm.hv.memory.q, mm.hv.memory.written
    nr_frames, owners, kinds, flags = frames.frames, frames.owner_tag, frames.type, frames.flags
    counts, type_counts = frames.count, frames.type_count
    put_page, put_page_type = frames.put_page, frames.put_page_type

    def mmu_update(vcpu: VCpu, requests: int, count: int, done_ptr: int, foreign: int, a5: int) -> int:  # noqa: C901
        if count != 1 or foreign != xen.DOMID_SELF or done_ptr or vcpu.old_tables:
            return general(vcpu, requests, count, done_ptr, foreign, a5)
        offset = requests & 0xFFF
        if offset & 7 or offset > _LAST_IN_PAGE:
            return general(vcpu, requests, count, done_ptr, foreign, a5)
        base = vcpu.tlb_r.get(requests >> 12)
        if base is None:
            base = walk_read(vcpu, requests)
        at = base + offset >> 3
        pointer, new = words[at], words[at + 1]
        table, domain = pointer >> 12, vcpu.domain
        tag = domain.domid + 1
        if (
            pointer & 7
            or table >= nr_frames
            or kinds[table] != PGT_l1_page_table
            or owners[table] != tag
            or not type_counts[table]
            or not flags[table] & VALIDATED
        ):
            return general(vcpu, requests, count, done_ptr, foreign, a5)
        index = pointer >> 3
        old = words[index]
        drops = old & PRESENT
        moves = not old & NX and bool((old ^ new) & _MOVES)
        if new & PRESENT:
            if new & CACHE_ATTRIBUTES:
                return general(vcpu, requests, count, done_ptr, foreign, a5)
            # (adjust_l1)
            if not new & USER:
                new |= GUEST_KERNEL | USER
            elif not new & GUEST_KERNEL:
                new |= GLOBAL
            if drops and not (old ^ new) & _CHANGES:
                drops = 0
            else:
                mfn = (new & FRAME_MASK) >> 12
                if mfn >= nr_frames or owners[mfn] != tag:
                    return general(vcpu, requests, count, done_ptr, foreign, a5)
                held = counts[mfn]
                if not 0 < held < MAX_COUNT:
                    return general(vcpu, requests, count, done_ptr, foreign, a5)
                if new & RW:
                    typed = type_counts[mfn]
                    if not typed:
                        kinds[mfn] = PGT_writable_page
                    elif kinds[mfn] != PGT_writable_page or typed >= MAX_COUNT:
                        return general(vcpu, requests, count, done_ptr, foreign, a5)
                    type_counts[mfn] = typed + 1
                counts[mfn] = held + 1
        words[index] = new
        written[table] = 1
        if drops:
            # (put_l1)
            mfn = (old & FRAME_MASK) >> 12
            if mfn < nr_frames and owners[mfn] != _IO_TAG:
                if old & RW:
                    typed = type_counts[mfn]
                    if typed > 1:
                        type_counts[mfn] = typed - 1
                    else:
                        put_page_type(mfn)
                held = counts[mfn]
                if held > 1:
                    counts[mfn] = held - 1
                else:
                    put_page(mfn)
        if old & PRESENT:
            for other in domain.vcpus:
                if other is not None:
                    other.flush_entry(old, code=moves)
        return 0

    return mmu_update
