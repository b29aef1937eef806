"""Lab 6: grant tables. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import struct  # noqa: F401

from hypervisor.abi import grant_table as gnttab  # noqa: F401
from hypervisor.abi import xen  # noqa: F401
from hypervisor.abi.cpu import Cpu

FIRST_REF = 8
"""Those before are the toolstack's."""
ENTRIES = 512
"""Of one frame of the table."""


class GrantError(Exception):
    """Xen has refused an operation; `status` is its GNTST_*."""

    def __init__(self, status: int) -> None:
        super().__init__(f"grant status {status}")
        self.status = status


class Grants:
    """What a domain grants, and what it uses of others. `page` is a free page for arguments."""

    def __init__(self, cpu: Cpu, page: int) -> None:
        self.cpu = cpu
        self.page = page
        self.table = memoryview(b"")
        """The first frame of the grant table, once it has been set up."""

    def setup(self, va: int) -> None:
        """Have Xen make a table of one frame, and map that at `va`, writable. Raises GrantError."""
        raise NotImplementedError("GNTTABOP_setup_table tells the frame; update_va_mapping maps it")

    # For others

    def grant(self, domid: int, mfn: int, readonly: bool = False) -> int:
        """Grant domain `domid` access to a frame; return the reference."""
        raise NotImplementedError("a reference that is free; domid and frame, then flags")

    def end(self, ref: int) -> bool:
        """Take a grant back; return whether that was possible. One that is in use stays as it is.

        A reference that has been taken back can be used again.
        """
        raise NotImplementedError("look at GTF_reading and GTF_writing")

    # From others. Each raises GrantError if the status is not GNTST_okay.

    def map(self, domid: int, ref: int, va: int, readonly: bool = False) -> int:
        """Map a page that domain `domid` has granted at `va`; return the handle of the mapping."""
        raise NotImplementedError("GNTTABOP_map_grant_ref")

    def unmap(self, va: int, handle: int) -> None:
        """Undo a mapping."""
        raise NotImplementedError("GNTTABOP_unmap_grant_ref")

    def copy_from(self, domid: int, ref: int, offset: int, mfn: int, at: int, length: int) -> None:
        """Copy bytes from a page that domain `domid` has granted into an own frame, from `offset` to `at`."""
        raise NotImplementedError("GNTTABOP_copy; the source is a reference, the destination is not")
