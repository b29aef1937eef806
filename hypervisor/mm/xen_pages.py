"""What Xen takes of the heap for itself: pages that no guest sees, and that still say where the next guest page lies.

Here a domain's books are Python objects and need no frames. A real Xen has them in pages, and hands single pages out
from the top of its heap downwards: a kernel that looks at machine addresses sees how many were taken before. So on a
host that was booted, with Xen in its memory, they are taken here, too: the tables say for what, in the order in which
Xen 4.17 does so (release build, x86, two pages of a small-block pool where several small things share them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hypervisor.mm.frame_table import FrameTable

PAGE_SIZE: Final = 4096
IRQ_DESC_SIZE: Final = 256
IRQS_PER_CPU: Final = 208
"""16 legacy lines and 192 dynamic vectors (init_irq_data)."""
ACTIVE_PER_PAGE: Final = 102
"""Entries of the active grant table, of 40 bytes each, in a page (ACGNT_PER_PAGE)."""
SHARED_V1_PER_PAGE: Final = 512


class Take(NamedTuple):
    """One allocation: a block of 2**order frames, of which the first `keep` stay taken (0: all)."""

    order: int
    what: str
    keep: int = 0


BEFORE_M2P: Final = (
    Take(0, "bitmap of the virtual area for vmap (vm_init_type)"),
    Take(0, "L2 table of that area"),
    Take(0, "L1 table of that area"),
    Take(3, "stack of CPU 0 (cpu_alloc_stack)"),
    Take(0, "L3 table of Xen's own view of the M2P (paging_init)"),
)
"""What Xen takes from when it has a heap until it makes the tables by which guests see the M2P (`XenSlots`)."""


def boot_takes(pcpus: int) -> list[Take]:
    """Return what Xen takes from then until it makes dom0.

    In a machine with SVM, whose firmware has ACPI tables: a PC as QEMU makes it.
    """
    irq_pages = -(-IRQS_PER_CPU * pcpus * IRQ_DESC_SIZE // PAGE_SIZE)
    first = [
        Take(1, "descriptor of the small-block pool (xmem_pool_create)"),
        Take(0, "pool: what DMI says (dmi_save_ident)"),
        Take(0, "struct domain of DOMID_XEN (setup_system_domains)"),
        Take(0, "struct domain of DOMID_IO"),
        Take(0, "L1 table for a vmap"),
        Take(0, "L3 table for the APICs' mapping (map_pages_to_xen)"),
        Take(0, "L2 table for it"),
        Take(0, "L1 table for it"),
        Take((irq_pages - 1).bit_length(), "IRQ descriptors (init_irq_data)", irq_pages),
        Take(0, "pool: masks of the first IRQs (arch_init_one_irq_desc)"),
        Take(3, "records of machine checks (mctelem_init)", 6),
        Take(0, "pool: the scheduler"),
        Take(0, "struct domain of the idle domain"),
        Take(0, "struct vcpu of CPU 0's idle vCPU"),
        Take(0, "stubs of CPU 0 (alloc_stub_page)"),
        Take(0, "pool: run queue and timers of CPU 0"),
        Take(2, "buffer of the serial line (serial_async_transmit)"),
        Take(2, "console ring of 16 KiB (console_init_ring)"),
        Take(0, "host save area of CPU 0 (svm_cpu_up_prepare)"),
        Take(0, "host VMCB of CPU 0"),
    ]
    per_cpu = [
        Take(2, "per-CPU data (cpu_percpu_callback)"),
        Take(0, "struct vcpu of its idle vCPU"),
        Take(0, "pool: run queue and timers"),
        Take(3, "stack"),
        Take(0, "GDT (cpu_smpboot_alloc)"),
        Take(0, "IDT"),
        Take(0, "host save area (svm_cpu_up_prepare)"),
        Take(0, "host VMCB"),
    ]
    last = [
        Take(0, "bitmap of the virtual area for live patches (livepatch_init)"),
        *(Take(2, f"I/O bitmap {number} of nested guests (nestedhvm_setup)") for number in range(3)),
    ]
    return first + per_cpu * (pcpus - 1) + last


DOMAIN: Final = (
    "struct domain",
    "pool: CPU policy, range sets",
    "L1 tables of the GDTs and LDTs (pv_domain_initialise)",
    "pool: event channel buckets, what the scheduler notes",
    "maptrack pointers (grant_table_init)",
    "maptrack pointers, second page",
)
"""A page each for a new domain, beside its shared_info, the root of its own area, its grant table, its ports."""
VCPU: Final = (
    "struct vcpu",
    "wait queue's stack (init_waitqueue_vcpu)",
    "pool: extended state, timers, what the scheduler notes",
    "trap table (pv_vcpu_initialise)",
)
"""A page each for a new vCPU."""


def active_pages(grant_frames: int) -> int:
    """Return how many pages keep the books of so many frames of a grant table (num_act_frames_from_sha_frames)."""
    return -(-grant_frames * SHARED_V1_PER_PAGE // ACTIVE_PER_PAGE)


class XenPages:
    """Xen's own pages, by the domain that they are for. Nothing is taken on a host that nobody has booted."""

    def __init__(self, frames: FrameTable, *, counted: bool) -> None:
        self._frames = frames
        self.counted = counted
        self._taken: dict[int, list[int]] = {}

    def boot(self, takes: Iterable[Take]) -> None:
        """Take what Xen takes while it starts."""
        if self.counted:
            for order, _, keep in takes:
                self._frames.alloc_xen(keep or 1 << order)

    def take(self, domid: int, count: int) -> bool:
        """Take single pages on behalf of a domain; False, and nothing taken, when memory is short."""
        if not self.counted:
            return True
        taken: list[int] = []
        for _ in range(count):
            mfn = self._frames.alloc_xen()
            if mfn < 0:
                for other in taken:
                    self._frames.free_xen(other)
                return False
            taken.append(mfn)
        self._taken.setdefault(domid, []).extend(taken)
        return True

    def give_back(self, domid: int) -> None:
        """Free what was taken on behalf of a domain that is gone."""
        for mfn in self._taken.pop(domid, ()):
            self._frames.free_xen(mfn)
