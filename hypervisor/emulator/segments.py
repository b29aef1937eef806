"""Segment registers as Xen loads them for a guest, and a vCPU's descriptor tables in its domain's own area."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.emulator.binding import BASE_AT, CS, DS, ES, FS, GDT, GS, HF_CS32, HF_CS64, HFLAGS, LDT, SELECTOR_AT, SS
from hypervisor.errors import InvariantError
from hypervisor.mm.descriptors import FIRST_RESERVED_GDT_PAGE
from hypervisor.mm.pte import ACCESSED, DIRTY, PRESENT, RW
from hypervisor.mm.xen_slots import PAGES_PER_VCPU, PERDOMAIN_START

if TYPE_CHECKING:
    from hypervisor.emulator.binding import Binding
    from hypervisor.emulator.vcpu import EmulatedVCpu
    from hypervisor.hypervisor import Hypervisor

LDT_PAGE = 16
SUPERVISOR = PRESENT | RW | ACCESSED | DIRTY
"""Guests do not see these pages; the processor, which loads descriptors as a supervisor, does."""

TSS_SELECTOR, LDT_SELECTOR = 0xE040, 0xE048
_FLAT = {
    xen.FLAT_RING3_CS32: 0x00CFFB000000FFFF,
    xen.FLAT_RING3_SS32: 0x00CFF3000000FFFF,
    xen.FLAT_RING3_CS64: 0x00AFFB000000FFFF,
}
_PRESENT_BIT, _CODE_OR_DATA = 1 << 47, 1 << 44
_LONG, _BIG, _GRANULAR = 1 << 53, 1 << 54, 1 << 55
_ATTRIBUTES = 0x00F0FF00
"""The bits of a descriptor's upper half that the CPU keeps as a segment's flags."""


class Segments:
    """The host's reserved GDT page, and the loading of selectors into the emulated CPU."""

    FRAMES = 2
    """What it takes of machine memory for good."""

    def __init__(self, hv: Hypervisor, cpu: Binding) -> None:
        self._hv = hv
        self._cpu = cpu
        self._memory = hv.memory
        self.reserved_page = hv.frames.alloc_aside()
        self._empty_page = hv.frames.alloc_aside()
        if min(self.reserved_page, self._empty_page) < 0:
            raise InvariantError("no memory for Xen's descriptors")
        for selector, descriptor in _FLAT.items():
            self._memory.q[(self.reserved_page << 9) + (selector >> 3 & 511)] = descriptor

    @staticmethod
    def area(vcpu: EmulatedVCpu) -> int:
        """Return the address of the vCPU's GDT in its domain's own part of the address space."""
        return PERDOMAIN_START + vcpu.vcpu_id * PAGES_PER_VCPU * 4096

    def sync(self, vcpu: EmulatedVCpu) -> None:
        """Map the GDT and the LDT that the guest has set since."""
        context = vcpu.context
        tables = self._hv.mm.slots.map_area(vcpu.domain.domid, len(vcpu.domain.vcpus) * PAGES_PER_VCPU)
        if not tables:
            raise MemoryError
        first = vcpu.vcpu_id * PAGES_PER_VCPU
        base = (tables[first >> 9] << 9) + (first & 511)
        q = self._memory.q
        for index in range(LDT_PAGE):
            mfn = context.gdt_frames[index] if index < len(context.gdt_frames) else self._empty_page
            q[base + index] = mfn << 12 | SUPERVISOR
        q[base + FIRST_RESERVED_GDT_PAGE] = self.reserved_page << 12 | SUPERVISOR
        for index in range(LDT_PAGE, PAGES_PER_VCPU):
            q[base + index] = 0
        vcpu.gdt_loaded = context.gdt_frames
        vcpu.ldt_loaded = context.ldt
        vcpu.tlb_is_stale = True

    def map_ldt(self, vcpu: EmulatedVCpu, offset: int) -> bool:
        """Map the page of the LDT that the processor missed; False if the guest has no such page."""
        mfn = self._hv.mm.descriptors.map_ldt_page(vcpu, offset)
        if mfn < 0:
            return False
        tables = self._hv.mm.slots.map_area(vcpu.domain.domid, len(vcpu.domain.vcpus) * PAGES_PER_VCPU)
        page = vcpu.vcpu_id * PAGES_PER_VCPU + LDT_PAGE + (offset >> 12)
        self._memory.q[(tables[page >> 9] << 9) + (page & 511)] = mfn << 12 | SUPERVISOR
        return True

    def unmap_ldt(self, vcpu: EmulatedVCpu) -> None:
        """Unmap all pages of the LDT: the processor will miss them at their next use."""
        tables = self._hv.mm.slots.map_area(vcpu.domain.domid, len(vcpu.domain.vcpus) * PAGES_PER_VCPU)
        first = vcpu.vcpu_id * PAGES_PER_VCPU + LDT_PAGE
        at = (tables[first >> 9] << 9) + (first & 511)
        for index in range(at, at + PAGES_PER_VCPU - LDT_PAGE):
            self._memory.q[index] = 0

    def load_tables(self, vcpu: EmulatedVCpu) -> None:
        """Point the CPU to the descriptor tables of a vCPU."""
        cpu = self._cpu
        area = self.area(vcpu)
        cpu.q[BASE_AT[GDT]] = area
        cpu.i[SELECTOR_AT[GDT] + 4] = 0xFFFF
        entries = vcpu.context.ldt_ents
        cpu.i[SELECTOR_AT[LDT]] = LDT_SELECTOR if entries else 0
        cpu.q[BASE_AT[LDT]] = area + LDT_PAGE * 4096
        cpu.i[SELECTOR_AT[LDT] + 4] = entries * 8 - 1 if entries else 0
        cpu.i[SELECTOR_AT[LDT] + 5] = 0x8200 if entries else 0

    def descriptor(self, vcpu: EmulatedVCpu, selector: int) -> int:
        """Return the descriptor that a selector names; 0 if there is none."""
        index = selector >> 3
        q = self._memory.q
        if selector & 4:
            mfn = self._hv.mm.descriptors.map_ldt_page(vcpu, index * 8)
            return q[(mfn << 9) + (index & 511)] if mfn >= 0 else 0
        page = index >> 9
        if page == FIRST_RESERVED_GDT_PAGE:
            return q[(self.reserved_page << 9) + (index & 511)]
        frames = vcpu.context.gdt_frames
        return q[(frames[page] << 9) + (index & 511)] if page < len(frames) else 0

    def load(self, vcpu: EmulatedVCpu, segment: int, selector: int) -> bool:
        """Load a data segment register; False, and a null selector loaded, if the processor would fault."""
        good = True
        descriptor = 0
        if selector & ~3:
            descriptor = self.descriptor(vcpu, selector)
            readable = not descriptor & 1 << 43 or bool(descriptor & 1 << 41)
            good = bool(descriptor & _PRESENT_BIT) and bool(descriptor & _CODE_OR_DATA) and readable
        if not good:
            selector = descriptor = 0
        self._fill(segment, selector, descriptor)
        return good

    def load_code(self, vcpu: EmulatedVCpu, selector: int) -> bool:
        """Load CS, always for ring 3; False, and nothing loaded, if the processor would fault."""
        descriptor = self.descriptor(vcpu, selector)
        wanted = _PRESENT_BIT | _CODE_OR_DATA | 1 << 43
        if descriptor & wanted != wanted or (descriptor & _LONG and descriptor & _BIG):
            return False
        self._fill(CS, selector, descriptor)
        flags = self._cpu.i[HFLAGS] & ~(HF_CS32 | HF_CS64)
        if descriptor & _LONG:
            flags |= HF_CS64 | HF_CS32
        elif descriptor & _BIG:
            flags |= HF_CS32
        self._cpu.i[HFLAGS] = flags
        return True

    def load_stack(self, vcpu: EmulatedVCpu, selector: int) -> bool:
        """Load SS, always for ring 3; False, and nothing loaded, if the processor would fault."""
        if not selector & ~3:
            self._fill(SS, selector, 0)
            return True
        descriptor = self.descriptor(vcpu, selector)
        wanted = _PRESENT_BIT | _CODE_OR_DATA | 1 << 41
        if descriptor & wanted != wanted or descriptor & 1 << 43:
            return False
        self._fill(SS, selector, descriptor)
        return True

    def _fill(self, segment: int, selector: int, descriptor: int) -> None:
        """Put a descriptor into the hidden part of a segment register."""
        i, at = self._cpu.i, SELECTOR_AT[segment]
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        if descriptor & _GRANULAR:
            limit = limit << 12 | 0xFFF
        i[at] = selector
        i[at + 4] = limit
        i[at + 5] = descriptor >> 32 & _ATTRIBUTES
        if segment not in (FS, GS) or selector & ~3:
            self._cpu.q[BASE_AT[segment]] = descriptor >> 16 & 0xFFFFFF | descriptor >> 32 & 0xFF000000


DATA_SEGMENTS = (ES, DS, FS, GS)
