"""Which instruction a guest stands at, and where its operands are: the decoder's (Capstone's) view of it.

Needed where Xen looks at more of an instruction than `instruction.decode` tells: at stores into page tables, and where
a breakpoint on data may have been hit. Most guests never come to either, so Capstone is loaded by the first that does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.emulator.binding import FS, GS, RIP, base_at
from hypervisor.errors import DeviceError

if TYPE_CHECKING:
    from hypervisor.emulator.processor import Processor
    from hypervisor.emulator.vcpu import EmulatedVCpu

U64 = 0xFFFF_FFFF_FFFF_FFFF
KEPT = 512
"""How many instructions are remembered, by their bytes."""


def _registers() -> dict[str, tuple[int, int, int]]:
    """Name the general registers and their parts: (number, size in bytes, shift)."""
    named: dict[str, tuple[int, int, int]] = {}
    for number, name in enumerate(("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")):
        named |= {f"r{name}": (number, 8, 0), f"e{name}": (number, 4, 0), name: (number, 2, 0)}
        low = f"{name[0]}l" if name[1] == "x" else f"{name}l"
        named[low] = (number, 1, 0)
        if name[1] == "x":
            named[f"{name[0]}h"] = (number, 1, 8)
    for number in range(8, 16):
        for suffix, size in (("", 8), ("d", 4), ("w", 2), ("b", 1)):
            named[f"r{number}{suffix}"] = (number, size, 0)
    return named


REGISTERS = _registers()


class Operands:
    """The instruction at which the processor's vCPU stands, and the registers that it names."""

    def __init__(self, processor: Processor, why: str) -> None:
        """`why` says what a guest does that needs the decoder, in the sentence that tells of its absence."""
        self._processor = processor
        self._cpu = processor.cpu
        self._why = why
        self._decoder: Any = None
        self._known: dict[bytes, Any] = {}
        self.memory = self.register = 0
        """The decoder's numbers for these types of operands, once it is there."""

    def instruction(self, vcpu: EmulatedVCpu) -> Any:
        """Return the instruction at RIP as Capstone has it (but for its address), or None if it is none.

        Raises DeviceError, with a sentence, if there is no decoder.
        """
        if self._decoder is None:
            try:
                import capstone
            except ImportError:
                raise DeviceError(
                    f"a machine-code guest {self._why}, which needs the decoder of instructions that is missing here: "
                    "pip install 'paravirt[emulator]'"
                ) from None
            self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
            self._decoder.detail = True
            self.memory, self.register = capstone.x86.X86_OP_MEM, capstone.x86.X86_OP_REG
        code = self._processor.fetch(vcpu)
        known = self._known
        if code not in known:
            if len(known) >= KEPT:
                known.clear()
            known[code] = next(self._decoder.disasm(code, 0, 1), None)
        return known[code]

    def address(self, instruction: Any, operand: Any) -> int:
        """Return the linear address of an operand in memory."""
        memory = operand.mem
        address: int = memory.disp
        if memory.base:
            name = instruction.reg_name(memory.base)
            address += self._cpu.q[RIP] + instruction.size if name in ("rip", "eip") else self.value_of(name)
        if memory.index:
            name = instruction.reg_name(memory.index)
            if name not in ("riz", "eiz"):
                address += self.value_of(name) * memory.scale
        if instruction.addr_size == 4:
            address &= 0xFFFF_FFFF
        segment = instruction.reg_name(memory.segment) if memory.segment else ""
        if segment in ("fs", "gs"):
            address += self._cpu.q[base_at(FS if segment == "fs" else GS)]
        return address & U64

    def addresses(self, instruction: Any) -> list[int]:
        """Return the linear addresses of all operands in memory."""
        return [self.address(instruction, operand) for operand in instruction.operands if operand.type == self.memory]

    def is_general(self, operand: Any) -> bool:
        """Whether an operand is a number or a general register, as opposed to a segment register."""
        return operand.type != self.register or self._decoder.reg_name(operand.reg) in REGISTERS

    def value(self, instruction: Any, operand: Any) -> int:
        """Return the value of an operand that is a register or a number."""
        if operand.type == self.register:
            return self.value_of(instruction.reg_name(operand.reg))
        value: int = operand.imm
        return value & U64

    def value_of(self, name: str) -> int:
        """Return the value of a general register, or of a part of one."""
        number, size, shift = REGISTERS[name]
        return self._cpu.q[number] >> shift & (1 << size * 8) - 1

    def set(self, name: str, value: int) -> None:
        """Set a register or a part of one; 32 bits clear the upper half."""
        number, size, shift = REGISTERS[name]
        q = self._cpu.q
        if size >= 4:
            q[number] = value
        else:
            mask = (1 << size * 8) - 1 << shift
            q[number] = q[number] & ~mask | value << shift & mask
