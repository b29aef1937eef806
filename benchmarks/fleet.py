"""A hundred guests with a mixed load for a virtual minute: how fast that is, and how fair.

A third of the guests compute, a third read and write disks, a third send each other questions. Printed are the virtual
and the real time, the throughput and the latency percentiles of each kind, and how evenly guests of a kind are served
(Jain's index: 1 is even). All but the real time is the same in every run.

usage: python -m benchmarks.fleet [--guests N] [--seconds S] [--pcpus N] [--scheduler NAME]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import trio

from benchmarks.fleet_guest import SECTORS
from hypervisor.sched.schedulers import CHOICES, DEFAULT
from toolstack.host import Host
from toolstack.xl_config import DomainConfig, parse_config

HERE = Path(__file__).parent
KINDS = ("cpu_work", "block_work", "net_work")


def configs(count: int, seconds: float, place: Path) -> list[DomainConfig]:
    """Return the configurations of so many guests; those of the network come in pairs."""
    found = []
    for number in range(count):
        kind = KINDS[number // 2 % 3]
        lines = ['kernel = "fleet_guest.py"', "memory = 4", f'name = "{kind.removesuffix("_work")}{number}"']
        lines.append(f'extra = "{kind} {number} {seconds} {place}"')
        if kind == "net_work":
            lines.append('vif = ["bridge=xenbr0"]')
        if kind == "block_work":
            image = place / f"{number}.img"
            image.write_bytes(bytes(SECTORS * 512))
            lines.append(f'disk = ["{image},raw,xvda"]')
        found.append(parse_config("\n".join(lines) + "\n", f"fleet{number}.cfg", HERE))
    return found


def percentile(values: list[int], part: float) -> float:
    """Return a percentile in milliseconds."""
    return sorted(values)[min(int(len(values) * part), len(values) - 1)] / 1e6


def main() -> None:
    """Run the fleet and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pcpus", type=int, default=4)
    parser.add_argument("--scheduler", choices=CHOICES, default=DEFAULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        host = Host(pcpus=options.pcpus, scheduler=options.scheduler, hang_limit=600)
        began, began_cpu = time.perf_counter(), time.process_time()
        trio.run(host.run, configs(options.guests, options.seconds, place))
        real, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        results = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]
    virtual = host.hv.clock.now / 1e9
    print(
        f"{options.guests} guests, {options.pcpus} pCPUs, {options.scheduler}: {virtual:.1f} virtual s in {real:.1f} s"
    )
    print(f"{virtual / cpu:.2f} times as fast as real time, by processor time (goal: more than 1)")
    print(f"{'':<8}{'guests':>7}{'ops/s':>10}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'Jain':>8}")
    for kind in KINDS:
        rows = [result["latencies"] for result in results if result["kind"] == kind and result["latencies"]]
        if not rows:
            print(f"{kind.removesuffix('_work'):<8}{0:>7}")
            continue
        latencies = [latency for row in rows for latency in row]
        counts = [len(row) for row in rows]
        jain = sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))
        told = "".join(f"{percentile(latencies, part):>10.3f}" for part in (0.5, 0.99, 1))
        print(
            f"{kind.removesuffix('_work'):<8}{len(rows):>7}{len(latencies) / options.seconds:>10.1f}{told}{jain:>8.4f}"
        )


if __name__ == "__main__":
    main()
