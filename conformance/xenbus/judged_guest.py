"""The domain with the driver that is judged: it does what the check's desk says."""

from conformance.xenbus import world
from guest_kernel.guest import Guest


class Judged(Guest):
    """Has nothing of its own to do."""

    async def main(self) -> None:
        """Run."""
        scene = world.place.scene
        await self.kernel.xenbus.connected()
        while self.kernel.bus is None:
            await self.kernel.sleep(world.LOOK_NS)
        await scene.driver.serve(self.kernel)
