"""A host with the backend in a driver domain, and the check as the only program of a guest with a disk there."""

from __future__ import annotations

import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

from backends.block import BlockBack
from conformance.block.front import Front
from conformance.kit.back_stage import BackStage
from conformance.kit.bus_end import FrontEnd
from conformance.kit.place import Place
from conformance.kit.runner import World
from conformance.kit.split_host import JudgedHost
from conformance.subjects import load_class
from frontends.block import BlockFront
from guest_kernel.kernel import Kernel

SECTORS: Final = 2048
"""Of the disk: 1 MiB."""


def content(sector: int) -> bytes:
    """Return what the disk holds at first in a sector."""
    return sector.to_bytes(2, "little") * 256


def disk(directory: Path, content: bytes) -> str:
    """Make an image, and return what gives it to a guest."""
    path = directory / "disk.img"
    path.write_bytes(content)
    return f'disk = ["format=raw,vdev=xvda,access=rw,backend=backend,target={path}"]'


@final
class Scene(BackStage):
    """What a check gets."""

    def __init__(self, subject: Any, directory: Path) -> None:
        super().__init__(subject)
        self.directory = directory
        self.front: Front

    def make_fronts(self, kernel: Kernel) -> Sequence[FrontEnd]:
        """Make the guest's disk."""
        self.front = Front(kernel)
        return (self.front,)

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check in the guest. Raises what it raises, and Failure for what the backend leaves behind."""
        devices = disk(self.directory, b"".join(content(sector) for sector in range(SECTORS)))
        host = JudgedHost(self.subject, replaced=BlockBack, left_out=BlockFront)
        self.run(host, check, Path(__file__).parent, devices, "backend", place.taken_by(self))


place: Final[Place[Scene]] = Place()
"""Where programs find it."""


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    subject = load_class(text)
    return lambda: scene(subject)


@contextmanager
def scene(subject: Any) -> Iterator[Scene]:
    """Make a place for a disk."""
    with tempfile.TemporaryDirectory() as name:
        yield Scene(subject, Path(name))
