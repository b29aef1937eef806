"""Loading a vcpu_guest_context into a vCPU (arch-x86/xen.h), as setvcpucontext and VCPUOP_initialise do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypervisor.abi import errno, xen
from hypervisor.abi.layout import Layout
from hypervisor.abi.tracepoints import VCPU_UP
from hypervisor.callback import is_canonical
from hypervisor.errors import HypercallError
from hypervisor.mm.descriptors import FIRST_RESERVED_GDT_ENTRY, MAX_LDT_ENTRIES
from hypervisor.preempt import Continuation
from hypervisor.trap_ops import set_debugreg
from hypervisor.vcpu import (
    CR0_START,
    CR0_TS,
    DR6_DEFAULT,
    DR7_DEFAULT,
    GENERAL_REGISTERS,
    SELECTORS,
    VPF_DOWN,
)
from hypervisor.version import VMASST_VALID

if TYPE_CHECKING:
    from hypervisor.vcpu import Context, VCpu

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
_TRAP = struct.Struct("<BBH4xQ")
"""One trap_info: vector, flags, cs, address."""
NR_TRAPS = 256
_NO_TRAPS = bytes(NR_TRAPS * _TRAP.size)
FXSAVE_SIZE = 512
RFLAGS_IF, RFLAGS_IOPL = 1 << 9, 3 << 12
_REGISTERS: Layout = _LAYOUT.member("user_regs").type  # type: ignore[assignment]


def load_context(vcpu: VCpu, raw: bytes) -> None:
    """Take over a vCPU's whole state (arch_set_info_guest).

    Raises HypercallError: EINVAL for what cannot be, EOPNOTSUPP if the vCPU has been set up and is to have other page
    or descriptor tables.

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
    traps = _traps(raw)
    root, user_root = cr3_to_mfn(word(_CR3)), cr3_to_mfn(word(_USER_CR3))
    if not root or not (flags & xen.VGCF_in_kernel or user_root):
        raise HypercallError(errno.EINVAL)
    if vcpu.vcpu_id == 0 and word("vm_assist") & ~VMASST_VALID:
        raise HypercallError(errno.EINVAL)
    if vcpu.initialised:
        _compare_tables(vcpu, raw, word, root, user_root)
    else:
        if vcpu.vcpu_id == 0:
            vcpu.hv.mm.set_vm_assist(vcpu.domain, word("vm_assist"))
        _load_tables(vcpu, raw, word("ldt_base"), word("ldt_ents"), word("gdt_ents"), root, user_root)
    state = vcpu.context
    _load_registers(state, registers)
    state.flags = flags
    state.in_kernel = bool(flags & xen.VGCF_in_kernel)
    state.trap_table = traps
    fpu_at = _LAYOUT.offset("fpu_ctxt")
    state.fpu_image = raw[fpu_at : fpu_at + FXSAVE_SIZE] if flags & xen.VGCF_i387_valid else b""
    state.kernel_ss, state.kernel_sp = word("kernel_ss") & 0xFFFF | 3, word("kernel_sp")
    state.event_callback = word("event_callback_eip")
    state.failsafe_callback = word("failsafe_callback_eip")
    state.syscall_callback = word("syscall_callback_eip")
    state.fs_base = word("fs_base")
    state.gs_base_kernel, state.gs_base_user = word("gs_base_kernel"), word("gs_base_user")
    state.cr0 = CR0_START & ~CR0_TS | word("ctrlreg[0]") & CR0_TS
    state.cr2 = word("ctrlreg[2]")
    _load_debug_registers(vcpu, [word(f"debugreg[{index}]") for index in range(8)])
    vcpu.callbacks_changed()
    if vcpu.vcpu_id == 0:
        vcpu.hv.time.update_wallclock(vcpu.domain)
    vcpu.registers_replaced()
    vcpu.initialised = True
    if not flags & xen.VGCF_online:
        vcpu.hv.sched.stop(vcpu, VPF_DOWN)
    elif vcpu.pause_flags & VPF_DOWN:
        vcpu.pause_flags &= ~VPF_DOWN
        if vcpu.hv.trace is not None:
            vcpu.hv.trace(vcpu.domain.domid, vcpu.vcpu_id, VCPU_UP)


