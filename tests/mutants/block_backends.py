"""Faulty block backends: ours, with one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backends.block import driver, protocol
from backends.block.mapping import GrantMapper
from backends.block.server import BlockServer
from guest_kernel.xenbus.device import Device
from hypervisor.abi.io.blkif import (
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_OKAY,
)
from hypervisor.abi.io.ring import REQ_EVENT

Patch = Callable[[pytest.MonkeyPatch], None]


def responses(change: Callable[[int, int, int], tuple[int, int, int]], behind: bytes = b"") -> Patch:
    """Change (id, operation, status) of each response; put bytes behind it."""

    class Response:
        """The layout of a response, with a fault."""

        def __init__(self, codec: Any) -> None:
            self.codec = codec
            self.size = codec.size

        def pack_into(self, buffer: Any, offset: int, ident: int, op: int, status: int) -> None:
            self.codec.pack_into(buffer, offset, *change(ident, op, status))
            buffer[offset + self.size : offset + self.size + len(behind)] = behind

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for one in {id(one): one for one in protocol.PROTOCOLS.values()}.values():
            monkeypatch.setattr(one, "response", Response(one.response))

    return patch


def after(owner: Any, name: str, action: Callable[..., Any]) -> Patch:
    """Do something after a method."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        old = getattr(owner, name)

        def new(self: Any, *arguments: Any, **named: Any) -> Any:
            result = old(self, *arguments, **named)
            action(self)
            return result

        monkeypatch.setattr(owner, name, new)

    return patch


def instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """Put `make(old)` in the place of a method."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, make(getattr(owner, name)))


def nodes(change: Callable[[dict[str, object]], dict[str, object]]) -> Patch:
    """Change what the backend writes to its nodes."""

    def make(old: Any) -> Any:
        async def write(self: Any, values: Any = None, /, **keys: object) -> Any:
            return await old(self, change({**(values or {}), **keys}))

        return write

    return instead(Device, "write", make)


def _never_closes(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        await self.kernel.never()

    return close


def _keeps_mappings(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        device.data.queues.clear()

    return close


def _panics(old: Any) -> Any:
    async def close(self: Any, device: Any) -> None:
        async def fall() -> None:
            raise RuntimeError("the frontend is gone")

        self.kernel.spawn(fall(), "falls")
        await old(self, device)

    return close


def _maps_writable(old: Any) -> Any:
    def map_(self: Any, batch: Any, in_use: Any) -> Any:
        return old(self, [(descriptors, checked, True) for descriptors, checked, _ in batch], in_use)

    return map_


def _reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a request, and read its sector in the ring once more when its turn comes."""
    make, start = BlockServer.__init__, BlockServer._start_slow
    kernels: list[Any] = []

    def init(self: Any, kernel: Any, *arguments: Any, **named: Any) -> None:
        make(self, kernel, *arguments, **named)
        kernels.append(kernel)

    def starts(self: Any, requests: list[Any]) -> int:
        if len(requests) > 1 or requests[0][0] != BLKIF_OP_READ:
            return start(self, requests)
        op, count, number, ident, sector, segments = requests[0]
        if self._check(op, count, sector, segments[: 8 * count])[0]:
            return start(self, requests)
        ring, place = self.ring, self.ring.offset(self.ring.req_cons - 1)

        async def later() -> None:
            await kernels[-1].sleep(2_000)
            again = protocol.NATIVE.request.unpack_from(ring.view, place)[4]
            if start(self, [(op, count, number, ident, again, segments)]):
                self._reading[-1]()
            self.flush_responses()

        kernels[-1].spawn(later(), "reads again")
        return 0

    monkeypatch.setattr(BlockServer, "__init__", init)
    monkeypatch.setattr(BlockServer, "_start_slow", starts)


def _first_eleven(old: Any) -> Any:
    def check(self: Any, op: int, count: int, sector: int, descriptors: bytes) -> Any:
        return old(self, op, min(count, 11), sector, descriptors[: 8 * 11])

    return check


def _nothing_indirect_to_do(old: Any) -> Any:
    def resolve(self: Any, requests: Any) -> Any:
        rest = []
        for request in requests:
            op, inner, count, ident, sector, _ = request
            if op == BLKIF_OP_INDIRECT and not count:
                self._answer(ident, inner, sector, 0, BLKIF_RSP_OKAY)
            else:
                rest.append(request)
        return old(self, rest)

    return resolve


