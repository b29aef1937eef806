"""The xenbus side of the network backend, and the worker that serves all vifs."""

from __future__ import annotations

import errno
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from backends.net import headroom
from backends.net.bridge import Bridge, NicPort
from backends.net.control import ControlRing
from backends.net.copies import CopyBatch
from backends.net.credit import parse_rate
from backends.net.frame import FramePool
from backends.net.guest_port import GuestPort
from backends.net.queue import Queue
from backends.net.slots import HostileFrontend
from backends.net.vif import Vif
from backends.net.vlan import parse_bridge
from guest_kernel.net.device import Counters, parse_mtu
from guest_kernel.net.gso import GSO_FEATURES, GSO_PREFIX_FEATURES
from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus.client import XenstoreError
from guest_kernel.xenbus.driver import Side, XenbusDevice, XenbusDriver, frontend_number, says_yes
from guest_kernel.xenbus.reread import Reread
from hypervisor.abi.tracepoints import RING_CONNECT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backends.net.bridge import Watch
    from guest_kernel.grants import MappedGrant
    from guest_kernel.kernel import Kernel


MULTICAST = "request-multicast-control"
UNPLUGGED = "disconnect"
"""While this node of the backend's is 1, the vif is not plugged into its bridge; `carrier` tells the frontend so."""
MAX_QUEUES = 4
"""Pairs of rings that one vif may have."""
QUEUE_NODES = ("tx-ring-ref", "rx-ring-ref", "event-channel", "event-channel-tx", "event-channel-rx")
"""What a frontend says of each queue; of the only one in its own directory, of several in `queue-N`."""
FRONTEND_NODES = (
    *QUEUE_NODES,
    "multi-queue-num-queues",
    "request-rx-copy",
    MULTICAST,
    headroom.KEY,
    "ctrl-ring-ref",
    "event-channel-ctrl",
    "feature-sg",
    "feature-no-csum-offload",
    "feature-ipv6-csum-offload",
    *GSO_FEATURES,
    *GSO_PREFIX_FEATURES,
)


def queue_directories(nodes: Mapping[str, str | None]) -> list[str]:
    """Return where a frontend's queues are described, below its own directory. Raises ValueError."""
    if nodes["multi-queue-num-queues"] is None:
        return [""]
    count = frontend_number(nodes, "multi-queue-num-queues")
    if not 1 <= count <= MAX_QUEUES:
        raise ValueError(f"the frontend wants {count} queues, and there are 1 to {MAX_QUEUES}")
    return [""] if count == 1 else [f"queue-{number}/" for number in range(count)]


class _Connection:
    """What belongs to one device: its vif, the grants that its rings are mapped by, its control ring."""

    def __init__(self, vif: Vif, grants: list[MappedGrant]) -> None:
        self.vif = vif
        self.grants = grants
        self.control: ControlRing | None = None
        self.rate: str | None = None
        """The `rate` node as it was read last."""
        self.bridge: Bridge | None = None
        """Where the vif is plugged in, or is to be once its link is up; None while nobody may send to it."""
        self.rereads: dict[str, Reread] = {}
        """By the node's name."""


