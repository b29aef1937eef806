"""What becomes of a domain's mappings when it dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import grant_table as abi
from hypervisor.grant_table.mapping import drop
from hypervisor.grant_table.pins import INCREMENT, MAP_KIND_MASK

if TYPE_CHECKING:
    from hypervisor.domain import Domain


def release_mappings(domain: Domain) -> None:
    """Give up every mapping that a domain has of others' grants, and its handles.

    The references of host mappings are not touched: the page table entries hold them, and drop them when the domain's
    page tables are taken apart.
    """
    maptrack = domain.grant_table.maptrack
    for handle in maptrack.live():
        flags, table, ref = maptrack.flags[handle], maptrack.table[handle], maptrack.ref[handle]
        maptrack.put(handle)
        if table is None or table.dead:
            continue
        readonly = bool(flags & abi.GNTMAP_readonly)
        mfn = table.mfn[ref]
        table.release(ref, INCREMENT[flags & MAP_KIND_MASK], readonly=readonly)
        if not readonly:
            table.memory.written[mfn] = 1
        if flags & abi.GNTMAP_device_map:
            drop(table, mfn, readonly)
