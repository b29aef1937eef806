"""The handshake, what is taken of what is offered, and how a device goes."""

from __future__ import annotations

from conformance.kit.check import Level, check, expect, expect_equal
from conformance.net.frames import expect_frames, frame
from conformance.net_front.checks.common import BUS, HEADER, connected, listening
from conformance.net_front.world import Scene
from hypervisor.abi.io.ring import REQ_PROD
from hypervisor.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateReconfiguring,
)

QUEUES = f"{HEADER}, multi-queue-max-queues"


@check("NETIF-FRONTEND-001", Level.must, HEADER)
async def publishes_before_it_says_so(scene: Scene) -> None:
    """When it says that it is there the frontend has written both rings and its event channel, and all can be used.

    The backend reads them in that moment; what comes later it does not see.
    """
    await scene.back.offer()
    await scene.back.attach()


@check("NETIF-FRONTEND-002", Level.must, "Linux, xen-netback (read_xenbus_vif_flags)")
async def asks_for_copying(scene: Scene) -> None:
    """The frontend asks for copying: request-rx-copy is 1.

    Backends refuse one that does not; they flip no pages any more.
    """
    back = await connected(scene)
    expect_equal(await back.told("request-rx-copy"), "1", "request-rx-copy")


@check("NETIF-FRONTEND-003", Level.must, "Linux, xen-netfront (xennet_connect)")
async def a_backend_that_does_not_copy(scene: Scene) -> None:
    """A backend that does not offer feature-rx-copy is not used.

    It would take the guest's pages away for others, which nobody gives back.
    """
    back = scene.back
    await back.offer(feature_rx_copy=0)
    await back.kernel.sleep(20_000_000)
    if await back.state() == XenbusStateConnected:
        await back.say(state=XenbusStateConnected)
        await back.kernel.sleep(20_000_000)
    expect(await back.state() != XenbusStateConnected, "The frontend is Connected to a backend that does not copy.")
    await scene.is_alive()


@check("NETIF-FRONTEND-004", Level.may, BUS)
async def waits_for_connected(scene: Scene) -> None:
    """The frontend sends nothing before the backend is Connected.

    The bridge may not be there yet. (Linux does: xennet_connect turns the carrier on when the backend is in InitWait.
    What it sends then lies in the ring until the backend has mapped that, and is late.)
    """
    back = scene.back
    job = scene.send_many([frame(60)])
    await back.offer()
    await back.attach()
    await back.kernel.sleep(20_000_000)
    expect_equal(back.tx.shared[REQ_PROD], 0, "req_prod of the tx ring while the backend is in InitWait")
    await back.say(state=XenbusStateConnected)
    back.keep_serving()
    await scene.finish(job)


@check("NETIF-FRONTEND-005", Level.must, HEADER)
async def takes_nothing_that_is_not_offered(scene: Scene) -> None:
    """Of a backend that offers only copying nothing else is taken: no queues, no split channels, no control ring.

    An old backend does not read others, and finds no ring.
    """
    back = await connected(scene)
    for key in ("event-channel-tx", "event-channel-rx", "ctrl-ring-ref", "queue-0"):
        expect_equal(await back.told(key), None, f"{key}, which belongs to what was not offered,")
    await back.number("event-channel")
    expect(await back.told("multi-queue-num-queues") in (None, "1"), "It wants queues, which nobody has offered.")


@check("NETIF-FRONTEND-006", Level.must, f"{HEADER}, feature-split-event-channels")
async def split_channels(scene: Scene) -> None:
    """Where event channels may be split there is one for each ring, or one for both, as before; and either works.

    Half of it is none: the backend would have no way to tell of frames.
    """
    back = await listening(scene, feature_split_event_channels=1)
    pair = [await back.told(f"event-channel-{ring}") for ring in ("tx", "rx")]
    expect((pair[0] is None) == (pair[1] is None), f"event-channel-tx and -rx are {pair!r}.")
    await back.give(frame(60))
    expect_frames(await scene.hears(1), [frame(60)], "What reaches the guest")


@check("NETIF-FRONTEND-007", Level.must, QUEUES)
async def no_more_queues_than_offered(scene: Scene) -> None:
    """A frontend has at most as many queues as are offered, and each is described; several have directories.

    A backend refuses the whole interface otherwise.
    """
    back = await connected(scene, multi_queue_max_queues=2)
    count = int(await back.told("multi-queue-num-queues") or 1)
    expect(1 <= count <= 2, f"It has {count} queues; 2 are offered.")
    for number in range(count):
        at = f"queue-{number}/" if count > 1 else ""
        await back.number(f"{at}tx-ring-ref")
        await back.number(f"{at}rx-ring-ref")


@check("NETIF-FRONTEND-008", Level.must, BUS)
async def follows_to_closed(scene: Scene) -> None:
    """When the backend closes, the frontend follows to Closed, and all its pages come back.

    The toolstack waits for it to unplug the interface.
    """
    back = await connected(scene)
    await back.say(state=XenbusStateClosing)
    await back.wait_for(XenbusStateClosed)
    back.detach()
    await back.say(state=XenbusStateClosed)
    await scene.is_alive()


