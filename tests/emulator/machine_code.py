"""Tiny PV kernels, assembled when a test runs, and hosts that run them as dom0.

A kernel is assembler text (AT&T syntax) that begins at its entry point. What Xen's headers define can be named; the
macros below make hypercalls, print and end the host.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from hypervisor.abi import event_channel, sched, version, xen
from hypervisor.dom0_build import construct_dom0
from hypervisor.emulator.binding import is_installed
from hypervisor.hypervisor import Hypervisor
from hypervisor.kernel_image.pv_kernel import LoadSegment, PvKernel
from hypervisor.machine.machine import Machine

BASE = 0xFFFFFFFF80000000
HEADER = r"""
#define __ASSEMBLY__
#define __XEN_INTERFACE_VERSION__ 0x00040e00
#include <xen/xen.h>
@constants@

.macro hcall nr
    mov $\nr, %eax
    syscall
.endm

# Print the zero-terminated text at a label.
.macro say text
    lea \text(%rip), %rdi
    call print
.endm

# Print a register in hexadecimal.
.macro show register
    push %rax
    mov \register, %rax
    call print_hex
    pop %rax
.endm

.macro poweroff
    mov $2, %edi
    lea zero_word(%rip), %rsi
    hcall __HYPERVISOR_sched_op
    ud2
.endm

# Have vector `vector` handled at `handler` (the list ends with an address of 0).
.macro trap vector, handler, flags=0
    .byte \vector, \flags
    .word FLAT_KERNEL_CS
    .long 0
    .quad \handler
.endm

.text
.globl _start
_start:
    cld
    jmp main
"""
CONSTANTS = {
    "EVTCHNOP_bind_ipi": event_channel.EVTCHNOP_bind_ipi,
    "EVTCHNOP_send": event_channel.EVTCHNOP_send,
    "XENVER_version": version.XENVER_version,
    "XENVER_pagesize": version.XENVER_pagesize,
    "VGCF_in_kernel": xen.VGCF_in_kernel,
}
"""What the headers define in C only."""
FOOTER = r"""
.text
print:
    push %rax; push %rcx; push %rdx; push %rsi; push %rdi; push %r11
    mov %rdi, %rdx
1:  cmpb $0, (%rdx)
    je 2f
    inc %rdx
    jmp 1b
2:  sub %rdi, %rdx
    mov %rdx, %rsi
    mov %rdi, %rdx
    mov $CONSOLEIO_write, %edi
    hcall __HYPERVISOR_console_io
    pop %r11; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rax
    ret

print_hex:
    push %rcx; push %rdx; push %rdi
    lea digits_end(%rip), %rdi
1:  mov %eax, %ecx
    and $15, %ecx
    lea hex_digits(%rip), %rdx
    mov (%rdx, %rcx), %cl
    dec %rdi
    mov %cl, (%rdi)
    shr $4, %rax
    jnz 1b
    call print
    pop %rdi; pop %rdx; pop %rcx
    ret

.data
.balign 8
zero_word: .quad 0
hex_digits: .ascii "0123456789abcdef"
digits: .skip 16
digits_end: .asciz " "
.balign 4096
end_of_kernel:
"""


def require_assembler() -> None:
    """Skip the calling test where no kernel can be assembled or run; fail it where they must be (in CI)."""
    reason = None
    if platform.machine() != "x86_64":
        reason = f"the kernels are for x86-64, and the assembler of this machine is for {platform.machine()}."
    elif shutil.which("gcc") is None or shutil.which("ld") is None:
        reason = "gcc and binutils are not installed, so there is no machine code to run (apt install gcc)."
    elif not Path("/usr/include/xen/xen.h").exists():
        reason = "Xen's public headers are not installed (apt install libxen-dev)."
    elif not is_installed():
        reason = "Unicorn is not installed (pip install 'paravirt[emulator]')."
    if reason is None:
        return
    if os.environ.get("PARAVIRT_REQUIRE_LIBXEN") == "1":
        pytest.fail(f"PARAVIRT_REQUIRE_LIBXEN=1, but {reason}")
    pytest.skip(reason)


@lru_cache(maxsize=256)
def assemble(source: str) -> bytes:
    """Return the bytes of a kernel that is loaded at `BASE`."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        constants = "\n".join(f".set {name}, {value}" for name, value in CONSTANTS.items())
        (folder / "kernel.S").write_text(HEADER.replace("@constants@", constants) + source + FOOTER)
        script = f"ENTRY(_start) SECTIONS {{ . = {BASE:#x}; .all : {{ *(.text) *(.rodata) *(.data) *(.bss) }} }}"
        (folder / "kernel.lds").write_text(script)
        for command in (
            ["gcc", "-c", "-o", "kernel.o", "kernel.S"],
            ["ld", "-n", "-T", "kernel.lds", "-o", "kernel", "kernel.o"],
            ["objcopy", "-O", "binary", "kernel", "kernel.bin"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        return (folder / "kernel.bin").read_bytes()


class Machinery:
    """A host whose dom0 is a kernel in machine code."""

    def __init__(
        self,
        source: str,
        *,
        vcpus: int = 1,
        memory_mib: int = 64,
        pcpus: int = 1,
        real_time: bool = False,
        **options: Any,
    ) -> None:
        require_assembler()
        self.log = bytearray()
        self.hv = Hypervisor(
            Machine(memory_mib=memory_mib, pcpus=pcpus, real_time=real_time), console=self.log.extend, **options
        )
        self.domain = self.hv.domain_ops.create(0, max_vcpus=vcpus, is_privileged=True)
        for vcpu_id in range(vcpus):
            self.hv.domain_ops.add_vcpu(self.domain, vcpu_id)
        image = assemble(source)
        kernel = PvKernel(virt_base=BASE, virt_entry=BASE, segments=(LoadSegment(BASE, image, len(image)),))
        construct_dom0(self.hv, self.domain, kernel, "", None, 16 << 8)
        self.hv.domain_ops.unpause(self.domain)

    def run(self, seconds: int = 3) -> str:
        """Run until dom0 ends, for some seconds of virtual time at most; returns what was printed."""
        while not self.hv.stopped and self.hv.clock.now < seconds * 1_000_000_000:
            assert self.hv.sched.drain(100) == 0 or self.hv.stopped, f"the host is idle: {self.log.decode()}"
        assert self.hv.stopped, f"the kernel does not end: {self.log.decode()}"
        return self.log.decode()


def boot(source: str, **options: Any) -> str:
    """Run a kernel that powers the host off; returns what it has printed, without Xen's own lines."""
    machinery = Machinery(source, **options)
    text = machinery.run()
    assert machinery.hv.shutdown_reason == sched.SHUTDOWN_poweroff, text
    return re.sub(r"\(XEN\).*\n", "", text)


def crash(source: str, **options: Any) -> str:
    """Run a kernel that Xen has to end; returns what was printed."""
    machinery = Machinery(source, **options)
    text = machinery.run()
    assert machinery.hv.shutdown_reason == sched.SHUTDOWN_crash, text
    return text


def words(text: str) -> list[int]:
    """Return the hexadecimal numbers that a kernel has printed with `show`."""
    return [int(word, 16) for word in text.split()]


QUAD = struct.Struct("<Q")
