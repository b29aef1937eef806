"""What becomes of a domain's mappings when it dies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hypervisor.abi import grant_table as abi
from hypervisor.grant_table.mapping import drop
from hypervisor.grant_table.maptrack import HANDLES_PER_FRAME
from hypervisor.grant_table.pins import INCREMENT, MAP_KIND_MASK

if TYPE_CHECKING:
    from hypervisor.domain import Domain


def release_mappings(domain: Domain) -> Iterator[bool]:
    """Give up every mapping that a domain has of others' grants, and its handles: the last ones first, frame by frame.

    Yields False after each frame of handles but the last (Xen can be preempted there). The references of host mappings
    are not touched: the page table entries hold them, and drop them when the domain's page tables are taken apart.
    """
    maptrack = domain.grant_table.maptrack
    for first in range((maptrack.frames - 1) * HANDLES_PER_FRAME, -1, -HANDLES_PER_FRAME):
        for handle in range(first + HANDLES_PER_FRAME - 1, first - 1, -1):
            if maptrack.flags[handle]:
                _release(domain, handle)
        if first:
            yield False


def _release(domain: Domain, handle: int) -> None:
    maptrack = domain.grant_table.maptrack
    flags, table, ref = maptrack.flags[handle], maptrack.table[handle], maptrack.ref[handle]
    maptrack.put(handle)
    if table is None or table.dead:
        return
    readonly = bool(flags & abi.GNTMAP_readonly)
    mfn = table.mfn[ref]
    table.release(ref, INCREMENT[flags & MAP_KIND_MASK], readonly=readonly)
    if not readonly:
        table.memory.written[mfn] = 1
    if flags & abi.GNTMAP_device_map:
        drop(table, mfn, readonly)
