"""The xenbus side of the network frontend: how an interface appears, connects and goes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from frontends.net.device import FrontDevice
from frontends.net.pages import Granted, end_grants
from guest_kernel.net.addresses import mac_from_text
from guest_kernel.net.device import parse_mtu
from guest_kernel.net.gso import GSO_FEATURES, GSO_PREFIX_FEATURES
from guest_kernel.xenbus.driver import Side, XenbusDevice, XenbusDriver, says_yes
from guest_kernel.xenbus.reread import Reread

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel


CARRIER = "carrier"
QUEUES_PARAMETER = "xen_netfront.max_queues="
PREFIX_PARAMETER = "xen_netfront.gso_prefix="
MOST_QUEUES = 16
"""What a guest asks for beyond that it does not get: each queue has a hundred pages of its own."""


class NetFront(XenbusDriver):
    """Driver of virtual interfaces: vif number n becomes `ethN`.

    Option `max_queues` (default: 1): pairs of rings that an interface has, if the backend offers as many; the command
    line can say that too: `xen_netfront.max_queues=N`. Option `gso_prefix` (`xen_netfront.gso_prefix=1`): take large
    packets in the old form, behind a slot with the length of a segment.
    """

    type: ClassVar[str] = "vif"
    side: ClassVar[Side] = "frontend"
    eager: ClassVar[bool] = True

    def __init__(self, kernel: Kernel, **options: Any) -> None:
        super().__init__(kernel, **options)
        self._withheld: list[Granted] = []

    async def probe(self, device: XenbusDevice) -> None:
        """Look at what the backend may change while it is connected."""
        look = Reread(self.kernel, f"{device.path} {CARRIER}", partial(self._look_at_link, device))
        await device.watch_otherend(CARRIER, look.changed)

    async def _look_at_link(self, device: XenbusDevice) -> None:
        front: FrontDevice | None = device.data
        if front is None:
            return
        # Without the node (netif.h, "Link state") the link is up.
        is_up = await device.read_otherend(CARRIER) != "0"
        if device.data is front:
            front.set_carrier(is_up)

    async def publish(self, device: XenbusDevice) -> None:
        """Make rings, buffers and event channel and say where they are; the backend connects to them."""
        self._retry_withheld()
        mac = mac_from_text(await device.read("mac") or "")
        mtu = parse_mtu(await device.read("mtu"))
        offers = await device.read_otherend_many(
            "feature-ctrl-ring",
            "feature-sg",
            "feature-split-event-channels",
            "feature-multicast-control",
            "feature-dynamic-multicast-control",
            "feature-ipv6-csum-offload",
            "multi-queue-max-queues",
            CARRIER,
            *GSO_FEATURES,
        )
        front = device.data = FrontDevice(self.kernel, f"eth{device.id}", mac, device.otherend_id)
        front.multicast_control = says_yes(offers["feature-multicast-control"]) and says_yes(
            offers["feature-dynamic-multicast-control"]
        )
        front.request_multicast = lambda wanted: device.write({"request-multicast-control": wanted})
        front.mtu = mtu or front.mtu
        front.set_carrier(offers[CARRIER] != "0")
        front.scatter = says_yes(offers["feature-sg"])
        front.ipv6_checksum_offload = says_yes(offers["feature-ipv6-csum-offload"])
        front.gso_types = frozenset(kind for key, kind in GSO_FEATURES.items() if says_yes(offers[key]))
        front.on_broken = lambda why: self._broken(device, why)
        split, control = says_yes(offers["feature-split-event-channels"]), says_yes(offers["feature-ctrl-ring"])
        front.gso_prefix = self._number("gso_prefix", PREFIX_PARAMETER) == 1
        front.open(control=control, split=split, queues=self._queues(offers["multi-queue-max-queues"]))
        nodes: dict[str, object] = {
            "request-rx-copy": True,
            "feature-rx-notify": True,
            "feature-sg": True,
            "feature-ipv6-csum-offload": True,
            **dict.fromkeys(GSO_PREFIX_FEATURES if front.gso_prefix else GSO_FEATURES, True),
        }
        if len(front.queues) > 1:
            nodes["multi-queue-num-queues"] = len(front.queues)
        for number, queue in enumerate(front.queues):
            at = f"queue-{number}/" if len(front.queues) > 1 else ""
            nodes |= {f"{at}tx-ring-ref": queue.tx.ring_ref, f"{at}rx-ring-ref": queue.rx.ring_ref}
            if split:
                nodes |= {f"{at}event-channel-tx": queue.tx.port, f"{at}event-channel-rx": queue.rx.port}
            else:
                nodes[f"{at}event-channel"] = queue.tx.port
        if front.control is not None:
            nodes |= {"ctrl-ring-ref": front.control.ring_ref, "event-channel-ctrl": front.control.port}
        await device.write(nodes)

    def _queues(self, offered: str | None) -> int:
        """Return how many queues both ends want: one, unless the driver's option or the command line asks for more."""
        if offered is None or not (offered.isascii() and offered.isdecimal() and len(offered) < 6):
            return 1
        return max(1, min(self._number("max_queues", QUEUES_PARAMETER) or 1, int(offered), MOST_QUEUES))

    def _number(self, option: str, parameter: str) -> int | None:
        """Return what the driver's option says, or else the first word of the command line that is this parameter."""
        wanted: int | None = self.options.get(option)
        for word in self.kernel.cmdline.split():
            value = word.removeprefix(parameter)
            if wanted is None and value != word and value.isascii() and value.isdecimal() and len(value) < 6:
                wanted = int(value)
        return wanted

    async def connect(self, device: XenbusDevice) -> None:
        """The backend is connected: offer the interface to the guest."""
        front: FrontDevice = device.data
        if not says_yes(await device.read_otherend("feature-rx-copy")):
            raise ValueError("the backend cannot copy into our buffers (feature-rx-copy), and flipping is not built")
        front.connect()
        self.kernel.net.attach(front)
        # It may have changed while we connected.
        await self._look_at_link(device)

    async def disconnect(self, device: XenbusDevice) -> None:
        """Send nothing more."""
        front: FrontDevice | None = device.data
        if front is not None:
            front.disconnect()

    async def close(self, device: XenbusDevice) -> None:
        """Take the interface away and give everything back."""
        front: FrontDevice | None = device.data
        if front is not None:
            device.data = None
            self.kernel.net.detach(front)
            self._withheld += front.close()
            self._retry_withheld()

    def _retry_withheld(self) -> None:
        """Free the pages whose grants a backend has let go of since we asked last."""
        self._withheld = end_grants(self.kernel, self._withheld)

    def _broken(self, device: XenbusDevice, why: str) -> None:
        self.kernel.spawn(device.fatal(why), f"{device.path} broken")
