"""Memory of a PV guest: its pages, its page tables, and windows onto other domains' pages.

Pseudo-physical frame numbers (pfn) run from 0 to `nr_pages`; the p2m list that the domain builder left translates them
to machine frames (mfn), which is what page table entries hold. Addresses are laid out so:

    virt_base + pfn * 4096        pages below LOW_PAGES. The builder has mapped the first megabytes (what it loaded,
                                  and room behind it); the rest is mapped on demand, 2 MiB at a time
    virt_base + 768 MiB .. 1 GiB  windows: addresses without memory, for grants, foreign pages, shared_info
    DIRECT_BASE + pfn * 4096      pages from LOW_PAGES on (large domains only)
    WINDOW_BASE ...               more windows

Xen checks every change of a page table, so a table is made in three steps: fill a page that is still ordinary memory,
make its mapping read-only, hook it into the table above. From then on only Xen writes to it (mmu_update,
update_va_mapping).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, cast, final

from guest_kernel.errors import OutOfMemory, XenError
from hypervisor.abi.cpu import Cpu
from hypervisor.abi.xen import (
    DOMID_SELF,
    MACH2PHYS_VIRT_START,
    UVMF_ALL,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    HYPERVISOR_mmu_update,
    HYPERVISOR_update_va_mapping,
)

PAGE_SIZE = 4096
PAGE_SHIFT = 12
ENTRIES = 512
"""Entries of a page table of any level, and of a page of the p2m list."""

PTE_PRESENT, PTE_WRITABLE, PTE_USER, PTE_ACCESSED, PTE_DIRTY = 0x1, 0x2, 0x4, 0x20, 0x40
PTE_DATA = PTE_PRESENT | PTE_WRITABLE | PTE_ACCESSED | PTE_DIRTY
PTE_READ_ONLY = PTE_PRESENT | PTE_ACCESSED
PTE_TABLE = PTE_DATA | PTE_USER
PTE_FRAME = 0x000F_FFFF_FFFF_F000

LOW_PAGES = 768 << 8
"""Pages that live at virt_base: 768 MiB."""
DIRECT_BASE = 0xFFFF_8800_0000_0000
WINDOW_BASE = 0xFFFF_C900_0000_0000
WINDOW_PAGES = 1 << 24
INVALID_MFN = (1 << 64) - 1

_ZERO = bytes(PAGE_SIZE)
MANY = 8
"""From this number on it is worth while to look for pages that are neighbours."""
_TABLE_RESERVE = 3
"""Pages kept for page tables: mapping two more megabytes takes at most one table of each of three levels."""


@final
class Page:
    """A page of the domain's own memory, mapped. `view` is its bytes; `h`, `i`, `q` the same as 16, 32, 64 bits."""

    __slots__ = ("allocated", "h", "i", "mfn", "pfn", "q", "va", "view")

    h: memoryview
    i: memoryview
    q: memoryview

    def __init__(self, pfn: int, va: int, mfn: int, view: memoryview) -> None:
        self.pfn = pfn
        self.va = va
        self.mfn = mfn
        self.view = view
        self.allocated = True

    def __getattr__(self, name: str) -> memoryview:
        # Slots that were never set end here: the casts are made when somebody wants one.
        if name not in ("h", "i", "q"):
            raise AttributeError(name)
        view = self.view.cast(cast(Literal["H", "I", "Q"], name.upper()))
        setattr(self, name, view)
        return view

    def __repr__(self) -> str:
        return f"<Page {self.pfn:#x} at {self.va:#x}, frame {self.mfn:#x}>"


def _pfn(page: Page) -> int:
    return page.pfn


class ForeignMapping(list[memoryview]):
    """Views of pages of another domain, in the order asked for; contiguous from virtual address `va`.

    `pieces` has the same in fewer views, in the same order: one for pages that are neighbours in machine memory, too.
    """

    def __init__(self, va: int, pieces: Iterable[memoryview]) -> None:
        self.pieces = list(pieces)
        super().__init__(
            [piece[at : at + PAGE_SIZE] for piece in self.pieces for at in range(0, len(piece), PAGE_SIZE)]
        )
        self.va = va
        self.pages = len(self)

    def clear(self) -> None:
        """Drop all views."""
        super().clear()
        self.pieces.clear()


