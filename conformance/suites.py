"""The suites: what each judges, and how its world is made of a subject."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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
from conformance.wire.subject import WireSubject
from conformance.xenbus import backend_checks as _xenbus_back  # noqa: F401
from conformance.xenbus import frontend_checks as _xenbus_front  # noqa: F401
from conformance.xenbus import world as xenbus_world
from conformance.xenstore import checks as _xenstore  # noqa: F401
from conformance.xenstore import world as xenstore_world


@attrs.frozen
class Suite:
    """A set of checks for one kind of subject."""

    name: str
    what: str
    subject: str
    """What its SUBJECT looks like."""
    world: Callable[[str], World]
    """Makes the world of each check of a subject. Raises SubjectError."""
    wire: Callable[[WireSubject], World] | None = None
    """Makes the world of each check of a process, if the suite judges those."""

    @property
    def checks(self) -> list[Check]:
        """Its checks, in the order of their ids."""
        return sorted((check for check in CHECKS.values() if check.suite == self.name), key=lambda check: check.id)


SUITES: Final[dict[str, Suite]] = {
    suite.name: suite
    for suite in (
        Suite("ring", "an implementation of ring.h's arithmetic", "module:Class", ring_world.open_subject),
        Suite(
            "blkif-backend",
            "a block backend",
            "module:Class, a XenbusDriver",
            block_world.open_subject,
            block_world.wire_world,
        ),
        Suite(
            "blkif-frontend",
            "a block frontend",
            "module:Class, a XenbusDriver, or cfg:FILE or elf:FILE, a guest",
            block_front_world.open_subject,
            block_front_world.wire_world,
        ),
        Suite("netif-backend", "a network backend", "module:Class, a XenbusDriver", net_world.open_subject),
        Suite(
            "netif-frontend",
            "a network frontend",
            "module:Class, a XenbusDriver, or cfg:FILE or elf:FILE",
            net_front_world.open_subject,
        ),
        Suite(
            "xenbus-frontend",
            "how a frontend of any class behaves on the bus",
            "module:Class, a XenbusDriver",
            xenbus_world.open_frontend,
        ),
        Suite(
            "xenbus-backend",
            "how a backend of any class behaves on the bus",
            "module:Class, a XenbusDriver",
            xenbus_world.open_backend,
        ),
        Suite(
            "console",
            "a guest's end of the console page",
            "module:Class, called with (kernel, page, port)",
            console_world.open_subject,
        ),
        Suite(
            "guest-abi",
            "the kernel of a PV guest, from the hypervisor's side",
            "elf:FILE, cfg:FILE, or module:Class, a Guest on the guest kernel",
            guest_abi_world.open_subject,
        ),
        Suite("xenstore", "a xenstore server, as dom0 sees it on its socket", "unix:PATH", xenstore_world.open_subject),
    )
}
