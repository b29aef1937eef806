#!/usr/bin/env python3
"""Makes a kernel and a small initial ramdisk for a Linux guest from Debian's packages; no root, nothing installed.

    python examples/linux/build.py                              # the cloud flavour, into examples/linux/build
    python examples/linux/build.py --flavour amd64 --job examples/linux/check.sh

It downloads the packages (apt-get download), unpacks them and writes into the directory

    vmlinuz    the kernel, as it is in the package
    initrd.gz  busybox, the modules of the Xen frontends (and what they depend on), `init` of this example

With --grub there are also

    grub-x86_64-xen.bin    GRUB for Xen, as it is in the package
    boot.img               a disk that it boots from: ext4, with the kernel, the ramdisk and a grub.cfg

`init` runs the job, a shell script, and powers the guest off; without a job it gives the console a shell.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = ("xen-blkfront", "xen-netfront", "crc32c_generic", "ext4", "9pnet_xen", "9p")
"""Modules that the ramdisk takes, where the kernel has them as modules and not built in. (ext4 asks for a CRC32C by its
name, so it does not show among what it depends on.)"""
MENU = """\
set timeout=1
menuentry "Debian" {{
    linux /boot/vmlinuz {arguments}
    initrd /boot/initrd.gz
}}
"""
"""What GRUB reads on the disk."""
LZ4 = b"\x02\x21\x4c\x18"
"""How a kernel's payload begins that GRUB cannot unpack (LZ4's legacy frame)."""
BOOT_DISK_MIB = 64
S_IFCHR, S_IFREG, S_IFDIR, S_IFLNK = 0o020000, 0o100000, 0o040000, 0o120000


class BuildError(Exception):
    """Something is missing; the message is a sentence for a person."""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return what it prints. Raises BuildError with its last line of complaint."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not there: this needs a Debian (or Ubuntu) system") from None
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    return done.stdout


def kernel_package(flavour: str, cwd: Path) -> str:
    """Return the name of the package that the metapackage of a flavour depends on: the newest kernel."""
    shown = run("apt-cache", "depends", f"linux-image-{flavour}", cwd=cwd)
    found = re.search(r"Depends: (linux-image-\d\S*)", shown)
    if found is None:
        raise BuildError(f"apt knows no kernel of the flavour {flavour!r} (try: amd64, cloud-amd64; apt-get update)")
    return found[1]


def unpack(package: str, downloads: Path) -> Path:
    """Download and unpack a package, unless that has been done; returns the directory."""
    tree = downloads / package
    if not tree.exists():
        for old in downloads.glob(f"{package}_*.deb"):
            old.unlink()
        run("apt-get", "download", package, cwd=downloads)
        [archive] = downloads.glob(f"{package}_*.deb")
        partial = Path(tempfile.mkdtemp(dir=downloads))
        run("dpkg-deb", "-x", archive, partial, cwd=downloads)
        partial.rename(tree)
    return tree


def with_dependencies(wanted: tuple[str, ...], kernel: Path) -> list[Path]:
    """Return the modules and all that they depend on, each after what it needs."""
    files = {path.name.removesuffix(".ko").replace("-", "_"): path for path in kernel.rglob("*.ko")}
    order: list[Path] = []

    def take(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:
            return  # built in, or not part of this flavour; or taken already
        found = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for dependency in filter(None, found[1].decode().split(",") if found else ()):
            take(dependency)
        order.append(path)

    for name in wanted:
        take(name)
    return order


class Archive:
    """A cpio archive in the new ASCII format, as the kernel's documentation has it (initramfs buffer format)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Append a file, directory, device or symbolic link (then `data` is where it points)."""
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        self._data += bytes(-len(self._data) % 4) + data
        self._data += bytes(-len(self._data) % 4)

    def finish(self) -> bytes:
        """Return the archive."""
        self.add("TRAILER!!!", 0)
        return bytes(self._data)


def commands(busybox: Path) -> Iterator[str]:
    """Yield the names under which busybox can be called."""
    for line in run(busybox, "--list", cwd=HERE).splitlines():
        if line != "busybox":
            yield line


