"""When each end is told, and indices that cannot be."""

from __future__ import annotations

from typing import Final

from conformance.kit.check import Level, check, expect, expect_equal
from conformance.net.checks.common import HEADER, RING, SCATTER, both, carries
from conformance.net.frames import MACS, expect_frames, frame
from conformance.net.world import Scene
from hypervisor.abi.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD
from hypervisor.abi.io.xenbus import XenbusStateClosed, XenbusStateClosing

STORM_NS: Final = 2_000
"""Nanoseconds between two events of a storm."""
FINAL_CHECK = f"{RING}, RING_FINAL_CHECK_FOR_REQUESTS"
PUSH = f"{RING}, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY"


@check("NETIF-BACKEND-080", Level.must, FINAL_CHECK)
async def asks_to_be_told_of_frames(scene: Scene) -> None:
    """When it has nothing to do the backend has asked to be told of the next request on the tx ring.

    Else the guest does not notify, and its frame stays until the one after it.
    """
    front, _ = await both(scene)
    for number in range(3):
        await front.queue.send(frame(60, number))
        await front.kernel.sleep(5_000_000)
        expect_equal(front.queue.tx.shared[REQ_EVENT], number + 2, "req_event of the tx ring of an idle backend")


@check("NETIF-BACKEND-081", Level.must, FINAL_CHECK)
async def asks_again_after_half_a_frame(scene: Scene) -> None:
    """While the rest of a frame is missing the backend asks to be told of it, or has closed.

    The slots that it has seen do not count: it needs one more.
    """
    front, _ = await both(scene)
    ref = front.grant(frame(100), readonly=True)
    front.queue.put(ref, 100, flags=4)
    front.queue.show_tx()
    await front.kernel.sleep(5_000_000)
    if await front.state() in (XenbusStateClosing, XenbusStateClosed):
        return
    expect_equal(front.queue.tx.shared[REQ_EVENT], 2, "req_event while the second slot of a frame is missing")


@check("NETIF-BACKEND-082", Level.must, f"{HEADER}, feature-rx-notify; {FINAL_CHECK}")
async def asks_to_be_told_of_buffers(scene: Scene) -> None:
    """While a frame waits for a buffer the backend has asked to be told of one.

    A guest that has run out, and posts one, would wait for ever for what is waiting for it. (What is dropped instead
    does not wait.)
    """
    front, peer = scene.front, scene.peer
    await front.connect()
    await peer.connect(SCATTER, buffers=1)
    data = frame(60)
    await front.queue.send(frame(60, 1), data)
    await peer.queue.receive()
    await front.kernel.sleep(5_000_000)
    expect_equal(peer.queue.rx.shared[REQ_EVENT], 2, "req_event of the rx ring while a frame waits for a second buffer")
    peer.queue.post(1)
    peer.queue.show_rx()
    expect_frames(await peer.queue.receive_data(), [data], "What arrives once a buffer is there")


@check("NETIF-BACKEND-083", Level.must, PUSH)
async def notifies_of_answers(scene: Scene) -> None:
    """The backend notifies when its responses on the tx ring reach rsp_event, and not before.

    A guest wants to know when there is room again, and not of each frame.
    """
    front, _ = await both(scene)
    queue = front.queue
    queue.tx.shared[RSP_EVENT] = 4
    queue.tx_events = 0
    for number in range(3):
        queue.put_frame(frame(60, number))
        queue.show_tx()
        await front.kernel.sleep(5_000_000)
    expect_equal(queue.tx.shared[RSP_PROD], 3, "rsp_prod of the tx ring after three frames")
    expect_equal(queue.tx_events, 0, "the number of notifications before the fourth response, which was asked for,")
    queue.put_frame(frame(60, 4))
    queue.show_tx()
    await front.kernel.sleep(5_000_000)
    expect(queue.tx_events, "The fourth response was asked for, and nobody is notified of it.")


