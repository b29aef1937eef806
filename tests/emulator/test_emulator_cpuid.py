"""Machine code sees its domain's CPU policy, by CPUID and RDMSR."""

from __future__ import annotations

import re

import pytest
from machine_code import Machinery, words

from hypervisor.abi import sched
from hypervisor.cpu_policy import DOMAIN, CpuPolicy
from hypervisor.cpu_policy.policy import ARCH_CAPABILITIES, PLATFORM_INFO, XEN

NA = 0xFFFFFFFF
ASK = """
    mov ${leaf:#x}, %eax
    mov ${subleaf:#x}, %ecx
    cpuid
    mov %ecx, %r12d
    show %rax
    show %rbx
    show %r12
    show %rdx
"""


def run(policy: CpuPolicy, body: str) -> list[int]:
    machinery = Machinery("main:\n" + body)
    machinery.domain.cpu_policy = policy
    text = machinery.run()
    assert machinery.hv.shutdown_reason == sched.SHUTDOWN_poweroff, text
    return words(re.sub(r"\(XEN\).*\n", "", text))


def ask(policy: CpuPolicy, leaf: int, subleaf: int = 0) -> tuple[int, ...]:
    return tuple(run(policy, ASK.format(leaf=leaf, subleaf=subleaf) + "poweroff"))


@pytest.mark.parametrize(
    ("leaf", "subleaf", "key"),
    [(0, 5, (0, NA)), (1, 0, (1, NA)), (4, 1, (4, 1)), (7, 0, (7, 0)), (0x80000001, 9, (0x80000001, NA))],
)
def test_the_guest_is_told_what_the_policy_says(leaf: int, subleaf: int, key: tuple[int, int]) -> None:
    assert ask(DOMAIN, leaf, subleaf) == DOMAIN.get(*key) != (0, 0, 0, 0)


@pytest.mark.parametrize(("leaf", "subleaf"), [(0xE, 0), (7, 1), (4, 7), (0xD, 0), (0x80000009, 0), (0x20000000, 0)])
def test_what_there_is_not_is_zeros(leaf: int, subleaf: int) -> None:
    assert ask(DOMAIN, leaf, subleaf) == (0, 0, 0, 0)


def test_a_changed_policy() -> None:
    policy = DOMAIN.copy()
    policy.set(0, a=2)
    policy.set(2, a=0x77)
    assert ask(policy, 2)[0] == 0x77
    assert ask(policy, 4) == (0, 0, 0, 0)


@pytest.mark.parametrize(("limit", "last"), [(0, 5), (1, 2), (3, 3), (99, 5)])
def test_how_many_of_xens_leaves_there_are(limit: int, last: int) -> None:
    policy = DOMAIN.copy()
    policy.hv_limits[XEN] = limit
    assert ask(policy, XEN)[0] == XEN + last
    assert any(ask(policy, XEN + 5)) is (last == 5)


READ = """
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    xor %eax, %eax
    xor %edx, %edx
    mov ${number:#x}, %ecx
    rdmsr
    show %rax
    show %rdx
    poweroff
handler:
    mov $0xdead, %r12d
    show %r12
    poweroff
.data
.balign 8
table: trap 13, handler
    .quad 0, 0
"""


def test_the_registers_of_the_policy() -> None:
    policy = DOMAIN.copy()
    policy.msrs = {PLATFORM_INFO: 0x5, ARCH_CAPABILITIES: 0x7_0000_0004}
    assert run(policy, READ.format(number=PLATFORM_INFO)) == [5, 0]
    assert run(policy, READ.format(number=ARCH_CAPABILITIES)) == [4, 7]
    # Without its feature it is not there.
    policy.set(7, 0, d=0)
    assert run(policy, READ.format(number=ARCH_CAPABILITIES)) == [0xDEAD]
