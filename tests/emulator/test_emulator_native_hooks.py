"""The hooks in machine code say what their listings say."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from machine_code import require_assembler

from hypervisor.emulator import abort_guard, entries, memory_lookup, native_hooks
from hypervisor.emulator.native_hooks import Listing

LISTINGS = {
    "abort": abort_guard.HANDLER,
    "block": native_hooks.BLOCK,
    "rdtscp": native_hooks.CLEAR_TSC_AUX + native_hooks.READ_TSC,
    "translation": native_hooks.TRANSLATION,
    "step": native_hooks.STEP,
    "access": native_hooks.ACCESS,
    "lookup": memory_lookup.LOOKUP,
    "in": native_hooks.ABSENT_PORT + native_hooks.PORT_IO,
    "entries": entries.ON_EXCEPTION + entries.ON_SYSCALL + entries.LEAVE,
    "out": native_hooks.OUT_PREFIX + native_hooks.PORT_IO,
}


@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
def test_an_assembler_makes_the_same_code_of_the_listing(listing: Listing, tmp_path: Path) -> None:
    require_assembler()
    text = "\n".join(line.split("#")[0] for _, line in listing)
    (tmp_path / "hook.s").write_text(f".intel_syntax noprefix\n{text}\n")
    subprocess.run(["as", "-o", "hook.o", "hook.s"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "hook.o", "hook.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "hook.bin").read_bytes() == native_hooks.code(listing)
