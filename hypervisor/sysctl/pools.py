"""Operations on pools of pCPUs, of which there is one, and on its scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno
from hypervisor.abi import sysctl as abi
from hypervisor.bitmaps import write_bitmap
from hypervisor.errors import HypercallError

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu


class PoolOps:
    """Pool-0, which all pCPUs and domains are in."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.handlers = {
            abi.XEN_SYSCTL_sched_id: ("sched_id", self._sched_id),
            abi.XEN_SYSCTL_scheduler_op: ("scheduler_op", self._scheduler_op),
            abi.XEN_SYSCTL_cpupool_op: ("cpupool_op", self._cpupool_op),
        }
        self._pool_ops = {
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
        self._find(value.cpupool_id, errno.ESRCH)
        algorithm = self.hv.sched.algorithm
        if value.sched_id != algorithm.sched_id:
            raise HypercallError(errno.EINVAL)
        return algorithm.adjust_global(vcpu, value)

    # -- pools ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _find(pool: int, missing: int = errno.ENOENT) -> None:
        if pool:
            raise HypercallError(missing)

    def _cpupool_op(self, vcpu: VCpu, value: Any) -> Any:
        """Look at the pool. Making others (CREATE) is not built."""
        handler = self._pool_ops.get(value.op)
        if handler is None:
            raise HypercallError(errno.ENOSYS)
        handler(vcpu, value)
        return value

    def _destroy(self, _vcpu: VCpu, value: Any) -> None:
        self._find(value.cpupool_id)
        raise HypercallError(errno.EBUSY)

    def _info(self, vcpu: VCpu, value: Any) -> None:
        self._find(value.cpupool_id)
        pcpus = len(self.hv.sched.pcpus)
        value.sched_id, value.n_dom = self.hv.sched.algorithm.sched_id, len(self.hv.domains)
        write_bitmap(vcpu, value.cpumap, (1 << pcpus) - 1, pcpus)

    def _addcpu(self, _vcpu: VCpu, value: Any) -> None:
        """Every pCPU is in the pool already."""
        self._find(value.cpupool_id)
        known = value.cpu == abi.XEN_SYSCTL_CPUPOOL_PAR_ANY or value.cpu < len(self.hv.sched.pcpus)
        raise HypercallError(errno.ENODEV if known else errno.EINVAL)

    def _rmcpu(self, _vcpu: VCpu, value: Any) -> None:
        """The pool keeps its pCPUs: it has domains."""
        self._find(value.cpupool_id)
        known = value.cpu == abi.XEN_SYSCTL_CPUPOOL_PAR_ANY or value.cpu < len(self.hv.sched.pcpus)
        raise HypercallError(errno.EBUSY if known else errno.EINVAL)

    def _movedomain(self, vcpu: VCpu, value: Any) -> None:
        if self.hv.domain(value.domid & 0xFFFF) is vcpu.domain:
            raise HypercallError(errno.EPERM)
        self._find(value.cpupool_id)

    def _freeinfo(self, vcpu: VCpu, value: Any) -> None:
        write_bitmap(vcpu, value.cpumap, 0, len(self.hv.sched.pcpus))
