"""Grants: letting another domain at one's own pages, and getting at theirs.

Granting is a write to a table that Xen reads: eight bytes per reference, `flags`, `domid`, `frame` (grant_table.h,
version 1). Taking a grant back works only while nobody has the page mapped; `end_access` says so.

Mapping is a hypercall with an array of operations. There are two kinds: a *host* map puts the page at a virtual
address; a *device* map only pins it and tells its machine address, which is all that a disk's DMA needs. For bulk data
there is *copy*, where Xen moves the bytes and nothing is mapped.

Fast paths: `grant_raw` and `end_access` cost a few view accesses; `map_device`, `unmap_device` and `copy` put a whole
batch into one hypercall (for each 100 or so operations: the array is one page).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any

import attrs

from guest_kernel.errors import GrantError
from guest_kernel.hypercalls import Hypercalls
from guest_kernel.mm import PAGE_SHIFT, PAGE_SIZE, MemoryManager, Page
from hypervisor.abi.grant_table import (
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_handle,
    GNTST_no_space,
    GNTST_okay,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_setup_table,
    GNTTABOP_unmap_grant_ref,
    GTF_invalid,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    gnttab_copy,
    gnttab_map_grant_ref,
    gnttab_query_size,
    gnttab_setup_table,
    gnttab_unmap_grant_ref,
)
from hypervisor.abi.layout import Layout, Value
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_grant_table_op

RESERVED = 8
"""References 0..7 belong to the toolstack: it grants the console (0) and xenstore (1) pages with them."""
PER_FRAME = PAGE_SIZE // 8
_IN_USE = GTF_reading | GTF_writing

COPY_OPERATION = Struct("<QHH4xQHH4xHHh2x")
"""gnttab_copy with each union as a number, the reference or the frame: both sides, then len, flags, status."""
MAP_BATCH = PAGE_SIZE // gnttab_map_grant_ref.size
UNMAP_BATCH = PAGE_SIZE // gnttab_unmap_grant_ref.size
COPY_BATCH = PAGE_SIZE // COPY_OPERATION.size
# Operations as 64-bit words, so that a batch is written and read as strided slices, one per word:
#   map    host_addr | flags, ref << 32 | dom, status << 16, handle << 32 | dev_bus_addr
#   unmap  host_addr | dev_bus_addr | handle, status << 32
_MAP_WORDS = gnttab_map_grant_ref.size >> 3
_UNMAP_WORDS = gnttab_unmap_grant_ref.size >> 3
_COPY_STATUS, _COPY_STRIDE = gnttab_copy.offset("status") >> 1, gnttab_copy.size >> 1

_NO_VIEW = memoryview(b"")

if COPY_OPERATION.size != gnttab_copy.size:
    raise AssertionError("gnttab_copy is not what this module packs")

CopyOp = tuple[int, int, int, int, int, int, int, int]
"""(source, source domain, source offset, dest, dest domain, dest offset, length, flags): a side is a reference if
GNTCOPY_source_gref or GNTCOPY_dest_gref is set, else a machine frame of one's own (domain DOMID_SELF)."""


@attrs.define
class MappedGrant:
    """A page of another domain. `status` is GNTST_okay, or negative and then nothing is mapped."""

    ref: int
    status: int
    handle: int = 0
    va: int = 0
    view: memoryview = _NO_VIEW


DeviceGrant = tuple[int, int, int]
"""(status, handle, machine address) of a page that is pinned for DMA; nothing is, if the status is negative."""


