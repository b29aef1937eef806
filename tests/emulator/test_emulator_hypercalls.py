"""Hypercalls from machine code: numbers, registers, results."""

from __future__ import annotations

from machine_code import boot, crash, words


def test_a_kernel_prints_and_powers_off() -> None:
    text = boot(
        """
main:
    say hello
    poweroff
.data
hello: .asciz "hello, world\\n"
"""
    )
    assert text == "hello, world\n"


def test_a_hypercall_keeps_all_registers_but_rax_rcx_r11() -> None:
    text = boot(
        """
main:
    mov $3, %edi
    mov $4, %esi
    mov $5, %edx
    mov $6, %r10d
    mov $7, %r8d
    mov $8, %r9d
    mov $9, %ebx
    mov $10, %ebp
    mov $11, %r12d
    stc
    mov $63, %eax
    syscall
after:
    pushf
    pop %r13
    lea after(%rip), %r14
    sub %rcx, %r14
    show %rdi; show %rsi; show %rdx; show %r10; show %r8; show %r9; show %rbx; show %rbp; show %r12
    neg %rax
    show %rax
    show %r14
    and $0x201, %r13
    show %r13
    and $0x201, %r11
    poweroff
"""
    )
    assert words(text) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 38, 0, 0x201]


def test_an_unhandled_exception_ends_the_domain() -> None:
    text = crash("main: ud2")
    assert "unhandled exception 6" in text


def test_a_pointer_to_nowhere_is_efault() -> None:
    text = boot(
        """
main:
    mov $CONSOLEIO_write, %edi
    mov $1, %esi
    mov $0x1000, %edx
    hcall __HYPERVISOR_console_io
    neg %rax
    show %rax
    poweroff
"""
    )
    assert words(text) == [14]
