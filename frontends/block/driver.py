"""The xenbus side of the block frontend: how a disk appears, connects, loses its backend and comes back."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, final

from frontends.block.names import disk_name
from frontends.block.pool import MEMORY_SHARE, Withheld, retry_withheld
from frontends.block.queue import FLUSH_OPERATIONS
from frontends.block.rings import Rings
from frontends.block.slots import (
    MAX_INDIRECT_SEGMENTS,
    MAX_LENT_SEGMENTS,
    MAX_SECTORS,
    MOST_SEGMENTS,
    SECTORS_PER_PAGE,
)
from guest_kernel.block import DISCARD, SECTOR_SIZE, SECURE_DISCARD, BlockDevice
from guest_kernel.xenbus.driver import Side, XenbusDevice, XenbusDriver
from hypervisor.abi.io.blkif import VDISK_READONLY
from hypervisor.abi.io.protocols import XEN_IO_PROTO_ABI_X86_64
from hypervisor.abi.io.xenbus import XenbusStateClosed, XenbusStateClosing, XenbusStateConnected

if TYPE_CHECKING:
    from guest_kernel.kernel import Kernel

MAX_DISK_SECTORS = 1 << 51
"""More than any image has; beyond it byte offsets would not fit 63 bits."""
LARGEST_BLOCK = 4096
"""A sector must fit into a page: that is what a segment of a request is a part of."""


@final
class _Disk:
    """What belongs to one device: the disk that the guest sees outlives its connections."""

    def __init__(self, name: str, handle: int) -> None:
        self.name = name
        self.handle = handle
        self.block = BlockDevice(name, MAX_SECTORS)
        self.rings: Rings | None = None
        self.told: dict[str, object] = {}
        """What the backend, or one before it, was told of rings."""
        self.why = ""
        """Why the disk is not there, should it never be."""
        self.leaving = False
        """Whether this end has begun to close."""


def _number(nodes: dict[str, str | None], key: str, default: int | None, limit: int) -> int:
    """Return a number that the backend wrote. Raises ValueError if it is missing (no default), no number, too large."""
    text = nodes[key]
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 20 or int(text) > limit:
        raise ValueError(f"the backend's {key} is {text!r}, which is not a number from 0 to {limit}")
    return int(text)


def _check_sizes(block_size: int, physical: int) -> None:
    """See whether the sizes of the backend's sectors can be. Raises ValueError."""
    if not SECTOR_SIZE <= block_size <= LARGEST_BLOCK or block_size & block_size - 1:
        raise ValueError(f"the backend's sectors have {block_size} bytes, which is no power of two from 512 to 4096")
    if physical < block_size or physical % block_size:
        raise ValueError(f"the backend's physical sectors have {physical} bytes, and its others {block_size}")


SEGMENTS_PARAMETER = "xen_blkfront.max_indirect_segments="
"""What asks for more or fewer of them on the kernel's command line."""
RING_SLOTS = 32
"""Requests in a ring of one page."""
ORDER_PARAMETER = "xen_blkfront.max_ring_page_order="
"""What asks for rings of more than one page on the kernel's command line."""
MAX_RING_PAGE_ORDER = 4
"""The most that is asked for: 512 requests in flight."""
QUEUES_PARAMETER = "xen_blkfront.max_queues="
"""What asks for fewer rings than there are vCPUs on the kernel's command line."""


