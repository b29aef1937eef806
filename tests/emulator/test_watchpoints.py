"""Breakpoints on data and on I/O ports fire as a processor's do: after the instruction, with their bit in DR6."""

from __future__ import annotations

import pytest
from machine_code import boot, words

from hypervisor.emulator.watchpoints import Watch, watches

WRITE_8, READ_8, WRITE_1, WRITE_2, WRITE_4 = 0b1001, 0b1011, 0b0001, 0b0101, 0b1101
"""R/W and LEN bits of DR7."""


def control(kind: int, number: int = 0) -> int:
    return 0x400 | 2 << 2 * number | kind << 16 + 4 * number


def test_what_debug_registers_watch() -> None:
    registers = [0x1003, 0x2007, 0x3001, 0x4004, 0, 0, 0, 0]
    assert watches(registers) == ()
    registers[7] = control(WRITE_2) | control(READ_8, 1) | control(0, 2) | control(WRITE_4, 3)
    assert watches(registers) == (
        Watch(0x1002, 2, False, 1),
        Watch(0x2000, 8, True, 2),
        Watch(0x4004, 4, False, 8),
    )


# The handler prints DR6, how far behind `after` the guest is, and rcx; then it clears DR6.
KERNEL = """
main:
    mov %rsi, start_info(%rip)
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    xor %edi, %edi
    lea target(%rip), %rsi
    hcall __HYPERVISOR_set_debugreg
    mov $7, %edi
    mov $@control@, %esi
    hcall __HYPERVISOR_set_debugreg
    lea target(%rip), %rbx
    mov $0x77, %ecx
@body@
    poweroff
handler:
    push %rax
    push %rdi
    push %rsi
    push %rbx
    mov $6, %edi
    hcall __HYPERVISOR_get_debugreg
    and $0xe00f, %eax
    show %rax
    mov 48(%rsp), %rbx
    lea after(%rip), %rax
    sub %rax, %rbx
    show %rbx
    mov 32(%rsp), %rax
    show %rax
    mov $6, %edi
    mov $0xffff0ff0, %esi
    hcall __HYPERVISOR_set_debugreg
    pop %rbx
    pop %rsi
    pop %rdi
    pop %rax
return:
    pop %rcx
    pop %r11
    push $0
    push %rcx
    push %r11
    push %rax
    hcall __HYPERVISOR_iret
invalid:
    # Skip the ud2.
    addq $2, 16(%rsp)
    jmp return
fault:
    # The page fault's error code is below rip; go on behind the instruction.
    lea after(%rip), %rax
    mov %rax, 24(%rsp)
    mov 16(%rsp), %rax
    show %rax
    pop %rcx
    pop %r11
    add $8, %rsp
    push $0
    push %rcx
    push %r11
    push %rax
    hcall __HYPERVISOR_iret
.data
.balign 8
table: trap 1, handler
    trap 6, invalid
    trap 14, fault
    .quad 0, 0
start_info: .quad 0
.balign 4096
.skip 64
target: .quad 0x1122334455667788
    .quad 0
source: .quad 1, 2, 3, 4
.balign 4096
.skip 4096
"""


def run(kind: int, body: str) -> list[int]:
    return words(boot(KERNEL.replace("@control@", hex(control(kind))).replace("@body@", body)))


@pytest.mark.parametrize(
    "store",
    [
        "mov %rax, (%rbx)",
        "movb $1, 7(%rbx)",
        "mov %rax, -7(%rbx)",
        "lock incl (%rbx)",
        "xchg %eax, 4(%rbx)",
        "movups %xmm0, -8(%rbx)",
        "fxsave -64(%rbx)",
        "cmpxchg %rdx, (%rbx)",
        "movq $5, target(%rip)",
    ],
)
def test_a_store_is_told_of_when_it_is_done(store: str) -> None:
    assert run(WRITE_8, f"{store}\nafter: nop") == [1, 0, 0x77]


@pytest.mark.parametrize(
    "harmless",
    ["mov (%rbx), %rax", "mov %rax, 8(%rbx)", "mov %rax, -8(%rbx)", "mov %rax, 4096(%rbx)", "lea (%rbx), %rax"],
)
def test_other_accesses_are_not(harmless: str) -> None:
    assert run(WRITE_8, f"{harmless}\nafter: nop") == []


@pytest.mark.parametrize("load", ["mov (%rbx), %rax", "cmpb $0, 3(%rbx)", "movups (%rbx), %xmm1", "fldl (%rbx)"])
def test_a_load_is_told_of_to_who_wants_it(load: str) -> None:
    assert run(READ_8, f"{load}\nafter: nop") == [1, 0, 0x77]


@pytest.mark.parametrize(("kind", "at"), [(WRITE_1, 0), (WRITE_2, 1), (WRITE_4, 3), (WRITE_8, 7)])
def test_the_length_is_obeyed(kind: int, at: int) -> None:
    body = f"movb $1, -1(%rbx)\nmovb $1, {at + 1}(%rbx)\nmovb $1, {at}(%rbx)\nafter: nop"
    assert run(kind, body) == [1, 0, 0x77]


