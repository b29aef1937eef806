"""The backend of dice devices: it has the dice, and rolls them for the guests."""

from dice import BAD_SIDES, ENTRY, OKAY, REQUEST, RESPONSE

from guest_kernel.grants import MappedGrant
from guest_kernel.kernel import Kernel
from guest_kernel.xenbus.driver import XenbusDevice, XenbusDriver, frontend_number
from hypervisor.abi.grant_table import GNTST_okay
from hypervisor.abi.io.ring import MASK32, REQ_PROD, BackRing


class DiceBack(XenbusDriver):
    type = "dice"
    side = "backend"

    async def publish(self, device: XenbusDevice) -> None:
        await device.write({"max-sides": 100})

    async def connect(self, device: XenbusDevice) -> None:
        nodes = await device.read_otherend_many("ring-ref", "event-channel")
        ref, port = (frontend_number(nodes, key) for key in ("ring-ref", "event-channel"))
        (grant,) = self.kernel.grants.map_refs(device.otherend_id, [ref])
        if grant.status != GNTST_okay:
            raise ValueError(f"the frontend's ring-ref {ref} cannot be mapped")
        device.data = table = Table(self.kernel, device, grant)
        table.port = self.kernel.events.bind_interdomain(device.otherend_id, port, table.on_event)

    async def close(self, device: XenbusDevice) -> None:
        table, device.data = device.data, None
        if table is not None:
            table.close()


class Table:
    """One guest's device: its ring, mapped, and the port by which it calls."""

    def __init__(self, kernel: Kernel, device: XenbusDevice, grant: MappedGrant) -> None:
        self.kernel, self.device, self.grant = kernel, device, grant
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
            self.kernel.spawn(self.device.fatal("the ring holds more requests than it has room for"), "dice")
            return
        while ring.final_check_for_requests():
            request = ring.copy(ring.req_cons)  # The guest may change the slot: look at a copy only.
            ring.req_cons = (ring.req_cons + 1) & MASK32
            ident, sides, _ = REQUEST.unpack(request)
            status, roll = (OKAY, self.kernel.rng.randint(1, sides)) if 1 <= sides <= 100 else (BAD_SIDES, 0)
            RESPONSE.pack_into(ring.view, ring.offset(ring.rsp_prod_pvt), ident, status, roll)
            ring.rsp_prod_pvt = (ring.rsp_prod_pvt + 1) & MASK32
        if ring.push_responses_and_check_notify():
            self.kernel.events.notify(self.port)

    def close(self) -> None:
        if self.port >= 0:
            self.kernel.events.unbind(self.port)
        self.ring.release()
        self.kernel.grants.unmap([self.grant])
