"""Disks whose servers had not answered when their domains were started (in real time: nobody waits for them).

The two ends of such a device have their nodes from the start, but for the backend's `physical-device`: it waits in
InitWait, as Linux's does until a hotplug script has found the disk, and the frontend goes on as far as Initialised.
When the server answers, the disk is plugged in and that node is written. Should it not answer, the device is taken away
again, as after a `block-attach` that fails: people are told in a sentence, and a guest that waits for the disk finds
that there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, final

from guest_kernel.xenbus.client import XenstoreError
from toolstack.devices import Force
from toolstack.errors import ToolstackError
from toolstack.nodes import DOM0, DeviceNodes, disk_nodes
from toolstack.remote_disks import LOOK_NS

if TYPE_CHECKING:
    from toolstack.disk_spec import DiskSpec
    from toolstack.domains import LiveDomain
    from toolstack.lifecycle import Lifecycle

T = TypeVar("T")


def without(items: tuple[T, ...], index: int) -> tuple[T, ...]:
    """Return a tuple without one of its items."""
    return items[:index] + items[index + 1 :]


@final
class LateDisks:
    """Waits for servers, each in a thread of its own, and gives domains their disks."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def of(self, live: LiveDomain) -> dict[DeviceNodes, tuple[DiskSpec, int]]:
        """Return the disks of a new domain that are not there yet, and the controllers that are set aside for them."""
        is_late = self._lifecycle.platform.hardware.is_late
        disks = zip(live.devices, live.plan.config.disks, live.plan.disk_units, strict=False)
        return {device: (disk, unit) for device, disk, unit in disks if is_late(unit)}

    def wait_for(self, live: LiveDomain) -> None:
        """Give a new domain each of these disks as soon as its server answers."""
        for device, (disk, unit) in self.of(live).items():
            self._lifecycle.kernel.spawn(self._wait(live, device, disk, unit), f"server of {live.name}'s {disk.vdev}")

    async def _wait(self, live: LiveDomain, device: DeviceNodes, disk: DiskSpec, unit: int) -> None:
        """Wait for one; for the domain's next life somebody else does, should this one be over before."""
        try:
            await self._plug_or_remove(live, device, disk, unit)
        except XenstoreError:
            if not self._lifecycle.has_ended(live):
                raise
            # xenstored refuses what touches the nodes of a domain that it has seen go.

    async def _plug_or_remove(self, live: LiveDomain, device: DeviceNodes, disk: DiskSpec, unit: int) -> None:
        lifecycle = self._lifecycle
        hardware = lifecycle.platform.hardware
        try:
            while not live.over and hardware.is_late(unit) and not self._plug(live, device, disk, unit):
                await lifecycle.kernel.sleep(LOOK_NS)
            if live.over or device not in live.devices:
                return  # it was detached, and the search ended with that
            there = disk_nodes(device.domid, device.backend_domid, disk, unit)
            live.devices = tuple(there if other == device else other for other in live.devices)
            await lifecycle.devices.plug(there, live.name)
        except ToolstackError as error:
            await self._do_without(live, device, disk, str(error))

    def _plug(self, live: LiveDomain, device: DeviceNodes, disk: DiskSpec, unit: int) -> bool:
        """Put a disk into the machine if its server has answered; return whether it has. Raises ToolstackError."""
        lifecycle = self._lifecycle
        if device.backend_domid != DOM0 and device.backend_domid not in lifecycle.live:
            raise ToolstackError(f"the backend domain {disk.backend!r} has ended")
        if not lifecycle.platform.hardware.plug_late_disk(unit, live.plan.config.name, disk):
            return False
        lifecycle.assign_disk(device.backend_domid, unit)
        return True

    async def _do_without(self, live: LiveDomain, device: DeviceNodes, disk: DiskSpec, why: str) -> None:
        """Take away a device whose disk does not come."""
        lifecycle = self._lifecycle
        if live.over or device not in live.devices:
            return
        lifecycle.platform.lacks(live.plan, f"{live.name} is without its disk {disk.vdev}: {why}")
        await lifecycle.devices.remove(device, live.name, Force.AUTO)
        if not live.over and device in live.devices:
            lifecycle.forget_disk(live, device)
