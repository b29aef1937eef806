"""Finds guests that never yield.

The host is one thread: a guest that loops without ever coming back to its kernel stops everybody. A real machine would
take its processor away with a timer interrupt; here an interval timer of the process does. When nothing has moved for
`limit` seconds of wall-clock time, the handler raises `GuestHangError` inside the guest's own code, so that the guest's
kernel panics, prints the traceback on its console and ends the domain as crashed. The others go on.

The exception must not break into the hypervisor: when the signal finds a hypercall being executed, it is tried again a
moment later, until it lands in the guest's code.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from toolstack.errors import GuestHangError
from toolstack.guest_loader import GUEST_MODULE

DEFAULT_LIMIT = 10.0
_PERIOD = 0.5
_RETRY = 0.0007
_GUEST_FLOORS = (GUEST_MODULE, "guest_kernel.", "frontends.", "backends.")


class Watchdog:
    """`with Watchdog(...)`: watch the pCPU loop of one host. Works in the process's main thread only.

    `progress()` returns a number that changes whenever a vCPU is resumed, and `running()` the name of the domain whose
    code executes, or None. `on_hang(name, where)` is told of each victim. `heartbeat()` is called several times within
    the limit, as long as the interpreter can be interrupted at all (see `stuck`). Wall-clock time never reaches the
    simulated host: a run in which nobody hangs is not touched.
    """

    def __init__(
        self,
        progress: Callable[[], int],
        running: Callable[[], str | None],
        on_hang: Callable[[str, str], None],
        *,
        limit: float = DEFAULT_LIMIT,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self._progress = progress
        self._running = running
        self._on_hang = on_hang
        self._limit = limit
        self._heartbeat = heartbeat
        self._seen = -1
        self._since = 0.0
        self._old: object = None
        self._active = False

    def __enter__(self) -> Watchdog:
        if threading.current_thread() is threading.main_thread():
            self._active = True
            self._heartbeat()
            self._since = time.monotonic()
            self._old = signal.signal(signal.SIGALRM, self._on_alarm)
            self._arm(min(_PERIOD, self._limit / 4))
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._active = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._old)  # type: ignore[arg-type]

    def _arm(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _on_alarm(self, _number: int, frame: FrameType | None) -> None:
        """Look whether something has moved since last time; if not for too long, end the guest that is to blame."""
        if not self._active:
            return
        self._heartbeat()
        now = time.monotonic()
        progress, name = self._progress(), self._running()
        if progress != self._seen or name is None:
            self._seen, self._since = progress, now
        elif now - self._since >= self._limit:
            if frame is None or not _is_guest(frame):
                self._arm(_RETRY)
                return
            self._since = now
            self._arm(_PERIOD)
            where = describe(frame)
            self._on_hang(name, where)
            message = f"{name} has not yielded for {self._limit:g} s of wall-clock time, at {where}"
            raise GuestHangError(message, self._limit)
        self._arm(min(_PERIOD, self._limit / 4))


def _is_guest(frame: FrameType) -> bool:
    """Whether the code that executes is a guest's: going outwards, its frame comes before any of the hypervisor."""
    at: FrameType | None = frame
    while at is not None:
        module = str(at.f_globals.get("__name__", ""))
        if module.startswith(_GUEST_FLOORS):
            return True
        if module.startswith(("hypervisor.", "toolstack.")) and not module.startswith("hypervisor.abi."):
            return False
        at = at.f_back
    return False


def describe(frame: FrameType) -> str:
    """Return `file:line in function` of the innermost frame of a guest file; of `frame` itself if there is none."""
    at: FrameType | None = frame
    while at is not None and not str(at.f_globals.get("__name__", "")).startswith(GUEST_MODULE):
        at = at.f_back
    chosen = at or frame
    return f"{Path(chosen.f_code.co_filename).name}:{chosen.f_lineno} in {chosen.f_code.co_qualname}"
