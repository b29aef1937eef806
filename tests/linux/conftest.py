"""Debian's Linux for the tests: the kernel from its package, and a ramdisk with a job.

They are built by `examples/linux/build.py`, which needs Debian's packages. PARAVIRT_LINUX_BUILD names a directory where
the packages are kept between runs; without it the tests are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner, Result

from examples.linux import build as debian
from toolstack.cli import main

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "PARAVIRT_LINUX_BUILD"
Build = Callable[..., "Kernel"]


@attrs.frozen
class Kernel:
    """A kernel and its ramdisk."""

    vmlinuz: Path
    initrd: Path

    def config(self, path: Path, *settings: str, memory: int = 192, extra: str = "") -> Path:
        """Write the configuration of a guest with this kernel."""
        lines = (
            f'name = "{path.stem}"',
            f'kernel = "{self.vmlinuz}"',
            f'ramdisk = "{self.initrd}"',
            f'extra = "console=hvc0 quiet {extra}"',
            f"memory = {memory}",
            *settings,
        )
        path.write_text("\n".join(lines) + "\n")
        return path


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Make a kernel and a ramdisk that runs a job; without one it gives the console a shell."""
    if VARIABLE not in os.environ:
        pytest.skip(f"no packages of a Linux kernel ({VARIABLE} names a directory for them; it may be empty)")
    pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")
    directory = Path(os.environ[VARIABLE]).resolve()

    def make(
        job: str | None, name: str = "linux", flavour: str = "cloud-amd64", programs: Sequence[Path] = ()
    ) -> Kernel:
        script = None if job is None else tmp_path / f"{name}.sh"
        if script is not None and job is not None:
            script.write_text(job)
        output = tmp_path / name
        output.mkdir()
        (directory / "packages").mkdir(parents=True, exist_ok=True)
        (output / "packages").symlink_to(directory / "packages")
        vmlinuz, initrd = debian.build(flavour, output, script, programs)
        return Kernel(vmlinuz, initrd)

    return make


def paravirt(*words: str | Path) -> Result:
    """Run the command in this process, so that the leak check sees its host."""
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
