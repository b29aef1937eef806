"""The dispatch of HYPERVISOR_domctl: Xen's order of checks, and the operations by number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.domctl.access import AccessOps
from hypervisor.domctl.cpu_policy import CpuPolicyOps
from hypervisor.domctl.debugger import DebuggerOps
from hypervisor.domctl.info import InfoOps
from hypervisor.domctl.lifecycle import LifecycleOps
from hypervisor.domctl.operation import Operation, check_privilege
from hypervisor.domctl.paging import PagingOps
from hypervisor.domctl.scheduling import SchedulingOps
from hypervisor.domctl.vcpu_state import VcpuStateOps
from hypervisor.domctl.vcpus import VcpuControlOps
from hypervisor.domctl.vm_event import VmEventOps
from hypervisor.errors import HypercallError, Refused
from hypervisor.guest_access import copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_domctl
DOMCTL = abi.xen_domctl


class DomctlOps:
    """The control operations, each under its number."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._lifecycle = LifecycleOps(hv)
        info = InfoOps(hv)
        self.record = info.record
        """Returns a domain's xen_domctl_getdomaininfo."""
        self._operations: dict[int, Operation] = {}
        paging = PagingOps(hv)
        parts = (
            AccessOps(hv),
            CpuPolicyOps(),
            DebuggerOps(hv),
            SchedulingOps(hv),
            VcpuControlOps(hv),
            VcpuStateOps(),
            VmEventOps(),
        )
        for part in (self._lifecycle, info, paging, *parts):
            self._operations |= part.operations
        self.hypercalls = {HYPERCALL: self._domctl, **paging.hypercalls}

    def _domctl(self, vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Check in Xen's order: the pointer, the interface version, the domain, the caller's privilege.

        (Some operations look at their arguments before the privilege.)
        """
        op = DOMCTL.unpack_from(copy_from_guest(vcpu, arg, DOMCTL.size))
        if op.interface_version != abi.XEN_DOMCTL_INTERFACE_VERSION:
            return -errno.EACCES
        if op.cmd == abi.XEN_DOMCTL_createdomain:
            check_privilege(vcpu)
            domid = self._lifecycle.create(op.domain, op.u.createdomain).domid
            copy_to_guest(vcpu, arg, DOMCTL.pack(op, domain=domid))
            return 0
        if op.cmd == abi.XEN_DOMCTL_getdomaininfo:
            return self._getdomaininfo(vcpu, arg, op)
        if op.cmd == abi.XEN_DOMCTL_vm_event_op and op.u.vm_event_op.op == abi.XEN_VM_EVENT_GET_VERSION:
            return self._vm_event_version(vcpu, arg, op)
        # DOMID_SELF is no domain's number here: toolstacks name domains.
        target = self.hv.domain(op.domain)
        operation = self._operations.get(op.cmd)
        if operation is None or not operation.checks_itself:
            check_privilege(vcpu)
        if operation is None:
            return -errno.ENOSYS
        member = operation.member
        error = 0
        try:
            result = operation.handler(vcpu, target, getattr(op.u, member) if member else None)
        except Refused as refusal:
            error, result = refusal.errno, refusal.value
        if result is not None:
            op.u = {member: result}
            copy_to_guest(vcpu, arg, DOMCTL.pack(op))
        return -error

    def _vm_event_version(self, vcpu: VCpu, arg: int, op: Any) -> int:
        """Tell the version of the interface for watchers, which needs neither a privilege nor a domain."""
        if op.domain != xen.DOMID_INVALID:
            self.hv.domain(op.domain)
        op.u = {"vm_event_op": VmEventOps.version(op.u.vm_event_op)}
        copy_to_guest(vcpu, arg, DOMCTL.pack(op))
        return 0

    def _getdomaininfo(self, vcpu: VCpu, arg: int, op: Any) -> int:
        """Report on a domain, or, if there is none of that number, on the one with the next higher number.

        A domain that serves xenstore may look at all others.
        """
        target = self.hv.domains.get(op.domain)
        if target is None:
            if op.domain >= xen.DOMID_FIRST_RESERVED:
                return -errno.EINVAL
            target = self._next(op.domain)
        if not (vcpu.domain.is_privileged or vcpu.domain.is_xenstore or vcpu.domain.target is target):
            raise HypercallError(errno.EPERM)
        op.domain = target.domid
        op.u = self.record(target)
        copy_to_guest(vcpu, arg, DOMCTL.pack(op))
        return 0

    def _next(self, domid: int) -> Domain:
        """Return the domain with the lowest number from `domid` on. Raises HypercallError(ESRCH)."""
        found = min((number for number in self.hv.domains if number > domid), default=None)
        if found is None:
            raise HypercallError(errno.ESRCH)
        return self.hv.domains[found]
