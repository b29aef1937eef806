"""How Xen enters a guest that executes machine code, and how the guest returns: frames on its stack.

An entry pushes what the processor's own interrupt frame would hold, and rcx and r11, which SYSCALL and SYSRET use up:

    rcx, r11, [error code,] rip, cs and the saved upcall mask (bits 32-39), rflags, rsp, ss

The stack is the one in use if the guest was in kernel mode, else the one of HYPERVISOR_stack_switch, aligned to 16.
RFLAGS.IF in the frame says whether upcalls were unmasked; the processor's own IF is always on. A frame that cannot be
pushed, or an entry point that is 0, is the end of the domain. Facts: arch-x86/xen.h, arch-x86/xen-x86_64.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.abi import xen
from hypervisor.abi.tracepoints import UPCALL
from hypervisor.crash_dump import say_unhandled
from hypervisor.emulator.binding import BASE_AT, CS, GS, R11, RAX, RCX, RIP, RSP, SELECTOR_AT, SS
from hypervisor.errors import HypercallError
from hypervisor.guest_access import XEN_VIRT_END, XEN_VIRT_START, copy_from_guest, copy_to_guest

if TYPE_CHECKING:
    from hypervisor.emulator.processor import Processor
    from hypervisor.emulator.vcpu import EmulatedVCpu

U64 = 0xFFFF_FFFF_FFFF_FFFF
DE, DB, NMI, BP, OF, BR, UD, NM, DF, _, TS, NP, STACK, GP, PF, _, MF, AC, MC, XM = range(20)
HAS_ERROR_CODE = frozenset({DF, TS, NP, STACK, GP, PF, AC})
ERROR_IDT = 2
"""Bit of an error code: it is about an interrupt descriptor."""

TF, IF, DIRECTION, IOPL = 1 << 8, 1 << 9, 1 << 10, 3 << 12
NT, RF, VM, ALIGN = 1 << 14, 1 << 16, 1 << 17, 1 << 18
LEAVE = ALIGN | VM | RF | NT | TF
"""What a processor clears of RFLAGS when it takes a trap."""
NO_FAULTS = frozenset({DB, NMI, BP, OF})
"""Exceptions behind an instruction, and #DB, with which RF is not set in the frame."""
FRAME_5 = struct.Struct("<7Q")
FRAME_6 = struct.Struct("<8Q")
FAILSAFE_FRAME = struct.Struct("<11Q")
IRET_FRAME = struct.Struct("<9Q")

SINGLE_STEP = 1 << 14
"""DR6.BS."""
DR6_CAUSES = 0xE00F
"""Single step, task switch, access to debug registers, and the four breakpoints."""
MASK_BYTE = 1
TI_MASK = 4
"""Bit of `trap_info.flags`: upcalls are to be masked on entry (TI_GET_IF)."""
CR2_IN_INFO = xen.vcpu_info.offset("arch.cr2")


