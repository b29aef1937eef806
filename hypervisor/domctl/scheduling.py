"""Control operations about scheduling and NUMA: weights, affinity to pCPUs and nodes, and nodes of the domain's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno
from hypervisor.bitmaps import read_bitmap, write_bitmap
from hypervisor.domctl.operation import Operation, vcpu_of
from hypervisor.errors import HypercallError
from hypervisor.sched.algorithm import ALL_CPUS
from hypervisor.vnuma import take_topology

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

MAX_NODES = 64
ALL_NODES = (1 << MAX_NODES) - 1
ONLINE_NODES = 1
"""The machine has one node, number 0."""
_SCHEDULER_COMMANDS = (
    abi.XEN_DOMCTL_SCHEDOP_putinfo,
    abi.XEN_DOMCTL_SCHEDOP_getinfo,
    abi.XEN_DOMCTL_SCHEDOP_putvcpuinfo,
    abi.XEN_DOMCTL_SCHEDOP_getvcpuinfo,
)
HARD, SOFT = abi.XEN_VCPUAFFINITY_HARD, abi.XEN_VCPUAFFINITY_SOFT


class SchedulingOps:
    """Parameters of the scheduler."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.operations = {
            abi.XEN_DOMCTL_scheduler_op: Operation(self._scheduler_op, "scheduler_op"),
            abi.XEN_DOMCTL_setvcpuaffinity: Operation(self._setvcpuaffinity, "vcpuaffinity"),
            abi.XEN_DOMCTL_getvcpuaffinity: Operation(self._getvcpuaffinity, "vcpuaffinity"),
            abi.XEN_DOMCTL_setnodeaffinity: Operation(self._setnodeaffinity, "nodeaffinity"),
            abi.XEN_DOMCTL_getnodeaffinity: Operation(self._getnodeaffinity, "nodeaffinity"),
            abi.XEN_DOMCTL_setvnumainfo: Operation(self._setvnumainfo, "vnuma"),
        }

    # -- parameters of the scheduler --------------------------------------------------------------------------------

    def _scheduler_op(self, vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Get or put what the scheduler of the domain's pool knows of it, or of its vCPUs."""
        algorithm = self.hv.sched.algorithm_of(target)
        if value.sched_id != algorithm.sched_id or value.cmd not in _SCHEDULER_COMMANDS:
            raise HypercallError(errno.EINVAL)
        return algorithm.adjust(vcpu, target, value)

    # -- affinity ---------------------------------------------------------------------------------------------------

    def _affine(self, target: Domain, value: Any) -> int:
        """Return the number of the vCPU that an operation names. EINVAL for a request that asks for nothing."""
        which = vcpu_of(target, value.vcpu, beyond=errno.EINVAL, missing=errno.ESRCH)
        flags = value.flags
        if (
            not flags
            or (flags & HARD and not value.cpumap_hard.bitmap)
            or (flags & SOFT and not value.cpumap_soft.bitmap)
        ):
            raise HypercallError(errno.EINVAL)
        return which.vcpu_id

    def _setvcpuaffinity(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Set the masks, and tell what is left of them on this machine; on an error both stay as they were."""
        vcpu_id = self._affine(target, value)
        params = target.scheduling
        nr_pcpus = len(self.hv.sched.pcpus)
        online = self.hv.sched.algorithm_of(target).cpu_mask
        before = params.hard.get(vcpu_id, ALL_CPUS)
        affine = target.vcpu(vcpu_id)
        if affine is not None and value.flags & abi.XEN_VCPUAFFINITY_FORCE:
            self.hv.sched.end_override(affine)
        if value.flags & HARD:
            hard = read_bitmap(vcpu, value.cpumap_hard, nr_pcpus)
            if not hard & online:
                raise HypercallError(errno.EINVAL)
            self._obey(target, vcpu_id, hard)
            params.hard[vcpu_id] = hard
            write_bitmap(vcpu, value.cpumap_hard, hard & online, nr_pcpus)
        if value.flags & SOFT:
            try:
                soft = read_bitmap(vcpu, value.cpumap_soft, nr_pcpus)
            except HypercallError:
                if value.flags & HARD:
                    self._obey(target, vcpu_id, before)
                    params.hard[vcpu_id] = before
                raise
            params.soft[vcpu_id] = soft
            self.hv.sched.set_soft_affinity(self._existing(target, vcpu_id), soft)
            effective = soft & online & params.hard.get(vcpu_id, ALL_CPUS)
            write_bitmap(vcpu, value.cpumap_soft, effective, nr_pcpus)

    def _obey(self, target: Domain, vcpu_id: int, hard: int) -> None:
        """Let the scheduler know on which pCPUs a vCPU may run. Raises HypercallError(EBUSY): it is pinned."""
        self.hv.sched.set_affinity(self._existing(target, vcpu_id), hard)

    @staticmethod
    def _existing(target: Domain, vcpu_id: int) -> VCpu:
        vcpu = target.vcpu(vcpu_id)
        assert vcpu is not None
        return vcpu

    def _getvcpuaffinity(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        vcpu_id = self._affine(target, value)
        params = target.scheduling
        nr_pcpus = len(self.hv.sched.pcpus)
        online = self.hv.sched.algorithm_of(target).cpu_mask
        if value.flags & HARD:
            write_bitmap(vcpu, value.cpumap_hard, params.hard.get(vcpu_id, ALL_CPUS) & online, nr_pcpus)
        if value.flags & SOFT:
            write_bitmap(vcpu, value.cpumap_soft, params.soft.get(vcpu_id, ALL_CPUS) & online, nr_pcpus)

    def _setnodeaffinity(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        nodes = read_bitmap(vcpu, value.nodemap, MAX_NODES)
        if not nodes & ONLINE_NODES:
            raise HypercallError(errno.EINVAL)
        # To be fond of all nodes is to have no wish.
        target.scheduling.nodes = None if nodes == ALL_NODES else nodes

    def _getnodeaffinity(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        nodes = target.scheduling.nodes
        if nodes is None:
            nodes = ONLINE_NODES if target.online_vcpus() else ALL_NODES
        write_bitmap(vcpu, value.nodemap, nodes, MAX_NODES)

    # -- virtual NUMA -----------------------------------------------------------------------------------------------

    @staticmethod
    def _setvnumainfo(vcpu: VCpu, target: Domain, value: Any) -> None:
        target.virtual_topology = take_topology(vcpu, target, value)
