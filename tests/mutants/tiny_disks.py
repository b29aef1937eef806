"""More faulty block backends: the example in Python, with a few words of it exchanged."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

from conformance.block.world import Scene, scene

SOURCE = Path(__file__).parents[2] / "examples" / "conformance" / "python_backend" / "tiny_disk.py"


@attrs.frozen
class Rewritten:
    """The example with `right`, which is there once, exchanged for `wrong`."""

    right: str
    wrong: str

    def world(self) -> AbstractContextManager[Scene]:
        """Make the world with the faulty backend."""
        text = SOURCE.read_text("utf-8")
        assert text.count(self.right) == 1, self.right
        return _scene(text.replace(self.right, self.wrong))

    @staticmethod
    def good() -> AbstractContextManager[Scene]:
        """Make the world with the one that is right, to compare with."""
        return _scene(SOURCE.read_text("utf-8"))


def _scene(text: str) -> AbstractContextManager[Scene]:
    module: Any = ModuleType("tiny_disk")
    exec(compile(text, "tiny_disk.py", "exec"), vars(module))
    return scene(module.TinyDisk)


_OFFERS = '        await device.write({"feature-flush-cache": True})\n'
_BINDS = "        disk.port = self.kernel.events.bind_interdomain(device.otherend_id, port, disk.on_event)\n"
_MAPPED = "            if any(page.status != GNTST_okay for page in pages):\n                return blkif.BLKIF_RSP_"
_UNMAPPABLE = '            raise ValueError(f"the frontend\'s ring-ref {ref} cannot be mapped")\n'

MUTANTS: dict[str, tuple[str, str, Rewritten]] = {
    "tiny-waits": (
        "it offers nothing until the frontend has a ring",
        "BLKIF-BACKEND-001",
        Rewritten(
            _OFFERS,
            '        while await device.read_otherend("ring-ref") is None:\n'
            "            await self.kernel.sleep(1_000_000)\n" + _OFFERS,
        ),
    ),
    "tiny-once": (
        "it serves a device once, and not again",
        "BLKIF-BACKEND-004",
        Rewritten(
            _OFFERS,
            '        if self.options.setdefault("served", 0):\n            await self.kernel.never()\n'
            '        self.options["served"] = 1\n' + _OFFERS,
        ),
    ),
    "tiny-no-ring": (
        "it is Connected without a ring",
        "BLKIF-BACKEND-005",
        Rewritten(_UNMAPPABLE, "            return\n"),
    ),
    "tiny-no-port": (
        "it is Connected without an event channel",
        "BLKIF-BACKEND-006",
        Rewritten(_BINDS, f"        try:\n    {_BINDS}        except Exception:\n            disk.broken = True\n"),
    ),
    "tiny-too-much": (
        "it overwrites the sector behind the last",
        "BLKIF-BACKEND-011",
        Rewritten(
            "self.data[place : place + len(part)] = part",
            "self.data[place : place + len(part) + SECTOR] = bytes(part) + bytes(SECTOR)",
        ),
    ),
    "tiny-whole-page": (
        "it takes each segment from the beginning of its page",
        "BLKIF-BACKEND-012",
        Rewritten("page.view[segment.first_sect * SECTOR :", "page.view[0 :"),
    ),
    "tiny-gaps": (
        "it leaves a sector out between two segments",
        "BLKIF-BACKEND-013",
        Rewritten("            place += len(part)\n", "            place += len(part) + SECTOR\n"),
    ),
    "tiny-in-spite": (
        "it does not tell that a page could not be mapped",
        "BLKIF-BACKEND-016",
        Rewritten(f"{_MAPPED}ERROR", f"{_MAPPED}OKAY"),
    ),
    "tiny-twelve": (
        "it serves the first eleven of more segments",
        "BLKIF-BACKEND-021",
        Rewritten(
            "0 < request.nr_segments <= blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST",
            "0 < request.nr_segments",
        ),
    ),
    "tiny-none": (
        "it takes a request without segments for a good one",
        "BLKIF-BACKEND-022",
        Rewritten("0 < request.nr_segments", "0 <= request.nr_segments"),
    ),
    "tiny-nine": (
        "it takes nine sectors of a page that has eight",
        "BLKIF-BACKEND-023",
        Rewritten("segment.last_sect < 8", "segment.last_sect <= 8"),
    ),
}
"""Name → the fault, the check meant for it, what makes it."""