class BlockFront(XenbusDriver):
    """Driver of virtual disks.

    Options: `persistent` (default True): offer persistent grants; `max_indirect_segments`: how many a request has whose
    descriptors are in pages of their own (default: 32 if there is memory enough, else none; at most 4096);
    `max_ring_page_order` (default: 0): a ring has up to so many pages, as a power of two; `max_queues` (default: as
    many as there are vCPUs, and no more): how many rings a disk has. The kernel's command line can say it, too:
    `xen_blkfront.max_indirect_segments=N`, `xen_blkfront.max_ring_page_order=N`, `xen_blkfront.max_queues=N`.
    """

    type: ClassVar[str] = "vbd"
    side: ClassVar[Side] = "frontend"

    def __init__(self, kernel: Kernel, **options: Any) -> None:
        super().__init__(kernel, **options)
        self.persistent = bool(options.get("persistent", True))
        self._withheld: list[Withheld] = []

    def _indirect_segments(self) -> int:
        """Return how many segments an indirect request may have: 0 in a guest that has no memory for a ring of them."""
        wanted = self._parameter("max_indirect_segments", SEGMENTS_PARAMETER)
        if wanted is not None:
            return min(wanted, MOST_SEGMENTS)
        enough = self.kernel.mm.nr_pages >= MEMORY_SHARE * RING_SLOTS * MAX_INDIRECT_SEGMENTS
        return MAX_INDIRECT_SEGMENTS if enough else 0

    def _parameter(self, name: str, on_cmdline: str) -> int | None:
        """Return what the driver's option or the command line asks for, if one does so with a number."""
        option = self.options.get(name)
        if option is not None:
            return int(option)
        for word in self.kernel.cmdline.split():
            value = word.removeprefix(on_cmdline)
            if value != word and value.isascii() and value.isdigit() and len(value) < 6:
                return int(value)
        return None

    async def _page_order(self, device: XenbusDevice) -> int:
        """Return how large a ring both ends want."""
        wanted = min(self._parameter("max_ring_page_order", ORDER_PARAMETER) or 0, MAX_RING_PAGE_ORDER)
        nodes = await device.read_otherend_many("max-ring-page-order")
        return min(wanted, _number(nodes, "max-ring-page-order", 0, 0xFFFFFFFF))

    async def _queues(self, device: XenbusDevice) -> int:
        """Return how many rings both ends want: no more than there are vCPUs, for the others would not be used."""
        vcpus = self.kernel.smp.count if self.kernel.smp is not None else 1
        wanted = self._parameter("max_queues", QUEUES_PARAMETER)
        nodes = await device.read_otherend_many("multi-queue-max-queues")
        offered = _number(nodes, "multi-queue-max-queues", 1, 0xFFFFFFFF)
        return max(1, min(vcpus, offered, vcpus if wanted is None else wanted))

    async def probe(self, device: XenbusDevice) -> None:
        """Name the disk: by `virtual-device`, else by the number in its path."""
        text = await device.read("virtual-device") or device.id
        number = int(text)
        device.data = _Disk(disk_name(number), number & 0xFFFF)

    async def publish(self, device: XenbusDevice) -> None:
        """Make rings and event channels and say where they are."""
        disk: _Disk = device.data
        retry_withheld(self.kernel, self._withheld)
        disk.why = "its backend did not connect"
        disk.leaving = False
        rings = Rings(
            self.kernel,
            disk.block,
            device.otherend_id,
            disk.handle,
            count=await self._queues(device),
            page_order=await self._page_order(device),
        )
        disk.rings = rings
        rings.watch(lambda why: self._broken(device, why))
        nodes = rings.nodes(disk.told)
        disk.told |= nodes
        await device.write(
            {
                **nodes,
                "protocol": XEN_IO_PROTO_ABI_X86_64,
                "feature-persistent": self.persistent,
                "feature-large-sector-size": True,
            }
        )

    async def connect(self, device: XenbusDevice) -> None:
        """Read what the backend says of the disk, and let the guest have it."""
        disk: _Disk = device.data
        rings = disk.rings
        assert rings is not None
        nodes = await device.read_otherend_many(
            "sectors",
            "sector-size",
            "physical-sector-size",
            "info",
            "feature-persistent",
            "feature-discard",
            "discard-secure",
            "feature-max-indirect-segments",
            *FLUSH_OPERATIONS,
        )
        sectors = _number(nodes, "sectors", None, MAX_DISK_SECTORS)
        block_size = _number(nodes, "sector-size", SECTOR_SIZE, 1 << 20)
        physical = _number(nodes, "physical-sector-size", block_size, 1 << 30)
        _check_sizes(block_size, physical)
        info = _number(nodes, "info", 0, 0xFFFFFFFF)
        flush_op = next((op for key, op in FLUSH_OPERATIONS.items() if nodes[key] == "1"), -1)
        # Granularity and alignment of discards are advice: what is smaller may have no effect.
        discards: frozenset[int] = frozenset()
        if nodes["feature-discard"] == "1":
            discards = frozenset((DISCARD, SECURE_DISCARD) if nodes["discard-secure"] == "1" else (DISCARD,))
        offered = _number(nodes, "feature-max-indirect-segments", 0, 1 << 16)
        indirect = min(offered, self._indirect_segments())
        max_sectors = max(MAX_SECTORS, indirect * SECTORS_PER_PAGE)
        # No memory of the driver's is needed for these.
        lent = min(offered, MAX_LENT_SEGMENTS) * SECTORS_PER_PAGE if indirect else 0
        rings.connect(
            self.persistent and nodes["feature-persistent"] == "1",
            flush_op,
            discards,
            max_sectors,
            block_size,
        )
        block = disk.block
        if block_size != block.block_size:
            if self.kernel.block.devices.get(disk.name) is block:
                # What waits, and whoever uses the disk, goes by the old ones.
                raise ValueError(f"the disk had sectors of {block.block_size} bytes, and now has {block_size}")
            block.block_size = block_size
        block.physical_block_size = physical
        block.resize(sectors * (block_size // SECTOR_SIZE))
        block.info = info
        block.readonly = bool(info & VDISK_READONLY)
        block.can_flush = flush_op >= 0
        block.can_discard = DISCARD in discards
        block.can_discard_securely = SECURE_DISCARD in discards
        block.connect(rings.queue, max_sectors, lent)
        self.kernel.block.attach(block)

    async def refresh(self, device: XenbusDevice) -> None:
        """The backend has something new to say: the disk may have another capacity."""
        disk: _Disk = device.data
        nodes = await device.read_otherend_many("sectors")
        block = disk.block
        block.resize(_number(nodes, "sectors", None, MAX_DISK_SECTORS) * (block.block_size // SECTOR_SIZE))

    async def disconnect(self, device: XenbusDevice) -> None:
        """Start nothing new, and let the backend answer what it has.

        A disk that the guest holds is not given up because it is being unplugged: the backend waits.
        """
        disk: _Disk = device.data
        if disk.block.holders and device.otherend_state == XenbusStateClosing:
            await device.error("Device in use; refusing to close", errno.EBUSY)
            disk.block.on_release = device.notice
            await device.wait_while(lambda: disk.block.holders > 0)
        disk.block.queue = None
        disk.leaving = device.otherend_state == XenbusStateConnected
        rings = disk.rings
        if rings is not None and rings.in_flight and not rings.broken:
            try:
                await self.kernel.wait_for(rings.drain(), DRAIN_NS)
            except TimeoutError:
                await device.error(f"the backend has not answered {rings.in_flight} requests")

    async def close(self, device: XenbusDevice) -> None:
        """Give everything back. What was not answered is kept, and issued again should the backend come back.

        A backend that has closed by itself does not come back unasked, and one that cannot be believed had better not:
        then requests fail with EIO, these and later ones, until another connection is made.
        """
        disk: _Disk = device.data
        disk.block.queue = None
        rings, disk.rings = disk.rings, None
        if rings is not None:
            disk.block.requeue(rings.shut())
            given_up = not disk.leaving and device.otherend_state in (XenbusStateClosing, XenbusStateClosed)
            if rings.broken or given_up:
                disk.block.kill(errno.EIO)
            self._withheld += rings.pool.withheld
            retry_withheld(self.kernel, self._withheld)
        if disk.name not in self.kernel.block.devices:
            self.kernel.block.give_up(disk.name, disk.why)

    async def remove(self, device: XenbusDevice) -> None:
        """The disk is unplugged: whoever uses it, or waits for it, is told.

        Not so when this end began: the guest is shutting down, and its threads had better wait for the end in peace
        than fail one after the other.
        """
        disk: _Disk | None = device.data
        if disk is not None:
            self.kernel.block.detach(disk.block)
            if not disk.leaving:
                disk.block.kill(errno.ENXIO)

    def _broken(self, device: XenbusDevice, why: str) -> None:
        """A ring has met garbage: what is in flight can no longer be believed; fail it and give the device up."""
        self.kernel.spawn(device.fatal(why), f"{device.path} broken")


DRAIN_NS = 5_000_000_000
"""How long a closing frontend waits for answers to what is in flight."""
