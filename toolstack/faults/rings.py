"""Faults of shared rings: an end that does not post any more, slots that change after they were read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

import attrs

from hypervisor.abi import grant_table as abi
from hypervisor.abi import tracepoints as tp
from hypervisor.machine.memory import PAGE_SHIFT
from hypervisor.state_trace.rings import LAYOUTS, SharedRing
from toolstack.faults.fault import Fault

if TYPE_CHECKING:
    from hypervisor.vcpu import VCpu

_DEVICES: Final = {
    "blkif": "vbd",
    "blkif_x86_32": "vbd",
    "netif_tx": "vif",
    "netif_rx": "vif",
    "netif_ctrl": "vif",
    "console": "console",
    "xenstore": "xenstore",
}
"""Which class of devices has rings of a layout."""
_POSTED: Final[dict[tuple[str, str], str]] = {
    ("vbd", "frontend"): "req_prod",
    ("vbd", "backend"): "rsp_prod",
    ("vif", "frontend"): "req_prod",
    ("vif", "backend"): "rsp_prod",
    ("console", "frontend"): "out_prod",
    ("console", "backend"): "in_prod",
    ("xenstore", "frontend"): "req_prod",
    ("xenstore", "backend"): "rsp_prod",
}
"""What an end moves when it posts."""


class _RingFault(Fault):
    """A fault of the victim's rings, which are known from the records of who maps them."""

    needs_records: ClassVar[bool] = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rings: list[tuple[str, SharedRing]] = []
        """Those that are mapped, each with the class of its device."""

    def look(self, domid: int, kind: int, fields: tuple[object, ...]) -> None:
        """Learn of rings."""
        if kind == tp.RING_CONNECT:
            self._connect(domid, *fields)

    def _connect(self, domid: int, device: Any, name: Any, layout: Any, front: Any, refs: Any) -> None:
        owner = _DEVICES.get(layout)
        domain = self.world.hv.domains.get(front)
        if owner != self.spec.device or domain is None or not self.is_victim(front):
            return
        refs = list(refs)
        if all(0 <= ref < domain.grant_table.nr_entries for ref in refs):
            self.connected(owner, SharedRing(domid, device, name, LAYOUTS[layout], domain.grant_table, refs))

    def connected(self, owner: str, ring: SharedRing) -> None:
        """Take note of a ring."""
        self.rings.append((owner, ring))

    def live(self) -> list[tuple[str, SharedRing]]:
        """Return the rings that are still mapped."""
        self.rings = [pair for pair in self.rings if pair[1].is_there()]
        return self.rings


@attrs.define
class _Frozen:
    """An index that does not move any more."""

    ring: SharedRing
    at: int
    """Where it is, as an index of 32-bit words."""
    value: int


@final
class StopPosting(_RingFault):
    """One end of the victim's rings does not post any more: what it writes is not shown to the other."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._frozen: list[_Frozen] = []

    def begin(self) -> None:
        """Freeze the indices of all rings that there are."""
        super().begin()
        for owner, ring in self.live():
            self._freeze(owner, ring)

    def connected(self, owner: str, ring: SharedRing) -> None:
        """Freeze the index of a new one, too."""
        super().connected(owner, ring)
        if self.active:
            self._freeze(owner, ring)

    def _freeze(self, owner: str, ring: SharedRing) -> None:
        index = ring.layout.names.index(_POSTED[owner, self.spec.side])
        at = (ring.mfns[0] << PAGE_SHIFT) + ring.layout.indices + 4 * index >> 2
        self._frozen.append(_Frozen(ring, at, self.world.hv.memory.i[at]))
        self.note(f"The {self.spec.side} of {ring.device} does not post on its ring {ring.name} any more.")

    def look(self, domid: int, kind: int, fields: tuple[object, ...]) -> None:
        """Put back what has moved: nobody looks at a ring without a record before it."""
        super().look(domid, kind, fields)
        if not self._frozen:
            return
        words = self.world.hv.memory.i
        for frozen in self._frozen:
            if words[frozen.at] != frozen.value and frozen.ring.is_there():
                words[frozen.at] = frozen.value
        if kind == tp.GNTTAB_UNMAP:
            self._frozen = [frozen for frozen in self._frozen if frozen.ring.is_there()]


@final
class RingMutate(_RingFault):
    """Bytes of requests that are under way change: when the backend turns to their grants, it has read them already."""

    def before_operations(self, vcpu: VCpu, cmd: int, address: int, count: int) -> Callable[[], None] | None:
        """Change one byte of one request under way, whose pages the backend is about to reach."""
        if cmd in (abi.GNTTABOP_map_grant_ref, abi.GNTTABOP_copy):
            self._strike(vcpu.domain.domid)
        return None

    def look(self, domid: int, kind: int, fields: tuple[object, ...]) -> None:
        """Do it also when the backend has turned to something else: a persistent grant is not mapped again."""
        super().look(domid, kind, fields)
        if kind == tp.HYPERCALL:
            self._strike(domid)

    def _strike(self, backend: int) -> None:
        if self.active:
            rings = [ring for _, ring in self.live() if ring.domid == backend and self._under_way(ring)]
            if rings and self.strikes():
                self._mutate(self.random.choice(rings))

    def _indices(self, ring: SharedRing) -> tuple[int, int]:
        """Return `req_prod` and `rsp_prod`."""
        words, names = self.world.hv.memory.i, ring.layout.names
        base = (ring.mfns[0] << PAGE_SHIFT) + ring.layout.indices >> 2
        return words[base + names.index("req_prod")], words[base + names.index("rsp_prod")]

    def _under_way(self, ring: SharedRing) -> int:
        """Return how many requests wait for their answers; 0 where the indices make no sense."""
        requested, answered = self._indices(ring)
        count = requested - answered & 0xFFFF_FFFF
        return count if count <= ring.slots else 0

    def _mutate(self, ring: SharedRing) -> None:
        memory, layout = self.world.hv.memory, ring.layout
        _, answered = self._indices(ring)
        slot = answered + self.random.randrange(self._under_way(ring)) & ring.slots - 1
        offset = layout.first + slot * layout.slot + self.random.randrange(layout.slot)
        page, within = divmod(offset, 1 << PAGE_SHIFT)
        at = (ring.mfns[page] << PAGE_SHIFT) + within
        memory.b[at] ^= self.random.randrange(1, 256)
        self.note(f"A byte of slot {slot} of {ring.device}'s ring {ring.name} changes after it was read.")
