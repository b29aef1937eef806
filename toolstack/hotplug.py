"""Disks and network interfaces that come and go while their guest runs (`xl block-attach`, `xl network-detach`, …).

What is attached belongs to the domain from then on: it is there again when the domain is restarted, as in libxl, which
writes it into the configuration that it keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from toolstack.devices import Force
from toolstack.disk_spec import DiskSpec, vdev_number
from toolstack.errors import SpecError, ToolstackError
from toolstack.late_disks import without
from toolstack.nodes import DOM0, DeviceNodes, disk_nodes, vif_nodes
from toolstack.remote_disks import closed_on_failure, reach
from toolstack.vif_spec import VifSpec

if TYPE_CHECKING:
    from hypervisor.machine.nbd_connector import NbdConnection
    from toolstack.domains import LiveDomain
    from toolstack.lifecycle import Lifecycle

TRAY_NS = 1_000_000_000
"""How long a drive is empty between two media: a guest that looks twice a second sees both go and come."""


class Hotplug:
    """Plugs and unplugs on behalf of people. Everything raises ToolstackError with one sentence."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    # -- disks ----------------------------------------------------------------------------------------------------

    async def attach_disk(self, live: LiveDomain, disk: DiskSpec) -> DeviceNodes:
        """Give a running domain another disk; returns when its backend has it."""
        self._refuse_double(live, "vbd", disk.devid, f"disk {disk.vdev!r}")
        backend = self._backend(disk.backend)
        connection = await self._reach(disk)
        with closed_on_failure(connection):
            # Things happen while one looks for a server.
            if live.over:
                raise ToolstackError(f"{live.name} has ended before it had vbd {disk.devid}")
            self._refuse_double(live, "vbd", disk.devid, f"disk {disk.vdev!r}")
            unit = self._lifecycle.platform.hardware.plug_disk(live.plan.config.name, disk, connection)
        device = disk_nodes(live.domid, backend, disk, unit)
        try:
            self._lifecycle.assign_disk(backend, unit)
            await self._add(live, device)
        except ToolstackError:
            self._lifecycle.unplug_disk(device, unit)
            raise
        config = attrs.evolve(live.plan.config, disks=(*live.plan.config.disks, disk))
        live.plan = attrs.evolve(live.plan, config=config, disk_units=(*live.plan.disk_units, unit))
        return device

    async def detach_disk(self, live: LiveDomain, vdev: str, *, force: bool = False) -> None:
        """Take a disk away, by name or number. Not forced, the guest may keep one that it uses."""
        device = self._find(live, "vbd", _disk_number(vdev), f"disk {vdev!r}")
        await self._lifecycle.devices.remove(device, live.name, Force.ON if force else Force.OFF)
        self._lifecycle.forget_disk(live, device)

    def resize_disk(self, live: LiveDomain, vdev: str, size: int) -> None:
        """Make a disk larger, to `size` bytes, while the guest uses it."""
        device = self._find(live, "vbd", _disk_number(vdev), f"disk {vdev!r}")
        index = [disk.devid for disk in live.plan.config.disks].index(device.devid)
        self._lifecycle.platform.hardware.resize_disk(live.plan.disk_units[index], size)

    async def change_medium(self, live: LiveDomain, vdev: str, target: str) -> None:
        """Put an image into a CD drive, as libxl does: first the drive is empty, for all to see, then it has another.

        Without a target the drive stays empty. The guest is not asked: what it still reads fails.
        """
        disk, unit, _ = self._drive(live, vdev)
        if target:
            connection = await self._reach(attrs.evolve(disk, target=target))
            with closed_on_failure(connection):
                disk, unit, _ = self._drive(live, vdev)
                self._lifecycle.platform.hardware.check_medium(unit, target, connection)
        if disk.target:
            await self._set_medium(live, vdev, "")
            if target:
                await self._lifecycle.kernel.sleep(TRAY_NS)
        if target:
            await self._set_medium(live, vdev, target)

    async def _set_medium(self, live: LiveDomain, vdev: str, target: str) -> None:
        """Change what is in the machine, in the domain's configuration, and in xenstore."""
        connection = await self._reach(attrs.evolve(self._drive(live, vdev)[0], target=target))
        with closed_on_failure(connection):
            disk, unit, device = self._drive(live, vdev)
            self._lifecycle.platform.hardware.change_medium(unit, target, connection)
        new = attrs.evolve(disk, target=target)
        disks = tuple(new if other == disk else other for other in live.plan.config.disks)
        live.plan = attrs.evolve(live.plan, config=attrs.evolve(live.plan.config, disks=disks))
        changed = disk_nodes(device.domid, device.backend_domid, new, unit)
        live.devices = tuple(changed if other == device else other for other in live.devices)
        await self._lifecycle.devices.say(changed, live.name, "type", "params")

    async def _reach(self, disk: DiskSpec) -> NbdConnection | None:
        """Connect to a disk's server, if it has one; everybody else goes on meanwhile."""
        return await reach(self._lifecycle.platform.hardware.search(disk), self._lifecycle.kernel)

    def _drive(self, live: LiveDomain, vdev: str) -> tuple[DiskSpec, int, DeviceNodes]:
        """Return a CD drive of a domain, its controller and its nodes."""
        device = self._find(live, "vbd", _disk_number(vdev), f"disk {vdev!r}")
        index = [disk.devid for disk in live.plan.config.disks].index(device.devid)
        disk = live.plan.config.disks[index]
        if not disk.removable:
            raise ToolstackError(f"{disk.vdev} of {live.name} is no CD drive (devtype=cdrom)")
        return disk, live.plan.disk_units[index], device

    # -- network interfaces ---------------------------------------------------------------------------------------

    async def attach_vif(self, live: LiveDomain, vif: VifSpec) -> DeviceNodes:
        """Give a running domain another network interface; returns when its backend has it."""
        numbers = [device.devid for device in live.devices if device.kind == "vif"]
        devid = max(numbers, default=-1) + 1 if vif.devid is None else vif.devid
        self._refuse_double(live, "vif", devid, f"network interface {devid}")
        mac = self._lifecycle.platform.hardware.plug_vif(live.plan.config.name, devid, vif)
        try:
            device = vif_nodes(live.domid, self._backend(vif.backend), vif, devid, mac)
            vifs = _numbered(live)
            await self._add(live, device)
        except ToolstackError:
            self._lifecycle.platform.hardware.unplug_vif(mac)
            raise
        config = attrs.evolve(live.plan.config, vifs=(*vifs, attrs.evolve(vif, devid=devid, mac=mac)))
        live.plan = attrs.evolve(live.plan, config=config, macs=(*live.plan.macs, mac))
        return device

    async def detach_vif(self, live: LiveDomain, which: str) -> None:
        """Take a network interface away, by number or MAC address; by force if the guest does not answer in time."""
        device = self._find(live, "vif", self._vif_number(live, which), f"network interface {which!r}")
        await self._lifecycle.devices.remove(device, live.name, Force.AUTO)
        vifs = _numbered(live)
        index = [vif.devid for vif in vifs].index(device.devid)
        self._forget(live, device)
        plan = live.plan
        config = attrs.evolve(plan.config, vifs=without(vifs, index))
        live.plan = attrs.evolve(plan, config=config, macs=without(plan.macs, index))
        self._lifecycle.platform.hardware.unplug_vif(plan.macs[index])

    @staticmethod
    def _vif_number(live: LiveDomain, which: str) -> int | None:
        if which.isascii() and which.isdigit():
            return int(which)
        for device in live.devices:
            if device.kind == "vif" and dict(device.frontend_values)["mac"] == which.lower():
                return device.devid
        return None

    # -- both -----------------------------------------------------------------------------------------------------

    async def _add(self, live: LiveDomain, device: DeviceNodes) -> None:
        """Plug a device in. It is the domain's from the first node on: should that end meanwhile, it goes with it."""
        live.devices = (*live.devices, device)
        try:
            await self._lifecycle.devices.add(device, live.name)
        except ToolstackError:
            self._forget(live, device)
            raise
        if live.over:
            raise ToolstackError(f"{live.name} has ended before it had {device.kind} {device.devid}")

    @staticmethod
    def _refuse_double(live: LiveDomain, kind: str, devid: int, what: str) -> None:
        if any((device.kind, device.devid) == (kind, devid) for device in live.devices):
            raise ToolstackError(f"{live.name} has a {what} already")

    @staticmethod
    def _find(live: LiveDomain, kind: str, devid: int | None, what: str) -> DeviceNodes:
        for device in live.devices:
            if (device.kind, device.devid) == (kind, devid):
                return device
        raise ToolstackError(f"{live.name} has no {what}")

    @staticmethod
    def _forget(live: LiveDomain, device: DeviceNodes) -> None:
        live.devices = tuple(other for other in live.devices if other != device)

    def _backend(self, name: str) -> int:
        domid = self._lifecycle.domid_of(name)
        if domid is None:
            raise ToolstackError(f"the backend domain {name!r} does not run")
        if domid != DOM0 and not self._lifecycle.live[domid].plan.config.driver_domain:
            raise ToolstackError(f"the backend domain {name!r} is no driver domain (driver_domain = 1)")
        return domid


def _disk_number(vdev: str) -> int | None:
    if vdev.isascii() and vdev.isdigit():
        return int(vdev)
    try:
        return vdev_number(vdev)
    except SpecError as error:
        raise ToolstackError(str(error)) from None


def _numbered(live: LiveDomain) -> tuple[VifSpec, ...]:
    """Return a domain's interfaces with the numbers that they have: those must not change when one of them goes."""
    numbers = [device.devid for device in live.devices if device.kind == "vif"]
    vifs = live.plan.config.vifs
    return tuple(attrs.evolve(vif, devid=devid) for vif, devid in zip(vifs, numbers, strict=True))
