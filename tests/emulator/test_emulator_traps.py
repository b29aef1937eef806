"""Exceptions, events and system calls: the frames that a kernel finds on its stack, and the way back."""

from __future__ import annotations

import pytest
from machine_code import boot, crash, words

FRAME = """
# Handlers note their vector; then the frame is shown: error code, rip less `fault`, cs slot, rflags & IF, rsp & 15.
.macro handler number, has_error
handler\\number:
    mov $\\number, %r15d
    pop %r12                       # rcx
    pop %r13                       # r11
    xor %ebx, %ebx
.if \\has_error
    pop %rbx
.endif
    jmp report
.endm
report:
    show %r15
    show %rbx
    mov (%rsp), %rax
    lea fault(%rip), %rcx
    sub %rcx, %rax
    show %rax
    mov 8(%rsp), %rax
    show %rax
    mov 16(%rsp), %rax
    and $0x200, %eax
    show %rax
    mov 24(%rsp), %rax             # rsp at the fault
    sub %rbp, %rax
    show %rax
    mov 32(%rsp), %rax
    show %rax
    poweroff
handler 0, 0
handler 3, 0
handler 6, 0
handler 13, 1
handler 14, 1
.data
.balign 8
table: trap 0, handler0
    trap 3, handler3
    trap 6, handler6
    trap 13, handler13, 4
    trap 14, handler14
    .quad 0, 0
.text
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    mov %rsp, %rbp
"""
CASES = {
    "divide error": ("xor %eax, %eax\n fault: div %eax", 0, 0, 0),
    "breakpoint": ("fault: int3", 3, 0, 1),
    "invalid opcode": ("fault: ud2", 6, 0, 0),
    "non-canonical address": ("movabs $0x800000000000, %rax\n fault: mov (%rax), %rbx", 13, 0, 0),
    "privileged instruction": ("fault: hlt", 13, 0, 0),
    "read of nothing": ("mov $0x1000, %eax\n fault: mov (%rax), %ebx", 14, 0, 0),
    "write to nothing": ("mov $0x1000, %eax\n fault: mov %ebx, (%rax)", 14, 2, 0),
    "write to the M2P": ("movabs $0xffff800000000000, %rax\n fault: mov %ebx, (%rax)", 14, 3, 0),
    "jump to nothing": ("mov $0x1000, %eax\n fault: jmp *%rax", 14, 0x10, 0x1000),
    "software interrupt without a handler": ("fault: int $0x90", 13, 0x902, 0),
    "system call gate without a handler": ("fault: int $0x80", 13, 0x402, 0),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_exception_pushes_xens_frame(case: tuple[str, int, int, int]) -> None:
    code, vector, error, after = case
    text = boot(f"{FRAME}{code}\n")
    got = words(text)
    assert got[0] == vector
    assert got[1] == error
    # A jump to nowhere faults where it went to.
    assert after == 0x1000 or got[2] == after
    # Upcalls were masked: IF is clear, the mask is beside cs, and cs shows a kernel though it runs in ring 3.
    assert got[3:5] == [0x1_0000_E030, 0]
    assert got[5:7] == [0, 0xE02B]


def test_a_page_fault_tells_its_address() -> None:
    text = boot(
        """
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    mov $0x123456, %eax
    mov 40(%rsi), %rbp
    mov (%rax), %rbx
handler:
    mov %cr2, %rax
    show %rax
    mov shared_info_arch_cr2, %rax
    poweroff
.data
.balign 8
shared_info_arch_cr2 = zero_word
table: trap 14, handler
    .quad 0, 0
"""
    )
    assert words(text) == [0x123456]


@pytest.mark.parametrize(("flags", "masked"), [(0, 0), (4, 1)])
def test_a_trap_may_mask_upcalls_and_iret_gives_them_back(flags: int, masked: int) -> None:
    text = boot(
        f"""
{EVENTS}
    mov %rbp, %rbx
    movb $0, 1(%rbx)              # upcalls are on
    ud2
    movzbl 1(%rbx), %eax
    show %rax
    poweroff
handler:
    movzbl 1(%rbx), %eax
    show %rax
    mov 16(%rsp), %rax
    add $2, %rax
    mov %rax, 16(%rsp)            # behind the ud2
    mov 24(%rsp), %rax
    show %rax
    return_from_trap
.data
.balign 8
table: trap 6, handler, {flags}
    .quad 0, 0
"""
    )
    assert words(text) == [masked, 0xE030, 0]


EVENTS = """
.macro return_from_trap
    # (rcx, r11, rip, cs, rflags, rsp, ss) becomes the frame of iret: rax, r11, rcx, flags in front.
    pop %rcx
    pop %r11
    push $0
    push %rcx
    push %r11
    push %rax
    hcall __HYPERVISOR_iret
.endm
# Map shared_info at `shared`; %rbp is its address. Then set the trap table.
main:
    mov 40(%rsi), %rsi
    or $7, %rsi
    lea shared(%rip), %rdi
    mov $2, %edx
    mov %rdi, %rbp
    hcall __HYPERVISOR_update_va_mapping
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    jmp begin
.data
.balign 4096
shared: .skip 4096
.text
begin:
"""


def test_an_event_is_delivered_between_two_instructions_and_masks_the_next() -> None:
    text = boot(
        f"""
{EVENTS}
    lea event(%rip), %rdi
    xor %esi, %esi
    xor %edx, %edx
    hcall __HYPERVISOR_set_callbacks
    mov $EVTCHNOP_bind_ipi, %edi
    lea ipi(%rip), %rsi
    hcall __HYPERVISOR_event_channel_op
    mov ipi+4(%rip), %ecx
    mov %ecx, send(%rip)
    movb $0, 1(%rbp)
    mov $EVTCHNOP_send, %edi
    lea send(%rip), %rsi
    hcall __HYPERVISOR_event_channel_op
after:
    show %r15                     # how often the handler ran
    movzbl 1(%rbp), %eax
    show %rax
    poweroff
event:
    inc %r15
    movzbl 1(%rbp), %eax
    show %rax                     # masked now
    mov 16(%rsp), %rax
    lea after(%rip), %rcx
    sub %rcx, %rax
    show %rax                     # where it was
    mov 32(%rsp), %rax
    and $0x200, %eax
    show %rax                     # IF: upcalls were on
    movb $0, 0(%rbp)
    movq $0, 8(%rbp)
    xor %eax, %eax
    return_from_trap
.data
.balign 8
table: .quad 0, 0
ipi: .long 0, 0
send: .long 0
"""
    )
    assert words(text) == [1, 0, 0x200, 1, 0]


USER = """
.macro to_user address
    push $FLAT_USER_SS
    push $user_stack_end
    push $0x202
    push $FLAT_USER_CS
    push $\\address
    push $0
    push $0
    push $0
    push $0
    hcall __HYPERVISOR_iret
.endm
.macro enter_user_page_tables
    # The kernel's own tables serve user mode too: their root is in p2m[(pt_base - base) >> 12].
    mov 88(%r14), %rax
    sub $0xffffffff80000000, %rax
    shr $12, %rax
    mov 104(%r14), %rcx
    mov (%rcx,%rax,8), %rax
    mov %rax, baseptr+8(%rip)
    lea baseptr(%rip), %rdi
    mov $1, %esi
    xor %edx, %edx
    mov $DOMID_SELF, %r10d
    hcall __HYPERVISOR_mmuext_op
.endm
.data
.balign 8
baseptr: .long MMUEXT_NEW_USER_BASEPTR, 0
    .quad 0, 0
    .balign 16
    .skip 256
user_stack_end:
    .skip 4096
kernel_stack_end:
.text
main:
    mov %rsi, %r14
    enter_user_page_tables
    mov $FLAT_KERNEL_SS, %edi
    lea kernel_stack_end(%rip), %rsi
    hcall __HYPERVISOR_stack_switch
    xor %edi, %edi
    xor %esi, %esi
    lea system_call(%rip), %rdx
    hcall __HYPERVISOR_set_callbacks
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
"""


def test_user_code_reaches_its_kernel_by_syscall() -> None:
    text = boot(
        f"""
{USER}
    mov $SEGBASE_GS_KERNEL, %edi
    mov $0x111000, %esi
    hcall __HYPERVISOR_set_segment_base
    mov $SEGBASE_GS_USER, %edi
    lea user_gs(%rip), %rsi
    hcall __HYPERVISOR_set_segment_base
    to_user user
user:
    mov %gs:0, %rbx               # the user's GS base is in force
    mov $7, %eax
    stc
    syscall
user_next:
    ud2
system_call:
    show %rax
    show %rbx
    mov 16(%rsp), %rax
    lea user_next(%rip), %rcx
    sub %rcx, %rax
    show %rax
    mov (%rsp), %rax              # rcx, as SYSCALL leaves it
    lea user_next(%rip), %rcx
    sub %rcx, %rax
    show %rax
    mov 8(%rsp), %rax             # r11
    and $0x201, %eax
    show %rax
    mov 24(%rsp), %rax
    show %rax
    mov 40(%rsp), %rax
    lea user_stack_end(%rip), %rcx
    sub %rcx, %rax
    show %rax
    lea kernel_stack_end(%rip), %rcx
    sub %rsp, %rcx
    show %rcx
    mov $0xC0000101, %ecx
    rdmsr
    show %rax                     # and here that of the kernel
    poweroff
.data
.balign 8
user_gs: .quad 0x77
table: .quad 0, 0
"""
    )
    assert words(text) == [7, 0x77, 0, 0, 0x201, 0xE033, 0, 56, 0x111000]


@pytest.mark.parametrize(("code", "vector", "error"), [("cli", 13, 0), ("mov (%rax), %rax", 14, 4), ("int3", 3, 0)])
def test_exceptions_of_user_code_arrive_on_the_kernels_stack(code: str, vector: int, error: int) -> None:
    text = boot(
        f"""
{USER}
    to_user user
user:
    mov $0x2000, %eax
fault: {code}
system_call:
handler3: xor %ebx, %ebx
    mov $3, %r15d
    pop %rcx
    pop %r11
    jmp report
handler13: mov $13, %r15d
    jmp with_error
handler14: mov $14, %r15d
with_error:
    pop %rcx
    pop %r11
    pop %rbx
report:
    show %r15
    show %rbx
    mov 8(%rsp), %rax
    show %rax
    mov 24(%rsp), %rax
    lea user_stack_end(%rip), %rcx
    sub %rcx, %rax
    show %rax
    poweroff
.data
.balign 8
table: trap 3, handler3, 3
    trap 13, handler13
    trap 14, handler14
    .quad 0, 0
"""
    )
    assert words(text) == [vector, error, 0xE033, 0]


def test_a_frame_that_cannot_be_pushed_is_the_end() -> None:
    code = "main: lea table(%rip), %rdi\n hcall __HYPERVISOR_set_trap_table\n mov $0x3000, %esp\n ud2\nh: ud2\n"
    text = crash(code + ".data\n.balign 8\ntable: trap 6, h\n.quad 0, 0\n")
    assert "stack at" in text


def test_user_mode_without_page_tables_is_the_end() -> None:
    without = USER.replace("\n    enter_user_page_tables\n", "\n", 1)
    text = crash(without + "to_user main\nsystem_call: ud2\n.data\ntable: .quad 0,0\n")
    assert "user mode" in text


def test_an_iret_frame_that_is_not_there_is_the_end() -> None:
    assert "iret frame" in crash("main: mov $0x3000, %esp\n hcall __HYPERVISOR_iret\n")


def test_an_nmi_enters_its_handler_and_masks_the_next() -> None:
    text = boot(
        """
main:
    xor %edi, %edi                # XENNMI_register_callback
    lea register(%rip), %rsi
    hcall __HYPERVISOR_nmi_op
    show %rax
    mov $11, %edi                 # VCPUOP_send_nmi
    xor %esi, %esi
    xor %edx, %edx
    hcall __HYPERVISOR_vcpu_op
after:
    show %r15
    poweroff
handler:
    inc %r15
    mov 16(%rsp), %rax
    lea after(%rip), %rcx
    sub %rcx, %rax
    show %rax
    cmp $1, %r15
    jne 1f
    mov $11, %edi                 # another one, which waits for the iret
    xor %esi, %esi
    xor %edx, %edx
    hcall __HYPERVISOR_vcpu_op
    say one
1:  pop %rcx
    pop %r11
    push $0
    push %rcx
    push %r11
    push $0
    hcall __HYPERVISOR_iret
.data
.balign 8
register: .quad handler, 0
one: .asciz "5 "
"""
    )
    assert words(text) == [0, 0, 5, 0, 2]


def test_single_steps_trap_after_each_instruction() -> None:
    text = boot(
        """
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    pushf
    orl $0x100, (%rsp)
    popf
    nop
    nop
    nop
done:
    jmp done
handler:
    inc %r15
    mov 16(%rsp), %rax
    lea done(%rip), %rcx
    cmp %rcx, %rax
    je finished
    pop %rcx
    pop %r11
    push $0
    push %rcx
    push %r11
    push %rax
    hcall __HYPERVISOR_iret
finished:
    show %r15
    mov $6, %edi
    hcall __HYPERVISOR_get_debugreg
    and $0x4000, %eax
    show %rax
    poweroff
.data
.balign 8
table: trap 1, handler
    .quad 0, 0
"""
    )
    assert words(text) == [3, 0x4000]


def test_the_fpu_can_be_switched_off_until_it_is_used() -> None:
    text = boot(
        """
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    mov $1, %edi
    hcall __HYPERVISOR_fpu_taskswitch
    mov %cr0, %rax
    and $8, %eax
    show %rax
fault: pxor %xmm0, %xmm0
    ud2
handler:
    clts
    pxor %xmm0, %xmm0
    mov %cr0, %rax
    and $8, %eax
    show %rax
    poweroff
.data
.balign 8
table: trap 7, handler
    .quad 0, 0
"""
    )
    assert words(text) == [8, 0]
