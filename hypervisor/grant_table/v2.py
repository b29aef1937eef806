"""Version 2 entries: 16 bytes, of which only the guest writes; Xen's status bits have pages of their own.

An entry grants a whole frame (`full_page`), a part of one (`sub_page`, only for copies), or passes on what its domain
was granted by another one (`transitive`, only for copies).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import grant_table as abi
from hypervisor.grant_table.v1 import ENTRY_MASK, MAPPABLE_MASK

if TYPE_CHECKING:
    from hypervisor.grant_table.table import GrantTable


class V2:
    """union grant_entry_v2. Each first half (flags, domid, and what the type puts behind them) is one 64-bit load."""

    version = 2
    entries_per_frame = 256
    words = 2

    def set_status(self, table: GrantTable, ref: int, domid: int, *, readonly: bool, mapping: bool) -> int:
        """See EntryFormat. The status word is Xen's, so the granter cannot make this take longer."""
        header = table.memory.i[table.slot[ref] << 1]
        if not table.pin[ref]:
            wanted = domid << 16 | abi.GTF_permit_access
            if mapping:
                usable = header & MAPPABLE_MASK == wanted
            else:
                usable = header & ENTRY_MASK in (wanted, domid << 16 | abi.GTF_transitive)
            if not usable:
                return abi.GNTST_general_error
        status = abi.GTF_reading
        if not readonly:
            if header & abi.GTF_readonly:
                return abi.GNTST_general_error
            status |= abi.GTF_writing
        at = table.status_at[ref]
        table.memory.h[at] |= status
        table.memory.written[at >> 11] = 1
        return abi.GNTST_okay

    def frame(self, table: GrantTable, ref: int) -> int:
        """See EntryFormat."""
        return table.memory.q[table.slot[ref] + 1]

    def subrange(self, table: GrantTable, ref: int) -> tuple[int, int] | None:
        """See EntryFormat."""
        word = table.memory.q[table.slot[ref]]
        if not word & abi.GTF_sub_page:
            return None
        return word >> 32 & 0xFFFF, word >> 48

    def transitive(self, table: GrantTable, ref: int) -> tuple[int, int] | None:
        """See EntryFormat."""
        slot = table.slot[ref]
        word = table.memory.q[slot]
        if word & abi.GTF_type_mask != abi.GTF_transitive:
            return None
        return word >> 32 & 0xFFFF, table.memory.i[(slot << 1) + 2]

    def complete_transfer(self, table: GrantTable, ref: int, mfn: int) -> None:
        """See EntryFormat."""
        slot = table.slot[ref]
        table.memory.q[slot + 1] = mfn
        table.memory.h[slot << 2] |= abi.GTF_transfer_completed
        table.memory.written[slot >> 9] = 1

    def swap(self, table: GrantTable, first: int, second: int) -> None:
        """See EntryFormat."""
        words, halves, written = table.memory.q, table.memory.h, table.memory.written
        a, b = table.slot[first], table.slot[second]
        for offset in range(self.words):
            words[a + offset], words[b + offset] = words[b + offset], words[a + offset]
        written[a >> 9] = written[b >> 9] = 1
        a, b = table.status_at[first], table.status_at[second]
        halves[a], halves[b] = halves[b], halves[a]
        written[a >> 11] = written[b >> 11] = 1