class Grants:
    """The grant table of this domain, and its mappings of others' grants."""

    def __init__(self, hypercalls: Hypercalls, mm: MemoryManager) -> None:
        self._hypercalls = hypercalls
        self._mm = mm
        self._max_frames = 0
        self.entries_i: list[memoryview] = []
        """The table, a 'I' view per frame of 512 entries: of an entry, word 0 is flags | domid << 16, word 1 frame."""
        self._free: list[int] = []
        self._pages: dict[str, Page] = {}

    # Granting

    def grant_access(self, domid: int, page: Page | int, readonly: bool = False) -> int:
        """Let domain `domid` map or copy a page (a Page, or a machine frame); return the reference.

        Raises GrantError(GNTST_no_space) when the table is full and cannot grow.
        """
        ref = self.take_ref()
        mfn = page if isinstance(page, int) else page.mfn
        self.grant_raw(ref, domid, mfn, GTF_permit_access | GTF_readonly if readonly else GTF_permit_access)
        return ref

    def take_ref(self) -> int:
        """Return a free reference, for `grant_raw`. Raises GrantError."""
        if not self._free:
            self._grow()
        return self._free.pop()

    def grant_raw(self, ref: int, domid: int, mfn: int, flags: int) -> None:
        """Fill the entry of a reference: the frame first, then flags and domain in one store, which makes it valid."""
        entries = self.entries_i[ref >> 9]
        at = (ref & 511) << 1
        entries[at + 1] = mfn
        entries[at] = flags | domid << 16

    def revoke(self, ref: int) -> bool:
        """Make an entry invalid but keep the reference; False, and nothing changed, while a mapping uses it."""
        entries = self.entries_i[ref >> 9]
        at = (ref & 511) << 1
        if entries[at] & _IN_USE:
            return False
        entries[at] = GTF_invalid
        return True

    def end_access(self, ref: int) -> bool:
        """Take a grant back and free its reference; False, and nothing changed, while a mapping uses it."""
        entries = self.entries_i[ref >> 9]
        at = (ref & 511) << 1
        if entries[at] & _IN_USE:
            return False
        entries[at] = GTF_invalid
        self._free.append(ref)
        return True

    def end_access_many(self, refs: Iterable[int]) -> list[int]:
        """Take grants back; return the references that are still in use."""
        return [ref for ref in refs if not self.end_access(ref)]

    def is_in_use(self, ref: int) -> bool:
        """Return whether some mapping uses the grant."""
        return bool(self.entries_i[ref >> 9][(ref & 511) << 1] & _IN_USE)

    @property
    def granted(self) -> int:
        """How many references are taken (0..7 not counted)."""
        return max(0, len(self.entries_i) * PER_FRAME - RESERVED - len(self._free))

    def _grow(self) -> None:
        """Add a frame to the table."""
        frames = len(self.entries_i)
        if not frames:
            size = self._operate(GNTTABOP_query_size, gnttab_query_size, "GNTTABOP_query_size", dom=DOMID_SELF)
            self._max_frames = size.max_nr_frames
        if frames >= self._max_frames:
            raise GrantError(GNTST_no_space, f"granting beyond {frames} frames")
        mfn = self._setup(frames + 1)[-1]
        if frames:
            (view,) = self._mm.map_machine([mfn])
        else:
            # Most guests need one frame only. In the place of a page it saves them the page table of a window.
            view = self._mm.replace(self._mm.alloc_page(), mfn << PAGE_SHIFT)
        self.entries_i.append(view.cast("I"))
        first = frames * PER_FRAME
        # Lowest first, as a list that is popped from its end.
        self._free[:0] = range(first + PER_FRAME - 1, max(first, RESERVED) - 1, -1)

    def _setup(self, frames: int) -> list[int]:
        """Tell Xen how many frames the table shall have; return their machine frames."""
        page = self._hypercalls.page
        result = self._operate(
            GNTTABOP_setup_table,
            gnttab_setup_table,
            "GNTTABOP_setup_table",
            dom=DOMID_SELF,
            nr_frames=frames,
            frame_list=page.va + 64,
        )
        if result.status != GNTST_okay:
            raise GrantError(result.status, f"GNTTABOP_setup_table of {frames} frames")
        return page.q[8 : 8 + frames].tolist()

    def _operate(self, command: int, layout: Layout, operation: str, **members: Any) -> Value:
        return self._hypercalls.operate(HYPERVISOR_grant_table_op, command, layout, operation, 1, **members)

    # Mapping

    def map_refs(self, domid: int, refs: Sequence[int], writable: bool = True) -> list[MappedGrant]:
        """Map grants of domain `domid` at virtual addresses. Each has its own status; raises only OutOfMemory."""
        flags = GNTMAP_host_map if writable else GNTMAP_host_map | GNTMAP_readonly
        mapped: list[MappedGrant] = []
        for start in range(0, len(refs), MAP_BATCH):
            part = refs[start : start + MAP_BATCH]
            va = self._mm.alloc_va(len(part))
            addresses = [va + (index << PAGE_SHIFT) for index in range(len(part))]
            for ref, address, (status, handle, _) in zip(
                part, addresses, self._map(domid, part, flags, addresses), strict=True
            ):
                if status == GNTST_okay:
                    view = self._mm.view(address, writable)
                    mapped.append(MappedGrant(ref, status, handle, address, view))
                else:
                    self._mm.free_va(address, 1)
                    mapped.append(MappedGrant(ref, status))
        return mapped

    def unmap(self, grants: Iterable[MappedGrant]) -> None:
        """Undo `map_refs`; those that failed or are unmapped already are passed over. Keep no views of the pages.

        Raises GrantError if Xen refuses one, after all have been tried.
        """
        mapped = [grant for grant in grants if grant.status == GNTST_okay]
        refused = None
        statuses = self._unmap([(grant.va, 0, grant.handle) for grant in mapped])
        for grant, status in zip(mapped, statuses, strict=True):
            if status != GNTST_okay:
                refused = GrantError(status, f"unmapping reference {grant.ref}")
                continue
            self._mm.free_va(grant.va, 1)
            grant.status = GNTST_bad_handle
            grant.view = _NO_VIEW
        if refused is not None:
            raise refused

    def map_device(self, domid: int, refs: Sequence[int], writable: bool = True) -> list[DeviceGrant]:
        """Pin grants of domain `domid` for DMA: a list of (status, handle, machine address), as in `refs`."""
        flags = GNTMAP_device_map if writable else GNTMAP_device_map | GNTMAP_readonly
        return self._map(domid, refs, flags, None)

    def unmap_device(self, mappings: Iterable[tuple[int, int]]) -> list[int]:
        """Undo `map_device`, given (handle, machine address) of each; the list of statuses."""
        return self._unmap([(0, maddr, handle) for handle, maddr in mappings])

    def _map(self, domid: int, refs: Sequence[int], flags: int, addresses: Sequence[int] | None) -> list[DeviceGrant]:
        page = self._page("map")
        words = page.q
        call = self._hypercalls.call
        results: list[DeviceGrant] = []
        for start in range(0, len(refs), MAP_BATCH):
            part = refs[start : start + MAP_BATCH]
            count = len(part)
            end = count * _MAP_WORDS
            if addresses is None:
                words[0:end:_MAP_WORDS] = array("Q", bytes(8 * count))
            else:
                words[0:end:_MAP_WORDS] = array("Q", addresses[start : start + count])
            words[1:end:_MAP_WORDS] = array("Q", [flags | ref << 32 for ref in part])
            words[2:end:_MAP_WORDS] = array("Q", [domid] * count)
            result = call(HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, page.va, count)
            self._hypercalls.check(result, "GNTTABOP_map_grant_ref")
            results += [
                (((word >> 16 & 0xFFFF) ^ 0x8000) - 0x8000, word >> 32, maddr)
                for word, maddr in zip(words[2:end:_MAP_WORDS].tolist(), words[3:end:_MAP_WORDS].tolist(), strict=True)
            ]
        return results

    def _unmap(self, mappings: Sequence[tuple[int, int, int]]) -> list[int]:
        """Unmap (virtual address, machine address, handle) each; an address that is 0 stays as it is."""
        page = self._page("unmap")
        words = page.q
        call = self._hypercalls.call
        statuses: list[int] = []
        for start in range(0, len(mappings), UNMAP_BATCH):
            part = mappings[start : start + UNMAP_BATCH]
            end = len(part) * _UNMAP_WORDS
            words[0:end] = array("Q", [word for mapping in part for word in mapping])
            result = call(HYPERVISOR_grant_table_op, GNTTABOP_unmap_grant_ref, page.va, len(part))
            self._hypercalls.check(result, "GNTTABOP_unmap_grant_ref")
            statuses += [((word >> 32 & 0xFFFF) ^ 0x8000) - 0x8000 for word in words[2:end:_UNMAP_WORDS].tolist()]
        return statuses

    # Copying

    def copy(self, operations: Sequence[CopyOp]) -> list[int]:
        """Let Xen copy bytes between pages, each operation within one page on both sides; the list of statuses.

        A batch goes on after one that failed.
        """
        page = self._page("copy")
        view, halves = page.view, page.h
        call = self._hypercalls.call
        pack_into = COPY_OPERATION.pack_into
        size = COPY_OPERATION.size
        statuses: list[int] = []
        for start in range(0, len(operations), COPY_BATCH):
            part = operations[start : start + COPY_BATCH]
            at = 0
            for operation in part:
                pack_into(view, at, *operation, 0)
                at += size
            result = call(HYPERVISOR_grant_table_op, GNTTABOP_copy, page.va, len(part))
            self._hypercalls.check(result, "GNTTABOP_copy")
            statuses += [
                (status ^ 0x8000) - 0x8000 for status in halves[_COPY_STATUS : at >> 1 : _COPY_STRIDE].tolist()
            ]
        return statuses

    def _page(self, use: str) -> Page:
        """Return the page that holds the operations of one kind, made at first use."""
        page = self._pages.get(use)
        if page is None:
            page = self._pages[use] = self._mm.alloc_page()
        return page
