"""A block backend that does what it must: a ring of one page, reads, writes, flushes, a copy of the disk in memory.

paravirt check run --suite blkif-backend tiny_disk:TinyDisk
"""

from pathlib import Path
from typing import Any

from guest_kernel.grants import MappedGrant
from guest_kernel.kernel import Kernel
from guest_kernel.xenbus.driver import XenbusDevice, XenbusDriver, frontend_number
from hypervisor.abi.grant_table import GNTST_okay
from hypervisor.abi.io import blkif
from hypervisor.abi.io.ring import MASK32, REQ_PROD, BackRing
from hypervisor.abi.tracepoints import RING_CONNECT

SECTOR = 512
ENTRY = blkif.blkif_sring_entry.size


class TinyDisk(XenbusDriver):
    type = "vbd"
    side = "backend"

    async def publish(self, device: XenbusDevice) -> None:
        """Say what it can do, before the frontend is looked at."""
        await device.write({"feature-flush-cache": True})

    async def connect(self, device: XenbusDevice) -> None:
        """Map the ring, bind the port, say how large the disk is."""
        nodes = await device.read_otherend_many("ring-ref", "event-channel", "protocol")
        if nodes["protocol"] not in (None, "x86_64-abi"):
            raise ValueError(f"the frontend's protocol {nodes['protocol']!r} is not known")
        ref, port = (frontend_number(nodes, key) for key in ("ring-ref", "event-channel"))
        data = contents(await device.read("params"))
        writable = "w" in (await device.read("mode") or "r")
        (grant,) = self.kernel.grants.map_refs(device.otherend_id, [ref])
        if grant.status != GNTST_okay:
            raise ValueError(f"the frontend's ring-ref {ref} cannot be mapped")
        trace = self.kernel.cpu.trace
        if trace is not None:
            # So that reports can show what goes over the ring.
            trace(RING_CONNECT, f"vbd/{device.otherend_id}/{device.id}", "req", "blkif", device.otherend_id, [ref])
        device.data = disk = Disk(self.kernel, device, grant, data, writable)
        disk.port = self.kernel.events.bind_interdomain(device.otherend_id, port, disk.on_event)
        info = 0 if writable else blkif.VDISK_READONLY
        await device.write({"sectors": len(data) // SECTOR, "sector-size": SECTOR, "info": info})

    async def close(self, device: XenbusDevice) -> None:
        """Give everything back, however far `connect` came."""
        disk, device.data = device.data, None
        if disk is not None:
            disk.close()


def contents(path: str | None) -> bytearray:
    """What the image holds that the toolstack names."""
    return bytearray(Path(path or "").read_bytes())


class Disk:
    """One guest's disk: its contents, its ring, and the port by which the guest calls."""

    def __init__(
        self, kernel: Kernel, device: XenbusDevice, grant: MappedGrant, data: bytearray, writable: bool
    ) -> None:
        self.kernel, self.device, self.grant = kernel, device, grant
        self.data, self.writable = data, writable
        self.ring = BackRing(grant.view, ENTRY)
        self.port = -1
        self.broken = False

    def on_event(self) -> None:
        """Answer all that is there. An upcall: it must not wait."""
        ring = self.ring
        if self.broken:
            return
        if ring.request_overflow(ring.shared[REQ_PROD]):
            self.broken = True
            self.kernel.spawn(self.device.fatal("the ring holds more requests than it has room for"), "tiny disk")
            return
        while ring.final_check_for_requests():
            # The guest may change the slot at any time: look at a copy only.
            request = blkif.blkif_request.unpack(ring.copy(ring.req_cons))
            ring.req_cons = (ring.req_cons + 1) & MASK32
            response = blkif.blkif_response.pack(id=request.id, operation=request.operation, status=self.serve(request))
            at = ring.offset(ring.rsp_prod_pvt)
            ring.view[at : at + len(response)] = response
            ring.rsp_prod_pvt = (ring.rsp_prod_pvt + 1) & MASK32
        if ring.push_responses_and_check_notify():
            self.kernel.events.notify(self.port)

    def serve(self, request: Any) -> int:
        """Do what a request asks; return its status. Nothing of it is to be believed."""
        if request.operation == blkif.BLKIF_OP_FLUSH_DISKCACHE:
            return blkif.BLKIF_RSP_OKAY
        if request.operation not in (blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE):
            return blkif.BLKIF_RSP_EOPNOTSUPP
        is_write = request.operation == blkif.BLKIF_OP_WRITE
        if not 0 < request.nr_segments <= blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST or (is_write and not self.writable):
            return blkif.BLKIF_RSP_ERROR
        segments = request.seg[: request.nr_segments]
        if any(not segment.first_sect <= segment.last_sect < 8 for segment in segments):
            return blkif.BLKIF_RSP_ERROR
        sectors = sum(segment.last_sect - segment.first_sect + 1 for segment in segments)
        if (request.sector_number + sectors) * SECTOR > len(self.data):
            return blkif.BLKIF_RSP_ERROR
        # A page that is to be read from is granted read-only as a rule, and can be mapped no other way.
        pages = self.kernel.grants.map_refs(
            self.device.otherend_id, [segment.gref for segment in segments], writable=not is_write
        )
        try:
            if any(page.status != GNTST_okay for page in pages):
                return blkif.BLKIF_RSP_ERROR
            self.transfer(request.sector_number * SECTOR, segments, pages, is_write)
        finally:
            self.kernel.grants.unmap(pages)
        return blkif.BLKIF_RSP_OKAY

    def transfer(self, place: int, segments: tuple[Any, ...], pages: list[MappedGrant], is_write: bool) -> None:
        """Copy between the disk and the guest's pages."""
        for segment, page in zip(segments, pages, strict=True):
            part = page.view[segment.first_sect * SECTOR : (segment.last_sect + 1) * SECTOR]
            if is_write:
                self.data[place : place + len(part)] = part
            else:
                part[:] = self.data[place : place + len(part)]
            place += len(part)

    def close(self) -> None:
        """Unbind and unmap."""
        if self.port >= 0:
            self.kernel.events.unbind(self.port)
        self.ring.release()
        self.kernel.grants.unmap([self.grant])
