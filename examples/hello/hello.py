"""The smallest guest: prints, waits, prints, powers off."""

from guest_kernel.guest import Guest


class Hello(Guest):
    async def main(self) -> None:
        self.print("hello from", self.name, *self.args)
        await self.sleep(1.5)
        self.print("and good-bye")