class Traps:
    """Entries into, and returns of, the vCPU that the processor has loaded."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._hv = processor.hv
        self._cpu = processor.cpu
        self._memory = processor.hv.memory

    # -- Xen enters the guest ---------------------------------------------------------------------------------------

    def bounce(
        self, vcpu: EmulatedVCpu, target: int, rip: int, flags: int, error: int | None = None, mask: bool = False
    ) -> bool:
        """Push a frame and go to `target`; False if the domain did not survive that.

        `rip` and `flags` are what the frame says; the other registers are taken from the CPU.
        """
        cpu, memory = self._cpu, self._memory
        q, i = cpu.q, cpu.i
        context = vcpu.context
        code, stack_pointer, stack_segment = i[SELECTOR_AT[CS]], q[RSP], i[SELECTOR_AT[SS]]
        if context.in_kernel:
            code &= 0xFFFC
            sp = stack_pointer & ~0xF
        else:
            self._processor.enter_kernel(vcpu)
            sp = context.kernel_sp & ~0xF
        if XEN_VIRT_START < sp <= XEN_VIRT_END + 12 * 8:
            return self._processor.crash(vcpu, f"its stack pointer {sp:#x} is in Xen's address range")
        info = vcpu.info
        saved_mask = memory.i[info >> 2] >> 8 & 0xFF
        pushed = flags & ~(IF | IOPL)
        if vcpu.resumes_at == rip:
            pushed |= RF
        if not saved_mask:
            pushed |= IF
        if vcpu.domain.vm_assist >> xen.VMASST_TYPE_architectural_iopl & 1:
            pushed |= context.iopl
        words = (rip, code | saved_mask << 32, pushed, stack_pointer, stack_segment)
        if error is None:
            frame = FRAME_5.pack(q[RCX], q[R11], *words)
        else:
            frame = FRAME_6.pack(q[RCX], q[R11], error, *words)
        sp = sp - len(frame) & U64
        try:
            copy_to_guest(vcpu, sp, frame)
        except HypercallError:
            return self._processor.crash(vcpu, f"its stack at {sp:#x} is not mapped")
        if not target:
            return self._processor.crash(vcpu, "there is no handler for what happened")
        if mask and not saved_mask:
            memory.b[info + MASK_BYTE] = 1
        self._enter(vcpu, target, sp, flags)
        return True

    def deliver_event(self, vcpu: EmulatedVCpu, rip: int, flags: int) -> bool:
        """Enter the event callback; upcalls are masked on the way."""
        trace = self._hv.trace
        if trace is not None:
            trace(vcpu.domain.domid, vcpu.vcpu_id, UPCALL, vcpu.ready_bits())
        return self.bounce(vcpu, vcpu.context.event_callback, rip, flags, mask=True)

    def inject(self, vcpu: EmulatedVCpu, vector: int, error: int = 0) -> bool:
        """Let the guest take an exception at the present instruction; False if it cannot."""
        self._hv.sched.charged += self._hv.sched.costs.fault
        entry = vcpu.context.trap_table.get(vector)
        cpu = self._cpu
        rip = cpu.q[RIP]
        if entry is None or not entry[2]:
            code = f", error code {error:#x}" if vector in HAS_ERROR_CODE else ""
            say_unhandled(vcpu, vector, error if vector in HAS_ERROR_CODE else 0)
            return self._processor.crash(vcpu, f"unhandled exception {vector} at {rip:#x}{code}")
        code_or_none = error if vector in HAS_ERROR_CODE else None
        flags = cpu.flags()
        if vector not in NO_FAULTS and self._processor.breakpoints.of(vcpu):
            # The instruction is begun again; a breakpoint at it has been told already.
            flags |= RF
        return self.bounce(vcpu, entry[2], rip, flags, code_or_none, bool(entry[0] & TI_MASK))

    def deliver_nmi(self, vcpu: EmulatedVCpu, rip: int, flags: int) -> bool:
        """Enter the NMI handler, once until its iret; without a handler the NMI is lost."""
        entry = vcpu.context.trap_table.get(NMI)
        vcpu.nmi_pending = False
        if entry is None:
            return True
        vcpu.nmi_masked = True
        return self.bounce(vcpu, entry[2], rip, flags, mask=bool(entry[0] & TI_MASK))

    def debug(self, vcpu: EmulatedVCpu, status: int) -> bool:
        """Take a #DB of the processor's: a debugger's, if there is one, or the guest's own."""
        vcpu.context.debugreg[6] |= status & DR6_CAUSES
        return self._hv.domain_ops.pause_for_debugger(vcpu, DB) or self.inject(vcpu, DB)

    def breakpoint(self, vcpu: EmulatedVCpu) -> bool:
        """Take an `int3`, likewise."""
        return self._hv.domain_ops.pause_for_debugger(vcpu, BP) or self.inject(vcpu, BP)

    def inject_debug(self, vcpu: EmulatedVCpu, status: int) -> bool:
        """Let the guest take a #DB that Xen has found; what DR6 says is added to its own."""
        vcpu.context.debugreg[6] |= status & DR6_CAUSES
        return self.inject(vcpu, DB)

    def inject_page_fault(self, vcpu: EmulatedVCpu, error: int, address: int) -> bool:
        """Let the guest take a page fault; the address goes into cr2 and vcpu_info."""
        error &= ~4
        if not vcpu.context.in_kernel:
            error |= 4
        self.set_cr2(vcpu, address)
        return self.inject(vcpu, PF, error)

    def set_cr2(self, vcpu: EmulatedVCpu, address: int) -> None:
        """Set CR2, and its copy in vcpu_info."""
        vcpu.context.cr2 = address
        self._memory.q[vcpu.info + CR2_IN_INFO >> 3] = address

    def system_call(self, vcpu: EmulatedVCpu, rip: int, flags: int) -> bool:
        """Pass a SYSCALL of user code on to the guest kernel."""
        context = vcpu.context
        target = context.syscall_callback
        if not target:
            return self.inject(vcpu, UD)
        # SYSCALL itself loads flat segments, and that is what the frame shows.
        self._cpu.i[SELECTOR_AT[CS]] = xen.FLAT_KERNEL_CS
        self._cpu.i[SELECTOR_AT[SS]] = xen.FLAT_KERNEL_SS
        masks = bool(context.flags & xen.VGCF_syscall_disables_events)
        done = self.bounce(vcpu, target, rip, flags, mask=masks)
        if done and flags & DIRECTION:
            self._cpu.set_flags(flags & ~(DIRECTION | LEAVE))
        return done

    # -- the guest returns ------------------------------------------------------------------------------------------

    def iret(self, vcpu: EmulatedVCpu) -> None:
        """Carry out HYPERVISOR_iret: take the registers from the frame at rsp (struct iret_context)."""
        cpu, context = self._cpu, vcpu.context
        q, i = cpu.q, cpu.i
        try:
            frame = IRET_FRAME.unpack(copy_from_guest(vcpu, q[RSP], IRET_FRAME.size))
        except HypercallError:
            self._processor.crash(vcpu, "its iret frame is not mapped")
            return
        rax, r11, rcx, flags, rip, code, rflags, rsp, stack = frame
        if code & 3 == 3:
            if not vcpu.user_cr3:
                self._processor.crash(vcpu, "it returns to user mode without page tables for that")
                return
            self._processor.enter_user(vcpu)
        if vcpu.domain.vm_assist >> xen.VMASST_TYPE_architectural_iopl & 1:
            context.iopl = rflags & IOPL
        self._memory.b[vcpu.info + MASK_BYTE] = not rflags & IF
        vcpu.nmi_masked = False
        q[RAX] = rax
        if flags & xen.VGCF_in_syscall:
            # Back by SYSRET, which takes rip and rflags from these.
            q[R11], q[RCX] = rflags, rip
        else:
            q[R11], q[RCX] = r11, rcx
        q[RIP], q[RSP] = rip, rsp
        # The engine never clears RF; so it does not get to see it.
        vcpu.resumes_at = rip if rflags & RF and self._processor.breakpoints.of(vcpu) else -1
        self._processor.return_with(rflags & 0xFFFFFFFF & ~(IOPL | VM | RF) | IF | 2)
        segments = self._processor.segments
        code, stack = code & 0xFFFF | 3, stack & 0xFFFF | 3
        # What the processor refuses to return to is a #GP at the instruction to come, with the bad selector.
        if i[SELECTOR_AT[CS]] != code and not segments.load_code(vcpu, code):
            i[SELECTOR_AT[CS]] = code
            self.inject(vcpu, GP, code & ~3)
        elif i[SELECTOR_AT[SS]] != stack and not segments.load_stack(vcpu, stack):
            i[SELECTOR_AT[SS]] = stack
            self.inject(vcpu, GP, stack & ~3)

    def failsafe(self, vcpu: EmulatedVCpu, selectors: dict[str, int]) -> bool:
        """Enter the failsafe callback: a selector with which the vCPU was to go on could not be loaded.

        The frame is that of an event with the data selectors as they were to be: rcx, r11, ds, es, fs, gs, rip, ...
        """
        cpu, memory, context = self._cpu, self._memory, vcpu.context
        q, i = cpu.q, cpu.i
        flags, rip, stack_pointer = cpu.flags(), q[RIP], q[RSP]
        code, stack_segment = i[SELECTOR_AT[CS]], i[SELECTOR_AT[SS]]
        saved_mask = memory.b[vcpu.info + MASK_BYTE]
        pushed = flags & ~(IF | IOPL) | (0 if saved_mask else IF)
        if vcpu.domain.vm_assist >> xen.VMASST_TYPE_architectural_iopl & 1:
            pushed |= context.iopl
        if context.in_kernel:
            code &= 0xFFFC
            sp = stack_pointer & ~0xF
        else:
            self._processor.enter_kernel(vcpu)
            sp = context.kernel_sp & ~0xF
        data = (selectors["ds"], selectors["es"], selectors["fs"], selectors["gs"])
        words = (rip, code | saved_mask << 32, pushed, stack_pointer, stack_segment)
        frame = FAILSAFE_FRAME.pack(q[RCX], q[R11], *data, *words)
        sp = sp - len(frame) & U64
        try:
            copy_to_guest(vcpu, sp, frame)
        except HypercallError:
            return self._processor.crash(vcpu, f"its stack at {sp:#x} is not mapped for the failsafe frame")
        if context.flags & xen.VGCF_failsafe_disables_events:
            memory.b[vcpu.info + MASK_BYTE] = 1
        self._enter(vcpu, context.failsafe_callback, sp, flags)
        return True

    def _enter(self, vcpu: EmulatedVCpu, target: int, sp: int, flags: int) -> None:
        """Go to an entry point of the guest kernel, on its flat segments."""
        i, q = self._cpu.i, self._cpu.q
        if i[SELECTOR_AT[CS]] != xen.FLAT_KERNEL_CS:
            self._processor.segments.load_code(vcpu, xen.FLAT_KERNEL_CS)
        if i[SELECTOR_AT[SS]] != xen.FLAT_KERNEL_SS:
            self._processor.segments.load_stack(vcpu, xen.FLAT_KERNEL_SS)
        if flags & LEAVE:
            self._cpu.set_flags(flags & ~LEAVE)
        q[RSP], q[RIP] = sp, target


def swap_gs(vcpu: EmulatedVCpu, q: memoryview, *, to_kernel: bool) -> None:
    """Exchange the GS bases of user and kernel mode, as SWAPGS does."""
    context, at = vcpu.context, BASE_AT[GS]
    if to_kernel:
        context.gs_base_user, q[at] = q[at], context.gs_base_kernel
    else:
        context.gs_base_kernel, q[at] = q[at], context.gs_base_user
