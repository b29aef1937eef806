"""HYPERVISOR_mmuext_op: pinning page tables, loading roots, flushing, clearing and copying frames."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, copy_from_guest
from hypervisor.mm.frame_table import ERESTART, PGT_writable_page
from hypervisor.mm.mmu_update import (
    PREEMPTED,
    flush,
    page_owner,
    read_done,
    signed_int,
    vcpus_of_mask,
    write_done,
)
from hypervisor.mm.owners import DOM_XEN
from hypervisor.mm.root_switch import make_root_switch
from hypervisor.preempt import Continuation, Restart

if TYPE_CHECKING:
    from hypervisor.hypervisor import Handler
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.mm.owners import PageOwner
    from hypervisor.vcpu import VCpu

_NR = xen.HYPERVISOR_mmuext_op
_OP = xen.mmuext_op
_U64 = 0xFFFFFFFFFFFFFFFF
_FIELDS = struct.Struct("<I4xQQ")
"""Of an operation: command, arg1, arg2 (whichever members of the unions these are)."""

_PERMITTED_TO_OTHERS = {
    xen.MMUEXT_PIN_L1_TABLE,
    xen.MMUEXT_PIN_L2_TABLE,
    xen.MMUEXT_PIN_L3_TABLE,
    xen.MMUEXT_PIN_L4_TABLE,
    xen.MMUEXT_UNPIN_TABLE,
    xen.MMUEXT_CLEAR_PAGE,
    xen.MMUEXT_COPY_PAGE,
    xen.MMUEXT_MARK_SUPER,
    xen.MMUEXT_UNMARK_SUPER,
}
"""Commands that may be given for another domain's frames; the rest concern the caller's own processor."""


class MmuextOps:
    """The operations, each `(vcpu, owner of the frames, arg1, arg2)`, raising HypercallError."""

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._frames = mm.frames
        self._memory = mm.hv.memory
        self.hypercalls: dict[int, Handler] = {xen.HYPERVISOR_mmuext_op: make_root_switch(mm, self._mmuext_op)}
        self._commands = {
            xen.MMUEXT_PIN_L1_TABLE: self._pin_l1,
            xen.MMUEXT_PIN_L2_TABLE: self._pin_l2,
            xen.MMUEXT_PIN_L3_TABLE: self._pin_l3,
            xen.MMUEXT_PIN_L4_TABLE: self._pin_l4,
            xen.MMUEXT_UNPIN_TABLE: self._unpin,
            xen.MMUEXT_NEW_BASEPTR: self._new_baseptr,
            xen.MMUEXT_NEW_USER_BASEPTR: self._new_user_baseptr,
            xen.MMUEXT_TLB_FLUSH_LOCAL: self._flush_local,
            xen.MMUEXT_INVLPG_LOCAL: self._invlpg_local,
            xen.MMUEXT_TLB_FLUSH_MULTI: self._flush_multi,
            xen.MMUEXT_INVLPG_MULTI: self._invlpg_multi,
            xen.MMUEXT_TLB_FLUSH_ALL: self._flush_all,
            xen.MMUEXT_INVLPG_ALL: self._invlpg_all,
            xen.MMUEXT_FLUSH_CACHE: self._flush_cache,
            xen.MMUEXT_FLUSH_CACHE_GLOBAL: self._flush_cache_global,
            xen.MMUEXT_SET_LDT: self._set_ldt,
            xen.MMUEXT_CLEAR_PAGE: self._clear_page,
            xen.MMUEXT_COPY_PAGE: self._copy_page,
            xen.MMUEXT_MARK_SUPER: self._superpage,
            xen.MMUEXT_UNMARK_SUPER: self._superpage,
        }

    def _mmuext_op(self, vcpu: VCpu, ops: int, count: int, done_ptr: int, domid: int, _a5: int) -> int:
        count &= 0xFFFFFFFF
        domid &= 0xFFFFFFFF
        if vcpu.old_tables and not self._mm.put_old_tables(vcpu):
            raise Continuation(_NR, ops, count, done_ptr, domid)
        before = 0
        if count & PREEMPTED:
            if count == PREEMPTED and not ops:
                return signed_int(domid)
            count &= ~PREEMPTED
            before = read_done(vcpu, done_ptr)
        if not access_ok(ops):
            return -errno.EFAULT
        owner: PageOwner = vcpu.domain
        if domid & 0xFFFF != xen.DOMID_SELF:
            owner = page_owner(vcpu.domain, domid & 0xFFFF)
            if not self._mm.hv.may_control(vcpu.domain, owner):  # type: ignore[arg-type]
                return -errno.EPERM
        done, error = self._run(vcpu, ops, count, owner)
        write_done(vcpu, done_ptr, before + done)
        if error == ERESTART:
            raise Continuation(_NR, ops + done * _OP.size, count - done | PREEMPTED, done_ptr, domid)
        if (self._frames.leftovers or vcpu.old_tables) and self._mm.left_tables(vcpu):
            # Only the release of tables is left. The result goes where the domain was: nobody needs that any more.
            raise Continuation(_NR, 0, PREEMPTED, 0, -error & 0xFFFFFFFF)
        return -error

    def _run(self, vcpu: VCpu, ops: int, count: int, owner: PageOwner) -> tuple[int, int]:
        """Carry out operations in order: (how many succeeded, why it stopped: 0, a positive errno, or ERESTART)."""
        check, leftovers = self._mm.hv.preempt.check, self._frames.leftovers
        for done in range(count):
            if done and (leftovers or check()):
                return done, ERESTART
            try:
                self._one(vcpu, ops + done * _OP.size, owner)
            except HypercallError as failure:
                return done, failure.errno
            except Restart:
                return done, ERESTART
        return count, 0

    def _one(self, vcpu: VCpu, address: int, owner: PageOwner) -> None:
        command, arg1, arg2 = _FIELDS.unpack(copy_from_guest(vcpu, address, _FIELDS.size))
        handler = self._commands.get(command)
        if handler is None:
            raise HypercallError(errno.ENOSYS)
        if owner is not vcpu.domain and command not in _PERMITTED_TO_OTHERS:
            raise HypercallError(errno.EPERM)
        handler(vcpu, owner, arg1, arg2)

    # -- page tables ------------------------------------------------------------------------------------------------

    def _pin(self, owner: Any, mfn: int, level: int) -> None:
        # Only domains have page tables; the frames of the other owners cannot be pinned.
        error = self._mm.pin(mfn, owner, level) if owner.domid in self._mm.pinned else errno.EINVAL
        if error == ERESTART:
            raise Restart
        if error:
            raise HypercallError(error)

    def _pin_l1(self, _vcpu: VCpu, owner: PageOwner, mfn: int, _arg2: int) -> None:
        self._pin(owner, mfn, 1)

    def _pin_l2(self, _vcpu: VCpu, owner: PageOwner, mfn: int, _arg2: int) -> None:
        self._pin(owner, mfn, 2)

    def _pin_l3(self, _vcpu: VCpu, owner: PageOwner, mfn: int, _arg2: int) -> None:
        self._pin(owner, mfn, 3)

    def _pin_l4(self, _vcpu: VCpu, owner: PageOwner, mfn: int, _arg2: int) -> None:
        self._pin(owner, mfn, 4)

    def _unpin(self, _vcpu: VCpu, owner: Any, mfn: int, _arg2: int) -> None:
        error = self._mm.unpin(mfn, owner) if owner.domid in self._mm.pinned else errno.EINVAL
        if error:
            raise HypercallError(error)

    def _new_baseptr(self, vcpu: VCpu, _owner: PageOwner, mfn: int, _arg2: int) -> None:
        self._mm.load_root(vcpu, mfn)

    def _new_user_baseptr(self, vcpu: VCpu, _owner: PageOwner, mfn: int, _arg2: int) -> None:
        self._mm.load_user_root(vcpu, mfn)

    def _set_ldt(self, vcpu: VCpu, _owner: PageOwner, base: int, entries: int) -> None:
        self._mm.descriptors.set_ldt(vcpu, base, entries & 0xFFFFFFFF)

    # -- flushes ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _flush_local(vcpu: VCpu, _owner: PageOwner, _arg1: int, _arg2: int) -> None:
        flush([vcpu], None)

    @staticmethod
    def _invlpg_local(vcpu: VCpu, _owner: PageOwner, va: int, _arg2: int) -> None:
        flush([vcpu], va)

    @staticmethod
    def _flush_multi(vcpu: VCpu, _owner: PageOwner, _arg1: int, mask: int) -> None:
        flush(_masked(vcpu, mask), None)

    @staticmethod
    def _invlpg_multi(vcpu: VCpu, _owner: PageOwner, va: int, mask: int) -> None:
        flush(_masked(vcpu, mask), va)

    @staticmethod
    def _flush_all(vcpu: VCpu, _owner: PageOwner, _arg1: int, _arg2: int) -> None:
        flush(vcpu.domain.online_vcpus(), None)

    @staticmethod
    def _invlpg_all(vcpu: VCpu, _owner: PageOwner, va: int, _arg2: int) -> None:
        flush(vcpu.domain.online_vcpus(), va)

    @staticmethod
    def _flush_cache(vcpu: VCpu, _owner: PageOwner, _arg1: int, _arg2: int) -> None:
        # Memory here has no cache in front of it; only the permission is visible.
        if not vcpu.domain.has_hardware:
            raise HypercallError(errno.EACCES)

    @staticmethod
    def _flush_cache_global(vcpu: VCpu, _owner: PageOwner, _arg1: int, _arg2: int) -> None:
        if not vcpu.domain.has_hardware:
            raise HypercallError(errno.EINVAL)

    # -- contents of frames -----------------------------------------------------------------------------------------

    def _clear_page(self, _vcpu: VCpu, owner: Any, mfn: int, _arg2: int) -> None:
        if owner is DOM_XEN or not self._frames.get_page_and_type(mfn, owner, PGT_writable_page):
            raise HypercallError(errno.EINVAL)
        self._memory.write(mfn << 12, bytes(4096))
        self._frames.put_page_and_type(mfn)

    def _copy_page(self, _vcpu: VCpu, owner: Any, destination: int, source: int) -> None:
        frames = self._frames
        if owner is DOM_XEN or not frames.get_page(source, owner):
            raise HypercallError(errno.EINVAL)
        try:
            if not frames.get_page_and_type(destination, owner, PGT_writable_page):
                raise HypercallError(errno.EINVAL)
            self._memory.write(destination << 12, self._memory.frame(source))
            frames.put_page_and_type(destination)
        finally:
            frames.put_page(source)

    @staticmethod
    def _superpage(_vcpu: VCpu, _owner: PageOwner, _arg1: int, _arg2: int) -> None:
        raise HypercallError(errno.EOPNOTSUPP)


def _masked(vcpu: VCpu, mask: int) -> list[VCpu]:
    try:
        return vcpus_of_mask(vcpu, mask)
    except HypercallError:
        raise HypercallError(errno.EINVAL) from None