def test_the_stack_counts_too() -> None:
    calls = "mov %rsp, %rbp\nlea 8(%rbx), %rsp\ncall after\nafter: nop\nmov %rbp, %rsp"
    assert run(WRITE_8, calls) == [1, 0, 0x77]
    pops = "mov %rsp, %rbp\nmov %rbx, %rsp\npop %rax\nafter: mov %rbp, %rsp"
    # (The handler's own frame is pushed by Xen.)
    assert run(READ_8, pops)[:3] == [1, 0, 0x77]


def test_a_string_instruction_is_stopped_between_two_steps() -> None:
    body = "lea -2(%rbx), %rdi\nlea source(%rip), %rsi\nmov $6, %ecx\nagain: rep movsb\nafter: nop"
    # Steps 3 to 6 hit; the guest is at the instruction still, with what is left to do in rcx.
    behind = -2 & 0xFFFF_FFFF_FFFF_FFFF
    assert run(WRITE_8, body) == [1, behind, 3, 1, behind, 2, 1, behind, 1, 1, behind, 0]


def test_an_instruction_that_faults_has_hit_nothing() -> None:
    body = "mov %rbx, %rsi\nxor %edi, %edi\nmovsb\nafter: nop"
    # The page fault, by a write.
    assert run(READ_8, body) == [2]


def test_the_trap_comes_before_what_the_next_instruction_does() -> None:
    assert run(WRITE_8, "mov %rax, (%rbx)\nafter: ud2\nnop") == [1, 0, 0x77]


def test_with_a_single_step_both_are_told_at_once() -> None:
    body = "pushf\norl $0x100, (%rsp)\npopf\nmov %rax, (%rbx)\nafter: pushf\nandl $~0x100, (%rsp)\npopf\nnop\n"
    assert run(WRITE_8, body)[:3] == [0x4001, 0, 0x77]


def test_what_xen_writes_does_not_count() -> None:
    body = "mov $XENVER_compile_info, %edi\nmov %rbx, %rsi\nhcall __HYPERVISOR_xen_version\nshow %rax\nafter: nop"
    source = body.replace("XENVER_compile_info", "2")
    assert run(WRITE_8, source) == [0]


def test_another_address_of_the_same_frame_does_not_count() -> None:
    body = """
    # The target's frame, from the list of frames, into the last page's place.
    mov start_info(%rip), %rdx
    mov 0x68(%rdx), %rdx
    lea target(%rip), %rax
    sub $0xffffffff80000000, %rax
    shr $12, %rax
    mov (%rdx, %rax, 8), %rsi
    shl $12, %rsi
    or $0x67, %rsi
    lea target+4096(%rip), %rdi
    and $~0xfff, %rdi
    mov $2, %edx
    hcall __HYPERVISOR_update_va_mapping
    show %rax
    mov $0x77, %ecx
    mov %rcx, 4096(%rbx)
    mov (%rbx), %rax
    show %rax
    mov %rcx, (%rbx)
after: nop
"""
    assert run(WRITE_8, body) == [0, 0x77, 1, 0, 0x77]


PORTS = """
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    mov $6, %edi
    lea iopl(%rip), %rsi
    hcall __HYPERVISOR_physdev_op
    mov %cr4, %rax
    or $8, %rax
    mov %rax, %cr4
    mov $1, %edi
    mov $0x80, %esi
    hcall __HYPERVISOR_set_debugreg
    mov $7, %edi
    mov $0x600404, %esi
    hcall __HYPERVISOR_set_debugreg
    mov $7, %edi
    hcall __HYPERVISOR_get_debugreg
    show %rax
    lea target(%rip), %rsi
    mov $0x77, %ecx
    out %al, $0x7f
    out %al, $0x82
    out %ax, $0x7f
after: nop
    mov $0x81, %edx
    mov $3, %ecx
    rep outsb
    poweroff
"""


def test_breakpoints_on_ports_are_xens_own() -> None:
    text = KERNEL[KERNEL.index("handler:") :].replace("table: trap 1", "iopl: .quad 1\ntable: trap 1")
    printed = words(boot(PORTS + text))
    # DR7 reads back with the enable bit that Xen has put aside, and no other.
    assert printed[:4] == [0x600404, 2, 0, 0x77]
    # Then each step of the string instruction; what is left of it is in rcx.
    assert [printed[4], printed[6], printed[7], printed[9], printed[10], printed[12]] == [2, 2, 2, 1, 2, 0]


def test_code_that_changes_itself_is_seen_to_beside_a_breakpoint_and_after_it() -> None:
    """(The engine looks at stores for two reasons then.)"""
    loop = """
    mov $20, %r12d
    xor %r13d, %r13d
{name}:
    movb %r12b, {name}_patched+1(%rip)
{name}_patched: mov $0x11, %al
    movzbl %al, %eax
    add %eax, %r13d
    dec %r12d
    jnz {name}
    show %r13
"""
    body = loop.format(name="with") + "mov $7, %edi\nmov $0x400, %esi\nhcall __HYPERVISOR_set_debugreg\n"
    # Half a second, after which the hooks are gone.
    wait = "rdtsc\nmov %eax, %r14d\n1: rdtsc\nsub %r14d, %eax\ncmp $500000000, %eax\njb 1b\n"
    assert run(WRITE_8, body + wait + loop.format(name="without") + "after: nop") == [210, 210]
