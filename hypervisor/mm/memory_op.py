"""HYPERVISOR_memory_op (memory.h): the operations by number, and those that ask or tell about memory."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, memory, xen
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest, write_u32, write_u64
from hypervisor.mm.frame_table import M2P_ALIGN

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Handler
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

_EXTENT_SHIFT = 6
"""The operation is in the low bits of the command; the rest says where an interrupted call goes on."""
_E820MAX = 1024
_E820 = struct.Struct("<QQI")
"""An entry of a memory map: start and size in bytes, type (1 RAM, 2 reserved). Packed: 20 bytes."""
E820_RAM, E820_RESERVED = 1, 2
_MAX_PFN = xen.shared_info.offset("arch.max_pfn")

_XATP = memory.xen_add_to_physmap
_XATP_BATCH = memory.xen_add_to_physmap_batch
_XMAR = memory.xen_mem_acquire_resource
_MFN_LIST = memory.xen_machphys_mfn_list


class MemoryOps:
    """Dispatches the memory hypercall. What is not built answers -ENOSYS."""

    def __init__(self, mm: MemoryManager) -> None:
        self._mm = mm
        self._hv = mm.hv
        self._frames = mm.frames
        self.hypercalls: dict[int, Handler] = {xen.HYPERVISOR_memory_op: self._memory_op}
        self._plain: dict[int, Callable[[VCpu, int], int]] = {
            memory.XENMEM_exchange: mm.reservations.exchange,
            memory.XENMEM_maximum_ram_page: lambda _vcpu, _arg: self._frames.frames,
            memory.XENMEM_current_reservation: self._current_reservation,
            memory.XENMEM_maximum_reservation: self._maximum_reservation,
            memory.XENMEM_maximum_gpfn: self._maximum_gpfn,
            memory.XENMEM_machphys_mfn_list: self._machphys_mfn_list,
            memory.XENMEM_machphys_mapping: self._machphys_mapping,
            memory.XENMEM_memory_map: self._memory_map,
            memory.XENMEM_set_memory_map: self._set_memory_map,
            memory.XENMEM_machine_memory_map: self._machine_memory_map,
            memory.XENMEM_remove_from_physmap: self._remove_from_physmap,
            memory.XENMEM_claim_pages: self._claim_pages,
        }
        self._extents: dict[int, Callable[[VCpu, int, int], int]] = {
            memory.XENMEM_add_to_physmap: self._add_to_physmap,
            memory.XENMEM_add_to_physmap_batch: self._add_to_physmap_batch,
            memory.XENMEM_acquire_resource: self._acquire_resource,
        }

    def _memory_op(self, vcpu: VCpu, command: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        command &= 0xFFFFFFFFFFFFFFFF
        op, start = command & (1 << _EXTENT_SHIFT) - 1, command >> _EXTENT_SHIFT
        if op in (
            memory.XENMEM_increase_reservation,
            memory.XENMEM_decrease_reservation,
            memory.XENMEM_populate_physmap,
        ):
            return self._mm.reservations.adjust(vcpu, op, arg, start)
        extents = self._extents.get(op)
        if extents is not None:
            return extents(vcpu, arg, start)
        plain = self._plain.get(op)
        if plain is None:
            return -errno.ENOSYS
        return -errno.EINVAL if start else plain(vcpu, arg)

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

    # -- the M2P ----------------------------------------------------------------------------------------------------

    def _machphys_mfn_list(self, vcpu: VCpu, arg: int) -> int:
        """List the frames at which each 2 MiB of the M2P starts."""
        request = _MFN_LIST.unpack_from(copy_from_guest(vcpu, arg, _MFN_LIST.size))
        frames = self._frames
        pieces = min(request.max_extents, frames.m2p_frames // M2P_ALIGN)
        for index in range(pieces):
            write_u64(vcpu, request.extent_start + index * 8, frames.m2p_mfn + index * M2P_ALIGN)
        write_u32(vcpu, arg + _MFN_LIST.offset("nr_extents"), pieces)
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

    # -- memory maps ------------------------------------------------------------------------------------------------

    def _memory_map(self, vcpu: VCpu, arg: int) -> int:
        request = memory.xen_memory_map.unpack_from(copy_from_guest(vcpu, arg, memory.xen_memory_map.size))
        regions = vcpu.domain.memory_map
        if not regions:
            return -errno.ENOSYS
        count = min(request.nr_entries, len(regions))
        copy_to_guest(vcpu, request.buffer, b"".join(_E820.pack(*region) for region in regions[:count]))
        write_u32(vcpu, arg, count)
        return 0

    def _set_memory_map(self, vcpu: VCpu, arg: int) -> int:
        size = memory.xen_foreign_memory_map.size
        request = memory.xen_foreign_memory_map.unpack_from(copy_from_guest(vcpu, arg, size))
        if request.map.nr_entries > _E820MAX:
            return -errno.EINVAL
        domain = self._target(vcpu, request.domid)
        raw = copy_from_guest(vcpu, request.map.buffer, request.map.nr_entries * _E820.size)
        domain.memory_map = [(start, length, kind) for start, length, kind in _E820.iter_unpack(raw)]
        return 0

    def _machine_memory_map(self, vcpu: VCpu, arg: int) -> int:
        """Tell a privileged domain the map of the machine: a reserved frame, then memory to the end."""
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        request = memory.xen_memory_map.unpack_from(copy_from_guest(vcpu, arg, memory.xen_memory_map.size))
        regions = ((0, 4096, E820_RESERVED), (4096, (self._frames.frames - 1) << 12, E820_RAM))
        if request.buffer:
            if request.nr_entries < len(regions) + 1:
                return -errno.EINVAL
            copy_to_guest(vcpu, request.buffer, b"".join(_E820.pack(*region) for region in regions))
        write_u32(vcpu, arg, len(regions))
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

    # -- resources --------------------------------------------------------------------------------------------------

    def _acquire_resource(self, vcpu: VCpu, arg: int, start: int) -> int:
        """Tell a privileged domain the frames of another domain's grant table, for it to map as foreign frames."""
        request = _XMAR.unpack_from(copy_from_guest(vcpu, arg, _XMAR.size))
        if request.pad or request.frame >> 32 or (request.frame + request.nr_frames) >> 32:
            return -errno.EINVAL
        domain = self._hv.domain(request.domid)
        if domain is vcpu.domain or not self._hv.may_control(vcpu.domain, domain):
            return -errno.EPERM
        if request.type not in (memory.XENMEM_resource_ioreq_server, memory.XENMEM_resource_grant_table):
            return -errno.EINVAL if request.type == memory.XENMEM_resource_vmtrace_buf else -errno.EOPNOTSUPP
        table = domain.grant_table
        if request.type != memory.XENMEM_resource_grant_table or request.id != _SHARED:
            return -errno.EINVAL
        if not request.frame_list:
            if request.nr_frames or start:
                return -errno.EINVAL
            write_u32(vcpu, arg + _XMAR.offset("nr_frames"), table.max_frames)
            return 0
        if start >= request.nr_frames or request.nr_frames > 0xFFFFFFFF >> _EXTENT_SHIFT:
            return -errno.EINVAL
        return self._list_grant_frames(vcpu, table, request)

    @staticmethod
    def _list_grant_frames(vcpu: VCpu, table: Any, request: Any) -> int:
        end = request.frame + request.nr_frames
        if end > table.max_frames or (end > len(table.shared) and not table.grow(end)):
            return -errno.EINVAL
        frames = table.shared[request.frame : end]
        copy_to_guest(vcpu, request.frame_list, struct.pack(f"<{len(frames)}Q", *frames))
        return 0


_SHARED = memory.XENMEM_resource_grant_table_id_shared
