"""Traces of the hosts on which checks run: those of checks that fail go into the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from conformance.kit import schedules
from guest_kernel.kernel import Kernel
from hypervisor.abi.tracepoints import GUEST_NOTE

NOTE: Final = "the check fails: "
"""What the note begins with that says so in a trace."""

_file: ContextVar[Path | None] = ContextVar("_file", default=None)


@contextmanager
def recorded(file: Path) -> Iterator[None]:
    """Have the hosts that are made meanwhile leave a trace, with their state: the last one's stays."""
    token = _file.set(file)
    try:
        yield
    finally:
        _file.reset(token)


def host_options() -> dict[str, Any]:
    """Return what a host on which a check runs is to be made with."""
    file = _file.get()
    return schedules.options() | ({} if file is None else {"trace_file": file, "trace_state": True})


def note_failure(kernel: Kernel, error: Exception) -> None:
    """Say in the trace, if there is one, that the check which this kernel runs has failed now."""
    trace = kernel.cpu.trace
    if trace is not None:
        trace(GUEST_NOTE, f"{NOTE}{error}")
