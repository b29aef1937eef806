"""A host with the backend in a driver domain, and the check as the only program of a guest with two vifs there."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

from backends.net import NetBack
from conformance.kit.place import Place
from conformance.kit.recording import note_failure
from conformance.kit.runner import World
from conformance.kit.split_host import JudgedHost, Stage
from conformance.net.frames import MACS
from conformance.net.front import Front
from conformance.subjects import load_class
from frontends.net import NetFront
from guest_kernel.kernel import Kernel

DEVICES: Final = "vif = [{}]".format(", ".join(f'"backend=backend,mac={mac.hex(":")}"' for mac in MACS))


@final
class Scene(Stage):
    """What a check gets."""

    def __init__(self, subject: Any) -> None:
        super().__init__()
        self.subject = subject
        self.front: Front
        """The interface that the check is about."""
        self.peer: Front
        """Another one on the same bridge, with which it talks, and which it must not harm."""
        self.left = False
        """The check has ended without closing its devices: they die with it."""

    def leave(self) -> None:
        """Do not close the devices: have the guest end as it is."""
        self.left = True

    async def live(self, kernel: Kernel) -> None:
        """Be the guest's program."""
        self.front, self.peer = Front(kernel, 0), Front(kernel, 1)
        try:
            await self.begin()
            for front in (self.front, self.peer):
                if not self.left and front.pages:
                    await front.close()
        except Exception as error:
            self.failure = error
            note_failure(kernel, error)
        self.over = True

    def drive(self, check: Coroutine[Any, Any, None]) -> None:
        """Run a check in the guest. Raises what it raises, and Failure for what the backend leaves behind."""
        host = JudgedHost(self.subject, replaced=NetBack, left_out=NetFront)
        self.run(host, check, Path(__file__).parent, DEVICES, "backend", place.taken_by(self))


place: Final[Place[Scene]] = Place()
"""Where programs find it."""


def open_subject(text: str) -> World:
    """Return what makes the world of each check. Raises SubjectError."""
    subject = load_class(text)
    return lambda: scene(subject)


@contextmanager
def scene(subject: Any) -> Iterator[Scene]:
    """Make a scene."""
    yield Scene(subject)
