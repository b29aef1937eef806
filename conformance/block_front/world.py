"""A host with the frontend in a guest, and the check as the only program of the driver domain that has its disk."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import attrs
import trio

from backends.block import BlockBack
from conformance.block_front.back import LOOK_NS, PATIENCE_NS, Back
from conformance.kit.check import Failure
from conformance.kit.runner import World
from conformance.subjects import load_class
from frontends.block import BlockFront
from guest_kernel.block import BlockDevice
from guest_kernel.guest import Guest
from guest_kernel.image import PythonKernelImage
from guest_kernel.kernel import Kernel
from toolstack.host import Host
from toolstack.lifecycle import CRASH
from toolstack.xl_config import parse_config

HERE: Final = Path(__file__).parent
Use = Callable[[BlockDevice], Awaitable[Any]]
__all__ = ["LOOK_NS", "Job", "Scene", "current", "open_subject"]


class JudgedHost(Host):
    """A host on which the guest has the subject for a block frontend, and the driver domain no block backend."""

    subject: Any = None

    def load(self, domid: int, image: PythonKernelImage) -> None:
        """Have a domain execute an image, with other drivers."""
        drivers = [
            self.subject if driver is BlockFront else driver for driver in image.drivers if driver is not BlockBack
        ]
        super().load(domid, attrs.evolve(image, drivers=drivers))


@final
class Job:
    """Something that the guest's program is to do with its disk."""

    def __init__(self, use: Use) -> None:
        self._use = use
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None

    async def work(self, guest: Guest) -> None:
        """Do it, in the guest."""
        try:
            self.result = await self._use(await guest.disk("xvda"))
        except Exception as error:
            self.error = error
        self.done = True


@final
class Scene:
    """What a check gets."""

    def __init__(self, subject: Any, directory: Path) -> None:
        self.subject = subject
        self.directory = directory
        self.back: Back
        self.user: Kernel | None = None
        """The guest's kernel, once it runs."""
        self.jobs: deque[Job] = deque()
        self.over = False
        self._check: Coroutine[Any, Any, None] | None = None
        self._failure: Exception | None = None

    def use(self, use: Use) -> Job:
        """Have the guest do something with its disk."""
        job = Job(use)
        self.jobs.append(job)
        return job

    async def finish(self, job: Job) -> Any:
        """Wait until a job is done; return what it returned. Raises Failure if it failed, or never ends."""
        await self.end(job)
        if job.error is not None:
            raise Failure(f"The guest's I/O fails: {job.error!r}.")
        return job.result

    async def end(self, job: Job) -> Exception | None:
        """Wait until a job is done; return its error. Raises Failure if it never ends."""
        for _ in range(PATIENCE_NS // LOOK_NS):
            if job.done:
                return job.error
            await self.back.kernel.sleep(LOOK_NS)
        raise Failure("The guest waits for its I/O for ever.")

    async def live(self, kernel: Kernel) -> None:
        """Be the driver domain's program."""
        self.back = Back(kernel)
        check, self._check = self._check, None
        assert check is not None
        try:
            await check
            if self.back.port:
                await self.back.close()
        except Exception as error:
            self._failure = error
            self.back.detach()
        self.over = True

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check in the driver domain. Raises what it raises, and Failure for what the frontend leaves behind."""
        global current
        self._check = check
        image = self.directory / "disk.img"
        image.write_bytes(bytes(1 << 20))
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
        if host.results["frontend"].reason == CRASH:
            raise Failure(f"The frontend's domain crashes: {host.results['frontend'].message}")
        if not self.over:
            told = "; ".join(result.message for result in host.results.values() if result.message)
            raise Failure(f"The host ends before the check does. {told}")
        left = host.leaks()
        if left:
            raise Failure(f"The frontend leaves something behind: {left[0]}.")

    def _backend(self) -> Any:
        text = 'name = "backend"\nmemory = 16\nkernel = "back_guest.py"\ndriver_domain = 1\n'
        return parse_config(text, "backend.cfg", HERE)

    def _frontend(self, image: Path) -> Any:
        disk = f'disk = ["format=raw,vdev=xvda,access=rw,backend=backend,target={image}"]\n'
        return parse_config(f'name = "frontend"\nmemory = 8\nkernel = "user_guest.py"\n{disk}', "frontend.cfg", HERE)


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
