"""A host with the frontend in a guest, and the check as the only program of the driver domain that has its disk."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from backends.block import BlockBack
from conformance.block.world import disk
from conformance.block_front.back import Back
from conformance.block_front.remote import RemoteDisk
from conformance.kit.bus_end import LOOK_NS
from conformance.kit.front_stage import FrontStage, Job
from conformance.kit.hands import Hands
from conformance.kit.machine_guest import MachineGuest, open_config
from conformance.kit.place import Place
from conformance.kit.runner import World
from conformance.kit.split_host import JudgedHost
from conformance.subjects import load_class
from conformance.wire.hands import hands_of
from frontends.block import BlockFront
from guest_kernel.guest import Guest

Use = Callable[[Any], Awaitable[Any]]
"""Takes the guest's disk: a `BlockDevice`, or a `RemoteDisk`."""
__all__ = ["LOOK_NS", "Job", "Scene", "open_subject", "place"]


class Scene(FrontStage):
    """What a check gets. (A lab has one whose guest uses its disk in another way.)"""

    make_back = Back
    back: Back
    use_fails = "The guest's I/O fails"
    use_hangs = "The guest waits for its I/O for ever."

    def __init__(self, subject: Any, directory: Path) -> None:
        super().__init__(subject, hands_of(subject))
        self.directory = directory
        self.remote: RemoteDisk | None = None
        """The disk, if the guest is no Python program."""

    def use(self, use: Use) -> Job:
        """Have the guest do something with its disk."""
        remote = self.remote
        if remote is not None:
            return self.do_from_afar(lambda: use(remote))

        async def work(guest: Guest) -> Any:
            return await use(await guest.disk("xvda"))

        return self.do(work)

    def employ(self, hands: Hands) -> None:
        """Get ready for a guest that is no Python program."""
        self.remote = RemoteDisk(hands)
        if isinstance(self.subject, MachineGuest):
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