@check("NETIF-FRONTEND-009", Level.must, BUS)
async def backend_that_never_connects(scene: Scene) -> None:
    """A backend that closes instead of connecting has the frontend close, and the guest live.

    It is what happens when there is no such bridge.
    """
    back = scene.back
    await back.offer()
    await back.attach()
    await back.say(state=XenbusStateClosing)
    await back.wait_for(XenbusStateClosing, XenbusStateClosed)
    back.detach()
    await back.say(state=XenbusStateClosed)
    await scene.is_alive()


@check("NETIF-FRONTEND-010", Level.must, BUS)
async def closed_at_once(scene: Scene) -> None:
    """A backend that goes from Connected to Closed, without Closing between, is followed, too.

    It is what a backend does whose driver is taken out.
    """
    back = await connected(scene)
    back.detach()
    await back.say(state=XenbusStateClosed)
    await back.wait_for(XenbusStateClosing, XenbusStateClosed)
    await back.wait_for(XenbusStateClosed)
    await scene.is_alive()


@check("NETIF-FRONTEND-011", Level.must, "docs/hostile-peers.md")
async def the_backend_dies(scene: Scene) -> None:
    """When the backend's domain is gone the guest lives on.

    A driver domain may crash; its guests are to lose their network only.
    """
    await connected(scene)
    scene.send_many([frame(60, number) for number in range(10)])
    await scene.back.kernel.sleep(5_000_000)
    scene.depart()


@check("NETIF-FRONTEND-012", Level.must, "docs/hostile-peers.md")
async def nonsense_for_features(scene: Scene) -> None:
    """What a backend offers in words that are no numbers, or numbers that cannot be, does not bring the guest down.

    The backend's nodes are as little to be trusted as a guest's. (It may connect, or close.)
    """
    long = "9" * 200
    await scene.back.offer(
        feature_sg="yes", feature_gso_tcpv4=-1, multi_queue_max_queues=long, feature_split_event_channels="",
        feature_ctrl_ring="0x1", feature_multicast_control=long,
    )  # fmt: skip
    await scene.back.kernel.sleep(20_000_000)
    await scene.is_alive()


@check("NETIF-FRONTEND-013", Level.must, BUS)
async def states_that_there_are_not(scene: Scene) -> None:
    """States that a network backend does not have, or nobody, change nothing and bring nothing down.

    The number is the other domain's.
    """
    back = await listening(scene)
    for state in (XenbusStateReconfiguring, 99, "x", "", XenbusStateConnected):
        await back.say(state=state)
        await back.kernel.sleep(5_000_000)
    await scene.is_alive()
    if await back.state() == XenbusStateConnected:
        await back.give(frame(60))
        expect_frames(await scene.hears(1), [frame(60)], "What reaches the guest afterwards")


@check("NETIF-FRONTEND-014", Level.must, f"{HEADER}, Control ring")
async def a_control_ring_that_nobody_serves(scene: Scene) -> None:
    """A control ring is offered, and never answered: frames go on all the same.

    What is asked there is for speed, or for later.
    """
    back = await listening(scene, feature_ctrl_ring=1)
    taken = back.keep_serving()
    frames = [frame(60, number) for number in range(240)]
    # The first half may be on the ring before anything is asked for.
    for half in (frames[:120], frames[120:]):
        expect_equal(await scene.finish(scene.send_many(half)), 120, "the number of frames that are sent")
        await back.kernel.sleep(10_000_000)
    expect(taken == frames, f"Of 240 frames {len(taken)} come, or others.")
    await back.give(frame(60))
    expect_frames(await scene.hears(1), [frame(60)], "What reaches the guest")


@check("NETIF-FRONTEND-016", Level.should, f"{HEADER}, Link state")
async def no_carrier_no_frames(scene: Scene) -> None:
    """While the backend's node carrier says 0 the frontend sends nothing; what comes afterwards is sent.

    The frames would be lost, as on a card whose cable has been pulled out; a guest that knows it can take another way.
    """
    back = await connected(scene, carrier=1)
    taken = back.keep_serving()
    await scene.finish(scene.send_many([frame(60)]))
    await back.kernel.sleep(10_000_000)
    expect_frames(taken, [frame(60)], "What is sent with carrier")
    await back.say(carrier=0)
    await back.kernel.sleep(10_000_000)
    await scene.transmit(frame(60, 1))
    await back.kernel.sleep(10_000_000)
    expect_frames(taken, [frame(60)], "What is sent with carrier, and then without")
    await back.say(carrier=1)
    await back.kernel.sleep(10_000_000)
    await scene.finish(scene.send_many([frame(60, 2)]))
    await back.kernel.sleep(10_000_000)
    expect_frames(taken[-1:], [frame(60, 2)], "What is sent once there is carrier again")


@check("NETIF-FRONTEND-015", Level.must, BUS)
async def begins_no_second_time(scene: Scene) -> None:
    """While both are Connected the frontend does not write its nodes again, whatever events come.

    The backend has mapped the rings that it was told of.
    """
    back = await connected(scene)
    before = [await back.told(key) for key in ("tx-ring-ref", "rx-ring-ref", "event-channel", "state")]
    for _ in range(10):
        await back.say(state=XenbusStateConnected, feature_sg=1)
        await back.kernel.sleep(1_000_000)
    after = [await back.told(key) for key in ("tx-ring-ref", "rx-ring-ref", "event-channel", "state")]
    expect_equal(after, before, "what the frontend has written, after events without a change,")
