"""What a guest receives: buffers, slots, and what becomes of frames for which there are none."""

from __future__ import annotations

from conformance.kit.check import Failure, Level, Skip, check, expect, expect_equal
from conformance.net.checks.common import HEADER, RX, SCATTER, both, needs
from conformance.net.frames import BROADCAST, GROUP, MACS, STRANGER, expect_frames, frame
from conformance.net.front import Front
from conformance.net.rings import Queue
from conformance.net.world import Scene
from hypervisor.abi.io import netif
from hypervisor.abi.io.netif import XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_TYPE_MCAST_DEL
from hypervisor.abi.io.ring import RSP_PROD

LONG = 5000
"""More than a page."""
MULTICAST = f"{HEADER}, feature-multicast-control"


@check("NETIF-BACKEND-060", Level.must, f"{RX}, NOTE")
async def responses_in_their_slots(scene: Scene) -> None:
    """Each response on the rx ring has the id of the request that was in the same slot.

    Linux's frontend does not look at the id: where it is wrong a frame is read out of another page.
    """
    front, peer = await both(scene)
    await front.queue.send(*[frame(60 + number, number) for number in range(20)])
    for number in range(20):
        slot = peer.queue.take_slot()
        if slot is None:
            raise Failure(f"Of 20 frames {number} come.")
        posted, _, raw = slot
        expect_equal(netif.netif_rx_response.unpack(raw).id, posted, f"the id of response {number}")


@check("NETIF-BACKEND-061", Level.must, f"{HEADER}, struct netif_rx_response")
async def status_is_the_length(scene: Scene) -> None:
    """A frame of one slot has its length for a status, no flag says more, and the rest of its page stays as it was.

    What is written behind the frame is another guest's, or the backend's.
    """
    front, peer = await both(scene)
    peer.queue.tx_events = 0
    data = frame(77)
    await front.queue.send(data)
    slot = peer.queue.take_slot()
    if slot is None:
        raise Failure("The frame does not come.")
    answer = netif.netif_rx_response.unpack(slot[2])
    wrong = answer.flags & (netif.NETRXF_more_data | netif.NETRXF_extra_info | netif.NETRXF_gso_prefix)
    expect_equal((answer.status, wrong), (77, 0), "the status, and the flags of more slots,")
    page = peer.data(slot[1])
    expect(page[answer.offset : answer.offset + 77] == data, "The page holds something else.")
    rest = page[: answer.offset] + page[answer.offset + 77 :]
    expect(not any(rest), "Something is written to the page beside the frame.")


@check("NETIF-BACKEND-062", Level.must, RX)
async def one_buffer_for_one_page(scene: Scene) -> None:
    """A frame takes no more buffers than it needs; the others stay posted.

    A backend that answers them, empty, has the guest run in a circle.
    """
    front, peer = await both(scene)
    await front.queue.send(frame(60))
    await peer.queue.receive()
    await front.kernel.sleep(5_000_000)
    expect_equal(peer.queue.rx.shared[RSP_PROD], 1, "rsp_prod of the rx ring after one frame")


@check("NETIF-BACKEND-063", Level.must, RX)
async def no_buffers_at_first(scene: Scene) -> None:
    """Frames for a guest that has posted no buffers wait, or are dropped; what comes once it has, arrives.

    A guest is out of memory for a moment; its network must not be out for ever.
    """
    front, peer = scene.front, scene.peer
    await front.connect()
    await peer.connect(SCATTER, buffers=0)
    await front.queue.send(*[frame(60, number) for number in range(10)])
    await peer.queue.silent(5_000_000)
    peer.queue.post(32)
    peer.queue.show_rx()
    data = frame(99, 99)
    await front.queue.send(data)
    for _ in range(11):
        if (await peer.queue.receive_one()).data == data:
            return
    raise Failure("The frame that was sent after buffers had been posted does not come.")


@check("NETIF-BACKEND-064", Level.must, "XSA-392")
async def a_guest_that_never_posts(scene: Scene) -> None:
    """However many frames are for a guest that posts no buffers, who sends them is served, and dom0's memory is safe.

    XSA-392: they were queued without a bound.
    """
    front, peer = scene.front, scene.peer
    await front.connect()
    await peer.connect(SCATTER, buffers=0)
    ref = front.grant(frame(1514), readonly=True)
    for _ in range(20):
        idents = [front.queue.put(ref, 1514) for _ in range(250)]
        front.queue.show_tx()
        await front.queue.taken(*idents)


