"""GNTTABOP_copy: Xen copies bytes between two frames; each is the caller's own or named by a grant.

The operation is over before anybody else runs, so a copy's pin is seen by nobody; it is taken all the same in
`copy_one`, since the checks and what becomes of the status bits follow from it. `_copy_run` does in place what backends
do all day: whole-frame version 1 grants that nobody has in use, and own frames.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

import attrs

from hypervisor.abi import grant_table as abi
from hypervisor.abi import xen
from hypervisor.abi.tracepoints import GNTTAB_COPY
from hypervisor.errors import HypercallError
from hypervisor.grant_table.table import WHOLE_FRAME
from hypervisor.grant_table.v1 import ENTRY_MASK
from hypervisor.guest_access import copy_from_guest, copy_to_guest, translate
from hypervisor.mm.frame_table import PGT_writable_page
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.grant_table.table import GrantTable
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_grant_table_op
SIZE = abi.gnttab_copy.size
STATUS = abi.gnttab_copy.offset("status")
CODEC = Struct("<QHH4xQHH4xHH")
"""What goes in: for source and dest the reference or frame, domid, offset; then len and flags."""

SOURCE_GREF, DEST_GREF = abi.GNTCOPY_source_gref, abi.GNTCOPY_dest_gref
BUSY = abi.GTF_reading | abi.GTF_writing


@attrs.frozen
class Side:
    """One claimed end of a copy: a frame, the bytes of it that may be touched, and what to give back."""

    mfn: int
    window: tuple[int, int]
    """(offset, length)."""
    table: GrantTable | None
    ref: int
    typed: bool


Fields = tuple[int, int, int, int, int, int, int, int]


class CopyOps:
    """Copying, for all domains."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self.plain = False
        """Take the general way for everything (tests compare the two)."""

    def copy(self, vcpu: VCpu, va: int, count: int) -> int:
        """Run a batch of `count` copies at guest address `va`; each gets its status. Raises HypercallError(EFAULT)."""
        preempt = self._hv.preempt
        alone = preempt.imminent()
        while count:
            here = min(1 if alone else count, (4096 - (va & 0xFFF)) // SIZE)
            done = 0
            if here and not va & 7 and not self.plain and self._hv.trace is None:
                done = self._try_run(vcpu, va, here)
            if not done:
                status = self.copy_one(vcpu, CODEC.unpack_from(copy_from_guest(vcpu, va, SIZE)))
                copy_to_guest(vcpu, va + STATUS, status.to_bytes(2, "little", signed=True))
                done = 1
            va += done * SIZE
            count -= done
            if count and preempt.check():
                raise Continuation(HYPERCALL, abi.GNTTABOP_copy, va, count)
        return 0

    def _try_run(self, vcpu: VCpu, va: int, count: int) -> int:
        """Do `count` copies whose arguments lie in one page; 0 when it cannot be written (the slow way tells)."""
        try:
            maddr = translate(vcpu, va, write=True)
        except HypercallError:
            return 0
        self._copy_run(vcpu, maddr, count)
        return count

    # -- one operation ------------------------------------------------------------------------------------------------

    def copy_one(self, vcpu: VCpu, fields: Fields) -> int:
        """Copy once; returns the status."""
        status = self._copy(vcpu, *fields)
        trace = self._hv.trace
        if trace is not None:
            source, dest, length = fields[0], fields[3], fields[6]
            trace(vcpu.domain.domid, vcpu.vcpu_id, GNTTAB_COPY, source, dest, length, status)
        return status

    def _copy(
        self,
        vcpu: VCpu,
        source: int,
        source_domid: int,
        source_offset: int,
        dest: int,
        dest_domid: int,
        dest_offset: int,
        length: int,
        flags: int,
    ) -> int:
        reader, writer = self._resolve(vcpu, source_domid), self._resolve(vcpu, dest_domid)
        if reader is None or writer is None:
            return abi.GNTST_bad_domain
        # By frame number only the caller's own memory can be named, and as DOMID_SELF.
        if source_domid != xen.DOMID_SELF and not flags & SOURCE_GREF:
            return abi.GNTST_permission_denied
        origin = self._claim(vcpu, reader, source, by_ref=bool(flags & SOURCE_GREF), readonly=True)
        if isinstance(origin, int):
            return origin
        if dest_domid != xen.DOMID_SELF and not flags & DEST_GREF:
            self._let_go(origin, readonly=True)
            return abi.GNTST_permission_denied
        target = self._claim(vcpu, writer, dest, by_ref=bool(flags & DEST_GREF), readonly=False)
        if isinstance(target, int):
            self._let_go(origin, readonly=True)
            return target
        status = self._move(origin, source_offset, target, dest_offset, length)
        self._let_go(target, readonly=False)
        self._let_go(origin, readonly=True)
        if not status:
            vcpu.domain.grant_table.stats.copies += 1
        return status

    def _resolve(self, vcpu: VCpu, domid: int) -> Domain | None:
        """Return the domain of one end; None if there is none."""
        return vcpu.domain if domid == xen.DOMID_SELF else self._hv.domains.get(domid)

    def _claim(self, vcpu: VCpu, domain: Domain, value: int, *, by_ref: bool, readonly: bool) -> Side | int:
        """Claim one end of a copy, or return a status with nothing claimed."""
        frames = self._hv.frames
        if by_ref:
            table = domain.grant_table
            ref = value & 0xFFFFFFFF
            status = table.acquire_for_copy(ref, vcpu.domain.domid, readonly=readonly)
            if status:
                return status
            side = Side(table.mfn[ref], table.subrange.get(ref, WHOLE_FRAME), table, ref, not readonly)
        else:
            if not frames.get_page(value, domain):
                return abi.GNTST_bad_page
            side = Side(value, WHOLE_FRAME, None, 0, not readonly)
        if not readonly and not frames.get_page_type(side.mfn, PGT_writable_page):
            self._let_go(attrs.evolve(side, typed=False), readonly=readonly)
            return abi.GNTST_general_error
        return side

    def _let_go(self, side: Side, *, readonly: bool) -> None:
        if side.table is not None:
            side.table.release_after_copy(side.ref, readonly=readonly)
        frames = self._hv.frames
        if side.typed:
            frames.put_page_type(side.mfn)
        frames.put_page(side.mfn)

    def _move(self, origin: Side, source_offset: int, target: Side, dest_offset: int, length: int) -> int:
        """Copy bytes between two claimed frames, if page and grants allow the range; returns the status."""
        if source_offset + length > 4096 or dest_offset + length > 4096:
            return abi.GNTST_bad_copy_arg
        for (start, size), offset in ((origin.window, source_offset), (target.window, dest_offset)):
            if offset < start or offset + length > start + size:
                return abi.GNTST_general_error
        memory = self._hv.memory
        move(memory.b, (target.mfn << 12) + dest_offset, (origin.mfn << 12) + source_offset, length)
        memory.written[target.mfn] = 1
        return abi.GNTST_okay

    # -- many operations ----------------------------------------------------------------------------------------------

    def _copy_run(self, vcpu: VCpu, maddr: int, count: int) -> None:
        """Do `count` copies whose arguments lie at machine address `maddr` (8-aligned), in one page.

        Each is read when its turn comes, not before: an earlier one may have been aimed at these very arguments.
        """
        hv = self._hv
        memory, frames, domains = hv.memory, hv.frames, hv.domains
        bytes_, halves, words, written = memory.b, memory.h, memory.q, memory.written
        owner_tag, types, nr_frames = frames.owner_tag, frames.type, frames.frames
        unpack_from = CODEC.unpack_from
        caller = vcpu.domain
        self_tag = caller.domid + 1
        wanted = caller.domid << 16 | abi.GTF_permit_access
        tables: dict[int, tuple[int, list[int], list[int]]] = {}
        written[maddr >> 12] = 1
        out = maddr + STATUS >> 1
        copied = 0
        for at in range(maddr, maddr + count * SIZE, SIZE):
            fields = unpack_from(bytes_, at)
            source, source_domid, source_offset, dest, dest_domid, dest_offset, length, flags = fields
            # A frame number that stays out of range sends the copy the general way.
            if flags & SOURCE_GREF:
                mfn = nr_frames
                known = tables.get(source_domid)
                if known is None:
                    known = tables[source_domid] = self._fast_table(domains, caller, source_domid)
                tag, slots, pins = known
                source &= 0xFFFFFFFF
                if source < len(slots) and not pins[source]:
                    entry = words[slots[source]]
                    if entry & (ENTRY_MASK | BUSY) == wanted:
                        mfn = entry >> 32
            else:
                tag = self_tag
                mfn = source if source_domid == 0x7FF0 else nr_frames
            if mfn < nr_frames and owner_tag[mfn] == tag:
                if flags & DEST_GREF:
                    target = nr_frames
                    known = tables.get(dest_domid)
                    if known is None:
                        known = tables[dest_domid] = self._fast_table(domains, caller, dest_domid)
                    tag, slots, pins = known
                    dest &= 0xFFFFFFFF
                    if dest < len(slots) and not pins[dest]:
                        entry = words[slots[dest]]
                        if entry & (ENTRY_MASK | BUSY | abi.GTF_readonly) == wanted:
                            target = entry >> 32
                else:
                    tag = self_tag
                    target = dest if dest_domid == 0x7FF0 else nr_frames
                if (
                    target != mfn
                    and target < nr_frames
                    and owner_tag[target] == tag
                    and types[target] == PGT_writable_page
                    and source_offset + length <= 4096
                    and dest_offset + length <= 4096
                ):
                    start, end = (mfn << 12) + source_offset, (target << 12) + dest_offset
                    bytes_[end : end + length] = bytes_[start : start + length]
                    written[target] = 1
                    halves[out] = 0
                    out += 20
                    copied += 1
                    continue
            halves[out] = self.copy_one(vcpu, fields) & 0xFFFF
            out += 20
        caller.grant_table.stats.copies += copied

    def _fast_table(self, domains: dict[int, Domain], caller: Domain, domid: int) -> tuple[int, list[int], list[int]]:
        """Return what `_copy_run` needs of a granter: owner tag, entries, pins; no entries if it is not to be used."""
        domain = caller if domid == xen.DOMID_SELF else domains.get(domid)
        if domain is None or domain.is_dying or domain.grant_table.version != 1:
            return 0, [], []
        return domain.domid + 1, domain.grant_table.slot, domain.grant_table.pin


def move(memory: memoryview, dest: int, source: int, length: int) -> None:
    """Copy bytes as Xen's memcpy does: upwards, eight at a time, then one at a time.

    It shows when the destination begins within the source: what was just written is read, and copied again.
    """
    if not 0 < dest - source < length:
        memory[dest : dest + length] = memory[source : source + length]
        return
    words = length & ~7
    for at in range(0, words, 8):
        memory[dest + at : dest + at + 8] = bytes(memory[source + at : source + at + 8])
    for at in range(words, length):
        memory[dest + at] = memory[source + at]
