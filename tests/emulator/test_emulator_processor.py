"""The emulated processor: time, fresh code, several vCPUs, determinism, and what it says when it cannot be had."""

from __future__ import annotations

import struct
import sys
import time
from typing import Any

import pytest
from machine_code import Machinery, boot, words

from hypervisor.abi import errno, xen
from hypervisor.emulator import binding, entries, native_hooks
from hypervisor.emulator.binding import Binding
from hypervisor.emulator.processor import REAL_TURN_NS
from hypervisor.errors import DeviceError, HypercallError
from hypervisor.machine.memory import Memory
from hypervisor.vcpu_context import load_context, save_context

CONTEXT = xen.vcpu_guest_context
OFFSET = CONTEXT.offset
START_SECOND = f"""
.macro start_second entry
    # %r14 = start_info. The second vCPU gets the page tables of the first.
    lea context(%rip), %rdi
    lea \\entry(%rip), %rax
    mov %rax, {OFFSET("user_regs.rip")}(%rdi)
    lea second_stack(%rip), %rax
    mov %rax, {OFFSET("user_regs.rsp")}(%rdi)
    mov %rax, {OFFSET("kernel_sp")}(%rdi)
    movq $FLAT_KERNEL_SS, {OFFSET("kernel_ss")}(%rdi)
    movw $FLAT_KERNEL_CS, {OFFSET("user_regs.cs")}(%rdi)
    movw $FLAT_KERNEL_SS, {OFFSET("user_regs.ss")}(%rdi)
    movq $0x2, {OFFSET("user_regs.rflags")}(%rdi)
    movq $0x1234, {OFFSET("user_regs.r12")}(%rdi)
    movq $VGCF_in_kernel, {OFFSET("flags")}(%rdi)
    mov 88(%r14), %rax
    sub $0xffffffff80000000, %rax
    shr $12, %rax
    mov 104(%r14), %rcx
    mov (%rcx,%rax,8), %rax
    shl $12, %rax
    mov %rax, {OFFSET("ctrlreg[3]")}(%rdi)
    mov %rdi, %rdx
    mov $0, %edi                  # VCPUOP_initialise
    mov $1, %esi
    hcall __HYPERVISOR_vcpu_op
    show %rax
    mov $1, %edi                  # VCPUOP_up
    mov $1, %esi
    hcall __HYPERVISOR_vcpu_op
.endm
.macro yield
    xor %edi, %edi
    hcall __HYPERVISOR_sched_op
.endm
.data
.balign 8
context: .skip {CONTEXT.size}
.skip 4096
second_stack:
.text
"""
PING_PONG = f"""
{START_SECOND}
main:
    mov %rsi, %r14
    start_second second
    mov $20, %r15d
    mov $5, %eax
    cvtsi2sd %eax, %xmm0
    cvtsi2sd %eax, %xmm15
    fld1
again:
    yield
    mov turn(%rip), %eax
    cmp $1, %eax
    jne again
    addsd %xmm15, %xmm0
    movl $0, turn(%rip)
    dec %r15d
    jnz again
    cvtsd2si %xmm0, %rax
    show %rax                     # 5 + 20 * 5
    fistpl fpu(%rip)
    mov fpu(%rip), %eax
    show %rax
    show seen(%rip)
    poweroff
second:
    mov %r12, seen(%rip)
    mov $3, %eax
    cvtsi2sd %eax, %xmm15
    pxor %xmm0, %xmm0
other:
    addsd %xmm15, %xmm0
    movl $1, turn(%rip)
1:  yield
    mov turn(%rip), %eax
    cmp $0, %eax
    jne 1b
    jmp other
.data
.balign 8
turn: .long 0
fpu: .long 0
seen: .quad 0
"""


def test_two_vcpus_take_turns_and_keep_their_registers_and_their_fpu() -> None:
    assert words(boot(PING_PONG, vcpus=2)) == [0, 105, 1, 0x1234]


def test_two_vcpus_run_on_two_processors() -> None:
    assert words(boot(PING_PONG, vcpus=2, pcpus=2)) == [0, 105, 1, 0x1234]


COUNTING = """
main:
    mov $7, %eax
    cvtsi2sd %eax, %xmm3
    fldpi
    mov $0x1234, %r12d
    movl $0x1f80, mxcsr(%rip)
1:  yield
    cmp $0x1234, %r12
    je 1b
    show %r12
    cvtsd2si %xmm3, %rax
    show %rax
    fldpi
    fcomip %st(1), %st
    setne %al
    movzbl %al, %eax
    show %rax
    poweroff
.data
mxcsr: .long 0
"""