@check("NETIF-BACKEND-084", Level.must, PUSH)
async def notifies_of_frames(scene: Scene) -> None:
    """The backend notifies when frames on the rx ring reach rsp_event, and not before.

    The guest sleeps until then.
    """
    front, peer = await both(scene)
    queue = peer.queue
    queue.rx.shared[RSP_EVENT] = 3
    queue.rx_events = 0
    for number in range(2):
        await front.queue.send(frame(60, number))
        await front.kernel.sleep(5_000_000)
    expect_equal(queue.rx.shared[RSP_PROD], 2, "rsp_prod of the rx ring after two frames")
    expect_equal(queue.rx_events, 0, "the number of notifications before the third frame, which was asked for,")
    await front.queue.send(frame(60, 2))
    await front.kernel.sleep(5_000_000)
    expect(queue.rx_events, "The third frame was asked for, and nobody is notified of it.")


@check("NETIF-BACKEND-085", Level.must, "XSA-39; io/ring.h, RING_REQUEST_PROD_OVERFLOW")
async def a_tx_ring_that_overflows(scene: Scene) -> None:
    """A req_prod that cannot be does not keep the backend busy, and has it answer nothing that is no request.

    XSA-39: it ran for ever, and its domain with it. The device is closed, or the ring not looked at again.
    """
    front, peer = await both(scene)
    for ahead in (257, 100_000, 0x8000_0000, 0xFFFF_FFFF):
        front.queue.tx.shared[REQ_PROD] = ahead
        front.kernel.events.notify(front.queue.tx_port)
        await front.kernel.sleep(10_000_000)
    expect(front.queue.tx.shared[RSP_PROD] <= 256, f"There are {front.queue.tx.shared[RSP_PROD]} responses.")
    await peer.queue.silent()
    await peer.queue.send(frame(60, source=MACS[1]))


@check("NETIF-BACKEND-086", Level.must, "XSA-39; io/ring.h, RING_REQUEST_PROD_OVERFLOW")
async def an_rx_ring_that_overflows(scene: Scene) -> None:
    """The same on the rx ring: the buffers between are no buffers.

    What stands in a slot there is a response of the last turn, or what the guest has made up.
    """
    front, peer = await both(scene)
    for ahead in (1000, 0x8000_0000, 0xFFFF_FFFF):
        front.queue.rx.shared[REQ_PROD] = ahead
        front.kernel.events.notify(front.queue.rx_port)
        await peer.queue.send(frame(60, source=MACS[1]))
    expect(front.queue.rx.shared[RSP_PROD] <= 256, f"There are {front.queue.rx.shared[RSP_PROD]} responses.")


@check("NETIF-BACKEND-087", Level.must, "XSA-332")
async def a_storm_of_events(scene: Scene) -> None:
    """Events without work cost the backend little: the other interface is served in between.

    XSA-332: a guest could keep dom0 in its interrupt handler.
    """
    front, peer = await both(scene)
    for _ in range(500):
        front.kernel.events.notify(front.queue.tx_port)
        # Events that nobody has had time to take are one.
        await front.kernel.sleep(STORM_NS)
    await carries(peer, front)


@check("NETIF-BACKEND-088", Level.must, f"{RING}, REQ_PROD")
async def only_what_is_shown(scene: Scene) -> None:
    """A request that stands in its slot, and has not been shown, is not looked at, whatever events come.

    The guest may still be writing it.
    """
    front, peer = await both(scene)
    ident = front.queue.put_frame(frame(60))
    front.kernel.events.notify(front.queue.tx_port)
    await peer.queue.silent()
    expect_equal(front.queue.tx.shared[RSP_PROD], 0, "the number of responses to what has not been shown")
    front.queue.show_tx()
    await front.queue.taken(ident)


@check("NETIF-BACKEND-130", Level.must, FINAL_CHECK, schedules=8)
async def no_frame_is_lost(scene: Scene) -> None:
    """However the domains take turns, every frame arrives, though the backend is told of it only when it asks for that.

    Between its last look and its sleep a frame may come. Its event is the only one.
    """
    front, peer = await both(scene)
    for turn in range(8):
        frames = [frame(60, 3 * turn + number) for number in range(1 + turn % 3)]
        idents = []
        for data in frames:
            idents.append(front.queue.put_frame(data))
            front.queue.show_tx()
            await front.kernel.yield_()
        await front.queue.taken(*idents)
        expect_frames(await peer.queue.receive_data(len(frames)), frames, f"What arrives in turn {turn}")
        peer.queue.restock()
