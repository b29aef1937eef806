"""Instructions that Xen carries out for a guest: they arrive as #GP, since the guest kernel runs in ring 3.

Whatever is not in the table stays a #GP (for example HLT and INVLPG: hypercalls do those), as does everything but port
access when user code tries it. CLI and STI need an IOPL and do nothing even then, as on a real Xen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.abi import errno
from hypervisor.callback import is_canonical
from hypervisor.emulator import msr
from hypervisor.emulator.binding import BASE_AT, EFLAGS, FS, GS, RAX, RBX, RCX, RDI, RDX, RIP, RSI
from hypervisor.emulator.cpuid import Cpuid, guest_cr4
from hypervisor.emulator.instruction import ADDRESS_SIZE, LOCK, OPERAND_SIZE, REPEAT, Instruction, decode
from hypervisor.emulator.port_io import PortIo
from hypervisor.emulator.traps import DIRECTION, GP, SINGLE_STEP, TF, UD
from hypervisor.emulator.watchpoints import is_armed, ports_hit
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest, copy_to_guest
from hypervisor.trap_ops import CR4_DE, set_debugreg
from hypervisor.vcpu import CR0_START, CR0_TS

if TYPE_CHECKING:
    from hypervisor.emulator.processor import Processor
    from hypervisor.emulator.vcpu import EmulatedVCpu

U32 = 0xFFFF_FFFF
U64 = 0xFFFF_FFFF_FFFF_FFFF
FORCED_PREFIX, CPUID_CODE = bytes.fromhex("0f0b78656e"), bytes.fromhex("0fa2")
"""ud2; "xen" before a CPUID: how a PV kernel asks Xen, and not the processor (XEN_EMULATE_PREFIX)."""
SEGMENT_BASES = {0x64: FS, 0x65: GS}
XCR0_X87 = 1


Handler = Callable[["EmulatedVCpu", Instruction], int]
"""Carries an instruction out; returns its size in bytes, 0 for a #GP, or a negative number if RIP is already set."""


