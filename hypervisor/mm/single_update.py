"""The usual change of a page table, quickly: one L1 entry, for an ordinary frame.

Linux changes its page tables in that way sixty thousand times while it boots, and a builder maps each page of a new
domain so. Therefore what `mmu_update`, `page_types` and `frame_table` do for it is written out here, on local names.
Whatever is not the usual goes to the general form, before anything has been changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.guest_access import walk_read
from hypervisor.mm.frame_table import (
    DOMID_IO,
    MAX_COUNT,
    VALIDATED,
    FrameTable,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_writable_page,
)
from hypervisor.mm.pte import CACHE_ATTRIBUTES, FRAME_MASK, GLOBAL, GUEST_KERNEL, HARMLESS, NX, PRESENT, RW, USER

if TYPE_CHECKING:
    from hypervisor.hypervisor import Handler
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

_IO_TAG = DOMID_IO + 1
_LAST_IN_PAGE = 4096 - 16
_CHANGES = ((1 << 64) - 1) & ~HARMLESS
"""Bits that cannot change in a present entry without its being validated again."""
_MOVES = FRAME_MASK | PRESENT

Replace = Callable[[int, int, int], int]
"""`replace(index, new, tag)` stores an L1 entry at `memory.q[index]`; `tag` is the owner's, of the frame that it names.

Returns the entry that was there, or -1 if this is not the usual: then nothing has been changed."""


def make_replace(frames: FrameTable) -> Replace:  # noqa: C901 - see below
    """Return the function that does what `write_l1` does, for entries without cache attributes."""
    words, written = frames.memory.q, frames.memory.written
    nr_frames, owners, kinds = frames.frames, frames.owner_tag, frames.type
    counts, type_counts = frames.count, frames.type_count
    put_page, put_page_type = frames.put_page, frames.put_page_type

    def replace(index: int, new: int, tag: int) -> int:  # noqa: C901 - it is five functions
        old = words[index]
        # (Python is quicker with numbers of up to 30 bits.)
        old_bits, bits = old & 0xFFF, new & 0xFFF
        drops = old_bits & PRESENT
        if bits & PRESENT:
            if bits & CACHE_ATTRIBUTES:
                return -1
            # (adjust_l1)
            if not bits & USER:
                new |= GUEST_KERNEL | USER
            elif not new & GUEST_KERNEL:
                new |= GLOBAL
            if drops and not (old ^ new) & _CHANGES:
                drops = 0
            else:
                # (take_l1)
                mfn = (new & FRAME_MASK) >> 12
                if mfn >= nr_frames or owners[mfn] != tag or tag >= _IO_TAG:
                    return -1
                held = counts[mfn]
                if not 0 < held < MAX_COUNT:
                    return -1
                if bits & RW:
                    typed = type_counts[mfn]
                    if not typed:
                        kinds[mfn] = PGT_writable_page
                    elif kinds[mfn] != PGT_writable_page or typed >= MAX_COUNT:
                        return -1
                    type_counts[mfn] = typed + 1
                counts[mfn] = held + 1
        words[index] = new
        written[index >> 9] = 1
        if drops:
            # (put_l1)
            mfn = (old & FRAME_MASK) >> 12
            if mfn < nr_frames and owners[mfn] != _IO_TAG:
                if old_bits & RW:
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
        return old

    return replace


def make_single_update(mm: MemoryManager, replace: Replace, general: Handler) -> Handler:
    """Return the handler of mmu_update: `general`, with a short cut for one L1 entry of the caller's own."""
    frames, words, written = mm.frames, mm.hv.memory.q, mm.hv.memory.written
    leftovers = frames.leftovers
    nr_frames, owners, kinds, flags, type_counts = (
        frames.frames, frames.owner_tag, frames.type, frames.flags, frames.type_count
    )  # fmt: skip

    def mmu_update(vcpu: VCpu, requests: int, count: int, done_ptr: int, foreign: int, a5: int) -> int:
        offset = requests & 0xFFF
        if count == 1 and foreign == xen.DOMID_SELF and not (done_ptr or vcpu.old_tables or offset & 7):
            base = vcpu.tlb_r.get(requests >> 12)
            if base is None:
                base = walk_read(vcpu, requests)
            if offset <= _LAST_IN_PAGE:
                at = base + offset >> 3
                pointer, value = words[at], words[at + 1]
                table, domain = pointer >> 12, vcpu.domain
                tag = domain.domid + 1
                if (
                    not pointer & 7
                    and table < nr_frames
                    and kinds[table] == PGT_l1_page_table
                    and owners[table] == tag
                    and type_counts[table]
                    and flags[table] & VALIDATED
                ):
                    old = replace(pointer >> 3, value, tag)
                    if old >= 0:
                        if old & PRESENT:
                            moves = not old & NX and bool((old ^ value) & _MOVES)
                            for other in domain.vcpus:
                                if other is not None:
                                    other.flush_entry(old, code=moves)
                        return 0
                elif (
                    not value
                    and not pointer & 7
                    and table < nr_frames
                    and PGT_l2_page_table <= kinds[table] <= PGT_l3_page_table
                    and owners[table] == tag
                    and type_counts[table]
                    and flags[table] & VALIDATED
                    and not words[pointer >> 3]
                    and not leftovers
                ):
                    # Nothing instead of nothing: so Linux goes through the tables of what it has never mapped.
                    written[table] = 1
                    return 0
        return general(vcpu, requests, count, done_ptr, foreign, a5)

    return mmu_update