def test_a_vcpus_whole_state_can_be_taken_and_given_back() -> None:
    machinery = Machinery(START_SECOND + COUNTING)
    for _ in range(20):
        machinery.hv.sched.drain(1)
    vcpu = machinery.domain.online_vcpus()[0]
    raw = bytearray(save_context(vcpu))
    state = CONTEXT.unpack_from(bytes(raw))
    assert state.user_regs.r12 == 0x1234
    assert state.user_regs.cs == xen.FLAT_KERNEL_CS
    assert state.flags & (xen.VGCF_in_kernel | xen.VGCF_i387_valid) == xen.VGCF_in_kernel | xen.VGCF_i387_valid
    xmm3 = OFFSET("fpu_ctxt") + 160 + 3 * 16
    assert struct.unpack_from("<d", raw, xmm3) == (7.0,)
    struct.pack_into("<d", raw, xmm3, 9.0)
    struct.pack_into("<Q", raw, OFFSET("user_regs.r12"), 0x77)
    load_context(vcpu, bytes(raw))
    assert save_context(vcpu) == bytes(raw)
    assert words(machinery.run().split("(XEN)")[0]) == [0x77, 9, 0]


FAILSAFE = """
main:
    xor %edi, %edi
    lea failsafe(%rip), %rsi
    xor %edx, %edx
    hcall __HYPERVISOR_set_callbacks
    mov $0x1234, %r12d
1:  yield
    jmp 1b
failsafe:
    mov 16(%rsp), %rax
    show %rax                     # ds as it was to be
    mov 24(%rsp), %rax
    show %rax
    mov %ds, %eax
    show %rax                     # and as it is
    mov 56(%rsp), %rax
    show %rax
    poweroff
"""


def test_a_selector_that_cannot_be_loaded_enters_the_failsafe_callback() -> None:
    machinery = Machinery(START_SECOND + FAILSAFE)
    for _ in range(20):
        machinery.hv.sched.drain(1)
    vcpu = machinery.domain.online_vcpus()[0]
    raw = bytearray(save_context(vcpu))
    struct.pack_into("<H", raw, OFFSET("user_regs.ds"), 0x23)
    struct.pack_into("<H", raw, OFFSET("user_regs.es"), xen.FLAT_KERNEL_SS)
    load_context(vcpu, bytes(raw))
    assert words(machinery.run().split("(XEN)")[0]) == [0x23, xen.FLAT_KERNEL_SS, 0, 0x1_0000_E030]


def test_a_device_that_is_not_there_reads_as_ones() -> None:
    text = boot(
        """
main:
    lea window(%rip), %rdi
    movabs $0x8000000fd000003, %rsi
    movabs $0xfd000003, %rsi
    mov $2, %edx
    hcall __HYPERVISOR_update_va_mapping
    show %rax
    mov window+8(%rip), %rax
    show %rax
    movl $1, window(%rip)
    mov window(%rip), %eax
    show %rax
    poweroff
.data
.balign 4096
window: .skip 4096
"""
    )
    assert words(text) == [0, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF]


def test_the_tables_of_a_vcpu_are_not_changed_once_it_is_set_up() -> None:
    machinery = Machinery(START_SECOND + COUNTING)
    vcpu = machinery.domain.online_vcpus()[0]
    raw = bytearray(save_context(vcpu))
    load_context(vcpu, bytes(raw))
    for member in ("ctrlreg[3]", "ctrlreg[1]", "ldt_ents", "gdt_ents"):
        other = bytearray(raw)
        other[OFFSET(member) + 2] ^= 1
        with pytest.raises(HypercallError) as failure:
            load_context(vcpu, bytes(other))
        assert failure.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)
    assert save_context(vcpu) == bytes(raw)


IPI = f"""
{START_SECOND}
main:
    mov %rsi, %r14
    mov $EVTCHNOP_bind_ipi, %edi
    lea ipi(%rip), %rsi
    hcall __HYPERVISOR_event_channel_op
    start_second second
1:  yield
    mov ipi+4(%rip), %eax
    mov %eax, send(%rip)
    mov $EVTCHNOP_send, %edi
    lea send(%rip), %rsi
    hcall __HYPERVISOR_event_channel_op
    show %rax
    yield
    mov done(%rip), %eax
    test %eax, %eax
    jz 1b
    show %rax
    poweroff
second:
    mov $3, %edi                  # SCHEDOP_poll for the IPI's port
    mov ipi+4(%rip), %eax
    mov %eax, ports(%rip)
    lea poll(%rip), %rsi
    hcall __HYPERVISOR_sched_op
    movl $7, done(%rip)
2:  yield
    jmp 2b
.data
.balign 8
poll: .quad ports
    .long 1, 0
    .quad 0
ipi: .long 1, 0
send: .long 0
ports: .long 0
done: .long 0
"""


def test_one_vcpu_wakes_another_by_an_ipi() -> None:
    got = words(boot(IPI, vcpus=2))
    assert got[0] == 0
    assert got[-1] == 7


