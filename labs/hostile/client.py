"""An honest client of the vault of lab 11 (`labs/hostile/README.md`): what guests use to keep their notes."""

from __future__ import annotations

import struct

from guest_kernel.kernel import Kernel
from guest_kernel.threads import WaitQueue
from hypervisor.abi.io.ring import MASK32, FrontRing

SLOT, DATA, NOTE, NOTES = 80, 16, 64, 16
GET, PUT = 0, 1
OKAY, BAD = 0, -1
REQUEST = struct.Struct("<HBBi")
"""id, op, length, index"""
RESPONSE = struct.Struct("<HhI")
"""id, status, length"""
VAULT = 1
"""The domain where the vault is."""


class Client:
    """One domain's connection to the vault."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.page = kernel.mm.alloc_page()
        self.ring = FrontRing.initialise(self.page.view, SLOT)
        self.ref = kernel.grants.grant_access(VAULT, self.page)
        self.port = kernel.events.alloc_unbound(VAULT, self._on_event)
        self.changed = WaitQueue()
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.next_id = 0

    async def get(self, index: int, length: int = NOTE) -> bytes:
        """Read a note. Raises ValueError if the vault says that the request makes no sense."""
        status, data = await self.request(GET, index, length)
        if status != OKAY:
            raise ValueError(f"the vault answers {status}")
        return data

    async def put(self, index: int, data: bytes) -> None:
        """Write a note. Raises ValueError as `get`."""
        status, _ = await self.request(PUT, index, len(data), data)
        if status != OKAY:
            raise ValueError(f"the vault answers {status}")

    async def request(self, op: int, index: int, length: int, data: bytes = b"") -> tuple[int, bytes]:
        """Make a request, whatever it is; return status and data of the response."""
        while not self.ring.free_requests():
            await self.changed.wait()
        ident = self.send(op, index, length, data)
        self.push()
        return await self.answer(ident)

    def send(self, op: int, index: int, length: int, data: bytes = b"") -> int:
        """Put a request into the next slot, which is not shown yet; return its id."""
        ident, self.next_id = self.next_id, (self.next_id + 1) & 0xFFFF
        at = self.ring.offset(self.ring.req_prod_pvt)
        self.page.view[at : at + SLOT] = bytes(SLOT)
        REQUEST.pack_into(self.page.view, at, ident, op, length, index)
        self.page.view[at + DATA : at + DATA + len(data)] = data
        self.ring.req_prod_pvt = (self.ring.req_prod_pvt + 1) & MASK32
        return ident

    def push(self) -> None:
        """Show the requests, and notify if the vault has asked for it."""
        if self.ring.push_requests_and_check_notify():
            self.kernel.events.notify(self.port)

    async def answer(self, ident: int) -> tuple[int, bytes]:
        """Wait for the response to a request; return its status and its data."""
        while ident not in self.answers:
            await self.changed.wait()
        return self.answers.pop(ident)

    def _on_event(self) -> None:
        while self.ring.final_check_for_responses():
            slot = self.ring.copy(self.ring.rsp_cons)
            self.ring.rsp_cons = (self.ring.rsp_cons + 1) & MASK32
            ident, status, length = RESPONSE.unpack_from(slot)
            self.answers[ident] = (status, slot[DATA : DATA + min(length, NOTE)])
        self.changed.wake_all()
