"""The recount: every reference and every type of every frame, computed anew from what is in use.

`check(hv)` derives both counts of each frame from the page tables that are in use, the pins, the roots loaded in vCPUs,
the owners' rights and whoever else holds references (`MemoryManager.holders`), and compares. It knows nothing of how
the counts got where they are, so any operation that forgets or doubles a reference shows at once.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypervisor.errors import InvariantError
from hypervisor.machine.firmware import IO_FRAMES
from hypervisor.mm.frame_table import (
    ALLOCATED,
    DOMID_IO,
    DOMID_XEN,
    KEPT,
    OWN_PARTIAL,
    PARTIAL,
    PINNED,
    VALIDATED,
    XEN_HEAP,
    FrameTable,
    PGT_l1_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from hypervisor.mm.pte import ENTRIES, FIRST_XEN_SLOT, FRAME_MASK, LAST_XEN_SLOT, PRESENT, RW, USER

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu


class _Recount:
    """Counts gathered so far: references by frame, type references by frame and type."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.frames: FrameTable = hv.frames
        self.references: Counter[int] = Counter()
        self.types: Counter[tuple[int, int]] = Counter()
        self.linear: Counter[int] = Counter()

    def hold(self, mfn: int, kind: int = PGT_none) -> None:
        self.references[mfn] += 1
        if kind:
            self.types[mfn, kind] += 1

    # -- who holds what ---------------------------------------------------------------------------------------------

    def count_frame(self, mfn: int) -> None:
        """Count what the state of a domain's frame itself holds, and what its entries hold if it is a page table."""
        frames = self.frames
        flags, kind = frames.flags[mfn], frames.type[mfn]
        if flags & ALLOCATED:
            self.hold(mfn, kind if flags & XEN_HEAP else PGT_none)
            if flags & XEN_HEAP and kind == PGT_none:
                self.types[mfn, kind] += 1
        if flags & PINNED:
            self.hold(mfn, kind)
        if flags & OWN_PARTIAL:
            self.hold(mfn, kind)
        if PGT_l1_page_table <= kind <= PGT_l4_page_table and frames.type_count[mfn]:
            self.count_table(mfn, kind)

    def count_table(self, mfn: int, level: int) -> None:
        frames = self.frames
        flags = frames.flags[mfn]
        if not flags & (VALIDATED | PARTIAL):
            raise InvariantError(f"frame {mfn:#x} is a page table in use that is not validated")
        used = ENTRIES if flags & VALIDATED else frames.progress[mfn]
        if flags & VALIDATED and frames.progress[mfn] != ENTRIES:
            raise InvariantError(f"frame {mfn:#x} is validated, but its progress is {frames.progress[mfn]}")
        for index, entry in enumerate(frames.memory.q[mfn << 9 : (mfn << 9) + used]):
            if not entry & PRESENT or (level == PGT_l4_page_table and FIRST_XEN_SLOT <= index <= LAST_XEN_SLOT):
                continue
            if not entry & USER:
                raise InvariantError(f"entry {index} of table {mfn:#x} lacks USER")
            self.count_entry(mfn, level, (entry & FRAME_MASK) >> 12, entry)

    def count_entry(self, mfn: int, level: int, target: int, entry: int) -> None:
        frames = self.frames
        if level == PGT_l1_page_table:
            if target < frames.frames and frames.owner_tag[target] != DOMID_IO + 1:
                self.hold(target, PGT_writable_page if entry & RW else PGT_none)
        elif target != mfn:
            kind = level - 1
            if frames.type[target] == level:
                kind = level
                self.linear[mfn] -= 1
                self.linear[target] += 1
            self.hold(target, kind)
        elif entry & RW:
            raise InvariantError(f"table {mfn:#x} maps itself writable")

    def count_holders(self) -> None:
        mm = self.hv.mm
        for domain in self.hv.domains.values():
            for vcpu in domain.online_vcpus():
                for root in (vcpu.kernel_cr3, vcpu.user_cr3):
                    if root:
                        self.hold(root, PGT_l4_page_table)
                for mfn in vcpu.context.gdt_frames:
                    self.hold(mfn, PGT_seg_desc_page)
            for mfn in mm.held[domain.domid]:
                self.hold(mfn, PGT_writable_page)
        for pages in mm.ldt_pages.values():
            for mfn in pages.values():
                self.hold(mfn, PGT_seg_desc_page)
        for holder in mm.holders:
            for mfn, kind in holder():
                self.hold(mfn, kind)


def check(hv: Hypervisor) -> None:
    """Compare all counts with a recount. Raises InvariantError naming the first frame that differs."""
    frames = hv.frames
    recount = _Recount(hv)
    owned = _owned(hv)
    uncommon = [
        mfn for mfn in owned if frames.count[mfn] != 1 or frames.flags[mfn] != ALLOCATED or frames.type_count[mfn]
    ]
    for mfn in uncommon:
        recount.count_frame(mfn)
    recount.count_holders()
    types: dict[int, dict[int, int]] = {}
    for (mfn, kind), number in recount.types.items():
        types.setdefault(mfn, {})[kind] = number
    for mfn in uncommon:
        _compare(frames, mfn, recount.references.pop(mfn, 0), types.pop(mfn, {}))
    # The others, nearly all there are, say that their owner has a right to them and nobody uses them. So nobody may.
    for mfn, references in recount.references.items():
        if frames.owner(mfn) != DOMID_XEN:
            if mfn in owned:
                _compare(frames, mfn, references + 1, types.get(mfn, {}))
            raise InvariantError(f"frame {mfn:#x} is in use, but belongs to nobody who is there")
    if {mfn: uses for mfn, uses in recount.linear.items() if uses} != frames.linear:
        raise InvariantError(f"linear page tables: {frames.linear} are counted, {dict(recount.linear)} are in use")
    _check_partial(frames, uncommon)
    _check_free(hv, len(owned))
    _check_tlbs(hv)


