"""When each end is told."""

from __future__ import annotations

from conformance.kit.check import Level, check, expect, expect_equal
from conformance.net.frames import frame
from conformance.net_front.back import Back
from conformance.net_front.checks.common import HEADER, RING, connected, listening
from conformance.net_front.world import Scene
from hypervisor.abi.io.ring import REQ_EVENT, REQ_PROD, RSP_EVENT

PUSH = f"{RING}, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY"
FINAL_CHECK = f"{RING}, RING_FINAL_CHECK_FOR_RESPONSES"


@check("NETIF-FRONTEND-060", Level.must, PUSH)
async def notifies_of_frames(scene: Scene) -> None:
    """The frontend notifies when its requests on the tx ring reach req_event, and not before.

    A backend sleeps until then; each needless event is a trip through Xen.
    """
    back = await connected(scene)
    await back.kernel.sleep(5_000_000)
    back.tx.shared[REQ_EVENT] = 3
    back.tx_events = 0
    for number in range(2):
        await scene.transmit(frame(60, number))
        await back.kernel.sleep(2_000_000)
    expect_equal(back.tx.shared[REQ_PROD], 2, "req_prod of the tx ring after two frames")
    expect_equal(back.tx_events, 0, "the number of notifications before the third request, which was asked for,")
    await scene.transmit(frame(60, 2))
    await back.kernel.sleep(2_000_000)
    expect(back.tx_events, "The third request was asked for, and nobody is notified of it.")


@check("NETIF-FRONTEND-061", Level.must, FINAL_CHECK)
async def asks_to_be_told_of_frames(scene: Scene) -> None:
    """While it has nothing to do the frontend has asked to be told of the next frame on the rx ring.

    Else the backend does not notify, and the frame lies there until another comes.
    """
    back = await listening(scene)
    for turn in range(3):
        expect_equal(back.rx.shared[RSP_EVENT], turn + 1, "rsp_event of the rx ring of an idle frontend")
        await back.give(frame(60))
        await scene.hears(1)
        await back.kernel.sleep(2_000_000)


@check("NETIF-FRONTEND-062", Level.must, FINAL_CHECK)
async def goes_on_when_there_is_room(scene: Scene) -> None:
    """A frontend whose tx ring is full has asked to be told of answers, and goes on when some have come.

    Else the guest's network stands still after 256 frames.
    """
    back = await connected(scene)
    job = scene.send_many([frame(60, number) for number in range(300)])
    await back.kernel.sleep(20_000_000)
    expect(back.tx.shared[REQ_PROD] <= 256, f"{back.tx.shared[REQ_PROD]} requests are under way.")
    back.answer(*await back.frames(back.tx.shared[REQ_PROD]))
    back.keep_serving()
    await scene.finish(job)


@check("NETIF-FRONTEND-063", Level.must, f"{RING}, RING_FULL")
async def never_more_than_the_ring(scene: Scene) -> None:
    """However much the guest sends, no more requests are under way than the ring has slots.

    The next one would overwrite a request that nobody has read.
    """
    back = await connected(scene)
    scene.send_many([frame(60, number) for number in range(600)])
    sent = await _stands_still(back)
    expect(0 < sent <= back.tx.size, f"{sent} requests are under way.")
    taken = await back.frames(sent)
    expect([one.data for one in taken] == [frame(60, number) for number in range(sent)], "Requests are overwritten.")
    back.answer(*taken[:10])
    await back.kernel.sleep(20_000_000)
    expect(back.tx.shared[REQ_PROD] <= sent + 10, "After ten answers more than ten requests come.")


async def _stands_still(back: Back) -> int:
    """Wait until no more requests come to the tx ring; return its req_prod."""
    before = -1
    while (now := back.tx.shared[REQ_PROD]) != before:
        before = now
        await back.kernel.sleep(20_000_000)
    return now


@check("NETIF-FRONTEND-064", Level.must, f"{HEADER}, feature-rx-notify; {PUSH}")
async def notifies_of_buffers(scene: Scene) -> None:
    """A frontend that has said feature-rx-notify notifies when the buffers that it posts reach req_event.

    A backend for whose frames there were no buffers sleeps until then.
    """
    back = await listening(scene)
    if await back.told("feature-rx-notify") != "1":
        return
    await back.buffer()
    back.buffers.clear()
    while (posted := back.rx.shared[REQ_PROD]) > back.rx.req_cons:
        back.take_buffers()
    # All are taken, and one comes back with each frame that is read.
    back.rx.shared[REQ_EVENT] = posted + 1
    back.rx_events = 0
    await _use_up(scene, posted)
    await back.kernel.sleep(5_000_000)
    expect(back.rx.shared[REQ_PROD] > posted, "The buffers are not posted again.")
    expect(back.rx_events, "A buffer was asked for, and nobody is notified of it.")


async def _use_up(scene: Scene, posted: int) -> None:
    """Answer all buffers with errors: there is nothing in them."""
    back = scene.back
    for slot in range(posted):
        raw = back.rx.copy(slot)
        back.put_response(int.from_bytes(raw[:2], "little"), -1)
    back.show_frames()
