"""What happens while a check runs, told in lines: for the pages of `paravirt check explain`.

Nobody listens unless `telling` is entered. Worlds with a host call `watch(host)`; what goes over its rings, the nodes
of its devices, notifications, grants that are mapped or refused, and crashes are told. Worlds without one have the ends
that they judge `told`, or `note` what goes over a wire.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, final

from conformance.kit.host_lines import HostLines
from toolstack.host import Host

_MOST_LINES: Final = 4000
"""More than that of one run nobody compares."""


@final
class Recorder:
    """The lines of one run."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.is_over: Callable[[], bool] = lambda: False
        """Whether the check has come to its end: what is cleared away afterwards is not told."""

    def say(self, line: str) -> None:
        """Add a line."""
        if not self.is_over() and len(self.lines) < _MOST_LINES:
            self.lines.append(line)


_recorder: Recorder | None = None
DONE: Final = "(The check has seen all that it wants; what follows is clearing away.)"


@contextmanager
def telling() -> Iterator[Recorder]:
    """Have all that happens told to a new recorder."""
    global _recorder
    assert _recorder is None, "somebody records already"
    _recorder = Recorder()
    try:
        yield _recorder
    finally:
        _recorder = None


def heard(subject: Any, running: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """Return a check that is to run in a guest; its end is told, and that of what its world does for it is the end."""
    if _recorder is None:
        return running
    # Of several runs under different schedules the last one is told.
    _recorder.lines.clear()
    _recorder.is_over = lambda: bool(subject.over)
    return _to_the_end(running)


async def _to_the_end(running: Coroutine[Any, Any, None]) -> None:
    await running
    note(DONE)


def is_telling() -> bool:
    """Whether somebody records."""
    return _recorder is not None


def note(line: str) -> None:
    """Tell a line, if somebody records."""
    if _recorder is not None:
        _recorder.say(line)


def watch(host: Host) -> None:
    """Have a host that is not switched on yet tell what happens on it, if somebody records."""
    if _recorder is not None:
        host.observer = HostLines(host, _recorder.say, lambda: _recorder is None or _recorder.is_over()).hear


def told(name: str, thing: Any) -> Any:
    """Return a thing, which tells what is done with it if somebody records."""
    return thing if _recorder is None else _Told(name, thing)


@final
class _Told:
    """Passes everything on, and tells it."""

    def __init__(self, name: str, thing: Any) -> None:
        object.__setattr__(self, "_Told__name", name)
        object.__setattr__(self, "_Told__thing", thing)

    def __getattr__(self, key: str) -> Any:
        found = getattr(self.__thing, key)
        if not callable(found):
            return found
        name = self.__name

        def call(*arguments: Any, **named: Any) -> Any:
            words = [_show(value) for value in arguments] + [f"{word}={_show(value)}" for word, value in named.items()]
            head = f"{name}.{key}({', '.join(words)})"
            result = found(*arguments, **named)
            if inspect.iscoroutine(result):
                return _tell_later(head, result)
            note(head if result is None else f"{head} = {_show(result)}")
            return result

        return call

    def __setattr__(self, key: str, value: Any) -> None:
        note(f"{self.__name}.{key} = {_show(value)}")
        setattr(self.__thing, key, value)


async def _tell_later(head: str, running: Any) -> Any:
    note(f"{head} ...")
    result = await running
    if result is not None:
        note(f"... = {_show(result)}")
    return result


def _show(value: Any) -> str:
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"{text[:40]}... ({len(value)} bytes)" if isinstance(value, bytes) else f"{text[:60]}..."
