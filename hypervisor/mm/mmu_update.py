"""HYPERVISOR_mmu_update, update_va_mapping and update_va_mapping_otherdomain: changing single page table entries.

A page table entry changes in a fixed order: what the new value names is taken, the value is stored, what the old value
held is dropped. A change that keeps frame and permissions is stored without that.

TLB: dropping or changing a present entry makes translations stale. Here they are forgotten before the guest runs again,
whether or not it asks for a flush: for an L1 entry the address, if the table hangs in one place of the address space
only, or all addresses that lead to the frame which it named; for others, everything. (A processor may forget a
translation at any time, so no guest can tell.)

Most calls are for one L1 entry of the caller's own: `single_update` does these.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import (
    access_ok,
    copy_from_guest,
    flush_all,
    flush_entry,
    flush_va,
    read_u32,
    read_u64,
    write_u32,
)
from hypervisor.mm.frame_table import (
    ERESTART,
    PINNED,
    VALIDATED,
    PGT_l1_page_table,
    PGT_l4_page_table,
    PGT_writable_page,
)
from hypervisor.mm.owners import DOM_XEN, PageOwner, io_owner
from hypervisor.mm.pte import (
    ACCESSED,
    DIRTY,
    FIRST_XEN_SLOT,
    FRAME_MASK,
    HARMLESS,
    LAST_XEN_SLOT,
    NX,
    PRESENT,
    PSE,
    TABLE_DISALLOWED,
    adjust_l1,
    adjust_table,
    moves_code,
)
from hypervisor.mm.runs import SHORTEST, make_replace_run
from hypervisor.mm.single_update import make_replace, make_single_update
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Handler
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

_U64 = 0xFFFFFFFFFFFFFFFF
_REQUEST = 16
_NOT_HARMLESS = _U64 & ~HARMLESS
_NR = xen.HYPERVISOR_mmu_update
PREEMPTED = 0x80000000
"""MMU_UPDATE_PREEMPTED: a count that carries it is what is left of a call, and `done` goes on from where it is."""
_MASK_WORD = 64
_NO_ENTRIES = bytes(4096)
_FEW = 8
"""So many replaced entries are forgotten one by one."""
_WORDS = [struct.Struct(f"<{2 * n}Q") for n in range(257)]
"""Unpackers of n requests, for n up to what fits in a page."""


def page_owner(caller: Domain, domid: int) -> PageOwner:
    """Return the owner that a guest names for the pages that it wants to map. Raises HypercallError(ESRCH).

    Itself it may name as DOMID_SELF only, not by number.
    """
    if domid == xen.DOMID_SELF:
        return caller
    if domid == xen.DOMID_IO:
        return io_owner(caller)
    if domid == xen.DOMID_XEN:
        return DOM_XEN
    owner = caller.hv.domains.get(domid)
    if owner is None or owner is caller:
        raise HypercallError(errno.ESRCH)
    return owner


class _Group:
    """What the requests of one mmu_update have in common."""

    __slots__ = (
        "caller",
        "may_map",
        "may_update",
        "pg_owner",
        "replaced",
        "stale",
        "stale_code",
        "stored",
        "table_owner",
    )

    def __init__(self, caller: Domain, table_owner: Domain, pg_owner: PageOwner) -> None:
        control = caller.hv.may_control
        self.caller = caller
        self.table_owner = table_owner
        self.pg_owner = pg_owner
        self.may_map = pg_owner.domid == xen.DOMID_IO or control(caller, pg_owner)  # type: ignore[arg-type]
        """Whether the caller may speak of the pages of `pg_owner`."""
        self.may_update = self.may_map and control(caller, table_owner)
        self.replaced: list[int] = []
        """L1 entries that have been replaced since translations were forgotten."""
        self.stale = False
        """Others have been, too: any translation may be wrong."""
        self.stale_code = False
        """One of these may have been of code."""
        self.stored = False
        """The last request has changed a page of data."""


class MmuUpdate:
    """The three hypercalls, and `write_l1`, `write_table` for others who change entries on a guest's behalf."""

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._hv = mm.hv
        self._frames = mm.frames
        self._types = mm.types
        self._q = mm.hv.memory.q
        self._written = mm.hv.memory.written
        self._replace = make_replace(mm.frames)
        self._replace_run = make_replace_run(mm.frames)
        self.hypercalls: dict[int, Handler] = {
            xen.HYPERVISOR_mmu_update: make_single_update(mm, self._replace, self._mmu_update),
            xen.HYPERVISOR_update_va_mapping: self._update_va_mapping,
            xen.HYPERVISOR_update_va_mapping_otherdomain: self._update_va_mapping_otherdomain,
        }

    # -- one entry --------------------------------------------------------------------------------------------------

    def write_l1(self, index: int, new: int, owner: Domain, pg_owner: PageOwner, *, preserve_ad: bool = False) -> int:
        """Replace the L1 entry at `memory.q[index]`, in a table of `owner`; returns 0 or a positive errno."""
        if not preserve_ad and self._replace(index, new, pg_owner.domid + 1) >= 0:
            return 0
        q = self._q
        old = q[index]
        types = self._types
        release = old & PRESENT
        if new & PRESENT:
            if new & types.l1_disallowed(owner):
                return errno.EINVAL
            new = adjust_l1(new)
            if release and not (old ^ new) & _NOT_HARMLESS:
                release = 0
            else:
                new = types.take_l1(new, owner, pg_owner)
                if new < 0:
                    return -new
        q[index] = new | old & (ACCESSED | DIRTY) if preserve_ad else new
        self._written[index >> 9] = 1
        if release:
            types.put_l1(old)
        return 0

    def write_table(self, index: int, new: int, level: int, owner: Domain, *, preserve_ad: bool = False) -> int:
        """Replace the L2, L3 or L4 entry at `memory.q[index]`; returns 0, a positive errno, or ERESTART.

        The release of what the old entry named may leave tables behind.
        """
        q = self._q
        table = index >> 9
        if level == PGT_l4_page_table and FIRST_XEN_SLOT <= index & 511 <= LAST_XEN_SLOT:
            return errno.EINVAL
        old = q[index]
        types = self._types
        release = old & PRESENT
        if new & PRESENT:
            if new & TABLE_DISALLOWED:
                return errno.EINVAL
            new = adjust_table(new, level)
            if release and not (old ^ new) & _NOT_HARMLESS:
                release = 0
            else:
                error = types.take_table(new, table, level, owner)
                if error:
                    return error
        q[index] = new | old & (ACCESSED | DIRTY) if preserve_ad else new
        self._written[table] = 1
        if level == PGT_l4_page_table and index & 511 > LAST_XEN_SLOT:
            self._hv.forget_root(table)
        if release:
            types.drop_table(old, table, level)
        return 0

    # -- mmu_update -------------------------------------------------------------------------------------------------

    def _mmu_update(self, vcpu: VCpu, requests: int, count: int, done_ptr: int, foreign: int, _a5: int) -> int:
        count &= 0xFFFFFFFF
        foreign &= 0xFFFFFFFF
        if vcpu.old_tables and not self._mm.put_old_tables(vcpu):
            raise Continuation(_NR, requests, count, done_ptr, foreign)
        before = 0
        if count & PREEMPTED:
            if count == PREEMPTED and not requests:
                return signed_int(foreign)
            count &= ~PREEMPTED
            before = read_done(vcpu, done_ptr)
        if not access_ok(requests):
            return -errno.EFAULT
        domain = table_owner = vcpu.domain
        if foreign >> 16:
            other = self._hv.domains.get((foreign >> 16) - 1)
            if other is None:
                return -errno.ESRCH
            table_owner = other
        done = 0
        try:
            if table_owner is not domain and table_owner.vcpu(0) is None:
                raise HypercallError(errno.EINVAL)
            done, error = self._run(vcpu, requests, count, table_owner, page_owner(domain, foreign & 0xFFFF))
        except HypercallError as failure:
            error = failure.errno
        write_done(vcpu, done_ptr, before + done)
        if error == ERESTART:
            raise Continuation(_NR, requests + done * _REQUEST, count - done | PREEMPTED, done_ptr, foreign)
        if self._mm.left_tables(vcpu):
            # Only the release of tables is left. The result goes where the domain was: nobody needs that any more.
            raise Continuation(_NR, 0, PREEMPTED, 0, -error & 0xFFFFFFFF)
        return -error

    def _run(self, vcpu: VCpu, va: int, count: int, table_owner: Domain, pg_owner: PageOwner) -> tuple[int, int]:
        """Carry out requests in order: (how many succeeded, why it stopped: 0, a positive errno, or ERESTART)."""
        done = error = 0
        group = _Group(vcpu.domain, table_owner, pg_owner)
        while done < count and not error:
            size = min(count - done, max(1, (4096 - (va & 0xFFF)) // _REQUEST))
            try:
                raw = copy_from_guest(vcpu, va, size * _REQUEST)
            except HypercallError as fault:
                return done, fault.errno
            ready, error = self._some(_WORDS[size].unpack(raw), done, group)
            self._flush(group)
            done += ready
            va += ready * _REQUEST
        return done, error

    @staticmethod
    def _flush(group: _Group) -> None:
        """Forget the translations that requests have made wrong."""
        if group.stale or len(group.replaced) > _FEW:
            flush_all(group.table_owner, code=group.stale_code)
        else:
            for entry in group.replaced:
                flush_entry(group.table_owner, entry, code=group.stale_code)
        group.replaced.clear()
        group.stale = group.stale_code = False

    def _some(self, words: tuple[int, ...], done: int, group: _Group) -> tuple[int, int]:
        """Carry out requests that were read together, after `done` others.

        A store into a page of data may have changed the requests behind it, so those are read anew.
        """
        check, leftovers = self._hv.preempt.check, self._frames.leftovers
        is_quiet = group.may_update and not self._hv.preempt.imminent()
        position = 0
        while position < len(words):
            if is_quiet:
                position = self._ordinary(words, position, group)
                if position == len(words):
                    break
            if done + position and (leftovers or check()):
                return position >> 1, ERESTART
            group.stored = False
            error = self._one(words[position], words[position + 1], group)
            if error:
                return position >> 1, error
            if group.stored:
                return (position >> 1) + 1, 0
            position += 2
        return len(words) >> 1, 0

    def _ordinary(self, words: tuple[int, ...], position: int, group: _Group) -> int:
        """Carry out requests as long as each is for the L1 table of the first, and usual; returns where they end."""
        frames, replace, replaced = self._frames, self._replace, group.replaced
        table = words[position] >> 12
        if (
            table >= frames.frames
            or frames.owner_tag[table] != group.table_owner.domid + 1
            or frames.type[table] != PGT_l1_page_table
            or not frames.type_count[table]
            or not frames.flags[table] & VALIDATED
        ):
            return position
        tag = group.pg_owner.domid + 1
        while len(words) - position >= 2 * SHORTEST and words[position] >> 12 == table:
            done, dropped = self._replace_run(words, position, tag)
            if not done:
                break
            position += 2 * done
            replaced += dropped
            group.stale_code = group.stale_code or not all(entry & NX for entry in dropped)
        while position < len(words):
            pointer, value = words[position], words[position + 1]
            if pointer >> 12 != table or pointer & 7:
                break
            old = replace(pointer >> 3, value, tag)
            if old < 0:
                break
            if old & PRESENT:
                replaced.append(old)
                group.stale_code = group.stale_code or moves_code(old, value)
            position += 2
        return position

    def _one(self, pointer: int, value: int, group: _Group) -> int:
        """Carry out one request; returns 0, a positive errno, or ERESTART."""
        command = pointer & 7
        if command == xen.MMU_MACHPHYS_UPDATE:
            return self._set_machphys(pointer, value, group)
        if command > xen.MMU_PT_UPDATE_NO_TRANSLATE:
            return errno.ENOSYS
        if not group.may_update:
            return errno.EPERM
        frames = self._frames
        table_owner = group.table_owner
        mfn = pointer >> 12
        if mfn >= frames.frames or frames.owner_tag[mfn] != table_owner.domid + 1 or not frames.count[mfn]:
            return errno.EINVAL
        index = pointer >> 3
        preserve = command == xen.MMU_PT_UPDATE_PRESERVE_AD
        kind = frames.type[mfn]
        if kind == PGT_writable_page or not frames.type_count[mfn]:
            return self._store(index, value, group)
        if not frames.flags[mfn] & VALIDATED:
            return errno.EINVAL
        old = self._q[index]
        leads = old & PRESENT and (kind == PGT_l1_page_table or not self._is_empty(old))
        if kind == PGT_l1_page_table:
            error = self.write_l1(index, value, table_owner, group.pg_owner, preserve_ad=preserve)
        elif PGT_l1_page_table < kind <= PGT_l4_page_table and group.pg_owner is table_owner:
            error = self.write_table(index, value, kind, table_owner, preserve_ad=preserve)
        else:
            return errno.EINVAL
        if leads:
            if kind == PGT_l1_page_table:
                group.replaced.append(old)
            else:
                group.stale = True
            group.stale_code |= moves_code(old, value)
        return error

    def _is_empty(self, entry: int) -> bool:
        """Whether the table that an entry names has none itself: no address was translated by way of it."""
        at = entry & FRAME_MASK
        return at >> 12 < self._frames.frames and self._hv.memory.b[at : at + 4096].tobytes() == _NO_ENTRIES

    def _store(self, index: int, value: int, group: _Group) -> int:
        """Store a word in a page that is no table. It is writable from now on: what it was before may be wrong now."""
        frames = self._frames
        mfn = index >> 9
        if frames.take_type(mfn, PGT_writable_page):
            return errno.EINVAL
        self._q[index] = value
        self._written[mfn] = 1
        frames.put_page_type(mfn)
        group.stored = True
        return 0

    def _set_machphys(self, pointer: int, pfn: int, group: _Group) -> int:
        """Set an M2P entry. The reference taken for that is dropped on every path (XSA-113)."""
        pg_owner = group.pg_owner
        if group.caller is not group.table_owner:
            return errno.EPERM
        if not group.may_map:
            return errno.EPERM
        mfn = pointer >> 12
        if not self._frames.get_page(mfn, pg_owner):  # type: ignore[arg-type]
            return errno.EINVAL
        self._frames.set_gpfn(mfn, pfn)
        self._frames.put_page(mfn)
        return 0

    # -- update_va_mapping ------------------------------------------------------------------------------------------

    def find_l1(self, vcpu: VCpu, va: int) -> tuple[int, bool]:
        """Find the L1 entry that translates an address: its index in `memory.q`, or -1; and whether no other place of
        the address space uses the tables on the way, so that the entry translates this address only.
        """
        table = vcpu.kernel_cr3
        if not table or not access_ok(va):
            return -1, False
        frames, q = self._frames, self._q
        type_count, flags, nr_frames = frames.type_count, frames.flags, frames.frames
        single = True
        for shift in (39, 30, 21):
            entry = q[(table << 9) + (va >> shift & 511)]
            if not entry & PRESENT or entry & PSE:
                return -1, False
            table = (entry & FRAME_MASK) >> 12
            if table >= nr_frames:
                return -1, False
            if type_count[table] - (1 if flags[table] & PINNED else 0) != 1:
                single = False
        if (
            frames.owner_tag[table] != vcpu.domain.domid + 1
            or frames.type[table] != PGT_l1_page_table
            or not type_count[table]
        ):
            return -1, False
        return (table << 9) + (va >> 12 & 511), single and not self._other_roots(vcpu)

    @staticmethod
    def _other_roots(vcpu: VCpu) -> bool:
        root = vcpu.kernel_cr3
        return any(other is not None and other.kernel_cr3 not in (root, 0) for other in vcpu.domain.vcpus)

    def _update_va_mapping(self, vcpu: VCpu, va: int, value: int, flags: int, _a4: int, _a5: int) -> int:
        return self._update_va(vcpu, va & _U64, value & _U64, flags & _U64, vcpu.domain)

    def _update_va_mapping_otherdomain(self, vcpu: VCpu, va: int, value: int, flags: int, domid: int, _a5: int) -> int:
        pg_owner = page_owner(vcpu.domain, domid & 0xFFFF)
        if not self._hv.may_control(vcpu.domain, pg_owner):  # type: ignore[arg-type]
            return -errno.EPERM
        return self._update_va(vcpu, va & _U64, value & _U64, flags & _U64, pg_owner)

    def _update_va(self, vcpu: VCpu, va: int, value: int, flags: int, pg_owner: PageOwner) -> int:
        index, single = self.find_l1(vcpu, va)
        if index < 0:
            return -errno.EINVAL
        domain = vcpu.domain
        old = self._q[index]
        error = self.write_l1(index, value, domain, pg_owner)
        if error:
            return -error
        if old & PRESENT:
            if single:
                flush_va(domain, va, code=moves_code(old, value))
            else:
                flush_entry(domain, old, code=moves_code(old, value))
        kind = flags & xen.UVMF_FLUSHTYPE_MASK
        if kind in (xen.UVMF_TLB_FLUSH, xen.UVMF_INVLPG):
            which = flags & ~xen.UVMF_FLUSHTYPE_MASK
            if which == xen.UVMF_LOCAL:
                targets = [vcpu]
            elif which == xen.UVMF_ALL:
                targets = domain.online_vcpus()
            else:
                targets = vcpus_of_mask(vcpu, which)
            flush(targets, va if kind == xen.UVMF_INVLPG else None)
        return 0


def flush(vcpus: list[VCpu], va: int | None) -> None:
    """Forget one page (or everything, for None) on some vCPUs, because the guest says so.

    What changed has been forgotten already: there is nothing new to know about code.
    """
    for vcpu in vcpus:
        vcpu.flush_tlb(va, code=False)


def vcpus_of_mask(vcpu: VCpu, pointer: int) -> list[VCpu]:
    """Return the vCPUs that a bitmap in guest memory names. Raises HypercallError(EFAULT).

    It is read a word at a time, up to the first bit of a vCPU that the domain cannot have.
    """
    domain = vcpu.domain
    most = len(domain.vcpus)
    mask = 0
    for first in range(0, most, _MASK_WORD):
        mask |= read_u64(vcpu, pointer + first // 8) << first
        if mask >> most:
            break
    return [other for other in domain.online_vcpus() if mask >> other.vcpu_id & 1]


def signed_int(word: int) -> int:
    """Return a 32-bit register as a C int."""
    return word - (word >> 31 << 32)


def read_done(vcpu: VCpu, pointer: int) -> int:
    """Return where an interrupted call had got to; 0 when the pointer is bad."""
    try:
        return read_u32(vcpu, pointer) if pointer else 0
    except HypercallError:
        return 0


def write_done(vcpu: VCpu, pointer: int, done: int) -> None:
    """Tell the guest how many entries were done. A bad pointer is the guest's own loss."""
    if pointer:
        try:
            write_u32(vcpu, pointer, done)
        except HypercallError:
            return
