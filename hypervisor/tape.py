"""The quick way into a trace: records as numbers on a list.

Most records differ from one another in a few numbers. What is the same in all records of one kind, of one vCPU, is said
once, in a definition, and gets a code. After that such a record is its code and the numbers that belong in its blanks,
each appended to one list (`Tape.words`): that is the cheapest thing a Python program can do with a number.

A record on the tape does not say its time. The time is that of the word `TIME` before it, and of the ticks since then:
the pCPU loop says the time whenever it turns to another thing, and each hypercall is a tick. So this is for hosts whose
time moves at no other moment: those in virtual time without extra costs (`Hypervisor.tape`). All others, and all kinds
of records that are rare, go through the emitter of the trace, which asks for the time.

Whoever writes words checks now and then, for a batch must end: `if len(words) > FULL: tape.keep()`. It must not do so
amid a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

from hypervisor.abi import tracepoints as tp
from hypervisor.abi.sched import SCHEDOP_block
from hypervisor.abi.tracepoints import SIGNED, WORD, Blank
from hypervisor.abi.xen import HYPERVISOR_sched_op

OTHER: Final = 0
"""The next of the records that have been kept as a whole."""
TIME: Final = 1
"""The next word is the time in ns."""
DEFINE: Final = 2
"""The next of what has been kept as a whole is a definition."""
FIRST: Final = 3
"""Codes from here on are defined in the trace itself."""

U64: Final = 0xFFFF_FFFF_FFFF_FFFF

FULL: Final = 4096
"""So many words make a batch."""
LOOK: Final = 0xFF
"""In so many hypercalls (plus one) of a vCPU it is looked once whether the tape is full."""


class Tape:
    """What a `TraceWriter` takes in numbers."""

    __slots__ = ("_codes", "_lengths", "_others", "_paused", "keep", "words")

    def __init__(self, others: list[Any], keep: Callable[[], None]) -> None:
        self.words: list[int] = []
        """Always this very list: whoever writes on it has it in a local name."""
        self._others = others
        self._paused = -1
        """How many words there were when the pCPU loop was left; -1: it has been entered again."""
        self._codes: dict[tuple[Any, ...], int] = {}
        self._lengths = {OTHER: 1, TIME: 2, DEFINE: 1}
        """How many words begin with this one."""
        self.keep = keep
        """Take the words off the list: they are a batch."""

    def pause(self, now: int) -> None:
        """The pCPU loop is left at a time in ns. What happens until it is entered again has that time."""
        self.words.extend((TIME, now))
        self._paused = len(self.words)

    def resume(self) -> None:
        """The loop is entered again. If nothing has happened, nobody may see that it was left: when it is, depends on
        the world outside.
        """
        if len(self.words) == self._paused:
            del self.words[-2:]
        self._paused = -1

    def clear(self) -> None:
        """Begin a new batch."""
        self.words.clear()
        self._paused = -1

    def code(self, domid: int, vcpu_id: int, kind: int, *fields: object, ns: int = 0) -> int:
        """Return the code of a record: each of its fields is what it always is, or a `Blank`.

        It moves the time on by `ns` before the record. Raises TypeError for what a file cannot hold: whoever asks may
        be a guest.
        """
        try:
            msgpack.packb((kind, [field for field in fields if not isinstance(field, Blank)]))
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(f"a trace cannot hold this record: {error}") from None
        if None in fields:
            raise TypeError("a trace cannot hold this record: None says nothing")
        return self._define(ns, domid, vcpu_id, kind, fields)

    def tick(self, ns: int) -> int:
        """Return a code that is no record, but moves the time on."""
        return self._define(ns, 0, 0, 0, ())

    def _define(self, ns: int, domid: int, vcpu_id: int, kind: int, fields: tuple[object, ...]) -> int:
        # (1 and True are the same to a dictionary, but not in a trace.)
        key = (ns, domid, vcpu_id, kind, tuple((type(field), field) for field in fields))
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = FIRST + len(self._codes)
            known = [None if isinstance(field, Blank) else field for field in fields]
            letters = "".join(field.value for field in fields if isinstance(field, Blank))
            self._lengths[code] = 1 + len(letters)
            self._others.append((code, ns, domid, vcpu_id, kind, known, letters))
            self.words.append(DEFINE)
        return code

    def cut(self) -> None:
        """Drop the beginning of a record at the end, if there is one: somebody was interrupted while writing it."""
        words, wholes = self.words, 0
        end = place = 0
        while place < len(words):
            wholes += words[place] in (OTHER, DEFINE)
            end, place = place, place + self._lengths[words[place]]
        if place > len(words):
            del words[end:]
        del self._others[wholes:]

    def probe(self, domid: int, vcpu_id: int, kind: int, *fields: object) -> Callable[..., None]:
        """Return a function that writes such a record: it takes the values of the blanks."""
        code, words = self.code(domid, vcpu_id, kind, *fields), self.words
        append, extend = words.append, words.extend
        blanks = count_blanks(fields)

        def write(*values: int) -> None:
            if len(values) != blanks:
                raise TypeError(f"this record has {blanks} blanks, not {len(values)}")
            append(code)
            extend(values)

        return write

    def probe_each(self, domid: int, vcpu_id: int, kind: int, *fields: object) -> Callable[[Sequence[int]], None]:
        """Return a function that writes such records, which must have one blank: it takes the value of each."""
        code, words = self.code(domid, vcpu_id, kind, *fields), self.words

        def write(values: Sequence[int]) -> None:
            both = [code] * (2 * len(values))
            both[1::2] = values
            words.extend(both)
            if len(words) > FULL:
                self.keep()

        return write


class VCpuCodes:
    """The codes of what happens most to a vCPU."""

    __slots__ = ("block", "call", "deschedule", "idle", "irq", "pending", "schedule", "short_call", "upcall", "wake")

    def __init__(self, tape: Tape, domid: int, vcpu_id: int, *, blocked: int, hypercall_ns: int) -> None:
        """`blocked`: the flags of a vCPU that waits for an event. `hypercall_ns`: the cost of a hypercall."""
        code = tape.code
        block = HYPERVISOR_sched_op, SCHEDOP_block, 0, 0, 0, 0, 0
        self.idle = code(domid, vcpu_id, tp.HYPERCALL, *block, ns=hypercall_ns)
        """A tick, and the hypercall SCHEDOP_block after it."""
        self.call = code(domid, vcpu_id, tp.HYPERCALL, WORD, WORD, WORD, WORD, WORD, WORD, SIGNED)
        self.short_call = code(domid, vcpu_id, tp.HYPERCALL, WORD, WORD, WORD, 0, 0, 0, 0)
        """A hypercall with two arguments at most that returns 0: they nearly all are."""
        self.pending = code(domid, vcpu_id, tp.EVTCHN_PENDING, WORD)
        self.irq = code(domid, vcpu_id, tp.IRQ, WORD, WORD)
        self.upcall = code(domid, vcpu_id, tp.UPCALL, WORD)
        self.wake = code(domid, vcpu_id, tp.WAKE)
        self.schedule = code(domid, vcpu_id, tp.SCHEDULE, 0)
        """On pCPU 0, as the next two."""
        self.deschedule = code(domid, vcpu_id, tp.DESCHEDULE, 0, WORD, WORD)
        self.block = code(domid, vcpu_id, tp.DESCHEDULE, 0, WORD, blocked)


def count_blanks(fields: Sequence[object]) -> int:
    """Return how many values a record of a shape takes."""
    return sum(isinstance(field, Blank) for field in fields)


def register(value: object) -> int:
    """Return what is in a 64-bit register that a guest has put a value into: nothing, if it is no number."""
    return value & U64 if isinstance(value, int) else 0
