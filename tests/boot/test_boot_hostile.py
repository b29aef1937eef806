"""Kernels that execute noise: whatever they do, they get an answer, an exception or an end, and Xen stays whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from mini_kernel import build

from hypervisor.abi import sched
from hypervisor.kernel_image import PvKernel
from toolstack.boot_host import BootHost, BootResult, BootSpec
from toolstack.machine_code import read_kernel

XEN = "dom0_mem=12M dom0_max_vcpus=2 loglvl=none guest_loglvl=none"
LIMIT_NS = 100_000_000


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> PvKernel:
    """The kernel of fuzz_kernel.c, built."""
    pytest.importorskip("unicorn", reason="machine code needs the extra 'emulator'")
    return read_kernel(build(tmp_path_factory.mktemp("noise"), "fuzz_kernel.c"))


def boot(kernel: PvKernel, seed: int) -> tuple[BootResult, bytes]:
    console = bytearray()
    spec = BootSpec(kernel_path=Path("noise"), kernel=kernel, cmdline=str(seed), host_memory_mib=32, xen_cmdline=XEN)
    host = BootHost(spec, console.extend)

    async def run() -> BootResult:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_in_time, host)
            result = await host.run()
            nursery.cancel_scope.cancel()
        return result

    return trio.run(run), bytes(console)


async def end_in_time(host: BootHost) -> None:
    """End a kernel that has lost its way, by its own time: it may have stopped its timer."""
    while not hasattr(host, "hv") or host.hv.clock.now < 2_000_000_000 + LIMIT_NS:
        await trio.lowlevel.checkpoint()
    host.end("it has had its time")


@pytest.mark.parametrize("seed", range(12))
def test_noise(noise: PvKernel, seed: int) -> None:
    # (The suite's leak check recounts everything that the kernel has left behind.)
    result, _ = boot(noise, seed)
    assert result.why or result.shutdown_reason in range(256)


def test_the_same_noise_twice(noise: PvKernel) -> None:
    assert boot(noise, 5) == boot(noise, 5)


def test_some_noise_gets_to_its_end(noise: PvKernel) -> None:
    # About one in fifteen does. (Which ones, depends on what each instruction costs.)
    reasons = (boot(noise, seed)[0].shutdown_reason for seed in range(20, 150))
    assert sched.SHUTDOWN_poweroff in reasons
