"""Operations on pools of pCPUs and their schedulers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno
from hypervisor.abi import sysctl as abi
from hypervisor.bitmaps import write_bitmap
from hypervisor.errors import HypercallError
from hypervisor.sched.schedulers import BY_NUMBER

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu


class PoolOps:
    """What is said of pools, and asked of them (`hypervisor.sched.cpupool`)."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.handlers = {
            abi.XEN_SYSCTL_sched_id: ("sched_id", self._sched_id),
            abi.XEN_SYSCTL_scheduler_op: ("scheduler_op", self._scheduler_op),
            abi.XEN_SYSCTL_cpupool_op: ("cpupool_op", self._cpupool_op),
        }
        self._pool_ops = {
            abi.XEN_SYSCTL_CPUPOOL_OP_CREATE: self._create,
            abi.XEN_SYSCTL_CPUPOOL_OP_DESTROY: self._destroy,
            abi.XEN_SYSCTL_CPUPOOL_OP_INFO: self._info,
            abi.XEN_SYSCTL_CPUPOOL_OP_ADDCPU: self._addcpu,
            abi.XEN_SYSCTL_CPUPOOL_OP_RMCPU: self._rmcpu,
            abi.XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN: self._movedomain,
            abi.XEN_SYSCTL_CPUPOOL_OP_FREEINFO: self._freeinfo,
        }

    def _sched_id(self, _vcpu: VCpu, _value: Any) -> dict[str, int]:
        return {"sched_id": self.hv.sched.algorithm.sched_id}

    def _scheduler_op(self, vcpu: VCpu, value: Any) -> Any:
        """Get or put the parameters of a pool's scheduler."""
        if value.cmd not in (abi.XEN_SYSCTL_SCHEDOP_putinfo, abi.XEN_SYSCTL_SCHEDOP_getinfo):
            raise HypercallError(errno.EINVAL)
        algorithm = self.hv.sched.pools.find(value.cpupool_id, errno.ESRCH).algorithm
        if value.sched_id != algorithm.sched_id:
            raise HypercallError(errno.EINVAL)
        return algorithm.adjust_global(vcpu, value)

    # -- pools ------------------------------------------------------------------------------------------------------

    def _cpupool_op(self, vcpu: VCpu, value: Any) -> Any:
        handler = self._pool_ops.get(value.op)
        if handler is None:
            raise HypercallError(errno.ENOSYS)
        handler(vcpu, value)
        return value

    def _create(self, _vcpu: VCpu, value: Any) -> None:
        algorithm = BY_NUMBER.get(value.sched_id)
        value.cpupool_id = self.hv.sched.pools.create(_unless_any(value.cpupool_id), algorithm).pool_id

    def _destroy(self, _vcpu: VCpu, value: Any) -> None:
        self.hv.sched.pools.destroy(value.cpupool_id)

    def _info(self, vcpu: VCpu, value: Any) -> None:
        """Tell of a pool, or of the next one if there is none with the number: that is how they are listed."""
        pools = self.hv.sched.pools
        pool = pools.next(value.cpupool_id)
        value.cpupool_id, value.sched_id = pool.pool_id, pool.algorithm.sched_id
        value.n_dom = len(pools.domains(pool))
        write_bitmap(vcpu, value.cpumap, pool.algorithm.cpu_mask, len(self.hv.sched.pcpus))

    def _addcpu(self, _vcpu: VCpu, value: Any) -> None:
        self.hv.sched.pools.add_cpu(value.cpupool_id, _unless_any(value.cpu))

    def _rmcpu(self, _vcpu: VCpu, value: Any) -> None:
        self.hv.sched.pools.remove_cpu(value.cpupool_id, _unless_any(value.cpu))

    def _movedomain(self, vcpu: VCpu, value: Any) -> None:
        domain = self.hv.domain(value.domid & 0xFFFF)
        if domain is vcpu.domain:
            raise HypercallError(errno.EPERM)
        self.hv.sched.pools.move(domain, value.cpupool_id)

    def _freeinfo(self, vcpu: VCpu, value: Any) -> None:
        write_bitmap(vcpu, value.cpumap, self.hv.sched.pools.free, len(self.hv.sched.pcpus))


def _unless_any(number: int) -> int | None:
    return None if number == abi.XEN_SYSCTL_CPUPOOL_PAR_ANY else number
