"""How long Debian's Linux takes from its first instruction to poweroff, and what of that is Python.

The guest has a small ramdisk that powers it off at once. Prints wall and processor time, virtual time, instructions by
the emulator's count, and the share of processor time outside of the emulator's translated code: the hypervisor, the
handling of exceptions, devices, and the emulator's own bookkeeping calls from Python.

usage: python -m benchmarks.linux_boot [DIRECTORY]     (where the packages are kept; default: examples/linux/build)
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from click.testing import CliRunner

from hypervisor.emulator.binding import Binding
from toolstack.cli import main as paravirt

ROOT = Path(__file__).resolve().parents[1]
GOAL_SECONDS, GOAL_SHARE = 25, 0.15


def builder() -> ModuleType:
    """The script that makes kernel and ramdisk."""
    spec = importlib.util.spec_from_file_location("build_linux", ROOT / "examples" / "linux" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stopwatch:
    """Processor time spent in the emulator: in `uc_emu_start` and what it calls, all of it C."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.entries = 0
        make = Binding.__init__

        def init(binding: Binding, *words: Any) -> None:
            make(binding, *words)
            start = binding._start

            def timed(*arguments: int) -> int:
                began = time.process_time()
                status = start(*arguments)
                self.seconds += time.process_time() - began
                self.entries += 1
                return status

            binding._start = timed

        Binding.__init__ = init  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "examples" / "linux" / "build")
    parser.add_argument("--flavour", default="cloud-amd64")
    words = parser.parse_args()
    module = builder()
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        job = directory / "job"
        job.write_text("")
        words.directory.mkdir(parents=True, exist_ok=True)
        try:
            vmlinuz, initrd = module.build(words.flavour, words.directory.resolve(), job)
        except module.BuildError as error:
            sys.exit(f"linux_boot: {error}")
        config = directory / "linux.cfg"
        config.write_text(
            f'name = "linux"\nkernel = "{vmlinuz}"\nramdisk = "{initrd}"\nmemory = 256\nextra = "console=hvc0 quiet"\n'
        )
        wall, cpu = time.monotonic(), time.process_time()
        result = CliRunner().invoke(paravirt, ["run", "--quiet", str(config)], catch_exceptions=False)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    if result.exit_code:
        sys.exit(result.output)
    print(next(line for line in result.output.splitlines() if line.split()[:1] == ["linux"]))
    outside = 1 - watch.seconds / cpu
    print(f"wall time       {wall:8.1f} s (goal: under {GOAL_SECONDS})")
    print(f"processor time  {cpu:8.1f} s")
    print(f"in the emulator {watch.seconds:8.1f} s, entered {watch.entries:,} times")
    print(f"outside of it   {outside:8.1%} (goal: under {GOAL_SHARE:.0%})")


if __name__ == "__main__":
    main()
