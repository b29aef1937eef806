"""Stores of a guest kernel into its own L1 page tables: decoding the instruction that Xen carries out in its place.

Such a store faults, as page tables are mapped read-only. What may be stored is the memory management's business
(`mm.writable_tables`); here is what the instruction would store, and what else it does to registers and flags. The
usual instructions that change an integer in memory are there (`OPERATIONS`, cmpxchg, stos and movs); others leave the
guest with its page fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.emulator.binding import RAX, RCX, RDI, RIP, RSI
from hypervisor.emulator.operands import Operands, is_general
from hypervisor.errors import HypercallError
from hypervisor.guest_access import copy_from_guest

if TYPE_CHECKING:
    from hypervisor.emulator.plain_stores import Decoded
    from hypervisor.emulator.processor import Processor
    from hypervisor.emulator.vcpu import EmulatedVCpu

U64 = 0xFFFF_FFFF_FFFF_FFFF
CF, PF, AF, ZF, SF, DF, OF = 0x001, 0x004, 0x010, 0x040, 0x080, 0x400, 0x800
STATUS = CF | PF | AF | ZF | SF | OF

Result = tuple[int, int | None]
"""(what is to be stored, the status flags afterwards or None if they stay)."""
Operation = Callable[[int, int, int, int], Result]
"""`operation(what is there, the other operand, its bits, the flags before)`."""


def _of_result(result: int, bits: int) -> int:
    """Return the flags that any result has: zero, sign, parity."""
    flags = 0 if result else ZF
    if result >> bits - 1 & 1:
        flags |= SF
    return flags if (result & 0xFF).bit_count() & 1 else flags | PF


def _sum(old: int, other: int, bits: int, carry: int) -> Result:
    total = old + other + carry
    result = total & (1 << bits) - 1
    flags = _of_result(result, bits) | (old ^ other ^ result) & AF
    if total != result:
        flags |= CF
    if (old ^ result) & (other ^ result) & 1 << bits - 1:
        flags |= OF
    return result, flags


def _difference(old: int, other: int, bits: int, borrow: int) -> Result:
    total = old - other - borrow
    result = total & (1 << bits) - 1
    flags = _of_result(result, bits) | (old ^ other ^ result) & AF
    if total < 0:
        flags |= CF
    if (old ^ other) & (old ^ result) & 1 << bits - 1:
        flags |= OF
    return result, flags


def _keeping_carry(result: Result, flags: int) -> Result:
    stored, status = result
    assert status is not None
    return stored, status & ~CF | flags & CF


def _logic(result: int, bits: int) -> Result:
    return result, _of_result(result, bits)


def _with_carry(result: int, carry: int, flags: int) -> Result:
    return result, flags & STATUS & ~CF | carry & CF


OPERATIONS: dict[str, Operation] = {
    "mov": lambda _old, other, _bits, _flags: (other, None),
    "movnti": lambda _old, other, _bits, _flags: (other, None),
    "xchg": lambda _old, other, _bits, _flags: (other, None),
    "add": lambda old, other, bits, _flags: _sum(old, other, bits, 0),
    "xadd": lambda old, other, bits, _flags: _sum(old, other, bits, 0),
    "adc": lambda old, other, bits, flags: _sum(old, other, bits, flags & CF),
    "inc": lambda old, _other, bits, flags: _keeping_carry(_sum(old, 1, bits, 0), flags),
    "sub": lambda old, other, bits, _flags: _difference(old, other, bits, 0),
    "sbb": lambda old, other, bits, flags: _difference(old, other, bits, flags & CF),
    "dec": lambda old, _other, bits, flags: _keeping_carry(_difference(old, 1, bits, 0), flags),
    "neg": lambda old, _other, bits, _flags: _difference(0, old, bits, 0),
    "not": lambda old, _other, bits, _flags: (old ^ (1 << bits) - 1, None),
    "and": lambda old, other, bits, _flags: _logic(old & other, bits),
    "or": lambda old, other, bits, _flags: _logic(old | other, bits),
    "xor": lambda old, other, bits, _flags: _logic(old ^ other, bits),
    "bts": lambda old, bit, _bits, flags: _with_carry(old | 1 << bit, old >> bit, flags),
    "btr": lambda old, bit, _bits, flags: _with_carry(old & ~(1 << bit), old >> bit, flags),
    "btc": lambda old, bit, _bits, flags: _with_carry(old ^ 1 << bit, old >> bit, flags),
}
"""What instructions store, by name; the other operand of the last three is a bit's number."""
BIT_OPERATIONS = frozenset(("bts", "btr", "btc"))
WITHOUT_FLAGS = frozenset(("mov", "movnti", "xchg", "not"))
"""Those that neither look at the flags nor change them."""
RETURN_OLD = frozenset(("xchg", "xadd"))
"""Those that leave what was there in their other operand."""
STRING_OPERATIONS = frozenset(f"{name}{size}" for name in ("stos", "movs") for size in "bwdq")