def _believes_the_index(self: Any) -> None:
    """Take the place of the ring's size, by which the index is judged."""
    before, behind = self._reading[:5], self._reading[6:]
    self._reading = (*before, 1 << 31, *behind)


def _keeps_pages(old: Any) -> Any:
    return lambda self, grants, domid, limit: old(self, grants, domid, 1000)


def _next_sector(old: Any) -> Any:
    def make(self: Any, kernel: Any, name: str, disk: Any, *arguments: Any, **named: Any) -> None:
        class Disk:
            def __getattr__(self, key: str) -> Any:
                return getattr(disk, key)

            def submit(self, op: int, sector: int, *more: Any) -> None:
                disk.submit(op, min(sector + 1, disk.sectors - 8), *more)

            def submit_one(self, op: int, sector: int, *more: Any) -> None:
                disk.submit_one(op, min(sector + 1, disk.sectors - 8), *more)

            def submit_all(self, commands: Any, owner: Any) -> None:
                disk.submit_all([(op, min(at + 1, disk.sectors - 8), *more) for op, at, *more in commands], owner)

        old(self, kernel, name, Disk(), *arguments, **named)

    return make


def _discards(change: Callable[[int, int, int], tuple[int, int, int]]) -> Patch:
    """Change flag, first sector and number of sectors of each discard."""

    def make(old: Any) -> Any:
        def start(self: Any, flag: int, ident: int, sector: int, rest: bytes) -> int:
            flag, sector, sectors = change(flag, sector, int.from_bytes(rest[:8], "little"))
            return int(old(self, flag, ident, sector, sectors.to_bytes(8, "little")))

        return start

    return instead(BlockServer, "_start_discard", make)


class _AnyProtocol(dict[str, Any]):
    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key, protocol.NATIVE)


def _repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count anew in each host: what came before must not show."""
    seen: list[int] = []

    def change(ident: int, op: int, status: int) -> tuple[int, int, int]:
        seen.append(ident)
        return (seen[-2] if len(seen) % 50 == 0 else ident), op, status

    responses(change)(monkeypatch)


def dozes(server: Any, name: str) -> Patch:
    """Have a thread that is told when an event has been seen to; until it has heard of it, drop other events."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        make, handle = server.__init__, getattr(server, name)
        kernels: dict[int, Any] = {}
        busy: dict[int, bool] = {}

        def made(self: Any, kernel: Any, *arguments: Any, **named: Any) -> None:
            kernels[id(self)], busy[id(self)] = kernel, False
            make(self, kernel, *arguments, **named)

        def woken(self: Any) -> None:
            if not busy[id(self)]:
                busy[id(self)] = True
                handle(self)
                kernels[id(self)].spawn(rest(self), "rests")

        async def rest(self: Any) -> None:
            # So short that nobody else runs meanwhile, as a rule.
            await kernels[id(self)].yield_()
            busy[id(self)] = False

        monkeypatch.setattr(server, "__init__", made)
        monkeypatch.setattr(server, name, woken)

    return patch


