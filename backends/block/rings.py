"""Where a frontend's rings are: how many, of how many pages, with which event channel each.

Without the keys for it there is one ring in one page, as in the beginning of the protocol. `ring-page-order` (or the
older `num-ring-pages`) says that there are more pages, which may lie anywhere in memory; `multi-queue-num-queues` that
there are more rings, each described below `queue-N`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from guest_kernel.xenbus.driver import frontend_number

if TYPE_CHECKING:
    from guest_kernel.xenbus.driver import XenbusDevice

MAX_RING_PAGE_ORDER = 4
"""16 pages, 512 requests in the native layout: as xen-blkback offers it."""
MAX_QUEUES = 4


@attrs.frozen
class RingPlace:
    """One ring of a frontend."""

    refs: tuple[int, ...]
    """Grants of its pages, in order."""
    port: int
    """The frontend's event channel."""


async def find_rings(device: XenbusDevice) -> list[RingPlace]:
    """Read what the frontend wrote. Raises ValueError, with a sentence, for what the protocol does not allow."""
    nodes = await device.read_otherend_many("multi-queue-num-queues", "ring-page-order", "num-ring-pages")
    queues = 1 if nodes["multi-queue-num-queues"] is None else frontend_number(nodes, "multi-queue-num-queues")
    if not 1 <= queues <= MAX_QUEUES:
        raise ValueError(f"the frontend wants {queues} queues; this backend has 1 to {MAX_QUEUES}")
    pages = _pages(nodes)
    # Who says how many pages there are may have them numbered, also a single one, as Linux and QEMU take it. Who does
    # not has `ring-ref` (note 6 of the header), and what else is there is of a driver before it.
    numbered = nodes["ring-page-order"] is not None or nodes["num-ring-pages"] is not None
    directories = [""] if queues == 1 else [f"queue-{number}/" for number in range(queues)]
    return [await _find_ring(device, directory, pages, numbered) for directory in directories]


def _pages(nodes: dict[str, str | None]) -> int:
    if nodes["ring-page-order"] is not None:
        order = frontend_number(nodes, "ring-page-order")
        if order > MAX_RING_PAGE_ORDER:
            raise ValueError(f"the frontend's ring-page-order is {order}; the most is {MAX_RING_PAGE_ORDER}")
        return 1 << order
    if nodes["num-ring-pages"] is None:
        return 1
    pages = frontend_number(nodes, "num-ring-pages")
    if pages & pages - 1 or not 1 <= pages <= 1 << MAX_RING_PAGE_ORDER:
        raise ValueError(f"the frontend's num-ring-pages is {pages}, which is no power of two up to 16")
    return pages


async def _find_ring(device: XenbusDevice, directory: str, pages: int, numbered: bool) -> RingPlace:
    channel = f"{directory}event-channel"
    keys = [f"{directory}ring-ref{number}" for number in range(pages)]
    single = f"{directory}ring-ref"
    nodes = await device.read_otherend_many(channel, single, *keys)
    if pages == 1 and (not numbered or nodes[keys[0]] is None):
        keys = [single]
    return RingPlace(tuple(frontend_number(nodes, key) for key in keys), frontend_number(nodes, channel))
