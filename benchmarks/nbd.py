"""A disk served through a guest's split driver, against nbdkit with a disk in its memory: the same fio jobs on each.

Ours is a process with a whole host: the client's requests come through a socket card into the memory of a guest, its
NBD server hands them to blkfront, which puts them on the ring; blkback in dom0 has the disk controller move the data
from or to its medium by DMA. Theirs is `nbdkit memory allocator=malloc`, written in C, with threads. Both listen on
a Unix socket, and they take turns; of each the best turn counts. The goal is for equal media: a disk in memory
(`format=memory`) on our side, too. An image file in memory, which is a disk as most people have it, costs a system
call for each request that nbdkit's memory does not; it is measured as well.

Rates are by the wall clock, so they are of use on a machine that has two processors to spare, one for the client. The
processor time that a request takes of the server, all its threads together, is said as well: that does not depend so
much on who else is at work.

usage: python -m benchmarks.nbd [--seconds S] [--rounds N] [--time virtual|real] [--disk memory|image|both] [--check]
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
SIZE_MIB = 256
GOAL = 0.7
LOADS = {
    "4 KiB random reads, 32 at a time": ("--rw=randread", "--bs=4k", "--iodepth=32"),
    "4 KiB random writes, 32 at a time": ("--rw=randwrite", "--bs=4k", "--iodepth=32"),
    "1 MiB reads, 4 at a time": ("--rw=read", "--bs=1M", "--iodepth=4"),
    "1 MiB writes, 4 at a time": ("--rw=write", "--bs=1M", "--iodepth=4"),
}
PATIENCE = 10.0
MEMORY = "/dev/shm"
"""Where a file is not also on a disk."""


def wait_for(place: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + PATIENCE
    while not place.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{process.args!r} does not serve: exit code {process.poll()}")
        time.sleep(0.01)


@contextmanager
def serving(place: Path, *command: str) -> Iterator[int]:
    """Run a server for a while; gives its process number."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(place, process)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def processor_time(pid: int) -> float:
    """Return the seconds that a process has computed, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Turn = tuple[float, float]
"""Requests a second, and microseconds of the server's processor time for each."""


def turn(pid: int, place: Path, seconds: float, job: tuple[str, ...]) -> Turn:
    """Run a job against a server."""
    before = processor_time(pid)
    rate, count = fio(place, seconds, *job)
    return rate, (processor_time(pid) - before) * 1e6 / count


def fio(place: Path, seconds: float, *job: str) -> tuple[float, int]:
    """Run a job; return requests a second, and how many there were."""
    command = ["fio", "--output-format=json", "--name=load", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={place}"]
    command += [f"--size={SIZE_MIB}M", "--time_based", f"--runtime={round(seconds * 1000)}ms", *job]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if done.returncode:
        sys.exit(f"fio failed: {done.stderr or done.stdout}")
    (found,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    sides = found["read"], found["write"]
    return sum(side["iops"] for side in sides), sum(side["total_ios"] for side in sides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns that each side takes with each load")
    parser.add_argument("--time", choices=["virtual", "real"], default="virtual", help="our host's time")
    parser.add_argument(
        "--disk", choices=["memory", "image", "both"], default="both", help="`format=memory`, or a file"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    arguments = parser.parse_args()
    for tool in ("fio", "nbdkit"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed (packages fio and nbdkit), so there is nothing to compare with")
    missed = False
    for disk in ["memory", "image"] if arguments.disk == "both" else [arguments.disk]:
        print("a disk in memory" if disk == "memory" else "an image file in memory", flush=True)
        reached = measure(arguments, disk)
        missed |= disk == "memory" and not reached
    sys.exit(arguments.check and missed)


def make_disk(kind: str, image: Path) -> str:
    """Return how the config names our disk, and make the file if it is one."""
    if kind == "memory":
        return f"format=memory,vdev=xvda,access=rw,target={SIZE_MIB}M"
    image.write_bytes(bytes(range(256)) * (SIZE_MIB << 12))
    return f"format=raw,vdev=xvda,access=rw,target={image}"


def measure(arguments: argparse.Namespace, kind: str) -> bool:
    """Compare with one kind of disk on our side; return whether all loads reach the goal."""
    reached = True
    with (
        tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name,
        tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as memory,
    ):
        directory = Path(name)
        shutil.copy(HERE / "nbd_guest.py", directory)
        config = directory / "storage.cfg"
        disk = make_disk(kind, Path(memory) / "disk.img")
        config.write_text(f'name = "storage"\nmemory = 64\nkernel = "nbd_guest.py"\ndisk = ["{disk}"]\n')
        ours, theirs = directory / "ours", directory / "theirs"
        paravirt = (sys.executable, "-c", "from toolstack.cli import main; main()", "run", "--quiet")
        export = ("--export-nbd", f"storage:xvda=unix:{ours}", "--time", arguments.time, str(config))
        nbdkit = ("nbdkit", "-f", "-U", str(theirs), "memory", f"{SIZE_MIB}M", "allocator=malloc")
        with serving(ours, *paravirt, *export) as our_pid, serving(theirs, *nbdkit) as their_pid:
            for place in (ours, theirs):
                fio(place, arguments.seconds, "--rw=write", "--bs=1M", "--iodepth=4")  # memory, once touched
            for load, job in LOADS.items():
                turns = [
                    (
                        turn(our_pid, ours, arguments.seconds, job),
                        turn(their_pid, theirs, arguments.seconds, job),
                    )
                    for _ in range(arguments.rounds)
                ]
                mine, other = (max(rate for rate, _ in side) for side in zip(*turns, strict=True))
                my_time, other_time = (min(time for _, time in side) for side in zip(*turns, strict=True))
                reached &= mine / other >= GOAL
                goal = f" (goal: at least {GOAL})" if kind == "memory" else ""
                print(
                    f"{load:34} {mine:7.0f} /s {my_time:6.1f} us   nbdkit {other:7.0f} /s {other_time:6.1f} us   "
                    f"ratio {mine / other:.3f}{goal}",
                    flush=True,
                )
    return reached


if __name__ == "__main__":
    main()
