"""A vCPU that executes x86-64 machine code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.mm.pte import FRAME_MASK
from hypervisor.vcpu import NO_LDT, Context, VCpu

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.emulator.processor import Processor

MASK_BYTE = 1
FEW_ROOTS = 8
"""Of so many page tables translations are remembered."""


class Tlb(dict[int, int]):
    """Machine addresses of pages by their numbers, which a set has all of."""

    __slots__ = ("_frames",)

    def __init__(self, frames: set[int]) -> None:
        super().__init__()
        self._frames = frames

    def __setitem__(self, page: int, base: int) -> None:
        self._frames.add(base)
        super().__setitem__(page, base)


class EmulatedVCpu(VCpu):
    """What the scheduler sees of it. The work is done by the host's `Processor`, which turns to one vCPU at a time.

    Between two runs all of its state is here: the registers in `context`, the FPU in `fpu` (the emulator's own form).
    """

    __slots__ = (
        "fpu",
        "gdt_loaded",
        "ldt_loaded",
        "processor_of_host",
        "resumes_at",
        "tlb_frames",
        "tlb_is_stale",
        "tlbs",
        "translations",
        "translations_at",
    )

    def __init__(self, domain: Domain, vcpu_id: int) -> None:
        super().__init__(domain, vcpu_id)
        self.processor_of_host: Processor | None = None
        self.fpu = b""
        """Empty: as after a reset."""
        self.gdt_loaded: list[int] | None = None
        """The `gdt_frames` that are mapped in the domain's own area for this vCPU; None: nothing is."""
        self.ldt_loaded = NO_LDT
        self.resumes_at = -1
        """Where it has returned to with RF set: a breakpoint there lets the instruction pass once."""
        self.tlb_is_stale = True
        """The emulated CPU may hold translations that the page tables no longer say."""
        self.tlb_frames: set[int] = set()
        """The machine addresses of all pages to which what is remembered leads, below whichever root."""
        self.tlb_r, self.tlb_w = Tlb(self.tlb_frames), Tlb(self.tlb_frames)
        self.tlbs: dict[int, tuple[dict[int, int], dict[int, int]]] = {0: (self.tlb_r, self.tlb_w)}
        """`tlb_r` and `tlb_w` of the roots that were loaded last, that of the present one among them."""
        self.translations = sys.maxsize
        self.translations_at = 0
        """How many blocks of code may still be translated without cost, and when that was so."""

    def run(self) -> int:
        """Execute until the guest gives the processor back, or a timer or the end of its time slice comes."""
        processor = self.processor_of_host
        if processor is None:
            processor = self.processor_of_host = self.hv.processor()
            processor.breakpoints.changed(self)
        return processor.run(self)

    def deliver_upcall(self) -> None:
        """Do nothing: upcalls are delivered by `run`, which never leaves computing to be done."""

    def ldt_dropped(self) -> None:
        """Unmap the pages of the LDT from the domain's own area."""
        if self.ldt_loaded[1] and self.processor_of_host is not None:
            self.processor_of_host.segments.unmap_ldt(self)
            self.tlb_is_stale = True

    def must_interrupt(self) -> bool:
        """Whether an event waits that a hypercall in progress should make room for."""
        b, info = self.hv.memory.b, self.info
        return bool(b[info]) and not b[info + MASK_BYTE]

    def flush_tlb(self, va: int | None, *, code: bool = True) -> None:
        """Forget the translation of one page, or of all (None)."""
        self.tlb_is_stale = True
        self.sent_arg = -1
        if va is None:
            self._forget_all()
        else:
            for reads, writes in self.tlbs.values():
                reads.pop(va >> 12, None)
                writes.pop(va >> 12, None)
        if code and self.processor_of_host is not None:
            self.processor_of_host.forget_page(va)

    def flush_entry(self, entry: int, *, code: bool = True) -> None:
        """Forget the pages that were translated by an L1 entry, below whichever root."""
        self.tlb_is_stale = True
        self.sent_arg = -1
        base = entry & FRAME_MASK
        if base in self.tlb_frames:
            self._forget_all()
        if code and self.processor_of_host is not None:
            self.processor_of_host.forget_frame(base >> 12)

    def _forget_all(self) -> None:
        self.tlb_r.clear()
        self.tlb_w.clear()
        self.tlb_frames.clear()
        self.tlbs = {self.kernel_cr3: (self.tlb_r, self.tlb_w)}

    def remembered(self) -> dict[int, tuple[dict[int, int], dict[int, int]]]:
        """Return all that is remembered: for each root `tlb_r` and `tlb_w`."""
        return {**self.tlbs, **super().remembered()}

    def root_loaded(self) -> None:
        """Go on with what is known of the page tables below `kernel_cr3`.

        That stays true while they are not loaded: whoever changes an entry has it forgotten below all roots.
        """
        self.tlb_is_stale = True
        self.sent_arg = -1
        root, tlbs = self.kernel_cr3, self.tlbs
        known = tlbs.get(root)
        if known is None:
            if len(tlbs) >= FEW_ROOTS:
                tlbs.clear()
            known = tlbs[root] = Tlb(self.tlb_frames), Tlb(self.tlb_frames)
        self.tlb_r, self.tlb_w = known

    def forget_root(self, root: int) -> None:
        """Forget what is known of the page tables that were below a frame once."""
        self.tlbs.pop(root, None)

    def iret(self) -> int:
        """HYPERVISOR_iret: take all registers from the frame on the guest's stack."""
        processor = self.processor_of_host
        assert processor is not None
        return processor.iret(self)

    def set_segment_base(self, which: int, base: int) -> None:
        """Set the base of FS, or of GS in user or kernel mode."""
        super().set_segment_base(which, base)
        if which != xen.SEGBASE_GS_USER and self.processor_of_host is not None:
            self.processor_of_host.set_segment_base(self, which, base)

    def load_user_gs(self, selector: int) -> None:
        """Load the GS of user mode with a selector, from the guest's tables."""
        if self.processor_of_host is not None:
            self.processor_of_host.load_user_gs(self, selector)

    def set_task_switched(self, is_set: bool) -> None:
        """Set or clear CR0.TS, in the CPU too."""
        super().set_task_switched(is_set)
        if self.processor_of_host is not None:
            self.processor_of_host.set_cr0(self)

    def registers(self) -> Context:
        """Return the registers as they are at this very moment."""
        if self.processor_of_host is not None:
            self.processor_of_host.save(self)
        return self.context

    def fpu_image(self) -> bytes:
        """Return the state of FPU and SSE as FXSAVE stores it."""
        processor = self.processor_of_host
        if self.context.fpu_image or processor is None:
            return self.context.fpu_image
        return processor.fpu_image(self)

    def registers_replaced(self) -> None:
        """Take note that `context` holds registers from elsewhere: the next run begins with those, and a fresh FPU."""
        self.fpu = b""
        if self.processor_of_host is not None:
            self.processor_of_host.unload(self)

    def debugreg_changed(self) -> None:
        """Let the CPU know of breakpoints; one that is made later asks for them itself."""
        if self.processor_of_host is not None:
            self.processor_of_host.breakpoints.changed(self)

    def callbacks_changed(self) -> None:
        """Do nothing: entry points are looked up when they are entered."""

    def halt(self) -> None:
        """Forget the code that was running: there is nothing but the registers."""
        self.fpu = b""
        if self.processor_of_host is not None:
            self.processor_of_host.breakpoints.forget(self)
            self.processor_of_host.unload(self)
