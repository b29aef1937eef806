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
memory is for its kernel to map. Two parts can lie behind that range, if the kernel's notes say so: a module that is not
mapped (MOD_START_PFN), and the p2m list with the page tables that map it elsewhere (INIT_P2M).
"""

import itertools
from array import array
from collections.abc import Sequence

import attrs

PAGE_SIZE = 4096
PAGE_SHIFT = 12
ENTRIES = 512

PRESENT, RW, USER, ACCESSED, DIRTY = 0x1, 0x2, 0x4, 0x20, 0x40
L1_PROT = PRESENT | RW | ACCESSED
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


class AddressSpaceError(LayoutError):
    """What is to be mapped at first passes the end of the address space: the list of the domain's pages is too long."""


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
    module_is_mapped: bool
    p2m: Area
    p2m_address: int
    """Where the p2m list is mapped."""
    p2m_tables: Area
    """Page tables for the p2m list alone, L3, L2, L1, right behind it: if it is mapped elsewhere than everything."""
    first_p2m_pfn: int
    """The first page behind what the initial page tables map, and behind a module that they do not map."""
    start_info: int
    xenstore: int | None
    console: int | None
    tables: Area
    """L4, L3s, L2s, L1s, in this order."""
    tables_by_level: tuple[int, int, int, int]
    """Number of L4, L3, L2 and L1 tables."""
    boot_stack: int
    block_pages: int
    """How many pages come from one block of memory: all that is mapped at first but a module, for a `whole_block`."""
    virt_end: int
    """First address that is not mapped any more, if the domain has that much memory."""

    def va(self, pfn: int) -> int:
        """Return the virtual address of a page."""
        return self.virt_base + (pfn << PAGE_SHIFT)

    @property
    def p2m_is_elsewhere(self) -> bool:
        """Whether the p2m list is mapped at an address of its own (INIT_P2M)."""
        return self.p2m_address != self.va(self.p2m.pfn)

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
    module_is_mapped: bool = True,
    p2m_base: int | None = None,
    magic_pages: bool = True,
    whole_block: bool = False,
) -> PvLayout:
    """Lay out a domain of `nr_pages` pages. Addresses and sizes in bytes; `magic_pages`: xenstore and console rings.

    `whole_block`: what is mapped at first comes from one block of a power of two of pages, as Xen does it for dom0, and
    the parts that are not mapped follow that block. A `p2m_base` that is no page's address or lies behind virt_base is
    ignored, as libxenguest does.

    Raises LayoutError when the kernel lies outside of the domain or the domain is too small, AddressSpaceError when it
    is too large.
    """
    if virt_base & 0xFFF or not 0 <= virt_base < 1 << 64:
        raise LayoutError(f"the kernel's virtual base {virt_base:#x} is not the address of a page")
    if not virt_base <= kernel_start <= kernel_end < 1 << 64:
        raise LayoutError(f"the kernel at {kernel_start:#x}-{kernel_end:#x} lies outside of its base {virt_base:#x}")
    first = (kernel_start - virt_base) >> PAGE_SHIFT
    kernel = Area(first, max(1, pages_of(kernel_end - virt_base) - first))
    pfn = kernel.end
    module = None
    if module_size and module_is_mapped:
        module = Area(pfn, pages_of(module_size))
        pfn = module.end
    p2m = Area(pfn, max(1, pages_of(nr_pages * 8)))
    elsewhere = p2m_base is not None and not p2m_base & 0xFFF and p2m_base < virt_base
    start_info = pfn if elsewhere else p2m.end
    pfn = start_info + 1
    xenstore = console = None
    if magic_pages:
        xenstore, console = pfn, pfn + 1
        pfn += 2
    counts, virt_end = _count_tables(virt_base, pfn)
    tables = Area(pfn, sum(counts))
    last = tables.end + 1
    block = free = virt_end - virt_base >> PAGE_SHIFT
    if whole_block:
        mapped_module = 0 if module is None else module.pages
        block = 1 << (free - mapped_module - 1).bit_length()
        free = block + mapped_module
    if module_size and not module_is_mapped:
        module = Area(free, pages_of(module_size))
        last = free = module.end
    p2m_tables, p2m_address = Area(p2m.end, 0), virt_base + (p2m.pfn << PAGE_SHIFT)
    if elsewhere and p2m_base is not None:
        p2m = Area(free, p2m.pages)
        p2m_tables = Area(p2m.end, _count_p2m_tables(virt_base, virt_end, p2m_base, p2m.pages << PAGE_SHIFT))
        p2m_address, last = p2m_base, p2m_tables.end
    if last > nr_pages:
        raise LayoutError(f"the domain has {nr_pages} pages, its kernel needs {last} to start")
    return PvLayout(
        virt_base=virt_base,
        nr_pages=nr_pages,
        kernel=kernel,
        module=module,
        module_is_mapped=module_is_mapped,
        p2m=p2m,
        p2m_address=p2m_address,
        p2m_tables=p2m_tables,
        first_p2m_pfn=min(free, nr_pages),
        start_info=start_info,
        xenstore=xenstore,
        console=console,
        tables=tables,
        tables_by_level=counts,
        boot_stack=tables.end,
        block_pages=block,
        virt_end=virt_end,
    )


