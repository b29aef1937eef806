"""Lab 11, solved: the vault, mended."""

from __future__ import annotations

import struct

from guest_kernel.kernel import Kernel
from guest_kernel.threads import Lock, WaitQueue
from hypervisor.abi.io.ring import MASK32, REQ_PROD, BackRing

SLOT, DATA, NOTE, NOTES = 80, 16, 64, 16
OKAY, BAD = 0, -1
GET, PUT = 0, 1
REQUEST = struct.Struct("<HBBi")
RESPONSE = struct.Struct("<HhI")
AREA = NOTE * NOTES
MAX_DOMAINS = 64
SEEK_NS = 50_000


class Vault:
    """The notes of all domains, and the devices by which they are reached."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.store = bytearray(AREA * MAX_DOMAINS)
        self.disk = Lock()

    def attach(self, domid: int, ref: int, port: int) -> None:
        """Serve a domain: its ring is in the page with this grant reference, it is notified by this port."""
        (grant,) = self.kernel.grants.map_refs(domid, [ref])
        Device(self, domid, grant.view, port)


class Device:
    """One domain's ring."""

    def __init__(self, vault: Vault, domid: int, view: memoryview, port: int) -> None:
        self.vault = vault
        self.area = domid * AREA
        self.ring = BackRing(view, SLOT)
        self.changed = WaitQueue()
        self.port = vault.kernel.events.bind_interdomain(domid, port, self.on_event)
        vault.kernel.spawn(self.serve(), f"vault for {domid}")

    def on_event(self) -> None:
        """The guest has put requests."""
        self.changed.wake_all()

    async def serve(self) -> None:
        """Serve requests until the guest lies about their number."""
        ring = self.ring
        while not ring.request_overflow(ring.shared[REQ_PROD]):
            if not ring.final_check_for_requests():
                await self.changed.wait()
                continue
            request = ring.copy(ring.req_cons)
            ring.req_cons = (ring.req_cons + 1) & MASK32
            await self.handle(request)

    async def handle(self, request: bytes) -> None:
        """Serve a request: a copy, which the guest cannot change any more."""
        ident, op, length, index = REQUEST.unpack_from(request)
        if length > NOTE or not 0 <= index < NOTES or op not in (GET, PUT):
            self.respond(ident, BAD, b"")
            return
        async with self.vault.disk:
            await self.vault.kernel.sleep(SEEK_NS)
            place = self.area + index * NOTE
            if op == GET:
                self.respond(ident, OKAY, self.vault.store[place : place + length])
            else:
                self.vault.store[place : place + length] = request[DATA : DATA + length]
                self.respond(ident, OKAY, b"", length)

    def respond(self, ident: int, status: int, data: bytes | bytearray, length: int = 0) -> None:
        """Put the response into the next slot, every byte of it, and tell the guest."""
        ring = self.ring
        response = bytearray(SLOT)
        RESPONSE.pack_into(response, 0, ident, status, len(data) or length)
        response[DATA : DATA + len(data)] = data
        at = ring.offset(ring.rsp_prod_pvt)
        ring.view[at : at + SLOT] = response
        ring.rsp_prod_pvt = (ring.rsp_prod_pvt + 1) & MASK32
        if ring.push_responses_and_check_notify():
            self.vault.kernel.events.notify(self.port)
