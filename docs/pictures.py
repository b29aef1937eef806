"""Draws the pictures of docs/schedulers: little hosts are run under each scheduler, and their traces drawn as SVG.

    python docs/pictures.py [NAME...]     draw all, or these

A row is a vCPU: dark where it runs (a colour for each pCPU), pale where it waits for a processor, empty where it
sleeps.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import attrs
import trio

from hypervisor.abi.tracepoints import DESCHEDULE, SCHEDULE, WAKE
from hypervisor.sched.arinc653 import Arinc653, Window
from hypervisor.sched.rtds import UnitRt
from hypervisor.trace import read_records
from toolstack.host import Host
from toolstack.xl_config import load_config

PICTURES = Path(__file__).resolve().parent / "schedulers"
MS = 1_000_000
BEGIN_NS = 300 * MS
"""By then every guest has booted; what is set by hand is set before."""

HOG = "while True:\n    await self.cpu(ns=1_000_000)"
LIGHT = "while True:\n    await self.cpu(ns=700_000)\n    await self.sleep(0.0063)"
THIEF = """
while True:
    into = self.kernel.monotonic_ns() % 10_000_000
    if into < 9_500_000:
        await self.cpu(ns=9_500_000 - into)
    await self.sleep((10_010_000 - self.kernel.monotonic_ns() % 10_000_000) / 1e9)
