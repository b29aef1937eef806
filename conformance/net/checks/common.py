"""What the checks have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conformance.kit.bus_end import LOOK_NS, PATIENCE_NS
from conformance.kit.check import Failure, Skip, expect
from conformance.net.frames import MACS, frame
from conformance.net.front import Front
from conformance.net.world import Scene
from hypervisor.abi.io.xenbus import XenbusStateClosed, XenbusStateClosing, XenbusStateConnected

HEADER: Final = "io/netif.h"
TX: Final = f"{HEADER}, Guest transmit"
RX: Final = f"{HEADER}, Guest receive"
EXTRA: Final = f"{HEADER}, Extra Info"
RING: Final = "io/ring.h"
BUS: Final = "io/xenbus.h"
SCATTER: Final = {"feature-sg": 1}
Nodes = Mapping[str, object]


async def both(
    scene: Scene, changes: Nodes | None = None, peer: Nodes | None = None, **made: Any
) -> tuple[Front, Front]:
    """Return both interfaces, connected; `changes` and `peer` are nodes of either, `made` what the first has."""
    await scene.front.connect(changes, **made)
    await scene.peer.connect(SCATTER if peer is None else peer)
    return scene.front, scene.peer


async def needs(front: Front, key: str, value: str = "1") -> None:
    """Raise Skip unless the backend offers something."""
    if not front.far:
        await front.find()
    if await front.told(key) != value:
        raise Skip(f"It does not offer {key}.")


async def carries(sender: Front, receiver: Front, mark: int = 99) -> None:
    """Raise Failure unless a plain frame gets through."""
    data = frame(60, mark)
    await sender.queue.send(data)
    for _ in range(40):
        if (await receiver.queue.receive_one()).data == data:
            return
    raise Failure("A plain frame does not get through afterwards.")


async def refused(front: Front, count: int, what: str) -> bool:
    """Raise Failure unless requests are answered with errors, or the device closes; whether it is still connected."""
    found = []
    for _ in range(PATIENCE_NS // LOOK_NS):
        if await front.state() in (XenbusStateClosing, XenbusStateClosed):
            return False
        found += front.queue.take_tx()
        if len(found) >= count:
            expect(
                all(status for _, status in found),
                f"{what} is answered with {found} (id, status); none should be NETIF_RSP_OKAY.",
            )
            return True
        await front.kernel.sleep(LOOK_NS)
    raise Failure(f"{what} is not answered, and the device stays connected.")


async def lives_on(scene: Scene) -> None:
    """Raise Failure unless the other interface is as it was, and this one too if it is still connected."""
    front, peer = scene.front, scene.peer
    if await front.state() == XenbusStateConnected:
        front.queue.restock()
        await carries(front, peer)
    expect(await peer.state() == XenbusStateConnected, "The other interface, which has done nothing, is not connected.")
    await peer.queue.send(frame(60, source=MACS[1]))
