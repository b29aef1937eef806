"""The handshake, what is offered and taken, and how a device goes."""

from __future__ import annotations

from typing import Any

from conformance.kit.check import Level, Skip, check, expect, expect_equal
from conformance.net.checks.common import BUS, HEADER, Nodes, both, carries, needs
from conformance.net.frames import expect_frames, frame
from conformance.net.front import Front
from conformance.net.world import Scene
from hypervisor.abi.io import xenbus
from hypervisor.abi.io.xenbus import XenbusStateClosed, XenbusStateClosing, XenbusStateConnected, XenbusStateInitWait

SPLIT = f"{HEADER}, feature-split-event-channels"
QUEUES = f"{HEADER}, multi-queue-max-queues"


@check("NETIF-BACKEND-001", Level.must, f"{BUS}, XenbusStateInitWait")
async def init_wait(scene: Scene) -> None:
    """The backend comes to InitWait by itself, and waits there for the frontend.

    Frontends write nothing before they see it.
    """
    await scene.front.find()
    await scene.front.kernel.sleep(20_000_000)
    expect_equal(await scene.front.state(), XenbusStateInitWait, "the backend's state before the frontend's")


@check("NETIF-BACKEND-002", Level.must, f"{HEADER}; Linux, xen-netfront")
async def offers_copying(scene: Scene) -> None:
    """By InitWait the backend has offered to copy: feature-rx-copy is 1.

    A frontend that does not see it must give up: pages are not flipped any more.
    """
    await scene.front.find()
    expect_equal(await scene.front.told("feature-rx-copy"), "1", "feature-rx-copy")


@check("NETIF-BACKEND-003", Level.must, HEADER)
async def features_are_numbers(scene: Scene) -> None:
    """What the backend offers is said in numbers that a frontend can read: 0 or 1, and of queues at least one.

    Linux reads them as integers; what it cannot read is not offered, and what is offered by mistake is used.
    """
    await scene.front.find()
    for key in await scene.front.kernel.xenbus.directory(scene.front.far):
        value = await scene.front.told(key)
        if key.startswith("feature-") or key == "carrier":
            expect(value in ("0", "1"), f"{key} is {value!r}; it should be 0 or 1.")
        elif key == "multi-queue-max-queues":
            expect(value is not None and value.isdigit() and int(value), f"{key} is {value!r}.")


@check("NETIF-BACKEND-004", Level.must, HEADER)
async def a_plain_frontend(scene: Scene) -> None:
    """A frontend that takes nothing of what is offered, and only says where its rings are, is served.

    The smallest frontends (of boot loaders, of unikernels) are like that.
    """
    plain: Nodes = {"feature-rx-notify": None}
    front, peer = await both(scene, plain, plain)
    await carries(front, peer)
    await carries(peer, front)


@check("NETIF-BACKEND-005", Level.must, f"{BUS}, XenbusStateClosing")
async def close_handshake(scene: Scene) -> None:
    """The backend follows the frontend to Closed, and maps nothing of it then.

    A page that is still mapped cannot be used again.
    """
    front, peer = await both(scene)
    await carries(front, peer)
    await front.close()
    await peer.queue.send(frame(60))


@check("NETIF-BACKEND-006", Level.must, f"{BUS}, XenbusStateInitialising; XSA-350")
async def connect_again(scene: Scene) -> None:
    """After it has closed a device can be connected again, as often as the guest likes.

    kexec and a driver that is loaded anew do so. XSA-350: a worker of the last time lived on in a freed structure.
    """
    await scene.peer.connect()
    for _ in range(4):
        await scene.front.connect()
        await carries(scene.front, scene.peer)
        await scene.front.close()
        await scene.front.begin_again()
    await scene.front.connect()
    await carries(scene.front, scene.peer)


@check("NETIF-BACKEND-007", Level.must, f"{BUS}, XenbusStateClosing")
async def close_before_connecting(scene: Scene) -> None:
    """A frontend that closes instead of connecting is followed, and may connect later.

    It is what a guest does that is shut down while it boots.
    """
    front = scene.front
    await front.find()
    await front.close()
    await front.begin_again()
    await front.connect()


@check("NETIF-BACKEND-008", Level.must, f"{HEADER}; XSA-361")
async def bad_ring_references(scene: Scene) -> None:
    """A ring's reference that is no grant, or no number, closes the device, and what was mapped before it goes back.

    It is the guest's text: an exception there must not reach other guests' interfaces.
    """
    await scene.peer.connect()
    for key in ("tx-ring-ref", "rx-ring-ref"):
        for bad in (9999, "x", "", None):
            await _is_refused(scene.front, {key: bad})
    await scene.front.connect()
    await carries(scene.front, scene.peer)


@check("NETIF-BACKEND-009", Level.must, HEADER)
async def bad_event_channels(scene: Scene) -> None:
    """An event channel that cannot be bound closes the device.

    As for the rings: what was taken before must go back.
    """
    for bad in (4000, "x", None):
        await _is_refused(scene.front, {"event-channel": bad})
    await scene.front.connect()


@check("NETIF-BACKEND-010", Level.must, "Linux, xen-netback (read_xenbus_vif_flags)")
async def flipping(scene: Scene) -> None:
    """A frontend that does not ask for copying (request-rx-copy) is refused.

    It would wait for other pages in the place of its own, which nobody gives it.
    """
    for bad in (0, None):
        await _is_refused(scene.front, {"request-rx-copy": bad})