class Privileged:
    """Emulation of single instructions of the vCPU that the processor has loaded."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._hv = processor.hv
        self._cpu = processor.cpu
        self._ports = PortIo(processor.hv)
        self._cpuid = Cpuid(processor.hv)
        self._hit = 0
        """Bits of DR6: why there is a #DB after the present instruction."""
        self._anywhere: dict[int, Handler] = {
            **dict.fromkeys(range(0x6C, 0x70), self._string_io),
            **dict.fromkeys((*range(0xE4, 0xE8), *range(0xEC, 0xF0)), self._port_io),
            0xFA: self._cli_sti,
            0xFB: self._cli_sti,
        }
        """What user code may do too, if it has the I/O privilege."""
        self._kernel: dict[int, Handler] = {
            **self._anywhere,
            0x0F01: self._group_7,
            0x0F06: self._clts,
            0x0F09: self._wbinvd,
            0x0F20: self._read_cr,
            0x0F21: self._read_dr,
            0x0F22: self._write_cr,
            0x0F23: self._write_dr,
            0x0F30: self._wrmsr,
            0x0F32: self._rdmsr,
        }

    def emulate(self, vcpu: EmulatedVCpu) -> bool:
        """Carry the present instruction out; False if it is to be a #GP."""
        q = self._cpu.q
        instruction = decode(self._processor.fetch(vcpu))
        if instruction is None or LOCK in instruction.prefixes:
            return False
        handler = (self._kernel if vcpu.context.in_kernel else self._anywhere).get(instruction.opcode)
        if handler is None:
            return False
        self._hit = 0
        size = handler(vcpu, instruction)
        if size > 0:
            q[RIP] = q[RIP] + size & U64
            if self._cpu.i[EFLAGS] & TF:
                self._hit |= SINGLE_STEP
        if self._hit:
            self._processor.traps.inject_debug(vcpu, self._hit)
        return size != 0

    # -- ports ------------------------------------------------------------------------------------------------------

    def _has_io_privilege(self, vcpu: EmulatedVCpu) -> bool:
        """Whether the IOPL permits port access and CLI; a kernel counts as ring 1, or 0 with architectural_iopl."""
        ring = vcpu.domain.kernel_ring if vcpu.context.in_kernel else 3
        return ring << 12 <= vcpu.context.iopl

    def _may_use_port(self, vcpu: EmulatedVCpu, port: int, width: int) -> bool:
        """Whether the guest itself permits the access: by IOPL, or by the bitmap of PHYSDEVOP_set_iobitmap."""
        if self._has_io_privilege(vcpu):
            return True
        context = vcpu.context
        if port + width > context.iobitmap_ports:
            return False
        mask = 0
        for index in (0, 1):
            try:
                byte = copy_from_guest(vcpu, context.iobitmap + (port >> 3) + index, 1)[0]
            except HypercallError:
                byte = 0xFF
            mask |= byte << 8 * index
        return not mask & (1 << width) - 1 << (port & 7)

    def _port_io(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        q, opcode = self._cpu.q, instruction.opcode
        width = 1 if not opcode & 1 else 2 if OPERAND_SIZE in instruction.prefixes else 4
        size = instruction.size
        if opcode & 8:
            port = q[RDX] & 0xFFFF
        elif instruction.rest:
            port = instruction.rest[0]
            size += 1
        else:
            return 0
        if not self._may_use_port(vcpu, port, width):
            return 0
        mask = (1 << 8 * width) - 1
        self._hit = ports_hit(vcpu.context, port, width)
        if opcode & 2:
            self._ports.write(vcpu.domain, port, width, q[RAX] & mask)
        else:
            value = self._ports.read(vcpu.domain, port, width)
            if self._ports.is_absent(vcpu.domain, port, width) and not is_armed(vcpu.context):
                self._processor.port_is_absent(vcpu, port, width)
            q[RAX] = value if width == 4 else q[RAX] & ~mask | value
        return size

    def _string_io(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        """INS and OUTS, with or without REP: at most a page at a time, then the instruction comes again."""
        q, opcode = self._cpu.q, instruction.opcode
        width = 1 if not opcode & 1 else 2 if OPERAND_SIZE in instruction.prefixes else 4
        port = q[RDX] & 0xFFFF
        if not self._may_use_port(vcpu, port, width):
            return 0
        mask = U32 if ADDRESS_SIZE in instruction.prefixes else U64
        repeats = bool(instruction.prefixes & REPEAT)
        step = -width if self._cpu.flags() & DIRECTION else width
        pointer = RSI if opcode & 2 else RDI
        left = q[RCX] & mask if repeats else 1
        for _ in range(min(left, 4096 // width)):
            try:
                self._one_of_string(vcpu, instruction, port, width, q[pointer] & mask)
            except HypercallError:
                self._processor.traps.inject_page_fault(vcpu, 0 if opcode & 2 else 2, q[pointer] & mask)
                return -1
            q[pointer] = q[pointer] + step & mask
            left -= 1
            if repeats:
                q[RCX] = left
            self._hit = ports_hit(vcpu.context, port, width)
            if self._hit:
                break
        return instruction.size if not left else -1

    def _one_of_string(self, vcpu: EmulatedVCpu, instruction: Instruction, port: int, width: int, address: int) -> None:
        if instruction.opcode & 2:
            for prefix, segment in SEGMENT_BASES.items():
                if prefix in instruction.prefixes:
                    address += self._cpu.q[BASE_AT[segment]]
            data = copy_from_guest(vcpu, address & U64, width)
            self._ports.write(vcpu.domain, port, width, int.from_bytes(data, "little"))
        else:
            copy_to_guest(vcpu, address, self._ports.read(vcpu.domain, port, width).to_bytes(width, "little"))

    def _cli_sti(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        return instruction.size if self._has_io_privilege(vcpu) else 0

    # -- control and debug registers ----------------------------------------------------------------------------------

    def _clts(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        vcpu.set_task_switched(False)
        return instruction.size

    def _wbinvd(self, _vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        # Memory here has no cache in front of it.
        return instruction.size

    def _read_cr(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        if not instruction.rest:
            return 0
        number, register = instruction.register
        context = vcpu.context
        values = {0: context.cr0, 2: context.cr2, 3: vcpu.kernel_cr3 << 12, 4: context.cr4}
        if number not in values:
            return 0
        self._cpu.q[register] = values[number]
        return instruction.size + 1

    def _write_cr(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        if not instruction.rest:
            return 0
        number, register = instruction.register
        value, context = self._cpu.q[register], vcpu.context
        if number == 0:
            if (value ^ CR0_START) & ~CR0_TS:
                return 0
            vcpu.set_task_switched(bool(value & CR0_TS))
        elif number == 2:
            self._processor.traps.set_cr2(vcpu, value)
        elif number == 3:
            try:
                self._hv.mm.load_root(vcpu, value >> 12)
            except HypercallError:
                return 0
        elif number == 4:
            context.cr4 = guest_cr4(vcpu.domain, value)
        else:
            return 0
        return instruction.size + 1

    def _read_dr(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        if not instruction.rest:
            return 0
        number, register = instruction.register
        context = vcpu.context
        if number > 7 or (number in (4, 5) and context.cr4 & CR4_DE):
            return self._invalid_opcode(vcpu)
        number += 2 if number in (4, 5) else 0
        self._cpu.q[register] = context.debugreg[number] | (context.dr7_emulated if number == 7 else 0)
        return instruction.size + 1

    def _write_dr(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        if not instruction.rest:
            return 0
        number, register = instruction.register
        error = set_debugreg(vcpu, number, self._cpu.q[register])
        if error == errno.ENODEV:
            return self._invalid_opcode(vcpu)
        if error:
            return 0
        vcpu.debugreg_changed()
        return instruction.size + 1

    def _invalid_opcode(self, vcpu: EmulatedVCpu) -> int:
        self._processor.traps.inject(vcpu, UD)
        return -1

    def _group_7(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        """XSETBV: there is no extended state to enable here, so XCR0 is what it was after a reset."""
        if instruction.rest[:1] != b"\xd1" or self._cpu.q[RCX] & U32:
            return 0
        return instruction.size + 1 if self._edx_eax() == XCR0_X87 else 0

    # -- model-specific registers and CPUID -------------------------------------------------------------------------

    def _edx_eax(self) -> int:
        q = self._cpu.q
        return (q[RDX] & U32) << 32 | q[RAX] & U32

    def _rdmsr(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        q = self._cpu.q
        number = q[RCX] & U32
        if number == msr.FS_BASE:
            value: int | None = q[BASE_AT[FS]]
        elif number == msr.GS_BASE:
            value = q[BASE_AT[GS]]
        elif number == msr.SHADOW_GS_BASE:
            value = vcpu.context.gs_base_user
        elif number == msr.TSC:
            value = self._hv.now()
        else:
            value = msr.read(number, vcpu)
        if value is None:
            if GP in vcpu.context.trap_table or not msr.exists(number):
                return 0
            # A kernel that cannot take a #GP yet gets 0 for what the processor has.
            value = 0
        q[RAX], q[RDX] = value & U32, value >> 32
        return instruction.size

    def _wrmsr(self, vcpu: EmulatedVCpu, instruction: Instruction) -> int:
        q = self._cpu.q
        number, value = q[RCX] & U32, self._edx_eax()
        if number in (msr.FS_BASE, msr.GS_BASE, msr.SHADOW_GS_BASE):
            if not is_canonical(value):
                return 0
            if number == msr.SHADOW_GS_BASE:
                vcpu.context.gs_base_user = value
            else:
                q[BASE_AT[FS if number == msr.FS_BASE else GS]] = value
            return instruction.size
        return instruction.size if msr.write(number, value, vcpu) else 0

    def forced_emulation(self, vcpu: EmulatedVCpu) -> bool:
        """Answer a CPUID with Xen's prefix; False if the instruction is another."""
        q = self._cpu.q
        code = self._processor.fetch(vcpu)
        if code[:7] != FORCED_PREFIX + CPUID_CODE:
            return False
        self.cpuid()
        q[RIP] = q[RIP] + 7 & U64
        if self._cpu.i[EFLAGS] & TF:
            self._processor.traps.inject_debug(vcpu, SINGLE_STEP)
        return True

    def cpuid(self) -> None:
        """Answer CPUID: leaf in eax, sub-leaf in ecx."""
        q, vcpu = self._cpu.q, self._processor.vcpu
        assert vcpu is not None
        q[RAX], q[RBX], q[RCX], q[RDX] = self._cpuid.leaf(vcpu, q[RAX] & U32, q[RCX] & U32)
