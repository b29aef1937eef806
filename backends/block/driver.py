"""The xenbus side of the block backend: which disk, what it can do, and whom it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, final

from backends.block.indirect import MAX_PAGES, MAX_SEGMENTS, SEGMENTS_PER_PAGE, DescriptorCopier, KnownTables
from backends.block.mapping import GrantMapper
from backends.block.protocol import PROTOCOLS, Protocol
from backends.block.rings import MAX_QUEUES, MAX_RING_PAGE_ORDER, RingPlace, find_rings
from backends.block.server import BlockServer, Disk, Statistics
from guest_kernel.block import SECTOR_SIZE
from guest_kernel.xenbus.driver import Side, XenbusDevice, XenbusDriver
from hypervisor.abi.io.blkif import VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE
from hypervisor.abi.io.protocols import XEN_IO_PROTO_ABI_NATIVE
from hypervisor.abi.io.ring import BackRing
from hypervisor.abi.tracepoints import RING_CONNECT

if TYPE_CHECKING:
    from guest_kernel.grants import MappedGrant
    from guest_kernel.kernel import Kernel

MAX_PERSISTENT_GRANTS = 1056
"""Grants of one frontend that stay mapped: three rings full of the largest requests."""


class _ReadOnly:
    """A disk of this machine that the toolstack gives away for reading only."""

    readonly = True
    discards = discards_securely = False

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.sector_size = disk.sector_size
        self.physical_sector_size = disk.physical_sector_size
        self.submit = disk.submit
        self.submit_one = disk.submit_one
        self.submit_all = disk.submit_all
        self.kick = disk.kick
        self.watch = disk.watch
        self.afterwards = disk.afterwards

    @property
    def sectors(self) -> int:
        return self._disk.sectors


@final
class _Queue:
    """One ring of a virtual disk, and what it takes to serve it."""

    def __init__(
        self,
        server: BlockServer,
        grants: list[MappedGrant],
        mapper: GrantMapper,
        copier: DescriptorCopier | None,
        tables: KnownTables | None,
    ) -> None:
        self.server = server
        self.grants = grants
        """The ring's pages."""
        self.mapper = mapper
        self.copier = copier
        self.tables = tables
        self.port = -1


