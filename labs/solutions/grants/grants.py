"""Lab 6, solved."""

from __future__ import annotations

import struct

from hypervisor.abi import grant_table as gnttab
from hypervisor.abi import xen
from hypervisor.abi.cpu import Cpu

FIRST_REF = 8
ENTRIES = 512


class GrantError(Exception):
    """Xen has refused an operation; `status` is its GNTST_*."""

    def __init__(self, status: int) -> None:
        super().__init__(f"grant status {status}")
        self.status = status


class Grants:
    """What a domain grants, and what it uses of others."""

    def __init__(self, cpu: Cpu, page: int) -> None:
        self.cpu = cpu
        self.page = page
        self.table = memoryview(b"")
        self.free = list(range(FIRST_REF, ENTRIES))

    def operate(self, command: int, form: str, *members: int) -> tuple[int, ...]:
        """Make one operation of a grant table; return the structure as Xen left it."""
        view = self.cpu.view(self.page)
        struct.pack_into(form, view, 0, *members)
        result = self.cpu.hypercall(xen.HYPERVISOR_grant_table_op, command, self.page, 1)
        if result < 0:
            raise OSError(-result, "grant_table_op")
        return struct.unpack_from(form, view)

    def check(self, status: int) -> None:
        """Raise GrantError for a status that is not GNTST_okay."""
        if status != gnttab.GNTST_okay:
            raise GrantError(status)

    def setup(self, va: int) -> None:
        """Have Xen make a table of one frame, and map that at `va`, writable."""
        made = self.operate(gnttab.GNTTABOP_setup_table, "<H2xIh6xQ", xen.DOMID_SELF, 1, 0, self.page + 64)
        self.check(made[2])
        (mfn,) = struct.unpack_from("<Q", self.cpu.view(self.page), 64)
        result = self.cpu.hypercall(xen.HYPERVISOR_update_va_mapping, va, mfn << 12 | 3, xen.UVMF_INVLPG)
        if result < 0:
            raise OSError(-result, "update_va_mapping")
        self.table = self.cpu.view(va)

    def grant(self, domid: int, mfn: int, readonly: bool = False) -> int:
        """Grant domain `domid` access to a frame; return the reference."""
        ref = self.free.pop(0)
        struct.pack_into("<HI", self.table, 8 * ref + 2, domid, mfn)
        flags = gnttab.GTF_permit_access | (gnttab.GTF_readonly if readonly else 0)
        struct.pack_into("<H", self.table, 8 * ref, flags)
        return ref

    def end(self, ref: int) -> bool:
        """Take a grant back; return whether that was possible."""
        (flags,) = struct.unpack_from("<H", self.table, 8 * ref)
        if flags & (gnttab.GTF_reading | gnttab.GTF_writing):
            return False
        struct.pack_into("<H", self.table, 8 * ref, 0)
        self.free.append(ref)
        return True

    def map(self, domid: int, ref: int, va: int, readonly: bool = False) -> int:
        """Map a page that domain `domid` has granted at `va`; return the handle of the mapping."""
        flags = gnttab.GNTMAP_host_map | (gnttab.GNTMAP_readonly if readonly else 0)
        found = self.operate(gnttab.GNTTABOP_map_grant_ref, "<QIIHhIQ", va, flags, ref, domid, 0, 0, 0)
        self.check(found[4])
        return found[5]

    def unmap(self, va: int, handle: int) -> None:
        """Undo a mapping."""
        self.check(self.operate(gnttab.GNTTABOP_unmap_grant_ref, "<QQIh2x", va, 0, handle, 0)[3])

    def copy_from(self, domid: int, ref: int, offset: int, mfn: int, at: int, length: int) -> None:
        """Copy bytes from a page that domain `domid` has granted into an own frame."""
        source, dest = (ref, domid, offset), (mfn, xen.DOMID_SELF, at)
        members = (*source, *dest, length, gnttab.GNTCOPY_source_gref, 0)
        self.check(self.operate(gnttab.GNTTABOP_copy, "<QHH4xQHH4xHHh2x", *members)[8])
