"""Which instruction a guest stands at, and where its operands are: the decoder's (Capstone's) view of it.

Needed where Xen looks at more of an instruction than `instruction.decode` tells: at stores into page tables, and where
a breakpoint on data may have been hit. Most guests never come to either, or only with what `plain_stores` knows, so
Capstone is loaded by the first that needs it. It takes long for an instruction; so what it has said is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypervisor.emulator.binding import BASE_AT, FS, GS, RIP
from hypervisor.emulator.instruction import REPEAT
from hypervisor.emulator.plain_stores import Decoded, Operand, plain_store
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


def is_general(operand: Operand) -> bool:
    """Whether an operand is a number or a general register, as opposed to a segment register."""
    return not operand.is_memory and (operand.register is None or operand.register in REGISTERS)


class Operands:
    """The instruction at which the processor's vCPU stands, and the registers that it names."""

    def __init__(self, processor: Processor, why: str) -> None:
        """`why` says what a guest does that needs the decoder, in the sentence that tells of its absence."""
        self._processor = processor
        self._cpu = processor.cpu
        self._why = why
        self._decoder: Any = None
        self._known: dict[bytes, Decoded | None] = {}
        self._memory = self._register = 0
        """The decoder's numbers for these types of operands, once it is there."""

    def instruction(self, vcpu: EmulatedVCpu) -> Decoded | None:
        """Return the instruction at RIP, or None if it cannot be read or is none.

        Raises DeviceError, with a sentence, if there is no decoder.
        """
        code = self._processor.fetch(vcpu)
        known = self._known
        if code not in known:
            if len(known) >= KEPT:
                known.clear()
            known[code] = plain_store(code) or self._decode(code)
        return known[code]

    def _decode(self, code: bytes) -> Decoded | None:
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
            self._memory, self._register = capstone.x86.X86_OP_MEM, capstone.x86.X86_OP_REG
        found = next(self._decoder.disasm(code, 0, 1), None)
        if found is None:
            return None
        operands = tuple(map(self._operand, found.operands))
        return Decoded(found.mnemonic.split()[-1], found.size, found.addr_size, found.prefix[0] in REPEAT, operands)

    def _operand(self, operand: Any) -> Operand:
        if operand.type != self._memory:
            name = self._name(operand.reg) if operand.type == self._register else None
            return Operand(operand.size, False, name, 0 if name else operand.imm & U64)
        memory = operand.mem
        index, segment = self._name(memory.index), self._name(memory.segment)
        return Operand(
            operand.size,
            True,
            None,
            memory.disp,
            self._name(memory.base),
            index,
            memory.scale if index else 1,
            segment if segment in ("fs", "gs") else None,
        )

    def _name(self, register: int) -> str | None:
        """Return the name of a register, None for none (and for the pseudo-register that stands for none)."""
        name: str | None = self._decoder.reg_name(register) if register else None
        return None if name in ("riz", "eiz") else name

    def address(self, instruction: Decoded, operand: Operand) -> int:
        """Return the linear address of an operand in memory."""
        address = operand.number
        if operand.base in ("rip", "eip"):
            address += self._cpu.q[RIP] + instruction.size
        elif operand.base is not None:
            address += self.value_of(operand.base)
        if operand.index is not None:
            address += self.value_of(operand.index) * operand.scale
        if instruction.address_size == 4:
            address &= 0xFFFF_FFFF
        if operand.segment is not None:
            address += self._cpu.q[BASE_AT[FS if operand.segment == "fs" else GS]]
        return address & U64

    def addresses(self, instruction: Decoded) -> list[int]:
        """Return the linear addresses of all operands in memory."""
        return [self.address(instruction, operand) for operand in instruction.operands if operand.is_memory]

    def value(self, operand: Operand) -> int:
        """Return the value of an operand that is a register or a number."""
        return operand.number if operand.register is None else self.value_of(operand.register)

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
