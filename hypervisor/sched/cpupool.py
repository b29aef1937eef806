"""Pools of pCPUs, each with a scheduler of its own (xen/common/sched/cpupool.c; XEN_SYSCTL_cpupool_op).

Every domain is in one pool, and its vCPUs run on the pCPUs of that pool. A pCPU is in one pool, or in none, and then it
runs nothing. Pool 0 is there from the start, with all pCPUs and the default scheduler; pCPU 0 cannot leave it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import errno
from hypervisor.abi.xen import VIRQ_PCPU_STATE
from hypervisor.errors import HypercallError
from hypervisor.sched.algorithm import ALL_CPUS, Algorithm

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.sched.pcpu import PCpu
    from hypervisor.sched.scheduler import Scheduler


class CpuPool:
    """A pool: its number, its scheduler (which knows the pCPUs)."""

    __slots__ = ("algorithm", "pool_id")

    def __init__(self, pool_id: int, algorithm: Algorithm) -> None:
        self.pool_id = pool_id
        self.algorithm = algorithm


class CpuPools:
    """All pools of a host. Refusals are HypercallErrors, in Xen's order."""

    def __init__(self, loop: Scheduler, algorithm: Algorithm) -> None:
        self._loop = loop
        self._pools = {0: CpuPool(0, algorithm)}

    # -- finding ----------------------------------------------------------------------------------------------------

    def find(self, pool_id: int, missing: int = errno.ENOENT) -> CpuPool:
        """Return a pool. Raises HypercallError(missing)."""
        pool = self._pools.get(pool_id)
        if pool is None:
            raise HypercallError(missing)
        return pool

    def next(self, pool_id: int) -> CpuPool:
        """Return the pool with this number, or the next one behind it. Raises HypercallError(ENOENT)."""
        return self.find(min((number for number in self._pools if number >= pool_id), default=-1))

    def of(self, domain: Domain) -> CpuPool:
        """Return the pool of a domain."""
        return self._pools[domain.scheduling.pool]

    def domains(self, pool: CpuPool) -> list[Domain]:
        """Return the domains in a pool."""
        return [domain for domain in self._loop.hv.domains.values() if domain.scheduling.pool == pool.pool_id]

    @property
    def free(self) -> int:
        """The pCPUs that are in no pool, a bit each."""
        return sum(1 << pcpu.cpu_id for pcpu in self._loop.pcpus if pcpu.algorithm is None and pcpu.online)

    # -- pools ------------------------------------------------------------------------------------------------------

    def create(self, pool_id: int | None, algorithm: type[Algorithm] | None) -> CpuPool:
        """Make an empty pool; without a number it gets the one behind the last. None: there is no such scheduler.

        Raises HypercallError: ENOSPC for more than two pools a pCPU, EEXIST, ENOENT.
        """
        if len(self._pools) >= 2 * len(self._loop.pcpus):
            raise HypercallError(errno.ENOSPC)
        if pool_id is None:
            pool_id = max(self._pools) + 1
            if pool_id >= 0xFFFFFFFF:
                pool_id = next(number for number in range(len(self._pools) + 1) if number not in self._pools)
        elif pool_id in self._pools:
            raise HypercallError(errno.EEXIST)
        if algorithm is None:
            raise HypercallError(errno.ENOENT)
        pool = self._pools[pool_id] = CpuPool(pool_id, algorithm(self._loop))
        self._pools = dict(sorted(self._pools.items()))
        return pool

    def destroy(self, pool_id: int) -> None:
        """Give an empty pool up. Raises HypercallError: ENOENT, EBUSY if it has domains or pCPUs."""
        pool = self.find(pool_id)
        if self.domains(pool) or pool.algorithm.pcpus:
            raise HypercallError(errno.EBUSY)
        pool.algorithm.retire()
        del self._pools[pool_id]

    # -- pCPUs ------------------------------------------------------------------------------------------------------

    def add_cpu(self, pool_id: int, cpu: int | None) -> None:
        """Put a free pCPU (None: the first one) into a pool. Raises HypercallError: ENOENT, ENODEV, EINVAL."""
        pool, pcpus = self.find(pool_id), self._loop.pcpus
        if cpu is None:
            cpu = next((pcpu.cpu_id for pcpu in pcpus if pcpu.algorithm is None and pcpu.online), -1)
            if cpu < 0:
                raise HypercallError(errno.ENODEV)
        if cpu >= len(pcpus):
            raise HypercallError(errno.EINVAL)
        if pcpus[cpu].algorithm is not None or not pcpus[cpu].online:
            raise HypercallError(errno.ENODEV)
        pool.algorithm.add_pcpu(pcpus[cpu])

    def remove_cpu(self, pool_id: int, cpu: int | None) -> None:
        """Take a pCPU (None: the last one) out of a pool; who runs there goes elsewhere.

        Raises HypercallError: ENOENT, EINVAL for pCPU 0 of pool 0, EADDRNOTAVAIL if it is not in the pool, EBUSY if it
        is the last one and there are domains.
        """
        pool, pcpus = self.find(pool_id), self._loop.pcpus
        members = pool.algorithm.pcpus
        if cpu is None:
            cpu = members[-1].cpu_id if members else len(pcpus)
        if cpu >= len(pcpus) or (not pool_id and not cpu) or not pcpus[cpu].online:
            raise HypercallError(errno.EINVAL)
        pcpu = pcpus[cpu]
        if pcpu not in members:
            raise HypercallError(errno.EADDRNOTAVAIL)
        if len(members) == 1:
            domains = self.domains(pool)
            if any(not domain.is_dying for domain in domains):
                raise HypercallError(errno.EBUSY)
            for domain in domains:
                self.move(domain, 0)
        self._vacate(pool.algorithm, pcpu)

    def take_offline(self, cpu: int) -> None:
        """Switch a pCPU off (cpu_down). Raises HypercallError: EINVAL for number 0, EEXIST if it is off, EBUSY."""
        pcpu = self._switched(cpu, online=True)
        for pool in self._pools.values():
            if pcpu in pool.algorithm.pcpus:
                self.remove_cpu(pool.pool_id, cpu)
        pcpu.online = False
        self._loop.hv.events.send_global_virq(VIRQ_PCPU_STATE)

    def bring_online(self, cpu: int) -> None:
        """Switch a pCPU on again (cpu_up); it goes to pool 0. Raises HypercallError: EINVAL, EEXIST if it is on."""
        pcpu = self._switched(cpu, online=False)
        pcpu.online = True
        # It has no past: what it did not do while it was off it need not do now.
        pcpu.now = max(pcpu.now, self._loop.now())
        self._pools[0].algorithm.add_pcpu(pcpu)
        self._loop.hv.events.send_global_virq(VIRQ_PCPU_STATE)

    def _switched(self, cpu: int, *, online: bool) -> PCpu:
        pcpus = self._loop.pcpus
        if cpu >= len(pcpus) or (online and not cpu):
            raise HypercallError(errno.EINVAL)
        if pcpus[cpu].online is not online:
            raise HypercallError(errno.EEXIST)
        return pcpus[cpu]

    def _vacate(self, algorithm: Algorithm, pcpu: PCpu) -> None:
        loop = self._loop
        left = algorithm.cpu_mask & ~(1 << pcpu.cpu_id)
        for unit in algorithm.units:
            if not unit.hard & left:
                vcpu = unit.vcpu
                loop.hv.log(f"Breaking affinity for d{vcpu.domain.domid}v{vcpu.vcpu_id}")
                unit.hard = ALL_CPUS
                loop.overridden.pop(vcpu, None)
                vcpu.domain.scheduling.hard.pop(vcpu.vcpu_id, None)
        loop.expire(pcpu, loop.now())
        algorithm.remove_pcpu(pcpu)

    # -- domains ----------------------------------------------------------------------------------------------------

    def move(self, domain: Domain, pool_id: int) -> None:
        """Move a domain to another pool, where it may run on every pCPU. Raises HypercallError(ENOENT)."""
        before = self.of(domain)
        if pool_id == before.pool_id:
            return
        pool = self.find(pool_id)
        if not pool.algorithm.pcpus:
            raise HypercallError(errno.ENOENT)
        loop = self._loop
        now = loop.now()
        domain.scheduling.pool = pool_id
        domain.scheduling.hard.clear()
        domain.scheduling.soft.clear()
        for vcpu in domain.online_vcpus():
            for pcpu in before.algorithm.pcpus:
                if pcpu.current is vcpu:
                    loop.expire(pcpu, now)
            if vcpu.parked:
                vcpu.parked = False
                loop.run_queue.append(vcpu)
            loop.overridden.pop(vcpu, None)
            if vcpu.unit in before.algorithm.units:
                before.algorithm.remove_unit(vcpu)
                vcpu.unit = None
                pool.algorithm.insert_unit(vcpu)
            if vcpu.queued and not vcpu.parked:
                vcpu.ready_at = max(vcpu.ready_at, now)
                pool.algorithm.wake(vcpu, now)
