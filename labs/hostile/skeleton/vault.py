"""A vault: it keeps notes for guests. It works, and it has five holes. Mend them.

`Vault` and `Vault.attach` are what others use. All else may be changed.
"""

from __future__ import annotations

import struct

from guest_kernel.kernel import Kernel
from guest_kernel.threads import Lock, WaitQueue
from hypervisor.abi.io.ring import MASK32, REQ_EVENT, REQ_PROD, BackRing

SLOT, DATA, NOTE, NOTES = 80, 16, 64, 16
OKAY, BAD = 0, -1
REQUEST = struct.Struct("<HBBi")
"""id, op, length, index"""
RESPONSE = struct.Struct("<HhI")
"""id, status, length"""
AREA = NOTE * NOTES
MAX_DOMAINS = 64
SEEK_NS = 50_000
"""How long the disk takes to find a note."""


class Vault:
    """The notes of all domains, and the devices by which they are reached."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.store = bytearray(AREA * MAX_DOMAINS)
        self.buffer = bytearray(SLOT)
        """Where responses are put together."""
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
        self.handlers = {0: self.get, 1: self.put}
        vault.kernel.spawn(self.serve(), f"vault for {domid}")

    def on_event(self) -> None:
        """The guest has put requests."""
        self.changed.wake_all()

    async def serve(self) -> None:
        """Serve requests for ever."""
        ring = self.ring
        while True:
            while ring.req_cons != ring.shared[REQ_PROD]:
                at = ring.offset(ring.req_cons)
                ring.req_cons = (ring.req_cons + 1) & MASK32
                await self.handle(at)
            ring.shared[REQ_EVENT] = (ring.req_cons + 1) & MASK32
            if ring.req_cons == ring.shared[REQ_PROD]:
                await self.changed.wait()

    async def handle(self, at: int) -> None:
        """Serve the request in the slot at a byte of the page."""
        _, _, length, _ = REQUEST.unpack_from(self.ring.view, at)
        if length > NOTE:
            self.respond(at, BAD, 0)
            return
        async with self.vault.disk:
            await self.vault.kernel.sleep(SEEK_NS)
            _, op, length, index = REQUEST.unpack_from(self.ring.view, at)
            self.handlers[op](at, self.area + index * NOTE, length)
            self.respond(at, OKAY, length)

    def get(self, at: int, place: int, length: int) -> None:
        """Read a note."""
        self.vault.buffer[DATA : DATA + length] = self.vault.store[place : place + length]

    def put(self, at: int, place: int, length: int) -> None:
        """Write a note."""
        self.vault.store[place : place + length] = self.ring.view[at + DATA : at + DATA + length]

    def respond(self, at: int, status: int, length: int) -> None:
        """Put the response into the next slot, and tell the guest."""
        ring = self.ring
        (ident,) = struct.unpack_from("<H", ring.view, at)
        RESPONSE.pack_into(self.vault.buffer, 0, ident, status, length)
        at = ring.offset(ring.rsp_prod_pvt)
        ring.view[at : at + SLOT] = self.vault.buffer[:SLOT]
        ring.rsp_prod_pvt = (ring.rsp_prod_pvt + 1) & MASK32
        if ring.push_responses_and_check_notify():
            self.vault.kernel.events.notify(self.port)
