"""GNTTABOP_set_version: from one format of entries to the other.

The first eight entries (GNTTAB_NR_RESERVED_ENTRIES) are kept and may be in use meanwhile, since a toolstack writes some
of them before the guest runs: the console and xenstore rings. All others must be unused, and are cleared.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from hypervisor.abi import errno
from hypervisor.abi import grant_table as abi
from hypervisor.grant_table.v1 import V1
from hypervisor.grant_table.v2 import V2

if TYPE_CHECKING:
    from hypervisor.grant_table.table import GrantTable

RESERVED = abi.GNTTAB_NR_RESERVED_ENTRIES
STATUS_BITS = abi.GTF_reading | abi.GTF_writing
ENTRY_V1 = Struct("<HHI")
ENTRY_V2 = Struct("<HHIQ")

Kept = list[tuple[int, int, int]]
"""The reserved entries: flags with the status bits, domid, frame."""


def set_version(table: GrantTable, version: int) -> int:
    """Change the format of a table; returns 0 or a positive errno, with nothing changed.

    EINVAL: no such version. ENOSYS: not allowed to this domain. EBUSY: an entry is in use, or a status frame is mapped.
    ERANGE: a reserved entry says what version 1 cannot. ENOMEM: no room for the status frames.
    """
    if version not in (1, 2):
        return errno.EINVAL
    if version > table.max_version:
        return errno.ENOSYS
    if version == table.version:
        return 0
    if any(table.pin[RESERVED:]):
        return errno.EBUSY
    return _to_v2(table) if version == 2 else _to_v1(table)


def _to_v2(table: GrantTable) -> int:
    if not table.add_status_frames(len(table.shared)):
        return errno.ENOMEM
    memory = table.memory
    kept: Kept = [ENTRY_V1.unpack_from(memory.b, slot << 3) for slot in table.slot[:RESERVED]]
    _clear(table)
    table.format = V2()
    table.index_entries()
    for slot, at, (flags, domid, frame) in zip(table.slot, table.status_at, kept, strict=False):
        ENTRY_V2.pack_into(memory.b, slot << 3, flags & ~STATUS_BITS, domid, 0, frame)
        memory.h[at] = flags & STATUS_BITS
    return 0


def _to_v1(table: GrantTable) -> int:
    memory = table.memory
    kept: Kept = []
    for slot, at in zip(table.slot[:RESERVED], table.status_at, strict=False):
        flags, domid, _, frame = ENTRY_V2.unpack_from(memory.b, slot << 3)
        kind = flags & abi.GTF_type_mask
        if kind == abi.GTF_transitive or (kind == abi.GTF_permit_access and frame >> 32):
            return errno.ERANGE
        # An offer to take a page is not kept.
        is_access = kind == abi.GTF_permit_access
        kept.append((flags | memory.h[at], domid, frame & 0xFFFFFFFF) if is_access else (0, 0, 0))
    if not table.remove_status_frames():
        return errno.EBUSY
    _clear(table)
    table.format = V1()
    table.index_entries()
    for slot, entry in zip(table.slot, kept, strict=False):
        ENTRY_V1.pack_into(memory.b, slot << 3, *entry)
    return 0


def _clear(table: GrantTable) -> None:
    for mfn in table.shared:
        table.memory.write(mfn << 12, bytes(4096))
