"""A host with the frontend in a guest, and the check as the only program of the driver domain that has its disk."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from backends.block import BlockBack
from conformance.block.world import disk
from conformance.block_front.back import Back
from conformance.block_front.remote import RemoteDisk
from conformance.kit.bus_end import LOOK_NS
from conformance.kit.check import Failure, Skip
from conformance.kit.machine_guest import MachineGuest, open_config
from conformance.kit.place import Place
from conformance.kit.recording import note_failure
from conformance.kit.runner import World
from conformance.kit.split_host import JudgedHost, Occupant, Stage
from conformance.subjects import load_class
from conformance.wire.hands import hands_of
from frontends.block import BlockFront
from guest_kernel.guest import Guest
from guest_kernel.kernel import Kernel

Use = Callable[[Any], Awaitable[Any]]
"""Takes the guest's disk: a `BlockDevice`, or a `RemoteDisk`."""
__all__ = ["LOOK_NS", "Job", "Scene", "open_subject", "place"]


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

    async def work_from_afar(self, disk: RemoteDisk) -> None:
        """Have it done, in a guest that is no Python program."""
        try:
            self.result = await self._use(disk)
        except (OSError, Skip) as error:
            self.error = error
        self.done = True


class Scene(Stage):
    """What a check gets. (A lab has one whose guest uses its disk in another way.)"""

    def __init__(self, subject: Any, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.subject = subject
        self.back: Back
        self.user: Kernel | None = None
        """The guest's kernel, once it runs."""
        self.jobs: deque[Job] = deque()
        self.hands = hands_of(subject)
        self.remote: RemoteDisk | None = None
        """The disk, if the guest is no Python program."""

    def use(self, use: Use) -> Job:
        """Have the guest do something with its disk."""
        job = Job(use)
        if self.remote is not None:
            self.back.kernel.spawn(job.work_from_afar(self.remote), "job")
        else:
            self.jobs.append(job)
        return job

    async def finish(self, job: Job) -> Any:
        """Wait until a job is done; return what it returned. Raises Failure if it failed, or never ends."""
        await self.end(job)
        if isinstance(job.error, Skip):
            raise job.error
        if job.error is not None:
            raise Failure(f"The guest's I/O fails: {job.error!r}.")
        return job.result

    async def end(self, job: Job) -> Exception | None:
        """Wait until a job is done; return its error. Raises Failure if it never ends."""
        for _ in range(self.back.patience_ns // LOOK_NS):
            if job.done:
                return job.error
            await self.back.kernel.sleep(LOOK_NS)
        raise Failure("The guest waits for its I/O for ever.")

    async def live(self, kernel: Kernel) -> None:
        """Be the driver domain's program."""
        self.back = Back(kernel)
        self._prepare(kernel)
        try:
            await self.begin()
            if self.back.port:
                await self.back.close()
        except Exception as error:
            self.failure = error
            note_failure(kernel, error)
            self.back.detach()
        self.over = True
        if isinstance(self.subject, Occupant):
            self.subject.end()

    def _prepare(self, kernel: Kernel) -> None:
        """Get ready for a guest that is no Python program."""
        hands = self.hands
        if hands is None:
            return
        hands.serve(kernel, LOOK_NS, lambda: self.over)
        self.remote = RemoteDisk(hands)
        if isinstance(self.subject, MachineGuest):
            self.back.patience_ns = self.subject.patience_ns
            self.back.is_calm = lambda: hands.ready

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check in the driver domain. Raises what it raises, and Failure for what the frontend leaves behind."""
        host = JudgedHost(self.subject, replaced=BlockFront, left_out=BlockBack)
        self.run(
            host, check, Path(__file__).parent, disk(self.directory, bytes(1 << 20)), "frontend", place.taken_by(self)
        )


place: Final[Place[Scene]] = Place()
"""Where programs find it."""


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    config = open_config(text)
    if config is not None:
        return lambda: scene(MachineGuest(config, "frontend"))
    subject = load_class(text)
    return lambda: scene(subject)


@contextmanager
def scene(subject: Any) -> Iterator[Scene]:
    """Make a place for a disk."""
    with tempfile.TemporaryDirectory() as name:
        yield Scene(subject, Path(name))
