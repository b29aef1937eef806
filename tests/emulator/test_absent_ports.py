"""Reading again and again from a port where nothing is: the answers do not come from Python, but are the same."""

from __future__ import annotations

from machine_code import Machinery, words

from hypervisor.emulator.native_hooks import TRAP_NS
from hypervisor.emulator.privileged import Privileged
from hypervisor.emulator.vcpu import EmulatedVCpu

FRAME = """
    mov (%rsp), %rcx
    mov 8(%rsp), %r11
    add $16, %rsp
    push $0; push %rcx; push %r11; push %rax
    hcall __HYPERVISOR_iret
"""
START = f"""
main:
    mov 40(%rsi), %rax            # shared_info: map it at `shared`
    or $0x63, %rax
    mov %rax, %rsi
    lea shared(%rip), %rdi
    mov $2, %edx                  # UVMF_INVLPG, local
    hcall __HYPERVISOR_update_va_mapping
    lea callback(%rip), %rdi
    xor %esi, %esi
    xor %edx, %edx
    hcall __HYPERVISOR_set_callbacks
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    mov $6, %edi                  # PHYSDEVOP_set_iopl
    lea iopl(%rip), %rsi
    hcall __HYPERVISOR_physdev_op
    mov $0x42, %edx
    jmp test
callback:
    inc %r12
    movb $0, shared(%rip)
    {FRAME}
protected:                        # a #GP: skip the instruction, which has one byte
    inc %r13
    pop %rcx; pop %r11
    add $8, %rsp                  # the error code
    push %r11; push %rcx
    incq 16(%rsp)
    {FRAME}
stepped:                          # a #DB: no more of them
    inc %r14
    andq $~0x100, 32(%rsp)
    mov 16(%rsp), %r15
    {FRAME}
.data
.balign 8
iopl: .long 1
none: .long 0
table: trap 1, stepped
    trap 13, protected
    .quad 0, 0
.balign 4096
shared: .skip 4096
.text
"""


def run(source: str) -> tuple[list[int], int]:
    """Run a kernel; returns what it shows, and how many instructions Python has carried out for it."""
    carried_out = 0
    machinery = Machinery(f"{START}\ntest:\n{source}\n    poweroff\n")
    original = Privileged.emulate

    def counted(privileged: Privileged, vcpu: EmulatedVCpu) -> bool:
        nonlocal carried_out
        carried_out += 1
        return original(privileged, vcpu)

    Privileged.emulate = counted  # type: ignore[method-assign]
    try:
        return words(machinery.run().split("(XEN)")[0]), carried_out
    finally:
        Privileged.emulate = original  # type: ignore[method-assign]


def test_a_loop_is_carried_out_by_python_once_and_costs_a_trap_each_time() -> None:
    shown, carried_out = run(
        """
    mov $0x42, %edx
    mov $1000, %ecx
    rdtsc
    mov %eax, %ebx
    mov $0x42, %edx
1:  mov $0x1122334455667700, %rax
    in %dx, %al
    loop 1b
    mov %rax, %rsi
    rdtsc
    sub %ebx, %eax
    show %rax
    show %rsi
"""
    )
    ticks, read = shown
    assert carried_out == 1
    assert 1000 * TRAP_NS <= ticks < 1000 * (TRAP_NS + 20)
    assert read == 0x11223344556677FF


def test_each_width_is_answered_as_the_processor_does() -> None:
    shown, carried_out = run(
        """
    mov $3, %ecx
1:  mov $0x1122334455667700, %rax
    in %dx, %ax
    loop 1b
    show %rax
    mov $3, %ecx
1:  mov $0x1122334455667700, %rax
    in %dx, %eax
    loop 1b
    show %rax
    mov $3, %ecx
1:  mov $0x1122334455667700, %rax
    in $0x42, %al
    loop 1b
    show %rax
"""
    )
    assert shown == [0x112233445566FFFF, 0xFFFFFFFF, 0x11223344556677FF]
    assert carried_out == 3


def test_an_event_that_is_unmasked_between_two_reads_is_taken_at_the_next_one() -> None:
    shown, _ = run(
        """
    in %dx, %al
    in %dx, %al
    movb $1, shared(%rip)         # pending, and masked
    in %dx, %al
    show %r12
    in %dx, %al
    in %dx, %al
    movb $0, shared + 1(%rip)
    in %dx, %al
    show %r12
"""
    )
    assert shown == [0, 1]


def test_a_timer_comes_amid_a_loop() -> None:
    shown, _ = run(
        """
    mov $1, %edi                  # EVTCHNOP_bind_virq
    lea virq(%rip), %rsi
    hcall __HYPERVISOR_event_channel_op
    movb $0, shared + 1(%rip)
    mov $50000000, %edi           # nanoseconds since the start
    hcall __HYPERVISOR_set_timer_op
    mov $0x42, %edx
1:  in %dx, %al
    test %r12, %r12
    jz 1b
    show %r12
    .data
virq: .long 0, 0, 0               # VIRQ_TIMER
    .text
"""
    )
    assert shown == [1]


def test_without_the_privilege_the_next_read_is_refused() -> None:
    shown, _ = run(
        """
    in %dx, %al
    in %dx, %al
    show %r13
    mov $6, %edi                  # PHYSDEVOP_set_iopl
    lea none(%rip), %rsi
    hcall __HYPERVISOR_physdev_op
    mov $0x42, %edx
    xor %eax, %eax
    in %dx, %al
    show %r13
    show %rax
"""
    )
    assert shown == [0, 1, 0]


def test_a_single_step_over_a_read_is_told_of() -> None:
    shown, _ = run(
        """
    in %dx, %al
    in %dx, %al
    pushf
    orq $0x100, (%rsp)
    popf
    in %dx, %al
after:
    show %r14
    lea after(%rip), %rax
    sub %r15, %rax
    show %rax
"""
    )
    assert shown == [1, 0]


def test_a_breakpoint_on_the_port_is_hit_each_time() -> None:
    shown, _ = run(
        """
    mov %cr4, %rax
    or $8, %rax                   # DE
    mov %rax, %cr4
    xor %edi, %edi
    mov $0x42, %esi
    hcall __HYPERVISOR_set_debugreg
    mov $7, %edi
    mov $0x20402, %esi            # one byte of I/O
    hcall __HYPERVISOR_set_debugreg
    mov $0x42, %edx
    in %dx, %al
    in %dx, %al
    in %dx, %al
    show %r14
"""
    )
    assert shown == [3]