class NetBack(XenbusDriver):
    """Driver of the backend half.

    Options: `bridges`, names of the bridges to make (default `xenbr0`); `nics`, bridge name → unit of the network card
    that it is connected to; `watches`, bridge name → what is told of every frame at every port of the bridge.
    """

    type: ClassVar[str] = "vif"
    side: ClassVar[Side] = "backend"
    reconfigures: ClassVar[bool] = True

    def __init__(self, kernel: Kernel, **options: Any) -> None:
        super().__init__(kernel, **options)
        names: Iterable[str] = options.get("bridges", ("xenbr0",))
        nics: Mapping[str, int] = options.get("nics", {})
        self.pool = FramePool(kernel.mm)
        self.bridges = {name: Bridge(name, kernel.monotonic_ns) for name in names}
        for name, unit in nics.items():
            self.bridges[name].add(NicPort(kernel.hw.nic(unit), self.pool))
        watches: Mapping[str, Watch] = options.get("watches", {})
        for name, watch in watches.items():
            self.bridges[name].watch = watch
        self.counters: dict[tuple[int, str], Counters] = {}
        """Traffic of each vif, by (frontend's domain, device id): kept when the vif is gone."""
        self._served: dict[int, list[Counters]] = {}
        self._copies = CopyBatch(kernel)
        self._ready: deque[Queue] = deque()
        self._waiting: deque[Queue] = deque()
        self._controls: deque[ControlRing] = deque()
        self._work = WaitQueue()
        self._devices: dict[GuestPort, XenbusDevice] = {}
        kernel.spawn(self._worker(), "netback")

    # -- xenbus ---------------------------------------------------------------------------------------------------

    async def probe(self, device: XenbusDevice) -> None:
        """Look at what the frontend, or the toolstack, may change while it is connected."""
        for key in (MULTICAST, headroom.KEY):
            await device.watch_otherend(key, partial(self._changed, device, key))
        for key in ("rate", UNPLUGGED):
            await device.watch(key, partial(self._changed, device, key))

    async def publish(self, device: XenbusDevice) -> None:
        """Say what this backend can do."""
        await device.write(
            {
                "feature-sg": True,
                "feature-rx-copy": True,
                "feature-rx-flip": False,
                "feature-ctrl-ring": True,
                "multi-queue-max-queues": MAX_QUEUES,
                "feature-split-event-channels": True,
                "feature-multicast-control": True,
                "feature-dynamic-multicast-control": True,
                "feature-ipv6-csum-offload": True,
                headroom.FEATURE: True,
                **dict.fromkeys(GSO_FEATURES, True),
                "carrier": await device.read(UNPLUGGED) != "1",
            }
        )

    async def connect(self, device: XenbusDevice) -> None:
        """Map the rings, bind the event channel, plug the vif into its bridge."""
        name, membership = parse_bridge(await device.read("bridge") or "xenbr0")
        is_mirror = await device.read("mirror") == "1"
        rate = await device.read("rate")
        credit = parse_rate(rate, self.kernel.monotonic_ns())
        mtu = parse_mtu(await device.read("mtu"))
        bridge = self.bridges.get(name)
        if bridge is None:
            raise ValueError(f"there is no bridge {name!r}")
        nodes = await device.read_otherend_many(*FRONTEND_NODES)
        if not says_yes(nodes["request-rx-copy"]):
            raise ValueError("the frontend wants pages flipped, and only copying (request-rx-copy) is built")
        directories = queue_directories(nodes)
        if len(directories) > 1:
            more = [directory + key for directory in directories for key in QUEUE_NODES]
            nodes |= await device.read_otherend_many(*more)
        refs = [frontend_number(nodes, at + key) for at in directories for key in ("tx-ring-ref", "rx-ring-ref")]
        grants = self.kernel.grants.map_refs(device.otherend_id, refs)
        if any(grant.status for grant in grants):
            self.kernel.grants.unmap([grant for grant in grants if not grant.status])
            raise ValueError(f"the frontend's rings (grants {refs}) cannot be mapped")
        label = f"vif{device.otherend_id}.{device.id}"
        pairs = [(tx.view, rx.view) for tx, rx in zip(grants[::2], grants[1::2], strict=True)]
        vif = Vif(self.kernel, label, device.otherend_id, pairs, self.pool, self._copies)
        connection = device.data = _Connection(vif, grants)
        connection.rate = rate
        connection.rereads = {
            key: Reread(self.kernel, f"{device.path} {key}", partial(look, device, connection))
            for key, look in (
                (MULTICAST, self._look_at_multicast),
                (headroom.KEY, self._look_at_headroom),
                ("rate", self._look_at_rate),
                (UNPLUGGED, self._look_at_link),
            )
        }
        key = (device.otherend_id, device.id)
        if key not in self.counters:
            self.counters[key] = vif.counters
            self._served.setdefault(device.otherend_id, []).append(vif.counters)
        vif.counters = self.counters[key]
        vif.touched, vif.recheck = self._touched, self._event
        vif.credit, vif.mtu = credit, mtu
        vif.multicast.active = says_yes(nodes[MULTICAST])
        vif.headroom = headroom.parse_headroom(nodes[headroom.KEY])
        vif.scatter = says_yes(nodes["feature-sg"])
        vif.takes_blank = not says_yes(nodes["feature-no-csum-offload"])
        vif.takes_blank_ipv6 = says_yes(nodes["feature-ipv6-csum-offload"])
        vif.gso_types = frozenset(kind for key, kind in GSO_FEATURES.items() if says_yes(nodes[key]))
        vif.gso_prefixed = frozenset(kind for key, kind in GSO_PREFIX_FEATURES.items() if says_yes(nodes[key]))
        vif.membership, vif.is_mirror = membership, is_mirror
        # Nobody may send to a vif that cannot tell its guest.
        for number, (queue, directory) in enumerate(zip(vif.queues, directories, strict=True)):
            self._bind(device, queue, nodes, directory)
            self._tell_ring(queue.name, "tx", device.otherend_id, refs[2 * number])
            self._tell_ring(queue.name, "rx", device.otherend_id, refs[2 * number + 1])
        self._devices[vif] = device
        if await device.read(UNPLUGGED) != "1":
            bridge.add(vif)
        connection.bridge = bridge
        # They may have changed while they were read.
        for reread in connection.rereads.values():
            reread.changed()
        if nodes["ctrl-ring-ref"] is not None:
            self._connect_control(device, nodes)

    def _tell_ring(self, label: str, name: str, domid: int, ref: int) -> None:
        trace = self.kernel.cpu.trace
        if trace is not None:
            trace(RING_CONNECT, label, name, f"netif_{name}", domid, (ref,))

    def _changed(self, device: XenbusDevice, key: str) -> None:
        """Have a node read again that may change while the device is connected."""
        connection: _Connection | None = device.data
        if connection is not None:
            connection.rereads[key].changed()

    async def reconfigure(self, device: XenbusDevice) -> None:
        """Read how much room the frontend wants now. Linux's writes that after Reconfiguring: see the watch."""
        connection: _Connection | None = device.data
        if connection is not None:
            await self._look_at_headroom(device, connection)

    async def _look_at_headroom(self, device: XenbusDevice, connection: _Connection) -> None:
        connection.vif.headroom = headroom.parse_headroom(await self._wish(device, headroom.KEY))

    async def _look_at_multicast(self, device: XenbusDevice, connection: _Connection) -> None:
        connection.vif.multicast.active = says_yes(await self._wish(device, MULTICAST))

    async def _wish(self, device: XenbusDevice, key: str) -> str | None:
        """Return a node of the frontend's, or None; it may have taken its directory away from us."""
        try:
            return await device.read_otherend(key)
        except XenstoreError:
            return None

    async def _look_at_rate(self, device: XenbusDevice, connection: _Connection) -> None:
        text = await device.read("rate")
        if text == connection.rate or device.data is not connection:
            return
        connection.rate = text
        try:
            credit = parse_rate(text, self.kernel.monotonic_ns())
        except ValueError as error:
            # Whoever wrote it is told, and the limit that there was goes on.
            await device.error(str(error), errno.EINVAL)
            return
        connection.vif.limit(credit)

    async def _look_at_link(self, device: XenbusDevice, connection: _Connection) -> None:
        """Plug the vif in or out as the node says, and tell the frontend (netif.h, "Link state")."""
        is_up = await device.read(UNPLUGGED) != "1"
        bridge, vif = connection.bridge, connection.vif
        if bridge is None or is_up == (vif.bridge is not None):
            return
        if is_up:
            bridge.add(vif)
        else:
            bridge.remove(vif)
        await device.write(carrier=is_up)

    def _bind(self, device: XenbusDevice, queue: Queue, nodes: dict[str, str | None], directory: str) -> None:
        """Bind one event channel for each ring if the frontend names both, else the one of both. Raises ValueError."""

        def bind(key: str) -> int:
            number = frontend_number(nodes, directory + key)
            return self.kernel.events.bind_interdomain(device.otherend_id, number, lambda: self._event(queue))

        split = [nodes[directory + key] is not None for key in ("event-channel-tx", "event-channel-rx")]
        # One of a pair is what an earlier driver in the same domain has left behind, as long as there is that of both.
        if all(split) or (any(split) and nodes[directory + "event-channel"] is None):
            queue.port = bind("event-channel-tx")
            queue.rx_port = bind("event-channel-rx")
        else:
            queue.port = queue.rx_port = bind("event-channel")

    def _connect_control(self, device: XenbusDevice, nodes: dict[str, str | None]) -> None:
        """Map the control ring and bind its event channel. Raises ValueError."""
        connection: _Connection = device.data
        ref, port = frontend_number(nodes, "ctrl-ring-ref"), frontend_number(nodes, "event-channel-ctrl")
        (grant,) = self.kernel.grants.map_refs(device.otherend_id, [ref])
        if grant.status:
            raise ValueError(f"the frontend's control ring (grant {ref}) cannot be mapped")
        self._tell_ring(connection.vif.name, "ctrl", device.otherend_id, ref)
        control = connection.control = ControlRing(self.kernel, device.otherend_id, grant, connection.vif.hashing)
        connection.vif.mapped, connection.vif.writable = control.mapped, control.writable
        connection.vif.readable_span, connection.vif.writable_span = control.readable_span, control.writable_span
        control.changed = connection.vif.arrange
        control.ready = self._control_event
        control.port = self.kernel.events.bind_interdomain(device.otherend_id, port, control.interrupt)

    async def close(self, device: XenbusDevice) -> None:
        """Unplug the vif and unmap its rings."""
        connection: _Connection | None = device.data
        if connection is None:
            return
        device.data = None
        vif, connection.bridge = connection.vif, None
        self._devices.pop(vif, None)
        if vif.bridge is not None:
            vif.bridge.remove(vif)
        for queue in vif.queues:
            for port in {queue.port: None, queue.rx_port: None}:
                if port:
                    self.kernel.events.unbind(port)
        vif.close()
        if connection.control is not None:
            connection.control.close()
        for grant in connection.grants:
            grant.view.release()
        self.kernel.grants.unmap(connection.grants)

    def traffic_of(self, domid: int) -> Sequence[Counters]:
        """Return the traffic of all vifs that a frontend domain has and has had."""
        return self._served.get(domid, ())

    def interfaces_of(self, domid: int) -> list[tuple[int, Counters]]:
        """Return the same, with the number of each vif in the domain."""
        return [(int(devid), counters) for (frontend, devid), counters in self.counters.items() if frontend == domid]

    def vifs_of(self, domid: int) -> int:
        """Return how many vifs a frontend domain has now."""
        return sum(device.otherend_id == domid for device in self._devices.values())

    # -- the worker -----------------------------------------------------------------------------------------------

    def _event(self, queue: Queue) -> None:
        if not queue.queued:
            queue.queued = True
            self._ready.append(queue)
            self._work.wake()

    def _touched(self, queue: Queue) -> None:
        self._waiting.append(queue)
        self._work.wake()

    def _control_event(self, control: ControlRing) -> None:
        self._controls.append(control)
        self._work.wake()

    async def _worker(self) -> None:
        """Serve the queues that have something to do: a ring each, then the frames that this brought to others."""
        while True:
            while self._ready or self._waiting or self._controls:
                if self._ready:
                    queue = self._ready.popleft()
                    queue.queued = False
                    self._serve(queue, tx=True)
                while self._waiting:
                    self._serve(self._waiting.popleft(), tx=False)
                if self._controls:
                    self._serve_control(self._controls.popleft())
                # Guests that never stop sending must not keep the others, or the rest of this domain, waiting.
                await self.kernel.yield_()
            await self._work.wait()

    def _serve(self, queue: Queue, *, tx: bool) -> None:
        vif = queue.vif
        device = self._devices.get(vif)
        if device is None:
            return
        try:
            if tx:
                queue.poll_tx()
            queue.flush_rx()
        except HostileFrontend as reason:
            # The rings are not looked at again: the device closes, once.
            del self._devices[vif]
            device.data.bridge = None
            if vif.bridge is not None:
                vif.bridge.remove(vif)
            self.kernel.spawn(device.fatal(str(reason)), f"{vif.name} is hostile")

    def _serve_control(self, control: ControlRing) -> None:
        if control.serve_one():
            self._controls.append(control)
        else:
            control.queued = False
