"""Hypercalls on a vCPU's traps, stack, segment bases and debug registers (xen.h, arch-x86/xen.h, nmi.h).

What they set lies in the vCPU's `context`. A vCPU that executes machine code is told what its processor must know at
once; for a guest in Python the state is kept and checked as Xen does, and nothing looks at it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno, nmi, xen
from hypervisor.callback import NMI_VECTOR, is_canonical
from hypervisor.guest_access import access_ok, copy_from_guest
from hypervisor.preempt import Continuation

if TYPE_CHECKING:
    from hypervisor.hypervisor import Handler, Hypervisor
    from hypervisor.vcpu import VCpu

U64 = 0xFFFF_FFFF_FFFF_FFFF
U32 = 0xFFFF_FFFF
TRAP_INFO = xen.trap_info
TI_MASK = 4
"""Flag of a trap_info: upcalls are masked on entry."""
KERNEL_RPL = 3
CR4_DE = 8

DR6_MUST_BE_0, DR6_MUST_BE_1 = 0x1000, 0xFFFF0FF0
DR7_MUST_BE_0, DR7_MUST_BE_1 = 0xD800, 0x400
DR7_GENERAL_DETECT = 1 << 13
DR7_ACTIVE = 0xFF
DR7_IO = 2
"""Kind of a breakpoint: access to an I/O port."""

HELD_BY_GUEST = frozenset({xen.SEGBASE_FS, xen.SEGBASE_GS_USER, xen.SEGBASE_GS_KERNEL})


class TrapOps:
    """The hypercalls. All of them concern the calling vCPU alone."""

    def __init__(self, hv: Hypervisor) -> None:
        self.hv = hv
        self.hypercalls: dict[int, Handler] = {
            xen.HYPERVISOR_set_trap_table: self._set_trap_table,
            xen.HYPERVISOR_stack_switch: self._stack_switch,
            xen.HYPERVISOR_fpu_taskswitch: self._fpu_taskswitch,
            xen.HYPERVISOR_set_debugreg: self._set_debugreg,
            xen.HYPERVISOR_get_debugreg: self._get_debugreg,
            xen.HYPERVISOR_iret: self._iret,
            xen.HYPERVISOR_set_segment_base: self._set_segment_base,
            xen.HYPERVISOR_nmi_op: self._nmi_op,
        }
        self._nmi_handlers: dict[int, Callable[[VCpu, int], int]] = {
            nmi.XENNMI_register_callback: self._register_nmi,
            nmi.XENNMI_unregister_callback: self._unregister_nmi,
        }

    def _set_trap_table(self, vcpu: VCpu, traps: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Take over a list of trap_info that ends with address 0; a null list forgets all handlers."""
        table = vcpu.context.trap_table
        if not traps:
            table.clear()
            return 0
        while True:
            trap = TRAP_INFO.unpack_from(copy_from_guest(vcpu, traps, TRAP_INFO.size))
            if not trap.address:
                return 0
            if not is_canonical(trap.address):
                return -errno.EINVAL
            table[trap.vector] = (trap.flags, trap.cs | KERNEL_RPL, trap.address)
            traps += TRAP_INFO.size
            if self.hv.preempt.check():
                raise Continuation(xen.HYPERVISOR_set_trap_table, traps)

    def _stack_switch(self, vcpu: VCpu, ss: int, sp: int, _a3: int, _a4: int, _a5: int) -> int:
        """Set the stack on which Xen enters the kernel when it interrupts user code. Any address is taken."""
        vcpu.context.kernel_ss = ss & 0xFFFF | KERNEL_RPL
        vcpu.context.kernel_sp = sp & U64
        return 0

    def _fpu_taskswitch(self, vcpu: VCpu, is_set: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Set or clear CR0.TS: the next FPU instruction raises #NM, or does not."""
        vcpu.set_task_switched(bool(is_set & U32))
        return 0

    def _iret(self, vcpu: VCpu, _a1: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        return vcpu.iret()

    # -- segment bases ----------------------------------------------------------------------------------------------

    def _set_segment_base(self, vcpu: VCpu, which: int, base: int, _a3: int, _a4: int, _a5: int) -> int:
        which, base = which & U32, base & U64
        if which == xen.SEGBASE_GS_USER_SEL:
            vcpu.load_user_gs(base & 0xFFFF)
            return 0
        if which not in HELD_BY_GUEST or not is_canonical(base):
            return -errno.EINVAL
        vcpu.set_segment_base(which, base)
        return 0

    # -- debug registers --------------------------------------------------------------------------------------------

    def _get_debugreg(self, vcpu: VCpu, register: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
        """Return a debug register: a signed 64-bit number, whatever it means."""
        register &= U32
        if register in (4, 5) and not vcpu.context.cr4 & CR4_DE:
            register += 2
        if register > 7 or register in (4, 5):
            return -errno.ENODEV
        value = vcpu.context.debugreg[register]
        if register == 7:
            value |= vcpu.context.dr7_emulated
        return value - (value >> 63 << 64)

    def _set_debugreg(self, vcpu: VCpu, register: int, value: int, _a3: int, _a4: int, _a5: int) -> int:
        error = set_debugreg(vcpu, register & U32, value & U64)
        if not error:
            vcpu.debugreg_changed()
        return -error

    # -- NMI --------------------------------------------------------------------------------------------------------

    def _nmi_op(self, vcpu: VCpu, cmd: int, arg: int, _a3: int, _a4: int, _a5: int) -> int:
        handler = self._nmi_handlers.get(cmd & U32)
        return handler(vcpu, arg) if handler is not None else -errno.ENOSYS

    def _register_nmi(self, vcpu: VCpu, arg: int) -> int:
        callback = nmi.xennmi_callback.unpack_from(copy_from_guest(vcpu, arg, nmi.xennmi_callback.size))
        if not is_canonical(callback.handler_address):
            return -errno.EINVAL
        vcpu.context.trap_table[NMI_VECTOR] = (TI_MASK, xen.FLAT_KERNEL_CS, callback.handler_address)
        return 0

    def _unregister_nmi(self, vcpu: VCpu, _arg: int) -> int:
        vcpu.context.trap_table.pop(NMI_VECTOR, None)
        return 0


def set_debugreg(vcpu: VCpu, register: int, value: int) -> int:
    """Set a debug register as a guest may; returns 0 or a positive errno.

    ENODEV: there is none with that number. EINVAL: reserved bits. EPERM: the value is one that Xen keeps to itself.
    """
    context = vcpu.context
    if register in (4, 5):
        if context.cr4 & CR4_DE:
            return errno.ENODEV
        register += 2
    if register <= 3:
        if not access_ok(value):
            return errno.EPERM
    elif register > 7:
        return errno.ENODEV
    elif value > U32:
        return errno.EINVAL
    elif register == 6:
        value = value & ~DR6_MUST_BE_0 | DR6_MUST_BE_1
    else:
        value = value & ~DR7_MUST_BE_0 | DR7_MUST_BE_1
        if value & DR7_GENERAL_DETECT:
            return errno.EPERM
        kinds = _io_breakpoints(value) if value & DR7_ACTIVE else 0
        if kinds and not context.cr4 & CR4_DE:
            return errno.EPERM
        context.dr7_emulated = value & kinds
        value &= ~kinds
    context.debugreg[register] = value
    return 0


def _io_breakpoints(control: int) -> int:
    """Return where in a value of DR7 the enable bits of those breakpoints are that are on I/O ports."""
    enable = 0
    for number in range(4):
        if control >> 16 + 4 * number & 3 == DR7_IO:
            enable |= 3 << 2 * number
    return enable
