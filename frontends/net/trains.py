"""Frames of several slots and one length, one behind the other: what is written into a tx ring for them.

It depends on nothing but the buffers that they are in and what is said of each, and is kept by these: the next ones go
into the same buffers.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple, final

from guest_kernel.mm import PAGE_SIZE
from guest_kernel.net.spans import Kept, Spans, trim
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import MASK32

if TYPE_CHECKING:
    from guest_kernel.mm import MemoryManager
    from guest_kernel.net.spans import Views

MORE = netif.NETTXF_more_data
EXTRA_ID = netif.NETIF_RSP_NULL << 16
"""Stands for a slot of extra info among the ids of buffers that are out: just what answers it, if that has no id."""
MOST_KEPT = 256
"""Trains that are remembered."""

Extra = tuple[int, int]
"""A type of extra info, and its six bytes as a number."""
TrainKey = tuple[tuple[int, ...], int, int, Extra | None]
"""Buffers, the length of each frame, its NETTXF_ flags, the extra info that goes with it."""


def extra_words(kind: int, info: int) -> tuple[int, int, int]:
    """Return a slot of extra info as the words of a tx slot."""
    return kind | info << 16 & MASK32, info >> 16, 0


class Train(NamedTuple):
    """Frames on a tx ring."""

    places: list[Views]
    """Where each frame goes: views that are just as long."""
    slots: array[int]
    """Their requests, as words of slots."""
    order: list[int]
    """Which buffer each slot has, or EXTRA_ID."""


@final
class Trains:
    """Of a tx ring: the address of each buffer, and its grant reference, are in these lists."""

    def __init__(self, mm: MemoryManager, addresses: list[int], refs: list[int]) -> None:
        self._refs = refs
        self._spans = Spans(mm, addresses.__getitem__, writable=True)
        self._kept: Kept[TrainKey, Train] = Kept(MOST_KEPT)

    def get(self, idents: tuple[int, ...], size: int, flags: int, extra: Extra | None) -> Train:
        """Return what is written for as many frames of `size` bytes as there are buffers for."""
        key = (idents, size, flags, extra)
        return self._kept.get(key) or self._find(key)

    def _find(self, key: TrainKey) -> Train:
        idents, size, flags, extra = key
        train = Train([], array("I"), [])
        pages = -(-size // PAGE_SIZE)
        for first in range(0, len(idents), pages):
            self._couple(train, idents[first : first + pages], size, flags, extra)
        return self._kept.keep(key, train)

    def _couple(self, train: Train, idents: tuple[int, ...], size: int, flags: int, extra: Extra | None) -> None:
        """Put one frame behind those that are there."""
        train.places.append(trim(self._spans.get(idents), size))
        for place, ident in enumerate(idents):
            # The first slot tells the size of the whole frame, the others their own.
            length = min(size - place * PAGE_SIZE, PAGE_SIZE) if place else size
            mark = (MORE if place < len(idents) - 1 else 0) | (0 if place else flags)
            train.slots.extend((self._refs[ident], mark << 16, ident | length << 16))
            train.order.append(ident)
            if extra is not None and not place:
                train.slots.extend(extra_words(*extra))
                train.order.append(EXTRA_ID)

    def forget(self) -> None:
        """Let go of the pages."""
        self._kept.clear()
        self._spans.forget()
