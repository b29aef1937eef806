"""Breakpoints on instructions fire as a processor's do."""

from machine_code import boot, words

from hypervisor.emulator.breakpoints import enabled

DISABLED_OR_DATA = [
    0x10,
    0x20,
    0x30,
    0x20,
    0,
    0,
    0,
    # 0: local; 1: global; 2: not enabled; 3: both.
    0x400 | 0b11_00_10_01,
]


def test_what_debug_registers_enable() -> None:
    registers = list(DISABLED_OR_DATA)
    assert enabled(registers) == {0x10: 1, 0x20: 2 | 8}
    # A breakpoint on writes, one of two bytes (which is none on an instruction).
    registers[7] |= 1 << 16 | 4 << 20
    assert enabled(registers) == {0x20: 8}
    assert enabled([0x10, 0, 0, 0, 0, 0, 0, 0x400]) == {}


# The handler counts in r15 what stopped at `target`, in r14 what did not.
HANDLER = """
handler:
    push %rax
    push %rbx
    lea target(%rip), %rbx
    inc %r14
    cmp %rbx, 32(%rsp)
    jne 1f
    dec %r14
    inc %r15
1:  pop %rbx
    pop %rax
    call *then(%rip)
    pop %rcx
    pop %r11
    push $0
    push %rcx
    push %r11
    push %rax
    hcall __HYPERVISOR_iret
resume:
    # Behind the return address: rcx, r11, rip, cs, rflags.
    orl $0x10000, 40(%rsp)
    ret
.data
.balign 8
table: trap 1, handler
    .quad 0, 0
"""
SET = """
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    xor %edi, %edi
    lea target(%rip), %rsi
    hcall __HYPERVISOR_set_debugreg
    mov $7, %edi
    mov $0x401, %esi
    hcall __HYPERVISOR_set_debugreg
"""


def test_a_breakpoint_in_a_loop_whose_handler_sets_rf() -> None:
    text = boot(
        SET
        + """
    mov $5, %r12d
again:
    nop
target:
    inc %r13
    dec %r12d
    jnz again
    show %r15
    show %r14
    show %r13
    mov $6, %edi
    hcall __HYPERVISOR_get_debugreg
    and $0xf, %eax
    show %rax
    poweroff
"""
        + HANDLER
        + "then: .quad resume\n"
    )
    assert words(text) == [5, 0, 5, 1]


def test_a_breakpoint_whose_handler_switches_it_off() -> None:
    text = boot(
        SET
        + """
    mov $5, %r12d
target:
    inc %r13
    dec %r12d
    jnz target
    show %r15
    show %r14
    show %r13
    poweroff
switch_off:
    push %rax
    push %rdi
    push %rsi
    mov $7, %edi
    mov $0x400, %esi
    hcall __HYPERVISOR_set_debugreg
    pop %rsi
    pop %rdi
    pop %rax
    ret
"""
        + HANDLER
        + "then: .quad switch_off\n"
    )
    assert words(text) == [1, 0, 5]


def test_rf_lets_only_the_instruction_pass_that_is_returned_to() -> None:
    """The first trap is an `int3` right before the breakpoint, whose handler sets RF: it is of no use behind that."""
    text = boot(
        SET
        + """
    int3
    nop
target:
    inc %r13
    show %r15
    show %r14
    poweroff
"""
        + HANDLER.replace("table: trap 1, handler", "table: trap 1, handler\n    trap 3, handler")
        + "then: .quad resume\n"
    )
    assert words(text) == [1, 1]


def test_an_instruction_that_faults_is_told_of_once() -> None:
    """Its page fault comes after the #DB; the handler of that maps nothing, but gives it another address."""
    text = boot(
        SET
        + """
    xor %ebp, %ebp
target:
    mov (%rbp), %r13
    show %r15
    show %r14
    poweroff
fault:
    lea table(%rip), %rbp
    inc %r14
    pop %rcx
    pop %r11
    add $8, %rsp
    push $0
    push %rcx
    push %r11
    push %rax
    hcall __HYPERVISOR_iret
"""
        + HANDLER.replace("table: trap 1, handler", "table: trap 1, handler\n    trap 14, fault")
        + "then: .quad resume\n"
    )
    assert words(text) == [1, 1]
