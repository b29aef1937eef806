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

FIELDS = {
    callback.CALLBACKTYPE_event: "event_callback",
    callback.CALLBACKTYPE_failsafe: "failsafe_callback",
    callback.CALLBACKTYPE_syscall: "syscall_callback",
}
"""Callback types that a 64-bit guest must keep registered, with the field of `Context` that holds each."""

OPTIONAL = frozenset({callback.CALLBACKTYPE_nmi, callback.CALLBACKTYPE_sysenter, callback.CALLBACKTYPE_syscall32})
"""Types that are accepted, and never called here: NMIs are not delivered, and Python guests have no user mode."""


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
        for address, field in (
            (event, "event_callback"),
            (failsafe, "failsafe_callback"),
            (syscall, "syscall_callback"),
        ):
            if is_canonical(address & U64):
                setattr(vcpu.context, field, address & U64)
        vcpu.callbacks_changed()
        return 0

    def _register(self, vcpu: VCpu, arg: int) -> int:
        op = callback.callback_register.unpack_from(copy_from_guest(vcpu, arg, callback.callback_register.size))
        if not is_canonical(op.address):
            return -errno.EINVAL
        field = FIELDS.get(op.type)
        if field is not None:
            setattr(vcpu.context, field, op.address)
            vcpu.callbacks_changed()
            return 0
        if op.type == callback.CALLBACKTYPE_nmi:
            vcpu.context.trap_table[NMI_VECTOR] = (0, xen.FLAT_KERNEL_CS, op.address)
        return 0 if op.type in OPTIONAL else -errno.ENOSYS

    def _unregister(self, vcpu: VCpu, arg: int) -> int:
        op = callback.callback_unregister.unpack_from(copy_from_guest(vcpu, arg, callback.callback_unregister.size))
        if op.type in FIELDS or op.type in (callback.CALLBACKTYPE_sysenter, callback.CALLBACKTYPE_syscall32):
            return -errno.EINVAL
        if op.type != callback.CALLBACKTYPE_nmi:
            return -errno.ENOSYS
        vcpu.context.trap_table.pop(NMI_VECTOR, None)
        return 0