@final
class _Vbd:
    """What belongs to one virtual disk."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.disk: Disk | None = None
        self.info = 0
        self.sector_size = SECTOR_SIZE
        self.discards = False
        self.queues: list[_Queue] = []


class BlockBack(XenbusDriver):
    """Serves virtual disks.

    Options: `persistent` (default True): offer persistent grants; `max_persistent_grants`: how many may stay mapped;
    `max_indirect_segments` (default 256, at most 4096): how many an indirect request may have, 0 for none of these.
    """

    type: ClassVar[str] = "vbd"
    side: ClassVar[Side] = "backend"

    def __init__(self, kernel: Kernel, **options: Any) -> None:
        super().__init__(kernel, **options)
        self.max_segments = min(int(options.get("max_indirect_segments", MAX_SEGMENTS)), MAX_PAGES * SEGMENTS_PER_PAGE)
        self._served: dict[XenbusDevice, _Vbd] = {}

    def statistics_of(self, domid: int) -> list[Statistics]:
        """Return what was done for each disk that a frontend domain is connected to, since it has been."""
        return [statistics for _, statistics in self.disks_of(domid)]

    def disks_of(self, domid: int) -> list[tuple[str, Statistics]]:
        """Return the same, with each virtual disk's number, as xenstore has it."""
        return [
            (device.id, Statistics.total((queue.server.statistics for queue in vbd.queues), vbd.sector_size))
            for device, vbd in self._served.items()
            if device.otherend_id == domid
        ]

    async def probe(self, device: XenbusDevice) -> None:
        """A new virtual disk; which one of the machine it is may not be known yet."""
        device.data = _Vbd(f"vbd/{device.otherend_id}/{device.id}")

    async def publish(self, device: XenbusDevice) -> None:
        """Say what this backend can do, and what its disk can, if that is known yet."""
        vbd: _Vbd = device.data
        vbd.disk = None
        nodes = await device.read_many("physical-device", "mode")
        if self.max_segments:
            await device.write({"feature-max-indirect-segments": self.max_segments})
        writable = "w" in (nodes["mode"] or "r")
        await device.write(
            {
                "feature-flush-cache": writable,
                "feature-barrier": writable,
                "feature-persistent": bool(self.options.get("persistent", True)),
                "max-ring-page-order": MAX_RING_PAGE_ORDER,
                "multi-queue-max-queues": MAX_QUEUES,
            }
        )
        if nodes["physical-device"] is not None:
            await self._find(device, nodes["physical-device"])

    async def _find(self, device: XenbusDevice, place: str) -> None:
        """Find the disk that the hotplug script has named, and say what can be done with it. Raises OSError."""
        vbd: _Vbd = device.data
        nodes = await device.read_many("mode", "device-type", "removable", "discard-enable")
        disk: Disk = self.kernel.hw.disk(_minor(place))
        writable = "w" in (nodes["mode"] or "r")
        if writable and disk.readonly:
            raise OSError(f"disk {place} cannot be written, but mode is {nodes['mode']!r}")
        vbd.disk = disk if writable else _ReadOnly(disk)
        vbd.info = 0 if writable else VDISK_READONLY
        if nodes["device-type"] == "cdrom":
            vbd.info |= VDISK_CDROM
        if nodes["removable"] == "1":
            vbd.info |= VDISK_REMOVABLE
        vbd.discards = vbd.disk.discards and nodes["discard-enable"] != "0"
        if vbd.discards:
            # Any sectors may be named; their storage comes back where whole blocks of the image's file system do.
            secure = vbd.disk.discards_securely
            await device.write(
                {"discard-granularity": disk.sector_size, "discard-alignment": 0, "discard-secure": secure}
            )
        await device.write({"feature-discard": vbd.discards})

    async def connect(self, device: XenbusDevice) -> None:
        """Map the frontend's ring, begin serving, and say how large the disk is; not before there is one."""
        vbd: _Vbd = device.data
        if vbd.disk is None:
            await self._find(device, await device.wait_for("physical-device"))
        disk = vbd.disk
        assert disk is not None
        nodes = await device.read_otherend_many("protocol", "feature-persistent", "feature-large-sector-size")
        protocol = PROTOCOLS.get(nodes["protocol"] or XEN_IO_PROTO_ABI_NATIVE)
        if protocol is None:
            raise ValueError(f"the frontend's protocol {nodes['protocol']!r} is not known")
        if disk.sector_size != SECTOR_SIZE and (nodes["feature-large-sector-size"] or "0") == "0":
            # It would take other units for sectors of 512 bytes, and destroy what is on the disk.
            raise ValueError(
                f"the disk has sectors of {disk.sector_size} bytes, and the frontend has no feature-large-sector-size"
            )
        vbd.sector_size = disk.sector_size
        places = await find_rings(device)
        persistent = nodes["feature-persistent"] == "1" and bool(self.options.get("persistent", True))
        limit = int(self.options.get("max_persistent_grants", MAX_PERSISTENT_GRANTS)) if persistent else 0
        self._served[device] = vbd
        for number, place in enumerate(places):
            name = vbd.name if len(places) == 1 else f"{vbd.name}/{number}"
            self._start(device, name, place, protocol, limit)
        disk.watch(lambda: self._resized(device))
        for queue in vbd.queues:
            queue.server.resize()
        await device.write(
            {
                "sectors": disk.sectors,
                "info": vbd.info,
                "sector-size": disk.sector_size,
                "physical-sector-size": disk.physical_sector_size,
            }
        )

    def _start(self, device: XenbusDevice, name: str, place: RingPlace, protocol: Protocol, limit: int) -> None:
        """Map a ring and begin to serve it. Raises OSError if it cannot be mapped."""
        vbd: _Vbd = device.data
        assert vbd.disk is not None
        domid = device.otherend_id
        grants = self.kernel.grants.map_refs(domid, place.refs)
        bad = next((n for n, grant in enumerate(grants) if grant.status < 0), None)
        if bad is not None:
            self.kernel.grants.unmap([grant for grant in grants if grant.status >= 0])
            raise OSError(f"mapping ring-ref {place.refs[bad]} of domain {domid}: grant status {grants[bad].status}")
        ring = BackRing.attach_pages([grant.view for grant in grants], protocol.entry_size)
        trace = self.kernel.cpu.trace
        if trace is not None:
            trace(RING_CONNECT, name, "req", protocol.layout, domid, place.refs)
        mapper = GrantMapper(self.kernel.grants, domid, limit, vbd.disk.sector_size)
        copier = DescriptorCopier(self.kernel, domid, self.max_segments) if self.max_segments else None
        tables = KnownTables(self.kernel, domid, self.max_segments, mapper) if limit and self.max_segments else None
        server = BlockServer(
            self.kernel, name, vbd.disk, ring, protocol, mapper, discards=vbd.discards, copier=copier, tables=tables
        )
        server.on_broken = lambda why: self._broken(device, why)
        queue = _Queue(server, grants, mapper, copier, tables)
        vbd.queues.append(queue)
        # The event that binding raises makes the server look into the ring: it may hold requests already.
        server.port = queue.port = self.kernel.events.bind_interdomain(domid, place.port, server.wake)

    async def close(self, device: XenbusDevice) -> None:
        """Wait for the disk's DMA to end, then unmap everything: not before, it would hit a stranger's memory.

        Until then everything is served, also while the toolstack wants the disk back and the guest holds it.
        """
        vbd: _Vbd = device.data
        if vbd.disk is not None:
            vbd.disk.watch(None)
        queues, vbd.queues = vbd.queues, []
        self._served.pop(device, None)
        for queue in queues:
            await _drain(queue.server)
        for queue in queues:
            queue.server.release()
            if queue.port >= 0:
                self.kernel.events.unbind(queue.port)
            queue.mapper.release()
            if queue.copier is not None:
                queue.copier.release()
            if queue.tables is not None:
                queue.tables.release()
            self.kernel.grants.unmap(queue.grants)

    def _resized(self, device: XenbusDevice) -> None:
        """The disk has another capacity: serve that, and tell the frontend."""
        vbd: _Vbd = device.data
        if vbd.queues and vbd.disk is not None:
            for queue in vbd.queues:
                queue.server.resize()
            device.announce({"sectors": vbd.disk.sectors})

    def _broken(self, device: XenbusDevice, why: str) -> None:
        """A ring has met garbage: it is served no more, and the frontend is told through its state."""
        vbd: _Vbd = device.data
        for queue in vbd.queues:
            queue.server.stop()
            if queue.port >= 0:
                self.kernel.events.mask(queue.port)
        self.kernel.spawn(device.fatal(why), f"{vbd.name} broken")


async def _drain(server: BlockServer) -> None:
    server.stop()
    while server.in_flight:
        await server.drained.wait()


def _minor(place: str) -> int:
    """Return the unit of "major:minor", both hexadecimal. Raises ValueError."""
    major, _, minor = place.partition(":")
    try:
        int(major, 16)
        return int(minor, 16)
    except ValueError:
        raise ValueError(f"physical-device {place!r} is not MAJOR:MINOR in hexadecimal") from None
