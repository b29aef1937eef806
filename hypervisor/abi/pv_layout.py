"""Where a domain builder puts things in a 64-bit PV domain, and what the first page tables say. Pure computation.

The order is the one that libxc uses and that xen.h describes at `start_info` ("start of day memory layout"), upwards
from virt_base, each part on a page of its own:

    kernel           at the addresses that it was linked for
    [module]         the initial ramdisk, or whatever is passed as the first module
    p2m list         one u64 per page of the domain: pfn -> mfn
    start_info
    [xenstore]       ring with xenstored          these two for a domain other than the first one
    [console]        ring with xenconsoled
    page tables      L4, then L3, L2, L1; mapped read-only
    boot stack
    free             at least 512 KiB, up to the next 4 MiB boundary: mapped, for the kernel's first allocations

Everything in that range is mapped at virt_base + pfn * 4096, as far as the domain has memory; the rest of the domain's
memory is for its kernel to map.
"""

from array import array
from collections.abc import Sequence

import attrs

PAGE_SIZE = 4096
PAGE_SHIFT = 12
ENTRIES = 512

PRESENT, RW, USER, ACCESSED, DIRTY = 0x1, 0x2, 0x4, 0x20, 0x40
L1_PROT = PRESENT | RW | ACCESSED | DIRTY
TABLE_PROT = PRESENT | RW | USER | ACCESSED | DIRTY

MAPPING_ALIGN = 4 << 20
MIN_SLACK = 512 << 10

_LOW_END = 1 << 47
_HIGH_START = 0xFFFF880000000000
"""Between them lie addresses that no processor translates, and those of Xen (HYPERVISOR_VIRT_END)."""

_LEVEL_SHIFTS = ((4, 48), (3, 39), (2, 30), (1, 21))
"""By level: how many address bits one table of it covers."""


class LayoutError(ValueError):
    """The parts do not fit into the domain, or are where they cannot be. Says what and by how much."""


@attrs.frozen
class Area:
    """A run of pages: first pfn, number of pages."""

    pfn: int
    pages: int

    @property
    def end(self) -> int:
        """Return the pfn behind the last page."""
        return self.pfn + self.pages


@attrs.frozen
class PvLayout:
    """The places of everything, as pfns; `va` turns them into addresses."""

    virt_base: int
    nr_pages: int
    kernel: Area
    module: Area | None
    p2m: Area
    start_info: int
    xenstore: int | None
    console: int | None
    tables: Area
    """L4, L3s, L2s, L1s, in this order."""
    tables_by_level: tuple[int, int, int, int]
    """Number of L4, L3, L2 and L1 tables."""
    boot_stack: int
    virt_end: int
    """First address that is not mapped any more, if the domain has that much memory."""

    def va(self, pfn: int) -> int:
        """Return the virtual address of a page."""
        return self.virt_base + (pfn << PAGE_SHIFT)

    @property
    def stack_pointer(self) -> int:
        """Return the initial stack pointer: the end of the boot stack."""
        return self.va(self.boot_stack + 1)

    @property
    def mapped_pages(self) -> int:
        """Return how many pages, from pfn 0 on, the initial page tables map."""
        return min(self.nr_pages, (self.virt_end - self.virt_base) >> PAGE_SHIFT)


def pages_of(size: int) -> int:
    """Return the number of pages that `size` bytes need."""
    return -(-size >> PAGE_SHIFT)