"""


@attrs.frozen
class Scene:
    """A host to be drawn: guests by name (program, further settings), and what is set by hand."""

    title: str
    scheduler: str
    guests: dict[str, tuple[str, str]]
    length_ns: int = 60 * MS
    pcpus: int = 1
    tune: Callable[[Host], None] = lambda host: None


def _rtds(periods: dict[str, tuple[int, int, bool]]) -> Callable[[Host], None]:
    def tune(host: Host) -> None:
        for domain in host.hv.domains.values():
            name = next((live.name for live in _live(host) if live.domid == domain.domid), "")
            if name in periods:
                unit = domain.online_vcpus()[0].unit
                assert isinstance(unit, UnitRt)
                unit.period, unit.budget, unit.extra = (*(ms * MS for ms in periods[name][:2]), periods[name][2])

    return tune


def _timetable(host: Host) -> None:
    algorithm = host.hv.sched.algorithm
    assert isinstance(algorithm, Arinc653)
    windows = [Window(host.hv.domains[0].handle, 0, 4 * MS)]
    for live, length in zip(_live(host), (8, 4), strict=False):
        windows.append(Window(host.hv.domains[live.domid].handle, 0, length * MS))
    algorithm.set_timetable(windows, 20 * MS)


def _live(host: Host) -> list[Any]:
    return [] if host.lifecycle is None else list(host.lifecycle.live.values())


SCENES = {
    "credit2": Scene(
        "credit2: weights 512 and 256, and one that sleeps a lot",
        "credit2",
        {"heavy": (HOG, "cpu_weight = 512"), "plain": (HOG, ""), "light": (LIGHT, "")},
    ),
    "credit2-cap": Scene("credit2: a cap of 40 %, a hog", "credit2", {"capped": (HOG, "cap = 40"), "hog": (HOG, "")}),
    "credit": Scene(
        "credit: slices of 30 ms; who wakes is boosted",
        "credit",
        {"a": (HOG, ""), "b": (HOG, ""), "light": (LIGHT, "")},
        length_ns=120 * MS,
    ),
    "credit-thief": Scene(
        "credit, sampled: a thief that sleeps at every tick",
        "credit-sampled",
        {"thief": (THIEF, ""), "victim": (HOG, "")},
    ),
    "credit-no-thief": Scene(
        "credit, with time stamps: the same two guests",
        "credit",
        {"thief": (THIEF, ""), "victim": (HOG, "")},
        length_ns=120 * MS,
    ),
    "rtds": Scene(
        "rtds: 2 of 10 ms, 6 of 20 ms, and extratime",
        "rtds",
        {"ten": (HOG, ""), "twenty": (HOG, ""), "extra": (HOG, "")},
        tune=_rtds({"ten": (10, 2, False), "twenty": (20, 6, False), "extra": (20, 1, True)}),
    ),
    "null": Scene("null: three vCPUs, three pCPUs", "null", {"a": (HOG, ""), "b": (LIGHT, "")}, pcpus=3),
    "arinc653": Scene(
        "arinc653: dom0 4 ms, a 8 ms, b 4 ms, nobody 4 ms of every 20",
        "arinc653",
        {"a": (HOG, ""), "b": (LIGHT, "")},
        tune=_timetable,
    ),
}


class _Stage(Host):
    """A host on which something is set by hand, and whose power is cut."""

    scene: Scene

    def _assemble(self, prepared: Any) -> None:
        super()._assemble(prepared)
        for before in (200, 100, 50):
            # (Several times: a guest may only be built when another one has got to run.)
            self.hv.timers.add(BEGIN_NS - before * MS, lambda: self.scene.tune(self))
        self.hv.timers.add(BEGIN_NS + self.scene.length_ns, self._cut)

    def _cut(self) -> None:
        self.interrupt()
        self.interrupt()


def play(scene: Scene, trace: Path) -> None:
    """Run a scene, and leave its trace in a file."""
    with tempfile.TemporaryDirectory() as place:
        configs = []
        for name, (body, settings) in scene.guests.items():
            lines = "\n".join(" " * 8 + line for line in body.strip().splitlines())
            code = f"from guest_kernel.guest import Guest\n\nclass G(Guest):\n    async def main(self):\n{lines}\n"
            (Path(place) / f"{name}.py").write_text(code)
            config = Path(place) / f"{name}.cfg"
            config.write_text(f'name = "{name}"\nkernel = "{name}.py"\nmemory = 4\n{settings}\n')
            configs.append(load_config(config))
        host = _Stage(scheduler=scene.scheduler, pcpus=scene.pcpus, trace_file=trace)
        host.scene = scene
        trio.run(host.run, configs)


# -- drawing ------------------------------------------------------------------------------------------------------

ROW, BAR, LEFT, WIDTH = 26, 16, 90, 720
COLOURS = ("#1b6ca8", "#b5651d", "#3d7a3d", "#7a3d7a")
PALE = "#e4e2da"


def draw(title: str, records: Iterable[list[Any]], names: dict[int, str], begin: int, end: int) -> str:
    """Return the SVG of a stretch of a trace: `names` by domain."""
    bars: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    started: dict[tuple[int, int], tuple[int, int]] = {}
    waits: dict[tuple[int, int], int] = {}
    for when, domid, vcpu, kind, *fields in records:
        who = domid, vcpu
        lane = bars.setdefault(who, []) if domid in names else []
        if kind == WAKE:
            waits.setdefault(who, when)
        elif kind == SCHEDULE:
            if who in waits:
                lane.append((waits.pop(who), when, -1))
            started[who] = when, fields[0]
        elif kind == DESCHEDULE and who in started:
            since, pcpu = started.pop(who)
            lane.append((since, since + fields[1], pcpu))
            if not fields[2]:
                waits[who] = since + fields[1]
    for who, since in waits.items():
        bars.setdefault(who, []).append((since, end, -1))
    scale = WIDTH / (end - begin)
    rows = sorted(who for who in bars if who[0] in names)
    height = ROW * len(rows) + 52
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(title)}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="15" font-weight="bold">{escape(title)}</text>',
    ]
    step = 10 * MS
    for tick in range(begin, end + 1, step):
        x = LEFT + (tick - begin) * scale
        low = height - 8
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="22" y2="{low - 14}" stroke="#cccccc" stroke-width="0.7"/>')
        label = (tick - begin) // MS
        out.append(f'<text x="{x:.1f}" y="{low}" text-anchor="middle" fill="#555555">{label}</text>')
    out.append(f'<text x="{LEFT - 10}" y="{height - 8}" text-anchor="end" fill="#555555">ms</text>')
    for row, who in enumerate(rows):
        y = 26 + ROW * row
        out.append(f'<text x="{LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(names[who[0]])}</text>')
        for since, until, pcpu in bars[who]:
            left, right = max(since, begin), min(until, end)
            if left < right:
                place = f'x="{LEFT + (left - begin) * scale:.2f}" width="{max((right - left) * scale, 0.3):.2f}"'
                bar = (y, BAR) if pcpu >= 0 else (y + 5, BAR - 10)
                colour = COLOURS[pcpu % len(COLOURS)] if pcpu >= 0 else PALE
                out.append(f'<rect {place} y="{bar[0]}" height="{bar[1]}" fill="{colour}"/>')
    return "\n".join([*out, "</svg>", ""])


def picture(name: str) -> str:
    """Run a scene, and return its picture."""
    scene = SCENES[name]
    with tempfile.TemporaryDirectory() as place:
        trace = Path(place) / "trace"
        play(scene, trace)
        names = {0: "dom0", **{number + 1: guest for number, guest in enumerate(scene.guests)}}
        return draw(scene.title, read_records(trace), names, BEGIN_NS, BEGIN_NS + scene.length_ns)


def main(arguments: list[str]) -> int:
    """Draw pictures. Returns the exit code."""
    for name in arguments or SCENES:
        if name not in SCENES:
            print(f"there is no picture {name!r}: there are {', '.join(SCENES)}", file=sys.stderr)
            return 2
        (PICTURES / f"{name}.svg").write_text(picture(name))
        print(f"docs/schedulers/{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
