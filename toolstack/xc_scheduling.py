"""The part of the control interface that is about processors (libxc: xc_csched.c, xc_rt.c, xc_cpupool.c)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from guest_kernel.errors import XenError
from hypervisor.abi import domctl, errno, sysctl
from hypervisor.abi.layout import Value
from toolstack.xc import Xc

SCHEDULERS = {
    domctl.XEN_SCHEDULER_CREDIT: "credit",
    domctl.XEN_SCHEDULER_CREDIT2: "credit2",
    domctl.XEN_SCHEDULER_ARINC653: "arinc653",
    domctl.XEN_SCHEDULER_RTDS: "rtds",
    domctl.XEN_SCHEDULER_NULL: "null",
}
"""As xl calls them, by number."""
NUMBERS = {name: number for number, name in SCHEDULERS.items()}
MAX_PCPUS = 256
_MASK_BYTES = MAX_PCPUS // 8


@attrs.frozen
class Pool:
    """A pool of pCPUs."""

    pool_id: int
    scheduler: str
    domains: int
    cpus: tuple[int, ...]


class XcScheduling:
    """An `Xc`, and what it can ask about processors. All of it raises XenError."""

    def __init__(self, xc: Xc) -> None:
        self._xc = xc

    # -- pools ------------------------------------------------------------------------------------------------------

    def _cpupool(self, op: int, **values: Any) -> Value:
        self._xc.scratch.view[:_MASK_BYTES] = bytes(_MASK_BYTES)
        cpumap = {"bitmap": self._xc.scratch.va, "nr_bits": MAX_PCPUS}
        told = self._xc.sysctl(sysctl.XEN_SYSCTL_cpupool_op, "cpupool_op", op=op, cpumap=cpumap, **values)
        return told.u.cpupool_op  # type: ignore[no-any-return]

    def pools(self) -> list[Pool]:
        """Return all pools."""
        found: list[Pool] = []
        number = 0
        while True:
            try:
                told = self._cpupool(sysctl.XEN_SYSCTL_CPUPOOL_OP_INFO, cpupool_id=number)
            except XenError as error:
                if error.errno == errno.ENOENT:
                    return found
                raise
            scheduler = SCHEDULERS.get(told.sched_id, "unknown")
            found.append(Pool(told.cpupool_id, scheduler, told.n_dom, self._mask()))
            number = told.cpupool_id + 1

    def free_cpus(self) -> tuple[int, ...]:
        """Return the pCPUs that are in no pool."""
        self._cpupool(sysctl.XEN_SYSCTL_CPUPOOL_OP_FREEINFO)
        return self._mask()

    def create_pool(self, scheduler: str) -> int:
        """Make an empty pool, and return its number."""
        any_ = sysctl.XEN_SYSCTL_CPUPOOL_PAR_ANY
        told = self._cpupool(sysctl.XEN_SYSCTL_CPUPOOL_OP_CREATE, cpupool_id=any_, sched_id=NUMBERS[scheduler])
        return int(told.cpupool_id)

    def destroy_pool(self, pool: int) -> None:
        """Give an empty pool up."""
        self._cpupool(sysctl.XEN_SYSCTL_CPUPOOL_OP_DESTROY, cpupool_id=pool)

    def add_cpu(self, pool: int, cpu: int) -> None:
        """Put a free pCPU into a pool."""
        self._cpupool(sysctl.XEN_SYSCTL_CPUPOOL_OP_ADDCPU, cpupool_id=pool, cpu=cpu)

    def remove_cpu(self, pool: int, cpu: int) -> None:
        """Take a pCPU out of a pool."""
        self._cpupool(sysctl.XEN_SYSCTL_CPUPOOL_OP_RMCPU, cpupool_id=pool, cpu=cpu)

    def move_domain(self, domid: int, pool: int) -> None:
        """Move a domain to a pool."""
        self._cpupool(sysctl.XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN, cpupool_id=pool, domid=domid)

    # -- parameters of schedulers -----------------------------------------------------------------------------------

    def _scheduler(self, domid: int, scheduler: str, cmd: int, member: str, values: dict[str, Any]) -> Value:
        op = {"sched_id": NUMBERS[scheduler], "cmd": cmd, "u": {member: values}}
        self._xc.domctl(domctl.XEN_DOMCTL_scheduler_op, domid, domctl.xen_domctl_scheduler_op, **op)
        return getattr(self._xc.answer().scheduler_op.u, member)  # type: ignore[no-any-return]

    def params(self, domid: int, scheduler: str) -> dict[str, int]:
        """Return weight and cap of a domain (credit, credit2)."""
        told = self._scheduler(domid, scheduler, domctl.XEN_DOMCTL_SCHEDOP_getinfo, scheduler, {})
        return {"weight": told.weight, "cap": told.cap}

    def set_params(self, domid: int, scheduler: str, **values: int) -> None:
        """Set weight and cap of a domain."""
        self._scheduler(domid, scheduler, domctl.XEN_DOMCTL_SCHEDOP_putinfo, scheduler, values)

    def vcpu_params(self, domid: int, vcpu: int) -> dict[str, int]:
        """Return period, budget (us) and extratime of a vCPU (rtds)."""
        rtds = self._vcpu_params(domid, vcpu, domctl.XEN_DOMCTL_SCHEDOP_getvcpuinfo, {}).u.rtds
        extra = bool(rtds.flags & domctl.XEN_DOMCTL_SCHEDRT_extra)
        return {"period": rtds.period, "budget": rtds.budget, "extratime": extra}

    def set_vcpu_params(self, domid: int, vcpu: int, *, period: int, budget: int, extratime: bool) -> None:
        """Set them."""
        flags = domctl.XEN_DOMCTL_SCHEDRT_extra if extratime else 0
        values = {"period": period, "budget": budget, "flags": flags}
        self._vcpu_params(domid, vcpu, domctl.XEN_DOMCTL_SCHEDOP_putvcpuinfo, values)

    def _vcpu_params(self, domid: int, vcpu: int, cmd: int, values: dict[str, int]) -> Value:
        layout, page = domctl.xen_domctl_schedparam_vcpu, self._xc.scratch
        layout.pack_into(page.view, 0, vcpuid=vcpu, u={"rtds": values})
        self._scheduler(domid, "rtds", cmd, "v", {"vcpus": page.va, "nr_vcpus": 1})
        return layout.unpack_from(page.view, 0)

    def global_params(self, pool: int, scheduler: str) -> dict[str, int]:
        """Return what a pool's scheduler goes by (credit, credit2)."""
        told = self._global(pool, scheduler, sysctl.XEN_SYSCTL_SCHEDOP_getinfo, {})
        names = ("tslice_ms", "ratelimit_us", "vcpu_migr_delay_us") if scheduler == "credit" else ("ratelimit_us",)
        return {name: getattr(told, name) for name in names}

    def set_global_params(self, pool: int, scheduler: str, **values: int) -> None:
        """Set it, all of it."""
        self._global(pool, scheduler, sysctl.XEN_SYSCTL_SCHEDOP_putinfo, values)

    def _global(self, pool: int, scheduler: str, cmd: int, values: dict[str, int]) -> Value:
        op = {"sched_id": NUMBERS[scheduler], "cmd": cmd, "cpupool_id": pool, "u": {f"sched_{scheduler}": values}}
        told = self._xc.sysctl(sysctl.XEN_SYSCTL_scheduler_op, "scheduler_op", **op)
        return getattr(told.u.scheduler_op.u, f"sched_{scheduler}")  # type: ignore[no-any-return]

    # -- vCPUs ------------------------------------------------------------------------------------------------------

    def vcpu_info(self, domid: int, vcpu: int) -> Value | None:
        """Return the xen_domctl_getvcpuinfo of a vCPU, None if there is none with this number."""
        try:
            self._xc.domctl(domctl.XEN_DOMCTL_getvcpuinfo, domid, domctl.xen_domctl_getvcpuinfo, vcpu=vcpu)
        except XenError as error:
            if error.errno == errno.ESRCH:
                return None
            raise
        return self._xc.answer().getvcpuinfo  # type: ignore[no-any-return]

    def affinity(self, domid: int, vcpu: int, *, soft: bool = False) -> tuple[int, ...]:
        """Return the pCPUs where a vCPU may run, or would rather run."""
        self._affinity(domctl.XEN_DOMCTL_getvcpuaffinity, domid, vcpu, soft)
        return self._mask()

    def set_affinity(self, domid: int, vcpu: int, cpus: Iterable[int] | None, *, soft: bool = False) -> None:
        """Say where a vCPU may run, or would rather run; None: everywhere."""
        mask = (1 << MAX_PCPUS) - 1 if cpus is None else sum(1 << cpu for cpu in set(cpus))
        self._affinity(domctl.XEN_DOMCTL_setvcpuaffinity, domid, vcpu, soft, mask)

    def _affinity(self, command: int, domid: int, vcpu: int, soft: bool, mask: int = 0) -> None:
        page = self._xc.scratch
        page.view[:_MASK_BYTES] = mask.to_bytes(_MASK_BYTES, "little")
        which = "cpumap_soft" if soft else "cpumap_hard"
        flags = domctl.XEN_VCPUAFFINITY_SOFT if soft else domctl.XEN_VCPUAFFINITY_HARD
        values = {"vcpu": vcpu, "flags": flags, which: {"bitmap": page.va, "nr_bits": MAX_PCPUS}}
        self._xc.domctl(command, domid, domctl.xen_domctl_vcpuaffinity, **values)

    def _mask(self) -> tuple[int, ...]:
        bits = int.from_bytes(self._xc.scratch.view[:_MASK_BYTES], "little")
        return tuple(cpu for cpu in range(MAX_PCPUS) if bits >> cpu & 1)
