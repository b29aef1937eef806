"""The real Xen and this one, asked the same thousands of questions: a kernel prints all answers, and they are compared.

`PARAVIRT_XEN` names Debian's hypervisor (`xen-4.17-amd64.gz` of the package `xen-hypervisor-4.17-amd64`), which QEMU
runs on a PC of its own; no hardware virtualization is needed.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mini_kernel import build

from hypervisor.abi.version import XENVER_compile_info

pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")

COMMAND_LINE = "com1=115200,8n1 console=com1 dom0_mem=64M dom0_max_vcpus=2"
QUESTION = re.compile(r"Q (?P<number>\w+) (?P<call>\w+) (?P<command>\w+) .*")
BUILD = ("11", f"{XENVER_compile_info:x}")
"""xen_version's compile_info tells of whoever built that Xen."""
SEEDS = range(1, 4)


@pytest.fixture(scope="module")
def xen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real one, unpacked."""
    packed = os.environ.get("PARAVIRT_XEN", "")
    if not packed or not Path(packed).exists() or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("comparing with real Xen needs qemu-system-x86_64, and PARAVIRT_XEN that names the hypervisor")
    path = tmp_path_factory.mktemp("xen") / "xen"
    path.write_bytes(gzip.decompress(Path(packed).read_bytes()))
    return path


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("probe"), "probe_kernel.c")


def answers(output: str) -> list[str]:
    """Return the lines of the kernel, without what only tells of a build."""
    found = []
    for line in output.replace("\r", "").splitlines():
        match = QUESTION.fullmatch(line)
        if match is not None and (match["call"], match["command"]) != BUILD:
            found.append(line)
    return found


def really(xen: Path, kernel: Path, seed: int) -> str:
    """Run the kernel on the real Xen; return what comes out of the serial line."""
    machine = ["qemu-system-x86_64", "-m", "512", "-smp", "2", "-cpu", "max", "-display", "none", "-serial", "stdio"]
    run = [*machine, "-no-reboot", "-kernel", str(xen), "-initrd", f"{kernel} {seed}", "-append", COMMAND_LINE]
    with subprocess.Popen(
        run, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                # (It does not switch QEMU's PC off, or counts five seconds before it restarts it.)
                if "Hardware Dom0" in line or "Domain 0 crashed" in line:
                    break
        finally:
            process.kill()
    return "".join(lines)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_answers_are_those_of_the_real_xen(xen: Path, kernel: Path, seed: int) -> None:
    there = answers(really(xen, kernel, seed))
    # (In a process of its own: this kernel does not clear up.)
    command = [str(Path(sys.executable).with_name("paravirt")), "boot", str(kernel)]
    words = ["--xen-cmdline", COMMAND_LINE, "--cmdline", str(seed)]
    here = answers(subprocess.run([*command, *words], capture_output=True, text=True, check=False).stdout)
    assert len(there) > 100
    different = [(one, other) for one, other in zip(there, here, strict=False) if one != other]
    assert not different, "\n".join(f"xen : {one}\nours: {other}" for one, other in different[:10])
    assert len(here) == len(there)
