"""The frontend of dice devices: `await dice.roll(6)`."""

from dice import ENTRY, OKAY, REQUEST, RESPONSE

from guest_kernel.kernel import Kernel
from guest_kernel.threads import Event, WaitQueue
from guest_kernel.xenbus.driver import XenbusDevice, XenbusDriver
from hypervisor.abi.io.ring import MASK32, FrontRing


class DiceFront(XenbusDriver):
    type = "dice"
    side = "frontend"

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.connected = Event()
        self.dice: Dice | None = None

    async def publish(self, device: XenbusDevice) -> None:
        device.data = dice = Dice(self.kernel, device.otherend_id)
        await device.write({"ring-ref": dice.ref, "event-channel": dice.port})

    async def connect(self, device: XenbusDevice) -> None:
        self.dice = device.data
        self.connected.set()

    async def close(self, device: XenbusDevice) -> None:
        dice, device.data = device.data, None
        if dice is not None:
            dice.close()


class Dice:
    """A connected device. Raises ConnectionError for rolls that are not answered any more."""

    def __init__(self, kernel: Kernel, backend: int) -> None:
        self.kernel = kernel
        self.page = kernel.mm.alloc_page()
        self.ring = FrontRing.initialise(self.page.view, ENTRY)
        self.ref = kernel.grants.grant_access(backend, self.page)
        self.port = kernel.events.alloc_unbound(backend, self.on_event)
        self.free = list(range(self.ring.size))
        self.waiting: dict[int, tuple[int, int] | None] = {}
        self.changed = WaitQueue()
        self.gone = False

    async def roll(self, sides: int) -> int:
        """Roll a die. Raises ValueError if the backend has none with so many sides."""
        while not self.free and not self.gone:
            await self.changed.wait()
        if self.gone:
            raise ConnectionError("the dice are gone")
        ident, ring = self.free.pop(), self.ring
        self.waiting[ident] = None
        REQUEST.pack_into(ring.view, ring.offset(ring.req_prod_pvt), ident, sides, 0)
        ring.req_prod_pvt = (ring.req_prod_pvt + 1) & MASK32
        if ring.push_requests_and_check_notify():
            self.kernel.events.notify(self.port)
        while self.waiting[ident] is None and not self.gone:
            await self.changed.wait()
        answer = self.waiting.pop(ident)
        if answer is None:
            raise ConnectionError("the dice are gone")
        self.free.append(ident)
        self.changed.wake()
        status, roll = answer
        if status != OKAY:
            raise ValueError(f"there is no die with {sides} sides")
        return roll

    def on_event(self) -> None:
        """Take the answers. An upcall: it must not wait."""
        ring = self.ring
        while not self.gone and (ready := ring.final_check_for_responses()):
            ident, status, roll = RESPONSE.unpack(ring.copy(ring.rsp_cons))
            if ready > ring.outstanding() or self.waiting.get(ident, "not asked") is not None:
                self.gone = True  # The backend lies. Believe nothing that it says from now on.
                break
            ring.rsp_cons = (ring.rsp_cons + 1) & MASK32
            self.waiting[ident] = (status, roll)
        self.changed.wake_all()

    def close(self) -> None:
        self.gone = True
        self.changed.wake_all()
        self.kernel.events.unbind(self.port)
        if self.kernel.grants.end_access(self.ref):  # Else the backend still has the page: nobody may use it again.
            self.kernel.mm.free_page(self.page)
