"""The xenbus side of the network backend, and the worker that serves all vifs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from backends.net.bridge import Bridge, NicPort
from backends.net.control import ControlRing
from backends.net.copies import CopyBatch
from backends.net.credit import parse_rate
from backends.net.frame import FramePool
from backends.net.slots import HostileFrontend
from backends.net.vif import Vif
from backends.net.vlan import parse_bridge
from guest_kernel.net.device import Counters, parse_mtu
from guest_kernel.net.gso import GSO_FEATURES
from guest_kernel.threads import WaitQueue
from guest_kernel.xenbus.client import XenstoreError
from guest_kernel.xenbus.driver import Side, XenbusDevice, XenbusDriver, frontend_number
from hypervisor.abi.tracepoints import RING_CONNECT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backends.net.bridge import Watch
    from guest_kernel.grants import MappedGrant
    from guest_kernel.kernel import Kernel


class _Connection:
    """What belongs to one device: its vif, the grants that its rings are mapped by, its control ring."""

    def __init__(self, vif: Vif, grants: list[MappedGrant]) -> None:
        self.vif = vif
        self.grants = grants
        self.control: ControlRing | None = None
        self.has_changed = self.is_looking = False
        """The frontend's wish for multicast has changed; a thread reads it."""


class NetBack(XenbusDriver):
    """Driver of the backend half.

    Options: `bridges`, names of the bridges to make (default `xenbr0`); `nics`, bridge name → unit of the network card
    that it is connected to; `watches`, bridge name → what is told of every frame at every port of the bridge.
    """

    type: ClassVar[str] = "vif"
    side: ClassVar[Side] = "backend"

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
        self._ready: deque[Vif] = deque()
        self._waiting: deque[Vif] = deque()
        self._controls: deque[ControlRing] = deque()
        self._work = WaitQueue()
        self._devices: dict[Vif, XenbusDevice] = {}
        kernel.spawn(self._worker(), "netback")

    # -- xenbus ---------------------------------------------------------------------------------------------------

    async def probe(self, device: XenbusDevice) -> None:
        """Look at what the frontend may change while it is connected."""
        await device.watch_otherend("request-multicast-control", lambda: self._multicast_changed(device))

    async def publish(self, device: XenbusDevice) -> None:
        """Say what this backend can do."""
        await device.write(
            {
                "feature-sg": True,
                "feature-rx-copy": True,
                "feature-rx-flip": False,
                "feature-ctrl-ring": True,
                "feature-split-event-channels": True,
                "feature-multicast-control": True,
                "feature-dynamic-multicast-control": True,
                "feature-ipv6-csum-offload": True,
                **dict.fromkeys(GSO_FEATURES, True),
            }
        )

    async def connect(self, device: XenbusDevice) -> None:
        """Map the rings, bind the event channel, plug the vif into its bridge."""
        name, membership = parse_bridge(await device.read("bridge") or "xenbr0")
        is_mirror = await device.read("mirror") == "1"
        credit = parse_rate(await device.read("rate"), self.kernel.monotonic_ns())
        mtu = parse_mtu(await device.read("mtu"))
        bridge = self.bridges.get(name)
        if bridge is None:
            raise ValueError(f"there is no bridge {name!r}")
        nodes = await device.read_otherend_many(
            "tx-ring-ref",
            "rx-ring-ref",
            "event-channel",
            "event-channel-tx",
            "event-channel-rx",
            "request-rx-copy",
            "request-multicast-control",
            "ctrl-ring-ref",
            "event-channel-ctrl",
            "feature-sg",
            "feature-no-csum-offload",
            "feature-ipv6-csum-offload",
            *GSO_FEATURES,
        )
        if nodes["request-rx-copy"] != "1":
            raise ValueError("the frontend wants pages flipped, and only copying (request-rx-copy) is built")
        refs = [frontend_number(nodes, "tx-ring-ref"), frontend_number(nodes, "rx-ring-ref")]
        grants = self.kernel.grants.map_refs(device.otherend_id, refs)
        if any(grant.status for grant in grants):
            self.kernel.grants.unmap([grant for grant in grants if not grant.status])
            raise ValueError(f"the frontend's rings (grants {refs}) cannot be mapped")
        label = f"vif{device.otherend_id}.{device.id}"
        self._tell_ring(label, "tx", device.otherend_id, refs[0])
        self._tell_ring(label, "rx", device.otherend_id, refs[1])
        vif = Vif(self.kernel, label, device.otherend_id, grants[0].view, grants[1].view, self.pool, self._copies)
        device.data = _Connection(vif, grants)
        key = (device.otherend_id, device.id)
        if key not in self.counters:
            self.counters[key] = vif.counters
            self._served.setdefault(device.otherend_id, []).append(vif.counters)
        vif.counters = self.counters[key]
        vif.touched, vif.recheck = self._touched, self._event
        vif.credit, vif.mtu = credit, mtu
        vif.multicast.active = nodes["request-multicast-control"] == "1"
        vif.scatter = nodes["feature-sg"] == "1"
        vif.takes_blank = nodes["feature-no-csum-offload"] != "1"
        vif.takes_blank_ipv6 = nodes["feature-ipv6-csum-offload"] == "1"
        vif.gso_types = frozenset(kind for key, kind in GSO_FEATURES.items() if nodes[key] == "1")
        vif.membership, vif.is_mirror = membership, is_mirror
        # Nobody may send to a vif that cannot tell its guest.
        self._bind(device, vif, nodes)
        self._devices[vif] = device
        bridge.add(vif)
        # It may have changed while it was read.
        self._multicast_changed(device)
        if nodes["ctrl-ring-ref"] is not None:
            self._connect_control(device, nodes)

    def _tell_ring(self, label: str, name: str, domid: int, ref: int) -> None:
        trace = self.kernel.cpu.trace
        if trace is not None:
            trace(RING_CONNECT, label, name, f"netif_{name}", domid, (ref,))

    def _multicast_changed(self, device: XenbusDevice) -> None:
        """Have the node read again (feature-dynamic-multicast-control): by one thread, however often it changes."""
        connection: _Connection | None = device.data
        if connection is None:
            return
        connection.has_changed = True
        if not connection.is_looking:
            connection.is_looking = True
            self.kernel.spawn(self._look_at_multicast(device, connection), f"{device.path} multicast")

    async def _look_at_multicast(self, device: XenbusDevice, connection: _Connection) -> None:
        while connection.has_changed:
            connection.has_changed = False
            try:
                wanted = await device.read_otherend("request-multicast-control")
            except XenstoreError:
                # The frontend has taken its directory away from us: it gets what it gets without a wish.
                wanted = None
            connection.vif.multicast.active = wanted == "1"
        connection.is_looking = False

    def _bind(self, device: XenbusDevice, vif: Vif, nodes: dict[str, str | None]) -> None:
        """Bind the event channel of both rings, or one of each if the frontend has split them. Raises ValueError."""

        def bind(key: str) -> int:
            number = frontend_number(nodes, key)
            return self.kernel.events.bind_interdomain(device.otherend_id, number, lambda: self._event(vif))

        if nodes["event-channel-tx"] is not None or nodes["event-channel-rx"] is not None:
            vif.port = bind("event-channel-tx")
            vif.rx_port = bind("event-channel-rx")
        else:
            vif.port = vif.rx_port = bind("event-channel")

    def _connect_control(self, device: XenbusDevice, nodes: dict[str, str | None]) -> None:
        """Map the control ring and bind its event channel. Raises ValueError."""
        connection: _Connection = device.data
        ref, port = frontend_number(nodes, "ctrl-ring-ref"), frontend_number(nodes, "event-channel-ctrl")
        (grant,) = self.kernel.grants.map_refs(device.otherend_id, [ref])
        if grant.status:
            raise ValueError(f"the frontend's control ring (grant {ref}) cannot be mapped")
        self._tell_ring(connection.vif.name, "ctrl", device.otherend_id, ref)
        control = connection.control = ControlRing(self.kernel, device.otherend_id, grant)
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
        vif = connection.vif
        self._devices.pop(vif, None)
        if vif.bridge is not None:
            vif.bridge.remove(vif)
        for port in {vif.port: None, vif.rx_port: None}:
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

    def vifs_of(self, domid: int) -> int:
        """Return how many vifs a frontend domain has now."""
        return sum(device.otherend_id == domid for device in self._devices.values())

    # -- the worker -----------------------------------------------------------------------------------------------

    def _event(self, vif: Vif) -> None:
        if not vif.queued:
            vif.queued = True
            self._ready.append(vif)
            self._work.wake()

    def _touched(self, vif: Vif) -> None:
        self._waiting.append(vif)
        self._work.wake()

    def _control_event(self, control: ControlRing) -> None:
        self._controls.append(control)
        self._work.wake()

    async def _worker(self) -> None:
        """Serve the vifs that have something to do: a whole ring each, then the frames that this brought to others."""
        while True:
            while self._ready or self._waiting or self._controls:
                if self._ready:
                    vif = self._ready.popleft()
                    vif.queued = False
                    self._serve(vif, tx=True)
                while self._waiting:
                    self._serve(self._waiting.popleft(), tx=False)
                if self._controls:
                    self._serve_control(self._controls.popleft())
                # Guests that never stop sending must not keep the others, or the rest of this domain, waiting.
                await self.kernel.yield_()
            await self._work.wait()

    def _serve(self, vif: Vif, *, tx: bool) -> None:
        device = self._devices.get(vif)
        if device is None:
            return
        try:
            if tx:
                vif.poll_tx()
            vif.flush_rx()
        except HostileFrontend as reason:
            # The rings are not looked at again: the device closes, once.
            del self._devices[vif]
            if vif.bridge is not None:
                vif.bridge.remove(vif)
            self.kernel.spawn(device.fatal(str(reason)), f"{vif.name} is hostile")

    def _serve_control(self, control: ControlRing) -> None:
        if control.serve_one():
            self._controls.append(control)
        else:
            control.queued = False
