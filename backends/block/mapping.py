"""From segment descriptors to machine addresses: what of a frontend's memory the disk may touch, and for how long.

A segment names a grant. Mapping it for a device (GNTMAP_device_map) pins the frame and tells its machine address, which
is all that a disk's DMA needs: no page table changes, and no byte passes through this domain. With persistent grants
the mapping stays, up to a bound, and the same descriptors lead to the same extents next time: those *plans* are kept
too, by the descriptors' bytes, so that a request of a well-known slot costs one look-up, whatever its size.

Neighbours in the request are one piece for the disk only if they are neighbours in machine memory, too (XSA-229).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, final

from backends.block.protocol import Segment
from guest_kernel.hw.disk import pack_segments
from hypervisor.abi.device import DISK_MAX_SEGMENTS
from hypervisor.abi.grant_table import GNTST_okay

if TYPE_CHECKING:
    from guest_kernel.grants import Grants

MAX_EXTENTS = DISK_MAX_SEGMENTS
"""How many a command of the disk has room for."""
MAX_PLANS = 1024
"""Plans kept for one frontend; one that sends ever new descriptors makes the backend start over, no more."""

Extent = tuple[int, int]
"""Machine address, number of bytes."""
Mapping = tuple[int, int]
"""Grant handle and machine address: what unmapping needs."""


@final
class Persistent:
    """A grant that stays mapped."""

    __slots__ = ("last_use", "mapping")

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.last_use = 0


@final
class Plan:
    """Where the bytes of a request are: extents, packed for the disk driver, and the persistent grants they lie in."""

    __slots__ = ("extents", "last_use", "more", "refs", "sectors", "valid")

    def __init__(self, extents: list[Extent], refs: Sequence[int], sector_size: int) -> None:
        self.extents = pack_segments(extents[:MAX_EXTENTS])
        self.more: Sequence[tuple[int, bytes]] = ()
        """What a command has no room for: where on the disk, in sectors from the first one on, and extents."""
        if len(extents) > MAX_EXTENTS:
            self.more = tuple(
                (sum(size for _, size in extents[:n]) // sector_size, pack_segments(extents[n : n + MAX_EXTENTS]))
                for n in range(MAX_EXTENTS, len(extents), MAX_EXTENTS)
            )
        self.refs = refs
        self.sectors = sum(size for _, size in extents) // sector_size
        self.last_use = 0
        self.valid = True
        """Whether it may be used by who has not looked it up just now: its grants are mapped."""


@final
class GrantMapper:
    """The grants of one frontend that this backend has mapped."""

    __slots__ = ("_domid", "_grants", "_sector_size", "clock", "limit", "persistent", "plans")

    def __init__(self, grants: Grants, domid: int, limit: int, sector_size: int) -> None:
        self._grants = grants
        self._domid = domid
        self._sector_size = sector_size
        self.limit = limit
        """How many grants may stay mapped: 0 without persistent grants."""
        self.persistent: dict[int, Persistent] = {}
        self.plans: dict[bytes, Plan] = {}
        """By the bytes of the segment descriptors; holds only plans all of whose grants are persistent, and none
        that takes more than one command of the disk: so there is a bound to the memory for them."""
        self.clock = 0
        """Counts wake-ups: the time by which grants are least recently used."""

    def map(
        self, batch: Sequence[tuple[bytes, list[Segment], bool]], in_use: Iterable[int]
    ) -> list[tuple[Plan | None, list[Mapping]]]:
        """Map what a batch of requests needs, in one hypercall for each kind of access.

        Of each request: its descriptors, the checked segments, and whether the disk will write to them. Returns for
        each a plan, or None if one of its grants could not be mapped (XSA-365: then nothing of it is used), and the
        mappings that must be given to `unmap` when it is done, in either case. `in_use` names the persistent grants
        that requests in flight use.
        """
        if self.limit:
            self._keep(batch, in_use)
        wanted: tuple[list[int], list[int]] = ([], [])
        for _, segments, writable in batch:
            wanted[writable].extend(ref for ref, _, _ in segments if ref not in self.persistent)
        mapped = [
            iter(self._grants.map_device(self._domid, refs, bool(kind)) if refs else ())
            for kind, refs in enumerate(wanted)
        ]
        results: list[tuple[Plan | None, list[Mapping]]] = []
        for descriptors, segments, writable in batch:
            addresses: list[int] = []
            temporary: list[Mapping] = []
            for ref, _, _ in segments:
                kept = self.persistent.get(ref)
                if kept is not None:
                    addresses.append(kept.mapping[1])
                    continue
                status, handle, address = next(mapped[writable])
                if status == GNTST_okay:
                    addresses.append(address)
                    temporary.append((handle, address))
            plan = None
            if len(addresses) == len(segments):
                extents = [(frame + offset, size) for frame, (_, offset, size) in zip(addresses, segments, strict=True)]
                plan = Plan(extents, tuple(ref for ref, _, _ in segments if ref in self.persistent), self._sector_size)
                plan.last_use = self.clock
                if self.limit and segments and not temporary and not plan.more:
                    self._remember(descriptors, plan)
            results.append((plan, temporary))
        return results

    def _remember(self, descriptors: bytes, plan: Plan) -> None:
        if len(self.plans) >= MAX_PLANS:
            self._settle()
            self._forget(self.plans.values())
            self.plans = {}
        self.plans[descriptors] = plan

    @staticmethod
    def _forget(plans: Iterable[Plan]) -> None:
        for plan in plans:
            plan.valid = False

    def _keep(self, batch: Sequence[tuple[bytes, list[Segment], bool]], in_use: Iterable[int]) -> None:
        """Map the batch's new grants for good, with write access as the protocol has it, as far as there is room."""
        new = dict.fromkeys(ref for _, segments, _ in batch for ref, _, _ in segments if ref not in self.persistent)
        if not new:
            return
        room = self.limit - len(self.persistent)
        if len(new) > room:
            busy = set(in_use)
            busy.update(ref for _, segments, _ in batch for ref, _, _ in segments)
            room += self._evict(len(new) - room, busy)
        refs = list(new)[:room]
        if not refs:
            return
        mapped = self._grants.map_device(self._domid, refs, True)
        for ref, (status, handle, address) in zip(refs, mapped, strict=True):
            if status == GNTST_okay:
                self.persistent[ref] = Persistent((handle, address))

    def _settle(self) -> None:
        """Carry the times of use from the plans over to their grants."""
        persistent = self.persistent
        for plan in self.plans.values():
            for ref in plan.refs:
                grant = persistent[ref]
                if plan.last_use > grant.last_use:
                    grant.last_use = plan.last_use

    def _evict(self, count: int, busy: set[int]) -> int:
        """Unmap the `count` least recently used grants that are not busy, or as many as there are; return how many."""
        self._settle()
        idle = [ref for ref in self.persistent if ref not in busy]
        idle.sort(key=lambda ref: self.persistent[ref].last_use)
        victims = set(idle[:count])
        self._forget(plan for plan in self.plans.values() if not victims.isdisjoint(plan.refs))
        self.plans = {key: plan for key, plan in self.plans.items() if plan.valid}
        self.unmap([self.persistent.pop(ref).mapping for ref in idle[:count]])
        return len(victims)

    def unmap(self, mappings: Sequence[Mapping]) -> None:
        """Unmap, in one hypercall."""
        if mappings:
            self._grants.unmap_device(mappings)

    def release(self) -> None:
        """Unmap whatever is still mapped for good (XSA-371). No request may be in flight."""
        mappings = [grant.mapping for grant in self.persistent.values()]
        self.persistent.clear()
        self._forget(self.plans.values())
        self.plans = {}
        self.unmap(mappings)
