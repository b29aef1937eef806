"""Watching a domain from another one (XEN_DOMCTL_vm_event_op, monitor_op, set_access_required): for HVM domains only.

Xen tells a PV domain's watcher that there is nothing to watch it with; these are its answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno
from hypervisor.abi.vm_event import VM_EVENT_INTERFACE_VERSION
from hypervisor.domctl.operation import Operation, refuse_self
from hypervisor.errors import HypercallError

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu import VCpu

EVENTS = 32
RING_ANSWERS = {
    # Nobody has chosen a page for the ring, so none is connected.
    abi.XEN_VM_EVENT_ENABLE: errno.EOPNOTSUPP,
    abi.XEN_VM_EVENT_DISABLE: errno.EINVAL,
    abi.XEN_VM_EVENT_RESUME: errno.ENODEV,
}
MONITOR_ANSWERS = {
    abi.XEN_DOMCTL_MONITOR_OP_ENABLE: errno.EOPNOTSUPP,
    abi.XEN_DOMCTL_MONITOR_OP_DISABLE: errno.EOPNOTSUPP,
    abi.XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES: 0,
    abi.XEN_DOMCTL_MONITOR_OP_EMULATE_EACH_REP: errno.EINVAL,
    # What it switches on concerns events that never come.
    abi.XEN_DOMCTL_MONITOR_OP_CONTROL_REGISTERS: 0,
}


class VmEventOps:
    """What a watcher is told."""

    def __init__(self) -> None:
        self.operations = {
            abi.XEN_DOMCTL_vm_event_op: Operation(self._ring, "vm_event_op"),
            abi.XEN_DOMCTL_monitor_op: Operation(self._monitor, "monitor_op"),
            abi.XEN_DOMCTL_set_access_required: Operation(self._access_required, "access_required"),
        }

    @staticmethod
    def version(value: Any) -> Any:
        """Tell the version of the interface: to everybody, of any domain or none (DOMID_INVALID)."""
        value.u = {"version": VM_EVENT_INTERFACE_VERSION}
        return value

    @staticmethod
    def _ring(vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Connect, disconnect, go on. Xen's default build has the mode MONITOR only."""
        refuse_self(vcpu, target)
        if target.is_dying:
            return value
        if target.vcpu(0) is None:
            raise HypercallError(errno.EINVAL)
        if value.mode != abi.XEN_DOMCTL_VM_EVENT_OP_MONITOR:
            raise HypercallError(errno.ENOSYS)
        raise HypercallError(RING_ANSWERS.get(value.op, errno.ENOSYS))

    @staticmethod
    def _monitor(vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Choose events, or ask which there are: none."""
        if target is vcpu.domain:
            raise HypercallError(errno.EPERM)
        answer = MONITOR_ANSWERS.get(value.op, errno.EOPNOTSUPP)
        if value.op in (abi.XEN_DOMCTL_MONITOR_OP_ENABLE, abi.XEN_DOMCTL_MONITOR_OP_DISABLE) and value.event >= EVENTS:
            answer = errno.EINVAL
        if answer:
            raise HypercallError(answer)
        if value.op == abi.XEN_DOMCTL_MONITOR_OP_GET_CAPABILITIES:
            value.event = 0
        return value

    @staticmethod
    def _access_required(vcpu: VCpu, target: Domain, _value: Any) -> None:
        """Say that the domain is to stop when nobody watches it: an access to a page of a kind that it cannot have."""
        if target is vcpu.domain:
            raise HypercallError(errno.EPERM)