def neighbours(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where numbers begin that follow upon each other, and how many they are."""
    start = 0
    for index in range(1, len(numbers)):
        if numbers[index] != numbers[index - 1] + 1:
            yield start, index - start
            start = index
    if numbers:
        yield start, len(numbers) - start


class AddressSpace:
    """Free ranges of virtual addresses, in pages: first fit, neighbours merged."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self._ranges = sorted(ranges)

    def take(self, pages: int) -> int | None:
        """Return the lowest address with `pages` free pages from it on, now taken; None if there is none."""
        for index, (va, size) in enumerate(self._ranges):
            if size >= pages:
                if size == pages:
                    del self._ranges[index]
                else:
                    self._ranges[index] = (va + (pages << PAGE_SHIFT), size - pages)
                return va
        return None

    def give(self, va: int, pages: int) -> None:
        """Give a range back."""
        ranges = self._ranges
        at = bisect_right(ranges, (va, 0))
        if at < len(ranges) and va + (pages << PAGE_SHIFT) == ranges[at][0]:
            pages += ranges.pop(at)[1]
        if at and ranges[at - 1][0] + (ranges[at - 1][1] << PAGE_SHIFT) == va:
            va, before = ranges.pop(at - 1)
            pages += before
        insort(ranges, (va, pages))

    def free(self) -> int:
        """Return the number of free pages."""
        return sum(pages for _, pages in self._ranges)


class MemoryManager:
    """The domain's pages and page tables. All addresses are virtual unless a name says otherwise."""

    def __init__(self, cpu: Cpu, call: Callable[..., int], start_info: Any, virt_base: int) -> None:
        self._view = cpu.view
        self._call = call
        self.virt_base = virt_base
        self.nr_pages: int = start_info.nr_pages
        self._mfn_list: int = start_info.mfn_list
        self._p2m: dict[int, memoryview] = {}
        self._tables: dict[int, memoryview] = {}
        """Page tables by machine frame, as 64-bit entries; they can be read, not written."""
        self._l1: dict[int, int] = {}
        """Machine frame of the L1 table by virtual address >> 21."""

        first_table: int = (start_info.pt_base - virt_base) >> PAGE_SHIFT
        for pfn in range(first_table, first_table + start_info.nr_pt_frames):
            self._tables[self.mfn_of(pfn)] = self._view(self.va_of(pfn), PAGE_SIZE, False).cast("Q")
        self.root = self.mfn_of(first_table)
        """Machine frame of the L4 table, which all vCPUs share."""
        # Behind the tables lies the boot stack, the last thing that the builder loaded.
        self._next: int = first_table + start_info.nr_pt_frames + 1
        self._mapped_end = self._find_mapped_end()
        self._free: list[Page] = []
        self._reserve = [self._fresh() for _ in range(_TABLE_RESERVE)]
        self._updates = self._fresh()
        window_base = virt_base + (LOW_PAGES << PAGE_SHIFT)
        self._windows = AddressSpace(
            (window_base, (1 << 18) - LOW_PAGES),
            (WINDOW_BASE, WINDOW_PAGES),
        )

    # Frame numbers and addresses

    def va_of(self, pfn: int) -> int:
        """Return the virtual address at which the page `pfn` is, or will be, mapped."""
        return (self.virt_base if pfn < LOW_PAGES else DIRECT_BASE) + (pfn << PAGE_SHIFT)

    def mfn_of(self, pfn: int) -> int:
        """Return the machine frame of a page, by the p2m list; INVALID_MFN if it has none."""
        part = self._p2m.get(pfn >> 9)
        if part is None:
            if not 0 <= pfn < self.nr_pages:
                raise IndexError(f"page {pfn:#x} of {self.nr_pages:#x}")
            part = self._p2m[pfn >> 9] = self._view(self._mfn_list + (pfn >> 9 << PAGE_SHIFT)).cast("Q")
        return part[pfn & 511]

    def pfn_of(self, mfn: int) -> int:
        """Return the page of this domain that lies in a machine frame, by Xen's machine-to-physical table."""
        address = MACH2PHYS_VIRT_START + mfn * 8
        return self._view(address & ~(PAGE_SIZE - 1), PAGE_SIZE, False).cast("Q")[(address & (PAGE_SIZE - 1)) >> 3]

    def page_at(self, mfn: int) -> Page:
        """Return a page that the builder put into the initial mapping (console, xenstore), by its machine frame."""
        pfn = self.pfn_of(mfn)
        if pfn >= self._mapped_end:
            raise IndexError(f"page {pfn:#x} (frame {mfn:#x}) is outside of the initial mapping")
        va = self.va_of(pfn)
        return Page(pfn, va, mfn, self._view(va))

    def virt_to_mfn(self, va: int) -> int:
        """Return the machine frame behind a virtual address, by the page tables. Raises KeyError if it has none."""
        l1 = self._find_l1(va)
        entry = self._table(l1)[va >> PAGE_SHIFT & 511] if l1 is not None else 0
        if not entry & PTE_PRESENT:
            raise KeyError(f"{va:#x} is not mapped")
        return (entry & PTE_FRAME) >> PAGE_SHIFT

    def view(self, va: int, writable: bool = True) -> memoryview:
        """Return the page at a virtual address. Raises PageFault."""
        return self._view(va, PAGE_SIZE, writable)

    # Pages

    @property
    def free_pages(self) -> int:
        """How many pages can still be allocated (some of them will become page tables)."""
        return len(self._free) + len(self._reserve) + self.nr_pages - self._next

    def alloc_page(self) -> Page:
        """Return a page filled with zeros. Raises OutOfMemory."""
        if self._free:
            page = self._free.pop()
            page.view[:] = _ZERO
            page.allocated = True
            return page
        return self._fresh()

    def alloc_pages(self, n: int) -> list[Page]:
        """Return `n` pages, or raise OutOfMemory and take none. They need not be neighbours, though many will be."""
        pages: list[Page] = []
        if n >= MANY:
            # Those that come back last are given out first, which turns their order around.
            self._free.sort(key=_pfn, reverse=True)
        try:
            while len(pages) < n:
                pages.append(self.alloc_page())
        except OutOfMemory:
            self.free_pages_of(pages)
            raise OutOfMemory(f"{n} pages wanted, {self.free_pages} of {self.nr_pages} are free") from None
        return pages

    def runs(self, pages: Sequence[Page], size: int) -> tuple[memoryview, ...]:
        """Return views of the first `size` bytes of pages, in order: one for pages that are neighbours, where it can.

        Copying a page costs little more than what Python needs to find it, so fewer views are faster.
        """
        views = []
        first = 0
        while size > 0:
            page = pages[first]
            count = 1
            while (
                first + count < len(pages)
                and pages[first + count].va == page.va + (count << PAGE_SHIFT)
                and pages[first + count].mfn == page.mfn + count
            ):
                count += 1
            length = min(size, count << PAGE_SHIFT)
            views.append(page.view[:length] if length <= PAGE_SIZE else self._view(page.va, length))
            first += count
            size -= length
        return tuple(views)

    def pieces(self, addresses: Sequence[int], writable: bool = True) -> list[memoryview]:
        """Return views of mapped pages of any kind, in order: one for those that are neighbours in both ways."""
        views = []
        first = 0
        frames = [self.virt_to_mfn(va) for va in addresses]
        while first < len(addresses):
            va, frame, count = addresses[first], frames[first], 1
            while (
                first + count < len(addresses)
                and addresses[first + count] == va + (count << PAGE_SHIFT)
                and frames[first + count] == frame + count
            ):
                count += 1
            views.append(self._view(va, count << PAGE_SHIFT, writable))
            first += count
        return views

    def free_page(self, page: Page) -> None:
        """Give a page back. No grant, no foreign mapping and no hypercall may still use it."""
        if not page.allocated:
            raise ValueError(f"{page} is free already")
        page.allocated = False
        self._free.append(page)

    def free_pages_of(self, pages: Iterable[Page]) -> None:
        """Give several pages back."""
        for page in pages:
            self.free_page(page)

    def _fresh(self) -> Page:
        while True:
            pfn = self._next
            if pfn >= self._mapped_end:
                if pfn >= self.nr_pages and self._reserve:
                    return self._reserve.pop()  # nothing is left to map, so no table will be needed for it
                self._map_chunk()
                continue
            self._next = pfn + 1
            mfn = self.mfn_of(pfn)
            if mfn != INVALID_MFN:
                va = self.va_of(pfn)
                return Page(pfn, va, mfn, self._view(va))

    def _find_mapped_end(self) -> int:
        """Return the first page behind the builder's mapping."""
        pfn = 0
        while pfn < self.nr_pages:
            l1 = self._find_l1(self.va_of(pfn))
            if l1 is None:
                return pfn
            table = self._table(l1)
            top = min(pfn + ENTRIES, self.nr_pages)
            if table[(top - 1) & 511] & PTE_PRESENT:
                pfn = top
                continue
            return next(at for at in range(pfn, top) if not table[at & 511] & PTE_PRESENT)
        return pfn

    def _map_chunk(self) -> None:
        """Map the pages up to the next multiple of 2 MiB."""
        first = self._mapped_end
        if first >= self.nr_pages:
            raise OutOfMemory(f"all {self.nr_pages} pages of the domain are in use")
        end = min((first | 511) + 1, self.nr_pages)
        va = self.va_of(first)
        entries = [
            0 if mfn == INVALID_MFN else mfn << PAGE_SHIFT | PTE_DATA for mfn in map(self.mfn_of, range(first, end))
        ]
        l1 = self._find_l1(va)
        if l1 is None:
            self._make_l1(va, self._reserve.pop, entries)
        else:
            slot = l1 << PAGE_SHIFT | (first & 511) << 3
            self.mmu_updates(range(slot, slot + 8 * len(entries), 8), entries)
        self._mapped_end = end
        while len(self._reserve) < _TABLE_RESERVE and self._next < end:
            self._reserve.append(self._fresh())

    # Page tables

    def _table(self, mfn: int) -> memoryview:
        """Return the entries of one of the domain's own page tables."""
        table = self._tables.get(mfn)
        if table is None:
            table = self._tables[mfn] = self._view(self.va_of(self.pfn_of(mfn)), PAGE_SIZE, False).cast("Q")
        return table

    def _find_l1(self, va: int) -> int | None:
        """Return the machine frame of the L1 table for an address, or None."""
        l1 = self._l1.get(va >> 21)
        if l1 is None:
            table = self.root
            for shift in (39, 30, 21):
                entry = self._table(table)[va >> shift & 511]
                if not entry & PTE_PRESENT:
                    return None
                table = (entry & PTE_FRAME) >> PAGE_SHIFT
            l1 = self._l1[va >> 21] = table
        return l1

    def _make_l1(self, va: int, take: Callable[[], Page], entries: Sequence[int] = ()) -> int:
        """Make what is missing of the tables down to the L1 table for `va`, with `entries` in that; return its frame.

        `take` gives the pages.
        """
        table = self.root
        for shift in (39, 30, 21):
            index = va >> shift & 511
            entry = self._table(table)[index]
            if entry & PTE_PRESENT:
                table = (entry & PTE_FRAME) >> PAGE_SHIFT
                continue
            new = self._new_table(take(), entries if shift == 21 else ())
            self.mmu_update([(table << PAGE_SHIFT | index << 3, new << PAGE_SHIFT | PTE_TABLE)])
            table = new
        self._l1[va >> 21] = table
        return table

    def _new_table(self, page: Page, entries: Sequence[int]) -> int:
        """Fill a page and make it read-only, as Xen wants it before it accepts it as a table; return its frame."""
        page.view[:] = _ZERO
        page.q[: len(entries)] = array("Q", entries)
        self.update_va_mapping(page.va, page.mfn << PAGE_SHIFT | PTE_READ_ONLY)
        self._tables[page.mfn] = self._view(page.va, PAGE_SIZE, False).cast("Q")
        return page.mfn

    def update_va_mapping(self, va: int, pte: int, flags: int = UVMF_INVLPG) -> None:
        """Set the L1 entry of one address. Raises XenError."""
        result = self._call(HYPERVISOR_update_va_mapping, va, pte, flags)
        if result < 0:
            raise XenError(-result, f"update_va_mapping of {va:#x}")

    def mmu_update(self, updates: Sequence[tuple[int, int]], domid: int = DOMID_SELF) -> None:
        """Set page table entries: (machine address of the entry, value), with frames of domain `domid` in the values.

        Raises XenError at the first that Xen refuses; those before it are done.
        """
        self.mmu_updates([address for address, _ in updates], [value for _, value in updates], domid)

    def mmu_updates(self, addresses: Sequence[int], values: Sequence[int], domid: int = DOMID_SELF) -> None:
        """As `mmu_update`, with the machine addresses of entries and their values apart."""
        page = self._updates
        room = PAGE_SIZE // 16 - 1  # the last words tell how many were done
        done = page.va + PAGE_SIZE - 8
        flat = array("Q", bytes(16 * len(addresses)))
        flat[::2] = array("Q", addresses)  # the low bits are the command, which is MMU_NORMAL_PT_UPDATE: 0
        flat[1::2] = array("Q", values)
        for start in range(0, len(addresses), room):
            part = flat[2 * start : 2 * (start + room)]
            page.q[: len(part)] = part
            result = self._call(HYPERVISOR_mmu_update, page.va, len(part) >> 1, done, domid)
            if result < 0:
                failed = start + page.i[-2]
                raise XenError(-result, f"mmu_update, entry {failed} of {len(addresses)}")

    # Windows

    def alloc_va(self, n: int) -> int:
        """Return the first of `n` contiguous page addresses with nothing mapped, page tables present.

        Raises OutOfMemory when addresses, or pages for the tables, run out.
        """
        va = self._windows.take(n)
        if va is None:
            raise OutOfMemory(f"no {n} contiguous pages of virtual addresses are free")
        for chunk in range(va >> 21, (va + (n << PAGE_SHIFT) - 1 >> 21) + 1):
            if chunk not in self._l1:
                self._make_l1(chunk << 21, self.alloc_page)
        return va

    def free_va(self, va: int, n: int) -> None:
        """Give addresses back; whoever mapped something there has unmapped it and dropped the views."""
        self._windows.give(va, n)

    def entry_address(self, va: int) -> int:
        """Return the machine address of the L1 entry of a virtual address. Raises KeyError without an L1 table."""
        l1 = self._find_l1(va)
        if l1 is None:
            raise KeyError(f"no page table for {va:#x}")
        return l1 << PAGE_SHIFT | (va >> PAGE_SHIFT & 511) << 3

    def _entry_addresses(self, va: int, n: int) -> list[int]:
        """Return the machine addresses of the L1 entries of `n` pages from `va` on; their tables are there."""
        addresses: list[int] = []
        while n > 0:
            size = min(n, 512 - (va >> PAGE_SHIFT & 511))
            first = self.entry_address(va)
            addresses += range(first, first + 8 * size, 8)
            va += size << PAGE_SHIFT
            n -= size
        return addresses

    def map_machine(self, mfns: Sequence[int], *, writable: bool = True, domid: int = DOMID_SELF) -> ForeignMapping:
        """Map machine frames into a window. Raises XenError if Xen refuses one; then none stays mapped."""
        n = len(mfns)
        if not n:
            return ForeignMapping(0, [])
        va = self.alloc_va(n)
        flags = PTE_DATA if writable else PTE_READ_ONLY
        entries = [mfn << PAGE_SHIFT | flags for mfn in mfns]
        try:
            self.mmu_updates(self._entry_addresses(va, n), entries, domid)
        except XenError:
            self._unmap(va, n)
            raise
        return ForeignMapping(
            va,
            [
                self._view(va + (first << PAGE_SHIFT), count << PAGE_SHIFT, writable)
                for first, count in neighbours(mfns)
            ],
        )

    def replace(self, page: Page, maddr: int) -> memoryview:
        """Map a machine frame of Xen's (shared_info) at the address of `page`; the page is no longer reachable."""
        self.update_va_mapping(page.va, maddr & PTE_FRAME | PTE_DATA)
        page.view = self._view(page.va)
        return page.view

    def map_foreign(self, domid: int, mfns: Sequence[int], writable: bool = True) -> ForeignMapping:
        """Map pages of another domain, as a privileged domain may. Raises XenError; then none stays mapped."""
        return self.map_machine(mfns, writable=writable, domid=domid)

    def unmap_foreign(self, mapping: ForeignMapping) -> None:
        """Undo `map_foreign` or `map_machine`. The views in `mapping` are dropped; keep no others."""
        mapping.clear()
        if mapping.pages:
            self._unmap(mapping.va, mapping.pages)
            mapping.pages = 0

    def _unmap(self, va: int, n: int) -> None:
        last = va + (n - 1 << PAGE_SHIFT)
        self.mmu_updates(self._entry_addresses(va, n - 1), [0] * (n - 1))
        flush = UVMF_INVLPG if n == 1 else UVMF_TLB_FLUSH
        self.update_va_mapping(last, 0, flush | UVMF_ALL)
        self._windows.give(va, n)
