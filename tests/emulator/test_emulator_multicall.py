"""A multicall whose entry is an iret: the guest goes on elsewhere, and no entry behind it is made."""

from __future__ import annotations

from machine_code import boot, crash, words

KERNEL = """
main:
    lea stack_top(%rip), %rsp
    mov %rsp, %rbx
    # struct iret_context: rax, r11, rcx, flags, rip, cs, rflags, rsp, ss
    push $FLAT_KERNEL_SS
    push %rbx
    push $0x202
    push $0xe030                  # privilege level 0: to kernel mode
    lea landed(%rip), %rax
    push %rax
    push $0
    push $0xcc
    push $0x11
    push $0xaa
    lea calls(%rip), %rdi
    mov $3, %esi
    hcall __HYPERVISOR_multicall
    ud2                           # not here

landed:
    mov %rcx, %r13
    mov %r11, %r14
    show %rax
    show %r13
    show %r14
    mov %rsp, %r12
    sub %rbx, %r12
    show %r12
    mov calls + 8(%rip), %rax; show %rax
    mov calls + 64 + 8(%rip), %rax; show %rax
    mov calls + 128 + 8(%rip), %rax; show %rax
    poweroff

.data
.balign 64
calls:
    .quad __HYPERVISOR_xen_version, 0x77, 0, 0, 0, 0, 0, 0
    .quad __HYPERVISOR_iret, 0x77, 0, 0, 0, 0, 0, 0
    .quad __HYPERVISOR_xen_version, 0x77, 0, 0, 0, 0, 0, 0
.balign 16
.skip 4096
stack_top:
"""


def test_an_iret_ends_the_multicall() -> None:
    rax, rcx, r11, moved, *results = words(boot(KERNEL))
    assert (rax, rcx, r11, moved) == (0xAA, 0xCC, 0x11, 0)
    assert results == [4 << 16 | 17, 0xAA, 0x77]


def test_an_iret_without_a_frame_is_the_end() -> None:
    text = crash(KERNEL.replace("hcall __HYPERVISOR_multicall", "xor %esp, %esp; hcall __HYPERVISOR_multicall"))
    assert "iret frame" in text
