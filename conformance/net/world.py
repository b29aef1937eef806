"""A host with the backend in a driver domain, and the check as the only program of a guest with two vifs there."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

from backends.net import NetBack
from conformance.kit.back_stage import BackStage
from conformance.kit.bus_end import FrontEnd
from conformance.kit.place import Place
from conformance.kit.runner import World
from conformance.kit.split_host import JudgedHost
from conformance.net.frames import MACS
from conformance.net.front import Front
from conformance.subjects import load_class
from frontends.net import NetFront
from guest_kernel.kernel import Kernel

DEVICES: Final = "vif = [{}]".format(", ".join(f'"backend=backend,mac={mac.hex(":")}"' for mac in MACS))


@final
class Scene(BackStage):
    """What a check gets."""

    front: Front
    """The interface that the check is about."""
    peer: Front
    """Another one on the same bridge, with which it talks, and which it must not harm."""

    def make_fronts(self, kernel: Kernel) -> Sequence[FrontEnd]:
        """Make the guest's interfaces."""
        self.front, self.peer = Front(kernel, 0), Front(kernel, 1)
        return self.front, self.peer

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
