"""The driver domain in which the checks of network frontends run: it has no network backend but the check itself."""

from conformance.net_front import world
from guest_kernel.guest import Guest


class Back(Guest):
    """Does what the current check says."""

    async def main(self) -> None:
        """Run."""
        scene = world.place.scene
        await scene.live(self.kernel)
        if not scene.departs:
            await self.kernel.never()
