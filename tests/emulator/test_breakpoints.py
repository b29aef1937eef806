"""Breakpoints on instructions fire as a processor's do."""

import pytest
from machine_code import Machinery, boot, words

from hypervisor.abi import event_channel, sched, xen
from hypervisor.emulator.binding import Binding
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


WITH_DEBUGGER = """
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    movb $VIRQ_DEBUGGER, bind(%rip)
    mov ${bind}, %edi
    lea bind(%rip), %rsi
    hcall __HYPERVISOR_event_channel_op
    xor %edi, %edi
    lea target(%rip), %rsi
    hcall __HYPERVISOR_set_debugreg
    mov $7, %edi
    mov $0x401, %esi
    hcall __HYPERVISOR_set_debugreg
{body}
    show %r13
    poweroff
handler:
    ud2
.data
.balign 8
bind: .long 0, 0, 0
table: trap 1, handler
    trap 3, handler
    .quad 0, 0
"""


@pytest.mark.parametrize(
    ("body", "event", "virqs"),
    [
        ("int3\ntarget: inc %r13", 3, 0),
        ("inc %r13\ntarget: nop", 0, 1),
    ],
)
def test_a_debugger_has_the_domain_paused(body: str, event: int, virqs: int) -> None:
    source = WITH_DEBUGGER.replace("{bind}", str(event_channel.EVTCHNOP_bind_virq)).replace("{body}", body)
    machinery = Machinery(source)
    hv, domain = machinery.hv, machinery.domain
    vcpu = domain.vcpu(0)
    assert vcpu is not None
    domain.debugger_attached = True
    for _ in range(100):
        hv.sched.drain(100)
        if domain.pause_count:
            break
    assert (domain.pause_count, vcpu.debug_event, hv.stopped) == (1, event, False)
    pending = hv.memory.q[(domain.shared_info_mfn << 9) + (xen.shared_info.offset("evtchn_pending") >> 3)]
    assert pending == virqs << 1
    # A breakpoint on an instruction would be hit again: the debugger takes it away and lets the domain go on.
    vcpu.context.debugreg[7] = 0x400
    vcpu.debugreg_changed()
    domain.debugger_attached = False
    hv.domain_ops.unpause(domain)
    text = machinery.run()
    assert hv.shutdown_reason == sched.SHUTDOWN_poweroff, text
    assert text.startswith("1 ")


TOGGLE = """
main:
    mov $50, %r12d
    rdtsc
    shl $32, %rdx
    lea (%rdx, %rax), %r14
again:
    xor %edi, %edi
    lea far(%rip), %rsi
    {move}
    hcall __HYPERVISOR_set_debugreg
    mov $7, %edi
    mov ${control}, %esi
    hcall __HYPERVISOR_set_debugreg
    nop
    mov $7, %edi
    mov $0x400, %esi
    hcall __HYPERVISOR_set_debugreg
    dec %r12d
    jnz again
    rdtsc
    shl $32, %rdx
    add %rdx, %rax
    sub %r14, %rax
    show %rax
    movq {block}(%rip), %rax
    test %rax, %rax
    jz 1f
    # Half a second later, after some turns of the loop, nobody needs them any more.
2:  rdtsc
    shl $32, %rdx
    add %rdx, %rax
    sub %r14, %rax
    cmp $500000000, %rax
    jb 2b
1:  poweroff
.data
.balign 8
far: .skip 8 * 64
yes: .quad 1
no: .quad 0
"""


@pytest.mark.parametrize("control", [0x401, 0x90401])
def test_the_same_breakpoint_again_and_again_is_cheap(control: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []
    flush = Binding.forget_all_code
    monkeypatch.setattr(Binding, "forget_all_code", lambda cpu: (flushes.append(1), flush(cpu)))
    source = TOGGLE.replace("{move}", "").replace("{control}", hex(control))
    (nanoseconds,) = words(boot(source.replace("{block}", "no")))
    assert nanoseconds < 1_000_000
    assert len(flushes) == 1
    # In the end the hooks go.
    machinery = Machinery(source.replace("{block}", "yes"))
    machinery.run()
    assert len(flushes) == 3
    breakpoints = machinery.hv.processor().breakpoints
    assert not breakpoints._hooks
    assert not breakpoints.data._places


@pytest.mark.parametrize("control", [0x401, 0x90401])
def test_who_changes_them_all_the_time_pays(control: int) -> None:
    source = TOGGLE.replace("{move}", "lea (%rsi, %r12, 8), %rsi").replace("{control}", hex(control))
    (nanoseconds,) = words(boot(source.replace("{block}", "no")))
    assert 50 * 200_000 <= nanoseconds < 60 * 200_000


def test_a_debugger_steps_through_the_kernel() -> None:
    source = WITH_DEBUGGER.replace("{bind}", str(event_channel.EVTCHNOP_bind_virq))
    machinery = Machinery(source.replace("{body}", "int3\nnop\nxor %eax, %eax\ninc %r13\ntarget: cpuid"))
    hv, domain = machinery.hv, machinery.domain
    vcpu = domain.vcpu(0)
    assert vcpu is not None
    domain.debugger_attached = True
    found = []
    for _ in range(5):
        for _ in range(100):
            hv.sched.drain(100)
            if domain.pause_count:
                break
        assert domain.pause_count == 1
        found.append(vcpu.context.rip)
        vcpu.context.rflags |= 0x100
        vcpu.context.debugreg[7] = 0x400
        vcpu.debugreg_changed()
        hv.domain_ops.unpause(domain)
    # nop, xor, inc and cpuid have 1, 2, 3 and 2 bytes.
    assert [address - found[0] for address in found] == [0, 1, 3, 6, 8]
    vcpu.context.rflags &= ~0x100
    domain.debugger_attached = False
    machinery.run()
    assert hv.shutdown_reason == sched.SHUTDOWN_poweroff