@check("NETIF-BACKEND-011", Level.must, SPLIT)
async def split_channels(scene: Scene) -> None:
    """With an event channel for each ring, responses on the tx ring are told on one, and frames on the other.

    The guest's two handlers look at one ring each.
    """
    await needs(scene.front, "feature-split-event-channels")
    front, peer = await both(scene, split=True)
    queue = front.queue
    queue.tx_events = queue.rx_events = 0
    await queue.send(frame(60))
    expect(queue.tx_events, "A response on the tx ring is told on no event channel of that ring.")
    expect_equal(queue.rx_events, 0, "the number of events of the rx ring, where nothing is new,")
    queue.tx_events = 0
    await carries(peer, front)
    expect(queue.rx_events, "A frame on the rx ring is told on no event channel of that ring.")
    expect_equal(queue.tx_events, 0, "the number of events of the tx ring, where nothing is new,")


@check("NETIF-BACKEND-012", Level.must, QUEUES)
async def two_queues(scene: Scene) -> None:
    """A frontend with two queues may send on either, and receives on either.

    Who sends chooses the queue; the other end takes it as it comes.
    """
    await _needs_queues(scene.front, 2)
    front, peer = await both(scene, queues=2)
    for number, queue in enumerate(front.queues):
        data = frame(60, number)
        await queue.send(data)
        expect_frames(await peer.queue.receive_data(), [data], f"What was sent on queue {number}")
    data = frame(61, 9)
    await peer.queue.send(data)
    await front.kernel.sleep(5_000_000)
    expect_equal(sum(bool(queue.take_slot()) for queue in front.queues), 1, "the number of queues that a frame is on")


@check("NETIF-BACKEND-013", Level.must, QUEUES)
async def one_queue_that_is_said(scene: Scene) -> None:
    """A frontend that says multi-queue-num-queues = 1 has its nodes where one without queues has them.

    So netif.h has it, to make no difference between those who do not know of queues and those who want one.
    """
    await _needs_queues(scene.front, 1)
    front, peer = await both(scene, {"multi-queue-num-queues": 1})
    await carries(front, peer)


@check("NETIF-BACKEND-014", Level.must, QUEUES)
async def too_many_queues(scene: Scene) -> None:
    """More queues than are offered, none, or no number of them close the device.

    Each queue costs dom0 memory and a thread; the number is the guest's.
    """
    most = await _needs_queues(scene.front, 1)
    for bad in (most + 1, 0, 1 << 31, "x"):
        await _is_refused(scene.front, {"multi-queue-num-queues": bad})


@check("NETIF-BACKEND-015", Level.should, f"{QUEUES} ('any inconsistency')")
async def a_queue_that_is_missing(scene: Scene) -> None:
    """Two queues of which one is described, or half of one, are refused as a whole, and nothing of them stays mapped.

    Half of an interface loses half of the frames, by a hash that nobody sees.
    """
    await _needs_queues(scene.front, 2)
    for key in ("queue-1", "queue-1/rx-ring-ref", "queue-0/event-channel"):
        await _is_refused(scene.front, {key: None}, queues=2)


@check("NETIF-BACKEND-016", Level.must, "docs/misc/xenstore-paths; io/xenbus.h")
async def death_of_the_frontend(scene: Scene) -> None:
    """When the frontend's domain is gone the backend's domain lives on.

    A guest may be destroyed at any moment, with frames under way in both directions.
    """
    front, peer = await both(scene)
    for number in range(40):
        front.queue.put_frame(frame(60, number))
        peer.queue.put_frame(frame(60, number))
    front.queue.show_tx()
    peer.queue.show_tx()
    scene.leave()


@check("NETIF-BACKEND-017", Level.must, f"{BUS}, XenbusStateClosing")
async def closes_with_frames_that_wait(scene: Scene) -> None:
    """A device whose guest has posted no buffers closes, though frames wait for it, and has them no more.

    Who waits for the frames first waits for ever.
    """
    front, peer = await both(scene, buffers=0)
    for number in range(10):
        await peer.queue.send(frame(60, number))
    await front.close()
    await peer.queue.send(frame(60))


@check("NETIF-BACKEND-018", Level.must, f"{BUS}, XenbusStateClosed")
async def closed_at_once(scene: Scene) -> None:
    """A frontend that goes from Connected to Closed, without Closing between, is followed too.

    A guest that is in a hurry (kexec) does so, and reuses its pages.
    """
    front, peer = await both(scene)
    await front.say(state=XenbusStateClosed)
    await front.wait_for(XenbusStateClosing, XenbusStateClosed, XenbusStateInitWait)
    await front.wait_for(XenbusStateClosed, XenbusStateInitWait)
    await front.take_back()
    await peer.queue.send(frame(60))


@check("NETIF-BACKEND-019", Level.must, f"{BUS}, XenbusStateInitialised")
async def initialised_first(scene: Scene) -> None:
    """A frontend that says Initialised before Connected is served all the same.

    Some do, as block frontends must.
    """
    front, peer = scene.front, scene.peer
    await peer.connect()
    await front.find()
    await front.write_nodes(front.make())
    await front.say(state=xenbus.XenbusStateInitialised)
    await front.kernel.sleep(5_000_000)
    await front.say(state=XenbusStateConnected)
    await front.wait_for(XenbusStateConnected)
    await carries(front, peer)


async def _needs_queues(front: Front, count: int) -> int:
    """Return how many queues the backend offers; raises Skip if they are fewer."""
    if not front.far:
        await front.find()
    offered = int(await front.told("multi-queue-max-queues") or 0)
    if offered < count:
        raise Skip(f"It does not offer {count} queues.")
    return offered


async def _is_refused(front: Front, bad: Nodes, **made: Any) -> None:
    """Raise Failure if the backend connects to such nodes, or keeps something of them; begins the device anew."""
    state = await front.try_to_connect(bad, **made)
    expect(state != XenbusStateConnected, f"The backend connects to a frontend with {bad!r}.")
    await front.close()
    await front.begin_again()
