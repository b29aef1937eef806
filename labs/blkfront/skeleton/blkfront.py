"""Lab 8: a block frontend. Replace each `raise NotImplementedError`."""

from __future__ import annotations

import errno
import struct

from guest_kernel.kernel import Kernel
from guest_kernel.threads import Event, WaitQueue
from guest_kernel.xenbus.driver import XenbusDevice, XenbusDriver
from hypervisor.abi.io.ring import FrontRing

READ, WRITE = 0, 1
SECTOR = 512
PAGE_SECTORS = 8
MAX_SEGMENTS = 11
SLOT = 112
REQUEST = struct.Struct("<BBH4xQQ")
"""operation, nr_segments, handle, id, sector_number; then the segments."""
SEGMENT = struct.Struct("<IBB2x")
"""gref, first_sect, last_sect"""
RESPONSE = struct.Struct("<QBxh")
"""id, operation, status"""
MASK32 = 0xFFFFFFFF


class BlkFront(XenbusDriver):
    """The driver. It serves one disk, which is `disk` once `connected` is set."""

    type = "vbd"
    side = "frontend"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.connected = Event()
        self.disk: Disk | None = None

    async def publish(self, device: XenbusDevice) -> None:
        """Make the disk's ring and event channel, and tell the backend of them."""
        device.data = disk = Disk(self.kernel, device.otherend_id)
        raise NotImplementedError(f"write ring-ref ({disk.ref}), event-channel and protocol (x86_64-abi)")

    async def connect(self, device: XenbusDevice) -> None:
        """The backend is Connected: learn how large the disk is. Raises ValueError if `sectors` is no number."""
        raise NotImplementedError("device.read_otherend; then let those who wait for `connected` go on")

    async def close(self, device: XenbusDevice) -> None:
        """Give everything back."""
        disk, device.data = device.data, None
        if disk is not None:
            disk.close()


class Disk:
    """A disk: the ring, and the requests that are under way."""

    def __init__(self, kernel: Kernel, backend: int) -> None:
        self.kernel = kernel
        self.backend = backend
        self.sectors = 0
        self.gone = False
        """Nobody answers any more."""
        self.page = kernel.mm.alloc_page()
        self.ring = FrontRing.initialise(self.page.view, SLOT)
        self.ref = kernel.grants.grant_access(backend, self.page)
        self.port = kernel.events.alloc_unbound(backend, self.on_event)
        self.changed = WaitQueue()

    async def read(self, sector: int, count: int) -> bytes:
        """Read sectors. Raises OSError (EIO) if the backend says so, (ENXIO) if it is gone."""
        raise NotImplementedError("in requests of at most MAX_SEGMENTS pages; use `transfer`")

    async def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors. Raises OSError as `read`."""
        raise NotImplementedError("in requests of at most MAX_SEGMENTS pages; use `transfer`")

    async def flush(self) -> None:
        """Do nothing: we do not ask for feature-flush-cache."""

    async def transfer(self, operation: int, sector: int, count: int, data: bytes) -> bytes:
        """Perform one request for `count` sectors (at most MAX_SEGMENTS * PAGE_SECTORS); return what was read."""
        raise NotImplementedError("room in the ring, pages, grants, a slot, a push; wait; give back")

    def on_event(self) -> None:
        """Take the responses. An upcall: it must not wait."""
        raise NotImplementedError("for each response find its request by the id; wake those who wait")

    def close(self) -> None:
        """Fail what is under way, and give the ring back."""
        raise NotImplementedError("gone, wake all; unbind the port; end the grant and free the page, later if need be")


assert errno.ENXIO == 6, "no such device: for who waits for a backend that is gone"
