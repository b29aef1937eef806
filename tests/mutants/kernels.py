"""Faulty kernels: a small one in C, compiled with one fault each, or one in Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hypervisor.emulator.binding import is_installed
from tests.boot import mini_kernel

SOURCE = Path(__file__).parents[1] / "conformance" / "abi_kernel.c"

MUTANTS: dict[str, tuple[str, str]] = {
    "no-entry": ("its notes name no entry", "GUEST-ABI-001"),
    "elsewhere": ("its entry is behind all that is loaded", "GUEST-ABI-002"),
    "half-a-page": ("its hypercall page begins in the middle of a page", "GUEST-ABI-003"),
    "nameless": ("it does not say what system it is", "GUEST-ABI-004"),
    "crashes": ("it writes where nothing is mapped", "GUEST-ABI-010"),
    "late-callback": ("it lets events in and then registers a callback", "GUEST-ABI-011"),
    "no-traps": ("it has no trap handlers", "GUEST-ABI-012"),
    "no-failsafe": ("it has no failsafe callback", "GUEST-ABI-013"),
    "wrong-page": ("it takes a page of its own for shared_info", "GUEST-ABI-014"),
    "writable-table": ("it wants a page table mapped writable", "GUEST-ABI-015"),
    "one-too-many": ("it stops the timer of a vCPU that it has not", "GUEST-ABI-016"),
    "loses-events": ("it clears the selector and looks at no port", "GUEST-ABI-020"),
    "trusts-events": ("it falls over the twentieth event without a cause", "GUEST-ABI-021"),
    "spins": ("it does not give its processor up", "GUEST-ABI-022"),
    "hurries": ("it falls over a clock that has jumped", "GUEST-ABI-023"),
    "grants": ("it lets another domain at a page", "GUEST-ABI-024"),
    "runs-over": ("it prints without looking for room", "GUEST-ABI-030"),
    "silent": ("it prints and notifies nobody", "GUEST-ABI-031"),
    "trusts-the-daemon": ("it falls over an index", "GUEST-ABI-032"),
    "too-long": ("it sends xenstored too long a message", "GUEST-ABI-033"),
    "ignores": ("it does not answer control/shutdown", "GUEST-ABI-040"),
    "no-word": ("it does not acknowledge a request", "GUEST-ABI-041"),
    "never-comes-back": ("it powers off instead of rebooting", "GUEST-ABI-042"),
    "literal": ("it falls over a request that it does not know", "GUEST-ABI-043"),
    "promises": ("it offers to be suspended, and cannot", "GUEST-ABI-044"),
    "faults": ("it ends by a fault", "GUEST-ABI-045"),
}
"""Name → the fault, the check meant for it; the number of the check is the number of the fault."""


def require_compiler() -> None:
    """Skip the calling test where no kernel can be compiled or run."""
    if shutil.which("gcc") is None or not Path("/usr/include/xen/xen.h").exists():
        pytest.skip("building a kernel needs gcc and Xen's public headers (libxen-dev)")
    if not is_installed():
        pytest.skip("machine code needs the extra 'emulator'")


def number(id: str) -> int:
    """Return which fault a check is meant for: its own number."""
    return int(id.rpartition("-")[2])


def build(directory: Path, fault: int = 0, *more: str) -> Path:
    """Compile the kernel into a directory, with a fault, and with more options for the compiler."""
    script, kernel = directory / "abi.lds", directory / f"abi-{fault}.elf"
    script.write_text(mini_kernel.LINK)
    command = ["gcc", *mini_kernel.FLAGS, f"-DFAULT={fault}", "-Wno-unused", "-Wl,--build-id=none", "-T", str(script)]
    words = [*command, *more, str(SOURCE), "-o", str(kernel)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return kernel
