"""Faults of supply: there is nothing more to be had of something that everybody takes for granted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Final, final

from toolstack.faults.fault import Fault

if TYPE_CHECKING:
    from hypervisor.domain import Domain

FAULT_CLAIM: Final = -1
"""In whose name memory is claimed: nobody's."""


class _Limit(Fault, ABC):
    """A limit of the victim that is lowered to what it has, and put back."""

    needs_victim: ClassVar[bool] = True
    _limited: Domain | None = None
    _before = 0

    def begin(self) -> None:
        """Lower it."""
        victim = self.world.domain(self.spec.domain)
        if victim is not None:
            self._limited = victim
            self._before = self.swap(victim, None)

    def end(self) -> None:
        """Put it back."""
        limited, self._limited = self._limited, None
        if limited is not None:
            self.swap(limited, self._before)

    @abstractmethod
    def swap(self, victim: Domain, limit: int | None) -> int:
        """Set a limit (None: what there is now) and return the one before."""


@final
class ExhaustPorts(_Limit):
    """The victim gets no more event channels (ENOSPC)."""

    def swap(self, victim: Domain, limit: int | None) -> int:
        """Set `max_evtchn_port`."""
        before = victim.max_evtchn_port
        victim.max_evtchn_port = -1 if limit is None else limit
        if limit is None:
            self.note("It gets no more event channels.")
        return before


@final
class ExhaustGrants(_Limit):
    """The victim's grant table does not grow any more."""

    def swap(self, victim: Domain, limit: int | None) -> int:
        """Set the greatest number of frames."""
        table = victim.grant_table
        before = table.max_frames
        table.max_frames = len(table.shared) if limit is None else limit
        if limit is None:
            self.note(f"Its grant table keeps its {len(table.shared)} frames.")
        return before


@final
class ExhaustMemory(Fault):
    """The host has no memory left for anybody (ENOMEM)."""

    def begin(self) -> None:
        """Claim all that is free, in nobody's name (as XENMEM_claim_pages)."""
        mm = self.world.hv.mm
        free = mm.frames.free_frames - sum(mm.claims.outstanding.values())
        mm.claims.outstanding[FAULT_CLAIM] = free
        self.note(f"The {free} frames that were free are not to be had.", 0)

    def end(self) -> None:
        """Give it back."""
        self.world.hv.mm.claims.outstanding.pop(FAULT_CLAIM, None)


@final
class ExhaustQuota(Fault):
    """The victim owns as many nodes of the store as it may (EQUOTA)."""

    needs_victim: ClassVar[bool] = True

    def begin(self) -> None:
        """Have dom0 give it so many."""
        if self.world.domain(self.spec.domain) is not None:
            self.note("It owns as many nodes of the store as it may.")
            self.world.order(f"fill-quota {self.spec.domain}")

    def end(self) -> None:
        """Have dom0 take them away."""
        if self.world.domain(self.spec.domain) is not None:
            self.world.order(f"free-quota {self.spec.domain}")
