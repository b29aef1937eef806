"""The dispatch of HYPERVISOR_sysctl: Xen's order of checks, and the operations by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, xen
from hypervisor.abi import sysctl as abi
from hypervisor.errors import Refused
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.sysctl.console import ConsoleOps
from hypervisor.sysctl.cpu_policy import CpuPolicyOps
from hypervisor.sysctl.host import HostOps
from hypervisor.sysctl.pools import PoolOps

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_sysctl
SYSCTL = abi.xen_sysctl

Handler = Callable[["VCpu", Any], Any]
"""`handler(caller, u member) -> the u member to copy back, or None`. Raises HypercallError."""

ANSWERS = {
    # Statistics and control of frequencies need ACPI tables, cache monitoring a processor that does it.
    abi.XEN_SYSCTL_get_pmstat: errno.ENODEV,
    abi.XEN_SYSCTL_pm_op: errno.EINVAL,
    abi.XEN_SYSCTL_psr_cmt_op: errno.ENODEV,
    # Debian does not build these.
    abi.XEN_SYSCTL_coverage_op: errno.EOPNOTSUPP,
}
"""Operations that have one answer on this machine."""


class SysctlOps:
    """Operations on the host, each under the name that its member of the `u` union has."""

    def __init__(self, hv: Hypervisor) -> None:
        self._handlers: dict[int, tuple[str, Handler]] = {}
        for part in (HostOps(hv), ConsoleOps(hv), PoolOps(hv), CpuPolicyOps()):
            self._handlers |= part.handlers
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
            return -ANSWERS.get(op.cmd, errno.ENOSYS)
        error = 0
        try:
            result = handler(vcpu, getattr(op.u, member))
        except Refused as refusal:
            error, result = refusal.errno, refusal.value
        if result is not None:
            op.u = {member: result}
            copy_to_guest(vcpu, arg, SYSCTL.pack(op))
        return -error
