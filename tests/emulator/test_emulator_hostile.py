"""Machine code that means no good: whatever it does, it harms its own domain only, and no error of ours comes of it."""

from __future__ import annotations

from random import Random

import pytest
from machine_code import Machinery

from hypervisor.mm.check import check

KERNEL = """
main:
    lea table(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    lea handler(%rip), %rdi
    mov %rdi, %rsi
    mov %rdi, %rdx
    hcall __HYPERVISOR_set_callbacks
handler:
    # Whatever happens, go on at another place of the random code.
    mov counter(%rip), %rcx
    add $37, %rcx
    and $0x7ff, %rcx
    mov %rcx, counter(%rip)
    lea code(%rip), %rax
    add %rcx, %rax
    lea stack_end(%rip), %rsp
    lea data(%rip), %rdi
    lea data+64(%rip), %rsi
    lea data+128(%rip), %rbx
    mov $7, %edx
    jmp *%rax
.data
.balign 8
counter: .quad 0
table:
.irp vector, 0, 1, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 128
    trap \\vector, handler, 3
.endr
    .quad 0, 0
.balign 4096
data: .skip 8192
stack_end: .skip 64
.balign 4096
code: .byte {code}
"""
ADDRESSES = (0, 0x1000, 1 << 47, 0xFFFF800000000000, 0xFFFF820000000000, 0xFFFFFFFF80000000, 0xFFFFFFFF80005000)
PRIVILEGED = [
    "0f30",
    "0f32",
    "fa",
    "fb",
    "f4",
    "ec",
    "ee",
    "6c",
    "f36d",
    "6e",
    "f36f",
    "0f0b78656e0fa2",
    "0f31",
    "cf",
    "48cf",
    "cb",
    "9d",
    "0f07",
    "0f01f8",
    "0f01d0",
    "0f01d1",
    "0f0b",
    "8ed8",
    "8ee0",
    "8ee8",
    "0f34",
    "0fa2",
    "0f33",
    "f1",
    "0f01d9",
    "0fae00",
    "0fae08",
    "dbe3",
    "0f00d0",
    "0f00d8",
    "c3",
    "ffe0",
    "f3a4",
    "f3ab",
    "0f6f07",
    "660f6f07",
    "488b07",
    "488907",
    "488707",
    "50",
    "58",
]
SIZE = 2048


def random_code(random: Random) -> bytes:
    """Hypercalls with any number, privileged instructions, bad pointers, and bytes that mean nothing."""
    code = bytearray()
    while len(code) < SIZE:
        kind = random.randrange(10)
        if kind < 3:
            number, first = random.randrange(64), random.randrange(40)
            code += b"\xb8" + number.to_bytes(4, "little") + b"\xbf" + first.to_bytes(4, "little") + b"\x0f\x05"
        elif kind < 4:
            code += bytes((0x0F, 0x20 + random.randrange(4), 0xC0 | random.randrange(64)))
        elif kind < 5:
            code += random.randbytes(random.randrange(1, 6))
        elif kind < 6:
            register = random.choice(b"\xb8\xb9\xbf\xbe\xba")
            code += bytes((0x48, register)) + random.choice((*ADDRESSES, random.getrandbits(64))).to_bytes(8, "little")
        elif kind < 7:
            code += bytes((0xCD, random.randrange(256)))
        else:
            code += bytes.fromhex(random.choice(PRIVILEGED))
    return bytes(code[:SIZE])


@pytest.mark.parametrize("seed", range(16))
def test_random_code_harms_nobody_else(seed: int) -> None:
    code = ", ".join(map(str, random_code(Random(seed))))
    machinery = Machinery(KERNEL.format(code=code), vcpus=1 + seed % 2)
    hv = machinery.hv
    while not hv.stopped and hv.clock.now < 15_000_000 and hv.sched.drain(1) == 0:
        pass
    check(hv)


def test_a_kernel_whose_every_instruction_traps_uses_up_its_time() -> None:
    machinery = Machinery("main: mov %cr0, %rax\n jmp main\n")
    hv = machinery.hv
    for _ in range(3):
        hv.sched.drain(1)
    vcpu = machinery.domain.online_vcpus()[0]
    ran = vcpu.unit.running_time(hv.sched.pcpus[0].now)
    assert 20_000_000 <= ran < 40_000_000