def _count_tables(virt_base: int, pfn: int) -> tuple[tuple[int, int, int, int], int]:
    """Find how many tables map everything up to the tables, a stack and the slack behind them: they map themselves."""
    tables = 0
    while True:
        needed = virt_base + ((pfn + tables + 1) << PAGE_SHIFT) + MIN_SLACK
        virt_end = (needed + MAPPING_ALIGN - 1) & -MAPPING_ALIGN
        if virt_end > 1 << 64:
            raise AddressSpaceError(f"what is to be mapped from {virt_base:#x} on passes the end of the address space")
        if not (virt_end <= _LOW_END or virt_base >= _HIGH_START):
            raise LayoutError(f"the guest may not map what reaches from {virt_base:#x} to {virt_end:#x}")
        l4, l3, l2, l1 = ((virt_end - 1 >> shift) - (virt_base >> shift) + 1 for _, shift in _LEVEL_SHIFTS)
        if l4 + l3 + l2 + l1 == tables:
            return (l4, l3, l2, l1), virt_end
        tables = l4 + l3 + l2 + l1


def _count_p2m_tables(virt_base: int, virt_end: int, p2m_base: int, size: int) -> int:
    """Count the tables that a p2m list at an address of its own needs, besides those that are there anyway."""
    end = p2m_base + size
    if end > virt_base or not (end <= _LOW_END or p2m_base >= _HIGH_START):
        raise LayoutError(f"the guest may not map its p2m list at {p2m_base:#x}-{end:#x}")
    count = 0
    for _, shift in _LEVEL_SHIFTS[1:]:
        mine = range(p2m_base >> shift, (end - 1 >> shift) + 1)
        count += len(mine) - (mine[-1] == virt_base >> shift)
    return count


def build_tables(layout: PvLayout, p2m: Sequence[int], written: Sequence[Area] = ()) -> list[tuple[int, "array[int]"]]:
    """Return the contents of the page tables as (pfn, 512 entries), L4 first.

    `p2m` gives the mfn of each page, at least of the mapped ones and the tables themselves. Page tables are mapped
    read-only, all else writable. `written`: pages that their builder has filled through these very tables, so that the
    processor has marked them dirty.
    """
    mfns = p2m[: layout.mapped_pages]
    leaves = array("Q", [mfn << PAGE_SHIFT | L1_PROT for mfn in mfns])
    for pfn in range(layout.tables.pfn, layout.tables.end):
        leaves[pfn] &= ~RW
    for area in written:
        for pfn in range(area.pfn, min(area.end, len(leaves))):
            leaves[pfn] |= DIRTY
    l4, l3, l2, l1 = layout.tables_by_level
    built: list[tuple[int, array[int]]] = []
    pfn = layout.tables.pfn
    for shift, count, below in ((39, l4, l3), (30, l3, l2), (21, l2, l1)):
        children = pfn + count
        entries = array("Q", [p2m[child] << PAGE_SHIFT | TABLE_PROT for child in range(children, children + below)])
        _split(built, pfn, entries, (layout.virt_base >> shift) & (ENTRIES - 1), count)
        pfn = children
    _split(built, pfn, leaves, (layout.virt_base >> PAGE_SHIFT) & (ENTRIES - 1), l1)
    if layout.p2m_is_elsewhere:
        _map_p2m(layout, p2m, built)
    return built


def _map_p2m(layout: PvLayout, p2m: Sequence[int], built: list[tuple[int, "array[int]"]]) -> None:
    """Add the tables that map the p2m list at its own address."""
    tables: dict[tuple[int, int], tuple[int, array[int]]] = {}
    first = 0
    for (_, shift), count in zip(_LEVEL_SHIFTS, layout.tables_by_level, strict=True):
        for index in range(count):
            tables[shift, (layout.virt_base >> shift) + index] = built[first + index]
        first += count
    end = layout.p2m_address + (layout.p2m.pages << PAGE_SHIFT)
    fresh = iter(range(layout.p2m_tables.pfn, layout.p2m_tables.end))
    for (_, above), (_, shift) in itertools.pairwise(_LEVEL_SHIFTS):
        for index in range(layout.p2m_address >> shift, (end - 1 >> shift) + 1):
            if (shift, index) in tables:
                continue
            table = next(fresh), array("Q", bytes(PAGE_SIZE))
            built.append(table)
            tables[shift, index] = table
            # (The root is one for all of the address space.)
            parent = built[0][1] if shift == _LEVEL_SHIFTS[1][1] else tables[above, index >> above - shift][1]
            parent[index & ENTRIES - 1] = p2m[table[0]] << PAGE_SHIFT | TABLE_PROT
    lowest = _LEVEL_SHIFTS[-1][1]
    for page in range(layout.p2m.pages):
        address = layout.p2m_address + (page << PAGE_SHIFT)
        entries = tables[lowest, address >> lowest][1]
        entries[address >> PAGE_SHIFT & ENTRIES - 1] = p2m[layout.p2m.pfn + page] << PAGE_SHIFT | L1_PROT


def _split(built: list[tuple[int, "array[int]"]], pfn: int, entries: "array[int]", offset: int, count: int) -> None:
    """Cut consecutive entries, the first of them at `offset`, into `count` tables."""
    padded = array("Q", bytes(8 * offset)) + entries
    padded.frombytes(bytes(8 * (count * ENTRIES - len(padded))))
    for index in range(count):
        built.append((pfn + index, padded[index * ENTRIES : (index + 1) * ENTRIES]))
