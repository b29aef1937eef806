"""A hypercall of machine code that gives the processor back for an event of its own, and goes on."""

from __future__ import annotations

from machine_code import boot, words

from hypervisor.abi.grant_table import GNTST_bad_gntref, GNTTABOP_swap_grant_ref

KERNEL = """
main:
    mov %rsi, %r15
    mov 40(%r15), %rax            # shared_info: map it at `shared`
    or $0x63, %rax
    mov %rax, %rsi
    lea shared(%rip), %rdi
    mov $2, %edx                  # UVMF_INVLPG, local
    hcall __HYPERVISOR_update_va_mapping
    show %rax
    lea callback(%rip), %rdi
    xor %esi, %esi
    xor %edx, %edx
    hcall __HYPERVISOR_set_callbacks
    mov $7, %edi                  # EVTCHNOP_bind_ipi
    lea ipi(%rip), %rsi
    hcall __HYPERVISOR_event_channel_op
    show %rax
    mov ipi + 4(%rip), %eax
    mov %eax, send(%rip)
    movb $0, shared + 1(%rip)     # upcalls may come
    xor %r12d, %r12d
    lea calls(%rip), %rdi
    mov $3, %esi
    hcall __HYPERVISOR_multicall
    show %rax
    show %r12                     # how many results there were when the event came
    mov calls + 8(%rip), %rax; show %rax
    mov calls + 64 + 8(%rip), %rax; show %rax
    mov calls + 128 + 8(%rip), %rax; show %rax
    poweroff

callback:
    # What is on the stack: rcx, r11, and the frame. Count the entries of the multicall that have a result.
    push %rax
    movb $0, shared(%rip)
    movq $0, shared + 8(%rip)
    mov $0x77, %eax
    cmp %rax, calls + 8(%rip); je 1f; inc %r12
1:  cmp %rax, calls + 64 + 8(%rip); je 1f; inc %r12
1:  cmp %rax, calls + 128 + 8(%rip); je 1f; inc %r12
1:  pop %rax
    mov (%rsp), %rcx
    mov 8(%rsp), %r11
    add $16, %rsp
    push $0; push %rcx; push %r11; push %rax
    hcall __HYPERVISOR_iret

.data
.balign 8
ipi: .long 0, 0
send: .long 0
.balign 64
calls:
    .quad __HYPERVISOR_event_channel_op, 0x77, 4, send, 0, 0, 0, 0
    .quad __HYPERVISOR_xen_version, 0x77, 0, 0, 0, 0, 0, 0
    .quad 63, 0x77, 0, 0, 0, 0, 0, 0
.balign 4096
shared: .skip 4096
"""


def test_an_event_is_taken_between_two_entries_of_a_multicall() -> None:
    mapped, bound, rc, seen, *results = words(boot(KERNEL))
    assert (mapped, bound, rc) == (0, 0, 0)
    assert seen == 1
    assert results == [0, 4 << 16 | 17, -38 & 0xFFFFFFFFFFFFFFFF]


BATCH = """
main:
    mov %rsi, %r15
    mov 40(%r15), %rax            # shared_info: map it at `shared`
    or $0x63, %rax
    mov %rax, %rsi
    lea shared(%rip), %rdi
    mov $2, %edx                  # UVMF_INVLPG, local
    hcall __HYPERVISOR_update_va_mapping
    lea callback(%rip), %rdi
    xor %esi, %esi
    xor %edx, %edx
    hcall __HYPERVISOR_set_callbacks
    xor %r12d, %r12d
    movb $0, shared + 1(%rip)     # upcalls may come
    mov $GNTTABOP_swap_grant_ref, %edi
    lea swaps(%rip), %rsi
    mov $3, %edx
    movb $1, shared(%rip)         # and one is pending, when Xen is entered
    hcall __HYPERVISOR_grant_table_op
    show %rax
    show %r12                     # how many were done when the event came
    movswq swaps + 8(%rip), %rax; show %rax
    movswq swaps + 20(%rip), %rax; show %rax
    movswq swaps + 32(%rip), %rax; show %rax
    poweroff

callback:
    push %rax
    movb $0, shared(%rip)
    mov $0x55, %eax
    cmp %ax, swaps + 8(%rip); je 1f; inc %r12
1:  cmp %ax, swaps + 20(%rip); je 1f; inc %r12
1:  cmp %ax, swaps + 32(%rip); je 1f; inc %r12
1:  pop %rax
    mov (%rsp), %rcx
    mov 8(%rsp), %r11
    add $16, %rsp
    push $0; push %rcx; push %r11; push %rax
    hcall __HYPERVISOR_iret

.data
.balign 8
swaps:
    .long 8, 9, 0x55
    .long 8, 9999, 0x55
    .long 8, 8, 0x55
.balign 4096
shared: .skip 4096
"""


def test_an_event_is_taken_amid_a_batch_of_grants() -> None:
    """The first operation is done, the handler runs, and the rest follows by the arguments that Xen has changed."""
    rc, done, *statuses = words(boot(BATCH.replace("GNTTABOP_swap_grant_ref", str(GNTTABOP_swap_grant_ref))))
    assert (rc, done) == (0, 1)
    assert statuses == [0, GNTST_bad_gntref & 0xFFFFFFFFFFFFFFFF, 0]
