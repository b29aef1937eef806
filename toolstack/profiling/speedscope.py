"""A profile for speedscope.app: its JSON file format (`https://www.speedscope.app/file-format-schema.json`).

There is one profile of all domains together and one of each. They are of the type `sampled`: a list of stacks,
outermost frame first, and a list of weights. (Each weight is exact here, and no sample.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from toolstack.profiling.profile import Profile

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def format_speedscope(profile: Profile, name: str) -> bytes:
    """Return the file; `name` is what the program shows as its title."""
    frames: dict[str, int] = {}
    stacks: dict[str, list[tuple[list[int], int]]] = {}
    for (domid, vcpu_id), found in profile.vcpus().items():
        domain = profile.domain_name(domid)
        rows = stacks.setdefault(domain, [])
        for stack, spent in sorted(found.stacks.items()):
            if spent.ns:
                path = (domain, f"vCPU {vcpu_id}", *stack)
                rows.append(([frames.setdefault(frame, len(frames)) for frame in path], spent.ns))
    everything = [row for rows in stacks.values() for row in rows]
    file = {
        "$schema": SCHEMA,
        "shared": {"frames": [{"name": frame} for frame in frames]},
        "profiles": [_sampled("all domains", everything), *(_sampled(*item) for item in stacks.items())],
        "name": name,
        "activeProfileIndex": 0,
        "exporter": "paravirt",
    }
    return json.dumps(file, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def _sampled(name: str, rows: Iterable[tuple[list[int], int]]) -> dict[str, Any]:
    rows = list(rows)
    return {
        "type": "sampled",
        "name": name,
        "unit": "nanoseconds",
        "startValue": 0,
        "endValue": sum(ns for _, ns in rows),
        "samples": [stack for stack, _ in rows],
        "weights": [ns for _, ns in rows],
    }
