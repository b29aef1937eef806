"""Frames of 1500 bytes and TCP packets of 64 KiB from guest to guest, in units of C programs that do the same work.

On our side two guests, the backend in dom0 and its bridge, on one pCPU of a whole host; on the other side
`c/net_ring.c` or `c/net_gso.c`, compiled here against Xen's own headers: the same rings, two copies and a look-up for
each frame, and no hypervisor at all. Both count in processor time, taking turns. Prints the best of each and the ratio:
what else the machine does takes away caches and memory, which the median of a busy hour measures more than either
program.

usage: python benchmarks/net.py [--seconds N] [--repeats N] [--only small|large] [--plain] [--profile FILE]
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

GOALS = {"small": (0.03, 0.08), "large": (0.15, 0.15)}
"""Without and with numpy."""
GUESTS = {"small": ("Sender", "Receiver", "net_ring.c"), "large": ("LargeSender", "LargeReceiver", "net_gso.c")}
WHAT = {"small": "frames of 1500 bytes", "large": "TCP packets of 64 KiB"}
HERE = Path(__file__).parent
SENDER, RECEIVER = "00:16:3e:00:00:01", "00:16:3e:00:00:02"


def configurations(size: str, seconds: float, repeats: int, results: Path) -> list:
    """Return the two guests."""
    sender, receiver, _ = GUESTS[size]
    guests = {
        "sender": (sender, SENDER, f"{RECEIVER} {seconds} {repeats}"),
        "receiver": (receiver, RECEIVER, f"{results} {repeats}"),
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


def ours(size: str, seconds: float, repeats: int, profile: Path | None) -> list[float]:
    """Return frames per second through the simulated host."""
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory) / "results"
        host = Host(hang_limit=600)
        configs = configurations(size, seconds, repeats, results)
        if profile is not None:
            with cProfile.Profile() as profiler:
                trio.run(host.run, configs)
            profiler.dump_stats(profile)
        else:
            trio.run(host.run, configs)
        return [frames / spent for frames, spent in json.loads(results.read_text())]


def compile_reference(size: str, directory: Path) -> Path:
    """Compile the C program; returns where it is."""
    source = GUESTS[size][2]
    program = directory / source.removesuffix(".c")
    subprocess.run(["cc", "-O2", "-o", program, HERE / "c" / source], check=True)
    return program


def compare(size: str, arguments: argparse.Namespace) -> None:
    """Measure both sides, taking turns, and print what came out."""
    rates, reference = [], []
    with tempfile.TemporaryDirectory() as directory:
        program = compile_reference(size, Path(directory))
        for _ in range(arguments.repeats):
            rates += ours(size, arguments.seconds, 1, arguments.profile)
            output = subprocess.run([program, str(arguments.seconds)], check=True, capture_output=True, text=True)
            reference.append(float(output.stdout))
    mine, theirs = max(rates), max(reference)
    print(f"{WHAT[size]}, guest to guest{mine:14,.0f} /s  ({1e6 / mine:.2f} us each)")
    print(f"the same in C{theirs:37,.0f} /s")
    with_numpy = vectors.numpy() is not None
    how = "with numpy" if with_numpy else "without numpy"
    print(f"ratio {mine / theirs:.4f} {how} (goal: at least {GOALS[size][with_numpy]})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one measurement")
    parser.add_argument("--plain", action="store_true", help="do without numpy although it is installed")
    parser.add_argument("--only", choices=GUESTS, help="measure frames of one size only")
    parser.add_argument("--repeats", type=int, default=10, help="measurements of each")
    parser.add_argument("--profile", type=Path, help="write a profile of our side to this file")
    arguments = parser.parse_args()
    vectors.disabled = arguments.plain
    for size in GUESTS if arguments.only is None else (arguments.only,):
        compare(size, arguments)


if __name__ == "__main__":
    main()
