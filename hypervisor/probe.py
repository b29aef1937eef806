"""What a guest's code has to write into the trace with: `hypervisor.abi.cpu.Probe`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hypervisor.abi.tracepoints import Blank
from hypervisor.tape import Tape, count_blanks


class VCpuProbe(partial[None]):
    """The emitter of a trace, for one vCPU (calling it is as quick as can be), and the tape if there is one."""

    tape: Tape | None = None

    def bind(self, kind: int, *fields: object) -> Callable[..., None]:
        """Return a function that writes records of one shape; it takes the values of the blanks among the fields."""
        if self.tape is not None:
            return self.tape.probe(*self.args, kind, *fields)

        blanks = count_blanks(fields)

        def write(*values: object) -> None:
            if len(values) != blanks:
                raise TypeError(f"this record has {blanks} blanks, not {len(values)}")
            rest = iter(values)
            self(kind, *[next(rest) if isinstance(field, Blank) else field for field in fields])

        return write

    def bind_each(self, kind: int, *fields: object) -> Callable[[Sequence[int]], None]:
        """Return a function that writes records of one shape with one blank; it takes the value of each."""
        if count_blanks(fields) != 1:
            raise TypeError("many records are written at once if they have one blank")
        if self.tape is not None:
            return self.tape.probe_each(*self.args, kind, *fields)
        one = self.bind(kind, *fields)

        def write(values: Sequence[int]) -> None:
            for value in values:
                one(value)

        return write
