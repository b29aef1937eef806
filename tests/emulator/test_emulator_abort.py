"""Instructions on which Unicorn would end the process: the guest gets an invalid opcode."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from machine_code import boot, words

KERNEL = """
main:
    lea traps(%rip), %rdi
    hcall __HYPERVISOR_set_trap_table
    mov $3, %ebx
    mov $0x55, %eax
again:
    jmp strange                   # a block of its own
strange:
    .byte @code@
    mov $0x66, %eax               # not reached
invalid:
    mov 16(%rsp), %rdx            # rcx, r11, rip
    lea strange(%rip), %rcx
    sub %rcx, %rdx
    show %rdx
    add $56, %rsp
    dec %ebx
    jnz again
    show %rax
    poweroff

.data
traps:
    trap 6, invalid
    trap 0, 0
"""


@pytest.mark.parametrize(
    "code",
    [
        (0xF0, 0x0F, 0xAB, 0xC1),
        (0xF0, 0x0F, 0xB3, 0xC1),
        (0xF0, 0x0F, 0xBB, 0xC1),
        (0xF0, 0x0F, 0xBA, 0xE7, 0x53),
        (0x66, 0xF0, 0x45, 0x0F, 0xBB, 0xDF),
    ],
    ids=["bts", "btr", "btc", "bt", "with more prefixes"],
)
def test_a_locked_bit_operation_on_a_register(code: tuple[int, ...]) -> None:
    """It comes again and again, and the kernel takes it each time."""
    assert words(boot(KERNEL.replace("@code@", ", ".join(map(hex, code))))) == [0, 0, 0, 0x55]


def test_other_aborts_still_end_the_process() -> None:
    script = (
        "import os\n"
        "from hypervisor.hypervisor import Hypervisor\n"
        "from hypervisor.machine.machine import Machine\n"
        "from hypervisor.emulator.processor import Processor\n"
        "processor = Processor(Hypervisor(Machine(memory_mib=16)))\n"
        "os.abort()\n"
    )
    pytest.importorskip("unicorn")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGABRT, done.stderr
