"""How fast a guest reads its disk, in units of a C program that has only the ring to do.

Ours is the whole host: a guest's `await disk.read(...)` goes through blkfront, the ring, blkback and the disk's DMA
from an image file, with every hypercall, grant and event. Theirs is `benchmarks/c/block_ring.c`: both ends of the ring
in one C program, with Xen's own ring.h (package libxen-dev) and pread from the same image. Both read an image of
256 MiB front to back out of the page cache. They take turns; of each the best slice of 20 ms of processor time counts.

Ours always has persistent grants, so the guest's data is copied once after the disk's DMA, but for pages that the user
lends to the driver. C does that copy, too, where the name of a load says "copied"; elsewhere it has the DMA alone.

usage: python benchmarks/block.py [--slices N] [--rounds N] [--check]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import trio

from toolstack.host import Host
from toolstack.xl_config import parse_config

HERE = Path(__file__).parent
IMAGE_BYTES = 256 << 20
GOALS = {"qd1": 0.08, "qd32": 0.08, "waiting": 0.1, "large": 0.25, "persistent": 0.4, "indirect": 0.8, "lent": 0.6}
NAMES = {
    "qd1": "4 KiB, one at a time",
    "qd32": "4 KiB, 32 at a time",
    "waiting": "4 KiB, 128 at a time",
    "large": "44 KiB in 11 segments, 32 at a time",
    "persistent": "the same, copied",
    "indirect": "1 MiB, indirect, 4 at a time, copied",
    "lent": "the same into the user's pages",
}
OURS = {"persistent": "large"}
"""Loads that are the same on our side as another one."""
THEIRS = {"waiting": "qd32"}
"""And on the other side, whose ring has room for no more. Ours merges what waits."""
Found = dict[str, float]
"""Microseconds for each request, by load."""


def make_image(path: Path) -> None:
    """Write an image whose blocks are allocated and in the page cache."""
    block = bytes(range(256)) * 4096
    with path.open("wb") as image:
        for _ in range(IMAGE_BYTES // len(block)):
            image.write(block)


def compile_theirs(directory: Path) -> Path:
    """Compile the C program. Ends the benchmark with a sentence if that cannot be done here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    program = directory / "block_ring"
    command = [compiler or "cc", "-O2", "-o", str(program), str(HERE / "c" / "block_ring.c")]
    if compiler is None or subprocess.run(command, check=False).returncode:
        sys.exit("a C compiler and Xen's headers (package libxen-dev) are needed to compare with")
    return program


def theirs(program: Path, image: Path, slices: int) -> Found:
    """Run the C program."""
    output = subprocess.run([program, image, str(slices)], check=True, capture_output=True, text=True).stdout
    times = {name: int(ns) / int(count) / 1000 for name, count, ns in map(str.split, output.splitlines())}
    return {name: times[THEIRS.get(name, name)] for name in NAMES}


def ours(image: Path, slices: int, directory: Path) -> Found:
    """Run a host with one guest that reads its disk."""
    results = directory / "results"
    config = parse_config(
        f'name = "reader"\nmemory = 64\nkernel = "block_guest.py"\n'
        f'extra = "{slices} {results} xen_blkfront.max_indirect_segments=256"\n'
        f'disk = ["format=raw,vdev=xvda,access=ro,target={image}"]\n',
        "reader.cfg",
        HERE,
    )
    result = trio.run(Host().run, [config])
    if not results.exists():
        sys.exit(f"the guest did not finish: {result}")
    found = json.loads(results.read_text())
    results.unlink()
    times = {name: ns / count / 1000 for name, (count, ns) in found.items()}
    return {name: times[OURS.get(name, name)] for name in NAMES}


def best(before: Found, found: Found) -> Found:
    """Keep the smaller time of each load."""
    return {name: min(us, before.get(name, us)) for name, us in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=15, help="slices of 20 ms for each load in a round")
    parser.add_argument("--rounds", type=int, default=4, help="turns that each side takes")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    arguments = parser.parse_args()
    mine: Found = {}
    other: Found = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        directory = Path(name)
        program = compile_theirs(directory)
        image = directory / "disk.img"
        make_image(image)
        for _ in range(arguments.rounds):
            other = best(other, theirs(program, image, arguments.slices))
            mine = best(mine, ours(image, arguments.slices, directory))
    missed = False
    for load, goal in GOALS.items():
        ratio = other[load] / mine[load]
        missed |= ratio < goal
        times = f"{mine[load]:7.2f} us   C {other[load]:6.2f} us"
        print(f"{NAMES[load]:38} {times}   ratio {ratio:.3f} (goal: at least {goal})")
    sys.exit(arguments.check and missed)


if __name__ == "__main__":
    main()
