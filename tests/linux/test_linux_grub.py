"""GRUB for Xen, as Debian has it in the package grub-xen-host, boots a kernel from the guest's disk.

The kernel is that of every Debian machine, whose image is compressed with XZ.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import Build, Kernel, paravirt

from examples.linux.build import BuildError, boot_disk


def disk_of(kernel: Kernel) -> tuple[Path, Path]:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here (Debian: e2fsprogs)")
    return boot_disk(kernel.vmlinuz, kernel.initrd, kernel.vmlinuz.parent, "console=hvc0 quiet")


def test_grub_boots_the_kernel_on_the_disk(build: Build, tmp_path: Path) -> None:
    """It finds its configuration there, shows its menu, unpacks and starts the kernel, which uses the disk in turn."""
    linux = build(
        'echo "of $(uname -r)"; mount -t ext4 -o ro /dev/xvda /mnt; grep menuentry /mnt/boot/grub/grub.cfg',
        flavour="amd64",
    )
    grub, disk = disk_of(linux)
    config = tmp_path / "grub.cfg"
    config.write_text(f'name = "grub"\nkernel = "{grub}"\nmemory = 256\ndisk = ["{disk},raw,xvda,r"]\n')
    done = paravirt("run", config)
    assert done.exit_code == 0, done.output
    assert "Reading (xen/xvda)/boot/grub/grub.cfg" in done.output
    assert "Booting `Debian'" in done.output
    assert re.search(r"of 6\.1\.\d+-\d+-amd64\n", done.output), done.output
    assert 'menuentry "Debian"' in done.output
    assert re.search(r"grub +1 +poweroff", done.output)


def test_a_kernel_that_grub_cannot_unpack_is_refused(build: Build) -> None:
    with pytest.raises(BuildError, match="LZ4, which GRUB cannot unpack: try --flavour amd64"):
        disk_of(build("", flavour="cloud-amd64"))
