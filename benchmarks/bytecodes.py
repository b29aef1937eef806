"""What one disk request takes, counted exactly: the bytecodes that the interpreter executes for it, by function.

A time tells how fast a machine is, too; this number does not. It is the same on every run, but for a few when the host
lets somebody else have a turn, and shows small changes that a clock cannot. On the way of a request nearly every
bytecode is a branch that the processor has not predicted, some 5 ns each, whatever it does; a call of a C function is
hardly more.

Counted is everything from one request of a kind to the next (of `--depth` at a time), in all domains and the hypervisor
alike. What C functions do inside is not seen.

usage: python -m benchmarks.bytecodes [--depth N] [--sectors N] [--requests N] [--lines]
"""

import argparse
import json
import linecache
import os
import tempfile
from collections import Counter
from pathlib import Path

import trio

from toolstack.host import Host
from toolstack.xl_config import parse_config

HERE = Path(__file__).parent
ROOT = HERE.parent
FLOORS = ("hypervisor", "guest_kernel", "frontends", "backends", "benchmarks")
"""What is counted. The loop around it lets the event loop have a turn when some time has gone by."""
DISK_MIB = 16

Function = tuple[str, str]
"""Qualified name, and file."""


def run(depth: int, sectors: int, requests: int) -> dict[Function, dict[int, int]]:
    """Return the bytecodes of so many requests, by function and line."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        results = Path(name) / "results"
        config = parse_config(
            f'name = "reader"\nmemory = 64\nkernel = "bytecodes_guest.py"\n'
            f'extra = "{depth} {sectors} {requests} {results} xen_blkfront.max_indirect_segments=256"\n'
            f'disk = ["format=memory,vdev=xvda,access=rw,target={DISK_MIB}M"]\n',
            "reader.cfg",
            HERE,
        )
        trio.run(Host().run, [config])
        found: dict[Function, dict[int, int]] = {}
        for function, file, line, count in json.loads(results.read_text()):
            if any(Path(file).is_relative_to(ROOT / floor) for floor in FLOORS):
                found.setdefault((function, file), {})[line] = count
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=1, help="requests at a time")
    parser.add_argument("--sectors", type=int, default=8, help="sectors of each")
    parser.add_argument("--requests", type=int, default=0, help="how many are counted; 0: 16 rounds")
    parser.add_argument("--lines", action="store_true", help="show each line")
    arguments = parser.parse_args()
    requests = arguments.requests or 16 * arguments.depth
    found = run(arguments.depth, arguments.sectors, requests)
    functions = Counter({function: sum(lines.values()) for function, lines in found.items()})
    print(f"{functions.total() / requests:8.1f}  bytecodes for each request")
    for (function, file), total in functions.most_common():
        print(f"{total / requests:8.1f}  {function}  ({Path(file).name})")
        for line, count in sorted(found[function, file].items()) if arguments.lines else ():
            print(f"{count / requests:16.1f}  {line}: {linecache.getline(file, line).strip()}")


if __name__ == "__main__":
    main()