@check("NETIF-BACKEND-065", Level.must, "grant_table.h; XSA-361")
async def bad_buffers(scene: Scene) -> None:
    """A buffer whose reference is no grant, or read-only, is answered with an error; the next one is filled.

    The error costs the frame that would have been there, and no other.
    """
    front, peer = scene.front, scene.peer
    await front.connect()
    await peer.connect(SCATTER, buffers=0)
    bad = [0, 0xFFFF_FFFF, 5000, peer.grant(readonly=True)]
    for ref in bad:
        peer.queue.post(1, bad_ref=ref)
    peer.queue.post(3)
    peer.queue.show_rx()
    frames = [frame(60 + number, number) for number in range(7)]
    await front.queue.send(*frames)
    found = await peer.queue.receive(7)
    expect_equal([one.statuses[0] < 0 for one in found], [True] * 4 + [False] * 3, "which responses are errors")
    expect_frames([one.data for one in found[4:]], frames[4:], "What arrives in good buffers")
    expect(not any(peer.data(bad[3])), "A page that was granted read-only has been written.")


@check("NETIF-BACKEND-066", Level.must, f"{HEADER}, feature-sg")
async def no_scattered_frames_unasked(scene: Scene) -> None:
    """A guest without feature-sg gets no frame of several slots.

    It takes each slot for a frame.
    """
    front, peer = await both(scene, peer={})
    await _send_long(front)
    await front.queue.send(frame(60, 5))
    found = await peer.queue.receive_one()
    expect_equal(len(found.statuses), 1, "the number of slots of a frame for a guest without feature-sg")


@check("NETIF-BACKEND-067", Level.must, f"{RX}, more_data")
async def scattered_frames(scene: Scene) -> None:
    """For a guest with feature-sg a long frame is in several slots: all but the last say more_data, each its own size.

    Unlike those of the tx ring: there the first tells the size of the whole.
    """
    front, peer = await both(scene)
    data = await _send_long(front)
    await front.queue.send(frame(60, 5))
    found = await peer.queue.receive_one()
    if found.data == frame(60, 5):
        raise Skip("Its bridge carries no frames that are longer than a page.")
    expect(found.data == data, f"A frame of {LONG} bytes in slots of {found.statuses} arrives changed.")
    expect_equal(sum(found.statuses), LONG, "the sum of the slots' sizes")


@check("NETIF-BACKEND-068", Level.must, f"{RX}, more_data")
async def a_bad_buffer_within_a_frame(scene: Scene) -> None:
    """A frame of several slots, one of which has a bad buffer, takes up its slots all the same, and no more.

    Else the guest puts the rest of it together with the next one.
    """
    front, peer = scene.front, scene.peer
    await front.connect()
    await peer.connect(SCATTER, buffers=0)
    peer.queue.post(1)
    peer.queue.post(1, bad_ref=5000)
    peer.queue.post(4)
    peer.queue.show_rx()
    await _send_long(front)
    data = frame(60, 5)
    await front.queue.send(data)
    found = await peer.queue.receive_one()
    if found.data == data:
        raise Skip("Its bridge carries no frames that are longer than a page.")
    expect(min(found.statuses) < 0, f"The slots' statuses are {found.statuses}; one should be an error.")
    expect_frames(await peer.queue.receive_data(), [data], "The frame after it")


async def _send_long(front: Front) -> bytes:
    data = frame(LONG)
    front.queue.put_slots(data, [4096, LONG - 4096])
    front.queue.show_tx()
    await front.queue.answers(2)
    return data


@check("NETIF-BACKEND-069", Level.must, RX)
async def hundreds_of_frames(scene: Scene) -> None:
    """Hundreds of frames, in batches of all sizes, go around both rings.

    Slots are used again and again, by requests and by responses, and each batch ends somewhere else.
    """
    front, peer = await both(scene, peer=SCATTER)
    number = 0
    for turn in range(45):
        batch = turn * 7 % 30 + 1
        frames = [frame(60 + (number + more) % 400, number + more) for more in range(batch)]
        number += batch
        await front.queue.send(*frames)
        expect_frames(await peer.queue.receive_data(batch), frames, f"What arrives of batch {turn}")
        peer.queue.restock()
        for ref in [ref for ref, page in front.pages.items() if bytes(page.view[:6]) == BROADCAST]:
            front.ungrant(ref)


