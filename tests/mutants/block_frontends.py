"""Faulty block frontends: ours, with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from frontends.block import driver, queue, slots
from frontends.block.queue import FrontQueue
from guest_kernel.block import BlockDevice
from hypervisor.abi.io.ring import RSP_EVENT
from tests.mutants.block_backends import after, dozes, instead

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


class _SameId:
    """The layout of a request, with a fault."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec

    def pack_into(self, view: Any, offset: int, op: int, segments: int, handle: int, ident: int, *more: Any) -> None:
        self.codec.pack_into(view, offset, op, segments, handle, 0, *more)


MUTANTS: dict[str, tuple[str, str, Patch]] = {
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
    "next-sector": (
        "the sector behind the one that was asked for",
        "BLKIF-FRONTEND-010",
        instead(BlockDevice, "read", _next_sector),
    ),
    "same-id": (
        "all requests have one id",
        "BLKIF-FRONTEND-013",
        instead(slots, "REQUESTS", lambda old: [_SameId(codec) for codec in old]),
    ),
    "no-flush": ("a flush stays in the frontend", "BLKIF-FRONTEND-015", instead(BlockDevice, "flush", _no_flush)),
    "all-well": ("errors are taken for success", "BLKIF-FRONTEND-016", instead(queue, "_UNPACK", _all_well)),
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
