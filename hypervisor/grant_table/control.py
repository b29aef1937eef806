"""The operations on a whole table: its size, its version, exchanging entries, cache maintenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi import grant_table as abi
from hypervisor.errors import HypercallError
from hypervisor.grant_table import conversion
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.abi.layout import Layout, Value
    from hypervisor.domain import Domain
    from hypervisor.grant_table.table import GrantTable
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_grant_table_op
FLUSH_OPS = abi.GNTTAB_CACHE_CLEAN | abi.GNTTAB_CACHE_INVAL
SEARCH_STEP = 1 << 12
"""Entries that cache_flush searches before it can be preempted."""


def _fetch(vcpu: VCpu, va: int, layout: Layout) -> Value:
    return layout.unpack(copy_from_guest(vcpu, va, layout.size))


def _answer(vcpu: VCpu, va: int, layout: Layout, name: str, value: int) -> None:
    """Write one field of a structure back."""
    field = layout.by_attribute[name]
    signed = value < 0
    copy_to_guest(vcpu, va + field.offset, value.to_bytes(field.size, "little", signed=signed))


class ControlOps:
    """The operations that no driver has in its hot path."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv

    def _target(self, vcpu: VCpu, domid: int) -> tuple[GrantTable | None, int]:
        """Return the table of the domain that an operation names, or None and the status."""
        domain = vcpu.domain if domid == xen.DOMID_SELF else self._hv.domains.get(domid)
        if domain is None:
            return None, abi.GNTST_bad_domain
        if not self._hv.may_control(vcpu.domain, domain):
            return None, abi.GNTST_permission_denied
        return domain.grant_table, abi.GNTST_okay

    # -- size -------------------------------------------------------------------------------------------------------

    def setup_table(self, vcpu: VCpu, va: int, count: int) -> int:
        """GNTTABOP_setup_table: make a table at least so long, and list its frames."""
        if count != 1:
            return -errno.EINVAL
        op = _fetch(vcpu, va, abi.gnttab_setup_table)
        if not access_ok(op.frame_list):
            return -errno.EFAULT
        table, status = self._target(vcpu, op.dom)
        if table is not None:
            if table.grow(op.nr_frames):
                status = _list_frames(vcpu, op.frame_list, table.shared[: op.nr_frames])
            else:
                status = abi.GNTST_general_error
        _answer(vcpu, va, abi.gnttab_setup_table, "status", status)
        return 0

    def query_size(self, vcpu: VCpu, va: int, count: int) -> int:
        """GNTTABOP_query_size: how long a table is, and how long it may become."""
        if count != 1:
            return -errno.EINVAL
        layout = abi.gnttab_query_size
        op = _fetch(vcpu, va, layout)
        table, status = self._target(vcpu, op.dom)
        if table is not None:
            _answer(vcpu, va, layout, "nr_frames", len(table.shared))
            _answer(vcpu, va, layout, "max_nr_frames", table.max_frames)
        _answer(vcpu, va, layout, "status", status)
        return 0

    # -- version ----------------------------------------------------------------------------------------------------

    def get_version(self, vcpu: VCpu, va: int, count: int) -> int:
        """GNTTABOP_get_version: which entries a domain uses. Errors are errnos here."""
        op = _fetch(vcpu, va, abi.gnttab_get_version)
        table, status = self._target(vcpu, op.dom)
        if table is None:
            return -errno.ESRCH if status == abi.GNTST_bad_domain else -errno.EPERM
        _answer(vcpu, va, abi.gnttab_get_version, "version", table.version)
        return 0

    def set_version(self, vcpu: VCpu, va: int, count: int) -> int:
        """GNTTABOP_set_version: change the caller's entries to version 1 or 2. The one in effect is written back."""
        layout = abi.gnttab_set_version
        op = _fetch(vcpu, va, layout)
        table = vcpu.domain.grant_table
        error = conversion.set_version(table, op.version)
        _answer(vcpu, va, layout, "version", table.version)
        return -error

    def get_status_frames(self, vcpu: VCpu, va: int, count: int) -> int:
        """GNTTABOP_get_status_frames: list the frames that hold the status words of a version 2 table."""
        if count != 1:
            return -errno.EINVAL
        layout = abi.gnttab_get_status_frames
        op = _fetch(vcpu, va, layout)
        if not access_ok(op.frame_list):
            return -errno.EFAULT
        table, status = self._target(vcpu, op.dom)
        if table is not None:
            if op.nr_frames > len(table.status_frames):
                status = abi.GNTST_general_error
            else:
                status = _list_frames(vcpu, op.frame_list, table.status_frames[: op.nr_frames])
        _answer(vcpu, va, layout, "status", status)
        return 0

    # -- entries ----------------------------------------------------------------------------------------------------

    def swap_grant_ref(self, vcpu: VCpu, va: int, count: int) -> int:
        """GNTTABOP_swap_grant_ref: exchange entries of the caller's own table that nobody uses."""
        layout = abi.gnttab_swap_grant_ref
        table = vcpu.domain.grant_table
        for done in range(count):
            if done and self._hv.preempt.check():
                raise Continuation(HYPERCALL, abi.GNTTABOP_swap_grant_ref, va, count - done)
            op = _fetch(vcpu, va, layout)
            _answer(vcpu, va, layout, "status", _swap(table, op.ref_a, op.ref_b))
            va += layout.size
        return 0

    def cache_flush(self, vcpu: VCpu, va: int, count: int, first: int = 0) -> int:
        """GNTTABOP_cache_flush: check what Xen checks. Caches are coherent here, so there is nothing to write back.

        `first` is the entry from which on the granter's table is to be searched, a multiple of SEARCH_STEP: not 0 when
        the search of the first operation was preempted. It travels in the upper bits of the operation's number.
        """
        layout = abi.gnttab_cache_flush
        preempt = self._hv.preempt
        for done in range(count):
            if done and preempt.check():
                raise Continuation(HYPERCALL, abi.GNTTABOP_cache_flush, va, count - done)
            op = _fetch(vcpu, va, layout)
            while True:
                error, first = self._cache_flush(vcpu.domain, op, first)
                if not first:
                    break
                if preempt.check():
                    raise Continuation(HYPERCALL, abi.GNTTABOP_cache_flush | first, va, count - done)
            if error:
                return -error
            va += layout.size
        return 0

    def _cache_flush(self, caller: Domain, flush: Value, first: int) -> tuple[int, int]:
        """Return 0 or an errno, and 0 or the entry with which the search is to go on."""
        offset, length, op = flush.offset, flush.length, flush.op
        if offset >= 4096 or offset + length > 4096 or op & ~FLUSH_OPS:
            return errno.EINVAL, 0
        if not length or not op:
            return errno.EILSEQ if first else 0, 0
        frames = self._hv.frames
        mfn = int.from_bytes(bytes(flush.a), "little") >> 12
        if not frames.is_ram(mfn):
            return errno.EINVAL, 0
        owner = self._hv.domains.get(frames.owner(mfn))
        if owner is None:
            return errno.EPERM, 0
        if owner is not caller:
            table = owner.grant_table
            last = min(first + SEARCH_STEP, table.nr_entries)
            if not any(_uses(caller, table, ref, mfn) for ref in range(first, last)):
                return (errno.EINVAL, 0) if last >= table.nr_entries else (0, last)
        # An x86 processor can write lines back, but not drop them without writing back.
        return 0 if op & abi.GNTTAB_CACHE_CLEAN else errno.EOPNOTSUPP, 0


def _swap(table: GrantTable, first: int, second: int) -> int:
    if first >= table.nr_entries or second >= table.nr_entries:
        return abi.GNTST_bad_gntref
    if first == second:
        return abi.GNTST_okay
    if table.pin[first] or table.pin[second]:
        return abi.GNTST_eagain
    table.format.swap(table, first, second)
    return abi.GNTST_okay


def _uses(user: Domain, table: GrantTable, ref: int, mfn: int) -> bool:
    """Whether a domain has a frame in use through this entry."""
    return bool(table.pin[ref]) and table.grantee[ref] == user.domid and table.mfn[ref] == mfn


def _list_frames(vcpu: VCpu, va: int, mfns: list[int]) -> int:
    """Write frame numbers into the caller's list; where that cannot be done is a status, and the others are written."""
    status = abi.GNTST_okay
    for index, mfn in enumerate(mfns):
        try:
            copy_to_guest(vcpu, va + 8 * index, mfn.to_bytes(8, "little"))
        except HypercallError:
            status = abi.GNTST_bad_virt_addr
    return status
