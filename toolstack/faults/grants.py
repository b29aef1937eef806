"""Faults of grant operations: the hypervisor says no to one that was right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, final

from hypervisor.abi import grant_table as abi
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from toolstack.faults.fault import Fault

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu

_MAP, _COPY = abi.gnttab_map_grant_ref, abi.gnttab_copy
_POINTER: Final = abi.gnttab_copy_ptr
BAD_REF: Final = 0xFFFF_FFFF
"""No table has so many entries: the answer is GNTST_bad_gntref."""


@final
class GrantFail(Fault):
    """Mapping and copying of the victim's grants fails with GNTST_bad_gntref, as if they had just been revoked."""

    def before_operations(self, vcpu: VCpu, cmd: int, address: int, count: int) -> Callable[[], None] | None:
        """Spoil the references of some operations; return what puts them right again."""
        if not self.active or cmd not in (abi.GNTTABOP_map_grant_ref, abi.GNTTABOP_copy):
            return None
        size = _MAP.size if cmd == abi.GNTTABOP_map_grant_ref else _COPY.size
        places = _map_places if cmd == abi.GNTTABOP_map_grant_ref else _copy_places
        spoiled = []
        for number in range(min(count, 512)):
            at = address + number * size
            try:
                raw = copy_from_guest(vcpu, at, size)
                for place, domid in places(raw):
                    if domid != DOMID_SELF and self.is_victim(domid) and self.strikes():
                        old = raw[place : place + 4]
                        copy_to_guest(vcpu, at + place, BAD_REF.to_bytes(4, "little"))
                        spoiled.append((at + place, old))
                        ref = int.from_bytes(old, "little")
                        self.note(f"An operation of domain {vcpu.domain.domid} on grant {ref} fails.", domid)
            except HypercallError:
                break  # the call itself will say so
        return partial(_restore, vcpu, spoiled) if spoiled else None


def _restore(vcpu: VCpu, spoiled: list[tuple[int, bytes]]) -> None:
    for at, old in spoiled:
        copy_to_guest(vcpu, at, old)


def _map_places(raw: bytes) -> list[tuple[int, int]]:
    return [(_MAP.offset("ref"), int.from_bytes(raw[_MAP.offset("dom") :][:2], "little"))]


def _copy_places(raw: bytes) -> list[tuple[int, int]]:
    """Return where an operation names references, and whose they are."""
    flags = int.from_bytes(raw[_COPY.offset("flags") :][:2], "little")
    found = []
    for side, flag in (("source", abi.GNTCOPY_source_gref), ("dest", abi.GNTCOPY_dest_gref)):
        if flags & flag:
            at = _COPY.offset(side)
            found.append((at, int.from_bytes(raw[at + _POINTER.offset("domid") :][:2], "little")))
    return found
