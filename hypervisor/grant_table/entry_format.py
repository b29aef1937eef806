"""What depends on the version of a grant table: how an entry looks in the pages that are shared with the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hypervisor.grant_table.table import GrantTable


class EntryFormat(Protocol):
    """One version of the shared entries. Formats hold no state: everything is in the table that is passed in.

    Each method reads a word of the shared entry at most once: the granter may rewrite it at any time, so what was
    checked must be what is used.
    """

    version: int
    entries_per_frame: int
    words: int
    """64-bit words of an entry."""

    def set_status(self, table: GrantTable, ref: int, domid: int, *, readonly: bool, mapping: bool) -> int:
        """Check that domain `domid` may use an entry so, and set GTF_reading (and GTF_writing) for it.

        An entry that is pinned already was checked when it was first used: only read-only is looked at again.
        Returns GNTST_okay or GNTST_general_error; on an error no flag was set.
        """
        ...

    def frame(self, table: GrantTable, ref: int) -> int:
        """Return the frame that an entry names."""
        ...

    def subrange(self, table: GrantTable, ref: int) -> tuple[int, int] | None:
        """Return (offset, length) when the entry grants a part of its frame only."""
        ...

    def transitive(self, table: GrantTable, ref: int) -> tuple[int, int] | None:
        """Return (domid, ref) of the entry that this one passes on, or None for any other type of entry."""
        ...

    def complete_transfer(self, table: GrantTable, ref: int, mfn: int) -> None:
        """Tell the guest which frame it got through an entry, then that it got it."""
        ...

    def swap(self, table: GrantTable, first: int, second: int) -> None:
        """Exchange two entries, with their status bits."""
        ...
