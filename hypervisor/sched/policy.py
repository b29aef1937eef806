"""Schedule policies, which overrule the scheduler: which of the runnable vCPUs comes next.

`fifo` is a plain round robin. `random:SEED` explores other orders, the same ones for the same seed. `replay:FILE`
repeats the order that a trace recorded. `decisions:N=I,…` says at which choices not the first in line is taken.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hypervisor.abi.tracepoints import SCHEDULE
from hypervisor.errors import ReplayError
from hypervisor.trace import TraceError, read_trace

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu


_SCHEDULERS = ("credit2", "credit", "credit-sampled", "rtds", "null", "arinc653", "fifo")


class Policy(ABC):
    """Picks from the run queue."""

    in_order: bool = False
    """The policy always takes the head of the queue, so that nobody needs to ask it."""
    scheduler: str = "fifo"
    """What decides how long a vCPU may run."""
    preempts: bool = False
    """The policy may take the processor away at every preemption point, not only at the end of a time slice."""

    @abstractmethod
    def choose(self, runnable: Sequence[VCpu]) -> int:
        """Return the index of the vCPU that runs next; `runnable` is not empty."""


class Fifo(Policy):
    """First come, first served."""

    in_order = True

    def choose(self, runnable: Sequence[VCpu]) -> int:
        """Return 0."""
        return 0


class Random(Policy):
    """A repeatable random order, with preemption at every point that allows it."""

    preempts = True

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, runnable: Sequence[VCpu]) -> int:
        """Return any index."""
        return self._random.randrange(len(runnable))


class Decisions(Policy):
    """First come, first served, with preemption at every point that allows it, but for some choices.

    `taken` says for a choice, counted from 0, how far down the line the one is who runs. A choice is a moment in which
    more than one vCPU is ready; where the line is too short, its last one runs.
    """

    preempts = True

    def __init__(self, taken: Mapping[int, int]) -> None:
        self.taken = dict(taken)
        self.choices = 0
        """How many there have been."""

    def choose(self, runnable: Sequence[VCpu]) -> int:
        """Return 0, or what was decided for this choice."""
        if len(runnable) == 1:
            return 0
        number = self.choices
        self.choices += 1
        return min(self.taken.get(number, 0), len(runnable) - 1)

    def __str__(self) -> str:
        return "decisions:" + ",".join(f"{number}={index}" for number, index in sorted(self.taken.items()))

    @classmethod
    def parse(cls, text: str) -> Decisions:
        """Make a policy of what stands behind `decisions:`. Raises ValueError."""
        taken = {}
        for word in text.split(",") if text else ():
            number, _, index = word.partition("=")
            if not (number.isascii() and number.isdigit() and index.isascii() and index.isdigit()):
                raise ValueError(f"{word!r} is no decision, as 12=1 is")
            taken[int(number)] = int(index)
        return cls(taken)


class Replay(Policy):
    """The order of the `schedule` records of a trace, whatever policy made it.

    After the last of them it goes on first come, first served. Raises TraceError, OSError for a file that is no trace.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        header, records = read_trace(file)
        # When a processor is taken away must be as it was then, or the records would not fit.
        about = header.get("about") or {}
        self.preempts = bool(about.get("preempts"))
        scheduler = str(about.get("scheduler", "fifo"))
        if scheduler not in _SCHEDULERS:
            raise TraceError(f"{file} was recorded with the scheduler {scheduler!r}, which is not known here")
        self.scheduler = scheduler
        self._order = deque((record[0], record[1], record[2]) for record in records if record[3] == SCHEDULE)

    def choose(self, runnable: Sequence[VCpu]) -> int:
        """Return the index of the vCPU that ran at this point of the recorded run. Raises ReplayError."""
        if not self._order:
            return 0
        when, domid, vcpu_id = self._order.popleft()
        for index, vcpu in enumerate(runnable):
            if vcpu.vcpu_id == vcpu_id and vcpu.domain.domid == domid:
                return index
        raise ReplayError(
            f"this run is not the one that {self._file} recorded: there d{domid}v{vcpu_id} ran at {when} ns, "
            "and here it cannot (were the guests, their disks, the seed or the number of pCPUs others?)"
        )


def parse_policy(text: str) -> Policy:
    """Make a policy from its name on the command line. Raises ValueError with a sentence for a person."""
    name, _, argument = text.partition(":")
    if name == "fifo" and not argument:
        return Fifo()
    if name == "random":
        try:
            seed = int(argument, 0)
            if seed < 0:
                raise ValueError
            return Random(seed)
        except ValueError:
            raise ValueError(f"schedule {text!r}: random wants a whole number as its seed, as in random:7") from None
    if name == "replay" and argument:
        return Replay(Path(argument))
    if name == "decisions":
        try:
            return Decisions.parse(argument)
        except ValueError as error:
            raise ValueError(f"schedule {text!r}: {error}") from None
    raise ValueError(f"schedule {text!r} is none of fifo, random:SEED, replay:FILE, decisions:N=I,...")
