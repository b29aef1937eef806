"""Runs of ring slots as lists of words, for the rings of io/netif.h.

A batch is copied out of a shared ring (or into it) by slices, not slot by slot: that is fast, and what was copied out
is private, so whatever is checked in it stays checked (XSA-155).

A slot is `stride` words; `base` is the place of the wanted word of slot 0. Slots are counted by free-running ring
indices, of which `start` is the first; a run may go over the end of the ring.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, Literal

from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import HEADER_SIZE

TX_SLOT = max(netif.netif_tx_request.size, netif.netif_tx_response.size)
TX_WORDS, TX_BASE = TX_SLOT // 4, HEADER_SIZE // 4
"""A tx slot as 32-bit words. Request: gref | offset, flags << 16 | id, size << 16. Response: id, status << 16."""
RX_SLOT = max(netif.netif_rx_request.size, netif.netif_rx_response.size)
RX_BASE = HEADER_SIZE // 8
"""An rx slot is one 64-bit word. Request: id, gref << 32. Response: id, offset << 16, flags << 32, status << 48."""


def read_words(words: memoryview, base: int, stride: int, size: int, start: int, count: int) -> list[int]:
    """Return one word of each of `count` slots of a ring of `size` slots."""
    first = start & size - 1
    at = base + first * stride
    room = size - first
    if count <= room:
        return words[at : at + count * stride : stride].tolist()
    head = words[at : at + room * stride : stride].tolist()
    return head + words[base : base + (count - room) * stride : stride].tolist()


def write_words(words: memoryview, base: int, stride: int, size: int, start: int, values: Iterable[int]) -> None:
    """Write one word of each slot of a run. `words` is a view of 'I' or of 'Q' words."""
    _write(words, base, stride, size, start, array("I" if words.itemsize == 4 else "Q", values))


def _write(words: memoryview, base: int, stride: int, size: int, start: int, data: Any) -> None:
    """Do it with an array or a view of such words."""
    count = len(data)
    first = start & size - 1
    at = base + first * stride
    room = size - first
    if count <= room:
        words[at : at + count * stride : stride] = data
    else:
        words[at : at + room * stride : stride] = data[:room]
        words[base : base + (count - room) * stride : stride] = data[room:]


def copy_bytes(words: memoryview, base: int, stride: int, size: int, start: int, count: int) -> bytes:
    """Return a private copy of a run of slots, each word read once."""
    first = start & size - 1
    at = base + first * stride
    room = size - first
    if count <= room:
        return words[at : at + count * stride].tobytes()
    return words[at : at + room * stride].tobytes() + words[base : base + (count - room) * stride].tobytes()


def copy_slots(words: memoryview, base: int, stride: int, size: int, start: int, count: int) -> memoryview:
    """Return the same as words."""
    code: Literal["I", "Q"] = "I" if words.itemsize == 4 else "Q"
    return memoryview(copy_bytes(words, base, stride, size, start, count)).cast(code)


def put_slots(words: memoryview, base: int, stride: int, size: int, start: int, data: Any) -> None:
    """Write whole slots: an array of as many words as they have."""
    first = start & size - 1
    at = base + first * stride
    room = (size - first) * stride
    if len(data) <= room:
        words[at : at + len(data)] = data
    else:
        words[at : at + room] = data[:room]
        words[base : base + len(data) - room] = data[room:]


def write_block(words: memoryview, base: int, stride: int, size: int, start: int, values: Any) -> None:
    """Do what `write_words` does for bytes, or a numpy array whose items have the size of the words."""
    code: Literal["I", "Q"] = "I" if words.itemsize == 4 else "Q"
    _write(words, base, stride, size, start, memoryview(values).cast("B").cast(code))


def read_run(slots: list[int], start: int, count: int) -> list[int]:
    """Return a run of a private list that has an item for each slot of a ring."""
    first = start & len(slots) - 1
    run = slots[first : first + count]
    return run if len(run) == count else run + slots[: count - len(run)]


def write_run(slots: list[int], start: int, values: list[int]) -> None:
    """Write a run of a private list that has an item for each slot of a ring."""
    first = start & len(slots) - 1
    room = len(slots) - first
    if len(values) <= room:
        slots[first : first + len(values)] = values
    else:
        slots[first:] = values[:room]
        slots[: len(values) - room] = values[room:]