def _load_registers(state: Context, registers: Any) -> None:
    """Take over the general registers and selectors; all code of a guest runs in ring 3, with interrupts on."""
    for name in GENERAL_REGISTERS:
        setattr(state, name, getattr(registers, name))
    for name in SELECTORS:
        setattr(state, name, getattr(registers, name) & 0xFFFF)
    state.cs, state.ss = state.cs | 3, state.ss | 3
    state.iopl = registers.rflags & RFLAGS_IOPL
    state.rflags = registers.rflags & ~RFLAGS_IOPL | RFLAGS_IF


def _traps(raw: bytes) -> dict[int, tuple[int, int, int]]:
    """Decode the trap table, by position (the vectors in the entries say nothing). Raises HypercallError(EINVAL)."""
    at = _LAYOUT.offset("trap_ctxt")
    traps: dict[int, tuple[int, int, int]] = {}
    if raw.startswith(_NO_TRAPS, at):
        return traps
    for vector, (_, flags, cs, address) in enumerate(_TRAP.iter_unpack(raw[at : at + NR_TRAPS * _TRAP.size])):
        if not is_canonical(address):
            raise HypercallError(errno.EINVAL)
        if address:
            traps[vector] = (flags, cs | 3, address)
    return traps


def _load_debug_registers(vcpu: VCpu, values: list[int]) -> None:
    """Take over the debug registers; a value that a guest may not have leaves the one after a reset."""
    vcpu.context.debugreg = [0, 0, 0, 0, 0, 0, DR6_DEFAULT, DR7_DEFAULT]
    vcpu.context.dr7_emulated = 0
    for index in (0, 1, 2, 3, 6, 7):
        set_debugreg(vcpu, index, values[index])
    vcpu.debugreg_changed()


def _compare_tables(vcpu: VCpu, raw: bytes, word: Callable[[str], int], root: int, user_root: int) -> None:
    """Refuse to change the tables of a vCPU that has some."""
    state = vcpu.context
    at = _LAYOUT.offset("gdt_frames")
    frames = list(memoryview(raw)[at : at + 128].cast("Q"))[: len(state.gdt_frames)]
    same = root == vcpu.kernel_cr3 and user_root == vcpu.user_cr3
    same = same and word("gdt_ents") == state.gdt_ents and frames == state.gdt_frames
    same = same and word("ldt_ents") == state.ldt_ents and (not state.ldt_ents or word("ldt_base") == state.ldt_base)
    if not same:
        raise HypercallError(errno.EOPNOTSUPP)


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
    control[0], control[2], control[4] = state.cr0, state.cr2, state.cr4
    control[CTRLREG_CR3] = vcpu.kernel_cr3 << 12
    control[CTRLREG_USER_CR3] = vcpu.user_cr3 << 12
    image = vcpu.fpu_image()
    flags = state.flags & ~(xen.VGCF_in_kernel | xen.VGCF_i387_valid)
    flags |= (xen.VGCF_in_kernel if state.in_kernel else 0) | (xen.VGCF_i387_valid if image else 0)
    flags = flags & ~xen.VGCF_online if vcpu.pause_flags & VPF_DOWN else flags | xen.VGCF_online
    registers = {name: getattr(state, name) for name in (*GENERAL_REGISTERS, *SELECTORS)}
    registers["rflags"] = state.rflags | state.iopl
    packed = bytearray(
        xen.vcpu_guest_context.pack(
            flags=flags,
            user_regs=registers,
            ldt_base=state.ldt_base,
            ldt_ents=state.ldt_ents,
            gdt_frames=(*state.gdt_frames, *(0,) * (16 - len(state.gdt_frames))),
            gdt_ents=state.gdt_ents,
            kernel_ss=state.kernel_ss,
            kernel_sp=state.kernel_sp,
            ctrlreg=tuple(control),
            debugreg=(*state.debugreg[:7], state.debugreg[7] | state.dr7_emulated),
            event_callback_eip=state.event_callback,
            failsafe_callback_eip=state.failsafe_callback,
            syscall_callback_eip=state.syscall_callback,
            vm_assist=vcpu.domain.vm_assist,
            fs_base=state.fs_base,
            gs_base_kernel=state.gs_base_kernel,
            gs_base_user=state.gs_base_user,
        )
    )
    at = _LAYOUT.offset("trap_ctxt")
    for vector, (trap_flags, cs, address) in state.trap_table.items():
        _TRAP.pack_into(packed, at + vector * _TRAP.size, vector, trap_flags, cs, address)
    at = _LAYOUT.offset("fpu_ctxt")
    packed[at : at + len(image)] = image
    return bytes(packed)
