"""The questions of lab 8."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import trio

from hypervisor.abi.io import blkif
from labs.kit.questions import Question
from toolstack.host import Host
from toolstack.xl_config import parse_config

PROGRAM = """
from guest_kernel.guest import Guest

class Reader(Guest):
    async def main(self):
        disk = await self.disk("xvda")
        for at in range({reads}):
            await disk.read(at * {count}, {count})
"""


def _run(reads: int, count: int) -> Any:
    """Run a guest that reads from its disk; return the report of the host."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "disk.img").write_bytes(bytes(reads * count * 512))
        (root / "reader.py").write_text(PROGRAM.format(reads=reads, count=count))
        text = (
            'name = "reader"\nmemory = 8\nkernel = "reader.py"\n'
            f'disk = ["format=raw,vdev=xvda,access=ro,target={root}/disk.img"]\n'
        )
        host = Host()
        trio.run(host.run, [parse_config(text, "reader.cfg", root)])
        return host.results["reader"].usage


def _blocks(reads: int, count: int) -> int:
    return int(_run(reads, count).blocks)


def questions(rng: random.Random) -> list[Question]:
    """Make the questions of one student."""
    pages = rng.randrange(12, 100)
    first = rng.randrange(8)
    last = rng.randrange(first, 8)
    sectors = rng.randrange(9, 80)
    reads, count = rng.randrange(2, 9), rng.randrange(1, 30)
    return [
        Question(
            f"How many requests does a transfer of {pages} whole pages take (without indirect segments)?",
            lambda: -(-pages // blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST),
            "Eleven segments for each. That is why later frontends use indirect requests, with up to 4096 segments.",
        ),
        Question(
            f"A segment has first_sect {first} and last_sect {last}. How many bytes is it?",
            lambda: (last - first + 1) * 512,
            "Both are included. A backend that does not check that last_sect is below 8 reads "
            "beyond the page: into whatever it has mapped behind it.",
        ),
        Question(
            f"A frontend reads {sectors} sectors into fresh pages. What is last_sect of the last segment?",
            lambda: (sectors - 1) % 8,
            "The last page may be used in part only.",
        ),
        Question(
            f"A guest makes {reads} reads of {count} sectors. How many blocks of 512 bytes does the host's report "
            "count for its disk?",
            lambda: _blocks(reads, count),
            "Just what was asked for: nobody reads ahead here.",
        ),
        Question(
            "How many slots of blkif requests does a ring of one page have?",
            lambda: blkif.BLKIF_RING_SIZE,
            "112 bytes each: 36 would fit, and 32 is the power of two below.",
        ),
    ]
