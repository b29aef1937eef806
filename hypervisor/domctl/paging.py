"""XEN_DOMCTL_shadow_op: paging assistance, and the log of dirty pages (domctl.h; Xen's answers: mm/paging.c).

An operation that takes long gives the processor back, goes on by HYPERVISOR_paging_domctl_cont, and keeps the domain
paused meanwhile; until it is done nobody else may begin another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.domctl.operation import Operation, check_privilege
from hypervisor.errors import HypercallError, Refused
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.mm.log_dirty import LEAF_BITS, NR_LEAVES
from hypervisor.mm.paging import Interrupted
from hypervisor.preempt import Continuation, Restart

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

CONTINUE = xen.HYPERVISOR_arch_1
"""HYPERVISOR_paging_domctl_cont."""
DOMCTL = abi.xen_domctl
TRANSLATED = (
    abi.XEN_DOMCTL_SHADOW_ENABLE_REFCOUNT
    | abi.XEN_DOMCTL_SHADOW_ENABLE_TRANSLATE
    | abi.XEN_DOMCTL_SHADOW_ENABLE_EXTERNAL
)
"""Modes that come together or not at all, and that a domain with memory of its own cannot get any more."""
MODE_BITS = 22
"""Bits of the mode that Xen looks at: above, they are shifted away (PG_mode_shift)."""
SHADOW_ENABLE_FRAMES = 1024
FRAMES_PER_MIB = 256
LEAVES_AT_A_TIME = 512
"""After so many leaves of the bitmap an operation may be interrupted: one entry of the level above."""
U32 = 0xFFFF_FFFF


class PagingOps:
    """The operations on a domain's paging assistance."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.operations = {abi.XEN_DOMCTL_shadow_op: Operation(self._shadow_op, "shadow_op")}
        self.hypercalls = {CONTINUE: self._continue}
        self._handlers = {
            abi.XEN_DOMCTL_SHADOW_OP_OFF: self._off,
            abi.XEN_DOMCTL_SHADOW_OP_ENABLE_TEST: self._enable_test,
            abi.XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY: self._enable_log,
            abi.XEN_DOMCTL_SHADOW_OP_ENABLE: self._enable,
            abi.XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION: self._get_allocation,
            abi.XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION: self._set_allocation,
        }

    def _shadow_op(self, vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Do one operation. What it has to say is copied back whatever its result is."""
        try:
            self._dispatch(vcpu, target, value, resuming=False)
        except HypercallError as error:
            raise Refused(error.errno, value) from None
        return value

    def _continue(self, vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Go on with an operation of this domain's that was interrupted."""
        op = DOMCTL.unpack_from(copy_from_guest(vcpu, arg, DOMCTL.size))
        if op.interface_version != abi.XEN_DOMCTL_INTERFACE_VERSION or op.cmd != abi.XEN_DOMCTL_shadow_op:
            return -errno.EOPNOTSUPP
        target = self.hv.domain(op.domain)
        value, result = op.u.shadow_op, 0
        try:
            check_privilege(vcpu)
            self._dispatch(vcpu, target, value, resuming=True)
        except HypercallError as error:
            result = -error.errno
        op.u = {"shadow_op": value}
        copy_to_guest(vcpu, arg, DOMCTL.pack(op))
        return result

    def _dispatch(self, vcpu: VCpu, target: Domain, value: Any, *, resuming: bool) -> None:
        if target is vcpu.domain:
            raise HypercallError(errno.EINVAL)
        if target.is_dying:
            return
        if target.vcpu(0) is None:
            raise HypercallError(errno.EINVAL)
        interrupted = target.paging.interrupted
        if resuming:
            if interrupted is None or interrupted.caller is not vcpu.domain or interrupted.op != value.op:
                raise HypercallError(errno.EBUSY)
        elif interrupted is not None and value.op != abi.XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION:
            raise HypercallError(errno.EBUSY)
        if value.op in (abi.XEN_DOMCTL_SHADOW_OP_CLEAN, abi.XEN_DOMCTL_SHADOW_OP_PEEK):
            self._read_log(vcpu, target, value)
            return
        handler = self._handlers.get(value.op)
        if handler is None:
            raise HypercallError(errno.EINVAL)
        handler(target, value)

    # -- modes --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _off(target: Domain, _value: Any) -> None:
        if target.paging.enabled:
            target.paging.switch_off()

    @staticmethod
    def _enable_test(target: Domain, _value: Any) -> None:
        """Switch shadow mode on, for nothing but itself."""
        paging = target.paging
        if paging.enabled:
            raise HypercallError(errno.EINVAL)
        _need_pool(target, 1)
        paging.enabled = True

    @staticmethod
    def _enable_log(target: Domain, _value: Any) -> None:
        paging = target.paging
        if paging.log is not None:
            raise HypercallError(errno.EINVAL)
        _need_pool(target, 1)
        paging.enabled = True
        paging.start_log()

    def _enable(self, target: Domain, value: Any) -> None:
        """Switch modes on by their bits: log-dirty, whatever else is asked for, or what only a new domain can get."""
        if value.mode & abi.XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY:
            self._enable_log(target, value)
            return
        mode = value.mode & (1 << MODE_BITS) - 1
        if mode & ~TRANSLATED or mode not in (0, TRANSLATED) or target.paging.enabled:
            raise HypercallError(errno.EINVAL)
        _need_pool(target, SHADOW_ENABLE_FRAMES)
        if mode:
            raise HypercallError(errno.EINVAL)
        target.paging.enabled = True

    # -- the pool -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _get_allocation(target: Domain, value: Any) -> None:
        value.mb = target.paging.pool_mib

    def _set_allocation(self, target: Domain, value: Any) -> None:
        """Give the pool a size in MiB, a frame at a time; what has been got stays when memory runs out."""
        paging = target.paging
        if not value.mb and paging.enabled:
            raise HypercallError(errno.EINVAL)
        wanted = paging.target(value.mb * FRAMES_PER_MIB & U32)
        while len(paging.pool) != wanted:
            if not paging.step(wanted):
                raise HypercallError(errno.ENOMEM)
            if self.hv.preempt.check():
                raise Restart
        value.mb = paging.pool_mib

    # -- the log ------------------------------------------------------------------------------------------------------

    def _read_log(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Copy the bitmap of dirty pages out, and (CLEAN) begin a new one.

        Without log-dirty mode nothing is dirty. `pages` is how many the caller has room for; it becomes how many there
        can be, if that is less.
        """
        if value.mode & ~abi.XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL:
            raise HypercallError(errno.EINVAL)
        paging, log = target.paging, target.paging.log
        done = 0
        if paging.interrupted is None:
            if log is not None:
                log.update()
        else:
            done, paging.interrupted = paging.interrupted.pages, None
            self.hv.domain_ops.unpause(target)
        value.stats.fault_count = 0
        value.stats.dirty_count = log.dirty_count if log is not None else 0
        clean = value.op == abi.XEN_DOMCTL_SHADOW_OP_CLEAN
        if value.dirty_bitmap:
            done = self._copy_leaves(vcpu, target, value, done, clean=clean)
        else:
            done = min(-(-value.pages // 8) * 8, NR_LEAVES * LEAF_BITS)
            if clean and log is not None:
                log.clear_below(done)
        value.pages = min(value.pages, done)
        if clean and log is not None:
            log.cleared()

    def _copy_leaves(self, vcpu: VCpu, target: Domain, value: Any, done: int, *, clean: bool) -> int:
        """Copy the leaves from page `done` on; returns how many pages they cover. Raises Continuation in between."""
        log = target.paging.log
        end = min(value.pages, NR_LEAVES * LEAF_BITS)
        while done < end:
            index = done // LEAF_BITS
            size = min(LEAF_BITS, end - done + 7 & ~7) >> 3
            bits = log.leaf(index)[:size] if log is not None else bytes(size)
            copy_to_guest(vcpu, value.dirty_bitmap + (done >> 3), bits)
            done += size * 8
            if clean and log is not None:
                log.clear(index)
            if (index + 1) % LEAVES_AT_A_TIME == 0 and index + 1 < NR_LEAVES and self.hv.preempt.check():
                target.paging.interrupted = Interrupted(vcpu.domain, value.op, done)
                self.hv.domain_ops.pause(target)
                raise Continuation(CONTINUE)
        return done


def _need_pool(target: Domain, frames: int) -> None:
    """Have the pool set up, if nobody has. Raises HypercallError(ENOMEM)."""
    paging = target.paging
    if len(paging.pool) < paging.least_pool and not paging.fill(frames):
        raise HypercallError(errno.ENOMEM)
