"""What the checks have in common."""

from __future__ import annotations

from typing import Any, Final

from conformance.net_front.back import Back
from conformance.net_front.world import Scene

HEADER: Final = "io/netif.h"
TX: Final = f"{HEADER}, Guest transmit"
RX: Final = f"{HEADER}, Guest receive"
EXTRA: Final = f"{HEADER}, Extra Info"
RING: Final = "io/ring.h"
BUS: Final = "io/xenbus.h, enum xenbus_state"
HARDENED: Final = "docs/hostile-peers.md; Linux, xen-netfront (hardening of 5.16)"


async def connected(scene: Scene, **nodes: Any) -> Back:
    """Return the backend, connected; `nodes` are what it offers."""
    await scene.back.connect(**nodes)
    return scene.back


async def listening(scene: Scene, **nodes: Any) -> Back:
    """Return the same; the guest notes down what it receives."""
    back = await connected(scene, **nodes)
    await scene.listen()
    return back
