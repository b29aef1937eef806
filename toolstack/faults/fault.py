"""What all faults have in common: a victim, a time in which they are active, dice, and an account."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, ClassVar, Protocol

from toolstack.faults.spec import FaultSpec

if TYPE_CHECKING:
    from backends.net import Bridge
    from hypervisor.domain import Domain
    from hypervisor.event_channel.channel import Channel
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.machine.backing import Backing
    from hypervisor.vcpu import VCpu


class World(Protocol):
    """The host, as faults reach it."""

    @property
    def hv(self) -> Hypervisor:
        """The hypervisor; there is one as soon as something can happen."""

    def names(self, domid: int) -> str:
        """Return what a domain is called; the empty string if it has no name yet."""

    def domain(self, name: str) -> Domain | None:
        """Return the domain that has this name at the moment."""

    def domid(self, name: str) -> int:
        """Return its number, 0 if there is none."""

    def later(self, ns: int, function: Callable[[], None]) -> None:
        """Have something happen after a while, between two stretches of guest code, if the host still runs."""

    def order(self, text: str) -> None:
        """Type a line on the host's serial console, for dom0."""

    def bridge(self, name: str) -> Bridge | None:
        """Return a bridge of dom0."""

    def note(self, fault: Fault, domid: int, what: str) -> None:
        """Enter into the account, and into the trace, that a fault has struck."""


class Fault:
    """One fault of one run. Subclasses put their hooks in when they are told to, and look at `strikes`."""

    needs_records: ClassVar[bool] = False
    """Whether it looks at the records of the trace."""
    needs_victim: ClassVar[bool] = False
    """Whether it can only begin when its victim is there: it waits for that, then."""

    def __init__(self, spec: FaultSpec, world: World, seed: str) -> None:
        self.spec = spec
        self.world = world
        self.random = Random(seed)
        self.active = False
        self.struck = 0

    def begin(self) -> None:
        """The moment has come. Runs between two stretches of guest code."""
        self.active = True

    def end(self) -> None:
        """The time is over."""
        self.active = False

    def strikes(self) -> bool:
        """Throw the dice: whether it strikes now. Whoever does something then calls `note`."""
        if not self.active or (self.spec.count is not None and self.struck >= self.spec.count):
            return False
        return self.spec.probability >= 1 or self.random.random() < self.spec.probability

    def note(self, what: str, domid: int | None = None) -> None:
        """Account for one strike."""
        self.struck += 1
        self.world.note(self, self.victim_domid if domid is None else domid, what)

    def is_victim(self, domid: int) -> bool:
        """Whether this is the number of the victim."""
        return self.world.names(domid) == self.spec.domain

    @property
    def victim_domid(self) -> int:
        """Number of the victim, 0 while it does not exist."""
        return self.world.domid(self.spec.domain)

    # -- hooks ----------------------------------------------------------------------------------------------------

    def takes_event(self, channel: Channel) -> bool:
        """Whether an event that was sent to this end of a channel is taken from the wire."""
        return False

    def before_operations(self, vcpu: VCpu, cmd: int, address: int, count: int) -> Callable[[], None] | None:
        """Be told of grant table operations that begin; return what is to be done after them."""
        return None

    def disk(self, owner: str, vdev: str, backing: Backing) -> Backing:
        """Return what stands before a disk."""
        return backing

    def look(self, domid: int, kind: int, fields: tuple[object, ...]) -> None:
        """Be told of a record of the trace, if `needs_records`."""
