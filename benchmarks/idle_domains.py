"""How long a host takes to start many domains that then do nothing, and how much memory they cost.

Each has its xenstore connection, its console and a connected network interface. The clock stops when the last interface
is connected.

usage: python benchmarks/idle_domains.py [--domains N]
"""

import argparse
import resource
import time
from pathlib import Path

import trio

from guest_kernel.net import Interface
from toolstack.host import Host
from toolstack.xl_config import parse_config

GOAL_SECONDS, GOAL_MIB = 20.0, 1024
HERE = Path(__file__).parent


async def run(count: int) -> tuple[float, float]:
    """Start `count` domains; returns seconds and the process's peak memory in MiB when all are up."""
    configs = [
        parse_config(
            f'name = "idle{number}"\nmemory = 2\nkernel = "idle_guest.py"\nvif = ["bridge=xenbr0"]\n',
            f"idle{number}.cfg",
            HERE,
        )
        for number in range(count)
    ]
    up = 0
    configure = Interface.configure
    host = Host(hang_limit=600)
    start = time.perf_counter()
    result = (0.0, 0.0)

    def counted(self: Interface, address: str) -> None:
        nonlocal up, result
        configure(self, address)
        up += 1
        if up == count:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            result = (time.perf_counter() - start, peak)
            host.interrupt()
            host.interrupt()

    Interface.configure = counted  # type: ignore[method-assign]
    await host.run(configs)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, default=1000)
    count = parser.parse_args().domains
    start = time.perf_counter()
    seconds, mib = trio.run(run, count)
    print(f"{count} idle domains up after {seconds:.1f} s (goal {GOAL_SECONDS:g} s for 1000)")
    print(f"memory of the process {mib:.0f} MiB (goal {GOAL_MIB} MiB for 1000)")
    print(f"whole run, with the end of all of them: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
