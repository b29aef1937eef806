"""Every benchmark still runs, in its shortest form: what it measures is nobody's test, but that it works is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = {
    "bytecodes": (),
    "block": ("--slices", "1", "--rounds", "1"),
    "events": ("--hops", "50", "--repeats", "1", "--rounds", "1"),
    "grants": (),
    "fleet": ("--guests", "9", "--seconds", "1"),
    "idle_domains": ("--domains", "3"),
    "machine_code": ("--rounds", "1"),
    "xenstore_core": ("--nodes", "100", "--watches", "10"),
    "timers": ("--timers", "2000", "--rounds", "1"),
    "tracing": ("--slices", "1", "--rounds", "1", "--records", "5000"),
    "net": ("--seconds", "0.02", "--repeats", "1"),
}
NEEDS_C = {"block", "net"}


@pytest.mark.parametrize("name", SHORT)
def test_it_runs(name: str) -> None:
    if name in NEEDS_C and not (shutil.which("gcc") and Path("/usr/include/xen/io/ring.h").exists()):
        pytest.skip("its reference is in C: gcc, and Xen's ring.h (Debian: libxen-dev)")
    if name == "machine_code":
        pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")
    command = [sys.executable, "-m", f"benchmarks.{name}", *SHORT[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "it has found nothing"
    assert not done.stderr.strip(), done.stderr