class TableStores:
    """Carries out the instruction at which the vCPU that the processor holds has faulted."""

    def __init__(self, processor: Processor) -> None:
        self._hv = processor.hv
        self._cpu = processor.cpu
        self._tables = processor.hv.mm.writable_tables
        self._operands = Operands(processor, "writes to its page tables")

    def emulate(self, vcpu: EmulatedVCpu, address: int) -> bool:
        """Do what the instruction does that has faulted at an address; False if it is to be a page fault."""
        if not self._tables.covers(vcpu, address):
            return False
        instruction = self._operands.instruction(vcpu)
        if instruction is None or not instruction.operands:
            return False
        name = instruction.name
        if name in STRING_OPERATIONS:
            return self._string(vcpu, address, instruction, name)
        if name == "cmpxchg":
            return self._compare_exchange(vcpu, address, instruction)
        operation = OPERATIONS.get(name)
        return operation is not None and self._change(vcpu, address, instruction, name, operation)

    # -- instructions -------------------------------------------------------------------------------------------------

    def _change(self, vcpu: EmulatedVCpu, faulted: int, instruction: Decoded, name: str, operation: Operation) -> bool:
        """Something is done to what is in memory; the other operand, if there is one, is a register or a number."""
        target, *others = instruction.operands
        if name == "xchg" and not target.is_memory:
            target, others = others[0], [target]
        if not target.is_memory or not all(map(is_general, others)):
            return False
        at, size, bits = self._operands.address(instruction, target), target.size, target.size * 8
        other = self._operands.value(others[0]) if others else 0
        if name in BIT_OPERATIONS:
            if others[0].register is not None:
                # The bit may lie far away from where the operand points to.
                signed = other - (other >> bits - 1 << bits)
                at = at + (signed // bits) * size & U64
            other %= bits
        old = self._load(vcpu, faulted, at, size)
        if old is None:
            return False
        flags = 0 if name in WITHOUT_FLAGS else self._cpu.flags()
        new, status = operation(old, other & (1 << bits) - 1, bits, flags)
        if not self._tables.store(vcpu, faulted, at, size, new):
            return False
        if name in RETURN_OLD:
            assert others[0].register is not None
            self._operands.set(others[0].register, old)
        if status is not None:
            self._cpu.set_flags(flags & ~STATUS | status)
        self._cpu.q[RIP] += instruction.size
        return True

    def _compare_exchange(self, vcpu: EmulatedVCpu, faulted: int, instruction: Decoded) -> bool:
        target, source = instruction.operands
        if not target.is_memory:
            return False
        size, bits = target.size, target.size * 8
        at, accumulator = self._operands.address(instruction, target), self._cpu.q[RAX] & (1 << bits) - 1
        new = self._operands.value(source)
        found = self._tables.compare_and_store(vcpu, faulted, at, size, accumulator, new)
        if found is None:
            return False
        _, status = _difference(accumulator, found, bits, 0)
        assert status is not None
        self._cpu.set_flags(self._cpu.flags() & ~STATUS | status)
        if found != accumulator:
            self._operands.set({1: "al", 2: "ax", 4: "eax", 8: "rax"}[size], found)
        self._cpu.q[RIP] += instruction.size
        return True

    def _string(self, vcpu: EmulatedVCpu, faulted: int, instruction: Decoded, name: str) -> bool:
        """One step of a string instruction; a repeated one faults again for the next."""
        q = self._cpu.q
        size = {"b": 1, "w": 2, "d": 4, "q": 8}[name[-1]]
        repeated = instruction.is_repeated
        if instruction.address_size != 8:
            return False
        if name.startswith("stos"):
            value = q[RAX]
        else:
            try:
                value = int.from_bytes(copy_from_guest(vcpu, q[RSI], size), "little")
            except HypercallError:
                return False
        if not self._tables.store(vcpu, faulted, q[RDI], size, value):
            return False
        step = -size if self._cpu.flags() & DF else size
        q[RDI] = q[RDI] + step & U64
        if name.startswith("movs"):
            q[RSI] = q[RSI] + step & U64
        if repeated:
            q[RCX] = q[RCX] - 1 & U64
        if not repeated or not q[RCX]:
            q[RIP] += instruction.size
        return True

    def _load(self, vcpu: EmulatedVCpu, faulted: int, at: int, size: int) -> int | None:
        """Read what is in the table, if the address lies in the page that has faulted."""
        if (at ^ faulted) & ~0xFFF or (at & 0xFFF) + size > 4096:
            return None
        try:
            return int.from_bytes(copy_from_guest(vcpu, at, size), "little")
        except HypercallError:
            return None
