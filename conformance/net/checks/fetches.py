"""Slots that change while they are served: what a backend has checked must be what it uses (XSA-155)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from conformance.kit.bus_end import LOOK_NS, PATIENCE_NS
from conformance.kit.check import Failure, Level, check, expect
from conformance.net.checks.common import RING, both, lives_on
from conformance.net.frames import MACS, frame
from conformance.net.front import Front
from conformance.net.rings import U32
from conformance.net.world import Scene
from hypervisor.abi.io import netif
from hypervisor.abi.io.ring import RSP_PROD, FrontRing
from hypervisor.abi.io.xenbus import XenbusStateConnected

DELAYS: Final = range(0, 12_000, 500)
"""Nanoseconds between the first word of a request and the second."""
QUIET_NS: Final = 3_000_000
"""After which a frame that has not come does not come any more."""
EMPTY: Final = bytes(4096)
COPY: Final = f"XSA-155; {RING}, RING_COPY_REQUEST"


@attrs.frozen
class Variant:
    """What the slots of a frame say at a time, and what is sent when that is served (empty: it has to be refused)."""

    slots: Sequence[bytes] = attrs.field(repr=False)
    frame: bytes = attrs.field(repr=False)
    told: str
    """In words."""


@check("NETIF-BACKEND-049", Level.must, COPY)
async def a_request_that_changes(scene: Scene) -> None:
    """A request that changes while it is served is sent as it was at one moment, or refused.

    The slot is the frontend's to write at any time. Who checks a size there and then reads it again has checked
    nothing: what is sent, or written over, is the memory of the backend's domain.
    """
    front, peer = await both(scene)
    pages = [frame(4000, mark) for mark in (1, 2)]
    refs = [front.grant(data, readonly=True) for data in pages]

    def one(which: int, size: int, offset: int = 0, flags: int = 0) -> bytes:
        return netif.netif_tx_request.pack(gref=refs[which], offset=offset, flags=flags, id=which, size=size)

    more = netif.NETTXF_more_data
    small = Variant([one(0, 60)], pages[0][:60], "60 bytes of a page")
    pair = Variant([one(0, 160, 0, more), one(1, 100)], pages[0][:60] + pages[1][:100], "slots of 60 and 100 bytes")
    another = netif.netif_tx_request.pack(gref=refs[1], offset=0, flags=0, id=0, size=90)
    for first, second in (
        (small, Variant([one(0, 1500)], pages[0][:1500], "1500 bytes of it")),
        (small, Variant([one(0, 60, 4090)], b"", "60 bytes at its end")),
        (small, Variant([one(0, 5)], b"", "five bytes of it")),
        (small, Variant([another], pages[1][:90], "90 bytes of another")),
        (pair, Variant([one(0, 160, 0, more), one(1, 300)], b"", "a second slot of more than the whole")),
        (pair, Variant([one(0, 90, 0, more), one(1, 100)], b"", "a frame that is less than one of its slots")),
    ):
        for delay in DELAYS:
            statuses = await _change_under_way(front, first, second, delay)
            if statuses is None:
                await lives_on(scene)
                return
            found = await _what_came(peer)
            told = f"A frame of {first.told} that becomes {second.told} after {delay} ns"
            if found is not None:
                expect(found in (first.frame, second.frame), f"{told} arrives as {len(found)} bytes, and as neither.")
            else:
                expect(any(statuses), f"{told} does not arrive, and is answered as if it did: {statuses}.")
    await lives_on(scene)


async def _change_under_way(front: Front, first: Variant, second: Variant, delay: int) -> list[int] | None:
    """Send a frame that becomes another one after so many nanoseconds.

    Returns the statuses of its slots; None if the device has been closed for it. Raises Failure.
    """
    queue = front.queue
    begin = queue.tx.req_prod_pvt
    for request in first.slots:
        queue.put_raw(request)
    queue.show_tx()
    await front.kernel.sleep(delay)
    for number, (old, new) in enumerate(zip(first.slots, second.slots, strict=True)):
        _replace(queue.tx, begin + number & U32, old, new)
    found: list[int] = []
    for _ in range(PATIENCE_NS // LOOK_NS):
        found += [status for _, status in queue.take_tx()]
        if len(found) >= len(first.slots):
            return found
        if await front.state() != XenbusStateConnected:
            return None
        await front.kernel.sleep(LOOK_NS)
    raise Failure(f"A frame of {first.told} that becomes {second.told} is not answered.")


def _replace(ring: FrontRing, index: int, old: bytes, new: bytes) -> None:
    """Write another request into a slot, unless there is a response in it."""
    at = ring.offset(index)
    slot = ring.view[at : at + ring.entry_size]
    if index - ring.shared[RSP_PROD] & U32 < ring.size and slot == old:
        slot[:] = new


async def _what_came(peer: Front) -> bytes | None:
    """Return the frame that the other interface has received; None if there is none. Raises Failure."""
    peer.queue.restock()
    for _ in range(QUIET_NS // LOOK_NS):
        if peer.queue.rx.unconsumed_responses():
            return (await peer.queue.receive_one()).data
        await peer.kernel.sleep(LOOK_NS)
    return None


@check("NETIF-BACKEND-074", Level.must, COPY)
async def a_buffer_that_changes(scene: Scene) -> None:
    """A posted buffer that changes while a frame goes into it is used as it was at one moment: id and page of one word.

    A response with one buffer's id for data in another's page hands the guest a page that nobody has written, and posts
    the other one again with the frame in it.
    """
    front, peer = await both(scene)
    queue = front.queue
    pages = [front.grant(), front.grant()]
    words = [netif.netif_rx_request.pack(id=ident, gref=ref) for ident, ref in enumerate(pages)]
    for turn, delay in enumerate(DELAYS):
        for ref in pages:
            front.pages[ref].view[:] = EMPTY
        index = queue.rx.rsp_cons
        at = queue.rx.offset(index)
        queue.rx.view[at : at + len(words[0])] = words[0]
        data = frame(200, turn, source=MACS[1])
        peer.queue.put_frame(data)
        peer.queue.show_tx()
        await front.kernel.sleep(delay)
        _replace(queue.rx, index, *words)
        raw = await _slot(front)
        if raw is None:
            await lives_on(scene)
            return
        answer = netif.netif_rx_response.unpack(raw)
        told = f"When the buffer becomes another one after {delay} ns, its response has id {answer.id}"
        expect(answer.id < len(pages), f"{told}; they were 0 and 1.")
        found = [front.data(ref) for ref in pages]
        if answer.status >= 0:
            end = answer.offset + answer.status
            expect(found[answer.id][answer.offset : end] == data, f"{told}, and the frame is not in the page of that.")
        expect(found[1 - answer.id] == EMPTY, f"{told}, and the other one's page is written to.")
        await peer.queue.answers(1)
        queue.restock()
    await lives_on(scene)


async def _slot(front: Front) -> bytes | None:
    """Return the next response of the rx ring; None if the device has been closed instead. Raises Failure."""
    for _ in range(PATIENCE_NS // LOOK_NS):
        found = front.queue.take_slot()
        if found is not None:
            return found[2]
        if await front.state() != XenbusStateConnected:
            return None
        await front.kernel.sleep(LOOK_NS)
    raise Failure("A frame does not come when its buffer becomes another one.")
