"""Taking x86-64 instructions apart, as far as Xen has to look into a guest's code.

Encodings: the processor's manual, volume 2, chapter 2.
"""

from __future__ import annotations

from functools import lru_cache

import attrs

LONGEST = 15
PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
OPERAND_SIZE, ADDRESS_SIZE, LOCK, REPEAT = 0x66, 0x67, 0xF0, frozenset(b"\xf2\xf3")
REX_W = 8


@attrs.frozen
class Instruction:
    """One decoded instruction. `opcode` is 0x0fXX for two-byte opcodes; `rest` is what follows, with `size` in all."""

    opcode: int
    prefixes: frozenset[int]
    rex: int
    rest: bytes
    size: int
    """Bytes up to and including the opcode."""

    @property
    def register(self) -> tuple[int, int]:
        """Return the two register numbers of a ModRM byte: (the special one, the general one)."""
        modrm = self.rest[0]
        return modrm >> 3 & 7 | (self.rex & 4) << 1, modrm & 7 | (self.rex & 1) << 3

    @property
    def operand_size(self) -> int:
        """Return the size in bytes of an operand that is not a byte."""
        if self.rex & REX_W:
            return 8
        return 2 if OPERAND_SIZE in self.prefixes else 4


@lru_cache(maxsize=512)
def decode(code: bytes) -> Instruction | None:
    """Split an instruction of 64-bit code into its parts; None if it is cut off.

    (Linux polls a timer that is not there a hundred thousand times while it boots, with the same few instructions.)
    """
    prefixes = set()
    at = rex = 0
    while at < len(code) and code[at] in PREFIXES:
        prefixes.add(code[at])
        at += 1
    if at < len(code) and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    if at >= len(code):
        return None
    opcode = code[at]
    at += 1
    if opcode == 0x0F:
        if at >= len(code):
            return None
        opcode = 0x0F00 | code[at]
        at += 1
    return Instruction(opcode, frozenset(prefixes), rex, code[at:], at)
