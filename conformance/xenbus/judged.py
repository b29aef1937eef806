"""Who may be judged on the bus: a driver's class, a guest with a kernel of its own, a process on the wire.

What differs is how the driver and the device come together. A driver in Python is given to its kernel when the check
says so. A guest's and a process's are there from the beginning: there the device comes when the check says so, by its
directory. Until then neither end has one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, Protocol, final

import attrs

from conformance.kit.check import Skip
from conformance.kit.hands import BOOT_LOOK_NS, Hands
from conformance.kit.machine_guest import MachineGuest
from conformance.kit.split_host import Occupant
from conformance.wire import protocol as wire
from conformance.wire.agent import Seat
from conformance.wire.hands import hands_of
from conformance.xenbus.classes import CLASSES, DeviceClass, class_of
from conformance.xenbus.desk import LOOK_NS, Desk, Work
from conformance.xenbus.ends import PATIENCE_NS
from guest_kernel.kernel import Kernel

UNPAUSED_NS: Final = 5_000_000
"""Virtual time after which a guest has been let run, and its kernel is far from looking for devices."""
BOOT_NS: Final = 400_000_000_000
"""Virtual time that a guest may take to come up."""
GUEST_PATIENCE_NS: Final = 10_000_000_000
"""Virtual time after which something counts as not happening in a machine-code guest: it has timers of seconds."""


class Scene(Protocol):
    """What a subject must know of the scene that it is in: see `world.Scene`."""

    driver: Desk
    """Of its domain."""
    judged_domid: int

    async def in_driver(self, work: Work) -> Any:
        """Have work done in its domain. Raises Skip if that is no Python program."""
        ...

    async def in_toolstack(self, work: Work) -> Any:
        """Have work done in dom0."""
        ...

    async def put_judged(self, kernel: Kernel) -> None:
        """In dom0: make its directory, if it is not there."""
        ...

    async def rewrite(self, path: str, value: object) -> None:
        """Write any node, by dom0's right."""
        ...


class Judged(ABC):
    """A subject. `type` is the class of its devices, `kind` what is known of that."""

    subject: Any
    """It itself: a driver's class, or an occupant."""
    type: str
    kind: DeviceClass
    occupant: Occupant | None = None
    """The subject, if it is the whole kernel of its domain."""
    hands: Hands | None = None
    """Who does errands there, if that is no Python program."""
    patience_ns = PATIENCE_NS
    look_ns = LOOK_NS
    """Between two looks whether it has come up."""

    def enter(self, scene: Scene) -> None:
        """Take note of the scene, before there is a host."""
        return

    async def starts(self, kernel: Kernel, scene: Scene) -> None:
        """In dom0: wait until its domain runs."""
        return

    async def comes_up(self, kernel: Kernel, scene: Scene) -> bool:
        """In dom0, while there are no devices: wait until it would take one; whether it does."""
        return True

    @abstractmethod
    async def plug(self, scene: Scene) -> None:
        """Have it meet its device."""

    async def shut_down(self, scene: Scene) -> None:
        """Have its domain shut down."""
        raise Skip("A process does not hear of the end of its domain.")

    async def is_alive(self, scene: Scene) -> None:
        """Raise Failure unless its domain still runs."""
        await scene.in_driver(_nothing)


@final
class Driver(Judged):
    """A `XenbusDriver`, in a kernel that has none of this class before it is plugged in."""

    def __init__(self, subject: Any) -> None:
        self.subject = subject
        self.type = subject.type
        self.kind = class_of(subject)

    async def starts(self, kernel: Kernel, scene: Scene) -> None:
        """Wait until its kernel takes orders."""
        while scene.driver.kernel is None:
            await kernel.sleep(LOOK_NS)

    async def plug(self, scene: Scene) -> None:
        """Give the driver to its kernel: it finds the device, or the device finds it."""
        subject = self.subject

        async def register(kernel: Kernel) -> None:
            assert kernel.bus is not None
            await kernel.bus.register(subject)

        await scene.in_driver(register)

    async def shut_down(self, scene: Scene) -> None:
        """Have the kernel's program end."""
        scene.driver.closed = True


class Resident(Judged):
    """A subject that is there from the beginning."""

    def __init__(self, occupant: Occupant, type: str) -> None:
        self.subject = self.occupant = occupant
        self.type = type
        self.kind = CLASSES[type]
        self.hands = hands_of(occupant)

    async def plug(self, scene: Scene) -> None:
        """Make its directory, if that is not there yet."""
        await scene.in_toolstack(scene.put_judged)


@final
class Process(Resident):
    """A process on the wire, which is not asked before the check begins."""

    def __init__(self, seat: Seat, type: str) -> None:
        super().__init__(seat, type)
        self._seat = seat
        seat.is_open = False

    def enter(self, scene: Scene) -> None:
        """Have its domain work for the check, too."""
        self._seat.beside = scene.driver.serve

    async def starts(self, kernel: Kernel, scene: Scene) -> None:
        """Wait until its domain runs."""
        while scene.driver.kernel is None:
            await kernel.sleep(LOOK_NS)

    async def comes_up(self, kernel: Kernel, scene: Scene) -> bool:
        """Listen to what it wants from now on."""
        self._seat.is_open = True
        return True


@final
class Machine(Resident):
    """A guest with a kernel of its own."""

    patience_ns = GUEST_PATIENCE_NS
    look_ns = BOOT_LOOK_NS

    async def starts(self, kernel: Kernel, scene: Scene) -> None:
        """Wait until its domain has been let run."""
        await kernel.sleep(UNPAUSED_NS)

    async def comes_up(self, kernel: Kernel, scene: Scene) -> bool:
        """Wait until its program can be told something."""
        assert self.hands is not None
        for _ in range(BOOT_NS // BOOT_LOOK_NS):
            if self.hands.ready:
                return True
            await kernel.sleep(BOOT_LOOK_NS)
        return False

    async def shut_down(self, scene: Scene) -> None:
        """Ask for it, as a toolstack does."""
        await scene.rewrite(f"/local/domain/{scene.judged_domid}/control/shutdown", "poweroff")

    async def is_alive(self, scene: Scene) -> None:
        """Raise Failure unless its program answers."""
        assert self.hands is not None
        await self.hands.do(SignOfLife())


@final
@attrs.frozen
class SignOfLife:
    """The errand of doing nothing."""

    def typed(self) -> tuple[object, ...]:
        """Return it as words on a console."""
        return ("nothing",)

    def packed(self, number: int) -> bytes:
        """Return it as news on the wire."""
        return wire.JOB.pack(number, wire.Job.nothing, 0, 0, 0)


def judged(subject: Any, type: str = "") -> Judged:
    """Return a subject as what it is; `type` is the class of devices of one that is no Python driver."""
    if isinstance(subject, MachineGuest):
        return Machine(subject, type)
    if isinstance(subject, Seat):
        return Process(subject, type)
    return Driver(subject)


async def _nothing(_kernel: Kernel) -> None:
    return None
