"""What a trace costs: while it is off, while it is on, and when it is turned into other formats.

off       the disk benchmark's reads, beside the same program from whose source every `if trace is not None: …` has been
          taken out before it was compiled
on        the same reads with `--trace`, beside those without
convert   a trace of many records (the two guests of examples/first-host over and over), by each format

Processor time; turns alternate, and of each the best slice counts.

usage: python -m benchmarks.tracing [--slices N] [--rounds N] [--records N] [--check]
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import CodeType

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "first-host"
PACKAGES = ("hypervisor", "guest_kernel", "backends", "frontends")
LOADS = {"qd1": "4 KiB, one at a time", "qd32": "4 KiB, 32 at a time", "large": "44 KiB, 32 at a time"}
GOALS = {"off": 0.02, "on": 0.40}
CONVERT_GOAL = 20.0
"""Seconds for a million records."""
LIFE_NS = 2_000_000
"""How far apart the repetitions of the example are."""


class WithoutTraces(ast.NodeTransformer):
    """Takes out what only a trace is for."""

    def __init__(self) -> None:
        self.removed = 0

    def visit_If(self, node: ast.If) -> ast.AST | None:
        """Drop `if words is not None: … elif trace is not None: …`."""
        self.generic_visit(node)
        test = node.test
        others = [other for other in node.orelse if not isinstance(other, ast.Pass)]
        if not (isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot) and not others):
            return node
        asked = test.left
        # (`words`: those of the tape.)
        name = asked.id if isinstance(asked, ast.Name) else asked.attr if isinstance(asked, ast.Attribute) else ""
        if name not in ("trace", "_trace", "_trace_push", "tape", "words"):
            return node
        self.removed += 1
        return ast.copy_location(ast.Pass(), node)


class StrippingLoader(importlib.machinery.SourceFileLoader):
    """Compiles modules without their traces."""

    removed = 0

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source anew: no cache knows of this."""
        transformer = WithoutTraces()
        tree = transformer.visit(ast.parse(self.get_data(self.path), self.path))
        StrippingLoader.removed += transformer.removed
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


class StrippingFinder(importlib.abc.MetaPathFinder):
    """Finds our packages, and has them stripped."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the usual place with another loader."""
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            spec.loader = StrippingLoader(fullname, spec.origin)
        return spec


def read_disk(mode: str, slices: int, directory: Path) -> dict[str, float]:
    """Run the disk benchmark's guest; returns microseconds for each request, by load."""
    if mode == "stripped":
        sys.meta_path.insert(0, StrippingFinder())
    import trio

    from toolstack.host import Host
    from toolstack.xl_config import parse_config

    results = directory / f"results-{mode}"
    config = parse_config(
        f'name = "reader"\nmemory = 64\nkernel = "block_guest.py"\n'
        f'extra = "{slices} {results} xen_blkfront.max_indirect_segments=256"\n'
        f'disk = ["format=raw,vdev=xvda,access=ro,target={directory / "disk.img"}"]\n',
        "reader.cfg",
        HERE,
    )
    trio.run(Host(trace_file=directory / "host.trace" if mode == "on" else None).run, [config])
    if mode == "stripped" and StrippingLoader.removed < 30:
        sys.exit(f"only {StrippingLoader.removed} traces were found in the source: this measures nothing")
    return {name: ns / count / 1000 for name, (count, ns) in json.loads(results.read_text()).items()}


def in_a_process(mode: str, slices: int, directory: Path) -> dict[str, float]:
    """Do that in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tracing", "--child", mode, str(directory), "--slices", str(slices)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compare_runs(slices: int, rounds: int, directory: Path) -> bool:
    """Print what a trace costs while it is off and on; returns whether a goal is missed."""
    from benchmarks.block import make_image

    make_image(directory / "disk.img")
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for mode in ("stripped", "off", "on"):
            found = in_a_process(mode, slices, directory)
            before = best.setdefault(mode, found)
            best[mode] = {name: min(us, before[name]) for name, us in found.items()}
    missed = False
    for mode, other in (("off", "stripped"), ("on", "off")):
        for load, name in LOADS.items():
            more = best[mode][load] / best[other][load] - 1
            missed |= more > GOALS[mode]
            times = f"{best[mode][load]:7.2f} us   without {best[other][load]:7.2f} us"
            print(f"{mode:4} {name:24} {times}   {more:+.1%} (goal: at most {GOALS[mode]:.0%})")
    return missed


def make_trace(records: int, directory: Path) -> Path:
    """Write a trace of so many records: that of the example, over and over."""
    from click.testing import CliRunner

    from hypervisor.trace import TraceWriter, read_trace
    from toolstack.cli import main as paravirt

    shutil.copytree(EXAMPLE, directory, dirs_exist_ok=True)
    with (directory / "guest1.img").open("wb") as image:
        image.truncate(16 << 20)
    short, long = directory / "short.trace", directory / "long.trace"
    configs = [str(directory / name) for name in ("guest1.cfg", "guest2.cfg")]
    done = CliRunner().invoke(paravirt, ["run", "--quiet", "--trace", str(short), *configs])
    if done.exit_code:
        sys.exit(f"the example did not run: {done.output}")
    header, stream = read_trace(short)
    pieces, now = list(stream), 0
    with TraceWriter(long.open("wb"), seed=0, about=header["about"]) as writer:
        writer.now = lambda: now
        for number in range(records):
            life, place = divmod(number, len(pieces))
            now = pieces[place][0] + life * LIFE_NS
            writer.emit(*pieces[place][1:])
    return long


def convert(records: int, directory: Path) -> bool:
    """Print how long each format takes for a trace of so many records; returns whether the goal is missed."""
    from hypervisor.trace import read_trace
    from toolstack.commands.trace import FORMATS

    trace = make_trace(records, directory)
    missed = False
    for name, form in FORMATS.items():
        began = time.process_time()
        header, stream = read_trace(trace)
        size = sum(len(piece) for piece in form(header, stream))
        took = (time.process_time() - began) * 1_000_000 / records
        missed |= took > CONVERT_GOAL
        print(f"convert to {name:9} {took:5.1f} s for a million records, {size / records:5.0f} bytes each "
              f"(goal: at most {CONVERT_GOAL:.0f} s)")  # fmt: skip
    return missed


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=12, help="slices of 20 ms for each load in a round")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each takes")
    parser.add_argument("--records", type=int, default=1_000_000, help="length of the trace that is converted")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--child", nargs=2, metavar=("MODE", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(read_disk(options.child[0], options.slices, Path(options.child[1]))))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        directory = Path(name)
        missed = compare_runs(options.slices, options.rounds, directory)
        missed |= convert(options.records, directory)
    sys.exit(options.check and missed)


if __name__ == "__main__":
    main()
