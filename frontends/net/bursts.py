"""Many frames of one slot and one length at once, with numpy: what both rings of a frontend do for them.

What follows from nothing but the buffers of a batch, or from nothing but the bytes of its responses, is kept by these:
buffers mostly come back in the order in which they went, and then one look-up is all that it takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, final

from frontends.net.pieces import CSUM, OFFLOADS, OFFSET, PREFIX
from frontends.net.pieces import EXTRA as RX_EXTRA
from frontends.net.pieces import MORE as RX_MORE
from guest_kernel import vectors
from guest_kernel.net.page_rows import PAGE_SIZE, PageRows
from guest_kernel.net.ring_words import TX_WORDS
from guest_kernel.net.spans import Kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guest_kernel.mm import MemoryManager
    from guest_kernel.net.offload import Offload
    from guest_kernel.net.packet import Bytes
    from guest_kernel.net.page_rows import Place

MOST_KEPT = 64
"""Batches that are remembered of each ring."""
SPECIAL = OFFSET | RX_MORE | RX_EXTRA | PREFIX
"""What no response to a frame of one slot at the beginning of its page has."""


@final
class _Rows:
    """The buffers of a ring as rows, by their ids; there are more of them from time to time, never fewer."""

    def __init__(self, mm: MemoryManager, addresses: list[int]) -> None:
        self._mm = mm
        self._addresses = addresses
        self._known = 0
        self._rows: PageRows | None = None

    def get(self) -> PageRows:
        """Return the rows."""
        if self._rows is None or self._known < len(self._addresses):
            self._known = len(self._addresses)
            self._rows = PageRows(self._mm, [(ident, va, True) for ident, va in enumerate(self._addresses)])
        return self._rows

    def forget(self) -> None:
        """Let go of the pages."""
        self._rows = None


class Outgoing(NamedTuple):
    """A batch of buffers on the tx ring."""

    place: Place
    slots: memoryview
    """The requests that send them, as words of slots."""


@final
class TxBursts:
    """Of a tx ring: the address of each buffer, and its grant reference, are in these lists."""

    def __init__(self, mm: MemoryManager, addresses: list[int], refs: list[int]) -> None:
        self._refs = refs
        self._rows = _Rows(mm, addresses)
        self._kept: Kept[tuple[tuple[int, ...], int, int], Outgoing] = Kept(MOST_KEPT)

    def fill(self, idents: list[int], frames: Sequence[Bytes], length: int, flags: int) -> memoryview:
        """Put frames of this length into these buffers.

        Returns the requests that send them, with these NETTXF_ flags, as words of slots.
        """
        key = (tuple(idents), length, flags)
        place, slots = self._kept.get(key) or self._find(key)
        place.fill(frames, length)
        return slots

    def _find(self, key: tuple[tuple[int, ...], int, int]) -> Outgoing:
        np = vectors.numpy()
        idents, length, flags = key
        chosen = np.array(idents, np.uint32)
        slots = np.zeros((len(idents), TX_WORDS), np.uint32)
        slots[:, 0] = [self._refs[ident] for ident in idents]
        slots[:, 1] = flags << 16
        slots[:, 2] = chosen | length << 16
        rows = self._rows.get()
        return self._kept.keep(key, Outgoing(rows.place(rows.find(chosen)), memoryview(slots).cast("B").cast("I")))

    def forget(self) -> None:
        """Let go of the pages."""
        self._kept.clear()
        self._rows.forget()


class Incoming(NamedTuple):
    """What responses say of frames that are alike."""

    idents: list[int]
    """The buffers that they are in, if the backend has these."""
    place: Place
    length: int
    offload: Offload
    posts: memoryview
    """The requests that post the buffers again."""


@final
class RxBursts:
    """Of an rx ring: the address of each buffer, and the request that posts it, are in these lists."""

    def __init__(self, mm: MemoryManager, addresses: list[int], posts: list[int]) -> None:
        self._posts = posts
        self._rows = _Rows(mm, addresses)
        self._kept: Kept[bytes, Incoming] = Kept(MOST_KEPT)

    def read(self, responses: bytes) -> Incoming | None:
        """Return what these responses say, if they are of frames of one slot, one length and the same flags."""
        return self._kept.get(responses) or self._find(responses)

    def _find(self, responses: bytes) -> Incoming | None:
        np = vectors.numpy()
        answers = np.frombuffer(responses, np.uint64)
        answer = int(answers[0])
        length = answer >> 48
        if answer & SPECIAL or not 0 < length <= PAGE_SIZE or not (answers >> 16 == answer >> 16).all():
            return None
        idents = (answers & 0xFFFF).tolist()
        if max(idents) >= len(self._posts):
            return None
        rows = self._rows.get()
        posts = memoryview(np.array([self._posts[ident] for ident in idents], np.uint64)).cast("B").cast("Q")
        place = rows.place(rows.find(np.array(idents, np.intp)))
        return self._kept.keep(responses, Incoming(idents, place, length, OFFLOADS[answer & CSUM], posts))

    def forget(self) -> None:
        """Let go of the pages."""
        self._kept.clear()
        self._rows.forget()
