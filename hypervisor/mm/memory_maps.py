"""The memory maps of memory_op: a guest's own, which its builder sets, and the machine's, for the hardware domain."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.abi import errno, memory
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest
from hypervisor.machine.firmware import RESERVED, Region, memory_map

if TYPE_CHECKING:
    from hypervisor.mm.manager import MemoryManager
    from hypervisor.vcpu import VCpu

E820MAX = 1024
_E820 = struct.Struct("<QQI")
"""An entry of a memory map: start and size in bytes, type (1 RAM, 2 reserved). Packed: 20 bytes."""
_MAP = memory.xen_memory_map
_FOREIGN = memory.xen_foreign_memory_map
_PAGE = 4096


class MemoryMaps:
    """XENMEM_memory_map, XENMEM_set_memory_map and XENMEM_machine_memory_map."""

    def __init__(self, mm: MemoryManager) -> None:
        self._hv = mm.hv
        self._machine = memory_map(mm.frames.frames)

    def memory_map(self, vcpu: VCpu, arg: int) -> int:
        """Tell a domain the map that was set for it; a domain without one is told that there is no such thing."""
        raw = copy_from_guest(vcpu, arg, _MAP.size)
        request = _MAP.unpack_from(raw)
        regions = vcpu.domain.memory_map
        if not regions:
            return -errno.ENOSYS
        request.nr_entries = min(request.nr_entries, len(regions))
        copy_to_guest(vcpu, request.buffer, _pack(regions[: request.nr_entries]))
        copy_to_guest(vcpu, arg, _MAP.pack_over(raw, request))
        return 0

    def set_memory_map(self, vcpu: VCpu, arg: int) -> int:
        """Set the map of a domain that the caller controls."""
        request = _FOREIGN.unpack_from(copy_from_guest(vcpu, arg, _FOREIGN.size))
        if request.map.nr_entries > E820MAX:
            return -errno.EINVAL
        domain = self._hv.resolve(vcpu, request.domid)
        if not self._hv.may_control(vcpu.domain, domain):
            return -errno.EPERM
        raw = copy_from_guest(vcpu, request.map.buffer, request.map.nr_entries * _E820.size)
        domain.memory_map = [(start, length, kind) for start, length, kind in _E820.iter_unpack(raw)]
        return 0

    def machine_memory_map(self, vcpu: VCpu, arg: int) -> int:
        """Tell a privileged domain the map of the machine. With no buffer only the number of entries is told."""
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        raw = copy_from_guest(vcpu, arg, _MAP.size)
        request = _MAP.unpack_from(raw)
        if request.buffer and request.nr_entries < len(self._machine) + 1:
            return -errno.EINVAL
        if request.buffer and not access_ok(request.buffer):
            return -errno.EFAULT
        regions = whole_map(self._machine, vcpu.domain.iomem)
        if request.buffer:
            self._store(vcpu, request.buffer, regions, request.nr_entries)
        request.nr_entries = len(regions)
        copy_to_guest(vcpu, arg, _MAP.pack_over(raw, request))
        return 0

    @staticmethod
    def _store(vcpu: VCpu, buffer: int, regions: list[Region], room: int) -> None:
        """Store entries as long as there is room; Xen always leaves one free. Raises HypercallError."""
        copy_to_guest(vcpu, buffer, _pack(regions[: max(0, room - 1)]))
        if room <= len(regions):
            raise HypercallError(errno.EINVAL)


def whole_map(machine: list[Region], iomem: list[range]) -> list[Region]:
    """Return the firmware's map and, as reserved, what it leaves out but the domain may not use as I/O memory."""
    regions: list[Region] = []
    reached = 0
    for region in machine:
        first = region.start // _PAGE
        regions += _holes(reached, first, iomem)
        regions.append(region)
        reached = -(-(region.start + region.size) // _PAGE)
    permitted = max((frames.stop for frames in iomem), default=reached)
    return regions + _holes(reached, permitted, iomem)


def _holes(start: int, stop: int, iomem: list[range]) -> list[Region]:
    """Return the frames from `start` to `stop` that are in none of the (ascending) ranges."""
    holes = []
    for frames in [*iomem, range(stop, stop)]:
        end = min(frames.start, stop)
        if end > start:
            holes.append(Region(start * _PAGE, (end - start) * _PAGE, RESERVED))
        start = max(start, frames.stop)
    return holes


def _pack(regions: list[Region] | list[tuple[int, int, int]]) -> bytes:
    return b"".join(_E820.pack(*region) for region in regions)
