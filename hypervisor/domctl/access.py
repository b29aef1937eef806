"""Control operations about hardware: which ports, interrupts and frames a domain may use, and devices.

They look at their arguments first and at the caller's privilege then, and a control domain can pass on only what it may
use itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno
from hypervisor.domctl.operation import Operation, always, check_privilege
from hypervisor.errors import HypercallError
from hypervisor.machine.firmware import PHYSICAL_BITS
from hypervisor.machine.interrupts import NR_IRQS
from hypervisor.rangeset import covers, deny, permit

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

MAX_IOPORTS = 1 << 16
U64 = (1 << 64) - 1
U32 = (1 << 32) - 1


class AccessOps:
    """Permissions."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.operations = {
            abi.XEN_DOMCTL_irq_permission: Operation(self._irq_permission, "irq_permission", True),
            abi.XEN_DOMCTL_iomem_permission: Operation(self._iomem_permission, "iomem_permission", True),
            abi.XEN_DOMCTL_ioport_permission: Operation(self._ioport_permission, "ioport_permission", True),
            abi.XEN_DOMCTL_memory_mapping: Operation(self._memory_mapping, "memory_mapping", True),
            abi.XEN_DOMCTL_set_target: Operation(self._set_target, "set_target", True),
            # These are for translated guests, or want a PCI bus and an IOMMU that Xen drives.
            abi.XEN_DOMCTL_ioport_mapping: always(errno.EOPNOTSUPP, checks_itself=True),
            abi.XEN_DOMCTL_bind_pt_irq: always(errno.EINVAL, checks_itself=True),
            abi.XEN_DOMCTL_unbind_pt_irq: always(errno.EINVAL, checks_itself=True),
            abi.XEN_DOMCTL_get_device_group: always(errno.EOPNOTSUPP, checks_itself=True),
            abi.XEN_DOMCTL_assign_device: always(errno.EOPNOTSUPP),
            abi.XEN_DOMCTL_test_assign_device: always(errno.EOPNOTSUPP),
            abi.XEN_DOMCTL_deassign_device: always(errno.EOPNOTSUPP),
        }

    def _irq_permission(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        line = value.pirq
        if line >= NR_IRQS:
            raise HypercallError(errno.EINVAL)
        check_privilege(vcpu)
        if value.allow_access:
            self.hv.pirqs.permit(target, line)
        else:
            self.hv.pirqs.deny(target, line)

    def _iomem_permission(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        first, last = value.first_mfn, value.first_mfn + value.nr_mfns - 1 & U64
        if last < first:
            raise HypercallError(errno.EINVAL)
        check_privilege(vcpu)
        wanted = range(first, last + 1)
        if not covers(vcpu.domain.iomem, wanted):
            raise HypercallError(errno.EPERM)
        target.iomem = permit(target.iomem, wanted) if value.allow_access else deny(target.iomem, wanted)

    def _ioport_permission(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        first, stop = value.first_port, value.first_port + value.nr_ports & U32
        if stop <= first or stop > MAX_IOPORTS:
            raise HypercallError(errno.EINVAL)
        check_privilege(vcpu)
        wanted = range(first, stop)
        if not covers(vcpu.domain.ioports, wanted):
            raise HypercallError(errno.EPERM)
        target.ioports = permit(target.ioports, wanted) if value.allow_access else deny(target.ioports, wanted)

    @staticmethod
    def _memory_mapping(vcpu: VCpu, _target: Domain, value: Any) -> None:
        """Map I/O memory into a translated guest; a PV guest maps it itself, and nothing is done."""
        first, count = value.first_mfn, value.nr_mfns
        last = first + count - 1 & U64
        if (
            last < first
            or (first | last) >> PHYSICAL_BITS - 12
            or (value.first_gfn + count - 1 & U64) < value.first_gfn
        ):
            raise HypercallError(errno.EINVAL)
        check_privilege(vcpu)

    def _set_target(self, _vcpu: VCpu, target: Domain, value: Any) -> None:
        """Let a device model's domain act for another one: only HVM domains have device models."""
        other = self.hv.domain(value.target)
        raise HypercallError(errno.EINVAL if other is target else errno.EOPNOTSUPP)