def compute(
    virt_base: int,
    kernel_start: int,
    kernel_end: int,
    nr_pages: int,
    *,
    module_size: int = 0,
    magic_pages: bool = True,
) -> PvLayout:
    """Lay out a domain of `nr_pages` pages. Addresses and sizes in bytes; `magic_pages`: xenstore and console rings.

    Raises LayoutError when the kernel lies outside of the domain or the domain is too small.
    """
    if virt_base & 0xFFF or not 0 <= virt_base < 1 << 64:
        raise LayoutError(f"the kernel's virtual base {virt_base:#x} is not the address of a page")
    if not virt_base <= kernel_start <= kernel_end < 1 << 64:
        raise LayoutError(f"the kernel at {kernel_start:#x}-{kernel_end:#x} lies outside of its base {virt_base:#x}")
    first = (kernel_start - virt_base) >> PAGE_SHIFT
    kernel = Area(first, max(1, pages_of(kernel_end - virt_base) - first))
    pfn = kernel.end
    module = None
    if module_size:
        module = Area(pfn, pages_of(module_size))
        pfn = module.end
    p2m = Area(pfn, max(1, pages_of(nr_pages * 8)))
    start_info = p2m.end
    pfn = start_info + 1
    xenstore = console = None
    if magic_pages:
        xenstore, console = pfn, pfn + 1
        pfn += 2
    counts, virt_end = _count_tables(virt_base, pfn)
    tables = Area(pfn, sum(counts))
    if tables.end + 1 > nr_pages:
        raise LayoutError(f"the domain has {nr_pages} pages, its kernel needs {tables.end + 1} to start")
    return PvLayout(
        virt_base, nr_pages, kernel, module, p2m, start_info, xenstore, console, tables, counts, tables.end, virt_end
    )


def _count_tables(virt_base: int, pfn: int) -> tuple[tuple[int, int, int, int], int]:
    """Find how many tables map everything up to the tables, a stack and the slack behind them: they map themselves."""
    tables = 0
    while True:
        needed = virt_base + ((pfn + tables + 1) << PAGE_SHIFT) + MIN_SLACK
        virt_end = (needed + MAPPING_ALIGN - 1) & -MAPPING_ALIGN
        if virt_end > 1 << 64:
            raise LayoutError(f"what is to be mapped from {virt_base:#x} on passes the end of the address space")
        if not (virt_end <= _LOW_END or virt_base >= _HIGH_START):
            raise LayoutError(f"the guest may not map what reaches from {virt_base:#x} to {virt_end:#x}")
        l4, l3, l2, l1 = ((virt_end - 1 >> shift) - (virt_base >> shift) + 1 for _, shift in _LEVEL_SHIFTS)
        if l4 + l3 + l2 + l1 == tables:
            return (l4, l3, l2, l1), virt_end
        tables = l4 + l3 + l2 + l1


def build_tables(layout: PvLayout, p2m: Sequence[int]) -> list[tuple[int, "array[int]"]]:
    """Return the contents of the page tables as (pfn, 512 entries), L4 first.

    `p2m` gives the mfn of each page, at least of the mapped ones and the tables themselves. Page tables are mapped
    read-only, all else writable.
    """
    mfns = p2m[: layout.mapped_pages]
    leaves = array("Q", [mfn << PAGE_SHIFT | L1_PROT for mfn in mfns])
    for pfn in range(layout.tables.pfn, layout.tables.end):
        leaves[pfn] &= ~RW
    l4, l3, l2, l1 = layout.tables_by_level
    built: list[tuple[int, array[int]]] = []
    pfn = layout.tables.pfn
    for shift, count, below in ((39, l4, l3), (30, l3, l2), (21, l2, l1)):
        children = pfn + count
        entries = array("Q", [p2m[child] << PAGE_SHIFT | TABLE_PROT for child in range(children, children + below)])
        _split(built, pfn, entries, (layout.virt_base >> shift) & (ENTRIES - 1), count)
        pfn = children
    _split(built, pfn, leaves, (layout.virt_base >> PAGE_SHIFT) & (ENTRIES - 1), l1)
    return built


def _split(built: list[tuple[int, "array[int]"]], pfn: int, entries: "array[int]", offset: int, count: int) -> None:
    """Cut consecutive entries, the first of them at `offset`, into `count` tables."""
    padded = array("Q", bytes(8 * offset)) + entries
    padded.frombytes(bytes(8 * (count * ENTRIES - len(padded))))
    for index in range(count):
        built.append((pfn + index, padded[index * ENTRIES : (index + 1) * ENTRIES]))
