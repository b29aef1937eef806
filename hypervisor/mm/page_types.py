"""Page types: what makes it safe that guests write real machine addresses into their page tables.

A frame becomes a page table only after each of its entries was checked, and each entry then holds what it names:

    L1 entry            a reference to the frame, and a PGT_writable_page type reference if it is writable
    L2, L3, L4 entry    a reference to the lower table, and a type reference of the lower level
    entry for I/O       nothing: there is no memory behind it to be freed

Since a frame cannot be writable and a page table at once, no guest ever has a page table that it can write. The one
exception to the strict tree of levels are linear page tables: an entry of L2 to L4 that names a table of its own level,
read-only. One that names its own table holds nothing. One that names another holds a reference and a type reference,
and a table may either contain such entries or be named by them, never both: there are no chains (XSA-240).

Validation and release run over entry indices and keep the next one in `FrameTable.progress`, so they can stop at any L2
to L4 entry when `preempt` says so, and go on later. An L1 table is done in one go.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.errors import InvariantError
from hypervisor.machine.firmware import IO_FRAMES
from hypervisor.mm import descriptors
from hypervisor.mm.frame_table import (
    DOMID_IO,
    DOMID_XEN,
    EINVAL,
    ERESTART,
    MAX_COUNT,
    VALIDATED,
    XEN_HEAP,
    FrameTable,
    PGT_l1_page_table,
    PGT_l4_page_table,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from hypervisor.mm.pte import (
    ACCESSED,
    ALL_ONES_FRAME,
    CACHE_ATTRIBUTES,
    ENTRIES,
    FIRST_XEN_SLOT,
    FRAME_MASK,
    GUEST_KERNEL,
    L1_DISALLOWED,
    LAST_XEN_SLOT,
    PAT,
    PCD,
    PRESENT,
    PWT,
    RW,
    TABLE_DISALLOWED,
    USER,
    adjust_l1,
)
from hypervisor.mm.runs import put_run, take_run

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.mm.owners import PageOwner

EPERM = 1
EACCES = 13
EBUSY = 16

_IO_TAG = DOMID_IO + 1
_XEN_TAG = DOMID_XEN + 1
_CHUNK = 64
"""Entries of an L1 table that are looked at together. Divides the 512 of a table."""
_SPAN = (ENTRIES - 1) << 12
"""How far the last entry of a table is from the first if they map neighbouring frames."""
_KERNEL_ENTRY = GUEST_KERNEL | USER


def _run_from(first: int, size: int) -> list[int]:
    """Return L1 entries for neighbouring frames."""
    return list(range(first, first + (size << 12), 4096))


class PageTypes:
    """Validation and release of page tables and descriptor tables, and of single entries."""

    __slots__ = ("_frames", "_hv", "_q", "_written", "fill_xen_slots", "preempt")

    def __init__(self, hv: Hypervisor, frames: FrameTable, fill_xen_slots: Callable[[int], None]) -> None:
        self._hv = hv
        self._frames = frames
        self._q = frames.memory.q
        self._written = frames.memory.written
        self.fill_xen_slots = fill_xen_slots
        self.preempt: Callable[[], bool] | None = hv.preempt.check
        """Asked between entries of L2 to L4; True stops validation or release with ERESTART. None: never."""
        frames.validate = self.validate
        frames.release = self.release

    # -- whole frames -----------------------------------------------------------------------------------------------

    def validate(self, mfn: int, kind: int) -> int:
        """Take what the entries of a frame name, from `progress` on. See `FrameTable`."""
        owner = self._frames.owner_domain(mfn)
        if owner is None:
            return EINVAL
        if kind == PGT_l1_page_table:
            return self._validate_l1(mfn, owner)  # type: ignore[arg-type]
        if kind == PGT_seg_desc_page:
            return 0 if descriptors.validate_page(self._q, mfn) else EINVAL
        return self._validate_table(mfn, kind, owner)  # type: ignore[arg-type]

    def release(self, mfn: int, kind: int) -> int:
        """Drop what the first `progress` entries of a page table name. See `FrameTable`."""
        if kind == PGT_l4_page_table:
            self._hv.forget_root(mfn)
        return self._release_l1(mfn) if kind == PGT_l1_page_table else self._release_table(mfn, kind)

    def _validate_l1(self, mfn: int, owner: Domain) -> int:
        """Take what all entries of an L1 table name: all at once, or a chunk at a time, if they are a run."""
        base = mfn << 9
        entries = self._q[base : base + ENTRIES].tolist()
        done, error = 0, 0
        while done < ENTRIES and not error:
            # The memory of a kernel that maps all of its own comes in whole tables.
            size = ENTRIES if not done and entries[-1] - entries[0] == _SPAN else _CHUNK
            chunk = entries[done : done + size]
            if not any(chunk):
                done += size
            elif self._take_writable_run(chunk, owner):
                entries[done : done + size] = _run_from(adjust_l1(chunk[0]), size)
                done += size
            else:
                done, error = self._take_entries(entries, done, owner)
        self._frames.progress[mfn] = done
        self._q[base : base + ENTRIES] = memoryview(array("Q", entries))
        self._written[mfn] = 1
        return error

    def _take_writable_run(self, chunk: list[int], owner: Domain) -> bool:
        """Take what entries name if they map neighbouring frames, all of them writable and with the same flags."""
        first = chunk[0]
        return (
            first & (PRESENT | RW) == PRESENT | RW
            and not first & self.l1_disallowed(owner)
            and chunk[-1] - first == (len(chunk) - 1) << 12
            and chunk == _run_from(first, len(chunk))
            and take_run(self._frames, (first & FRAME_MASK) >> 12, len(chunk), owner.domid + 1)
        )

    def _take_entries(self, entries: list[int], start: int, owner: Domain) -> tuple[int, int]:
        """Take what the entries of one chunk name, one by one: (index of the next entry, errno or 0)."""
        frames = self._frames
        count, type_count, types, tags = frames.count, frames.type_count, frames.type, frames.owner_tag
        nr_frames, tag = frames.frames, owner.domid + 1
        slow_bits = self.l1_disallowed(owner)
        for index in range(start, start + _CHUNK):
            entry = entries[index]
            if not entry & PRESENT:
                continue
            target = (entry & FRAME_MASK) >> 12
            if target < nr_frames and tags[target] == tag and not entry & slow_bits:
                if entry & RW:
                    held = type_count[target]
                    if not held:
                        types[target] = PGT_writable_page
                    elif types[target] != PGT_writable_page or held == MAX_COUNT:
                        return index, EBUSY
                    type_count[target] = held + 1
                count[target] += 1
            else:
                entry = self.take_l1(entry, owner, owner)
                if entry < 0:
                    return index, -entry
            entries[index] = entry | _KERNEL_ENTRY if not entry & USER else adjust_l1(entry)
        return start + _CHUNK, 0

    def _release_l1(self, mfn: int) -> int:
        progress = self._frames.progress
        base = mfn << 9
        entries = self._q[base : base + progress[mfn]].tolist()
        size = ENTRIES if len(entries) == ENTRIES and not (entries[-1] - entries[0] ^ _SPAN) & FRAME_MASK else _CHUNK
        for start in range(0, len(entries), size):
            chunk = entries[start : start + size]
            if any(chunk) and not put_run(self._frames, chunk):
                self._put_entries(chunk)
        progress[mfn] = 0
        return 0

    def _put_entries(self, entries: list[int]) -> None:
        """Drop what L1 entries hold, one by one."""
        frames = self._frames
        count, type_count, nr_frames = frames.count, frames.type_count, frames.frames
        for entry in entries:
            if not entry & PRESENT:
                continue
            target = (entry & FRAME_MASK) >> 12
            if not IO_FRAMES <= target < nr_frames:
                continue  # I/O memory: the entry holds nothing
            if entry & RW:
                held = type_count[target]
                if not held:
                    raise InvariantError(f"type count of frame {target:#x} falls below zero")
                type_count[target] = held - 1
            held = count[target]
            if held > 1:
                count[target] = held - 1
            else:
                frames.put_page(target)

    def _validate_table(self, mfn: int, level: int, owner: Domain) -> int:
        q, progress = self._q, self._frames.progress
        base = mfn << 9
        first = index = progress[mfn]
        extra = USER | ACCESSED if level == PGT_l4_page_table else USER
        self._written[mfn] = 1
        for index in range(first, ENTRIES):
            entry = q[base + index]
            if not entry & PRESENT or (level == 4 and FIRST_XEN_SLOT <= index <= LAST_XEN_SLOT):
                continue
            if index > first and self.preempt is not None and self.preempt():
                errno = ERESTART
            else:
                errno = self.take_table(entry, mfn, level, owner)
            if errno:
                progress[mfn] = index
                return errno
            q[base + index] = entry | extra
        progress[mfn] = ENTRIES
        if level == PGT_l4_page_table:
            self.fill_xen_slots(mfn)
        return 0

    def _release_table(self, mfn: int, level: int) -> int:
        q, progress = self._q, self._frames.progress
        base = mfn << 9
        first = progress[mfn]
        for index in range(first - 1, -1, -1):
            entry = q[base + index]
            if not entry & PRESENT or (level == 4 and FIRST_XEN_SLOT <= index <= LAST_XEN_SLOT):
                continue
            if index < first - 1 and self.preempt is not None and self.preempt():
                errno = ERESTART
            else:
                errno = self.put_table(entry, mfn, level)
            if errno:
                progress[mfn] = index + 1
                return errno
        progress[mfn] = 0
        return 0

    # -- L1 entries -------------------------------------------------------------------------------------------------

    @staticmethod
    def l1_disallowed(owner: Domain) -> int:
        """Return the bits that the owner may not set in L1 entries: cache attributes are for those with hardware."""
        return 0 if owner.ioports or owner.iomem else L1_DISALLOWED

    def take_l1(self, entry: int, owner: Domain, pg_owner: PageOwner) -> int:
        """Take what a present L1 entry names, in a table of `owner`, as a page of `pg_owner`.

        Returns the entry to store (cache attributes of I/O memory may be corrected; USER and the like are not looked
        at), or a negative errno: EINVAL bad flags, EBUSY the frame is another's or of a conflicting type, EPERM no
        memory there and no permission for I/O.
        """
        if entry & self.l1_disallowed(owner):
            return -EINVAL
        frames = self._frames
        mfn = (entry & FRAME_MASK) >> 12
        if mfn >= frames.frames or frames.owner_tag[mfn] == _IO_TAG:
            return self._take_io(entry, mfn, owner, pg_owner)
        held = frames.count[mfn]
        if not 0 < held < MAX_COUNT or not self._may_map(entry, mfn, owner, pg_owner):
            return -EBUSY
        if entry & RW and frames.take_type(mfn, PGT_writable_page):
            return -EBUSY
        if entry & CACHE_ATTRIBUTES and frames.flags[mfn] & XEN_HEAP:
            if entry & RW:
                frames.put_page_type(mfn)
            return -EACCES
        frames.count[mfn] = held + 1
        return entry

    def put_l1(self, entry: int) -> None:
        """Drop what an L1 entry holds (nothing if it is not present)."""
        if not entry & PRESENT:
            return
        frames = self._frames
        mfn = (entry & FRAME_MASK) >> 12
        if mfn >= frames.frames or frames.owner_tag[mfn] == _IO_TAG:
            return
        if entry & RW:
            frames.put_page_type(mfn)
        frames.put_page(mfn)

    def _may_map(self, entry: int, mfn: int, owner: Domain, pg_owner: PageOwner) -> bool:
        """Whether a frame of memory passes as a page of `pg_owner`."""
        frames = self._frames
        tag = frames.owner_tag[mfn]
        if tag == _XEN_TAG:
            # Of Xen's own frames the M2P is all that anybody may see, and only as a page of Xen's.
            named = pg_owner.domid == DOMID_XEN or (pg_owner is not owner and pg_owner.is_privileged)
            return named and not entry & RW and frames.m2p_mfn <= mfn < frames.m2p_mfn + frames.m2p_frames
        if tag == pg_owner.domid + 1:
            return True
        if pg_owner is owner:
            return False
        real = frames.owner_domain(mfn)
        return real is not None and self._hv.may_control(pg_owner, real)  # type: ignore[arg-type]

    def _take_io(self, entry: int, mfn: int, owner: Domain, pg_owner: PageOwner) -> int:
        """Check an entry for I/O memory. Cacheable mappings of it are made uncacheable."""
        if not (pg_owner.may_use_iomem(mfn) and owner.may_use_iomem(mfn)):
            return -EINVAL if mfn == ALL_ONES_FRAME else -EPERM
        attributes = entry & CACHE_ATTRIBUTES
        if not attributes or attributes & ~PAT == PWT:
            return entry & ~CACHE_ATTRIBUTES | PWT | PCD
        return entry

    # -- entries of L2, L3 and L4 -----------------------------------------------------------------------------------

    def take_table(self, entry: int, mfn: int, level: int, owner: Domain) -> int:
        """Take what a present entry of the table `mfn` names; returns 0 or a positive errno."""
        if entry & TABLE_DISALLOWED:
            return EINVAL
        errno = self._frames.take_page_and_type((entry & FRAME_MASK) >> 12, owner, level - 1)
        if errno == EINVAL and self._take_linear(entry, mfn, level, owner):
            return 0
        return errno

    def put_table(self, entry: int, mfn: int, level: int) -> int:
        """Drop what an entry of the table `mfn` holds; returns 0 or ERESTART (then it is still held)."""
        target = (entry & FRAME_MASK) >> 12
        if not entry & PRESENT or target == mfn:
            return 0
        frames = self._frames
        linear = frames.type[target] == level
        errno = frames.put_page_and_type(target)
        if linear and not errno:
            self._leave_linear(mfn, target)
        return errno

    def drop_table(self, entry: int, mfn: int, level: int) -> None:
        """Drop what an entry held that is no longer in the table `mfn`. What is interrupted becomes a leftover."""
        target = (entry & FRAME_MASK) >> 12
        if entry & PRESENT and target != mfn:
            if self._frames.type[target] == level:
                self._leave_linear(mfn, target)
            self._frames.let_go(target)

    def _leave_linear(self, mfn: int, target: int) -> None:
        self._count_linear(mfn, 1)
        self._count_linear(target, -1)

    def _take_linear(self, entry: int, mfn: int, level: int, owner: Domain) -> bool:
        if entry & RW:
            return False
        target = (entry & FRAME_MASK) >> 12
        if target == mfn:
            return True
        frames = self._frames
        if target >= frames.frames or frames.owner_tag[target] != owner.domid + 1:
            return False
        if frames.linear.get(mfn, 0) > 0 or frames.linear.get(target, 0) < 0:
            return False
        if frames.type[target] != level or not frames.flags[target] & VALIDATED:
            return False
        if not 0 < frames.type_count[target] < MAX_COUNT or not frames.get_page(target, owner):
            return False
        frames.type_count[target] += 1
        self._count_linear(mfn, -1)
        self._count_linear(target, 1)
        return True

    def _count_linear(self, mfn: int, step: int) -> None:
        linear = self._frames.linear
        uses = linear.get(mfn, 0) + step
        if uses:
            linear[mfn] = uses
        else:
            linear.pop(mfn, None)
