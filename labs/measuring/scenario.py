"""A host whose domains differ from student to student: what lab 12 measures."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import attrs
import trio

from hypervisor.trace import read_trace
from toolstack.host import Host
from toolstack.report import DomainResult
from toolstack.trace_formats.json_lines import format_json
from toolstack.xl_config import parse_config

PROGRAM = """
from guest_kernel.guest import Guest
from hypervisor.abi.version import XENVER_version
from hypervisor.abi.xen import HYPERVISOR_xen_version

class Member(Guest):
    async def main(self):
        rounds, calls, work_ns, sleep_ns = (int(word) for word in self.args)
        for _ in range(rounds):
            for _ in range(calls):
                self.kernel.hypercalls.call(HYPERVISOR_xen_version, XENVER_version)
            if work_ns:
                await self.cpu(ns=work_ns)
            await self.kernel.sleep(sleep_ns)
"""


@attrs.frozen
class Measured:
    """A host that has run."""

    lines: list[str]
    """Its trace, in JSON."""
    report: dict[str, DomainResult]
    """Xen's books, by the names of the domains."""
    culprit: str
    """The domain that makes too many hypercalls."""
    numbers: dict[str, int]
    """The domains' numbers."""


def measured(rng: random.Random) -> Measured:
    """Run a host: one domain works much, one is mostly asleep, one makes hypercalls all the time; in any order."""
    kinds = [
        # rounds, hypercalls in each, ns of work, ns of sleep
        (rng.randrange(8, 16), rng.randrange(60, 120), 5_000_000, 100_000),
        (rng.randrange(5, 15), 2, 200_000, 4_000_000),
        (rng.randrange(8, 16), rng.randrange(12, 28), 0, 1_000_000),
    ]
    names = [f"vm-{''.join(rng.choice('bdfgklmnprst') + rng.choice('aeiou') for _ in range(3))}{at}" for at in range(3)]
    culprit = names[2]
    members = list(zip(names, kinds, strict=True))
    rng.shuffle(members)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "member.py").write_text(PROGRAM)
        configs = []
        for name, numbers in members:
            extra = " ".join(map(str, numbers))
            text = f'name = "{name}"\nmemory = 8\nkernel = "member.py"\nextra = "{extra}"\n'
            configs.append(parse_config(text, f"{name}.cfg", root))
        host = Host(trace_file=root / "host.trace", seed=rng.randrange(1 << 20))
        trio.run(host.run, configs)
        _, records = read_trace(root / "host.trace")
        lines = list(format_json(records))
        found: dict[str, Any] = {name: domid for domid, name in host.names().items()}
        return Measured(lines, host.results, culprit, found)
