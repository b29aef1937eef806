"""HYPERVISOR_physdev_op (physdev.h): interrupts and I/O privilege of domains that drive hardware.

The machine has interrupt lines, an I/O APIC and no PCI bus: dom0 may report PCI functions, as it does what it finds,
and none of them has message-signalled interrupts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, physdev, xen
from hypervisor.abi.layout import Layout
from hypervisor.errors import HypercallError
from hypervisor.event_channel.channel import FREE
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest
from hypervisor.machine import io_apic
from hypervisor.machine.firmware import IO_APIC
from hypervisor.machine.interrupts import NR_LINES

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_physdev_op
COMPAT_HYPERCALL = xen.__HYPERVISOR_physdev_op_compat
COMPAT_ARGUMENT = physdev.physdev_op.offset("u")
MAX_IOPL = 3
IOBITMAP_PORTS = 65536
HARDWARE_DOMAIN = 0
MSI_TYPES = (physdev.MAP_PIRQ_TYPE_MSI, physdev.MAP_PIRQ_TYPE_MSI_SEG, physdev.MAP_PIRQ_TYPE_MULTI_MSI)

Function = tuple[int, int, int]
"""A PCI function: segment, bus, device and function."""


class PhysdevOps:
    """Mapping of interrupt lines to PIRQs and their acknowledgement, IOPL, the I/O APIC, reports of PCI functions."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._functions: set[Function] = set()
        """What the hardware domain has reported."""
        self._handlers: dict[int, Callable[[VCpu, int], int]] = {
            physdev.PHYSDEVOP_IRQ_UNMASK_NOTIFY: self._unmask_notify,
            physdev.PHYSDEVOP_irq_status_query: self._irq_status_query,
            physdev.PHYSDEVOP_set_iopl: self._set_iopl,
            physdev.PHYSDEVOP_set_iobitmap: self._set_iobitmap,
            physdev.PHYSDEVOP_apic_read: self._apic_read,
            physdev.PHYSDEVOP_apic_write: self._apic_write,
            physdev.PHYSDEVOP_alloc_irq_vector: self._alloc_irq_vector,
            physdev.PHYSDEVOP_eoi: self._eoi,
            physdev.PHYSDEVOP_map_pirq: self._map_pirq,
            physdev.PHYSDEVOP_unmap_pirq: self._unmap_pirq,
            physdev.PHYSDEVOP_manage_pci_add: self._manage_pci_add,
            physdev.PHYSDEVOP_manage_pci_remove: self._manage_pci_remove,
            physdev.PHYSDEVOP_pirq_eoi_gmfn_v1: self._pirq_eoi_gmfn_v1,
            physdev.PHYSDEVOP_restore_msi: self._restore_msi,
            physdev.PHYSDEVOP_manage_pci_add_ext: self._manage_pci_add_ext,
            physdev.PHYSDEVOP_setup_gsi: self._setup_gsi,
            physdev.PHYSDEVOP_get_free_pirq: self._get_free_pirq,
            physdev.PHYSDEVOP_pci_mmcfg_reserved: self._pci_mmcfg_reserved,
            physdev.PHYSDEVOP_pci_device_add: self._pci_device_add,
            physdev.PHYSDEVOP_pci_device_remove: self._pci_device_remove,
            physdev.PHYSDEVOP_restore_msi_ext: self._restore_msi_ext,
            physdev.PHYSDEVOP_pirq_eoi_gmfn_v2: self._pirq_eoi_gmfn,
            physdev.PHYSDEVOP_dbgp_op: self._dbgp_op,
            physdev.PHYSDEVOP_prepare_msix: self._msix,
            physdev.PHYSDEVOP_release_msix: self._msix,
        }
        self.hypercalls = {HYPERCALL: self._physdev_op, COMPAT_HYPERCALL: self._compat_op}

    def _physdev_op(self, vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        handler = self._handlers.get(cmd & 0xFFFFFFFF)
        return handler(vcpu, arg) if handler is not None else -errno.ENOSYS

    def _compat_op(self, vcpu: VCpu, arg: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Run the old form of the hypercall: the number of the operation lies in front of its argument."""
        op = physdev.physdev_op.unpack_from(copy_from_guest(vcpu, arg, physdev.physdev_op.size))
        return self._physdev_op(vcpu, op.cmd, arg + COMPAT_ARGUMENT, 0, 0, 0)

    @staticmethod
    def _check_privilege(vcpu: VCpu, target: Domain | None = None) -> None:
        """What dom0 may, and a stub domain for its guest (XSM_PRIV, XSM_DM_PRIV). Nobody may it for himself."""
        caller = vcpu.domain
        if not caller.is_privileged and (target is None or caller.target is not target):
            raise HypercallError(errno.EPERM)

    # -- PIRQs ----------------------------------------------------------------------------------------------------

    def _map_pirq(self, vcpu: VCpu, arg: int) -> int:
        """Map an interrupt line to a PIRQ of a domain. The structure is copied back in any case."""
        op = _read(vcpu, arg, physdev.physdev_map_pirq)
        if op.type == physdev.MAP_PIRQ_TYPE_MULTI_MSI and op.table_base:
            return -errno.EINVAL
        result, number = 0, op.pirq
        try:
            domain = self.hv.resolve(vcpu, op.domid)
            self._check_privilege(vcpu, domain)
            if op.type == physdev.MAP_PIRQ_TYPE_GSI:
                number = self.hv.pirqs.map_gsi(vcpu.domain, domain, op.index, op.pirq)
            else:
                result = self._map_msi(vcpu, domain, op)
        except HypercallError as error:
            result = -error.errno
        kind = physdev.MAP_PIRQ_TYPE_MSI if op.type == physdev.MAP_PIRQ_TYPE_MSI_SEG else op.type
        raw = copy_from_guest(vcpu, arg, physdev.physdev_map_pirq.size)
        copy_to_guest(vcpu, arg, physdev.physdev_map_pirq.pack_over(raw, op, type=kind, pirq=number))
        return result

    def _map_msi(self, vcpu: VCpu, domain: Domain, op: Any) -> int:
        """Refuse: there is no device that could have such an interrupt."""
        if op.type not in MSI_TYPES:
            return -errno.EINVAL
        any_line = op.index == -1 or op.type == physdev.MAP_PIRQ_TYPE_MULTI_MSI
        if not any_line and not self.hv.pirqs.nr_gsis <= op.index < self.hv.pirqs.nr_pirqs(vcpu.domain):
            return -errno.EINVAL
        if op.pirq >= self.hv.pirqs.nr_pirqs(domain):
            return -errno.EINVAL
        return -errno.ENODEV

    def _unmap_pirq(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_unmap_pirq)
        domain = self.hv.resolve(vcpu, op.domid)
        self._check_privilege(vcpu, domain)
        self.hv.pirqs.unmap(domain, op.pirq)
        return 0

    def _get_free_pirq(self, vcpu: VCpu, arg: int) -> int:
        """Reserve a PIRQ of the caller. It is no privilege: the number stands for nothing."""
        op = _read(vcpu, arg, physdev.physdev_get_free_pirq)
        number = self.hv.pirqs.reserve(vcpu.domain, op.type)
        copy_to_guest(vcpu, arg, physdev.physdev_get_free_pirq.pack(op, pirq=number))
        return 0

    def _eoi(self, vcpu: VCpu, arg: int) -> int:
        """Accept the end of an interrupt. The machine's lines are edge triggered, so that nothing is held back."""
        op = _read(vcpu, arg, physdev.physdev_eoi)
        domain = vcpu.domain
        pirq = domain.pirqs.get(op.irq)
        if pirq is None:
            return -errno.EINVAL
        if domain.auto_unmask and pirq.channel is not None and pirq.channel.state != FREE:
            domain.port_ops.unmask(pirq.channel)
        return 0

    def _unmask_notify(self, _vcpu: VCpu, _arg: int) -> int:
        """Nothing is masked until its end: the old way to say that all has been handled."""
        return 0

    def _irq_status_query(self, vcpu: VCpu, arg: int) -> int:
        """Say that the end of an interrupt is wanted: so it is by Xen for each kind of line, to be on the safe side."""
        op = _read(vcpu, arg, physdev.physdev_irq_status_query)
        if op.irq >= self.hv.pirqs.nr_pirqs(vcpu.domain):
            return -errno.EINVAL
        flags = physdev.XENIRQSTAT_needs_eoi
        pirq = vcpu.domain.pirqs.get(op.irq)
        if pirq is not None and self.hv.pirqs.is_shared(pirq.irq):
            flags |= physdev.XENIRQSTAT_shared
        copy_to_guest(vcpu, arg, physdev.physdev_irq_status_query.pack(op, flags=flags))
        return 0

    def _pirq_eoi_gmfn(self, vcpu: VCpu, arg: int) -> int:
        """Share a page with a bit for each PIRQ that wants an end of interrupt: edge triggered ones, so none, do."""
        op = _read(vcpu, arg, physdev.physdev_pirq_eoi_gmfn)
        domain = vcpu.domain
        mfn = self.hv.mm.get_writable_frame(domain, op.gmfn)
        if domain.pirq_eoi_frame:
            self.hv.mm.put_writable_frame(domain, mfn)
            return -errno.EBUSY
        domain.pirq_eoi_frame = mfn
        return 0

    def _pirq_eoi_gmfn_v1(self, vcpu: VCpu, arg: int) -> int:
        result = self._pirq_eoi_gmfn(vcpu, arg)
        if not result:
            vcpu.domain.auto_unmask = True
        return result

    def _setup_gsi(self, vcpu: VCpu, arg: int) -> int:
        """Accept trigger and polarity of a line; they are what they are."""
        op = _read(vcpu, arg, physdev.physdev_setup_gsi)
        if not 0 <= op.gsi < self.hv.pirqs.nr_gsis:
            return -errno.EINVAL
        self._check_privilege(vcpu)
        return 0

    # -- the I/O APIC, as kernels from before PHYSDEVOP_map_pirq use it -----------------------------------------------

    def _apic_read(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_apic)
        self._check_privilege(vcpu)
        result = 0
        if op.apic_physbase != IO_APIC << 12:
            result = -errno.EINVAL
        else:
            op.value = self.hv.machine.io_apic.read(op.reg)
        copy_to_guest(vcpu, arg, physdev.physdev_apic.pack(op))
        return result

    def _apic_write(self, vcpu: VCpu, arg: int) -> int:
        """Program a pin. Only the low half of an entry counts; one that is not masked maps the PIRQ in its vector."""
        op = _read(vcpu, arg, physdev.physdev_apic)
        self._check_privilege(vcpu)
        if op.apic_physbase != IO_APIC << 12:
            return -errno.EINVAL
        if op.reg < io_apic.FIRST_ENTRY or op.reg & 1:
            return 0
        pin = op.reg - io_apic.FIRST_ENTRY >> 1
        if op.value & io_apic.DELIVERY_MODE > io_apic.LOWEST_PRIORITY or pin >= NR_LINES:
            return -errno.EINVAL
        if not op.value & io_apic.MASKED:
            hardware_domain = self.hv.domain(HARDWARE_DOMAIN)
            number = op.value & io_apic.VECTOR
            if number >= self.hv.pirqs.nr_pirqs(hardware_domain):
                return -errno.EINVAL
            self.hv.pirqs.map(vcpu.domain, hardware_domain, pin, number)
        masked = io_apic.MASKED if op.value & io_apic.LEVEL_TRIGGERED else 0
        self.hv.machine.io_apic.write_entry(pin, op.value & ~io_apic.MASKED | masked)
        return 0

    def _alloc_irq_vector(self, vcpu: VCpu, arg: int) -> int:
        """Return the line's number for a vector: it comes back in `apic_write`, as the PIRQ that is wanted."""
        op = _read(vcpu, arg, physdev.physdev_irq)
        self._check_privilege(vcpu)
        copy_to_guest(vcpu, arg, physdev.physdev_irq.pack(op, vector=op.irq))
        return 0

    # -- I/O ports ------------------------------------------------------------------------------------------------

    def _set_iopl(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_set_iopl)
        if op.iopl > MAX_IOPL:
            return -errno.EINVAL
        vcpu.context.iopl = op.iopl << 12
        return 0

    def _set_iobitmap(self, vcpu: VCpu, arg: int) -> int:
        """Say which ports user mode may use. An address that cannot be is EINVAL here."""
        op = _read(vcpu, arg, physdev.physdev_set_iobitmap)
        if not access_ok(op.bitmap) or op.nr_ports > IOBITMAP_PORTS:
            return -errno.EINVAL
        vcpu.context.iobitmap, vcpu.context.iobitmap_ports = op.bitmap, op.nr_ports
        return 0

    # -- PCI ------------------------------------------------------------------------------------------------------

    def _report(self, vcpu: VCpu, function: Function) -> int:
        self._check_privilege(vcpu)
        self._functions.add(function)
        return 0

    def _withdraw(self, vcpu: VCpu, function: Function) -> int:
        self._check_privilege(vcpu)
        if function not in self._functions:
            return -errno.ENODEV
        self._functions.remove(function)
        return 0

    def _manage_pci_add(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_manage_pci)
        return self._report(vcpu, (0, op.bus, op.devfn))

    def _manage_pci_remove(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_manage_pci)
        return self._withdraw(vcpu, (0, op.bus, op.devfn))

    def _manage_pci_add_ext(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_manage_pci_ext)
        if op.is_extfn > 1 or op.is_virtfn > 1:
            return -errno.EINVAL
        return self._report(vcpu, (0, op.bus, op.devfn))

    def _pci_device_add(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_pci_device_add)
        if op.flags & physdev.XEN_PCI_DEV_PXM:
            copy_from_guest(vcpu, arg + physdev.physdev_pci_device_add.size, 4)
        return self._report(vcpu, (op.seg, op.bus, op.devfn))

    def _pci_device_remove(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_pci_device)
        return self._withdraw(vcpu, (op.seg, op.bus, op.devfn))

    def _restore_msi(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_restore_msi)
        return 0 if (0, op.bus, op.devfn) in self._functions else -errno.ENODEV

    def _restore_msi_ext(self, vcpu: VCpu, arg: int) -> int:
        op = _read(vcpu, arg, physdev.physdev_pci_device)
        return 0 if (op.seg, op.bus, op.devfn) in self._functions else -errno.ENODEV

    def _msix(self, vcpu: VCpu, arg: int) -> int:
        """Refuse to prepare message-signalled interrupts: no function has them."""
        _read(vcpu, arg, physdev.physdev_pci_device)
        self._check_privilege(vcpu)
        return -errno.ENODEV

    def _pci_mmcfg_reserved(self, vcpu: VCpu, arg: int) -> int:
        """Refuse a window of PCI configuration space: Xen knows of none. Privilege is looked at first."""
        self._check_privilege(vcpu)
        op = _read(vcpu, arg, physdev.physdev_pci_mmcfg_reserved)
        return -errno.EINVAL if op.flags & ~physdev.XEN_PCI_MMCFG_RESERVED else -errno.ENODEV

    def _dbgp_op(self, vcpu: VCpu, arg: int) -> int:
        """Accept news of the USB debug port, which is not in use."""
        if vcpu.domain.domid != HARDWARE_DOMAIN:
            return -errno.EPERM
        _read(vcpu, arg, physdev.physdev_dbgp_op)
        return 0


def _read(vcpu: VCpu, arg: int, layout: Layout) -> Any:
    """Copy the argument of an operation in. Raises HypercallError(EFAULT)."""
    return layout.unpack_from(copy_from_guest(vcpu, arg, layout.size))
