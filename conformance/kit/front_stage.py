"""What the suites of frontends share: a guest that uses its device, and the check as the program of the backend."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, final

from conformance.kit.bus_end import LOOK_NS, BackEnd
from conformance.kit.check import Failure, Skip
from conformance.kit.hands import Hands
from conformance.kit.machine_guest import MachineGuest
from conformance.kit.recording import note_failure
from conformance.kit.split_host import Occupant, Stage
from guest_kernel.guest import Guest
from guest_kernel.kernel import Kernel

Work = Callable[[Any], Awaitable[Any]]
"""Takes the guest's program; None if the guest is no Python program."""


@final
class Job:
    """Something that the guest's program is to do."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None

    async def run(self, guest: Guest | None) -> None:
        """Do it, in the guest (None: on its behalf)."""
        try:
            self.result = await self._work(guest)
        except Exception as error:
            self.error = error
        self.done = True


class FrontStage(Stage):
    """A scene of such a suite."""

    make_back: ClassVar[type[BackEnd]]
    back: BackEnd
    """The check's end, once its domain runs."""
    use_fails: ClassVar[str]
    use_hangs: ClassVar[str]
    """What is said of a guest's use of its device."""

    def __init__(self, subject: Any, hands: Hands | None) -> None:
        super().__init__()
        self.subject = subject
        self.hands = hands
        """Who does a guest's jobs, if it is no Python program."""
        self.user: Kernel | None = None
        """The guest's kernel, once it runs."""
        self.jobs: deque[Job] = deque()
        """What the guest's program has yet to begin."""
        self.departs = False
        """The driver domain ends as it is, and the guest is to live on."""

    def do(self, work: Work) -> Job:
        """Have the guest's program do something. Raises Skip if it is no Python program."""
        if self.hands is not None:
            raise Skip("It takes a guest in Python.")
        job = Job(work)
        self.jobs.append(job)
        return job

    def do_from_afar(self, work: Callable[[], Awaitable[Any]]) -> Job:
        """Have something done by a guest that is no Python program."""
        job = Job(lambda _: work())
        self.back.kernel.spawn(job.run(None), "job")
        return job

    async def end(self, job: Job) -> Exception | None:
        """Wait until a job is done; return its error. Raises Failure if it never ends."""
        for _ in range(self.back.patience_ns // LOOK_NS):
            if job.done:
                return job.error
            await self.back.kernel.sleep(LOOK_NS)
        raise Failure(self.use_hangs)

    async def finish(self, job: Job) -> Any:
        """Wait until a job is done; return what it returned. Raises Failure if it failed, or never ends."""
        await self.end(job)
        if isinstance(job.error, Skip):
            raise job.error
        if job.error is not None:
            raise Failure(f"{self.use_fails}: {job.error!r}.")
        return job.result

    @abstractmethod
    def employ(self, hands: Hands) -> None:
        """Get ready for a guest that is no Python program."""

    async def live(self, kernel: Kernel) -> None:
        """Be the driver domain's program."""
        self.back = self.make_back(kernel)
        if self.hands is not None:
            self.hands.serve(kernel, LOOK_NS, lambda: self.over)
            self.employ(self.hands)
        if isinstance(self.subject, MachineGuest):
            self.back.patience_ns = self.subject.patience_ns
        try:
            await self.begin()
            if self.back.is_attached and not self.departs:
                await self.back.close()
        except Exception as error:
            self.failure = error
            note_failure(kernel, error)
            self.back.detach()
        self.over = True
        if isinstance(self.subject, Occupant):
            self.subject.end()
