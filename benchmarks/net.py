"""Ethernet frames of 1500 bytes from guest to guest, in units of a C program that does the same work.

On our side two guests, the backend in dom0 and its bridge, on one pCPU of a whole host; on the other side
`c/net_ring.c`, compiled here against Xen's own headers: the same rings, two copies and a look-up for each frame, and no
hypervisor at all. Both count in processor time, taking turns. Prints the best of each and the ratio: what else the
machine does takes away caches and memory, which the median of a busy hour measures more than either program.

usage: python benchmarks/net.py [--seconds N] [--repeats N] [--plain] [--profile FILE]
"""

import argparse
import cProfile
import json
import subprocess
import tempfile
from pathlib import Path

import trio

from guest_kernel import vectors
from toolstack.host import Host
from toolstack.xl_config import parse_config

GOAL, FAST_GOAL = 0.03, 0.05
"""Without and with numpy."""
HERE = Path(__file__).parent
SENDER, RECEIVER = "00:16:3e:00:00:01", "00:16:3e:00:00:02"


def configurations(seconds: float, repeats: int, results: Path) -> list:
    """Return the two guests."""
    guests = {
        "sender": ("Sender", SENDER, f"{RECEIVER} {seconds} {repeats}"),
        "receiver": ("Receiver", RECEIVER, f"{results} {repeats}"),
    }
    return [
        parse_config(
            f'name = "{name}"\nmemory = 8\nkernel = "net_guest.py:{kind}"\nextra = "{extra}"\n'
            f'vif = ["mac={mac},bridge=xenbr0"]\n',
            f"{name}.cfg",
            HERE,
        )
        for name, (kind, mac, extra) in guests.items()
    ]


def ours(seconds: float, repeats: int, profile: Path | None) -> list[float]:
    """Return frames per second through the simulated host."""
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results"
        host = Host(hang_limit=600)
        configs = configurations(seconds, repeats, results)
        if profile is not None:
            with cProfile.Profile() as profiler:
                trio.run(host.run, configs)
            profiler.dump_stats(profile)
        else:
            trio.run(host.run, configs)
        return [frames / spent for frames, spent in json.loads(results.read_text())]


def compile_reference(directory: Path) -> Path:
    """Compile the C program; returns where it is."""
    program = directory / "net_ring"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "c" / "net_ring.c"], check=True)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one measurement")
    parser.add_argument("--plain", action="store_true", help="do without numpy although it is installed")
    parser.add_argument("--repeats", type=int, default=10, help="measurements of each")
    parser.add_argument("--profile", type=Path, help="write a profile of our side to this file")
    arguments = parser.parse_args()
    vectors.disabled = arguments.plain
    rates, reference = [], []
    with tempfile.TemporaryDirectory() as directory:
        program = compile_reference(Path(directory))
        for _ in range(arguments.repeats):
            rates += ours(arguments.seconds, 1, arguments.profile)
            output = subprocess.run([program, str(arguments.seconds)], check=True, capture_output=True, text=True)
            reference.append(float(output.stdout))
    mine, theirs = max(rates), max(reference)
    print(f"frames of 1500 bytes, guest to guest  {mine:12,.0f} /s  ({1e6 / mine:.2f} us each)")
    print(f"the same in C                         {theirs:12,.0f} /s")
    how, goal = ("without numpy", GOAL) if vectors.numpy() is None else ("with numpy", FAST_GOAL)
    print(f"ratio {mine / theirs:.4f} {how} (goal: at least {goal})")


if __name__ == "__main__":
    main()
