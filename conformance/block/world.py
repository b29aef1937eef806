"""A host with the backend in a driver domain, and the check as the only program of a guest with a disk there."""

from __future__ import annotations

import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import attrs
import trio

from backends.block import BlockBack
from conformance.block.front import Front
from conformance.kit.check import Failure
from conformance.kit.runner import World
from conformance.subjects import load_class
from frontends.block import BlockFront
from guest_kernel.image import PythonKernelImage
from guest_kernel.kernel import Kernel
from toolstack.host import Host
from toolstack.lifecycle import CRASH
from toolstack.xl_config import parse_config

HERE: Final = Path(__file__).parent
SECTORS: Final = 2048
"""Of the disk: 1 MiB."""


def content(sector: int) -> bytes:
    """Return what the disk holds at first in a sector."""
    return sector.to_bytes(2, "little") * 256


class JudgedHost(Host):
    """A host on which the driver domain has the subject for a block backend, and the guest no block frontend."""

    subject: Any = None

    def load(self, domid: int, image: PythonKernelImage) -> None:
        """Have a domain execute an image, with other drivers."""
        drivers = [
            self.subject if driver is BlockBack else driver for driver in image.drivers if driver is not BlockFront
        ]
        super().load(domid, attrs.evolve(image, drivers=drivers))


@final
class Scene:
    """What a check gets."""

    def __init__(self, subject: Any, directory: Path) -> None:
        self.subject = subject
        self.directory = directory
        self.front: Front
        self.left = False
        """The check has ended without closing its device: it dies with it."""
        self._check: Coroutine[Any, Any, None] | None = None
        self._failure: Exception | None = None
        self._over = False

    def leave(self) -> None:
        """Do not close the device: have the guest end as it is."""
        self.left = True

    async def live(self, kernel: Kernel) -> None:
        """Be the guest's program."""
        self.front = Front(kernel)
        check, self._check = self._check, None
        assert check is not None
        try:
            await check
            if not self.left and self.front.pages:
                await self.front.close()
        except Exception as error:
            self._failure = error
        self._over = True

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check in the guest. Raises what it raises, and Failure for what the backend leaves behind."""
        global current
        self._check = check
        image = self.directory / "disk.img"
        image.write_bytes(b"".join(content(sector) for sector in range(SECTORS)))
        host = JudgedHost(hang_limit=20)
        host.subject = self.subject
        current = self
        try:
            trio.run(host.run, [self._backend(), self._frontend(image)])
        finally:
            current = None
            check.close()
        if self._failure is not None:
            raise self._failure
        if host.results["backend"].reason == CRASH:
            raise Failure(f"The backend's domain crashes: {host.results['backend'].message}")
        if not self._over:
            told = "; ".join(result.message for result in host.results.values() if result.message)
            raise Failure(f"The host ends before the check does. {told}")
        left = host.leaks()
        if left:
            raise Failure(f"The backend leaves something behind: {left[0]}.")

    def _backend(self) -> Any:
        text = 'name = "backend"\nmemory = 16\nkernel = "back_guest.py"\ndriver_domain = 1\n'
        return parse_config(text, "backend.cfg", HERE)

    def _frontend(self, image: Path) -> Any:
        disk = f'disk = ["format=raw,vdev=xvda,access=rw,backend=backend,target={image}"]\n'
        return parse_config(f'name = "frontend"\nmemory = 8\nkernel = "front_guest.py"\n{disk}', "frontend.cfg", HERE)

    @property
    def image(self) -> bytes:
        """What is on the disk by now."""
        return (self.directory / "disk.img").read_bytes()


current: Scene | None = None
"""The scene that guests are in."""


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    subject = load_class(text)
    return lambda: scene(subject)


@contextmanager
def scene(subject: Any) -> Iterator[Scene]:
    """Make a place for a disk."""
    with tempfile.TemporaryDirectory() as name:
        yield Scene(subject, Path(name))
