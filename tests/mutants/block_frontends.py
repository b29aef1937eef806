"""Faulty block frontends: ours, with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from frontends.block import driver, queue, slots
from frontends.block.pool import PagePool
from frontends.block.queue import FrontQueue
from frontends.block.rings import Rings
from frontends.block.slots import Slot
from guest_kernel.block import WRITE, BlockDevice
from guest_kernel.xenbus import states
from hypervisor.abi.grant_table import GTF_readonly
from hypervisor.abi.io.blkif import BLKIF_OP_FLUSH_DISKCACHE
from hypervisor.abi.io.ring import RSP_EVENT
from tests.mutants.block_backends import after, dozes, instead
from tests.mutants.xenbus_faults import attribute, pair, pairs

Patch = Callable[[pytest.MonkeyPatch], None]


def _never(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        await self.kernel.never()

    return close


def _next_sector(old: Any) -> Any:
    async def read(self: Any, sector: int, count: int) -> Any:
        return await old(self, sector + 1, count)

    return read


def _no_flush(old: Any) -> Any:
    async def flush(self: Any) -> None:
        return None

    return flush


def _one_more(old: Any) -> Any:
    return lambda nodes, key, *more: old(nodes, key, *more) + (key == "sectors")


def _all_well(old: Any) -> Any:
    return lambda view, offset: (*old(view, offset)[:2], 0)


def _falls(old: Any) -> Any:
    def broken(self: Any, why: str) -> None:
        raise RuntimeError(why)

    return broken


def _tells_its_port_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the event channel when the backend is Connected."""
    nodes, connect = Rings.nodes, driver.BlockFront.connect

    def without(self: Rings, before: Any) -> dict[str, object]:
        return {key: value for key, value in nodes(self, before).items() if key != "event-channel"}

    async def late(self: driver.BlockFront, device: Any) -> None:
        await connect(self, device)
        await device.write({"event-channel": device.data.rings.queues[0].port})

    monkeypatch.setattr(Rings, "nodes", without)
    monkeypatch.setattr(driver.BlockFront, "connect", late)


def _any_number(old: Any) -> Any:
    def number(nodes: Any, key: str, default: int | None, limit: int) -> Any:
        try:
            return old(nodes, key, default, limit)
        except ValueError:
            return default or 0

    return number


def _always_indirect(old: Any) -> Any:
    return lambda nodes, key, *more: 32 if key == "feature-max-indirect-segments" else old(nodes, key, *more)


def _blank(old: Any) -> Any:
    def put(self: Any, request: Any, *more: Any) -> Any:
        if request.op == WRITE:
            request.data = bytes(len(request.data))
        return old(self, request, *more)

    return put


def _always_flushes(old: Any) -> Any:
    return lambda self, persistent, _, *more: old(self, persistent, BLKIF_OP_FLUSH_DISKCACHE, *more)


def _one_writable(old: Any) -> Any:
    return lambda self, slot, n, flags: old(self, slot, n, flags | GTF_readonly if n else flags)


def _twice_the_slots(self: Any) -> None:
    self._slots += [Slot(self.ring.size + index) for index in range(self.ring.size)]
    self._free = self._slots[::-1]
    self._remember()


class _SameId:
    """The layout of a request, with a fault."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec

    def pack_into(self, view: Any, offset: int, op: int, segments: int, handle: int, ident: int, *more: Any) -> None:
        self.codec.pack_into(view, offset, op, segments, handle, 0, *more)


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "late-port": (
        "it is Initialised before it has told its event channel",
        "BLKIF-FRONTEND-001",
        _tells_its_port_late,
    ),
    "eager": (
        "it is Connected before the backend is",
        "BLKIF-FRONTEND-002",
        attribute(driver.BlockFront, "eager", True),
    ),
    "one-sector-more": (
        "the disk is larger than the backend says",
        "BLKIF-FRONTEND-003",
        instead(driver, "_number", _one_more),
    ),
    "never-closes": (
        "the backend's Closing is not followed",
        "BLKIF-FRONTEND-004",
        instead(driver.BlockFront, "disconnect", _never),
    ),
    "waits-for-good": (
        "the backend's Closing is not followed before it was Connected",
        "BLKIF-FRONTEND-005",
        pair("frontend", states.INITIALISED, (states.CLOSING,), (states.IGNORE, states.INITIALISED)),
    ),
    "any-number": (
        "what the backend says that is no number is taken for the usual one",
        "BLKIF-FRONTEND-006",
        instead(driver, "_number", _any_number),
    ),
    "next-sector": (
        "the sector behind the one that was asked for",
        "BLKIF-FRONTEND-010",
        instead(BlockDevice, "read", _next_sector),
    ),
    "blank-writes": (
        "a write is sent without its data in the pages",
        "BLKIF-FRONTEND-011",
        instead(FrontQueue, "_put", _blank),
    ),
    "always-indirect": (
        "indirect requests are sent to a backend that has not offered to take them",
        "BLKIF-FRONTEND-012",
        pairs(
            instead(driver, "_number", _always_indirect),
            attribute(driver.BlockFront, "_indirect_segments", lambda self: 32),
        ),
    ),
    "same-id": (
        "all requests have one id",
        "BLKIF-FRONTEND-013",
        instead(slots, "REQUESTS", lambda old: [_SameId(codec) for codec in old]),
    ),
    "always-flushes": (
        "a flush is sent to a backend that has not offered it",
        "BLKIF-FRONTEND-014",
        instead(Rings, "connect", _always_flushes),
    ),
    "no-flush": ("a flush stays in the frontend", "BLKIF-FRONTEND-015", instead(BlockDevice, "flush", _no_flush)),
    "all-well": ("errors are taken for success", "BLKIF-FRONTEND-016", instead(queue, "_UNPACK", _all_well)),
    "one-writable": (
        "only the first page of a read may be written to",
        "BLKIF-FRONTEND-017",
        instead(PagePool, "_grant", _one_writable),
    ),
    "silent": (
        "requests are not notified",
        "BLKIF-FRONTEND-020",
        after(FrontQueue, "__init__", lambda self: setattr(self, "_notify", lambda port: None)),
    ),
    "noisy": (
        "every request is notified",
        "BLKIF-FRONTEND-020",
        after(FrontQueue, "run", lambda self: self._notify(self.port)),
    ),
    "no-threshold": (
        "it does not ask to be told of responses",
        "BLKIF-FRONTEND-021",
        after(FrontQueue, "run", lambda self: self.ring.shared.__setitem__(RSP_EVENT, 0)),
    ),
    "twice-the-slots": (
        "it has twice as many requests under way as the ring has slots",
        "BLKIF-FRONTEND-022",
        after(FrontQueue, "__init__", _twice_the_slots),
    ),
    "falls-over-an-index": (
        "an index ahead of the requests brings the guest down",
        "BLKIF-FRONTEND-030",
        instead(FrontQueue, "_break", _falls),
    ),
    "falls-over-an-id": (
        "a strange id brings the guest down",
        "BLKIF-FRONTEND-031",
        instead(FrontQueue, "_break", _falls),
    ),
    "falls-over-a-second-answer": (
        "a second response brings the guest down",
        "BLKIF-FRONTEND-032",
        instead(FrontQueue, "_break", _falls),
    ),
    "dozes": (
        "it drops an event that comes when it is about to sleep",
        "BLKIF-FRONTEND-060",
        dozes(FrontQueue, "_interrupt"),
    ),
}
"""Name → the fault, the check meant for it, what makes it."""
