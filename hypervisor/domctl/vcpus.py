"""Control operations about vCPUs: their registers, their state, the time that they see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import domctl as abi
from hypervisor.abi import errno, xen
from hypervisor.domctl.operation import Operation, always, refuse_self, vcpu_of
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.time import TSC_HZ
from hypervisor.vcpu import VPF_BLOCKED, VPF_DOWN, VPF_POLLING
from hypervisor.vcpu_context import load_context, save_context
from hypervisor.vcpu_op import send_nmi

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

TSC_MODE_DEFAULT, TSC_MODE_ALWAYS_EMULATE, TSC_MODE_NEVER_EMULATE = range(3)


class VcpuControlOps:
    """vCPUs, by domain and number."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.operations = {
            abi.XEN_DOMCTL_max_vcpus: Operation(self._max_vcpus, "max_vcpus"),
            abi.XEN_DOMCTL_setvcpucontext: Operation(self._setvcpucontext, "vcpucontext"),
            abi.XEN_DOMCTL_getvcpucontext: Operation(self._getvcpucontext, "vcpucontext"),
            abi.XEN_DOMCTL_getvcpuinfo: Operation(self._getvcpuinfo, "getvcpuinfo"),
            abi.XEN_DOMCTL_gettscinfo: Operation(self._gettscinfo, "tsc_info"),
            abi.XEN_DOMCTL_settscinfo: Operation(self._settscinfo, "tsc_info"),
            abi.XEN_DOMCTL_sendtrigger: Operation(self._sendtrigger, "sendtrigger"),
            # Of HVM domains only.
            abi.XEN_DOMCTL_debug_op: always(errno.EINVAL),
        }

    def _max_vcpus(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Make the vCPUs, all at once: the number was fixed when the domain was created."""
        refuse_self(vcpu, target)
        if value.max != target.max_vcpus:
            raise HypercallError(errno.EINVAL)
        for vcpu_id in range(value.max):
            if target.vcpus[vcpu_id] is None:
                self.hv.domain_ops.add_vcpu(target, vcpu_id)

    @staticmethod
    def _sendtrigger(_vcpu: VCpu, target: Domain, value: Any) -> None:
        """Send an NMI. The buttons are those of HVM domains."""
        which = vcpu_of(target, value.vcpu, beyond=errno.ESRCH, missing=errno.ESRCH)
        if value.trigger in (abi.XEN_DOMCTL_SENDTRIGGER_POWER, abi.XEN_DOMCTL_SENDTRIGGER_SLEEP):
            raise HypercallError(errno.EINVAL)
        if value.trigger != abi.XEN_DOMCTL_SENDTRIGGER_NMI:
            raise HypercallError(errno.ENOSYS)
        send_nmi(which)

    # -- registers --------------------------------------------------------------------------------------------------

    def _setvcpucontext(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Set a vCPU's registers; a null context takes the vCPU down and forgets what it was."""
        refuse_self(vcpu, target)
        which = vcpu_of(target, value.vcpu, beyond=errno.EINVAL, missing=errno.EINVAL)
        if self.hv.domain_ops.has_dummy_info(which):
            raise HypercallError(errno.EINVAL)
        if not value.ctxt:
            self._reset_vcpu(vcpu, which)
            return
        raw = copy_from_guest(vcpu, value.ctxt, xen.vcpu_guest_context.size)
        was_running = which.initialised
        load_context(which, raw)
        if was_running:
            # The new instruction pointer counts: what the vCPU was in the middle of is over.
            which.halt()
        self.hv.domain_ops.refresh_pause(target)

    def _reset_vcpu(self, vcpu: VCpu, which: VCpu) -> None:
        which.initialised = False
        self.hv.sched.forget(which)
        which.pause_flags = which.pause_flags & ~(VPF_BLOCKED | VPF_POLLING) | VPF_DOWN
        which.halt()
        self.hv.mm.reset_vcpu(vcpu, which)

    def _getvcpucontext(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Copy out the registers of any vCPU but the caller."""
        which = vcpu_of(target, value.vcpu, beyond=errno.EINVAL, missing=errno.EINVAL)
        if which is vcpu:
            raise HypercallError(errno.EINVAL)
        if not which.initialised:
            raise HypercallError(errno.ENODATA)
        copy_to_guest(vcpu, value.ctxt, save_context(which))

    # -- state ------------------------------------------------------------------------------------------------------

    def _getvcpuinfo(self, _vcpu: VCpu, target: Domain, value: Any) -> dict[str, Any]:
        which = vcpu_of(target, value.vcpu, beyond=errno.EINVAL, missing=errno.ESRCH)
        return {
            "vcpu": which.vcpu_id,
            "online": not which.pause_flags & VPF_DOWN,
            "blocked": bool(which.pause_flags & VPF_BLOCKED),
            "running": self.hv.sched.is_on_cpu(which),
            "cpu_time": which.time_running,
            "cpu": which.processor,
        }

    # -- the time-stamp counter -------------------------------------------------------------------------------------

    def _gettscinfo(self, vcpu: VCpu, target: Domain, _value: Any) -> dict[str, int]:
        """Tell how the guest's counter is made: it is the machine's own, unless it was asked never to be emulated."""
        refuse_self(vcpu, target)
        never = target.tsc_mode == TSC_MODE_NEVER_EMULATE
        return {
            "tsc_mode": target.tsc_mode,
            "gtsc_khz": 0 if never else TSC_HZ // 1000,
            "incarnation": target.tsc_incarnation,
            "elapsed_nsec": 0 if never else self.hv.now(),
        }

    def _settscinfo(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        """Take over a mode. A counter that runs differently from the machine's is not built."""
        refuse_self(vcpu, target)
        if value.tsc_mode not in (TSC_MODE_DEFAULT, TSC_MODE_NEVER_EMULATE):
            raise HypercallError(errno.ENOSYS if value.tsc_mode == TSC_MODE_ALWAYS_EMULATE else errno.EINVAL)
        if not target.is_privileged:
            target.tsc_mode = value.tsc_mode
            target.tsc_incarnation = value.incarnation + 1 & 0xFFFFFFFF
