"""Stores of a guest kernel into its own page tables: every kind of instruction, as the processor would do it."""

from __future__ import annotations

import itertools

import pytest
from machine_code import boot, words

pytest.importorskip("capstone", reason="the emulator extra is not installed")

PRELUDE = """
.macro fault_ends
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
.endm

main:
    mov %rsi, %r15
    fault_ends
    # r14: the L1 table of the kernel, which the builder maps read-only; r13: the entry of `page` in it.
    mov 88(%r15), %r14
    add $3 * 4096, %r14
    lea page(%rip), %rax
    shr $12, %rax
    and $511, %eax
    lea (%r14, %rax, 8), %r13
    mov (%r13), %r12
"""
AFTER = """
    poweroff
fault:
    say refused
    poweroff
.data
refused: .asciz "fault "
table:
    trap 14, fault
    .quad 0, 0
.balign 4096
page: .skip 4096
second: .skip 4096
"""


def run(code: str) -> list[int]:
    return words(boot(PRELUDE + code + AFTER))


def test_plain_stores() -> None:
    shows = """
    xor %eax, %eax
    mov %rax, (%r13)
    show (%r13)
    mov %r12, (%r13)
    mov (%r13), %rax
    sub %r12, %rax
    show %rax
    movl $0, (%r13)
    movb $5, (%r13)
    mov (%r13), %rax
    and $0xfff, %eax
    show %rax
    """
    # The last one is frame 0, I/O memory that is mapped uncached; the upper half still has Xen's mark for the kernel's.
    assert run(shows.replace("show (%r13)", "mov (%r13), %rbx; show %rbx")) == [0, 0, 0x1D]


@pytest.mark.parametrize(
    ("instruction", "stored", "carry", "rax"),
    [
        ("mov $0x600, %eax; xchg %rax, (%r13)", 0x600, 0, 0xA00),
        ("mov $0x100, %eax; lock xadd %rax, (%r13)", 0xB00, 0, 0xA00),
        ("mov $0x100, %eax; add %rax, (%r13)", 0xB00, 0, 0x100),
        ("mov $0xC00, %eax; sub %rax, (%r13)", -0x200, 1, 0xC00),
        ("mov $0x600, %eax; lock or %eax, (%r13)", 0xE00, 0, 0x600),
        ("mov $0x600, %eax; and %rax, (%r13)", 0x200, 0, 0x600),
        ("mov $0x600, %eax; xor %ax, (%r13)", 0xC00, 0, 0x600),
        ("mov $7, %eax; lock btsq $10, (%r13)", 0xE00, 0, 7),
        ("mov $9, %eax; lock btr %rax, (%r13)", 0x800, 1, 9),
        ("mov $7, %eax; btcq $11, (%r13)", 0x200, 1, 7),
        ("mov $0xA00, %eax; mov $0x400, %ecx; lock cmpxchg %rcx, (%r13)", 0x400, 0, 0xA00),
        ("mov $0xC00, %eax; mov $0x400, %ecx; lock cmpxchg %rcx, (%r13)", 0xA00, 0, 0xA00),
        ("mov $0x800, %eax; mov $0x400, %ecx; lock cmpxchg %rcx, (%r13)", 0xA00, 1, 0xA00),
        ("mov $7, %eax; movb $0xc, 1(%r13)", 0xC00, 0, 7),
        ("mov $0xc00, %eax; mov %r13, %rdi; mov $1, %ecx; rep stosq", 0xC00, 0, 0xC00),
        ("mov $7, %eax; lea words_(%rip), %rsi; mov %r13, %rdi; movsq", 0x400, 0, 7),
        ("mov $7, %eax; movq $0x600, %gs:(%r13)", 0x600, 0, 7),
    ],
)
def test_instructions(instruction: str, stored: int, carry: int, rax: int) -> None:
    """What is stored in an entry that is not present and held 0xA00; its bit 0 is left out of what is compared."""
    code = f"""
    mov $0xA00, %ebx
    mov %rbx, (%r13)
    clc
    {instruction}
    setc %bl
    movzx %bl, %ebx
    mov (%r13), %rdx
    and $-2, %rdx
    show %rdx
    show %rbx
    show %rax
    poweroff
.balign 8
words_: .quad 0x400
    """
    assert run(code) == [stored & 0xFFFFFFFFFFFFFFFF & ~1, carry, rax]


def test_repeated_stores() -> None:
    code = """
    lea (%r14), %rdi
    add $500 * 8, %rdi
    mov $0x20, %eax
    mov $3, %ecx
    cld
    rep stosq
    mov 500 * 8(%r14), %rbx; show %rbx
    mov 502 * 8(%r14), %rbx; show %rbx
    mov 503 * 8(%r14), %rbx; and $1, %rbx; show %rbx
    show %rcx
    sub %r14, %rdi
    show %rdi
    """
    assert run(code) == [0x20, 0x20, 1, 0, 503 * 8]


def test_a_mapping_changes_at_once() -> None:
    # The entry of `page` is made to name the frame of `second`, and back.
    code = """
    movq $11, page(%rip)
    movq $22, second(%rip)
    mov 8(%r13), %rax
    mov %rax, (%r13)
    mov page(%rip), %rbx
    show %rbx
    xchg %r12, (%r13)
    mov page(%rip), %rbx
    show %rbx
    """
    assert run(code) == [22, 11]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_higher_tables_are_never_written(level: int) -> None:
    assert boot(PRELUDE + f"mov 88(%r15), %rax; movq $0, {level * 4096 + 8 * 5}(%rax); ud2" + AFTER) == "fault "


@pytest.mark.parametrize(
    "instruction",
    [
        "mov %ds, (%r13)",
        "mov $0xfffffff003, %rcx; shl $12, %rcx; or $3, %rcx; mov %rcx, (%r13)",
        "movl $3, 2(%r13)",
        "movups %xmm0, (%r13)",
    ],
)
def test_what_is_refused(instruction: str) -> None:
    """A frame that the domain may not map, and stores that Xen does not do for a guest."""
    assert boot(PRELUDE + f"{instruction}; ud2" + AFTER) == "fault "


def test_all_tables_are_there() -> None:
    from hypervisor.emulator.operands import REGISTERS
    from hypervisor.emulator.table_stores import OPERATIONS, _difference, _sum

    assert len(REGISTERS) == 8 * 4 + 4 + 8 * 4
    assert set(OPERATIONS) >= {"mov", "xchg", "and", "or", "btr"}
    for old, other in itertools.product((0, 1, 0x7F, 0x80, 0xFF), repeat=2):
        assert _sum(old, other, 8, 0)[0] == (old + other) % 256
        assert _difference(old, other, 8, 0)[0] == (old - other) % 256


def test_a_single_step_traps_behind_the_store() -> None:
    code = """
    xor %eax, %eax
    lea steps(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    pushf
    orl $0x100, (%rsp)
    popf
    movq $0, (%r13)
behind:
    ud2
step:
    mov 16(%rsp), %rax
    lea behind(%rip), %rcx
    sub %rcx, %rax
    show %rax
    mov (%r13), %rbx
    show %rbx
    poweroff
.balign 8
steps:
    trap 1, step
    .quad 0, 0
    """
    assert run(code) == [0, 0]
