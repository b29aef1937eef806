"""Version 1 entries: 8 bytes, `flags, domid, frame`, with Xen's status bits among the flags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import grant_table as abi

if TYPE_CHECKING:
    from hypervisor.grant_table.table import GrantTable

ENTRY_MASK = 0xFFFF0000 | abi.GTF_type_mask
"""The bits of an entry's first word that say whom it is for and of which type it is."""

MAPPABLE_MASK = ENTRY_MASK | abi.GTF_sub_page
"""What must be right in the header of an entry that is to be mapped: a part of a frame cannot be, and version 1 entries
that claim to be one are refused too."""


class V1:
    """struct grant_entry_v1. One 64-bit load takes a whole entry, so a check and its use cannot disagree."""

    version = 1
    entries_per_frame = 512
    words = 1

    def set_status(self, table: GrantTable, ref: int, domid: int, *, readonly: bool, mapping: bool) -> int:
        """See EntryFormat. A single load and a single store: no loop that a granter could keep going (XSA-295)."""
        flags_at = table.status_at[ref]
        halves = table.memory.h
        word = table.memory.i[flags_at >> 1]
        mask = MAPPABLE_MASK if mapping else ENTRY_MASK
        if not table.pin[ref] and word & mask != domid << 16 | abi.GTF_permit_access:
            return abi.GNTST_general_error
        status = abi.GTF_reading
        if not readonly:
            if word & abi.GTF_readonly:
                return abi.GNTST_general_error
            status |= abi.GTF_writing
        if word & status != status:
            halves[flags_at] = word & 0xFFFF | status
            table.memory.written[flags_at >> 11] = 1
        return abi.GNTST_okay

    def frame(self, table: GrantTable, ref: int) -> int:
        """See EntryFormat."""
        return table.memory.q[table.slot[ref]] >> 32

    def subrange(self, table: GrantTable, ref: int) -> tuple[int, int] | None:
        """See EntryFormat: a version 1 entry has no room for a range, and a copy ignores GTF_sub_page."""
        return None

    def transitive(self, table: GrantTable, ref: int) -> tuple[int, int] | None:
        """See EntryFormat: there are no transitive grants in version 1."""
        return None

    def complete_transfer(self, table: GrantTable, ref: int, mfn: int) -> None:
        """See EntryFormat."""
        words = table.memory.i
        at = table.slot[ref] << 1
        words[at + 1] = mfn
        words[at] |= abi.GTF_transfer_completed
        table.memory.written[at >> 10] = 1

    def swap(self, table: GrantTable, first: int, second: int) -> None:
        """See EntryFormat."""
        words, written = table.memory.q, table.memory.written
        a, b = table.slot[first], table.slot[second]
        words[a], words[b] = words[b], words[a]
        written[a >> 9] = written[b >> 9] = 1
