"""HYPERVISOR_callback_op and HYPERVISOR_set_callbacks (callback.h, xen.h): where Xen enters the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import callback, errno, xen
from hypervisor.guest_access import copy_from_guest

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vcpu import VCpu

CALLBACK_OP = xen.__HYPERVISOR_callback_op
SET_CALLBACKS = xen.__HYPERVISOR_set_callbacks
NMI_VECTOR = 2
U64 = 0xFFFF_FFFF_FFFF_FFFF

TI_MASK = 4
"""Flag of a trap_info: upcalls are masked on entry (TI_SET_IF)."""

FIELDS = {
    callback.CALLBACKTYPE_event: "event_callback",
    callback.CALLBACKTYPE_failsafe: "failsafe_callback",
    callback.CALLBACKTYPE_syscall: "syscall_callback",
    callback.CALLBACKTYPE_syscall32: "syscall32_callback",
    callback.CALLBACKTYPE_sysenter: "sysenter_callback",
}
"""Callback types that cannot be unregistered, with the field of `Context` that holds each."""

MASK_FLAGS = {
    callback.CALLBACKTYPE_failsafe: xen.VGCF_failsafe_disables_events,
    callback.CALLBACKTYPE_syscall: xen.VGCF_syscall_disables_events,
}
"""For which of them a flag of vcpu_guest_context says that upcalls are masked on entry (events: always)."""

COMPAT = frozenset({callback.CALLBACKTYPE_syscall32, callback.CALLBACKTYPE_sysenter})
"""Entries of 32-bit user code: for those Xen keeps that apart (`Context.compat_masks`)."""


def is_canonical(address: int) -> bool:
    """Whether bits 63..47 of an address are all the same."""
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)


class CallbackOps:
    """Registration of entry points."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self._handlers: dict[int, Callable[[VCpu, int], int]] = {
            callback.CALLBACKOP_register: self._register,
            callback.CALLBACKOP_unregister: self._unregister,
        }
        self.hypercalls = {CALLBACK_OP: self._callback_op, SET_CALLBACKS: self._set_callbacks}

    def _callback_op(self, vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        handler = self._handlers.get(cmd & 0xFFFFFFFF)
        return handler(vcpu, arg) if handler is not None else -errno.ENOSYS

    def _set_callbacks(self, vcpu: VCpu, event: int, failsafe: int, syscall: int, _a4: int, _a5: int) -> int:
        """Set the three classic callbacks. An address that is not canonical is ignored, not refused."""
        self._set(vcpu, callback.CALLBACKTYPE_event, event & U64, masks=False)
        self._set(vcpu, callback.CALLBACKTYPE_failsafe, failsafe & U64, masks=False)
        self._set(vcpu, callback.CALLBACKTYPE_syscall, syscall & U64, masks=False)
        return 0

    def _register(self, vcpu: VCpu, arg: int) -> int:
        op = callback.callback_register.unpack_from(copy_from_guest(vcpu, arg, callback.callback_register.size))
        return self._set(vcpu, op.type, op.address, bool(op.flags & callback.CALLBACKF_mask_events))

    @staticmethod
    def _set(vcpu: VCpu, kind: int, address: int, masks: bool) -> int:
        """Register one entry point; `masks`: upcalls are to be masked when Xen enters there."""
        if not is_canonical(address):
            return -errno.EINVAL
        context = vcpu.context
        if kind == callback.CALLBACKTYPE_nmi:
            context.trap_table[NMI_VECTOR] = (TI_MASK, xen.FLAT_KERNEL_CS, address)
            return 0
        field = FIELDS.get(kind)
        if field is None:
            return -errno.ENOSYS
        setattr(context, field, address)
        flag = MASK_FLAGS.get(kind, 0)
        context.flags = context.flags | flag if masks else context.flags & ~flag
        if kind in COMPAT:
            context.compat_masks = context.compat_masks | {kind} if masks else context.compat_masks - {kind}
        vcpu.callbacks_changed()
        return 0

    def _unregister(self, vcpu: VCpu, arg: int) -> int:
        op = callback.callback_unregister.unpack_from(copy_from_guest(vcpu, arg, callback.callback_unregister.size))
        if op.type in FIELDS:
            return -errno.EINVAL
        if op.type != callback.CALLBACKTYPE_nmi:
            return -errno.ENOSYS
        vcpu.context.trap_table.pop(NMI_VECTOR, None)
        return 0
