"""HYPERVISOR_vcpu_op (vcpu.h): bringing vCPUs up and down, their timers, areas and vcpu_info."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi import vcpu as abi
from hypervisor.abi.tracepoints import VCPU_DOWN, VCPU_UP
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest
from hypervisor.vcpu import VPF_BLOCKED, VPF_DOWN
from hypervisor.vcpu_context import load_context

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_vcpu_op
MIN_PERIOD_NS = 1_000_000
MAX_PERIOD_NS = (1 << 62) - 1
HARDWARE_DOMAIN = 0
NO_APIC = 0xFFFF_FFFF
"""The number of a processor that the machine does not have."""
UPCALL_MASK = xen.vcpu_info.offset("evtchn_upcall_mask")
SELECTOR = xen.vcpu_info.offset("evtchn_pending_sel")
INFO_SIZE = xen.vcpu_info.size


def send_nmi(vcpu: VCpu) -> None:
    """Send an NMI. To a vCPU without a handler it is nothing, as to one that executes Python."""
    if not vcpu.nmi_pending:
        vcpu.nmi_pending = True
        if vcpu.pause_flags & VPF_BLOCKED:
            vcpu.hv.sched.wake(vcpu)


class VcpuOps:
    """Operations on a vCPU of the caller's own domain. A missing vCPU is noticed before an unknown operation."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._handlers: dict[int, Callable[[VCpu, VCpu, int], int]] = {
            abi.VCPUOP_initialise: self._initialise,
            abi.VCPUOP_up: self._up,
            abi.VCPUOP_down: self._down,
            abi.VCPUOP_is_up: self._is_up,
            abi.VCPUOP_get_runstate_info: self._get_runstate_info,
            abi.VCPUOP_register_runstate_memory_area: self._register_runstate_area,
            abi.VCPUOP_set_periodic_timer: self._set_periodic_timer,
            abi.VCPUOP_stop_periodic_timer: self._stop_periodic_timer,
            abi.VCPUOP_set_singleshot_timer: self._set_singleshot_timer,
            abi.VCPUOP_stop_singleshot_timer: self._stop_singleshot_timer,
            abi.VCPUOP_register_vcpu_info: self._register_vcpu_info,
            abi.VCPUOP_register_vcpu_time_memory_area: self._register_time_area,
            abi.VCPUOP_send_nmi: self._send_nmi,
            abi.VCPUOP_get_physid: self._get_physid,
        }
        self.hypercalls = {HYPERCALL: self._vcpu_op}

    def _vcpu_op(self, vcpu: VCpu, cmd: int, vcpu_id: int, arg: int, _a4: int, _a5: int) -> int:
        target = vcpu.domain.vcpu(vcpu_id & 0xFFFFFFFF)
        if target is None:
            return -errno.ENOENT
        handler = self._handlers.get(cmd & 0xFFFFFFFF)
        return handler(vcpu, target, arg) if handler is not None else -errno.ENOSYS

    def _initialise(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        if self.hv.domain_ops.has_dummy_info(target):
            return -errno.EINVAL
        raw = copy_from_guest(vcpu, arg, xen.vcpu_guest_context.size)
        if target.initialised:
            return -errno.EEXIST
        load_context(target, raw)
        return 0

    def _up(self, _vcpu: VCpu, target: VCpu, _arg: int) -> int:
        if not target.initialised:
            return -errno.EINVAL
        if target.pause_flags & VPF_DOWN:
            self.hv.sched.unpause(target, VPF_DOWN)
            if self.hv.trace is not None:
                self.hv.trace(target.domain.domid, target.vcpu_id, VCPU_UP)
        return 0

    def _down(self, _vcpu: VCpu, target: VCpu, _arg: int) -> int:
        """Take a vCPU down; the last one of a domain takes the domain with it."""
        domain = target.domain
        others = [v for v in domain.online_vcpus() if v is not target and not v.pause_flags & VPF_DOWN]
        if target.pause_flags & VPF_DOWN:
            return 0
        if not others:
            self.hv.domain_ops.shutdown(domain, 0)
            return 0
        self.hv.sched.stop(target, VPF_DOWN)
        if self.hv.trace is not None:
            self.hv.trace(domain.domid, target.vcpu_id, VCPU_DOWN)
        return 0

    def _is_up(self, _vcpu: VCpu, target: VCpu, _arg: int) -> int:
        return int(not target.pause_flags & VPF_DOWN)

    def _get_runstate_info(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        copy_to_guest(vcpu, arg, self.hv.time.runstate(target))
        return 0

    def _register_runstate_area(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        """Remember where runstates go. Only an address in Xen's own range is refused; an unmapped one is not."""
        area = abi.vcpu_register_runstate_memory_area
        op = area.unpack_from(copy_from_guest(vcpu, arg, area.size))
        if not access_ok(op.addr.p):
            return -errno.EFAULT
        self.hv.time.set_runstate_area(target, op.addr.p, vcpu)
        return 0

    def _register_time_area(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        """Remember where to keep a second copy of vcpu_time_info; the address is judged as that of the runstate."""
        area = abi.vcpu_register_time_memory_area
        op = area.unpack_from(copy_from_guest(vcpu, arg, area.size))
        if not access_ok(op.addr.p):
            return -errno.EFAULT
        target.time_area = op.addr.p
        self.hv.time.update_time(target, self.hv.now())
        return 0

    @staticmethod
    def _send_nmi(_vcpu: VCpu, target: VCpu, arg: int) -> int:
        if arg:
            return -errno.EINVAL
        send_nmi(target)
        return 0

    def _get_physid(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        """Tell the APIC and ACPI numbers of the processor with the vCPU's number, to dom0 if the vCPU is pinned."""
        if target.domain.domid != HARDWARE_DOMAIN or self.hv.sched.pinned_to(target) < 0:
            return -errno.EINVAL
        number = target.vcpu_id if target.vcpu_id < len(self.hv.sched.pcpus) else NO_APIC
        copy_to_guest(vcpu, arg, abi.vcpu_get_physid.pack(phys_id=number | number << 32))
        return 0

    def _set_periodic_timer(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        op = abi.vcpu_set_periodic_timer.unpack_from(copy_from_guest(vcpu, arg, abi.vcpu_set_periodic_timer.size))
        if not MIN_PERIOD_NS <= op.period_ns <= MAX_PERIOD_NS:
            return -errno.EINVAL
        self.hv.time.set_periodic(target, op.period_ns)
        return 0

    def _stop_periodic_timer(self, _vcpu: VCpu, target: VCpu, _arg: int) -> int:
        self.hv.time.set_periodic(target, 0)
        return 0

    def _set_singleshot_timer(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        """Arm the one-shot timer. VCPU_SSHOTTMR_future changes nothing in 4.17: a past time fires at once."""
        if target is not vcpu:
            return -errno.EINVAL
        op = abi.vcpu_set_singleshot_timer.unpack_from(copy_from_guest(vcpu, arg, abi.vcpu_set_singleshot_timer.size))
        # Xen's times are signed: one from 2^63 on lies before the start of the host.
        self.hv.time.set_singleshot(vcpu, 0 if op.timeout_abs_ns >> 63 else op.timeout_abs_ns)
        return 0

    def _stop_singleshot_timer(self, vcpu: VCpu, target: VCpu, _arg: int) -> int:
        if target is not vcpu:
            return -errno.EINVAL
        self.hv.time.stop_singleshot(vcpu)
        return 0

    def _register_vcpu_info(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        """Move the vcpu_info to a place of the guest's choice. The time stamps are renewed even if that is refused."""
        op = abi.vcpu_register_vcpu_info.unpack_from(copy_from_guest(vcpu, arg, abi.vcpu_register_vcpu_info.size))
        try:
            return self._map_vcpu_info(vcpu, target, op.mfn, op.offset)
        finally:
            self.hv.time.update_time(target, self.hv.now())

    def _map_vcpu_info(self, vcpu: VCpu, target: VCpu, gfn: int, offset: int) -> int:
        """Move the vcpu_info: once, aligned, within one page."""
        if offset > 4096 - INFO_SIZE or offset & 7:
            return -errno.ENXIO
        if target.info_registered or (target is not vcpu and not target.pause_flags & VPF_DOWN):
            return -errno.EINVAL
        mfn = self.hv.mm.get_writable_frame(target.domain, gfn)
        memory = self.hv.memory
        new = (mfn << 12) + offset
        # (What all vCPUs without a vcpu_info share is not worth copying.)
        fresh = self.hv.domain_ops.has_dummy_info(target)
        memory.write(new, bytes(INFO_SIZE) if fresh else bytes(memory.b[target.info : target.info + INFO_SIZE]))
        if fresh:
            memory.b[new + UPCALL_MASK] = 1
        target.place_info(new)
        target.info_registered = True
        # Nothing may be lost in the move: the guest looks at every port once.
        memory.q[(new + SELECTOR) >> 3] = 0xFFFF_FFFF_FFFF_FFFF
        memory.b[new] = 1
        if target.pause_flags & VPF_BLOCKED:
            self.hv.sched.wake(target)
        return 0
