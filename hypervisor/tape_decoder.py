"""Records out of the batches of a trace file: `tape` says what is in them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from hypervisor.abi.tracepoints import Blank
from hypervisor.tape import DEFINE, FIRST, OTHER, TIME

_LETTERS = frozenset(blank.value for blank in Blank)
_HEAD = 3
"""Where the fields begin in what is known of a record: behind domain, vCPU and kind."""


class Decoder:
    """Knows what has been defined, and what time it is, from one batch to the next."""

    def __init__(self) -> None:
        self._now = 0
        self._codes: list[tuple[int, list[Any] | None, tuple[tuple[int, str], ...]]] = []
        """By code: the ns of a tick; what is known of the record (None: there is none); its blanks."""

    def batch(self, batch: object) -> Iterator[list[Any]]:
        """Return the records of a batch. Raises ValueError, with half a sentence, if it is none."""
        if not (isinstance(batch, list) and len(batch) == 2 and isinstance(batch[0], bytes)):
            raise ValueError("there is something else between its records")
        numbers, others = batch
        if not isinstance(others, list) or not all(isinstance(other, list) and len(other) >= 4 for other in others):
            raise ValueError("there is something else between its records")
        return self._records(_words(numbers) if numbers else repeat(OTHER, len(others)), iter(others))

    def _records(self, words: Iterator[int], others: Iterator[list[Any]]) -> Iterator[list[Any]]:
        codes, now = self._codes, self._now
        try:
            for word in words:
                if word >= FIRST:
                    ns, known, blanks = codes[word - FIRST]
                    now += ns
                    if known is None:
                        continue
                    record = [now, *known]
                    for place, letter in blanks:
                        value = next(words)
                        record[place] = value if letter == "Q" else _as(letter, value)
                    yield record
                elif word == OTHER:
                    record = next(others)
                    now = record[0]
                    if not isinstance(now, int):
                        raise ValueError("a record has no time")
                    yield record
                elif word == TIME:
                    now = next(words)
                else:
                    assert word == DEFINE
                    self._define(next(others))
        except StopIteration:
            raise ValueError("a batch ends in the middle of a record") from None
        except IndexError:
            raise ValueError("a record has a code that is not defined") from None
        if next(others, None) is not None:
            raise ValueError("a batch has more than it says")
        self._now = now

    def _define(self, definition: list[Any]) -> None:
        """Take note of a code: `[code, ns, domid, vcpu_id, kind, fields, letters]`, None for each field to come."""
        if len(definition) != 7 or definition[0] != FIRST + len(self._codes):
            raise ValueError("it defines a code wrongly")
        _, ns, domid, vcpu_id, kind, fields, letters = definition
        if not (
            isinstance(ns, int)
            and isinstance(fields, list)
            and isinstance(letters, str)
            and _LETTERS.issuperset(letters)
            and fields.count(None) == len(letters)
        ):
            raise ValueError("it defines a code wrongly")
        places = [1 + _HEAD + index for index, field in enumerate(fields) if field is None]
        known = [domid, vcpu_id, kind, *fields] if kind else None
        self._codes.append((ns, known, tuple(zip(places, letters, strict=True))))


def _words(numbers: bytes) -> Iterator[int]:
    if len(numbers) % 8:
        raise ValueError("a batch ends in the middle of a number")
    words = array("Q", numbers)
    if sys.byteorder == "big":
        words.byteswap()
    return iter(words.tolist())


def _as(letter: str, word: int) -> int:
    return bool(word) if letter == Blank.FLAG.value else word - (word >> 63 << 64)
