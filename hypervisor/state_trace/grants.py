"""Grants: the entries as the granter wrote them, how often each is in use, and what domains have mapped."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, final

from hypervisor.abi import tracepoints as tp

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.grant_table.table import GrantTable
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.trace import Emit

_V1 = Struct("<HHI")
"""flags, domid, frame (grant_table.h, grant_entry_v1)"""
_V2 = Struct("<HHIQ")
"""flags, domid, padding, frame (grant_entry_v2, full_page)"""
_STEP = 128
"""Bytes that are compared at once, where something has changed."""

Entry = tuple[int, int, int, int]
"""Flags (the status bits among them), domain, frame, pin."""


def entry(table: GrantTable, ref: int) -> Entry:
    """Return an entry as it is in the guest's memory, and how it is pinned."""
    memory = table.memory
    at = table.slot[ref] << 3
    pin = table.pin[ref]
    if table.version == 1:
        flags, domid, frame = _V1.unpack_from(memory.b, at)
    else:
        flags, domid, _, frame = _V2.unpack_from(memory.b, at)
        flags |= memory.h[table.status_at[ref]]
    return flags, domid, frame, pin


@final
class _DomainGrants:
    """What was last told of a domain."""

    __slots__ = ("domain", "entries", "flags", "mappings", "pins", "seen")

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.entries: dict[int, Entry] = {}
        self.seen: tuple[int, bytes, bytes] = (0, b"", b"")
        """The version, and the bytes that the entries were read from."""
        self.pins: list[int] = []
        self.flags: list[int] = []
        self.mappings: dict[int, tuple[int, int, int]] = {}
        """Handle → granter, reference, flags."""


@final
class GrantWatch:
    """Looks at the grant tables of all domains."""

    def __init__(self, hv: Hypervisor, emit: Emit) -> None:
        self._hv = hv
        self._emit = emit
        self._domains: dict[int, _DomainGrants] = {}

    def _of(self, domain: Domain) -> _DomainGrants:
        known = self._domains.get(domain.domid)
        if known is None or known.domain is not domain:
            known = self._domains[domain.domid] = _DomainGrants(domain)
        return known

    def look(self) -> None:
        """Emit which entries have changed."""
        for domain in self._hv.domains.values():
            table = domain.grant_table
            known = self._of(domain)
            now = table.version, self._bytes(table.shared), self._bytes(table.status_frames)
            if now != known.seen:
                refs = self._changed(known.seen, now, len(table.pin))
                known.seen = now
                for ref in refs:
                    self._tell_entry(known, table, ref)

    def _bytes(self, mfns: list[int]) -> bytes:
        return b"".join([self._hv.memory.frame(mfn) for mfn in mfns])

    def _changed(
        self, before: tuple[int, bytes, bytes], now: tuple[int, bytes, bytes], entries: int
    ) -> Iterator[int] | range:
        """Return the references whose entries may have changed."""
        if before[0] != now[0] or before[2] != now[2] or len(before[1]) != len(now[1]):
            return range(entries)
        size = 8 if now[0] == 1 else 16
        old, new = before[1], now[1]
        return (
            ref
            for at in range(0, len(new), _STEP)
            if old[at : at + _STEP] != new[at : at + _STEP]
            for ref in range(at // size, min((at + _STEP) // size, entries))
        )

    def _tell_entry(self, known: _DomainGrants, table: GrantTable, ref: int) -> None:
        now = entry(table, ref)
        nothing = not (now[0] or now[3])
        if known.entries.get(ref, (0, 0, 0, 0)) == now or (nothing and ref not in known.entries):
            return
        if nothing:
            del known.entries[ref]
            now = 0, 0, 0, 0
        else:
            known.entries[ref] = now
        self._emit(known.domain.domid, 0, tp.STATE_GRANT, ref, *now)

    def look_at_uses(self) -> None:
        """Emit which entries are used more or less than before, and which handles stand for something else."""
        for domain in self._hv.domains.values():
            table, known = domain.grant_table, self._of(domain)
            if table.pin != known.pins:
                old, known.pins = known.pins, table.pin[:]
                old += [0] * (len(table.pin) - len(old))
                for ref, (before, now) in enumerate(zip(old, table.pin, strict=False)):
                    if before != now:
                        self._tell_entry(known, table, ref)
            self._look_at_handles(known)
        for domid in [domid for domid in self._domains if domid not in self._hv.domains]:
            gone = self._domains.pop(domid)
            for ref in gone.entries:
                self._emit(domid, 0, tp.STATE_GRANT, ref, 0, 0, 0, 0)
            for handle, (granter, ref, _) in gone.mappings.items():
                self._emit(domid, 0, tp.STATE_MAPPING, handle, granter, ref, 0)

    def _look_at_handles(self, known: _DomainGrants) -> None:
        maptrack = known.domain.grant_table.maptrack
        if maptrack.flags == known.flags and not any(maptrack.flags):
            return
        known.flags = maptrack.flags[:]
        now = {
            handle: (table.domain.domid, maptrack.ref[handle], flags)
            for handle, flags in enumerate(known.flags)
            if flags and (table := maptrack.table[handle]) is not None
        }
        if now == known.mappings:
            return
        before, known.mappings = known.mappings, now
        for handle in sorted(before.keys() | now.keys()):
            if before.get(handle) != now.get(handle):
                granter, ref, flags = now.get(handle) or (*before[handle][:2], 0)
                self._emit(known.domain.domid, 0, tp.STATE_MAPPING, handle, granter, ref, flags)
