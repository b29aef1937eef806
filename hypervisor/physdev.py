"""HYPERVISOR_physdev_op (physdev.h): interrupts and I/O privilege of domains that drive hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, physdev, xen
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.machine.interrupts import NR_IRQS

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_physdev_op
MAP_PIRQ_TYPE_GSI = physdev.MAP_PIRQ_TYPE_GSI
MAX_IOPL = 3
IOBITMAP_PORTS = 65536


class PhysdevOps:
    """Mapping of interrupt lines to PIRQs, their acknowledgement, IOPL."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._handlers: dict[int, Callable[[VCpu, int], int]] = {
            physdev.PHYSDEVOP_eoi: self._eoi,
            physdev.PHYSDEVOP_irq_status_query: self._irq_status_query,
            physdev.PHYSDEVOP_set_iopl: self._set_iopl,
            physdev.PHYSDEVOP_set_iobitmap: self._set_iobitmap,
            physdev.PHYSDEVOP_map_pirq: self._map_pirq,
            physdev.PHYSDEVOP_unmap_pirq: self._unmap_pirq,
        }
        self.hypercalls = {HYPERCALL: self._physdev_op}

    def _physdev_op(self, vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        handler = self._handlers.get(cmd & 0xFFFFFFFF)
        return handler(vcpu, arg) if handler is not None else -errno.ENOSYS

    def _target(self, vcpu: VCpu, domid: int) -> Domain | int:
        domain = self.hv.resolve(vcpu, domid)
        return domain if self.hv.may_control(vcpu.domain, domain) else -errno.EPERM

    def _eoi(self, vcpu: VCpu, arg: int) -> int:
        """Accept the end of an interrupt. The machine's lines are edge triggered, so that nothing is held back."""
        op = physdev.physdev_eoi.unpack_from(copy_from_guest(vcpu, arg, physdev.physdev_eoi.size))
        return 0 if op.irq in vcpu.domain.pirqs else -errno.EINVAL

    def _irq_status_query(self, vcpu: VCpu, arg: int) -> int:
        query = physdev.physdev_irq_status_query
        op = query.unpack_from(copy_from_guest(vcpu, arg, query.size))
        if op.irq >= NR_IRQS:
            return -errno.EINVAL
        copy_to_guest(vcpu, arg, query.pack(op, flags=0))
        return 0

    def _set_iopl(self, vcpu: VCpu, arg: int) -> int:
        op = physdev.physdev_set_iopl.unpack_from(copy_from_guest(vcpu, arg, physdev.physdev_set_iopl.size))
        if op.iopl > MAX_IOPL:
            return -errno.EINVAL
        vcpu.context.iopl = op.iopl << 12
        return 0

    def _set_iobitmap(self, vcpu: VCpu, arg: int) -> int:
        op = physdev.physdev_set_iobitmap.unpack_from(copy_from_guest(vcpu, arg, physdev.physdev_set_iobitmap.size))
        if op.nr_ports > IOBITMAP_PORTS:
            return -errno.EINVAL
        vcpu.context.iobitmap, vcpu.context.iobitmap_ports = op.bitmap, op.nr_ports
        return 0

    def _map_pirq(self, vcpu: VCpu, arg: int) -> int:
        """Map an interrupt line that the domain may use; the PIRQ has the line's number."""
        op = physdev.physdev_map_pirq.unpack_from(copy_from_guest(vcpu, arg, physdev.physdev_map_pirq.size))
        domain = self._target(vcpu, op.domid)
        if isinstance(domain, int):
            return domain
        if op.type != MAP_PIRQ_TYPE_GSI:
            return -errno.ENOSYS
        if not 0 <= op.index < NR_IRQS:
            return -errno.EINVAL
        if not domain.is_privileged and op.index not in domain.irqs:
            return -errno.EPERM
        if op.pirq >= 0 and op.pirq != op.index:
            return -errno.EINVAL
        domain.pirqs.setdefault(op.index, None)
        copy_to_guest(vcpu, arg, physdev.physdev_map_pirq.pack(op, pirq=op.index))
        return 0

    def _unmap_pirq(self, vcpu: VCpu, arg: int) -> int:
        op = physdev.physdev_unmap_pirq.unpack_from(copy_from_guest(vcpu, arg, physdev.physdev_unmap_pirq.size))
        domain = self._target(vcpu, op.domid)
        if isinstance(domain, int):
            return domain
        if op.pirq not in domain.pirqs:
            return -errno.EINVAL
        channel = domain.pirqs.pop(op.pirq)
        if channel is not None:
            self.hv.machine.interrupts.disconnect(op.pirq)
        return 0