def traced(source: str, **options: Any) -> tuple[str, list[tuple[Any, ...]]]:
    records: list[tuple[Any, ...]] = []
    machinery = Machinery(source, trace=lambda *record: records.append(record), **options)
    records_with_time: list[tuple[Any, ...]] = []
    hv = machinery.hv
    emit = hv.trace
    assert emit is not None
    hv.trace = lambda *record: records_with_time.append((hv.now(), *record))
    text = machinery.run()
    return text, records_with_time


def test_two_runs_are_the_same_in_every_record() -> None:
    assert traced(PING_PONG, vcpus=2) == traced(PING_PONG, vcpus=2)


def test_time_passes_as_instructions_are_executed() -> None:
    text = boot(
        """
main:
    rdtsc
    mov %rax, %r12
    mov $100000, %ecx
1:  dec %ecx
    jnz 1b
    rdtsc
    sub %r12, %rax
    show %rax
    poweroff
"""
    )
    (elapsed,) = words(text)
    # Two instructions of two bytes each in a round, and what reading the TSC takes.
    assert 100_000 <= elapsed <= 220_000


READS_THE_TSC = """
main:
    mov $1000000, %ecx
1:  rdtsc
    dec %ecx
    jnz 1b
    poweroff
"""


def test_in_real_time_a_guest_does_not_get_ahead_of_the_wall_clock() -> None:
    """A reading of the TSC takes half a microsecond of the guest's time, and much less of the host's.

    Of the half second, that may be caught up with which the machine has lost before its first instruction.
    """
    machinery = Machinery(READS_THE_TSC, real_time=True)
    hv = machinery.hv
    processor = hv.processor()
    ahead = 0
    while not hv.stopped:
        hv.sched.drain(1)
        ahead = max(ahead, processor.guest_time - hv.clock.read())
    assert ahead <= REAL_TURN_NS + 500_000
    assert 480_000_000 <= hv.clock.now < 20_000_000_000


def test_a_timer_interrupts_a_loop() -> None:
    """A watchdog of one second ends a kernel that does nothing else than to run."""
    machinery = Machinery(
        """
main:
    mov $6, %edi                  # SCHEDOP_watchdog
    lea watchdog(%rip), %rsi
    hcall __HYPERVISOR_sched_op
    show %rax
1:  jmp 1b
.data
.balign 8
watchdog: .long 0, 1
"""
    )
    text = machinery.run()
    assert text.startswith("1 ")
    assert machinery.hv.shutdown_reason == 4
    assert 1_000_000_000 <= machinery.hv.clock.now < 1_020_000_000


REWRITES_ITSELF = """
main:
    lea place(%rip), %rdi
1:  movb $0x90, (%rdi)
place: nop
    jmp 1b
"""


def test_code_that_rewrites_itself_does_not_hold_the_host_up() -> None:
    """Such a loop is charged for what it costs: its time slices end as soon as those of others."""
    machinery = Machinery(REWRITES_ITSELF)
    hv, longest = machinery.hv, 0.0
    hv.sched.drain(1)
    while hv.clock.now < 1_000_000_000:
        began = time.process_time()
        hv.sched.drain(1)
        longest = max(longest, time.process_time() - began)
    # A thousand translations, of some 25 us each; those that are for nothing are used up at first.
    assert longest < 3


def test_new_code_costs_nothing_extra() -> None:
    text = boot(
        """
main:
    rdtsc
    mov %rax, %r12
.rept 1000
    jmp 1f
    nop
1:
.endr
    rdtsc
    sub %r12, %rax
    show %rax
    poweroff
"""
    )
    (elapsed,) = words(text)
    assert elapsed < 10_000


STALE = """
main:
    mov %rsi, %r14
    call function
    show %rax
    # Have Xen copy the page `other` over the page `function`: MMUEXT_COPY_PAGE, by frame numbers.
    lea function(%rip), %rdi
    call frame_of
    mov %rax, copy+8(%rip)
    lea other(%rip), %rdi
    call frame_of
    mov %rax, copy+16(%rip)
    lea copy(%rip), %rdi
    mov $1, %esi
    xor %edx, %edx
    mov $DOMID_SELF, %r10d
    hcall __HYPERVISOR_mmuext_op
    show %rax
    call function
    show %rax
    # The guest's own stores are seen as well.
    movb $3, function+1(%rip)
    call function
    show %rax
    poweroff
frame_of:
    mov %rdi, %rax
    sub $0xffffffff80000000, %rax
    shr $12, %rax
    mov 104(%r14), %rcx
    mov (%rcx,%rax,8), %rax
    ret
.data
.balign 8
copy: .long MMUEXT_COPY_PAGE, 0
    .quad 0, 0
.balign 4096
function: mov $1, %eax
    ret
.balign 4096
other: mov $2, %eax
    ret
.balign 4096
"""


