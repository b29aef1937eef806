"""Builds the kernels of this folder with the compiler of the machine and Xen's public headers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

LINK = """
ENTRY(_start)
PHDRS { text PT_LOAD FLAGS(7); note PT_NOTE FLAGS(4); }
SECTIONS {
    . = 0xffffffff80000000;
    .text : AT(ADDR(.text) - 0xffffffff80000000) { *(.text.start) *(.text*) *(.rodata*) } :text
    .note.Xen : { *(.note.Xen) } :text :note
    .data : { *(.data*) } :text
    .bss : { *(.bss*) *(COMMON) } :text
    PROVIDE(kernel_end = .);
    /DISCARD/ : { *(.comment) *(.eh_frame) *(.note.GNU-stack) *(.note.gnu*) }
}
"""
FLAGS = (
    *("-O1", "-ffreestanding", "-fno-pic", "-no-pie", "-static", "-nostdlib", "-mcmodel=kernel", "-mno-red-zone"),
    *("-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none"),
    *("-Wall", "-Werror", "-Wno-main", "-Wno-address-of-packed-member"),
)


def build(directory: Path, source: str = "mini_kernel.c") -> Path:
    """Compile a kernel into a directory; skip the test where that cannot be."""
    gcc = shutil.which("gcc")
    if gcc is None or not Path("/usr/include/xen/xen.h").exists():
        pytest.skip("building a kernel needs gcc and Xen's public headers (libxen-dev)")
    script, kernel = directory / "mini.lds", directory / "mini.elf"
    script.write_text(LINK)
    command = [
        gcc,
        *FLAGS,
        "-Wl,--build-id=none",
        "-T",
        str(script),
        str(Path(__file__).with_name(source)),
        "-o",
        str(kernel),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return kernel
