"""Lab 8, solved."""

from __future__ import annotations

import errno
import struct

from guest_kernel.kernel import Kernel
from guest_kernel.mm import Page
from guest_kernel.threads import Event, WaitQueue
from guest_kernel.xenbus.driver import XenbusDevice, XenbusDriver
from hypervisor.abi.io.ring import FrontRing

READ, WRITE = 0, 1
SECTOR = 512
PAGE_SECTORS = 8
MAX_SEGMENTS = 11
SLOT = 112
REQUEST = struct.Struct("<BBH4xQQ")
SEGMENT = struct.Struct("<IBB2x")
RESPONSE = struct.Struct("<QBxh")
MASK32 = 0xFFFFFFFF
MOST = MAX_SEGMENTS * PAGE_SECTORS


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
        await device.write({"ring-ref": disk.ref, "event-channel": disk.port, "protocol": "x86_64-abi"})

    async def connect(self, device: XenbusDevice) -> None:
        """The backend is Connected: learn how large the disk is."""
        text = await device.read_otherend("sectors")
        if text is None or not text.isdigit():
            raise ValueError(f"the backend's sectors is {text!r}, no number")
        device.data.sectors = int(text)
        self.disk = device.data
        self.connected.set()

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
        self.page = kernel.mm.alloc_page()
        self.ring = FrontRing.initialise(self.page.view, SLOT)
        self.ref = kernel.grants.grant_access(backend, self.page)
        self.port = kernel.events.alloc_unbound(backend, self.on_event)
        self.changed = WaitQueue()
        self.next_id = 0
        self.waiting: dict[int, int | None] = {}

    async def read(self, sector: int, count: int) -> bytes:
        """Read sectors."""
        parts = [
            await self.transfer(READ, at, min(MOST, sector + count - at), b"")
            for at in range(sector, sector + count, MOST)
        ]
        return b"".join(parts)

    async def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors."""
        for at in range(0, len(data) // SECTOR, MOST):
            part = data[at * SECTOR : (at + MOST) * SECTOR]
            await self.transfer(WRITE, sector + at, len(part) // SECTOR, part)

    async def flush(self) -> None:
        """Do nothing: we do not ask for feature-flush-cache."""

    async def transfer(self, operation: int, sector: int, count: int, data: bytes) -> bytes:
        """Perform one request; return what was read."""
        while not self.gone and not self.ring.free_requests():
            await self.changed.wait()
        if self.gone:
            raise OSError(errno.ENXIO, "the backend is gone")
        pages = self.kernel.mm.alloc_pages(-(-count // PAGE_SECTORS))
        for number, page in enumerate(pages):
            part = data[number * 4096 : (number + 1) * 4096]
            page.view[: len(part)] = part
        refs = [self.kernel.grants.grant_access(self.backend, page, readonly=operation == WRITE) for page in pages]
        try:
            await self.perform(operation, sector, count, refs)
            return b"".join(bytes(page.view) for page in pages)[: count * SECTOR] if operation == READ else b""
        finally:
            self.give_back(pages, refs)

    def give_back(self, pages: list[Page], refs: list[int]) -> None:
        """End grants and free pages; a page that the backend still has is not used before it lets go."""
        for page, ref in zip(pages, refs, strict=True):
            if self.kernel.grants.end_access(ref):
                self.kernel.mm.free_page(page)
            else:
                self.kernel.spawn(self.give_back_later(page, ref), "blkfront")

    async def give_back_later(self, page: Page, ref: int) -> None:
        """Try again until the backend has let go."""
        while not self.kernel.grants.end_access(ref):
            await self.kernel.sleep(1_000_000)
        self.kernel.mm.free_page(page)

    async def perform(self, operation: int, sector: int, count: int, refs: list[int]) -> None:
        """Put a request for granted pages into the ring, and wait for its response."""
        ident, self.next_id = self.next_id, self.next_id + 1
        ring = self.ring
        at = ring.offset(ring.req_prod_pvt)
        REQUEST.pack_into(ring.view, at, operation, len(refs), 0, ident, sector)
        for number, ref in enumerate(refs):
            last = min(PAGE_SECTORS, count - number * PAGE_SECTORS) - 1
            SEGMENT.pack_into(ring.view, at + REQUEST.size + number * SEGMENT.size, ref, 0, last)
        ring.req_prod_pvt = (ring.req_prod_pvt + 1) & MASK32
        self.waiting[ident] = None
        if ring.push_requests_and_check_notify():
            self.kernel.events.notify(self.port)
        while not self.gone and self.waiting[ident] is None:
            await self.changed.wait()
        status = self.waiting.pop(ident)
        if status is None:
            raise OSError(errno.ENXIO, "the backend is gone")
        if status:
            raise OSError(errno.EIO, f"the backend answers {status}")

    def on_event(self) -> None:
        """Take the responses. An upcall: it must not wait."""
        ring = self.ring
        while not self.gone and (ready := ring.final_check_for_responses()):
            ident, _, status = RESPONSE.unpack_from(ring.copy(ring.rsp_cons))
            if ready > ring.outstanding() or self.waiting.get(ident, 0) is not None:
                self.gone = True
                break
            ring.rsp_cons = (ring.rsp_cons + 1) & MASK32
            self.waiting[ident] = status
        self.changed.wake_all()

    def close(self) -> None:
        """Fail what is under way, and give the ring back."""
        self.gone = True
        self.changed.wake_all()
        self.kernel.events.unbind(self.port)
        self.give_back([self.page], [self.ref])