def _owned(hv: Hypervisor) -> list[int]:
    """List all frames that belong to domains, checking the lists, their lengths and tot_pages."""
    frames = hv.frames
    owned: list[int] = []
    for domain in hv.domains.values():
        own = list(frames.pages(frames.page_list(domain)))
        lent = list(frames.pages(frames.xen_page_list(domain)))
        if len(own) != domain.tot_pages or len(own) != frames.page_list(domain).length:
            raise InvariantError(f"{domain} has {len(own)} frames in its list and {domain.tot_pages} by its count")
        owners = set(map(frames.owner_tag.__getitem__, own + lent))
        for mfn in own + lent if owners - {domain.domid + 1} else ():
            if frames.owner(mfn) != domain.domid:
                raise InvariantError(f"frame {mfn:#x} is in the list of {domain} and owned by {frames.owner(mfn)}")
        if 0 in map(frames.count.__getitem__, own):
            mfn = next(mfn for mfn in own if not frames.count[mfn])
            raise InvariantError(f"frame {mfn:#x} of {domain} has an owner and no reference")
        for mfn in lent:
            if not frames.flags[mfn] & (ALLOCATED | KEPT) and not frames.count[mfn]:
                raise InvariantError(f"frame {mfn:#x}, lent to {domain}, is used by nobody")
        owned += own + lent
    return owned


def _compare(frames: FrameTable, mfn: int, references: int, held: dict[int, int]) -> None:
    count, type_count, kind = frames.count[mfn], frames.type_count[mfn], frames.type[mfn]
    if count != references:
        raise InvariantError(f"frame {mfn:#x} counts {count} references, {references} are in use")
    if sum(held.values()) != type_count or any(other != kind for other in held):
        raise InvariantError(f"frame {mfn:#x} counts {type_count} uses as type {kind}, in use are {held}")


def _check_partial(frames: FrameTable, uncommon: list[int]) -> None:
    """The tables that hold themselves are known, and what a hypercall leaves behind is among them."""
    partial = {mfn for mfn in uncommon if frames.flags[mfn] & OWN_PARTIAL}
    if partial != set(frames.partial):
        raise InvariantError(f"frames {sorted(partial)} hold themselves, {sorted(frames.partial)} are known to")
    for mfn in partial:
        if not frames.flags[mfn] & PARTIAL or frames.type_count[mfn] != 1:
            raise InvariantError(f"frame {mfn:#x} holds itself and is in use besides, or complete")


def _check_free(hv: Hypervisor, owned: int) -> None:
    """Every frame is a domain's, Xen's, the machine's or free, and a free one has no history."""
    frames = hv.frames
    if owned + frames.xen_frames + frames.free_frames + IO_FRAMES != frames.frames:
        raise InvariantError(
            f"{frames.frames} frames: {owned} of domains, {frames.xen_frames} of Xen, {frames.free_frames} free"
        )
    for start, length in frames.heap.blocks():
        end = start + length
        for name, array in (
            ("owner", frames.owner_tag),
            ("count", frames.count),
            ("type count", frames.type_count),
            ("flag", frames.flags),
        ):
            if any(array[start:end].tobytes()):
                raise InvariantError(f"a frame in {start:#x}-{end:#x} is free and has a {name}")
        if frames.m2p[start:end].tobytes().strip(b"\xff"):
            raise InvariantError(f"a frame in {start:#x}-{end:#x} is free and a page by the M2P")


def _check_tlbs(hv: Hypervisor) -> None:
    """Every remembered translation is what the page tables say."""
    for domain in hv.domains.values():
        for vcpu in domain.online_vcpus():
            for root, (reads, writes) in vcpu.remembered().items():
                if root == vcpu.kernel_cr3 or _is_root(hv, root):
                    _check_tlb(hv, vcpu, root, reads, write=False)
                    _check_tlb(hv, vcpu, root, writes, write=True)


def _is_root(hv: Hypervisor, mfn: int) -> bool:
    """Whether page tables below a frame can be loaded as they are; before it becomes a root anew, all is forgotten."""
    frames = hv.frames
    return (
        frames.type[mfn] == PGT_l4_page_table and bool(frames.type_count[mfn]) and bool(frames.flags[mfn] & VALIDATED)
    )


def _check_tlb(hv: Hypervisor, vcpu: VCpu, root: int, tlb: dict[int, int], *, write: bool) -> None:
    for vpn, base in tlb.items():
        if _translate(hv, root, vpn << 12, write) != base:
            raise InvariantError(f"{vcpu} remembers {base:#x} for {vpn << 12:#x} (root: {root:#x}, write: {write})")


def _translate(hv: Hypervisor, root: int, va: int, write: bool) -> int:
    """Walk page tables without touching accessed and dirty bits; -1 for a fault."""
    need = PRESENT | USER | (RW if write else 0)
    table = root << 12
    for shift in (39, 30, 21, 12):
        entry = hv.memory.q[(table >> 3) + (va >> shift & 511)]
        if entry & need != need:
            return -1
        table = entry & FRAME_MASK
    return table
