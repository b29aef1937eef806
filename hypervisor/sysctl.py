"""HYPERVISOR_sysctl (sysctl.h): what a toolstack asks about the host."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl, errno, xen
from hypervisor.abi import sysctl as abi
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.time import TSC_HZ

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_sysctl
SYSCTL = abi.xen_sysctl

Handler = Callable[["VCpu", Any], Any]


class SysctlOps:
    """Host-wide queries."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._handlers: dict[int, tuple[str, Handler]] = {
            abi.XEN_SYSCTL_physinfo: ("physinfo", self._physinfo),
            abi.XEN_SYSCTL_getdomaininfolist: ("getdomaininfolist", self._getdomaininfolist),
            abi.XEN_SYSCTL_sched_id: ("sched_id", self._sched_id),
        }
        self.hypercalls = {HYPERCALL: self._sysctl}

    def _sysctl(self, vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Check in Xen's order: the pointer, the interface version, the caller's privilege."""
        op = SYSCTL.unpack_from(copy_from_guest(vcpu, arg, SYSCTL.size))
        if op.interface_version != abi.XEN_SYSCTL_INTERFACE_VERSION:
            return -errno.EACCES
        if not vcpu.domain.is_privileged:
            return -errno.EPERM
        member, handler = self._handlers.get(op.cmd, ("", None))
        if handler is None:
            return -errno.ENOSYS
        op.u = {member: handler(vcpu, getattr(op.u, member))}
        copy_to_guest(vcpu, arg, SYSCTL.pack(op))
        return 0

    def _physinfo(self, _vcpu: VCpu, _value: Any) -> dict[str, Any]:
        pcpus = len(self.hv.sched.pcpus)
        return {
            "threads_per_core": 1,
            "cores_per_socket": pcpus,
            "nr_cpus": pcpus,
            "max_cpu_id": pcpus - 1,
            "nr_nodes": 1,
            "max_node_id": 0,
            "cpu_khz": TSC_HZ // 1000,
            "capabilities": abi.XEN_SYSCTL_PHYSCAP_pv,
            "total_pages": self.hv.memory.frames,
            "free_pages": self.hv.frames.free_frames,
            "max_mfn": self.hv.memory.frames - 1,
        }

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

    @staticmethod
    def _sched_id(_vcpu: VCpu, _value: Any) -> dict[str, int]:
        return {"sched_id": domctl.XEN_SCHEDULER_CREDIT2}
