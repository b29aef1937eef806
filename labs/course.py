"""The table of the labs: what there is, in the order in which it is taught."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

import attrs

from labs.kit.check import Checks
from labs.kit.questions import MakeQuestions

HERE: Final = Path(__file__).parent
SOLUTIONS: Final = HERE / "solutions"


@attrs.frozen
class Lab:
    """One lab: a directory here with `README.md`, `skeleton/`, `checks.py` and `questions.py`."""

    number: int
    name: str
    title: str
    minutes: int
    """What a student needs who has read the chapter."""
    allowed: tuple[str, ...] = ("hypervisor.abi",)
    """What of this project a submission may import."""

    @property
    def path(self) -> Path:
        """Where it is."""
        return HERE / self.name

    @property
    def directory_name(self) -> str:
        """What a student's directory is called."""
        return f"lab{self.number:02}-{self.name}"

    @property
    def page(self) -> str:
        """The page of explanation, in Markdown."""
        return (self.path / "README.md").read_text(encoding="utf-8")

    @property
    def files(self) -> list[Path]:
        """The files that a student gets and hands in."""
        return sorted(path for path in (self.path / "skeleton").iterdir() if path.suffix == ".py")

    def checks(self) -> Checks:
        """Return the checks of the lab."""
        found = importlib.import_module(f"labs.{self.name}.checks").CHECKS
        assert isinstance(found, Checks)
        return found

    def questions(self) -> MakeQuestions:
        """Return what makes the questions of a student."""
        make: MakeQuestions = importlib.import_module(f"labs.{self.name}.questions").questions
        return make


LABS: Final = (
    Lab(1, "hypercalls", "Hypercalls: the only way in", 60),
    Lab(2, "boot", "Two pages: start_info and shared_info", 90),
    Lab(3, "frames", "Machine memory and pseudo-physical memory", 90),
    Lab(4, "tables", "Page tables and pinning", 120),
    Lab(5, "events", "Event channels", 120),
    Lab(6, "grants", "Grant tables", 90),
    Lab(7, "ring", "The ring", 90, ()),
    Lab(8, "blkfront", "A block frontend from nothing", 180, ("hypervisor.abi", "guest_kernel")),
    Lab(9, "xenbus", "Xenstore and xenbus", 150, ()),
    Lab(10, "scheduling", "Time and scheduling", 120),
    Lab(11, "hostile", "A hostile guest", 120, ("hypervisor.abi", "guest_kernel", "labs.hostile.client")),
    Lab(12, "measuring", "Measuring, with trace and top", 90, ()),
)


def find(text: str) -> Lab | None:
    """Return the lab of this number or name, or None."""
    return next((lab for lab in LABS if text in (str(lab.number), lab.name)), None)
