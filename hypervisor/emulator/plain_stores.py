"""The stores into page tables that kernels are full of, decoded here: moves, exchanges, and the clearing of bits.

All others are left to the decoder (`operands`). That is a large library, and a guest which uses no others, as Linux,
need not wait for its being loaded. Encodings: the processor's manual, volume 2, chapter 2 (ModRM and SIB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from hypervisor.emulator.instruction import LOCK, OPERAND_SIZE, decode

if TYPE_CHECKING:
    from hypervisor.emulator.instruction import Instruction

MEANINGLESS = frozenset(b"\x2e\x36\x3e")
"""Segment prefixes that 64-bit code ignores. Linux has one in the place of LOCK while it has one processor."""
_64 = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", *(f"r{number}d" for number in range(8, 16)))
_16 = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di", *(f"r{number}w" for number in range(8, 16)))
NAMES = {8: _64, 4: _32, 2: _16}
"""Names of the general registers, by operand size and number."""
MOV, XCHG, AND_BYTE, AND, AND_SHORT = 0x89, 0x87, 0x80, 0x81, 0x83
AND_NUMBER = 4
"""The middle bits of ModRM that make an AND of the three last ones."""
_SIB, _DISPLACEMENT = 4, 5
"""Numbers of registers that mean something else in ModRM and SIB: an SIB byte follows; no register, but 32 bits."""


@attrs.frozen
class Operand:
    """One operand: memory, or a register, or a number."""

    size: int
    """In bytes."""
    is_memory: bool
    register: str | None
    """Its name, if it is one."""
    number: int
    """The number, if it is one; of memory, what is added to the registers that its address is made of."""
    base: str | None = None
    index: str | None = None
    scale: int = 1
    segment: str | None = None
    """`fs` or `gs`: the bases of the others are zero."""


@attrs.frozen
class Decoded:
    """What is to be known of an instruction, wherever it stands."""

    name: str
    """The mnemonic, without prefixes."""
    size: int
    """In bytes."""
    address_size: int
    is_repeated: bool
    operands: tuple[Operand, ...]


def plain_store(code: bytes) -> Decoded | None:
    """Decode an instruction if it is one of these, and complete; else None."""
    found = decode(code)
    if found is None or found.prefixes - MEANINGLESS - {LOCK, OPERAND_SIZE}:
        return None
    if found.opcode in (MOV, XCHG):
        if found.opcode == MOV and LOCK in found.prefixes:
            return None
        size, length = found.operand_size, 0
    elif found.opcode in (AND_BYTE, AND, AND_SHORT) and found.rest and found.rest[0] >> 3 & 7 == AND_NUMBER:
        size = 1 if found.opcode == AND_BYTE else found.operand_size
        length = min(size, 4) if found.opcode == AND else 1
    else:
        return None
    place = _memory(found, size)
    if place is None:
        return None
    memory, at = place
    end = at + length
    if end > len(found.rest):
        return None
    if length:
        number = int.from_bytes(found.rest[at:end], "little", signed=True) & (1 << 8 * size) - 1
        return Decoded("and", found.size + end, 8, False, (memory, Operand(size, False, None, number)))
    source = Operand(size, False, NAMES[size][found.register[0]], 0)
    return Decoded("mov" if found.opcode == MOV else "xchg", found.size + end, 8, False, (memory, source))


def _memory(found: Instruction, size: int) -> tuple[Operand, int] | None:
    """Return the operand in memory that ModRM names, and where in `rest` it ends; None if there is none."""
    rest, rex = found.rest, found.rex
    if not rest or rest[0] >> 6 == 3:
        return None
    mod, low, at = rest[0] >> 6, rest[0] & 7, 1
    index, scale = None, 1
    if low == _SIB:
        if len(rest) < 2:
            return None
        sib, at = rest[1], 2
        low = sib & 7
        number = sib >> 3 & 7 | (rex & 2) << 2
        if number != _SIB:
            index, scale = _64[number], 1 << (sib >> 6)
        base = None if low == _DISPLACEMENT and not mod else _64[low | (rex & 1) << 3]
    elif low == _DISPLACEMENT and not mod:
        base = "rip"
    else:
        base = _64[low | (rex & 1) << 3]
    length = 4 if mod == 2 or (low == _DISPLACEMENT and not mod) else mod
    if at + length > len(rest):
        return None
    offset = int.from_bytes(rest[at : at + length], "little", signed=True)
    return Operand(size, True, None, offset, base, index, scale), at + length
