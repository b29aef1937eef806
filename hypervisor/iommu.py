"""The IOMMU: which frames a device may reach that is assigned to a driver domain.

A device belongs to the domain that the toolstack gave its interrupt line to (domctl irq_permission); dom0 has all the
others, and they reach all memory, as on a Xen whose hardware domain passes through. A driver domain's device reaches
the frames of that domain that are writable, and those that other domains have granted to it for as long as they are
mapped. Writable is a type: page tables and descriptor tables are checked whenever the guest changes them, and a device
that could write there would change them unchecked. As in Xen, whose IOMMU maps a PV domain's frame as long as its type
is PGT_writable_page (_get_page_type).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.mm.frame_table import PGT_writable_page

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor

Allowed = Callable[[int], bool]
"""`allowed(mfn)`: whether the device may access the frame. Valid until guest code runs again."""

Reach = Callable[[int, int], bool]
"""`reach(first, count)`: whether the device may access all of these frames, which exist, at that moment."""


class Iommu:
    """Assignments of devices, by their interrupt lines."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv
        self.assigned: dict[int, Domain] = {}
        """By line; of all others `context` is None."""
        self._reaches: dict[int, Reach] = {}
        self.on_release: dict[int, Callable[[], None]] = {}
        """By line: what resets a device that acts by itself, when the domain that has it loses it."""

    def assign(self, line: int, domain: Domain) -> None:
        """Give the device on an interrupt line to a domain."""
        self.assigned[line] = domain
        self._reaches[line] = self._make_reach(domain)

    def release(self, line: int, domain: Domain) -> None:
        """Take a device away from a domain, if it has it; it is dom0's again."""
        if self.assigned.get(line) is domain:
            del self.assigned[line], self._reaches[line]
            reset = self.on_release.get(line)
            if reset is not None:
                reset()

    def context(self, line: int) -> Allowed | None:
        """Return what the device on a line may access now; None if it may access everything."""
        domain = self.assigned.get(line)
        if domain is None:
            return None
        frames = self._hv.frames
        tags, types, end, tag = frames.owner_tag, frames.type, frames.frames, domain.domid + 1
        granted: set[int] | None = None

        def allowed(mfn: int) -> bool:
            nonlocal granted
            if mfn < end and tags[mfn] == tag and types[mfn] == PGT_writable_page:
                return True
            if granted is None:
                granted = mapped_frames(domain)
            return mfn in granted

        return allowed

    def reach(self, line: int) -> Reach | None:
        """Return the same as `context`, for a device that accesses neighbouring frames at once."""
        return self._reaches.get(line)

    def _make_reach(self, domain: Domain) -> Reach:
        frames, domid = self._hv.frames, domain.domid
        tags, types, tag = frames.owner_tag, frames.type, domid + 1
        own: dict[int, tuple[bytes, bytes]] = {}
        writable = bytes([PGT_writable_page])

        def reach(first: int, count: int) -> bool:
            # Nearly always it is the domain's own memory.
            if count == 1:
                if tags[first] == tag and types[first] == PGT_writable_page:
                    return True
            else:
                expected = own.get(count)
                if expected is None:
                    expected = own[count] = array("H", [tag]).tobytes() * count, writable * count
                end = first + count
                if (tags[first:end].tobytes(), types[first:end].tobytes()) == expected:
                    return True
            granted = mapped_frames(domain)
            return all(
                (tags[mfn] == tag and types[mfn] == PGT_writable_page) or mfn in granted
                for mfn in range(first, first + count)
            )

        return reach


def mapped_frames(domain: Domain) -> set[int]:
    """Return the frames of other domains that a domain has mapped through grants."""
    maptrack = domain.grant_table.maptrack
    frames = set()
    for handle, flags in enumerate(maptrack.flags):
        table = maptrack.table[handle]
        if flags and table is not None:
            frames.add(table.mfn[maptrack.ref[handle]])
    return frames