@check("NETIF-BACKEND-070", Level.must, MULTICAST)
async def everything_by_default(scene: Scene) -> None:
    """A guest that has not asked for a filter gets multicast, and what is for nobody that is known.

    IPv6 finds its neighbours by multicast; a guest may be a bridge itself.
    """
    front, peer = await both(scene)
    frames = [frame(60, number, to=to) for number, to in enumerate((GROUP, STRANGER, BROADCAST))]
    await front.queue.send(*frames)
    expect_frames(await peer.queue.receive_data(3), frames, "What arrives")


@check("NETIF-BACKEND-071", Level.must, MULTICAST)
async def multicast_filter(scene: Scene) -> None:
    """With request-multicast-control a guest gets the groups on its list, broadcast, and no other group.

    The list is amended by requests that are no frames: they are answered, and do not arrive anywhere.
    """
    await needs(scene.front, "feature-multicast-control")
    front, peer = await both(scene, peer={**SCATTER, "request-multicast-control": 1})
    await front.queue.send(frame(60, 1, to=GROUP), frame(60, 2))
    expect_frames(await peer.queue.receive_data(), [frame(60, 2)], "What arrives with an empty list")
    await _order(peer.queue, XEN_NETIF_EXTRA_TYPE_MCAST_ADD)
    await front.queue.send(frame(60, 3, to=GROUP))
    expect_frames(await peer.queue.receive_data(), [frame(60, 3, to=GROUP)], "What arrives with the group on the list")
    await _order(peer.queue, XEN_NETIF_EXTRA_TYPE_MCAST_DEL)
    await front.queue.send(frame(60, 4, to=GROUP), frame(60, 5, to=MACS[1]))
    expect_frames(
        await peer.queue.receive_data(), [frame(60, 5, to=MACS[1])], "What arrives once the group is off the list"
    )
    await front.queue.silent(5_000_000)


@check("NETIF-BACKEND-072", Level.must, f"{HEADER}, feature-dynamic-multicast-control")
async def multicast_filter_later(scene: Scene) -> None:
    """Where that is offered the filter begins and ends whenever request-multicast-control changes.

    A guest turns it off to listen to everything (tcpdump), and on again.
    """
    await needs(scene.front, "feature-dynamic-multicast-control")
    front, peer = await both(scene)
    for number, wanted in enumerate((1, 0, 1)):
        await peer.write_nodes({"request-multicast-control": wanted})
        await front.kernel.sleep(10_000_000)
        await front.queue.send(frame(60, number, to=GROUP), frame(60, 10 + number))
        data = [frame(60, 10 + number)] if wanted else [frame(60, number, to=GROUP), frame(60, 10 + number)]
        expect_frames(await peer.queue.receive_data(len(data)), data, f"What arrives with the filter at {wanted}")


@check("NETIF-BACKEND-073", Level.must, MULTICAST)
async def a_list_without_end(scene: Scene) -> None:
    """A guest cannot have the backend remember addresses without end: sooner or later one more is an error.

    It is the backend's memory, and a list that is looked through for each frame.
    """
    await needs(scene.front, "feature-multicast-control")
    front = scene.front
    await front.connect()
    for number in range(2000):
        address = b"\x01\x00\x5e" + number.to_bytes(3, "big")
        ident = _put_order(front.queue, XEN_NETIF_EXTRA_TYPE_MCAST_ADD, address)
        front.queue.show_tx()
        answers = dict(await front.queue.answers(2))
        if answers[ident] < 0:
            return
    raise Failure("2000 multicast addresses are on the list, and none has been refused.")


async def _order(queue: Queue, kind: int, address: bytes = GROUP) -> None:
    ident = _put_order(queue, kind, address)
    queue.show_tx()
    found = await queue.answers(2)
    expect_equal([status for one, status in found if one == ident], [0], "the status of a multicast request")


def _put_order(queue: Queue, kind: int, address: bytes) -> int:
    ident = queue.put(0, 0, flags=netif.NETTXF_extra_info)
    queue.put_extra(kind, address)
    return ident
