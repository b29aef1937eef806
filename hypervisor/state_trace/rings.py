"""Shared rings: their indices and their slots, from the pages themselves."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, final

from hypervisor.abi import tracepoints as tp
from hypervisor.abi.io.ring import HEADER_SIZE, ring_size

if TYPE_CHECKING:
    from hypervisor.grant_table.table import GrantTable
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.trace import Emit

_INDICES: Final = Struct("<4I")


class RingLayout(NamedTuple):
    """Where things are in a ring's pages."""

    slot: int
    """Bytes of a slot; of a piece, in a ring of bytes."""
    first: int
    """Where slots begin."""
    room: int
    """Bytes of slots; 0: as many as ring.h makes of the pages."""
    indices: int
    """Where the four indices are."""
    names: tuple[str, str, str, str]
    """What they are called."""

    def slots(self, pages: int) -> int:
        """Return how many slots there are in so many pages."""
        return self.room // self.slot if self.room else ring_size(self.slot, pages << 12)


_SRING: Final = ("req_prod", "req_event", "rsp_prod", "rsp_event")
LAYOUTS: Final[dict[str, RingLayout]] = {
    "blkif": RingLayout(112, HEADER_SIZE, 0, 0, _SRING),
    "blkif_x86_32": RingLayout(108, HEADER_SIZE, 0, 0, _SRING),
    "netif_tx": RingLayout(12, HEADER_SIZE, 0, 0, _SRING),
    "netif_rx": RingLayout(8, HEADER_SIZE, 0, 0, _SRING),
    "netif_ctrl": RingLayout(16, HEADER_SIZE, 0, 0, _SRING),
    "xenstore": RingLayout(32, 0, 2048, 2048, ("req_cons", "req_prod", "rsp_cons", "rsp_prod")),
    "console": RingLayout(32, 0, 3072, 3072, ("in_cons", "in_prod", "out_cons", "out_prod")),
}
"""The rings that are understood (io/blkif.h, io/netif.h, io/xs_wire.h, io/console.h)."""


@final
class SharedRing:
    """One ring, and what was last told of it."""

    __slots__ = ("device", "domid", "indices", "layout", "mfns", "name", "refs", "seen", "slots", "table")

    def __init__(
        self, domid: int, device: str, name: str, layout: RingLayout, table: GrantTable, refs: list[int]
    ) -> None:
        self.domid = domid
        self.device = device
        self.name = name
        self.layout = layout
        self.table = table
        self.refs = refs
        self.mfns = [table.mfn[ref] if table.pin[ref] else table.format.frame(table, ref) for ref in refs]
        self.slots = layout.slots(len(refs))
        self.seen = b""
        self.indices: tuple[int, ...] = ()

    def is_there(self) -> bool:
        """Whether somebody still has it mapped."""
        table = self.table
        return not table.dead and all(ref < len(table.pin) and table.pin[ref] for ref in self.refs)


@final
class RingWatch:
    """Looks at the rings that backends and daemons have said to serve."""

    def __init__(self, hv: Hypervisor, emit: Emit) -> None:
        self._hv = hv
        self._emit = emit
        self._rings: dict[tuple[int, str, str], SharedRing] = {}

    def connect(self, domid: int, device: str, name: str, layout: str, front: int, refs: Iterable[int]) -> None:
        """Look at a ring of domain `front` from now on, which domain `domid` has mapped by these grants."""
        domain = self._hv.domains.get(front)
        refs = list(refs)
        known = LAYOUTS.get(layout)
        if known is None or domain is None or not all(0 <= ref < domain.grant_table.nr_entries for ref in refs):
            return
        ring = SharedRing(domid, device, name, known, domain.grant_table, refs)
        if ring.is_there() and all(mfn < self._hv.memory.frames for mfn in ring.mfns):
            self._rings[domid, device, name] = ring

    def look(self) -> None:
        """Emit what has changed."""
        gone = [key for key, ring in self._rings.items() if not ring.is_there()]
        for key in gone:
            self._emit(key[0], 0, tp.STATE_RING, key[1], key[2], ())
            del self._rings[key]
        for ring in self._rings.values():
            frames = [self._hv.memory.frame(mfn) for mfn in ring.mfns]
            now = bytes(frames[0]) if len(frames) == 1 else b"".join(frames)
            if now != ring.seen:
                before, ring.seen = ring.seen, now
                self._tell(ring, before, now)

    def _tell(self, ring: SharedRing, before: bytes, now: bytes) -> None:
        layout = ring.layout
        size = layout.slot
        before = before or bytes(len(now))
        for slot in range(ring.slots):
            at = layout.first + slot * size
            piece = now[at : at + size]
            if piece != before[at : at + size]:
                self._emit(ring.domid, 0, tp.STATE_SLOT, ring.device, ring.name, slot, piece)
        indices = _INDICES.unpack_from(now, layout.indices)
        if indices != ring.indices:
            ring.indices = indices
            self._emit(ring.domid, 0, tp.STATE_RING, ring.device, ring.name, indices)
