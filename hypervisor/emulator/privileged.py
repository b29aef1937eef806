"""Instructions that Xen carries out for a guest kernel: they arrive as #GP, since the kernel runs in ring 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.emulator.binding import RAX, RBX, RCX, RDX, RIP
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest

if TYPE_CHECKING:
    from hypervisor.emulator.processor import Processor
    from hypervisor.emulator.vcpu import EmulatedVCpu

FORCED_CPUID = bytes.fromhex("0f0b78656e0fa2")
"""ud2; "xen"; cpuid: how a PV kernel asks Xen, and not the processor (XEN_EMULATE_PREFIX)."""


class Privileged:
    """Emulation of single instructions of the vCPU that the processor has loaded."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._hv = processor.hv
        self._cpu = processor.cpu

    def emulate(self, vcpu: EmulatedVCpu) -> bool:
        """Carry the present instruction out; False if it is to be a #GP."""
        if not vcpu.context.in_kernel:
            return False
        q = self._cpu.q
        try:
            code = copy_from_guest(vcpu, q[RIP], 3)
        except HypercallError:
            return False
        if code[:2] == b"\x0f\x20":
            number, register = code[2] >> 3 & 7, code[2] & 7
            value = {0: vcpu.context.cr0, 2: vcpu.context.cr2, 3: vcpu.kernel_cr3 << 12, 4: 0x6A0}.get(number)
            if value is None:
                return False
            q[register] = value
            q[RIP] += 3
            return True
        if code[:2] == b"\x0f\x09":
            q[RIP] += 2
            return True
        return False

    def forced_emulation(self, vcpu: EmulatedVCpu) -> bool:
        """Answer a CPUID with Xen's prefix; False if the instruction is another."""
        q = self._cpu.q
        try:
            code = copy_from_guest(vcpu, q[RIP], len(FORCED_CPUID))
        except HypercallError:
            return False
        if code != FORCED_CPUID:
            return False
        self.cpuid()
        q[RIP] += len(FORCED_CPUID)
        return True

    def cpuid(self) -> None:
        """Answer CPUID."""
        q = self._cpu.q
        leaf = q[RAX] & 0xFFFFFFFF
        if leaf == 0x40000000:
            answer = (0x40000005, 0x566E6558, 0x65584D4D, 0x4D4D566E)
        elif leaf == 0x40000001:
            answer = (4 << 16 | 17, 0, 0, 0)
        else:
            answer = (0, 0, 0, 0)
        q[RAX], q[RBX], q[RCX], q[RDX] = answer
