"""Loading a vcpu_guest_context into a vCPU (arch-x86/xen.h), as setvcpucontext and VCPUOP_initialise do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi.layout import Layout
from hypervisor.errors import HypercallError
from hypervisor.vcpu import VPF_DOWN

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu

MAX_GDT_ENTRIES = 8192
MAX_LDT_ENTRIES = 8192
CTRLREG_CR3 = 3
CTRLREG_USER_CR3 = 1
_CR3 = f"ctrlreg[{CTRLREG_CR3}]"


def cr3_to_mfn(cr3: int) -> int:
    """Return the frame in a guest's cr3 (`xen_cr3_to_pfn`: the frame number, rotated on 32 bit only)."""
    return cr3 >> 12


_LAYOUT = xen.vcpu_guest_context
_REGISTERS: Layout = _LAYOUT.member("user_regs").type  # type: ignore[assignment]


def load_context(vcpu: VCpu, raw: bytes) -> None:
    """Take over registers, callbacks and page table root. Raises HypercallError(EINVAL) for what cannot be.

    `raw` is a copy of the structure. Only what is used is decoded: its bulk are the tables of 256 traps and the FPU.
    """

    def word(member: str) -> int:
        return int.from_bytes(raw[(at := _LAYOUT.offset(member)) : at + 8], "little")

    if word("ldt_ents") > MAX_LDT_ENTRIES or word("gdt_ents") > MAX_GDT_ENTRIES:
        raise HypercallError(errno.EINVAL)
    flags = word("flags")
    vcpu.hv.mm.load_root(vcpu, cr3_to_mfn(word(_CR3)))
    state = vcpu.context
    registers = _REGISTERS.unpack_from(raw, _LAYOUT.offset("user_regs"))
    state.rip, state.rsp = registers.rip, registers.rsp
    state.rsi, state.rdi = registers.rsi, registers.rdi
    state.rflags = registers.rflags
    state.flags = flags
    state.kernel_ss, state.kernel_sp = word("kernel_ss"), word("kernel_sp")
    state.event_callback = word("event_callback_eip")
    state.failsafe_callback = word("failsafe_callback_eip")
    state.syscall_callback = word("syscall_callback_eip")
    state.fs_base = word("fs_base")
    state.gs_base_kernel, state.gs_base_user = word("gs_base_kernel"), word("gs_base_user")
    vcpu.callbacks_changed()
    vcpu.initialised = True
    if flags & xen.VGCF_online:
        vcpu.hv.sched.unpause(vcpu, VPF_DOWN)


def save_context(vcpu: VCpu) -> bytes:
    """Return the vcpu_guest_context of a vCPU, as getvcpucontext shows it."""
    state = vcpu.context
    control = [0] * 8
    control[CTRLREG_CR3] = vcpu.kernel_cr3 << 12
    control[CTRLREG_USER_CR3] = vcpu.user_cr3 << 12
    flags = state.flags | xen.VGCF_in_kernel
    flags = flags & ~xen.VGCF_online if vcpu.pause_flags & VPF_DOWN else flags | xen.VGCF_online
    return xen.vcpu_guest_context.pack(
        flags=flags,
        user_regs={
            "rip": state.rip,
            "rsp": state.rsp,
            "rsi": state.rsi,
            "rdi": state.rdi,
            "rflags": state.rflags,
            "cs": xen.FLAT_KERNEL_CS,
            "ss": xen.FLAT_KERNEL_SS,
        },
        kernel_ss=state.kernel_ss,
        kernel_sp=state.kernel_sp,
        ctrlreg=tuple(control),
        event_callback_eip=state.event_callback,
        failsafe_callback_eip=state.failsafe_callback,
        syscall_callback_eip=state.syscall_callback,
        vm_assist=vcpu.domain.vm_assist,
        fs_base=state.fs_base,
        gs_base_kernel=state.gs_base_kernel,
        gs_base_user=state.gs_base_user,
    )