def ramdisk(busybox: Path, modules: list[Path], job: Path | None, programs: Sequence[Path] = ()) -> bytes:
    """Return the initial ramdisk, uncompressed."""
    archive = Archive()
    for directory in ("bin", "dev", "etc", "mnt", "modules", "proc", "root", "sbin", "sys", "tmp"):
        archive.add(directory, S_IFDIR | 0o755)
    archive.add("dev/console", S_IFCHR | 0o600, device=(5, 1))
    archive.add("bin/busybox", S_IFREG | 0o755, busybox.read_bytes())
    for name in commands(busybox):
        archive.add(f"bin/{name}", S_IFLNK | 0o777, b"busybox")
    for number, module in enumerate(modules):
        archive.add(f"modules/{number:02}-{module.name}", S_IFREG | 0o644, module.read_bytes())
    for name in ("poweroff", "reboot"):
        # What the kernel starts when the toolstack asks for it (control/shutdown).
        archive.add(f"sbin/{name}", S_IFREG | 0o755, f"#!/bin/sh\nexec /bin/{name} -f\n".encode())
    for program in programs:
        archive.add(f"bin/{program.name}", S_IFREG | 0o755, program.read_bytes())
    archive.add("init", S_IFREG | 0o755, (HERE / "init").read_bytes())
    if job is not None:
        archive.add("job", S_IFREG | 0o755, job.read_bytes())
    return archive.finish()


def build(flavour: str, directory: Path, job: Path | None, programs: Sequence[Path] = ()) -> tuple[Path, Path]:
    """Make the kernel and the ramdisk, with programs (statically linked) for the job; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    downloads = directory / "packages"
    downloads.mkdir(exist_ok=True)
    kernel = unpack(kernel_package(flavour, downloads), downloads)
    busybox = unpack("busybox-static", downloads) / "bin" / "busybox"
    [image] = kernel.glob("boot/vmlinuz-*")
    modules = with_dependencies(MODULES, kernel)
    vmlinuz, initrd = directory / "vmlinuz", directory / "initrd.gz"
    shutil.copyfile(image, vmlinuz)
    # A fixed time in the header: the same input makes the same bytes, and so the same boot.
    initrd.write_bytes(gzip.compress(ramdisk(busybox, modules, job, programs), mtime=0))
    return vmlinuz, initrd


def payload(vmlinuz: Path) -> bytes:
    """Return what an image has packed (The Linux/x86 Boot Protocol: setup_sects, payload_offset, payload_length)."""
    image = vmlinuz.read_bytes()
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    return image[start : start + length]


def boot_disk(vmlinuz: Path, initrd: Path, directory: Path, arguments: str = "console=hvc0") -> tuple[Path, Path]:
    """Get GRUB, and make a disk on which it finds a kernel; returns their paths."""
    if payload(vmlinuz).startswith(LZ4):
        raise BuildError("this kernel is compressed with LZ4, which GRUB cannot unpack: try --flavour amd64")
    [packaged] = unpack("grub-xen-host", directory / "packages").rglob("grub-x86_64-xen.bin")
    grub, disk = directory / packaged.name, directory / "boot.img"
    shutil.copyfile(packaged, grub)
    with tempfile.TemporaryDirectory(dir=directory) as name:
        boot = Path(name) / "boot"
        (boot / "grub").mkdir(parents=True)
        shutil.copyfile(vmlinuz, boot / "vmlinuz")
        shutil.copyfile(initrd, boot / "initrd.gz")
        (boot / "grub" / "grub.cfg").write_text(MENU.format(arguments=arguments))
        disk.unlink(missing_ok=True)
        run("mkfs.ext4", "-q", "-d", name, disk, f"{BOOT_DISK_MIB}M", cwd=directory)
    return grub, disk


def main() -> None:
    """Do what the command line says."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flavour", default="cloud-amd64", help="of linux-image-FLAVOUR (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "build", metavar="DIR")
    parser.add_argument("--job", type=Path, help="a script for the guest to run; it is powered off afterwards")
    parser.add_argument(
        "--add", type=Path, action="append", default=[], metavar="PROGRAM", help="statically linked, for the job's use"
    )
    parser.add_argument("--grub", action="store_true", help="get GRUB, and make a disk for it to boot from")
    words = parser.parse_args()
    directory = words.output.resolve()
    try:
        made = build(words.flavour, directory, words.job, words.add)
        for path in made + (boot_disk(*made, directory) if words.grub else ()):
            print(path)
    except (BuildError, OSError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
