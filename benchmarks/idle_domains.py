"""What it costs to start, to keep and to end many domains that do nothing: processor time, and memory.

Each has its xenstore connection, its console and a connected network interface. They are up when the last interface is
connected; then all are asked to shut down, as by one Ctrl-C, and the host ends when the last has gone.

Processor time is of this process alone, so other load on the machine distorts it less than it does the wall clock. A
row per number of domains shows whether the cost of one stays the same; each is measured in a process of its own, for
the sake of its peak of memory.

usage: python -m benchmarks.idle_domains [--domains N ...]
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import attrs
import trio

from guest_kernel.net import Interface
from toolstack.host import Host
from toolstack.xl_config import parse_config

HERE = Path(__file__).parent
COUNTS = (125, 250, 500, 1000)
GOAL_UP_WALL, GOAL_MIB = 20.0, 1024
GOAL_UP, GOAL_END = 10.0, 5.0
"""Goals for 1000 domains: seconds of wall clock, MiB; seconds of processor time to come up, and to end."""


@attrs.frozen
class Cost:
    """Seconds of processor time and of wall clock, and the peak of memory in MiB."""

    up: float
    up_wall: float
    mib: float
    end: float
    end_wall: float


async def run(count: int) -> Cost:
    """Start `count` domains and end them."""
    configs = [
        parse_config(
            f'name = "idle{number}"\nmemory = 2\nkernel = "idle_guest.py"\nvif = ["bridge=xenbr0"]\n',
            f"idle{number}.cfg",
            HERE,
        )
        for number in range(count)
    ]
    connected = 0
    marks: list[tuple[float, float]] = []
    configure = Interface.configure
    host = Host(hang_limit=600)

    def mark() -> None:
        marks.append((time.process_time(), time.perf_counter()))

    def counted(self: Interface, address: str) -> None:
        nonlocal connected
        configure(self, address)
        connected += 1
        if connected == count:
            mark()
            host.interrupt()

    Interface.configure = counted  # type: ignore[method-assign]
    mark()
    await host.run(configs)
    if connected != count:
        raise SystemExit(f"only {connected} of {count} domains came up with their interface")
    mark()
    (cpu, wall), (up_cpu, up_wall), (end_cpu, end_wall) = marks
    return Cost(
        up=up_cpu - cpu,
        up_wall=up_wall - wall,
        mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        end=end_cpu - up_cpu,
        end_wall=end_wall - up_wall,
    )


def show(count: int, cost: Cost) -> None:
    """Print one row."""
    print(
        f"{count:7} {cost.up:7.2f} s {cost.up_wall:7.2f} s {cost.up / count * 1000:8.2f} ms"
        f" {cost.end:7.2f} s {cost.end_wall:7.2f} s {cost.end / count * 1000:8.2f} ms {cost.mib:7.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, nargs="+", default=COUNTS, help="how many domains; a row for each")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row is not None:
        show(arguments.row, trio.run(run, arguments.row))
        return
    print("domains        up      wall per domain       end      wall per domain    memory")
    for count in arguments.domains:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.idle_domains", "--row", str(count)], cwd=HERE.parent, check=True
        )
    print(f"goals for 1000: up after {GOAL_UP_WALL:g} s of wall clock and {GOAL_UP:g} s of processor time,")
    print(f"ended after {GOAL_END:g} s of processor time, {GOAL_MIB} MiB")


if __name__ == "__main__":
    main()
