"""Is the account of grants right? Counted anew from maptrack, for tests and for the end of a run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypervisor.abi import grant_table as abi
from hypervisor.errors import InvariantError
from hypervisor.grant_table.pins import INCREMENT, MAP_KIND_MASK, counts
from hypervisor.mm.frame_table import XEN_HEAP, PGT_none, PGT_writable_page

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.grant_table.table import GrantTable
    from hypervisor.hypervisor import Hypervisor

READONLY = abi.GNTMAP_readonly


def check_grants(hv: Hypervisor) -> None:
    """Raise InvariantError unless pins, handles, references and frames of all grant tables agree with each other."""
    pins: Counter[tuple[int, int]] = Counter()
    users: dict[tuple[int, int], set[int]] = {}
    for domain in hv.domains.values():
        domain.grant_table.maptrack.check()
        for table, ref, flags in _mappings(domain):
            entry = table.domain.domid, ref
            pins[entry] += INCREMENT[flags & MAP_KIND_MASK]
            users.setdefault(entry, set()).add(domain.domid)
    for domain in hv.domains.values():
        table = domain.grant_table
        _check_frames(table)
        for ref, pin in enumerate(table.pin):
            entry = domain.domid, ref
            if pin != pins[entry]:
                counted = counts(pins[entry])
                raise InvariantError(f"grant {ref} of domain {domain.domid} is pinned {counts(pin)}, not {counted}")
            if pin and users[entry] != {table.grantee[ref]}:
                raise InvariantError(f"grant {ref} of domain {domain.domid} is mapped by {sorted(users[entry])}")
    _check_references(hv)


def held_references(hv: Hypervisor) -> list[tuple[int, int]]:
    """Return (frame, type) for each reference that a device mapping holds; type 0 for a reference without a type.

    Host mappings hold none of their own: theirs are those of the page table entry.
    """
    held = []
    for domain in hv.domains.values():
        for table, ref, flags in _mappings(domain):
            if flags & abi.GNTMAP_device_map:
                held.append((table.mfn[ref], PGT_none if flags & READONLY else PGT_writable_page))
    return held


def leaks(domain: Domain) -> list[str]:
    """Say what is still mapped from or by a domain that should have nothing mapped any more."""
    found = []
    table = domain.grant_table
    for ref, pin in enumerate(table.pin):
        if pin:
            uses = ", ".join(f"{n} {kind}" for n, kind in zip(counts(pin), _KINDS, strict=True) if n)
            found.append(
                f"grant {ref} of domain {domain.domid} (frame {table.mfn[ref]:#x}) is in use by domain "
                f"{table.grantee[ref]}: {uses}"
            )
    maptrack = table.maptrack
    for handle in maptrack.live():
        owner = maptrack.table[handle]
        granter = owner.domain.domid if owner is not None else -1
        found.append(
            f"handle {handle} of domain {domain.domid} still maps grant {maptrack.ref[handle]} of domain {granter}"
        )
    return found


_KINDS = ("for reading by devices", "for writing by devices", "for reading", "for writing")


def _mappings(domain: Domain) -> list[tuple[GrantTable, int, int]]:
    """Return (granter's table, entry, flags) of each live mapping of a domain."""
    maptrack = domain.grant_table.maptrack
    found = []
    for handle in maptrack.live():
        table = maptrack.table[handle]
        if table is None or not maptrack.flags[handle] & (abi.GNTMAP_device_map | abi.GNTMAP_host_map):
            raise InvariantError(f"handle {handle} of domain {domain.domid} is in use for nothing")
        if not table.dead:
            found.append((table, maptrack.ref[handle], maptrack.flags[handle]))
    return found


def _check_frames(table: GrantTable) -> None:
    """The frames of a table belong to Xen and are lent to the domain, each once (XSA-26)."""
    mfns = table.shared + table.status_frames
    if len(set(mfns)) != len(mfns):
        raise InvariantError(f"a frame is twice in the grant table of domain {table.domain.domid}")
    frames = table.frames
    owner = table.domain.domid
    for mfn in mfns:
        if frames.owner(mfn) != owner or not frames.flags[mfn] & XEN_HEAP:
            raise InvariantError(f"frame {mfn:#x} of the grant table of domain {table.domain.domid} is not lent to it")
    entries = len(table.shared) * table.format.entries_per_frame
    if len(table.pin) != entries or table.nr_entries != entries:
        raise InvariantError(f"the grant table of domain {table.domain.domid} has the wrong number of entries")


def _check_references(hv: Hypervisor) -> None:
    """Frames that devices reach are held: referenced, and writable where devices may write (XSA-224, XSA-236)."""
    frames = hv.frames
    for (mfn, kind), needed in sorted(Counter(held_references(hv)).items()):
        if frames.count[mfn] < needed:
            raise InvariantError(f"frame {mfn:#x} has {frames.count[mfn]} references, device mappings need {needed}")
        if kind and (frames.type[mfn] != kind or frames.type_count[mfn] < needed):
            raise InvariantError(f"frame {mfn:#x} is mapped for writing by {needed} devices but is not held writable")
