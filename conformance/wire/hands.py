"""A process on the wire does a check's errands: they are its jobs."""

from __future__ import annotations

from typing import Any, final

from conformance.kit.hands import ConsoleHands, Errand, Hands
from conformance.kit.machine_guest import MachineGuest
from conformance.wire.agent import Seat


@final
class WireHands(Hands):
    """A process on the wire."""

    def __init__(self, seat: Seat) -> None:
        super().__init__()
        self._seat = seat
        seat.on_done = lambda number, status, data: self.results.update({number: (status == 0, data)})
        seat.on_frame = lambda frame: self.told("frame", frame)

    @property
    def ready(self) -> bool:
        """Whether its domain runs."""
        return self._seat.agent is not None

    def ask(self, number: int, errand: Errand) -> None:
        """Make it a job of the process."""
        agent = self._seat.agent
        assert agent is not None
        agent.post(errand.packed(number))


def hands_of(subject: Any) -> Hands | None:
    """Return who does errands in a guest that is no Python program; None if it is one."""
    if isinstance(subject, MachineGuest):
        return ConsoleHands(subject)
    return WireHands(subject) if isinstance(subject, Seat) else None
