"""The bus: finds devices in xenstore, gives them to drivers, takes them away again.

    device/TYPE/ID                      this domain's frontends (under its own home, /local/domain/N)
    backend/TYPE/FRONTEND-DOMID/ID      this domain's backends

One watch on `device` and one on `backend` cover discovery, unplug and removal for any number of devices; besides, each
device watches the other end's `state`.  An event's path leads to its device by one look-up, so the work per event does
not grow with the number of devices.

A directory becomes a device when its `state` is Initialising: the toolstack has just written it.  Found in any other
state it belongs to a life that is over (a device going away after Closed).  With two exceptions.  A backend found in
Closing was unplugged before it was found: the toolstack waits for its Closed, and gets it.  And a frontend that is
found when the bus starts, with a backend that is wanted, was used by a kernel before this one: it is closed and begins
anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, final

from guest_kernel.xenbus import wire
from guest_kernel.xenbus.client import XenbusClient, XenstoreError
from guest_kernel.xenbus.device import ANSWER_TIMEOUT_NS, Device
from guest_kernel.xenbus.driver import Side, XenbusDriver
from guest_kernel.xenbus.states import CLOSING, INITIALISING, UNKNOWN, parse_state
from guest_kernel.xenbus.watch import Watch
from hypervisor.abi.io import xs_wire as xs

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

BATCH = 64
"""Directories whose nodes are read in one round trip when many devices appear at once."""

_ROOT: dict[Side, str] = {"frontend": "device", "backend": "backend"}
_DEPTH: dict[Side, int] = {"frontend": 3, "backend": 4}
"""Components of a device's directory below the home."""
_LINK: dict[Side, str] = {"frontend": "backend", "backend": "frontend"}
_TO_READ: dict[Side, tuple[str, ...]] = {
    "frontend": ("state", "backend", "backend-id"),
    "backend": ("state", "frontend", "frontend-id", "online"),
}
"""What is read of a directory that may be a new device."""
_TELLING = ("state", "frontend", "frontend-id", "backend", "backend-id")
"""Nodes whose appearance may complete a directory."""


