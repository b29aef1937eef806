"""A domain's grant table: the frames it shares with Xen, and Xen's own account of the entries in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from hypervisor.abi import errno
from hypervisor.abi import grant_table as abi
from hypervisor.errors import HypercallError, InvariantError
from hypervisor.grant_table.maptrack import Maptrack
from hypervisor.grant_table.pins import FULL_SHIFT, HOST_READ, HOST_WRITE, WRITE_MASK
from hypervisor.grant_table.v1 import V1
from hypervisor.grant_table.v2 import V2
from hypervisor.mm.xen_pages import active_pages

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.grant_table.entry_format import EntryFormat

WHOLE_FRAME = (0, 4096)
STATUS_PER_FRAME = 2048
"""16-bit status words in a frame (version 2)."""


@attrs.define
class GrantStats:
    """What a domain did through the grants of others: successful operations only."""

    maps: int = 0
    unmaps: int = 0
    copies: int = 0
    transfers: int = 0


class GrantTable:
    """Grants of one domain. `pin`, `mfn`, `grantee` are Xen's private view of each entry, by grant reference.

    `pin[ref]` counts its uses (`pins`); while it is not zero, `mfn[ref]` and `grantee[ref]` say which frame is used and
    by which domain, whatever the guest writes into the shared entry meanwhile. `slot[ref]` is the index of the entry's
    first 64-bit word in `memory.q`, `status_at[ref]` of the 16-bit word in `memory.h` that holds its status bits.

    References: a device mapping holds one to the frame (and one to its writable type unless read-only); those of a host
    mapping belong to the page table entry that Xen wrote, and go with it.
    """

    __slots__ = (
        "dead",
        "domain",
        "format",
        "frames",
        "grantee",
        "maptrack",
        "max_frames",
        "max_version",
        "memory",
        "mfn",
        "nr_entries",
        "pin",
        "shared",
        "slot",
        "stats",
        "status_at",
        "status_frames",
        "subrange",
        "transitive",
    )

    def __init__(self, domain: Domain, max_frames: int, max_maptrack_frames: int, max_version: int = 2) -> None:
        self.domain = domain
        self.memory = domain.hv.memory
        self.frames = domain.hv.frames
        self.max_frames = max_frames
        self.max_version = max_version
        self.format: EntryFormat = V1()
        self.shared: list[int] = []
        self.status_frames: list[int] = []
        self.nr_entries = 0
        self.slot: list[int] = []
        self.status_at: list[int] = []
        self.pin: list[int] = []
        self.mfn: list[int] = []
        self.grantee: list[int] = []
        self.subrange: dict[int, tuple[int, int]] = {}
        """(offset, length) of the pinned entries that grant less than a whole frame, or pass another entry on."""
        self.transitive: dict[int, tuple[GrantTable, int]] = {}
        """For pinned transitive entries: the table and entry that the frame comes from."""
        self.maptrack = Maptrack(max_maptrack_frames, lambda: domain.hv.mm.xen_pages.take(domain.domid, 1))
        self.stats = GrantStats()
        self.dead = False
        """The domain is gone; only a mapper that lost its page table entries can still hold a handle."""

    @property
    def version(self) -> int:
        """Which entries the guest uses: 1 or 2."""
        return self.format.version

    # -- size -------------------------------------------------------------------------------------------------------

    def grow(self, nr_frames: int) -> bool:
        """Make the table at least `nr_frames` frames long; False when the limit or memory does not allow it."""
        if nr_frames > self.max_frames or (nr_frames > len(self.shared) and self.domain.is_dying):
            return False
        before = len(self.shared)
        more = max(active_pages(nr_frames) - active_pages(before), 0)
        if not self.domain.hv.mm.xen_pages.take(self.domain.domid, more):
            return False
        while len(self.shared) < nr_frames:
            mfn = self._new_frame()
            if mfn < 0:
                break
            self.shared.append(mfn)
        if self.version == 2 and not self.add_status_frames(len(self.shared)):
            self._drop_frames(self.shared, before)
        if len(self.shared) != before:
            self.index_entries()
        return len(self.shared) >= nr_frames

    def add_status_frames(self, nr_frames: int) -> bool:
        """Have a status word for each entry of `nr_frames` frames of version 2; False, and nothing done, when short."""
        before = len(self.status_frames)
        while len(self.status_frames) * STATUS_PER_FRAME < nr_frames * V2.entries_per_frame:
            mfn = self._new_frame()
            if mfn < 0:
                self._drop_frames(self.status_frames, before)
                return False
            self.status_frames.append(mfn)
        return True

    def remove_status_frames(self) -> bool:
        """Take the status frames back; False when the guest, or somebody else, maps one (XSA-255)."""
        if any(self.frames.count[mfn] > 1 for mfn in self.status_frames):
            return False
        self._drop_frames(self.status_frames, 0)
        return True

    def _drop_frames(self, mfns: list[int], keep: int) -> None:
        while len(mfns) > keep:
            self.frames.unshare(mfns.pop())

    def resource(self, resource_id: int, first: int, count: int) -> list[int]:
        """Return frames of the table for XENMEM_acquire_resource, growing it as needed.

        `resource_id` is XENMEM_resource_grant_table_id_shared (0) or _status (1). Raises HypercallError(EINVAL).
        """
        last = first + count
        if resource_id == 0:
            mfns = self.shared
            self.grow(max(last, len(self.shared)))
        elif resource_id == 1 and self.version == 2:
            mfns = self.status_frames
            if last > len(mfns):
                # So many frames of entries as fill all of these, or none more.
                self.grow(last * STATUS_PER_FRAME // self.format.entries_per_frame)
        else:
            raise HypercallError(errno.EINVAL)
        if last > len(mfns):
            raise HypercallError(errno.EINVAL)
        return mfns[first:last]

    def _new_frame(self) -> int:
        mfn: int = self.frames.alloc_xen()
        if mfn >= 0:
            self.frames.share_with(mfn, self.domain)
        return mfn

    def index_entries(self) -> None:
        """Compute where the entries are, after the frames or the version changed."""
        per_frame, size = self.format.entries_per_frame, self.format.words
        self.slot = [(mfn << 9) + size * index for mfn in self.shared for index in range(per_frame)]
        self.nr_entries = len(self.slot)
        if self.version == 1:
            self.status_at = [slot << 2 for slot in self.slot]
        else:
            words = [(mfn << 11) + index for mfn in self.status_frames for index in range(STATUS_PER_FRAME)]
            self.status_at = words[: self.nr_entries]
        missing = self.nr_entries - len(self.pin)
        for private in (self.pin, self.mfn, self.grantee):
            if missing > 0:
                private += [0] * missing
            else:
                del private[self.nr_entries :]

    # -- use of entries ---------------------------------------------------------------------------------------------

    def acquire(self, ref: int, domid: int, increment: int, *, readonly: bool, mapping: bool) -> int:
        """Begin a use of an entry (in range) by domain `domid`: check it, pin it, take a reference to its frame.

        Returns GNTST_okay, or the error with nothing changed. `increment` is what to add to the pin; afterwards
        `mfn[ref]` is the frame, and the caller owns one reference to it.
        """
        pin = self.pin[ref]
        if pin and (self.grantee[ref] != domid or pin & increment << FULL_SHIFT or (mapping and ref in self.subrange)):
            return abi.GNTST_general_error
        if not pin or not (readonly or pin & WRITE_MASK):
            status = self.format.set_status(self, ref, domid, readonly=readonly, mapping=mapping)
            if status:
                return status
        mfn: int = self.mfn[ref] if pin else self.format.frame(self, ref)
        if not self.frames.get_page(mfn, self.domain):
            self._clear_status(ref, readonly)
            return abi.GNTST_general_error if pin else abi.GNTST_bad_page
        if not pin:
            self.mfn[ref] = mfn
            self.grantee[ref] = domid
            window = self.format.subrange(self, ref)
            if window is not None:
                self.subrange[ref] = window
        self.pin[ref] = pin + increment
        return abi.GNTST_okay

    def acquire_for_copy(self, ref: int, domid: int, *, readonly: bool, passed_on: bool = False) -> int:
        """Begin the use of an entry by GNTTABOP_copy; as `acquire`, for any `ref` and any type that can be copied.

        With `passed_on` the entry is reached through a transitive one, and must not be transitive itself.
        """
        if ref >= self.nr_entries:
            return abi.GNTST_bad_gntref
        increment = HOST_READ if readonly else HOST_WRITE
        pin = self.pin[ref]
        if ref in self.transitive if pin else self.format.transitive(self, ref) is not None:
            return self._acquire_transitive(ref, domid, increment, readonly, passed_on)
        if pin:
            return self._acquire_pinned(ref, domid, increment, readonly)
        return self.acquire(ref, domid, increment, readonly=readonly, mapping=False)

    def _acquire_pinned(self, ref: int, domid: int, increment: int, readonly: bool) -> int:
        """Pin an entry in use once more, for a copy.

        The first writer has the entry checked again, and it must still say what it said when it was pinned (XSA-500).
        """
        pin = self.pin[ref]
        if self.grantee[ref] != domid or pin & increment << FULL_SHIFT:
            return abi.GNTST_general_error
        mfn = self.mfn[ref]
        if readonly or pin & WRITE_MASK:
            if self.domain.is_dying or not self.frames.get_page(mfn, self.domain):
                return abi.GNTST_bad_domain
        else:
            status = self.format.set_status(self, ref, domid, readonly=False, mapping=False)
            if status:
                return status
            named = self.format.frame(self, ref)
            if not self.frames.get_page(named, self.domain):
                self._clear_status(ref, readonly)
                return abi.GNTST_bad_page
            window = self.format.subrange(self, ref)
            if named != mfn or (ref in self.subrange and window != self.subrange[ref]):
                self.frames.put_page(named)
                self._clear_status(ref, readonly)
                return abi.GNTST_general_error
        self.pin[ref] = pin + increment
        return abi.GNTST_okay

    def _acquire_transitive(self, ref: int, domid: int, increment: int, readonly: bool, passed_on: bool) -> int:
        """Pin a transitive entry, and the one behind it, which must be granted to this table's domain."""
        pin = self.pin[ref]
        if pin and (self.grantee[ref] != domid or pin & increment << FULL_SHIFT):
            return abi.GNTST_general_error
        if not pin or not (readonly or pin & WRITE_MASK):
            status = self.format.set_status(self, ref, domid, readonly=readonly, mapping=False)
            if status:
                return status
        status = abi.GNTST_general_error
        behind = None if passed_on else self._behind(ref)
        if behind is not None:
            table, inner = behind
            status = table.acquire_for_copy(inner, self.domain.domid, readonly=readonly, passed_on=True)
        if behind is None or status:
            self._clear_status(ref, readonly)
            return status
        if not pin:
            self.mfn[ref] = table.mfn[inner]
            self.grantee[ref] = domid
            self.subrange[ref] = table.subrange.get(inner, WHOLE_FRAME)
            self.transitive[ref] = behind
        self.pin[ref] = pin + increment
        return abi.GNTST_okay

    def _behind(self, ref: int) -> tuple[GrantTable, int] | None:
        """Return the table and entry behind a transitive entry: as pinned, or as the guest wrote it."""
        if self.pin[ref]:
            return self.transitive[ref]
        named = self.format.transitive(self, ref)
        if named is None or named[0] == self.domain.domid:
            return None
        domain = self.domain.hv.domains.get(named[0])
        return None if domain is None else (domain.grant_table, named[1])

    def release_after_copy(self, ref: int, *, readonly: bool) -> None:
        """End what `acquire_for_copy` began (but for the reference to the frame)."""
        behind = self.transitive.get(ref)
        self.release(ref, HOST_READ if readonly else HOST_WRITE, readonly=readonly)
        if behind is not None:
            table, inner = behind
            table.release_after_copy(inner, readonly=readonly)

    def release(self, ref: int, increment: int, *, readonly: bool) -> None:
        """End a use of an entry: drop the pin, and the status bits that nobody needs any more.

        References are the caller's to drop, after this: a frame outlives every pin on it (XSA-236).
        """
        pin = self.pin[ref] - increment
        if pin < 0:
            raise InvariantError(f"grant {ref} of domain {self.domain.domid} is released more often than it was pinned")
        self.pin[ref] = pin
        if not pin and self.subrange:
            self.subrange.pop(ref, None)
            self.transitive.pop(ref, None)
        self._clear_status(ref, readonly)

    def _clear_status(self, ref: int, readonly: bool) -> None:
        """Clear GTF_writing when the last writer is gone and GTF_reading when nobody is left (XSA-230)."""
        pin = self.pin[ref]
        status = 0 if readonly or pin & WRITE_MASK else abi.GTF_writing
        if not pin:
            status |= abi.GTF_reading
        at = self.status_at[ref]
        value = self.memory.h[at]
        if value & status:
            self.memory.h[at] = value & ~status
            self.memory.written[at >> 11] = 1

    # -- the end ----------------------------------------------------------------------------------------------------

    def free(self) -> None:
        """Free the frames, when the domain is gone and nobody maps them any more.

        A mapper that lost track of its mapping may still hold a handle; it finds the table `dead`.
        """
        self.dead = True
        mfns = self.shared + self.status_frames
        self.shared = []
        self.status_frames = []
        self.index_entries()
        for mfn in mfns:
            self.frames.unshare(mfn)
