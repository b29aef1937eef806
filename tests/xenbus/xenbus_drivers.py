"""Split drivers that count what they hold, and who maps what.

A "ring" is a number in `fabric.rings` that the frontend owns; the backend enters a mapping of it in `fabric.mappings`.
Whoever frees a ring that somebody maps, or maps one that does not exist, is noted.
"""

import itertools
from typing import Any

from guest_kernel.xenbus.driver import DeviceClosing, XenbusDevice, XenbusDriver


class Fabric:
    """What grants and event channels would be."""

    def __init__(self) -> None:
        self.numbers = itertools.count(100)
        #: ring -> domain that owns it.
        self.rings: dict[int, int] = {}
        #: ring -> domain that maps it.
        self.mappings: dict[int, int] = {}
        #: (domain, device path) that were probed and not removed.
        self.probed: dict[tuple[int, str], None] = {}
        #: Devices that users could do I/O on.
        self.usable: dict[tuple[int, str], None] = {}
        self.dead: list[int] = []
        self.violations: list[str] = []
        self.hooks: list[str] = []

    def kill(self, domid: int) -> None:
        """Xen takes back what a dead domain had; grants of it that others map stay until they unmap."""
        self.dead.append(domid)
        self.mappings = {ring: owner for ring, owner in self.mappings.items() if owner != domid}
        self.bury()
        self.probed = {key: None for key in self.probed if key[0] != domid}
        self.usable = {key: None for key in self.usable if key[0] != domid}

    def bury(self) -> None:
        """Free the pages of dead domains that nobody maps any more."""
        mapped = self.mappings
        self.rings = {ring: owner for ring, owner in self.rings.items() if owner not in self.dead or ring in mapped}


class Counting(XenbusDriver):
    """What both sides do: log, dawdle, fail when told to."""

    type = "vbd"

    def __init__(self, kernel: Any, **options: Any) -> None:
        super().__init__(kernel, **options)
        self.fabric: Fabric = options["fabric"]
        self.rng = options.get("rng")
        #: hook -> how often it is still to fail.
        self.failing: dict[str, int] = {}
        self.where = kernel.domid

    async def dawdle(self, hook: str, device: XenbusDevice) -> None:
        self.fabric.hooks.append(f"{self.side}.{hook}")
        assert device.data is None or device.data["busy"] is None, (device.data["busy"], hook)
        if device.data is not None:
            device.data["busy"] = hook
        for _ in range(self.rng.randrange(4) if self.rng else 0):
            await self.kernel.yield_()
        if device.data is not None:
            device.data["busy"] = None

    def maybe_fail(self, hook: str) -> None:
        if self.failing.get(hook):
            self.failing[hook] -= 1
            raise ValueError(f"{hook} was told to fail")

    async def probe(self, device: XenbusDevice) -> None:
        assert device.data is None
        await self.dawdle("probe", device)
        self.maybe_fail("probe")
        device.data = {"ring": None, "busy": None}
        self.fabric.probed[self.where, device.path] = None

    async def remove(self, device: XenbusDevice) -> None:
        assert device.data["ring"] is None, "remove without close"
        await self.dawdle("remove", device)
        del self.fabric.probed[self.where, device.path]
        device.data = None

    async def disconnect(self, device: XenbusDevice) -> None:
        await self.dawdle("disconnect", device)
        self.fabric.usable.pop((self.where, device.path), None)


class Front(Counting):
    side = "frontend"

    async def publish(self, device: XenbusDevice) -> None:
        assert device.data["ring"] is None, "publish twice"
        await self.dawdle("publish", device)
        ring = next(self.fabric.numbers)
        self.fabric.rings[ring] = self.where
        device.data["ring"] = ring
        self.maybe_fail("publish")
        await device.write({"ring-ref": ring, "event-channel": 7})

    async def connect(self, device: XenbusDevice) -> None:
        await self.dawdle("connect", device)
        nodes = await device.read_otherend_many("sectors", "feature-flush")
        self.maybe_fail("connect")
        if not nodes["sectors"]:
            raise ValueError("no sectors")
        self.fabric.usable[self.where, device.path] = None

    async def refresh(self, device: XenbusDevice) -> None:
        assert (self.where, device.path) in self.fabric.usable
        await self.dawdle("refresh", device)
        device.data["sectors"] = await device.read_otherend("sectors")
        self.maybe_fail("refresh")

    async def close(self, device: XenbusDevice) -> None:
        await self.dawdle("close", device)
        self.fabric.usable.pop((self.where, device.path), None)
        ring, device.data["ring"] = device.data["ring"], None
        if ring is not None:
            if ring in self.fabric.mappings:
                self.fabric.violations.append(f"{device!r} frees ring {ring}, mapped by {self.fabric.mappings[ring]}")
            del self.fabric.rings[ring]


class EagerFront(Front):
    eager = True
    type = "vif"


class Back(Counting):
    side = "backend"

    async def publish(self, device: XenbusDevice) -> None:
        assert device.data["ring"] is None, "publish while mapped"
        await self.dawdle("publish", device)
        self.maybe_fail("publish")
        await device.write({"feature-flush": True})

    async def connect(self, device: XenbusDevice) -> None:
        await self.dawdle("connect", device)
        if self.options.get("wait"):
            try:
                await device.wait_for("physical-device")
            except DeviceClosing:
                self.fabric.hooks.append("backend.interrupted")
                raise
        nodes = await device.read_otherend_many("ring-ref", "event-channel")
        ring = int(nodes["ring-ref"] or "0")
        if ring not in self.fabric.rings:
            raise ValueError(f"no ring {ring}")
        if ring in self.fabric.mappings:
            self.fabric.violations.append(f"ring {ring} mapped twice")
        self.fabric.mappings[ring] = self.where
        device.data["ring"] = ring
        self.maybe_fail("connect")
        await device.write({"sectors": 8, "sector-size": 512})
        self.fabric.usable[self.where, device.path] = None

    async def reconfigure(self, device: XenbusDevice) -> None:
        assert device.data["ring"] in self.fabric.mappings, "it reconfigures and is not connected"
        await self.dawdle("reconfigure", device)
        self.maybe_fail("reconfigure")

    async def close(self, device: XenbusDevice) -> None:
        await self.dawdle("close", device)
        self.fabric.usable.pop((self.where, device.path), None)
        ring, device.data["ring"] = device.data["ring"], None
        if ring is not None:
            del self.fabric.mappings[ring]
            self.fabric.bury()


class VifBack(Back):
    type = "vif"