@final
class Bus:
    """All split devices of one domain.  `drivers`: driver objects, or classes to be made with the kernel."""

    def __init__(self, kernel: Kernel, drivers: Iterable[XenbusDriver | type[XenbusDriver]] = ()) -> None:
        self.kernel = kernel
        self.client: XenbusClient = kernel.xenbus
        #: Live devices by the path that events spell: `device/vbd/51712`, `backend/vbd/1/51712`.
        self.devices: dict[str, Device] = {}
        #: The same by directory: those of one frontend domain, `backend/vbd/1`, vanish together.
        self._siblings: dict[str, dict[str, Device]] = {}
        self._drivers: dict[tuple[Side, str], XenbusDriver] = {}
        self._watches: dict[Side, Watch] = {}
        self._home = ""
        self._scans: dict[tuple[Side, str], None] = {}
        self._found: dict[tuple[Side, str], None] = {}
        self._running = False
        self._started = False
        self._closing = False
        self._at_boot = True
        """Frontends that are found now may have been used by a kernel before this one."""
        for driver in drivers:
            self._add(driver)

    def _add(self, driver: XenbusDriver | type[XenbusDriver]) -> XenbusDriver:
        made = driver(self.kernel) if isinstance(driver, type) else driver
        key = (made.side, made.type)
        if key in self._drivers:
            raise ValueError(f"two {made.side} drivers for devices of type {made.type!r}")
        self._drivers[key] = made
        return made

    async def start(self) -> None:
        """Begin to watch for devices of the registered drivers; those that exist already are found too."""
        self._started = True
        for side in dict.fromkeys(side for side, _ in self._drivers):
            await self._watch(side)

    async def register(self, driver: XenbusDriver | type[XenbusDriver]) -> XenbusDriver:
        """Add a driver to a running bus; existing devices of its type get it.  Raises ValueError if there is one."""
        made = self._add(driver)
        if self._started:
            if made.side in self._watches:
                self._want_scan(made.side, _ROOT[made.side])
            else:
                await self._watch(made.side)
        return made

    async def shutdown(self) -> None:
        """Close all devices in order, all at once, and wait for the other ends; those that do not answer are left."""
        self._closing = True
        for watch in self._watches.values():
            await watch.cancel()
        self._watches.clear()
        devices = list(self.devices.values())
        for device in devices:
            device.retire()
        try:
            await self.kernel.wait_for(_all_ended(devices), ANSWER_TIMEOUT_NS)
        except TimeoutError:
            for device in devices:
                await device.abandon()

    def forget(self, device: Device) -> None:
        """Drop a removed device.  Its directory is looked at once more: it may have been made anew meanwhile."""
        node = device.node
        if self.devices.get(node) is device:
            del self.devices[node]
            directory = node.rpartition("/")[0]
            del self._siblings[directory][node]
            if not self._siblings[directory]:
                del self._siblings[directory]
        if not self._closing:
            self._want(device.side, node)

    def log(self, text: str) -> None:
        """Say something on the kernel's console."""
        self.kernel.console.printk(f"xenbus: {text}")

    def log_failure(self, text: str, failure: Exception) -> None:
        """Say on the kernel's console that a driver's code raised."""
        self.log(f"{text}: {type(failure).__name__}: {failure}")

    # ---- events, in upcall context

    async def _watch(self, side: Side) -> None:
        if side == "backend":
            domid = await self.client.read_or_none("domid")
            self._home = f"/local/domain/{int(domid or '0')}/"
        on_event = self._make_on_event(side)
        self._watches[side] = await self.client.watch(_ROOT[side], on_event, direct=True)

    def _make_on_event(self, side: Side) -> Callable[[str, str], None]:
        """Return what sorts the events of one root: to a device, or to the thread that looks for devices."""
        depth = _DEPTH[side]
        devices = self.devices
        backend = side == "backend"

        def on_event(path: str, token: str) -> None:
            parts = path.split("/", depth)
            if len(parts) > 1 and (side, parts[1]) not in self._drivers:
                return
            if len(parts) < depth:
                # The root itself at registration; else a directory of many devices was made or removed.
                self._want_scan(side, path)
                return
            if len(parts) == depth:
                node, key = path, ""
            else:
                key = parts.pop()
                node = "/".join(parts)
            device = devices.get(node)
            if device is None:
                if not key or key in _TELLING:
                    self._want(side, node)
            elif key == "state":
                device.poke(own=True)
            elif key in _TELLING:
                device.poke(own=True, link=True)
            elif not key or key == "online":
                # libxl writes `online` and `state` in one transaction.
                device.poke(own=True, online=backend)

        return on_event

    def _want(self, side: Side, node: str) -> None:
        self._found[side, node] = None
        self._start_thread()

    def _want_scan(self, side: Side, path: str) -> None:
        self._scans[side, path] = None
        self._start_thread()

    def _start_thread(self) -> None:
        if not self._running and not self._closing:
            self._running = True
            self.client.spawn(self._discover(), "xenbus discovery")

    # ---- the thread that looks for devices; it ends when there is nothing to look for

    async def _discover(self) -> None:
        try:
            while (self._scans or self._found) and not self._closing:
                if self._scans:
                    side, path = next(iter(self._scans))
                    del self._scans[side, path]
                    await self._scan(side, path)
                else:
                    batch = list(islice(self._found, BATCH))
                    for key in batch:
                        del self._found[key]
                    await self._look_at(batch)
        except XenstoreError as error:
            self.log(f"looking for devices: {error}")
        finally:
            self._running = self._at_boot = False

    async def _scan(self, side: Side, path: str) -> None:
        """Look at everything below a directory: known devices look at their own nodes, others may be new."""
        depth = path.count("/") + 1
        below = self._siblings.get(path, {}) if depth == _DEPTH[side] - 1 else self.devices
        prefix = path + "/"
        for node, device in below.items():
            if node.startswith(prefix):
                device.poke(own=True, online=side == "backend")
        nodes = [path]
        for level in range(depth, _DEPTH[side]):
            nodes = await self._children(nodes)
            if level == 1:
                nodes = [node for node in nodes if (side, node.split("/")[1]) in self._drivers]
        for node in nodes:
            if node not in self.devices:
                self._found[side, node] = None

    async def _children(self, directories: Sequence[str]) -> list[str]:
        """Return the paths of the children of several directories, in one round trip."""
        replies = [self.client.submit(xs.XS_DIRECTORY, wire.join(path), path) for path in directories]
        found: list[str] = []
        for path, reply in zip(directories, replies, strict=True):
            try:
                names = wire.split(await reply)
            except XenstoreError as error:
                if error.name in ("ENOENT", "EACCES"):
                    continue
                if error.name != "E2BIG":
                    raise
                names = await self.client.directory(path)
            found += [f"{path}/{name}" for name in names]
        return found

    async def _look_at(self, batch: Sequence[tuple[Side, str]]) -> None:
        """Make devices of those directories that are new ones."""
        paths = [f"{node}/{key}" for side, node in batch for key in _TO_READ[side]]
        values = iter(await self.client.read_many(paths))
        for side, node in batch:
            state, link, domid = next(values), next(values), next(values)
            online = next(values) if side == "backend" else "1"
            known = self.devices.get(node)
            if known is not None:
                # Something has happened to it while it was being made: the event found no device yet.
                known.poke(own=True, online=side == "backend")
                continue
            if self._closing:
                continue
            number = parse_state(state)
            if number == INITIALISING or (number == CLOSING and side == "backend"):
                device = self._make(side, node, link, domid)
                if device is not None:
                    device.begin(number, online=online != "0")
            elif side == "frontend" and number != UNKNOWN and self._at_boot and await self._is_wanted(link):
                device = self._make(side, node, link, domid)
                if device is not None:
                    device.resume(number)

    async def _is_wanted(self, link: str | None) -> bool:
        """Whether the backend at `link` is there and not being unplugged."""
        return link is not None and await self.client.read_or_none(f"{link}/online") == "1"

    def _make(self, side: Side, node: str, link: str | None, domid: str | None) -> Device | None:
        """Make one device; None if the directory is not one."""
        driver = self._drivers.get((side, node.split("/")[1]))
        if driver is None or link is None or domid is None:
            # Not ours, or not complete yet: the missing node's own event comes back here.
            return None
        if not link.startswith("/") or not (domid.isascii() and domid.isdecimal()):
            self.log(f"{node}: not a device: {_LINK[side]} {link!r}, {_LINK[side]}-id {domid!r}")
            return None
        path = self._home + node if side == "backend" else node
        place = (node, path, node.rpartition("/")[2])
        device = self.devices[node] = Device(self, driver, place, (link, int(domid)))
        self._siblings.setdefault(node.rpartition("/")[0], {})[node] = device
        return device


async def _all_ended(devices: Sequence[Device]) -> None:
    for device in devices:
        await device.ended()
