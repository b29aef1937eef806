"""Control operations on the rest of a vCPU's state, which vcpu_guest_context has no room for.

Whoever saves a PV domain asks for all of it. This processor has no XSAVE and no model-specific registers that a guest's
state would include, so that two of the three are soon told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.abi import callback, errno
from hypervisor.abi import domctl as abi
from hypervisor.callback import is_canonical
from hypervisor.domctl.operation import Operation, vcpu_of
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu import VCpu

EXT = abi.xen_domctl_ext_vcpucontext
SHORTEST_EXT = EXT.offset("vmce")
"""A toolstack of old sends no more than this."""
XSAVE_HEADER = 16
"""xcr0 and what it ever was, in front of an XSAVE area."""
MAX_MSRS = 7
"""How many model-specific registers Xen would save, if the processor had them all."""


class VcpuStateOps:
    """The rest."""

    def __init__(self) -> None:
        self.operations = {
            abi.XEN_DOMCTL_get_ext_vcpucontext: Operation(self._get_ext, "ext_vcpucontext"),
            abi.XEN_DOMCTL_set_ext_vcpucontext: Operation(self._set_ext, "ext_vcpucontext"),
            abi.XEN_DOMCTL_getvcpuextstate: Operation(self._get_xsave, "vcpuextstate"),
            abi.XEN_DOMCTL_setvcpuextstate: Operation(self._set_xsave, "vcpuextstate"),
            abi.XEN_DOMCTL_get_vcpu_msrs: Operation(self._get_msrs, "vcpu_msrs"),
            abi.XEN_DOMCTL_set_vcpu_msrs: Operation(self._set_msrs, "vcpu_msrs"),
        }

    # -- entries for 32-bit user code -------------------------------------------------------------------------------

    @staticmethod
    def _get_ext(vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Tell where system calls of 32-bit user code enter the kernel (selectors do not count for a 64-bit kernel).

        Machine check banks are empty.
        """
        which = vcpu_of(target, value.vcpu, beyond=errno.ESRCH, missing=errno.ESRCH)
        if which is vcpu:
            raise HypercallError(errno.ESRCH)
        context = which.context
        told = {"vcpu": value.vcpu, "size": EXT.size}
        for name, kind in (
            ("sysenter", callback.CALLBACKTYPE_sysenter),
            ("syscall32", callback.CALLBACKTYPE_syscall32),
        ):
            told[f"{name}_callback_eip"] = getattr(context, f"{name}_callback")
            told[f"{name}_disables_events"] = kind in context.compat_masks
        return told

    @staticmethod
    def _set_ext(vcpu: VCpu, target: Domain, value: Any) -> None:
        which = vcpu_of(target, value.vcpu, beyond=errno.ESRCH, missing=errno.ESRCH)
        if target is vcpu.domain:
            raise HypercallError(errno.ESRCH)
        sysenter, syscall32 = value.sysenter_callback_eip, value.syscall32_callback_eip
        if value.size < SHORTEST_EXT or not (is_canonical(sysenter) and is_canonical(syscall32)):
            raise HypercallError(errno.EINVAL)
        context = which.context
        context.sysenter_callback, context.syscall32_callback = sysenter, syscall32
        masks = set()
        if value.sysenter_disables_events:
            masks.add(callback.CALLBACKTYPE_sysenter)
        if value.syscall32_disables_events:
            masks.add(callback.CALLBACKTYPE_syscall32)
        context.compat_masks = frozenset(masks)

    # -- what this processor has not --------------------------------------------------------------------------------

    @staticmethod
    def _state_of(vcpu: VCpu, target: Domain, vcpu_id: int) -> None:
        which = vcpu_of(target, vcpu_id, beyond=errno.ESRCH, missing=errno.ESRCH)
        if which is vcpu:
            raise HypercallError(errno.EINVAL)

    def _get_xsave(self, vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Copy out an XSAVE area: nothing but its header."""
        self._state_of(vcpu, target, value.vcpu)
        if value.buffer and (value.size or value.xfeature_mask):
            if value.size < XSAVE_HEADER or value.xfeature_mask:
                raise HypercallError(errno.EINVAL)
            copy_to_guest(vcpu, value.buffer, bytes(XSAVE_HEADER))
        value.xfeature_mask, value.size = 0, XSAVE_HEADER
        return value

    def _set_xsave(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        self._state_of(vcpu, target, value.vcpu)
        if value.size != XSAVE_HEADER or any(copy_from_guest(vcpu, value.buffer, XSAVE_HEADER)):
            raise HypercallError(errno.EINVAL)

    def _get_msrs(self, vcpu: VCpu, target: Domain, value: Any) -> Any:
        """Tell how many registers there could be, or those that are not zero: none."""
        self._state_of(vcpu, target, value.vcpu)
        value.msr_count = 0 if value.msrs else MAX_MSRS
        return value

    def _set_msrs(self, vcpu: VCpu, target: Domain, value: Any) -> None:
        self._state_of(vcpu, target, value.vcpu)
        if value.msr_count:
            if value.msr_count <= MAX_MSRS:
                copy_from_guest(vcpu, value.msrs, abi.xen_domctl_vcpu_msr.size)
            raise HypercallError(errno.EINVAL)
