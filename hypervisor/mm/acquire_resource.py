"""XENMEM_acquire_resource: the frames behind a domain's grant table, for its device model or builder to map."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, memory, xen
from hypervisor.errors import HypercallError
from hypervisor.grant_table.table import STATUS_PER_FRAME
from hypervisor.guest_access import copy_from_guest, copy_to_guest, write_u32
from hypervisor.mm.reservation import EXTENT_SHIFT, MAX_EXTENTS
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

_NR = xen.HYPERVISOR_memory_op
_XMAR = memory.xen_mem_acquire_resource
_AT_ONCE = 32
"""Frames that are listed between two points at which the call can be preempted."""
_ENTRIES_PER_V2_FRAME = 256


class AcquireResource:
    """The operation. Only grant tables are there: ioreq servers and trace buffers are for translated guests."""

    def __init__(self, hv: Hypervisor) -> None:
        self._hv = hv

    def acquire(self, vcpu: VCpu, arg: int, start: int) -> int:
        """List frames into the caller's memory from number `start` on, or tell how many there may be; 0 or -errno."""
        request = _XMAR.unpack_from(copy_from_guest(vcpu, arg, _XMAR.size))
        if request.pad or request.frame >> 32 or (request.frame + request.nr_frames) >> 32:
            return -errno.EINVAL
        domain = self._hv.domain(request.domid)
        if domain is vcpu.domain or not self._hv.may_control(vcpu.domain, domain):
            return -errno.EPERM
        most = max_frames(domain, request.type, request.id)
        if not most:
            return -errno.EINVAL
        if not request.frame_list:
            if request.nr_frames or start:
                return -errno.EINVAL
            write_u32(vcpu, arg + _XMAR.offset("nr_frames"), most)
            return 0
        if start >= request.nr_frames or request.nr_frames > MAX_EXTENTS:
            return -errno.EINVAL
        self._list(vcpu, domain, request, start, arg)
        return 0

    def _list(self, vcpu: VCpu, domain: Domain, request: Any, start: int, arg: int) -> None:
        if request.type != memory.XENMEM_resource_grant_table:
            raise HypercallError(errno.EOPNOTSUPP)
        for done in range(start, request.nr_frames, _AT_ONCE):
            if done != start and self._hv.preempt.check():
                raise Continuation(_NR, memory.XENMEM_acquire_resource | done << EXTENT_SHIFT, arg)
            count = min(_AT_ONCE, request.nr_frames - done)
            frames = domain.grant_table.resource(request.id, request.frame + done, count)
            copy_to_guest(vcpu, request.frame_list + done * 8, struct.pack(f"<{count}Q", *frames))


def max_frames(domain: Domain, kind: int, number: int) -> int:
    """Return of how many frames a resource can consist; 0 if there is no such resource.

    An unknown kind is noticed only when it is used: asked for its size, Xen tells its error code as the number.
    """
    if kind in (memory.XENMEM_resource_ioreq_server, memory.XENMEM_resource_vmtrace_buf):
        return 0
    if kind != memory.XENMEM_resource_grant_table:
        return -errno.EOPNOTSUPP & 0xFFFFFFFF
    shared = domain.grant_table.max_frames
    if number == memory.XENMEM_resource_grant_table_id_shared:
        return shared
    if number == memory.XENMEM_resource_grant_table_id_status:
        return -(-shared * _ENTRIES_PER_V2_FRAME // STATUS_PER_FRAME)
    return 0
