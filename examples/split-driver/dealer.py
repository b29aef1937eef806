"""A driver domain: it brings the backend."""

from dice_back import DiceBack

from guest_kernel.guest import Guest


class Dealer(Guest):
    async def main(self) -> None:
        await self.kernel.xenbus.connected()
        assert self.kernel.bus is not None
        await self.kernel.bus.register(DiceBack(self.kernel))
        await self.kernel.never()
