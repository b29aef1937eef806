"""Operations that look at the machine: processors, memory, domains."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, physdev
from hypervisor.abi import sysctl as abi
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.time import TSC_HZ

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

MAX_NODES = 64
NR_ZONES = 52
"""Zones of the heap: in zone n are the frames whose numbers have n bits (in the first one, frame 0 too)."""
LOCAL_DISTANCE = 10
"""How far a NUMA node is from itself, as ACPI counts it."""
PHYSCAPS = (
    abi.XEN_SYSCTL_PHYSCAP_pv
    | abi.XEN_SYSCTL_PHYSCAP_shadow
    | abi.XEN_SYSCTL_PHYSCAP_gnttab_v1
    | abi.XEN_SYSCTL_PHYSCAP_gnttab_v2
)
HVM_PHYSCAPS = abi.XEN_SYSCTL_PHYSCAP_hvm | abi.XEN_SYSCTL_PHYSCAP_hap
"""... of a machine with SVM, whose Xen has detected Hardware Assisted Paging as well."""
UNINTERRUPTED_DEVICES = 0x3F
"""So many devices pcitopoinfo looks up before it can be interrupted; it then says how far it got."""


NOWHERE = abi.XEN_INVALID_CORE_ID, abi.XEN_INVALID_SOCKET_ID, abi.XEN_INVALID_NODE_ID
"""Where a pCPU is that is off."""


def _zone(bits: int) -> int:
    """Return the zone of the heap that the highest frames with addresses of so many bits are in (bits_to_zone)."""
    return max(1, min(bits - 12, NR_ZONES))


class HostOps:
    """The machine: one socket of cores without threads, one node."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.handlers = {
            abi.XEN_SYSCTL_physinfo: ("physinfo", self._physinfo),
            abi.XEN_SYSCTL_cputopoinfo: ("cputopoinfo", self._cputopoinfo),
            abi.XEN_SYSCTL_numainfo: ("numainfo", self._numainfo),
            abi.XEN_SYSCTL_pcitopoinfo: ("pcitopoinfo", self._pcitopoinfo),
            abi.XEN_SYSCTL_getcpuinfo: ("getcpuinfo", self._getcpuinfo),
            abi.XEN_SYSCTL_availheap: ("availheap", self._availheap),
            abi.XEN_SYSCTL_getdomaininfolist: ("getdomaininfolist", self._getdomaininfolist),
            abi.XEN_SYSCTL_cpu_hotplug: ("cpu_hotplug", self._cpu_hotplug),
            abi.XEN_SYSCTL_psr_alloc: ("psr_alloc", self._psr_alloc),
            abi.XEN_SYSCTL_get_cpu_levelling_caps: ("cpu_levelling_caps", self._levelling_caps),
        }

    @property
    def _pcpus(self) -> int:
        return len(self.hv.sched.pcpus)

    # -- what there is ----------------------------------------------------------------------------------------------

    def _physinfo(self, _vcpu: VCpu, _value: Any) -> dict[str, Any]:
        return {
            "threads_per_core": 1,
            "cores_per_socket": self._pcpus,
            "nr_cpus": sum(pcpu.online for pcpu in self.hv.sched.pcpus),
            "max_cpu_id": self._pcpus - 1,
            "nr_nodes": 1,
            "max_node_id": MAX_NODES - 1,
            "cpu_khz": TSC_HZ // 1000,
            "capabilities": PHYSCAPS | (HVM_PHYSCAPS if self.hv.machine.has_svm else 0),
            "total_pages": self.hv.memory.frames,
            "free_pages": self.hv.frames.free_frames,
            "outstanding_pages": sum(self.hv.mm.claims.outstanding.values()),
            "max_mfn": self.hv.memory.frames - 1,
        }

    def _cputopoinfo(self, vcpu: VCpu, value: Any) -> Any:
        """Say where each pCPU is, or how many there are."""
        count = self._pcpus
        if value.cputopo:
            count = min(count, value.num_cpus)
            for cpu in range(count):
                place = (cpu, 0, 0) if self.hv.sched.pcpus[cpu].online else NOWHERE
                record = abi.xen_sysctl_cputopo.pack(core=place[0], socket=place[1], node=place[2])
                copy_to_guest(vcpu, value.cputopo + cpu * len(record), record)
        value.num_cpus = count
        return value

    def _numainfo(self, vcpu: VCpu, value: Any) -> Any:
        """Tell the memory of the one node, and how far it is from itself; or how many nodes there are."""
        count = 1
        if value.meminfo or value.distance:
            count = min(count, value.num_nodes)
        if count and value.meminfo:
            size, free = self.hv.memory.frames << 12, self.hv.frames.free_frames << 12
            copy_to_guest(vcpu, value.meminfo, abi.xen_sysctl_meminfo.pack(memsize=size, memfree=free))
        if count and value.distance:
            copy_to_guest(vcpu, value.distance, LOCAL_DISTANCE.to_bytes(4, "little"))
        value.num_nodes = count
        return value

    def _pcitopoinfo(self, vcpu: VCpu, value: Any) -> Any:
        """Say at which node each device is: there is no PCI bus, so that none is known."""
        if not value.devs or not value.nodes:
            raise HypercallError(errno.EINVAL)
        size = physdev.physdev_pci_device.size
        done = 0
        while done < value.num_devs:
            copy_from_guest(vcpu, value.devs + done * size, size)
            copy_to_guest(vcpu, value.nodes + 4 * done, abi.XEN_INVALID_DEV.to_bytes(4, "little"))
            done += 1
            if done > UNINTERRUPTED_DEVICES and self.hv.preempt.check():
                break
        value.num_devs = done
        return value

    def _getcpuinfo(self, vcpu: VCpu, value: Any) -> Any:
        """Tell how long each pCPU has been idle."""
        count = min(value.max_cpus, self._pcpus)
        for cpu in range(count):
            record = abi.xen_sysctl_cpuinfo.pack(idletime=self.hv.sched.idle_time(cpu))
            copy_to_guest(vcpu, value.info + cpu * len(record), record)
        value.nr_cpus = count
        return value

    def _availheap(self, _vcpu: VCpu, value: Any) -> Any:
        """Tell the free memory whose addresses have between `min_bitwidth` and `max_bitwidth` bits, on a node or all.

        Xen sorts its free memory by the width of addresses, so that only whole powers of two are told apart.
        """
        lowest = _zone(value.min_bitwidth) if value.min_bitwidth else 1
        highest = _zone(value.max_bitwidth) if value.max_bitwidth else NR_ZONES
        low, high = 1 << lowest - 1 if lowest > 1 else 0, 1 << highest
        free = 0
        if value.node in (-1, 0):
            for first, count in self.hv.frames.heap.blocks():
                free += max(min(first + count, high) - max(first, low), 0)
        value.avail_bytes = free << 12
        return value

    def _getdomaininfolist(self, vcpu: VCpu, value: Any) -> Any:
        """Copy out the state of up to `max_domains` domains from `first_domain` on, in the order of their numbers."""
        domains, record = self.hv.domains, self.hv.domctl.record
        domids = sorted(domains)
        first = bisect_left(domids, value.first_domain)
        domids = domids[first : first + value.max_domains]
        records = b"".join([record(domains[domid]) for domid in domids])
        if records:
            copy_to_guest(vcpu, value.buffer, records)
        value.num_domains = len(domids)
        return value

    # -- the rest --------------------------------------------------------------------------------------------------

    def _cpu_hotplug(self, _vcpu: VCpu, value: Any) -> None:
        """Switch a pCPU on or off. Threads of cores there are not."""
        pools = self.hv.sched.pools
        if value.op == abi.XEN_SYSCTL_CPU_HOTPLUG_ONLINE:
            pools.bring_online(value.cpu)
        elif value.op == abi.XEN_SYSCTL_CPU_HOTPLUG_OFFLINE:
            pools.take_offline(value.cpu)
        else:
            raise HypercallError(errno.EOPNOTSUPP)

    @staticmethod
    def _psr_alloc(_vcpu: VCpu, value: Any) -> None:
        raise HypercallError(errno.ENODEV if value.cmd <= abi.XEN_SYSCTL_PSR_get_mba_info else errno.EOPNOTSUPP)

    @staticmethod
    def _levelling_caps(_vcpu: VCpu, _value: Any) -> dict[str, int]:
        return {"caps": 0}
