"""HYPERVISOR_memory_op (memory.h): the operations by number, and those that ask or tell about memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, memory, xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest, write_u64
from hypervisor.mm.acquire_resource import AcquireResource
from hypervisor.mm.boot_memory import SUPERPAGE
from hypervisor.mm.memory_maps import MemoryMaps
from hypervisor.mm.reservation import EXTENT_SHIFT
from hypervisor.vnuma import tell_topology

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Handler
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

_OP_MASK = (1 << EXTENT_SHIFT) - 1
_U64 = 0xFFFFFFFFFFFFFFFF
_MAX_PFN = xen.shared_info.offset("arch.max_pfn")

_XATP = memory.xen_add_to_physmap
_XATP_BATCH = memory.xen_add_to_physmap_batch
_MFN_LIST = memory.xen_machphys_mfn_list
_RDM = memory.xen_reserved_device_memory_map
_TOPOLOGY = memory.xen_vnuma_topology_info

PlainOp = Callable[["VCpu", int], int]
ExtentOp = Callable[["VCpu", int, int], int]


class MemoryOps:
    """Dispatches the memory hypercall.

    What is in the upper bits of a command is where a preempted call goes on. Operations that cannot be preempted refuse
    it: those of Xen's common code with EINVAL, those of x86 as unknown.
    """

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._hv = mm.hv
        self._frames = mm.frames
        self.hypercalls: dict[int, Handler] = {xen.HYPERVISOR_memory_op: self._memory_op}
        maps = MemoryMaps(mm)
        self._common: dict[int, PlainOp] = {
            memory.XENMEM_exchange: mm.reservations.exchange,
            memory.XENMEM_maximum_ram_page: lambda _vcpu, _arg: self._frames.frames,
            memory.XENMEM_current_reservation: self._current_reservation,
            memory.XENMEM_maximum_reservation: self._maximum_reservation,
            memory.XENMEM_maximum_gpfn: self._maximum_gpfn,
            memory.XENMEM_remove_from_physmap: self._remove_from_physmap,
            memory.XENMEM_claim_pages: self._claim_pages,
            memory.XENMEM_get_vnumainfo: self._get_vnumainfo,
            memory.XENMEM_reserved_device_memory_map: self._reserved_device_memory_map,
        }
        self._x86: dict[int, PlainOp] = {
            memory.XENMEM_memory_map: maps.memory_map,
            memory.XENMEM_set_memory_map: maps.set_memory_map,
            memory.XENMEM_machine_memory_map: maps.machine_memory_map,
            memory.XENMEM_machphys_mapping: self._machphys_mapping,
            memory.XENMEM_machphys_mfn_list: self._machphys_mfn_list,
            # There are no guests of 32 bits, and no table for them (Xen: pv=no-32).
            memory.XENMEM_machphys_compat_mfn_list: lambda _vcpu, _arg: -errno.EOPNOTSUPP,
            memory.XENMEM_get_pod_target: self._pod_target,
            memory.XENMEM_set_pod_target: self._pod_target,
            # Nothing is shared between guests, so nothing is saved.
            memory.XENMEM_get_sharing_freed_pages: lambda _vcpu, _arg: 0,
            memory.XENMEM_get_sharing_shared_pages: lambda _vcpu, _arg: 0,
        }
        self._extents: dict[int, ExtentOp] = {
            memory.XENMEM_add_to_physmap: self._add_to_physmap,
            memory.XENMEM_add_to_physmap_batch: self._add_to_physmap_batch,
            memory.XENMEM_acquire_resource: AcquireResource(mm.hv).acquire,
            memory.XENMEM_access_op: self._access_op,
        }

    def _memory_op(self, vcpu: VCpu, command: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        command &= _U64
        op, start = command & _OP_MASK, command >> EXTENT_SHIFT
        if op in (
            memory.XENMEM_increase_reservation,
            memory.XENMEM_decrease_reservation,
            memory.XENMEM_populate_physmap,
        ):
            return self._mm.reservations.adjust(vcpu, op, arg, start)
        extents = self._extents.get(op)
        if extents is not None:
            return extents(vcpu, arg, start)
        common = self._common.get(op)
        if common is not None:
            return -errno.EINVAL if start else common(vcpu, arg)
        x86 = self._x86.get(command)
        return x86(vcpu, arg) if x86 is not None else -errno.ENOSYS

    # -- what a domain has ------------------------------------------------------------------------------------------

    def _target(self, vcpu: VCpu, domid: int) -> Domain:
        """Return the domain that an argument names, if the caller may act for it. Raises HypercallError."""
        domain = self._hv.resolve(vcpu, domid)
        if not self._hv.may_control(vcpu.domain, domain):
            raise HypercallError(errno.EPERM)
        return domain

    def _stat_target(self, vcpu: VCpu, arg: int) -> Domain:
        return self._target(vcpu, int.from_bytes(copy_from_guest(vcpu, arg, 2), "little"))

    def _current_reservation(self, vcpu: VCpu, arg: int) -> int:
        return self._stat_target(vcpu, arg).tot_pages

    def _maximum_reservation(self, vcpu: VCpu, arg: int) -> int:
        return self._stat_target(vcpu, arg).max_pages

    def _maximum_gpfn(self, vcpu: VCpu, arg: int) -> int:
        """Return the highest pfn that the guest says it uses: shared_info holds how many, and may hold anything."""
        domain = self._stat_target(vcpu, arg)
        count = self._hv.memory.q[((domain.shared_info_mfn << 12) + _MAX_PFN) >> 3]
        highest = max(count, 1) - 1
        return highest - (highest >> 63 << 64)

    def _claim_pages(self, vcpu: VCpu, arg: int) -> int:
        request = memory.xen_memory_reservation.unpack_from(
            copy_from_guest(vcpu, arg, memory.xen_memory_reservation.size)
        )
        if request.extent_start or request.extent_order or request.mem_flags:
            return -errno.EINVAL
        domain = self._hv.domains.get(request.domid)
        if domain is None:
            return -errno.EINVAL
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        return -self._mm.claims.stake(domain, request.nr_extents)

    def _pod_target(self, vcpu: VCpu, arg: int) -> int:
        """Populate-on-demand is for translated guests, of which there are none."""
        raw = copy_from_guest(vcpu, arg, memory.xen_pod_target.size)
        self._hv.resolve(vcpu, memory.xen_pod_target.unpack_from(raw).domid)
        return -errno.EINVAL

    def _access_op(self, vcpu: VCpu, arg: int, _start: int) -> int:
        """Access restrictions of pages: of another, translated domain only."""
        raw = copy_from_guest(vcpu, arg, memory.xen_mem_access_op.size)
        domain = self._hv.domain(memory.xen_mem_access_op.unpack_from(raw).domid)
        return -errno.EPERM if domain is vcpu.domain else -errno.EINVAL

    def _get_vnumainfo(self, vcpu: VCpu, arg: int) -> int:
        """Tell a domain's virtual NUMA topology, if the toolstack has given it one."""
        request = _TOPOLOGY.unpack_from(copy_from_guest(vcpu, arg, _TOPOLOGY.size))
        if request.pad:
            return -errno.EINVAL
        topology = self._target(vcpu, request.domid).virtual_topology
        return -errno.EOPNOTSUPP if topology is None else tell_topology(vcpu, arg, request, topology)

    # -- the M2P ----------------------------------------------------------------------------------------------------

    def _machphys_mfn_list(self, vcpu: VCpu, arg: int) -> int:
        """List the frames at which each 2 MiB of the M2P starts."""
        raw = copy_from_guest(vcpu, arg, _MFN_LIST.size)
        request = _MFN_LIST.unpack_from(raw)
        frames = self._frames
        pieces = min(request.max_extents, frames.m2p_frames // SUPERPAGE)
        for index in range(pieces):
            write_u64(vcpu, request.extent_start + index * 8, frames.m2p_mfn + index * SUPERPAGE)
        request.nr_extents = pieces
        copy_to_guest(vcpu, arg, _MFN_LIST.pack_over(raw, request))
        return 0

    def _machphys_mapping(self, vcpu: VCpu, arg: int) -> int:
        """Tell where the M2P is. Only the hardware domain learns how much memory the host has."""
        known = vcpu.domain.domid == 0
        mapping = memory.xen_machphys_mapping.pack(
            v_start=xen.MACH2PHYS_VIRT_START,
            v_end=xen.MACH2PHYS_VIRT_END,
            max_mfn=(self._frames.frames if known else xen.MACH2PHYS_NR_ENTRIES) - 1,
        )
        copy_to_guest(vcpu, arg, mapping)
        return 0

    # -- physmaps: a PV guest's is its own business -----------------------------------------------------------------

    def _add_to_physmap(self, vcpu: VCpu, arg: int, start: int) -> int:
        if start > 0xFFFF:
            return -errno.EDOM
        request = _XATP.unpack_from(copy_from_guest(vcpu, arg, _XATP.size))
        if request.space == memory.XENMAPSPACE_gmfn_foreign:
            return -errno.ENOSYS
        self._hv.resolve(vcpu, request.domid)
        return -errno.EACCES

    def _add_to_physmap_batch(self, vcpu: VCpu, arg: int, start: int) -> int:
        if start > 0xFFFF:
            return -errno.EDOM
        request = _XATP_BATCH.unpack_from(copy_from_guest(vcpu, arg, _XATP_BATCH.size))
        if request.space == memory.XENMAPSPACE_gmfn_range:
            return -errno.EOPNOTSUPP
        self._hv.resolve(vcpu, request.domid)
        return -errno.EACCES

    def _remove_from_physmap(self, vcpu: VCpu, arg: int) -> int:
        size = memory.xen_remove_from_physmap.size
        self._hv.resolve(vcpu, memory.xen_remove_from_physmap.unpack_from(copy_from_guest(vcpu, arg, size)).domid)
        return -errno.EACCES

    def _reserved_device_memory_map(self, vcpu: VCpu, arg: int) -> int:
        """No device needs a part of memory for itself: the list is empty."""
        raw = copy_from_guest(vcpu, arg, _RDM.size)
        request = _RDM.unpack_from(raw)
        if not access_ok(request.buffer):
            return -errno.EFAULT
        if request.flags & ~memory.XENMEM_RDM_ALL:
            return -errno.EINVAL
        request.nr_entries = 0
        copy_to_guest(vcpu, arg, _RDM.pack_over(raw, request))
        return 0
