"""HYPERVISOR_vcpu_op (vcpu.h): bringing vCPUs up and down, their timers, areas and vcpu_info."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi import vcpu as abi
from hypervisor.abi.tracepoints import VCPU_DOWN, VCPU_UP
from hypervisor.errors import HypercallError
from hypervisor.guest_access import access_ok, copy_from_guest, copy_to_guest
from hypervisor.vcpu import VPF_BLOCKED, VPF_DOWN
from hypervisor.vcpu_context import load_context

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

HYPERCALL = xen.__HYPERVISOR_vcpu_op
MIN_PERIOD_NS = 1_000_000
MAX_PERIOD_NS = 1 << 62
SELECTOR = xen.vcpu_info.offset("evtchn_pending_sel")
INFO_SIZE = xen.vcpu_info.size


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
        }
        self.hypercalls = {HYPERCALL: self._vcpu_op}

    def _vcpu_op(self, vcpu: VCpu, cmd: int, vcpu_id: int, arg: int, _a4: int, _a5: int) -> int:
        target = vcpu.domain.vcpu(vcpu_id & 0xFFFFFFFF)
        if target is None:
            return -errno.ENOENT
        handler = self._handlers.get(cmd & 0xFFFFFFFF)
        return handler(vcpu, target, arg) if handler is not None else -errno.ENOSYS

    def _initialise(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        if target.initialised:
            return -errno.EEXIST
        raw = copy_from_guest(vcpu, arg, xen.vcpu_guest_context.size)
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
        if not others and not target.pause_flags & VPF_DOWN:
            self.hv.domain_ops.shutdown(domain, 0)
            return 0
        target.pause_flags |= VPF_DOWN
        if self.hv.trace is not None:
            self.hv.trace(domain.domid, target.vcpu_id, VCPU_DOWN)
        return 0

    def _is_up(self, _vcpu: VCpu, target: VCpu, _arg: int) -> int:
        return int(not target.pause_flags & VPF_DOWN)

    def runstate(self, target: VCpu) -> bytes:
        """Return a vcpu_runstate_info of the present moment; its times add up to the vCPU's age."""
        now = max(self.hv.now(), target.since)
        known = target.time_running + target.time_runnable
        times = [target.time_running, target.time_runnable, max(target.since - target.created - known, 0), 0]
        if target is self.hv.sched.running:
            state = abi.RUNSTATE_running
        elif target.pause_flags & VPF_BLOCKED:
            state = abi.RUNSTATE_blocked
        else:
            state = abi.RUNSTATE_offline if target.pause_flags else abi.RUNSTATE_runnable
        times[state] += now - target.since
        return abi.vcpu_runstate_info.pack(state=state, state_entry_time=target.since, time=tuple(times))

    def _get_runstate_info(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        copy_to_guest(vcpu, arg, self.runstate(target))
        return 0

    def _register_runstate_area(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        """Remember where runstates go. Only an address in Xen's own range is refused; an unmapped one is not."""
        area = abi.vcpu_register_runstate_memory_area
        op = area.unpack_from(copy_from_guest(vcpu, arg, area.size))
        if not access_ok(op.addr.p):
            return -errno.EFAULT
        target.runstate_area = op.addr.p
        try:
            copy_to_guest(vcpu, op.addr.p, self.runstate(target))
        except HypercallError:
            # The area is not mapped now; Xen skips the update too and tries again at the next switch.
            return 0
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
        self.hv.time.set_singleshot(vcpu, op.timeout_abs_ns)
        return 0

    def _stop_singleshot_timer(self, vcpu: VCpu, target: VCpu, _arg: int) -> int:
        if target is not vcpu:
            return -errno.EINVAL
        self.hv.time.stop_singleshot(vcpu)
        return 0

    def _register_vcpu_info(self, vcpu: VCpu, target: VCpu, arg: int) -> int:
        """Move the vcpu_info to a place of the guest's choice: once, aligned, within one page."""
        op = abi.vcpu_register_vcpu_info.unpack_from(copy_from_guest(vcpu, arg, abi.vcpu_register_vcpu_info.size))
        if op.offset > 4096 - INFO_SIZE or op.offset & 7:
            return -errno.ENXIO
        if target.info_registered:
            return -errno.EINVAL
        mfn = self.hv.mm.get_writable_frame(target.domain, op.mfn)
        memory = self.hv.memory
        new = (mfn << 12) + op.offset
        memory.write(new, bytes(memory.b[target.info : target.info + INFO_SIZE]))
        target.info = new
        target.info_registered = True
        # Nothing may be lost in the move: the guest looks at every port once.
        memory.q[(new + SELECTOR) >> 3] = 0xFFFF_FFFF_FFFF_FFFF
        memory.b[new] = 1
        return 0
