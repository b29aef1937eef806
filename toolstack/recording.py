"""What is written down of a run as it goes: the trace, the host's state in it, and whoever looks at each record.

Each is wrapped around those before it, and whoever is not there costs nothing:

    trace file ← state's differences ← profile ← an observer of the program's ← faults that wait for a record
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs

from hypervisor.state_trace import StateTrace
from hypervisor.trace import Emit, TraceWriter
from toolstack.errors import UsageError
from toolstack.profiling.profile import Profile

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.tape import Tape


@attrs.define(eq=False)
class Recording:
    """What is to be written down of one run. `open` comes before the hypervisor is made, `attach` after it."""

    file: Path | None
    seed: int = 0
    with_state: bool = False
    """The trace shows the host's state, too."""
    profile: Profile | None = None
    observer: Emit | None = None
    """Is told of each record that a trace would hold."""
    around: Callable[[Emit | None], Emit] | None = None
    """Puts something before all others, if that has to see the records."""
    writer: TraceWriter | None = None
    state: StateTrace | None = None
    emit: Emit | None = None
    """What the hypervisor is to call for each record; None: nobody wants to know."""
    _hv: Hypervisor | None = None

    def open(self, stack: ExitStack, about: dict[str, Any]) -> None:
        """Open the file, which `stack` closes, and put everybody in line. Raises `UsageError`."""
        if self.file is not None:
            try:
                file: BinaryIO = self.file.open("wb")
            except OSError as error:
                raise UsageError(f"cannot write the trace {str(self.file)!r}: {error.strerror}") from None
            self.writer = stack.enter_context(TraceWriter(file, seed=self.seed, about=about))
            self.emit = self.writer.emit
            if self.with_state:
                self.state = StateTrace(self.emit)
                self.emit = self.state.emit
        if self.profile is not None:
            self.emit = self._profiled(self.profile, self.emit)
        if self.observer is not None:
            self.emit = _told(self.observer, self.emit)
        if self.around is not None:
            self.emit = self.around(self.emit)

    @property
    def tape(self) -> Tape | None:
        """Where the hypervisor may leave records without calling anybody, as nobody looks at each; None: nowhere."""
        looked_at = self.with_state or self.profile is not None or self.observer is not None or self.around is not None
        return None if self.writer is None or looked_at else self.writer.tape

    def attach(self, hv: Hypervisor) -> None:
        """Take the time, and the state, from this host."""
        self._hv = hv
        if self.writer is not None:
            self.writer.now = hv.now
        if self.state is not None:
            self.state.attach(hv)

    def finish(self) -> None:
        """Write down what is left: the run is over."""
        if self.state is not None:
            self.state.finish()
        if self.profile is not None:
            self.profile.finish()

    @property
    def failure(self) -> str:
        """Why the trace could not be written to its end; the empty string if it was."""
        if self.writer is None or self.writer.failure is None:
            return ""
        return f"cannot write the trace {str(self.file)!r} to its end: {self.writer.failure.strerror}"

    def _profiled(self, profile: Profile, emit: Emit | None) -> Emit:
        add = profile.add

        def both(domid: int, vcpu_id: int, kind: int, *fields: Any) -> None:
            assert self._hv is not None
            add(self._hv.now(), domid, vcpu_id, kind, *fields)
            if emit is not None:
                emit(domid, vcpu_id, kind, *fields)

        return both


def _told(observer: Emit, emit: Emit | None) -> Emit:
    """Return an emitter of records that go to an observer, and to the trace if there is one."""
    if emit is None:
        return observer

    def both(*record: Any) -> None:
        observer(*record)
        emit(*record)

    return both