def test_code_that_xen_overwrites_is_not_executed_any_more() -> None:
    assert words(boot(STALE)) == [1, 0, 2, 3]


@pytest.mark.parametrize("source", [STALE, PING_PONG, IPI], ids=["stale", "ping-pong", "ipi"])
def test_without_machine_code_the_hooks_do_the_same(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native = traced(source, vcpus=2)
    for module in (native_hooks, entries):
        monkeypatch.setattr(module, "can_be_native", lambda: False)
    assert traced(source, vcpus=2) == native


def test_a_hypercall_that_is_preempted_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
main:
    lea calls(%rip), %rdi
    mov $3, %esi
    mov $0x55, %edx
    hcall __HYPERVISOR_multicall
    show %rax
    show %rdx
    show calls+8(%rip)
    show calls+64+8(%rip)
    show calls+128+8(%rip)
    poweroff
.data
.balign 8
calls: .quad __HYPERVISOR_xen_version, 99, XENVER_pagesize, 0, 0, 0, 0, 0
    .quad __HYPERVISOR_xen_version, 99, XENVER_version, 0, 0, 0, 0, 0
    .quad __HYPERVISOR_xen_version, 99, XENVER_pagesize, 0, 0, 0, 0, 0
"""
    machinery = Machinery(source)
    asked = []

    def always() -> bool:
        asked.append(machinery.hv.sched.running)
        return True

    machinery.hv.preempt.forced = always
    text = machinery.run().split("(XEN)")[0]
    assert words(text) == [0, 0x55, 4096, 0x40011, 4096]
    assert len(asked) == 2


PORTS = """
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    mov $1, %ebx
    in $0x80, %al
    show %rbx
    mov $6, %edi                  # PHYSDEVOP_set_iopl
    lea iopl(%rip), %rsi
    hcall __HYPERVISOR_physdev_op
    mov $0x1234, %edx
    xor %eax, %eax
    in %dx, %al
    show %rax
    mov $0xabcd, %eax
    out %ax, %dx
    mov $0xcf8, %edx
    mov $0x80001000, %eax
    out %eax, %dx
    xor %eax, %eax
    in %dx, %eax
    show %rax
    poweroff
handler:
    mov $2, %ebx
    add $24, %rsp
    addq $2, (%rsp)
    push $0
    push $0
    push $0
    push $0
    hcall __HYPERVISOR_iret
.data
.balign 8
iopl: .long 1
.balign 8
table: trap 13, handler
    .quad 0, 0
"""


def test_ports_need_an_iopl_and_reach_devices() -> None:
    machinery = Machinery(PORTS)
    written: list[tuple[int, int]] = []
    machinery.hv.machine.ports.map(0x1234, 4, lambda port: 0x42, lambda port, value: written.append((port, value)))
    text = machinery.run().split("(XEN)")[0]
    assert words(text) == [2, 0x42, 0x80001000]
    assert written == [(0x1234, 0xABCD)]


def test_cpuid_says_xen() -> None:
    text = boot(
        """
main:
    mov $0x40000000, %eax
    ud2a
    .ascii "xen"
    cpuid
    mov %eax, %r12d
    mov %rbx, name(%rip)
    mov %rcx, name+4(%rip)
    mov %rdx, name+8(%rip)
    movb $32, name+12(%rip)
    movb $0, name+13(%rip)
    say name
    show %r12
    mov $1, %eax
    cpuid
    shr $31, %ecx
    show %rcx
    poweroff
.data
name: .skip 32
"""
    )
    assert text.split() == ["XenVMMXenVMM", "40000005", "1"]


# -- the engine itself -----------------------------------------------------------------------------------------------


def test_without_unicorn_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    assert not binding.is_installed()
    with pytest.raises(DeviceError, match=r"pip install 'paravirt\[emulator\]'"):
        Binding(0, 4096, bytearray(1))


def test_a_unicorn_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    unicorn = pytest.importorskip("unicorn")
    monkeypatch.setattr(unicorn, "__version__", "2.1.3")
    with pytest.raises(DeviceError, match=r"Unicorn 2\.1\.3 is too old: 2\.1\.4 is needed"):
        Binding(0, 4096, bytearray(1))


def test_a_unicorn_that_is_laid_out_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("unicorn")
    memory = Memory(1)
    address, _ = memory.address()
    monkeypatch.setattr(Binding, "_search", lambda self, pattern: 0)
    with pytest.raises(DeviceError, match="is not one that paravirt knows"):
        Binding(address, 4096, bytearray(1))
    monkeypatch.undo()
    monkeypatch.setattr(binding, "CR2", binding.CR2 + 1)
    with pytest.raises(DeviceError, match="CR2 is not where it was"):
        Binding(address, 4096, bytearray(1))
