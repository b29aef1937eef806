"""Segment descriptors: which ones a guest may have in its GDT and LDT, and how Xen alters them.

A guest kernel runs in ring 3 on x86-64, so no descriptor may grant ring 0. Present code and data segments get DPL 3;
system descriptors other than call gates are refused, as they would let the processor leave the rings that Xen
controls. Layout of a descriptor: the processor's manual, volume 3, "Segment Descriptors".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, copy_from_guest, walk
from hypervisor.mm.frame_table import PGT_seg_desc_page, PGT_writable_page
from hypervisor.mm.pte import ENTRIES

if TYPE_CHECKING:
    from hypervisor.hypervisor import Handler
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

_U64 = 0xFFFFFFFFFFFFFFFF
_SEG_PRESENT = 1 << 47
_SEG_CODE_OR_DATA = 1 << 44
_SEG_TYPE_SHIFT, _SEG_TYPE_MASK = 40, 0xF
_SEG_DPL_SHIFT = 45
_CALL_GATE = 0xC
_GATE_SELECTOR_SHIFT = 16
_GATE_RESERVED = 0xFF << 32
_FLAT_KERNEL_CS = 0xE033

FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_ENTRY = FIRST_RESERVED_GDT_PAGE * 512
"""Entries from here on are Xen's own (xen.h of arch-x86: FIRST_RESERVED_GDT_BYTE)."""
MAX_LDT_ENTRIES = 8192


def fix(descriptor: int) -> int:
    """Return a descriptor as a guest may have it, privilege raised where needed; -1 if it may not."""
    if not descriptor & _SEG_PRESENT:
        return descriptor
    if descriptor & _SEG_CODE_OR_DATA:
        return descriptor | 3 << _SEG_DPL_SHIFT
    kind = descriptor >> _SEG_TYPE_SHIFT & _SEG_TYPE_MASK
    if kind == 0:
        return descriptor  # the upper half of a call gate
    if kind != _CALL_GATE or descriptor & _GATE_RESERVED:
        return -1
    return _fix_call_gate(descriptor)


def _fix_call_gate(gate: int) -> int:
    """Make a call gate fault, so that Xen emulates it: gate DPL 0, and the guest's (3) in the selector's RPL."""
    selector = gate >> _GATE_SELECTOR_SHIFT & 0xFFFF
    if not selector & 4 and selector >> 3 >= FIRST_RESERVED_GDT_ENTRY and selector != _FLAT_KERNEL_CS:
        return -1
    gate &= ~(3 << _SEG_DPL_SHIFT) & ~(3 << _GATE_SELECTOR_SHIFT)
    return gate | 3 << _GATE_SELECTOR_SHIFT


def validate_page(q: memoryview, mfn: int) -> bool:
    """Check the 512 descriptors of a frame and store them as altered; False at the first one that may not be."""
    base = mfn << 9
    for index in range(base, base + 512):
        descriptor = q[index]
        if descriptor:
            fixed = fix(descriptor)
            if fixed < 0:
                return False
            if fixed != descriptor:
                q[index] = fixed
    return True


class DescriptorTables:
    """HYPERVISOR_set_gdt and HYPERVISOR_update_descriptor, and the references that loaded tables hold."""

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._frames = mm.frames
        self._memory = mm.frames.memory
        self.hypercalls: dict[int, Handler] = {
            xen.HYPERVISOR_set_gdt: self._set_gdt,
            xen.HYPERVISOR_update_descriptor: self._update_descriptor,
        }

    def set_gdt(self, vcpu: VCpu, frames: list[int], entries: int) -> None:
        """Load a GDT of `entries` descriptors in `frames`. Raises HypercallError(EINVAL); then the old one stays."""
        if entries > FIRST_RESERVED_GDT_ENTRY:
            raise HypercallError(errno.EINVAL)
        table = self._frames
        needed = frames[: -(-entries // ENTRIES)]
        taken: list[int] = []
        for mfn in needed:
            if not table.get_page_and_type(mfn, vcpu.domain, PGT_seg_desc_page):
                for done in taken:
                    table.put_page_and_type(done)
                raise HypercallError(errno.EINVAL)
            taken.append(mfn)
        self._drop_gdt(vcpu)
        vcpu.context.gdt_frames = taken
        vcpu.context.gdt_ents = entries

    def _drop_gdt(self, vcpu: VCpu) -> None:
        frames, vcpu.context.gdt_frames = vcpu.context.gdt_frames, []
        vcpu.context.gdt_ents = 0
        for mfn in frames:
            self._frames.put_page_and_type(mfn)

    def set_ldt(self, vcpu: VCpu, base: int, entries: int) -> None:
        """Load an LDT (MMUEXT_SET_LDT). Its pages are checked when first used. Raises HypercallError(EINVAL)."""
        if entries > MAX_LDT_ENTRIES or (entries and (base & 0xFFF or not access_ok(base))):
            raise HypercallError(errno.EINVAL)
        self.drop_ldt(vcpu)
        vcpu.context.set_ldt(base, entries)

    def map_ldt_page(self, vcpu: VCpu, offset: int) -> int:
        """Check the page of the LDT with the byte `offset` at its first use; returns its frame, or -1 for a fault."""
        if offset >> 3 >= vcpu.context.ldt_ents:
            return -1
        index = offset >> 12
        held = self._mm.ldt_pages.setdefault((vcpu.domain.domid, vcpu.vcpu_id), {})
        if index in held:
            return held[index]
        base = walk(vcpu, vcpu.context.ldt_base + (index << 12), write=False)
        if base < 0 or not self._frames.get_page_and_type(base >> 12, vcpu.domain, PGT_seg_desc_page):
            return -1
        held[index] = base >> 12
        return base >> 12

    def drop_ldt(self, vcpu: VCpu) -> None:
        """Forget the LDT pages that were in use; they are found again by address at the next use."""
        for mfn in self._mm.ldt_pages.pop((vcpu.domain.domid, vcpu.vcpu_id), {}).values():
            self._frames.put_page_and_type(mfn)
        vcpu.ldt_dropped()

    def destroy(self, vcpu: VCpu) -> None:
        """Drop all descriptor tables of a vCPU."""
        self.drop_ldt(vcpu)
        vcpu.context.set_ldt(0, 0)
        self._drop_gdt(vcpu)

    def _set_gdt(self, vcpu: VCpu, frame_list: int, entries: int, _a3: int, _a4: int, _a5: int) -> int:
        entries &= 0xFFFFFFFF
        if entries > FIRST_RESERVED_GDT_ENTRY:
            return -errno.EINVAL
        raw = copy_from_guest(vcpu, frame_list, -(-entries // ENTRIES) * 8)
        self.set_gdt(vcpu, list(memoryview(raw).cast("Q")), entries)
        return 0

    def _update_descriptor(self, vcpu: VCpu, maddr: int, descriptor: int, _a3: int, _a4: int, _a5: int) -> int:
        """Store one descriptor in a descriptor table in use, or in a page that may become one."""
        maddr &= _U64
        fixed = fix(descriptor & _U64)
        mfn = maddr >> 12
        frames = self._frames
        if maddr & 7 or fixed < 0 or not frames.get_page(mfn, vcpu.domain):
            return -errno.EINVAL
        kind = PGT_seg_desc_page if frames.type[mfn] == PGT_seg_desc_page else PGT_writable_page
        try:
            if frames.take_type(mfn, kind):
                return -errno.EINVAL
            self._memory.write(maddr, fixed.to_bytes(8, "little"))
            frames.put_page_type(mfn)
        finally:
            frames.put_page(mfn)
        return 0
