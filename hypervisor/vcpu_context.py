"""Loading a vcpu_guest_context into a vCPU (arch-x86/xen.h), as setvcpucontext and VCPUOP_initialise do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.abi import errno, xen
from hypervisor.abi.layout import Layout
from hypervisor.abi.tracepoints import VCPU_UP
from hypervisor.callback import is_canonical
from hypervisor.errors import HypercallError
from hypervisor.mm.descriptors import FIRST_RESERVED_GDT_ENTRY, MAX_LDT_ENTRIES
from hypervisor.preempt import Continuation
from hypervisor.vcpu import VPF_DOWN

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu

CTRLREG_CR3 = 3
CTRLREG_USER_CR3 = 1
_CR3 = f"ctrlreg[{CTRLREG_CR3}]"
_USER_CR3 = f"ctrlreg[{CTRLREG_USER_CR3}]"
_ADDRESSES = (
    "kernel_sp",
    "fs_base",
    "gs_base_kernel",
    "gs_base_user",
    "event_callback_eip",
    "failsafe_callback_eip",
    "syscall_callback_eip",
    "ldt_base",
)
"""What must be canonical, besides rip and rsp."""


def cr3_to_mfn(cr3: int) -> int:
    """Return the frame in a guest's cr3 (`xen_cr3_to_pfn`: the frame number, rotated on 32 bit only)."""
    return cr3 >> 12


_LAYOUT = xen.vcpu_guest_context
_REGISTERS: Layout = _LAYOUT.member("user_regs").type  # type: ignore[assignment]


def load_context(vcpu: VCpu, raw: bytes) -> None:
    """Take over registers, callbacks and page table root. Raises HypercallError(EINVAL) for what cannot be.

    `raw` is a copy of the structure. Only what is used is decoded: its bulk are the tables of 256 traps and the FPU.
    Says whether the vCPU is up, but wakes nobody: that is left to VCPUOP_up or to the end of a pause, so that a vCPU
    whose VCPUOP_initialise carries VGCF_online counts as up and does not run.
    """

    def word(member: str) -> int:
        return int.from_bytes(raw[(at := _LAYOUT.offset(member)) : at + 8], "little")

    flags = word("flags")
    registers = _REGISTERS.unpack_from(raw, _LAYOUT.offset("user_regs"))
    addresses = [registers.rip, registers.rsp, *(word(member) for member in _ADDRESSES)]
    if not all(is_canonical(address) for address in addresses):
        raise HypercallError(errno.EINVAL)
    root = cr3_to_mfn(word(_CR3))
    if not root or not (flags & xen.VGCF_in_kernel or word(_USER_CR3)):
        raise HypercallError(errno.EINVAL)
    if vcpu.vcpu_id == 0 and not vcpu.initialised:
        vcpu.hv.mm.set_vm_assist(vcpu.domain, word("vm_assist"))
    _load_tables(vcpu, raw, word("ldt_base"), word("ldt_ents"), word("gdt_ents"), root, cr3_to_mfn(word(_USER_CR3)))
    state = vcpu.context
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
    if vcpu.vcpu_id == 0:
        vcpu.hv.time.update_wallclock(vcpu.domain)
    vcpu.initialised = True
    if not flags & xen.VGCF_online:
        vcpu.hv.sched.stop(vcpu, VPF_DOWN)
    elif vcpu.pause_flags & VPF_DOWN:
        vcpu.pause_flags &= ~VPF_DOWN
        if vcpu.hv.trace is not None:
            vcpu.hv.trace(vcpu.domain.domid, vcpu.vcpu_id, VCPU_UP)


def _load_tables(
    vcpu: VCpu, raw: bytes, ldt_base: int, ldt_ents: int, gdt_ents: int, root: int, user_root: int
) -> None:
    """Take over the descriptor tables and the page tables. With an error no descriptor table is left.

    A kernel's root that was taken stays when that of user mode is refused, or its check interrupted (Restart).
    """
    mm = vcpu.hv.mm
    descriptors = mm.descriptors
    if ldt_ents > MAX_LDT_ENTRIES or ldt_base & 0xFFF or gdt_ents > FIRST_RESERVED_GDT_ENTRY:
        raise HypercallError(errno.EINVAL)
    if gdt_ents:
        at = _LAYOUT.offset("gdt_frames")
        descriptors.set_gdt(vcpu, list(memoryview(raw)[at : at + 128].cast("Q")), gdt_ents)
    try:
        mm.load_root(vcpu, root)
        if user_root:
            mm.load_user_root(vcpu, user_root)
        descriptors.set_ldt(vcpu, ldt_base, ldt_ents)
    except (HypercallError, Continuation):
        descriptors.set_gdt(vcpu, [], 0)
        raise


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
        ldt_base=state.ldt_base,
        ldt_ents=state.ldt_ents,
        gdt_frames=(*state.gdt_frames, *(0,) * (16 - len(state.gdt_frames))),
        gdt_ents=state.gdt_ents,
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
