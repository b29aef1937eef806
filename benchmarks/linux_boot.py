"""How long Debian's Linux takes from its first instruction to poweroff, and what of that is Python.

The guest has a small ramdisk that powers it off at once. Prints what the guest used, wall and processor time, and the
share of Python: all that is not the emulator's own code, be it called from there (traps, hypercalls, with the way into
Python and back) or not (dom0, building the domain, the loop of the host). What libraries do that Python calls, such as
unpacking the kernel, is in it too; the hooks in machine code (`native_hooks`, `entries`) are the emulator's.

usage: python -m benchmarks.linux_boot [DIRECTORY]     (where the packages are kept; default: examples/linux/build)
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from examples.linux import build as debian
from hypervisor.emulator.binding import Binding
from hypervisor.emulator.native_hooks import NativeHooks
from hypervisor.emulator.processor import Processor
from hypervisor.kernel_image import bzimage
from toolstack.cli import main as paravirt

ROOT = Path(__file__).resolve().parents[1]
GOAL_SECONDS, GOAL_SHARE = 25, 0.15


class Stopwatch:
    """Processor time spent in the emulator, and in the Python that it calls: traps, hypercalls, table look-ups.

    Asking for the processor time takes longer than many a hypercall. So it is asked for around each stretch in the
    emulator, and divided by what a cheaper clock says of the parts, which on a busy machine is as much too long for
    one as for the other.
    """

    def __init__(self) -> None:
        self.emulator = 0.0
        self._inside = self._stretches = 0.0
        self.calls = 0
        self.unpacking = 0.0
        self._patch_unpacking()
        self._patch(Binding, "__init__", self._time_start)
        guard, miss = Processor._guard, NativeHooks.__init__

        def timed_guard(processor: Processor, function: Callable[[], None]) -> Callable[[], None]:
            return guard(processor, self._timed(function))

        def timed_miss(hooks: NativeHooks, state: int, stop: int, raising: int, function: Any, *rest: Any) -> None:
            miss(hooks, state, stop, raising, self._timed(function), *rest)

        for name in ("hook_syscall", "hook_exceptions"):
            self._time_argument(name)
        Processor._guard = timed_guard  # type: ignore[method-assign]
        NativeHooks.__init__ = timed_miss  # type: ignore[method-assign]

    @property
    def translated(self) -> float:
        """Return what is the emulator's own: without Python, and without the way there and back."""
        python = self.emulator * self._inside / self._stretches
        return self.emulator - python - self.calls * _seconds_of_a_call()

    def _patch_unpacking(self) -> None:
        original = bzimage.unpack

        def timed(data: bytes) -> bytes:
            began = time.process_time()
            try:
                return original(data)
            finally:
                self.unpacking += time.process_time() - began

        bzimage.unpack = timed

    def _patch(self, owner: type, name: str, after: Callable[[Any], None]) -> None:
        original = getattr(owner, name)

        def patched(instance: Any, *words: Any) -> None:
            original(instance, *words)
            after(instance)

        setattr(owner, name, patched)

    def _time_argument(self, name: str) -> None:
        """Time the function that is set as a hook by a method of the binding."""
        original = getattr(Binding, name)
        setattr(Binding, name, lambda binding, function: original(binding, self._timed(function)))

    def _time_start(self, binding: Binding) -> None:
        start = binding._start

        def timed(*words: int) -> int:
            began, at = time.process_time(), time.perf_counter()
            status = start(*words)
            self._stretches += time.perf_counter() - at
            self.emulator += time.process_time() - began
            return status

        binding._start = timed

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*words: Any) -> Any:
            at = time.perf_counter()
            try:
                return function(*words)
            finally:
                self._inside += time.perf_counter() - at
                self.calls += 1

        return timed


def _seconds_of_a_call() -> float:
    """Return how long it takes to call a function in Python from outside, and to come back."""
    rounds = 100_000
    call = ctypes.CFUNCTYPE(None)(lambda: None)
    began = time.process_time()
    for _ in range(rounds):
        call()
    with_call = time.process_time() - began
    began = time.process_time()
    for _ in range(rounds):
        pass
    return (with_call - (time.process_time() - began)) / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "examples" / "linux" / "build")
    parser.add_argument("--flavour", default="cloud-amd64")
    words = parser.parse_args()
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        job = directory / "job"
        job.write_text("")
        words.directory.mkdir(parents=True, exist_ok=True)
        try:
            vmlinuz, initrd = debian.build(words.flavour, words.directory.resolve(), job)
        except debian.BuildError as error:
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
    translated = watch.translated
    print(f"wall time       {wall:8.1f} s (goal: under {GOAL_SECONDS})")
    print(f"processor time  {cpu:8.1f} s")
    print(f"in the emulator {translated:8.1f} s, which called Python {watch.calls:,} times")
    print(f"in Python       {1 - translated / cpu:8.1%} (goal: under {GOAL_SHARE:.0%})")
    print(f"of which        {watch.unpacking / cpu:8.1%} are for unpacking the kernel")


if __name__ == "__main__":
    main()
