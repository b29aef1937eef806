"""A stock Linux kernel, from its first instruction to a process that forks: as a guest, and as dom0.

PARAVIRT_LINUX names a kernel: a vmlinuz of Debian 12, for example. It takes 10 to 20 s of processor time each.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolstack.cli import main

VARIABLE = "PARAVIRT_LINUX"
S_IFCHR, S_IFREG, S_IFDIR = 0o020000, 0o100000, 0o040000


@pytest.fixture(scope="module")
def linux() -> Path:
    """The kernel."""
    pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")
    if VARIABLE not in os.environ:
        pytest.skip(f"no Linux kernel to be booted ({VARIABLE} names one)")
    return Path(os.environ[VARIABLE])


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initial ramdisk with linux_init.c as its only program."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("building an init needs gcc")
    directory = tmp_path_factory.mktemp("initrd")
    source, init = Path(__file__).with_name("linux_init.c"), directory / "init"
    flags = ["-O1", "-static", "-nostdlib", "-fno-stack-protector", "-Wall", "-Werror"]
    subprocess.run([gcc, *flags, str(source), "-o", str(init)], check=True, capture_output=True)
    archive = entry("dev", S_IFDIR | 0o755) + entry("dev/console", S_IFCHR | 0o600, device=(5, 1))
    archive += entry("init", S_IFREG | 0o755, init.read_bytes()) + entry("TRAILER!!!", 0)
    path = directory / "initrd.gz"
    path.write_bytes(gzip.compress(archive))
    return path


def entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """Return an entry of a cpio archive (initramfs buffer format)."""
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


@pytest.mark.parametrize("vcpus", [1, 2])
def test_as_a_guest(linux: Path, initrd: Path, tmp_path: Path, vcpus: int) -> None:
    config = tmp_path / "linux.cfg"
    config.write_text(
        f'name = "linux"\nkernel = "{linux.absolute()}"\nramdisk = "{initrd}"\nmemory = 192\nvcpus = {vcpus}\n'
        'extra = "console=hvc0 earlyprintk=xen"\n'
    )
    result = CliRunner().invoke(main, ["run", str(config)], catch_exceptions=False)
    assert "Hypervisor detected: Xen PV" in result.stdout
    assert "userspace: a child\n" in result.stdout
    assert "userspace: it has computed the root of two\n" in result.stdout
    assert result.exit_code == 0


def test_as_dom0(linux: Path, initrd: Path) -> None:
    words = [str(linux), "--module", str(initrd), "--memory", "192", "--cmdline", "console=hvc0 earlyprintk=xen"]
    result = CliRunner().invoke(main, ["boot", *words], catch_exceptions=False)
    assert "Hypervisor detected: Xen PV" in result.stdout
    assert "Run /init as init process" in result.stdout
    assert result.stdout.endswith("(XEN) Hardware Dom0 halted: halting machine\n")
    assert result.exit_code == 0
