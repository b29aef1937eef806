"""Faulty consoles: the guest kernel's, with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guest_kernel.console import Console, RingSink
from tests.mutants.block_backends import instead

Patch = Callable[[pytest.MonkeyPatch], None]
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 768, 769, 770, 771
OUT, SIZE = 1024, 2048
U32 = 0xFFFF_FFFF


def _silent(old: Any) -> Any:
    def work(self: RingSink, *arguments: Any) -> Any:
        notify, self._notify = self._notify, lambda port: None
        try:
            return old(self, *arguments)
        finally:
            self._notify = notify

    return work


def _tidies_up(old: Any) -> Any:
    def put(self: RingSink, data: bytes) -> int:
        if self._words[OUT_PROD] == self._words[OUT_CONS]:
            self._words[OUT_PROD] = self._words[OUT_CONS] = 0
        return int(old(self, data))

    return put


def _overflows(old: Any) -> Any:
    def put(self: RingSink, data: bytes) -> int:
        for byte in data:
            self._bytes[OUT + self._words[OUT_PROD] % SIZE] = byte
            self._words[OUT_PROD] = (self._words[OUT_PROD] + 1) & U32
        self._notify(self._port)
        return len(data)

    return put


def _overtakes(old: Any) -> Any:
    def write(self: Console, data: bytes) -> None:
        taken = self._sink.put(data)
        self._backlog += data[taken:]

    return write


def _straight_on(old: Any) -> Any:
    def put(self: RingSink, data: bytes) -> int:
        at = OUT + self._words[OUT_PROD] % SIZE
        data = data[: SIZE - (self._words[OUT_PROD] - self._words[OUT_CONS])]
        self._bytes[at : at + len(data)] = data
        self._words[OUT_PROD] += len(data)
        self._notify(self._port)
        return len(data)

    return put


def _compares(old: Any) -> Any:
    def put(self: RingSink, data: bytes) -> int:
        if self._words[OUT_PROD] < self._words[OUT_CONS]:
            return 0
        return int(old(self, data))

    return put


def _trusts(old: Any) -> Any:
    def put(self: RingSink, data: bytes) -> int:
        room = (SIZE - (self._words[OUT_PROD] - self._words[OUT_CONS])) & U32
        at = OUT + self._words[OUT_PROD] % SIZE
        data = data[:room]
        self._bytes[at : at + len(data)] = data
        self._words[OUT_PROD] = (self._words[OUT_PROD] + len(data)) & U32
        self._notify(self._port)
        return len(data)

    return put


def _waits_for_a_reader(old: Any) -> Any:
    def put(self: RingSink, data: bytes) -> int:
        if not getattr(self, "heard", False):
            return len(data)
        return int(old(self, data))

    return put


def _hears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RingSink, "put", _waits_for_a_reader(RingSink.put))
    old = RingSink.take

    def take(self: Any) -> bytes:
        self.heard = True
        return old(self)

    monkeypatch.setattr(RingSink, "take", take)


def _refuses(old: Any) -> Any:
    def write(self: Console, data: bytes) -> None:
        if self._backlog:
            raise BlockingIOError("the ring is full")
        old(self, data)

    return write


def _answers(old: Any) -> Any:
    def take(self: RingSink) -> bytes:
        self._notify(self._port)
        return bytes(old(self))

    return take


def _keeps_in_cons(old: Any) -> Any:
    def take(self: Any) -> bytes:
        words = self._words
        seen, kept = getattr(self, "seen", words[IN_CONS]), words[IN_CONS]
        words[IN_CONS] = seen
        data = bytes(old(self))
        self.seen, words[IN_CONS] = words[IN_CONS], kept
        return data

    return take


def _other_mask(old: Any) -> Any:
    def take(self: RingSink) -> bytes:
        words = self._words
        count = min((words[IN_PROD] - words[IN_CONS]) & U32, 1024)
        data = bytes(self._bytes[(words[IN_CONS] + n) % SIZE] for n in range(count))
        words[IN_CONS] = words[IN_PROD]
        if count:
            self._notify(self._port)
        return data

    return take


def _unbounded(old: Any) -> Any:
    def take(self: RingSink) -> bytes:
        words = self._words
        count = (words[IN_PROD] - words[IN_CONS]) & U32
        at = words[IN_CONS] % 1024
        words[IN_CONS] = words[IN_PROD]
        if count:
            self._notify(self._port)
        return bytes(self._bytes[at : min(at + count, 3072)])

    return take


def _one_byte(old: Any) -> Any:
    def take(self: RingSink) -> bytes:
        return bytes(old(self)[:512])

    return take


def _only_news(old: Any) -> Any:
    def make(self: RingSink, *arguments: Any) -> None:
        old(self, *arguments)
        self.first = True  # type: ignore[attr-defined]

    return make


def _flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RingSink, "__init__", _only_news(RingSink.__init__))
    old = RingSink.take

    def take(self: Any) -> bytes:
        data = old(self)
        if self.first:
            self.first = False
            return b""
        return data

    monkeypatch.setattr(RingSink, "take", take)


def _one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Console.flush

    def flush(self: Any) -> None:
        old(self)
        self._sink.busy = bool(self._backlog)

    monkeypatch.setattr(Console, "flush", flush)
    take = RingSink.take

    def busy_take(self: Any) -> bytes:
        if getattr(self, "busy", False):
            self._words[IN_CONS] = self._words[IN_PROD]
            return b""
        return take(self)

    monkeypatch.setattr(RingSink, "take", busy_take)


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "writes-nothing": (
        "a line goes nowhere",
        "CONSOLE-001",
        instead(RingSink, "put", lambda old: lambda self, data: len(data)),
    ),
    "silent": ("output is not notified", "CONSOLE-002", instead(RingSink, "put", _silent)),
    "tidies-up": (
        "it sets both indices back when the ring is empty", "CONSOLE-003", instead(RingSink, "put", _tidies_up),
    ),
    "overflows": ("it writes though the ring is full", "CONSOLE-004", instead(RingSink, "put", _overflows)),
    "forgets": (
        "what found no room is kept until the next print",
        "CONSOLE-005",
        instead(Console, "flush", lambda old: lambda self: None),
    ),
    "overtakes": ("a short line overtakes what waits", "CONSOLE-006", instead(Console, "write", _overtakes)),
    "straight-on": ("it writes behind the end of the ring", "CONSOLE-007", instead(RingSink, "put", _straight_on)),
    "compares": ("it compares the indices", "CONSOLE-008", instead(RingSink, "put", _compares)),
    "trusts": ("it trusts out_cons", "CONSOLE-009", instead(RingSink, "put", _trusts)),
    "waits-for-a-reader": ("what is printed before the first event is lost", "CONSOLE-010", _hears),
    "refuses": ("to print into a full ring is an error", "CONSOLE-011", instead(Console, "write", _refuses)),
    "answers": ("each event is answered", "CONSOLE-012", instead(RingSink, "take", _answers)),
    "keeps-in-cons": ("it does not say what it has read", "CONSOLE-020", instead(RingSink, "take", _keeps_in_cons)),
    "silent-reader": ("it does not notify that there is room", "CONSOLE-021", instead(RingSink, "take", _silent)),
    "other-mask": ("the input's ring has the output's size", "CONSOLE-022", instead(RingSink, "take", _other_mask)),
    "unbounded": ("it trusts in_prod", "CONSOLE-023", instead(RingSink, "take", _unbounded)),
    "half": ("it drops what is longer than half a ring", "CONSOLE-024", instead(RingSink, "take", _one_byte)),
    "flushes": ("it drops what was typed before it looked", "CONSOLE-025", _flushes),
    "one-of-two": ("it drops input while output waits", "CONSOLE-026", _one_of_two),
}  # fmt: skip
"""Name → the fault, the check meant for it, what makes it."""
