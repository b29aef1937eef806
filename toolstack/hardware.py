"""What is plugged into the machine of a running host, and whose it is: disk controllers, network and socket cards.

Disks come and go while the host runs (hot-plug, CD drives, domains that end); cards are there from the beginning. The
image behind a disk may be used by others, too: who uses which is in the host's `Preparation`.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from guest_kernel.net.addresses import mac_from_text
from hypervisor.abi.device import nic_irq, socket_irq
from hypervisor.machine.backing import Backing, NoMedium, RemoteBacking
from hypervisor.machine.disk import DiskController
from hypervisor.machine.failing_disk import FailingDisk
from hypervisor.machine.nbd_connector import Connector, NbdConnection
from hypervisor.machine.nic import NetworkCard
from hypervisor.machine.socket_card import SocketCard
from toolstack.disk_spec import DiskSpec
from toolstack.errors import ToolstackError
from toolstack.nbd_export import ExportDoor
from toolstack.preparation import (
    MAX_DISKS,
    SECTOR,
    ImageError,
    ImageKey,
    Preparation,
    forget_image,
    open_image,
    take_connection,
)
from toolstack.quick_ear import QuickEar, follow
from toolstack.remote_disks import search, stand_still
from toolstack.report import Usage
from toolstack.tap import TapWire
from toolstack.vif_spec import VifSpec, generate_mac
from toolstack.xl_config import DOM0_NAME

if TYPE_CHECKING:
    from toolstack.host import Host


@attrs.define
class Slot:
    """A disk controller that somebody uses."""

    controller: DiskController
    owner: str
    disk: DiskSpec


class HostHardware:
    """The `Hardware` of one host."""

    def __init__(self, host: Host, prepared: Preparation, ear: QuickEar) -> None:
        self._host = host
        self._prepared = prepared
        self._ear = ear
        self._slots: dict[int, Slot] = {}
        """By unit."""
        self._spare: dict[DiskSpec, tuple[int, DiskController]] = {}
        """Controllers that driver domains have and nobody uses: by the domain, the image, whether it is written to."""
        self._socket_cards: dict[int, SocketCard] = {}

    def plug_all(self) -> None:
        """Put in what the machine has when it is switched on."""
        prepared = self._prepared
        for plan in prepared.plans:
            for unit, disk in zip(plan.disk_units, plan.config.disks, strict=True):
                if unit in prepared.late:
                    continue
                backing = prepared.disks[unit] = self._behind_faults(plan.config.name, disk, prepared.disks[unit])
                self._plug(unit, backing, plan.config.name, disk)
        self._plug_nics()
        for unit, door in enumerate(prepared.exports):
            self._plug_socket_card(unit, door)

    def close(self) -> None:
        """The machine is off: hang up on the clients outside."""
        for card in self._socket_cards.values():
            card.unplug()

    # -- disks ----------------------------------------------------------------------------------------------------

    def search(self, disk: DiskSpec) -> Connector | None:
        """See `Hardware.search`."""
        connector = search(disk)
        if connector is not None and not self._host.real_time:
            # As for every answer of a server: no guest may see how long it takes.
            stand_still(connector, self._nobody_waits)
            if not connector.done:
                connector.abandon()
                raise ToolstackError(f"{disk.target}: nobody wanted to wait for it")
        return connector

    def _nobody_waits(self) -> bool:
        """Whether a person has asked for the end more than once."""
        return self._host.interrupts > 1

    def plug_disk(self, owner: str, disk: DiskSpec, connection: NbdConnection | None) -> int:
        """See `Hardware.plug_disk`."""
        used = {*self._slots, *self._prepared.late, *(unit for unit, _ in self._spare.values())}
        unit = next((unit for unit in range(MAX_DISKS) if unit not in used), None)
        if unit is None and _place(disk) not in self._spare:
            raise ToolstackError(f"the machine has room for {MAX_DISKS} disks")
        try:
            backing = open_image(owner, disk, self._prepared.users, connection)
        except ImageError as error:
            raise ToolstackError(str(error)) from None
        spare = self._spare.pop(_place(disk), None)
        if spare is not None:
            # The files may have changed since: what was known of them does not count any more.
            unit, controller = spare
            self._exchange(controller, backing)
            self._slots[unit] = Slot(controller, owner, disk)
            return unit
        assert unit is not None
        backing = self._behind_faults(owner, disk, backing)
        self._prepared.disks.append(backing)
        self._plug(unit, backing, owner, disk)
        return unit

    def is_late(self, unit: int) -> bool:
        """See `Hardware.is_late`."""
        return unit in self._prepared.late

    def plug_late_disk(self, unit: int, owner: str, disk: DiskSpec) -> bool:
        """See `Hardware.plug_late_disk`."""
        connector = self._prepared.late[unit]
        if not connector.done:
            return False
        try:
            backing = open_image(owner, disk, self._prepared.users, take_connection(connector))
        except ImageError as error:
            raise ToolstackError(str(error)) from None
        del self._prepared.late[unit]
        backing = self._behind_faults(owner, disk, backing)
        self._prepared.disks.append(backing)
        self._plug(unit, backing, owner, disk)
        return True

    def unplug_disk(self, unit: int, *, keep: bool) -> None:
        """See `Hardware.unplug_disk`."""
        connector = self._prepared.late.pop(unit, None)
        if connector is not None:
            connector.abandon()
            return
        slot = self._slots.pop(unit)
        self._account(slot)
        forget_image(slot.owner, slot.disk, self._prepared.users)
        controller = slot.controller
        if keep:
            # Whoever takes the image next finds everything in it.
            backing = controller.backing
            if isinstance(backing, RemoteBacking) and self._host.real_time:
                backing.start(backing.FLUSH, 0, 0)  # nobody waits for a server
            else:
                backing.flush()
            self._spare[_place(slot.disk)] = unit, controller
            return
        self._prepared.disks.remove(controller.backing)
        self._stop_listening(controller)
        controller.unplug()

    def _slot(self, unit: int) -> Slot:
        """Return a controller that is there. Raises ToolstackError."""
        if unit in self._prepared.late:
            raise ToolstackError("the disk is not there yet: its server has not answered")
        return self._slots[unit]

    def resize_disk(self, unit: int, size: int) -> None:
        """See `Hardware.resize_disk`."""
        slot = self._slot(unit)
        controller, disk = slot.controller, slot.disk
        has = controller.sectors * controller.sector_size
        unit_size = controller.backing.physical_sector_size
        if not size or size % unit_size:
            raise ToolstackError(f"a disk has whole sectors of {unit_size} bytes, so it cannot have {size} bytes")
        if size < has:
            raise ToolstackError(f"{disk.vdev} has {has} bytes already; to make it smaller would cut off what is there")
        if not disk.writable:
            raise ToolstackError(f"{disk.vdev} is read-only, so its image cannot become larger")
        status = controller.resize(size // controller.sector_size)
        if status == errno.EOPNOTSUPP:
            kind = "at an NBD server" if disk.nbd is not None else f"of the format {disk.format!r}"
            raise ToolstackError(f"{disk.vdev} is {kind}, so it keeps its size")
        if status:
            raise ToolstackError(f"{disk.vdev} cannot have {size} bytes: {os.strerror(status)}")

    def check_medium(self, unit: int, target: str, connection: NbdConnection | None) -> None:
        """See `Hardware.check_medium`."""
        slot = self._slot(unit)
        users = {key: dict(others) for key, others in self._prepared.users.items()}
        forget_image(slot.owner, slot.disk, users)
        _open_medium(slot.owner, attrs.evolve(slot.disk, target=target), users, connection).close()

    def change_medium(self, unit: int, target: str, connection: NbdConnection | None) -> None:
        """See `Hardware.change_medium`."""
        slot = self._slot(unit)
        self._account(slot)
        forget_image(slot.owner, slot.disk, self._prepared.users)
        slot.disk = attrs.evolve(slot.disk, target="")
        try:
            wanted = attrs.evolve(slot.disk, target=target)
            medium = _open_medium(slot.owner, wanted, self._prepared.users, connection)
        except ToolstackError:
            self._exchange(slot.controller, NoMedium())
            raise
        slot.disk = attrs.evolve(slot.disk, target=target)
        self._exchange(slot.controller, medium)

    def account_disks(self) -> None:
        """Add what all disks have moved to the accounts of their domains."""
        for slot in self._slots.values():
            self._account(slot)

    def _plug(self, unit: int, backing: Backing, owner: str, disk: DiskSpec) -> None:
        hv = self._host.hv
        controller = DiskController(hv.machine, unit, backing, iommu=hv.iommu.context, guarded=hv.iommu.assigned)
        controller.now = hv.now
        self._slots[unit] = Slot(controller, owner, disk)
        self._listen_to(controller)

    def _behind_faults(self, owner: str, disk: DiskSpec, backing: Backing) -> Backing:
        """Return what stands before a disk whose faults have been ordered."""
        injector = self._host.injector
        if injector is None or isinstance(backing, RemoteBacking):
            return backing
        return injector.disk(owner, disk.vdev, backing)

    def _exchange(self, controller: DiskController, backing: Backing) -> None:
        """Put another medium into a controller."""
        self._prepared.disks[self._prepared.disks.index(controller.backing)] = backing
        self._stop_listening(controller)
        controller.exchange(backing)
        self._listen_to(controller)

    def _listen_to(self, controller: DiskController) -> None:
        """Hear the answers of a disk's server, if it has one."""
        remote, host = controller.remote, self._host
        backing = controller.backing
        if isinstance(backing, FailingDisk):
            backing = backing.inner
        if isinstance(backing, RemoteBacking):
            backing.give_up = self._nobody_waits
            backing.report = partial(self._report_server, controller.unit)
        if remote is not None and host.real_time:
            self._ear.add(remote)
            host.outside.follow(partial(follow, remote), host)

    def _report_server(self, unit: int, sentence: str) -> None:
        """Tell people what has become of a disk's server."""
        slot = self._slots.get(unit)
        whose = "a disk that nobody uses" if slot is None else f"{slot.owner}'s disk {slot.disk.vdev}"
        self._host.on_notice(f"{whose}: {sentence}")

    def _stop_listening(self, controller: DiskController) -> None:
        remote = controller.remote
        if remote is not None and self._host.real_time:
            self._ear.remove(remote)
            trio.lowlevel.notify_closing(remote.fileno())

    def _account(self, slot: Slot) -> None:
        """Add what a disk has moved since it was asked last to the account of its domain."""
        disk = slot.controller
        nbytes = disk.read_bytes + disk.written_bytes
        disk.read_bytes = disk.written_bytes = 0
        self._host.results[slot.owner].usage.add(Usage(blocks=nbytes // SECTOR, block_bytes=nbytes))

    # -- network --------------------------------------------------------------------------------------------------

    def plug_vif(self, owner: str, devid: int, vif: VifSpec) -> str:
        """See `Hardware.plug_vif`."""
        if vif.bridge not in self._prepared.bridges:
            has = ", ".join(self._prepared.bridges)
            raise ToolstackError(f"this host has no bridge {vif.bridge!r}; there is {has}")
        macs = self._prepared.macs
        if vif.mac in macs:
            raise ToolstackError(f"the MAC address {vif.mac} is already taken")
        mac = vif.mac or generate_mac(self._host.seed, owner, devid, macs)
        macs.add(mac)
        return mac

    def unplug_vif(self, mac: str) -> None:
        """See `Hardware.unplug_vif`."""
        self._prepared.macs.discard(mac)

    def _plug_nics(self) -> None:
        host, hv = self._host, self._host.hv
        for unit, (_, wire) in enumerate(self._prepared.wires):
            mac = mac_from_text(generate_mac(host.seed, DOM0_NAME, unit))
            card = NetworkCard(hv.machine, unit, wire, mac, hv.iommu.context)
            card.now = hv.now
            hv.iommu.on_release[nic_irq(unit)] = card.reset
            if isinstance(wire, TapWire):
                host.outside.tasks.append(wire.follow)
        clock = hv.machine.clock
        for _, capture in self._prepared.captures:
            capture.now = lambda: clock.wallclock_base + hv.now()

    # -- socket cards ---------------------------------------------------------------------------------------------

    def unplug_socket_card(self, unit: int) -> None:
        """See `Hardware.unplug_socket_card`."""
        card = self._socket_cards.pop(unit)
        self._ear.remove(card)
        trio.lowlevel.notify_closing(card.fileno())
        card.unplug()
        self._prepared.exports[unit].close()
        self._host.outside.listeners -= 1

    def _plug_socket_card(self, unit: int, door: ExportDoor) -> None:
        hv, outside = self._host.hv, self._host.outside
        card = SocketCard(hv.machine, unit, door.listener, reach=hv.iommu.reach)
        hv.iommu.on_release[socket_irq(unit)] = card.reset
        self._socket_cards[unit] = card
        self._ear.add(card)
        outside.tasks.append(partial(follow, card))
        outside.listeners += 1


def _place(disk: DiskSpec) -> DiskSpec:
    """Return what makes two disks the same piece of hardware: everything but how a guest sees it."""
    return attrs.evolve(disk, vdev="", removable=False, discard=False, trusted=True, direct_io_safe=False)


def _open_medium(
    owner: str, disk: DiskSpec, users: dict[ImageKey, dict[str, DiskSpec]], connection: NbdConnection | None
) -> Backing:
    try:
        backing = open_image(owner, disk, users, connection)
    except ImageError as error:
        raise ToolstackError(str(error)) from None
    if backing.sector_size > disk.sector_size:
        backing.close()
        has = backing.sector_size
        raise ToolstackError(f"{disk.target} has sectors of {has} bytes, and {disk.vdev} of {disk.sector_size}")
    return backing
