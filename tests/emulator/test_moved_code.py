"""Code whose page gets another frame: what is executed is what the page tables say now, however they were changed."""

from __future__ import annotations

import pytest
from machine_code import boot, words

KERNEL = """
main:
    mov 88(%rsi), %r14            # the L1 table of the kernel: the fourth of its page tables
    add $3 * 4096, %r14
    lea one(%rip), %rax
    shr $12, %rax
    and $511, %eax
    lea (%r14, %rax, 8), %r13     # r13: the entry of page `one`
    mov (%r13), %r12
    mov 8(%r13), %rbx             # what it holds, and that of page `two`
    call one; show %rax
    mov %rbx, %rbp
    call change
    call one; show %rax
    call two; show %rax
    mov %r12, %rbp
    call change
    call one; show %rax
    poweroff

change:                           # let page `one` be mapped by the entry in rbp
    {change}
    ret

.data
.balign 8
update: .quad 0, 0
.balign 4096
one: mov $1, %eax
    ret
.balign 4096
two: mov $2, %eax
    ret
"""
CHANGES = {
    "update_va_mapping": "mov %rbp, %rsi; lea one(%rip), %rdi; mov $2, %edx; hcall __HYPERVISOR_update_va_mapping",
    "without a flush": "mov %rbp, %rsi; lea one(%rip), %rdi; xor %edx, %edx; hcall __HYPERVISOR_update_va_mapping",
    "its own store": "mov %rbp, (%r13)",
    "exchange": "mov %rbp, %rax; xchg %rax, (%r13)",
    "away and back": "movq $0, (%r13); mov %rbp, (%r13)",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_new_code_is_executed(change: str) -> None:
    assert words(boot(KERNEL.replace("{change}", change))) == [1, 2, 2, 1]


def test_mmu_update() -> None:
    # The machine address of the entry: the L1 table is mapped by its own entries.
    change = """
    mov %r14, %rax
    shr $12, %rax
    and $511, %eax
    mov (%r14, %rax, 8), %rax
    mov $0xffffffffff000, %rdx
    and %rdx, %rax
    mov %r13, %rdx
    and $4095, %edx
    or %rdx, %rax
    mov %rax, update(%rip)
    mov %rbp, update + 8(%rip)
    lea update(%rip), %rdi
    mov $1, %esi
    xor %edx, %edx
    mov $0x7ff0, %r10d
    hcall __HYPERVISOR_mmu_update
    """
    assert words(boot(KERNEL.replace("{change}", change))) == [1, 2, 2, 1]


ALIAS = """
main:
    mov 88(%rsi), %r14            # the L1 table of the kernel
    add $3 * 4096, %r14
    lea one(%rip), %rax
    shr $12, %rax
    and $511, %eax
    mov (%r14, %rax, 8), %rsi     # the frame of `one`, writable and not executable, in the place of `alias`
    bts $63, %rsi
    lea alias(%rip), %rdi
    mov $2, %edx
    hcall __HYPERVISOR_update_va_mapping
    show %rax
    lea alias(%rip), %rbx
    movb $0, 0x800(%rbx)          # there is no code yet
    movb $0, 0x801(%rbx)
    call one; show %rax
    call two; show %rax
    movb $3, 1(%rbx)
    movb $4, 0x101(%rbx)
    call one; show %rax
    call two; show %rax
    movb $5, 0x101(%rbx)
    movb $6, 1(%rbx)
    call two; show %rax
    call one; show %rax
    poweroff

.data
.balign 4096
one: mov $1, %eax
    ret
.org one + 0x100
two: mov $2, %eax
    ret
.balign 4096
alias: .skip 4096
"""


def test_code_that_is_written_at_another_address_is_executed() -> None:
    """The engine need not look at stores where no code is, but must where some is by another address."""
    assert words(boot(ALIAS)) == [0, 1, 2, 3, 4, 5, 6]