MUTANTS: dict[str, tuple[str, str, Patch]] = {
    "wrong-size": (
        "sectors says one too many",
        "BLKIF-BACKEND-002",
        nodes(lambda values: values | ({"sectors": 2049} if "sectors" in values else {})),
    ),
    "no-sector-size": (
        "sector-size is not written",
        "BLKIF-BACKEND-002",
        nodes(lambda values: {key: value for key, value in values.items() if key != "sector-size"}),
    ),
    "never-closes": (
        "the frontend's Closing is not answered",
        "BLKIF-BACKEND-003",
        instead(driver.BlockBack, "close", _never_closes),
    ),
    "keeps-mappings": (
        "pages stay mapped after Closed",
        "BLKIF-BACKEND-003",
        instead(driver.BlockBack, "close", _keeps_mappings),
    ),
    "any-protocol": (
        "an unknown protocol is taken for the native one",
        "BLKIF-BACKEND-007",
        lambda patch: patch.setattr(driver, "PROTOCOLS", _AnyProtocol(protocol.PROTOCOLS)),
    ),
    "dead-frontend": (
        "the backend falls when the frontend dies",
        "BLKIF-BACKEND-008",
        instead(driver.BlockBack, "close", _panics),
    ),
    "next-sector": (
        "the sector behind the one that was asked for",
        "BLKIF-BACKEND-010",
        instead(BlockServer, "__init__", _next_sector),
    ),
    "wrong-id": (
        "responses have another id",
        "BLKIF-BACKEND-014",
        responses(lambda ident, op, status: (ident ^ 1, op, status)),
    ),
    "wrong-operation": (
        "responses do not say the operation",
        "BLKIF-BACKEND-014",
        responses(lambda ident, op, status: (ident, 0xFF, status)),
    ),
    "maps-writable": (
        "pages of writes are mapped writable",
        "BLKIF-BACKEND-015",
        instead(GrantMapper, "map", _maps_writable),
    ),
    "refuses-flush": (
        "a flush that was offered is refused",
        "BLKIF-BACKEND-017",
        responses(
            lambda ident, op, status: (ident, op, BLKIF_RSP_EOPNOTSUPP if op == BLKIF_OP_FLUSH_DISKCACHE else status)
        ),
    ),
    "first-eleven": (
        "of an indirect request the first eleven segments are served",
        "BLKIF-BACKEND-018",
        instead(BlockServer, "_check", _first_eleven),
    ),
    "discards-more": (
        "a discard takes the sector behind with it",
        "BLKIF-BACKEND-019",
        _discards(lambda flag, sector, sectors: (flag, sector, min(sectors + 1, 2048 - sector))),
    ),
    "discards-what-fits": (
        "a discard that goes beyond the end is carried out as far as the disk goes",
        "BLKIF-BACKEND-028",
        _discards(lambda flag, sector, sectors: (flag, min(sector, 2047), min(sectors, 2048 - min(sector, 2047)))),
    ),
    "promises-nothing": (
        "a secure discard is carried out as a plain one",
        "BLKIF-BACKEND-029",
        _discards(lambda flag, sector, sectors: (0, sector, sectors)),
    ),
    "always-okay": (
        "every status is OKAY",
        "BLKIF-BACKEND-020",
        responses(lambda ident, op, status: (ident, op, BLKIF_RSP_OKAY)),
    ),
    "bad-grant-okay": (
        "bad grants are not told",
        "BLKIF-BACKEND-024",
        responses(lambda ident, op, status: (ident, op, BLKIF_RSP_OKAY)),
    ),
    "no-answer": (
        "what is refused is not answered",
        "BLKIF-BACKEND-025",
        instead(BlockServer, "_refuse", lambda old: lambda self, *arguments: None),
    ),
    "nothing-indirect": (
        "an indirect request without segments succeeds",
        "BLKIF-BACKEND-026",
        instead(BlockServer, "_resolve", _nothing_indirect_to_do),
    ),
    "leaks-bytes": (
        "bytes of the backend's lie behind a response",
        "BLKIF-BACKEND-027",
        responses(lambda ident, op, status: (ident, op, status), b"secret!!"),
    ),
    "no-threshold": (
        "the backend does not ask to be told",
        "BLKIF-BACKEND-030",
        after(BlockServer, "wake", lambda self: self.ring.shared.__setitem__(REQ_EVENT, 0)),
    ),
    "silent": (
        "responses are not notified",
        "BLKIF-BACKEND-031",
        after(BlockServer, "__init__", lambda self: setattr(self, "_notify", lambda port: None)),
    ),
    "noisy": (
        "every response is notified",
        "BLKIF-BACKEND-031",
        after(BlockServer, "flush_responses", lambda self: self._notify(self.port)),
    ),
    "repeats-an-id": ("every fiftieth response has the id of the one before", "BLKIF-BACKEND-033", _repeats),
    "believes-the-index": (
        "req_prod is believed",
        "BLKIF-BACKEND-032",
        after(BlockServer, "__init__", _believes_the_index),
    ),
    "keeps-pages": (
        "pages stay mapped without feature-persistent",
        "BLKIF-BACKEND-034",
        instead(GrantMapper, "__init__", _keeps_pages),
    ),
    "reads-again": ("what is checked in a slot is read there again", "BLKIF-BACKEND-035", _reads_again),
    "dozes": (
        "it drops an event that comes when it is about to sleep",
        "BLKIF-BACKEND-060",
        dozes(BlockServer, "wake"),
    ),
}
"""Name → the fault, the check meant for it, what makes it."""
