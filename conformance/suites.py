"""The suites: what each judges, and how its world is made of a subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import attrs

from conformance.block import checks as _block  # noqa: F401 - registers them
from conformance.block import world as block_world
from conformance.block_front import checks as _block_front  # noqa: F401
from conformance.block_front import world as block_front_world
from conformance.console import checks as _console  # noqa: F401
from conformance.console import world as console_world
from conformance.guest_abi import checks as _guest_abi  # noqa: F401
from conformance.guest_abi import world as guest_abi_world
from conformance.kit.check import CHECKS, Check
from conformance.kit.runner import World
from conformance.net import checks as _net  # noqa: F401
from conformance.net import world as net_world
from conformance.net_front import checks as _net_front  # noqa: F401
from conformance.net_front import world as net_front_world
from conformance.ring import checks as _ring  # noqa: F401 - registers them
from conformance.ring import world as ring_world
from conformance.wire.agent import Seat
from conformance.wire.subject import WireSubject
from conformance.xenbus import backend_checks as _xenbus_back  # noqa: F401
from conformance.xenbus import frontend_checks as _xenbus_front  # noqa: F401
from conformance.xenbus import world as xenbus_world
from conformance.xenbus.classes import CLASSES, USUAL
from conformance.xenstore import checks as _xenstore  # noqa: F401
from conformance.xenstore import world as xenstore_world
from guest_kernel.xenbus.driver import Side


@attrs.frozen
class Suite:
    """A set of checks for one kind of subject."""

    name: str
    what: str
    subject: str
    """What its SUBJECT looks like."""
    world: Callable[..., World]
    """Makes the world of each check of a subject (and of one of `classes`). Raises SubjectError."""
    wire: Callable[..., World] | None = None
    """Makes the world of each check of a process (likewise), if the suite judges those."""
    why_not: str = ""
    """Why it does not, if it does not."""
    classes: Sequence[str] = ()
    """The classes of devices that a guest or a process may be judged with, if there is a choice; the first is usual."""

    @property
    def checks(self) -> list[Check]:
        """Its checks, in the order of their ids."""
        return sorted((check for check in CHECKS.values() if check.suite == self.name), key=lambda check: check.id)


def _served(
    role: str, suite: str, scene: Callable[[Seat], AbstractContextManager[Any]]
) -> Callable[[WireSubject], World]:
    """Return what makes the world of each check of a process that has this role."""
    return lambda subject: subject.world(role, suite, scene)


def _served_on_the_bus(side: Side) -> Callable[..., World]:
    """Return what makes the world of each check of a process that is this end of a device of some class."""

    def world(subject: WireSubject, type: str = USUAL) -> World:
        return subject.world(side, f"xenbus-{side}", lambda seat: xenbus_world.scene(seat, side, type))

    return world


SUITES: Final[dict[str, Suite]] = {
    suite.name: suite
    for suite in (
        Suite(
            "ring",
            "an implementation of ring.h's arithmetic",
            "module:Class",
            ring_world.open_subject,
            why_not="it calls a ring's functions one by one, and a process has its own around them",
        ),
        Suite(
            "blkif-backend",
            "a block backend",
            "module:Class, a XenbusDriver",
            block_world.open_subject,
            _served("backend", "blkif-backend", block_world.scene),
        ),
        Suite(
            "blkif-frontend",
            "a block frontend",
            "module:Class, a XenbusDriver, or cfg:FILE or elf:FILE, a guest",
            block_front_world.open_subject,
            _served("frontend", "blkif-frontend", block_front_world.scene),
        ),
        Suite(
            "netif-backend",
            "a network backend",
            "module:Class, a XenbusDriver",
            net_world.open_subject,
            _served("backend", "netif-backend", net_world.scene),
        ),
        Suite(
            "netif-frontend",
            "a network frontend",
            "module:Class, a XenbusDriver, or cfg:FILE or elf:FILE",
            net_front_world.open_subject,
            _served("frontend", "netif-frontend", net_front_world.scene),
        ),
        Suite(
            "xenbus-frontend",
            "how a frontend of any class behaves on the bus",
            "module:Class, a XenbusDriver, or cfg:FILE or elf:FILE",
            xenbus_world.open_frontend,
            _served_on_the_bus("frontend"),
            classes=tuple(CLASSES),
        ),
        Suite(
            "xenbus-backend",
            "how a backend of any class behaves on the bus",
            "module:Class, a XenbusDriver",
            xenbus_world.open_backend,
            _served_on_the_bus("backend"),
            classes=tuple(CLASSES),
        ),
        Suite(
            "console",
            "a guest's end of the console page",
            "module:Class, called with (kernel, page, port)",
            console_world.open_subject,
            why_not="the console's page is the kernel's from its first moment, and a process has no kernel under it",
        ),
        Suite(
            "guest-abi",
            "the kernel of a PV guest, from the hypervisor's side",
            "elf:FILE, cfg:FILE, or module:Class, a Guest on the guest kernel",
            guest_abi_world.open_subject,
            why_not="a kernel is no process: it is judged as elf:FILE or cfg:FILE",
        ),
        Suite(
            "xenstore",
            "a xenstore server, as dom0 sees it on its socket",
            "unix:PATH",
            xenstore_world.open_subject,
            why_not="a store has a socket of its own, and is judged as unix:PATH",
        ),
    )
}
