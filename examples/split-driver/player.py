"""A guest with a dice device: it brings the frontend, and plays."""

from dice_front import DiceFront

from guest_kernel.guest import Guest


class Player(Guest):
    async def main(self) -> None:
        driver = DiceFront(self.kernel)
        await self.kernel.xenbus.connected()
        assert self.kernel.bus is not None
        await self.kernel.bus.register(driver)
        await driver.connected.wait()
        assert driver.dice is not None
        rolls = [await driver.dice.roll(6) for _ in range(1000)]
        assert set(rolls) == {1, 2, 3, 4, 5, 6}
        self.print("a thousand rolls, on average", sum(rolls) / len(rolls))
        try:
            await driver.dice.roll(101)
        except ValueError as error:
            self.print(error)
